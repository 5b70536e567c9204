"""The loader benchmark measures what it claims: CPU time of the whole process tree, steady state, relative table."""

import itertools
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from shards_data import write_motion_set

from svdata2vec.bench import data as bench_data
from svdata2vec.bench import data_methods as methods
from svdata2vec.bench import data_sources
from svdata2vec.bench.config import DataBenchOptions
from svdata2vec.bench.machine import tree_usage
from svdata2vec.cli.main import main
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.student import frames_seen
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.pyskl import read_pyskl


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


def test_a_child_s_milliseconds_are_counted():
    """Each of them: a clip of the fastest loaders costs less than the hundredth of a second that the system's tables tell."""
    program = (
        "import time\nwhile input():\n end = time.process_time() + 0.003\n"
        " while time.process_time() < end: pass\n print(1, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert child.stdin is not None and child.stdout is not None
    spent = []
    for _ in range(8):
        before, own = tree_usage()[0], time.process_time()
        child.stdin.write(b"1\n")
        child.stdout.read(2)
        while psutil.Process(child.pid).status() != psutil.STATUS_SLEEPING:  # the kernel may count its last slice only then
            pass
        own = time.process_time() - own
        spent.append(tree_usage()[0] - before - own)
    child.communicate(b"\n")
    assert min(spent) > 0.0025


def test_measure_tells_the_start_from_the_steady_state():
    """Start-up, and first clips that cost more, for as long as any method is given to come to its steady state."""
    def method():
        burn(0.5)  # start-up
        for clip in itertools.count(step=4):
            burn(0.004 if clip >= bench_data.WARM_UP_CLIPS else 0.012)
            yield 4

    row = bench_data.measure(method, 400)
    assert 0.9 <= row["cpu_ms_per_clip"] <= 2 and row["clips_per_s"] <= 1100
    assert row["first_cpu_ms_per_clip"] >= 3 + 500 / bench_data.WARM_UP_CLIPS


def test_a_gpu_is_waited_for_where_the_clock_is_read(monkeypatch):
    seen, waits = [0], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(seen[-1]))
    bench_data.measure(lambda: (seen.append(seen[-1] + 4) or 4 for _ in itertools.count()), 8)
    assert waits == [bench_data.WARM_UP_CLIPS, bench_data.WARM_UP_CLIPS + 8]


def test_the_row_of_reading_measures_only_reading(monkeypatch):
    """It does nothing with the clips: what it did, a sum of all their bytes, cost four times what reading does."""
    monkeypatch.setattr(methods, "_read", lambda shards: iter([[object()] * 4]))
    assert list(methods.ours_read_only(None)) == [4]


def test_the_original_chain_is_crop_and_resize():
    """In evaluation mode a square that fits is OpenCV's resize of that square."""
    import cv2

    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    joints = np.zeros((1, 1, 17, 2), np.float32)
    joints[0, 0, :2] = (40, 20), (80, 100)  # 40 x 80 around (60, 60): half side 44
    (frame,) = methods.original_chain([picture], joints, np.random.default_rng(0), train=False)
    np.testing.assert_array_equal(frame, cv2.resize(picture[16:104, 16:104], (224, 224)))
    assert PretrainConfig().data.plan() == methods.PLAN and frames_seen(PretrainConfig()) == methods.SEEN


@pytest.mark.parametrize("reference", [True, False])
def test_the_table_is_relative_to_the_original_style(reference):
    row = {"clips_per_s": 10.0, "rss_mb": 100.0, "first_cpu_ms_per_clip": 50.0}
    rows = {"ours, jpeg": {**row, "cpu_ms_per_clip": 25.0}, "original style, pyav": {**row, "cpu_ms_per_clip": 200.0}}
    if reference:
        rows[bench_data.REFERENCE] = {**row, "cpu_ms_per_clip": 300.0}
    lines = bench_data.as_table({"methods": rows}).splitlines()
    assert lines[2] == f"| ours, jpeg | 25.0 | 10.0 | 50.0 | 100 | {12.0 if reference else 8.0} |"
    assert {line.count("|") for line in lines} == {7}


