"""The loader benchmark measures what it says: CPU time of the whole process tree, steady state, relative table."""

import subprocess
import sys
import time

import numpy as np
import pytest

from svdata2vec.bench import data as bench_data
from svdata2vec.bench import data_methods as methods
from svdata2vec.bench.machine import tree_usage
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.student import frames_seen
from svdata2vec.pipeline.plan import PlanConfig


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_time_counts_children_dead_and_alive():
    before, _ = tree_usage()
    program = "import time\nwhile time.process_time() < 0.3: pass\n"
    subprocess.run([sys.executable, "-c", program], check=True)
    living = subprocess.Popen([sys.executable, "-c", program + "print(1, flush=True); input()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert living.stdout is not None and living.stdout.readline() == b"1\n"
    after, memory = tree_usage()
    living.communicate(b"\n")
    assert 0.5 < after - before < 2 and memory > 5e6


def test_measure_leaves_the_start_out():
    def method():
        burn(0.5)  # start-up
        while True:
            burn(0.04)
            yield 4

    row = bench_data.measure(method, 40)
    assert 9 <= row["cpu_ms_per_clip"] <= 14 and row["clips_per_s"] <= 105


def test_the_original_chain_is_crop_and_resize():
    """In evaluation mode a square that fits is OpenCV's resize of that square."""
    import cv2

    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    joints = np.zeros((1, 1, 17, 2), np.float32)
    joints[0, 0, :2] = (40, 20), (80, 100)  # 40 x 80 around (60, 60): half side 44
    (frame,) = methods.original_chain([picture], joints, np.random.default_rng(0), train=False)
    np.testing.assert_array_equal(frame, cv2.resize(picture[16:104, 16:104], (224, 224)))
    assert PlanConfig() == methods.PLAN and frames_seen(PretrainConfig()) == methods.SEEN


@pytest.mark.parametrize("reference", [True, False])
def test_the_table_is_relative_to_the_original_style(reference):
    row = {"clips_per_s": 10.0, "frames_per_s": 400.0, "rss_mb": 100.0}
    rows = {"ours, jpeg": {**row, "cpu_ms_per_clip": 25.0}, "original style, pyav": {**row, "cpu_ms_per_clip": 200.0}}
    if reference:
        rows[bench_data.REFERENCE] = {**row, "cpu_ms_per_clip": 300.0}
    lines = bench_data.as_table({"methods": rows}).splitlines()
    assert lines[2].startswith("| ours, jpeg | 25.0 |") and lines[2].endswith(f"| {12.0 if reference else 8.0} |")
