"""Pose extraction through the real code of mmpose, with random weights, in the environment that tools/pose/pose_env.sh makes.

What runs inside that environment is in pose_env_cases.py. The environment is made here if it is missing: about half a
minute, once. Alone: bash tools/pose/pose_env.sh && bash tools/test.sh tests/test_tools_extract_poses.py
"""

import json
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT
from shards_data import HEIGHT, WIDTH, write_video

from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.verify import verify

pytestmark = pytest.mark.installs
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def pose_python() -> str:
    """The interpreter of .venv-pose."""
    made = subprocess.run(["bash", "tools/pose/pose_env.sh"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, f"tools/pose/pose_env.sh failed:\n{made.stdout}{made.stderr}"
    return str(ROOT / ".venv-pose" / "bin" / "python")


def extract(python: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, str(ROOT / "tools" / "pose" / "extract_poses.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def test_videos_become_shards(pose_python: str, tmp_path: Path) -> None:
    """Own videos -> RTMO -> pickle -> shards that verify; a second run finds all done."""
    videos = tmp_path / "videos"
    for folder in ("walk", "run"):
        (videos / folder).mkdir(parents=True)
    write_video(videos / "walk" / "a.mp4", 5)
    write_video(videos / "run" / "b.mp4", 4, seed=1)
    (videos / "run" / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "poses" / "own.pkl"
    arguments = (videos, "--out", out, "--model", "rtmo-t", "--random-weights", "--input-size", 128, "--min-score", 0,
                 "--batch", 4, "--device", "cpu")
    first = extract(pose_python, *arguments)
    assert first.returncode == 0, first.stderr
    assert "the detections are meaningless" in first.stdout and "3/3 videos, 9 frames" in first.stdout
    assert "broken.mp4" in json.loads((tmp_path / "poses/own.work/skipped.jsonl").read_text())["reason"]
    content = out.read_bytes()
    (videos / "run" / "broken.mp4").unlink()
    second = extract(pose_python, *arguments)
    assert second.returncode == 0 and "2 finished before" in second.stdout and "random weights" not in second.stdout
    assert out.read_bytes() == content

    by_name = {entry["frame_dir"]: entry for entry in pickle.loads(content)["annotations"]}
    for name, count in (("a", 5), ("b", 4)):
        entry = by_name[name]
        persons = entry["keypoint"].shape[0]
        assert persons in (1, 2) and entry["keypoint"].shape == (persons, count, 17, 2)
        assert np.isfinite(entry["keypoint"]).all() and entry["keypoint"].any(), "random weights find something at score 0"
        assert entry["img_shape"] == (HEIGHT, WIDTH) and entry["bboxes"].shape == (count, 5)
        x1, y1, x2, y2 = entry["bboxes"][:, :4].T
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= WIDTH).all() and (y2 <= HEIGHT).all()

    pack(read_pyskl(out, videos), tmp_path / "shards", PackOptions(workers=1, size=64))
    shards = ShardSet.open(tmp_path / "shards")
    assert {shards.sample(int(row)).label for row in shards.rows("train")} == {0, 1}
    faults = [finding for finding in verify(tmp_path / "shards") if "outside" not in str(finding)]
    assert not faults, "random joints may lie outside the picture; nothing else may be wrong"


def test_inside_the_environment(pose_python: str) -> None:
    """Everything that needs mmpose in the same process: pose_env_cases.py, run by pytest over there."""
    command = [pose_python, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "tests/helpers/pose_env_cases.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
