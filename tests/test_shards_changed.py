"""Sources that change while they are packed: no clip is made of two files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from shards_data import block_pose, folder_bytes, write_tree, write_video

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, PoseFile
from svdata2vec.shards.errors import MachineError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing.clip import ClipPacker
from svdata2vec.shards.packing.pack import PackOptions, Progress, pack
from svdata2vec.shards.packing.plan import shard_tasks
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.video import VideoReader


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    """Overwrite a file with as many bytes, later."""
    later = path.stat().st_mtime_ns + 10**9
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(later, later))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + b"more")
    other.replace(path)


def read_pose(path: str) -> Pose:
    return Pose(np.load(path))


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    """Two whole videos, and two clips that are cut out of a third and share one pass over it."""
    clips = []
    for number, name in enumerate(("a", "b", "long")):
        video = write_video(tmp_path / f"{name}.mp4", 8, seed=number)
        np.save(tmp_path / f"{name}.npy", block_pose(8))
        parts = [(name, 0, None)] if name != "long" else [("long_0", 0, 4), ("long_1", 4, 8)]
        for key, start, end in parts:
            pose = PoseFile(read_pose, str(tmp_path / f"{name}.npy")) if end is None else None
            clips.append(ClipAnnotation(key, 0, video, start_frame=start, end_frame=end, pose_file=pose))
    return DataSet("changing", layout("coco17"), ("a",), {"all": [clip.key for clip in clips]}, clips)


SMALL, COPY = PackOptions(workers=1, size=64), PackOptions(workers=1, codec="copy")


def packed_keys(dataset: DataSet, root: Path, options: PackOptions = SMALL) -> tuple[list[str], dict[str, str]]:
    """Clips that were packed, and why the others were not."""
    pack(dataset, root, options)
    left_out = [json.loads(line) for line in (root / "skipped.jsonl").read_text().splitlines()]
    return list(ShardSet.open(root).manifest.splits["all"]), {entry["key"]: entry["reason"] for entry in left_out}


@pytest.mark.parametrize("change", [append, rewrite, replace, Path.unlink])
@pytest.mark.parametrize("file", ["a.mp4", "a.npy"])
def test_a_file_that_changes_while_it_is_packed_is_left_out(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, change: Callable[[Path], None]
) -> None:
    crops = VideoReader.crops

    def changing(reader: VideoReader, *square: int, **options: object) -> Iterator[np.ndarray]:
        frames = crops(reader, *square, **options)  # type: ignore[arg-type]
        yield next(frames)
        if Path(reader.path).name == "a.mp4":
            change(tmp_path / file)
        yield from frames

    monkeypatch.setattr(VideoReader, "crops", changing)
    keys, left_out = packed_keys(dataset, tmp_path / "shards")
    assert keys == ["b", "long_0", "long_1"] and left_out.keys() == {"a"}
    gone = change is Path.unlink and file == "a.mp4"  # which is read once more for its hash
    assert f"{tmp_path / file}: {'' if gone else 'changed while it was packed ('}" in left_out["a"]


def test_clips_of_one_video_that_changes_between_them_are_left_out(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader stays open from one to the next; the one before the change is whole."""
    crops = VideoReader.crops

    def changing(reader: VideoReader, *square: int, **options: object) -> Iterator[np.ndarray]:
        if options.get("start"):
            append(Path(reader.path))
        yield from crops(reader, *square, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(VideoReader, "crops", changing)
    keys, left_out = packed_keys(dataset, tmp_path / "shards")
    assert keys == ["a", "b", "long_0"] and "long.mp4: changed while it was packed" in left_out["long_1"]


def test_overlapping_clips_of_a_video_that_changes_between_them_have_its_hash_each(tmp_path: Path) -> None:
    """Such clips are read one after the other, each from its own start."""
    packer, found = ClipPacker(17, SMALL), []
    for seed, start in enumerate((0, 4)):
        video = write_video(tmp_path / "long.mp4", 8, seed=seed)
        parts, _ = packer.pack(ClipAnnotation("part", 0, video, start_frame=start, end_frame=start + 4))
        packer.pack(ClipAnnotation("next", 0, video, start_frame=1, end_frame=6))
        found.append(json.loads(parts["json"])["source_sha256"] == hashlib.sha256(video.read_bytes()).hexdigest())
    assert found == [True, True]


def test_a_copied_file_is_the_one_that_was_decoded(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = VideoReader.count

    def changing(reader: VideoReader) -> int:
        frames = count(reader)
        if Path(reader.path).name == "a.mp4":
            replace(Path(reader.path))
        return frames

    monkeypatch.setattr(VideoReader, "count", changing)
    whole = DataSet("copied", dataset.layout, dataset.classes, {"all": ["a", "b"]}, dataset.clips[:2])
    keys, left_out = packed_keys(whole, tmp_path / "shards", COPY)
    assert keys == ["b"] and "a.mp4: changed while it was packed" in left_out["a"]


def test_untouched_files_are_packed(dataset: DataSet, tmp_path: Path) -> None:
    assert packed_keys(dataset, tmp_path / "shards") == (["a", "b", "long_0", "long_1"], {})


@pytest.mark.parametrize("empty", [True, False])
def test_a_disk_that_goes_away_ends_the_packing_and_loses_no_clip(tmp_path: Path, empty: bool) -> None:
    """Clips cannot be added to a finished set. A disk that is not mounted may show as an empty folder."""
    disk, away = write_tree(tmp_path / "disk", "c/a.mp4", "c/b.mp4", "c/d.mp4"), tmp_path / "away"
    dataset, options = open_dataset("folder", root=disk), changed(SMALL, clips_per_shard=1)
    pack(dataset, tmp_path / "whole", options)

    def unmount(_: Progress) -> None:
        disk.rename(away)
        if empty:
            (disk / "c").mkdir(parents=True)

    with pytest.raises(MachineError, match=rf"^{disk}/c: not there any more, or empty, on .*; [abd]\.mp4 was to be packed"):
        pack(dataset, tmp_path / "out", options, progress=unmount)
    if empty:
        (disk / "c").rmdir()
        disk.rmdir()
    away.rename(disk)
    pack(dataset, tmp_path / "out", changed(options, resume=True))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_workers_of_a_cluster_are_given_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have been started in other folders, in which they would find no video and leave out the clips."""
    monkeypatch.chdir(tmp_path)
    clips = [ClipAnnotation("a", 0, "a.mp4", pose_file=PoseFile(read_pose, "a.npy")), ClipAnnotation("b", 0, "s3://c/b.mp4")]
    dataset = DataSet("set", layout("coco17"), ("c",), {}, clips)
    (task,) = shard_tasks(tmp_path / "out", dataset, PackOptions(cluster="tcp://scheduler:8786"), {})
    paths = {clip.key: (clip.video, clip.pose_file and clip.pose_file.path) for clip in task.clips}
    assert paths == {"a": (f"{tmp_path}/a.mp4", f"{tmp_path}/a.npy"), "b": ("s3://c/b.mp4", None)}