def test_ways_that_cannot_be_imported_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anything is timed, installed or not: a library that cannot be loaded ended the benchmark after minutes."""
    broken = "try:\n 1 / 0\nexcept Exception as e:\n raise OSError('libnvrtc.so.13: cannot open\\n[end of traceback]') from e"
    (tmp_path / "broken_way.py").write_text(broken)
    (tmp_path / "dead_way.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    modules = {"broken": "broken_way", "dead": "dead_way", "missing": "no_such_way", "there": "numpy"}
    ways = {name: (module, None) for name, module in modules.items()}
    monkeypatch.setattr(bench_data, "OPTIONAL", ways)
    table = dict.fromkeys(("ours", *ways), lambda: iter([1]))
    bench_data.leave_out_lacking(table)
    assert [*table] == ["ours", "there"]
    assert "left out: broken (OSError: libnvrtc.so.13: cannot open)" in caplog.text
    assert "left out: dead (its import ended with status -6)" in caplog.text
    assert "left out: missing (ModuleNotFoundError: No module named 'no_such_way')" in caplog.text


def test_help_and_refusal_tell_the_methods_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their names have commas in them."""
    monkeypatch.setattr(bench_data.torch.cuda, "is_available", lambda: False)
    names = [*bench_data.method_table()]
    with pytest.raises(UserError, match=r"unknown method 'jpeg'; choose one of: .*") as refused:
        bench_data.bench_data(DataBenchOptions(folder=tmp_path, method="jpeg"))
    assert str(refused.value).partition("one of: ")[2].split("; ") == names
    assert not [*tmp_path.iterdir()], "clips were made first"
    with pytest.raises(SystemExit):
        main(["bench", "data", "--help"])
    shown = re.sub(r"[^!-~]+", " ", capsys.readouterr().out).partition("Names: ")[2]
    assert re.findall('"([^"]+)"', shown.partition("; where")[0]) == names


def test_one_method_writes_no_file() -> None:
    with pytest.raises(UserError, match=r"^out is rates\.json with method 'ours, jpeg', which prints its JSON and writes no"):
        DataBenchOptions(method="ours, jpeg", out=Path("rates.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": True, "clips": 3}, r"^clips is 3 with tune, which times for a second per setting and round: leave one"),
        ({"method": "ours, jpeg", "rounds": 9}, r"^rounds is 9 with method 'ours, jpeg', which is timed once: leave one"),
    ],
)
def test_options_that_would_not_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataBenchOptions(**options)


@pytest.mark.parametrize(("status", "how"), [(1, "ended with status 1"), (-9, "was killed by signal 9")])
def test_a_method_that_fails_is_a_line(status: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data, "method_table", lambda: {"ours": lambda sources: lambda: iter([1])})
    monkeypatch.setattr(bench_data, "leave_out_lacking", lambda _: None)
    monkeypatch.setattr(bench_data, "check_outputs", lambda _: {})
    ended = subprocess.CompletedProcess([], status, "")
    monkeypatch.setattr(bench_data.subprocess, "run", lambda *_, check, **__: ended.check_returncode() if check else ended)
    with pytest.raises(RunFailedError, match=f"^bench data: ours {how}; see its output above$"):
        bench_data.run(bench_data.Sources(tmp_path, 4), 4, 1)


def test_sources_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was being written when the benchmark was ended is no source of the next one; nor are joints without their video."""
    monkeypatch.setattr(data_sources, "NUM_FRAMES", 3)
    monkeypatch.setattr(data_sources, "_workers", lambda _: 1)  # in this process, where the faults are planted
    clips = [*data_sources.make_sources(tmp_path, 2).clips]
    videos = [Path(clip.video).read_bytes() for clip in clips]
    Path(clips[1].video).unlink()
    assert [*data_sources.make_sources(tmp_path, 2).clips][1].pose_MTVC.shape == (1, 3, 17, 2)
    assert [Path(clip.video).read_bytes() for clip in clips] == videos
    assert len(methods.decode_pyav(videos[1], np.arange(3))) == 3
    dataset = data_sources.make_sources(tmp_path, 2)
    for broken in ("clip", "tar"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            if broken == "clip":
                patch.setattr(data_sources, "_joints", lambda *_: 1 // 0)
                data_sources.make_sources(tmp_path, 3)
            patch.setattr(Path, "read_bytes", lambda _: 1 // 0)
            data_sources.write_source_tars_once(dataset, tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".npy"} and len([*tmp_path.iterdir()]) in (4, 5)
    tars = data_sources.write_source_tars_once(dataset, tmp_path)
    with tarfile.open(tars[1]) as tar:
        assert sorted(tar.getnames()) == ["clip001.mp4", "clip001.pose.npy"]


def test_shards_that_were_packed_otherwise_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an earlier version, whose default was another."""
    dataset = read_pyskl(*write_motion_set(tmp_path / "source"))
    monkeypatch.setattr(data_sources, "_workers", lambda _: 1)
    shards = data_sources.packed(tmp_path, dataset, "jpeg", chroma="444")
    shards.root.rename(tmp_path / "packed-jpeg-6")
    with pytest.raises(UserError, match=r"packed-jpeg-6: packed with .*'chroma': 444}, expected .*'chroma': 420}; delete"):
        data_sources.packed(tmp_path, dataset, "jpeg")
    assert data_sources.packed(tmp_path, dataset, "blocks").manifest.codec == "blocks"
