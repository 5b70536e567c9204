"""Large data sets: work per clip or tar does not scan all clips or tars again."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pipeline_factory import shard_set

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, PoseFile
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.packing import plan
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.packing.shard import PARTS, ShardRecord
from svdata2vec.shards.readers import ntu, pose_formats
from svdata2vec.shards.readers.pose_files import read_poses
from svdata2vec.shards.readers.pose_formats import PARSERS
from svdata2vec.shards.reading import verify as verification
from svdata2vec.shards.reading.keylist import KeyList


class Videos:
    """A fake folder of videos in which all these names are found."""

    left_out = ()

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def videos(self) -> list[tuple[str, str]]:
        return [(name, f"/videos/{name}.avi") for name in self._names]

    def find(self, *names: str) -> str:
        return f"/videos/{names[0]}.avi"


def test_ntu60_out_of_the_folders_of_ntu120(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set of foreign samples is built once, not for each sample."""
    names = [f"S{setup:03d}C001P{subject:03d}R001A{action:03d}" for setup in (1, 20) for subject in range(1, 101)
             for action in range(1, 61)]
    monkeypatch.setattr(ntu, "VideoFolder", lambda _: Videos(names))
    files = {name: Path(f"/skeletons/{name}.skeleton") for name in names}
    monkeypatch.setattr(ntu, "files_by_name", lambda *_: files)
    spent = []
    for _ in range(2):
        started = time.thread_time()
        dataset = ntu.read_ntu_skeletons("/skeletons", "/videos", classes=60, keep_missing=True)
        spent.append(time.thread_time() - started)
    assert min(spent) < 2  # a third of a second; 4 as it was
    assert [clip.key for clip in dataset.clips] == names[: len(names) // 2]


@pytest.mark.parametrize(("form", "file", "content"), [
    ("openpose", "{}_{:012d}_keypoints.json", '{"people": []}'), ("yolo", "{}_{}.txt", "")])
def test_a_folder_of_all_videos_frames_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, file: str, content: str
) -> None:
    """And again after a file was added."""
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(pose_formats.os, "scandir", lambda folder: [listed.append(folder), scandir(folder)][1])
    for video in "abc":
        for frame in (1, 2):
            (tmp_path / file.format(video, frame)).write_text(content)
    assert [len(PARSERS[form](str(tmp_path), video, 17).frames) for video in "abc"] == [2, 2, 2]
    assert len(listed) == 1
    (tmp_path / file.format("b", 3)).write_text(content)
    os.utime(tmp_path, ns=(1, 1))
    assert len(PARSERS[form](str(tmp_path), "b", 17).frames) == 3


def test_one_coco_file_of_all_videos_is_sorted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"id": 10 * video + frame, "file_name": f"{video}/{frame:06d}.jpg"} for video in range(5) for frame in range(4)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": []}))
    numbered: list[object] = []
    id_of = pose_formats._id_of
    monkeypatch.setattr(pose_formats, "_id_of", lambda image: [numbered.append(image), id_of(image)][1])
    for video in range(5):
        assert len(PARSERS["coco"](str(tmp_path / "all.json"), str(video), 17).frames) == 4
    assert len(numbered) == len(images)


def test_folders_of_poses_are_read_once_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever folders the clips have their poses."""
    hashed: list[str] = []
    monkeypatch.setattr(plan, "_content_hash", lambda path: [hashed.append(path), "hash"][1])
    folders = [str(tmp_path / name) for name in ("first", "second")]
    clips = [ClipAnnotation(f"clip{i}", 0, tmp_path / f"clip{i}.mp4", pose_file=PoseFile(read_poses, folders[i % 2]))
             for i in range(6)]
    plan.make_plan(DataSet("set", COCO17, ("walk",), {}, clips), PackOptions())
    assert sorted(hashed) == folders


def test_verify_reads_files_beside_the_tars_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the splits' clips, checksums, and the clips in a tar are not read again for each tar."""
    shard_set(tmp_path, 6, clips_per_shard=1, num_frames=lambda _: 2)
    (tmp_path / "skipped.jsonl").touch()
    listed, loaded = [], []
    init, load = KeyList.__init__, verification.load_sums
    monkeypatch.setattr(KeyList, "__init__", lambda self, keys: [listed.append(keys), init(self, keys)][1])
    monkeypatch.setattr(verification, "load_sums", lambda *given: [loaded.append(given), load(*given)][1])
    assert verification.verify(tmp_path) == []
    assert len(listed) == 2  # once the set's own, once to look for them in the index
    assert len(loaded) == 1


def test_a_shards_record_is_small_in_memory(tmp_path: Path) -> None:
    """A packing keeps the records of all shards: of a million clips checksums, 105 numbers each, took five gigabytes."""
    clips, numbers = 128, 105
    rows = [(f"clip{i:05d}", 0, 100, [2**30 + i] * 6, [2**20 + i] * 6) for i in range(clips)]
    sums = np.random.default_rng(0).integers(0, 2**32, clips * numbers, np.uint32)
    (tmp_path / PARTS).mkdir()
    ShardRecord(0, "0" * 64, 5, rows, sums, [], [], {}, {}).save(tmp_path)
    (tmp_path / "shard-000000.tar").write_bytes(bytes(5))
    tracemalloc.start()
    record = ShardRecord.load(tmp_path, 0)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record is not None and record.rows == rows and np.array_equal(record.sums, sums)
    assert kept < 2000 * clips
