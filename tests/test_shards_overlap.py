"""Packing and `verify` report clips that are in both training and test, by name and by the bytes of the video."""

import itertools
import logging
import shutil
from pathlib import Path

import pytest
from shards_data import write_video

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.overlap import doubles, overlaps
from svdata2vec.shards.reading.verify import verify


@pytest.mark.parametrize(("first", "second", "compared"), [
    ("train", "test", True), ("train", "val", True), ("val", "test", True), ("xsub_train", "xsub_val", True),
    ("train1", "test1", True), ("my-train", "my-test", True), ("Training", "Testing", True), ("learn", "exam", True),
    ("cs_trainval", "cs_test", True), ("fold1", "fold2", True), ("dev", "eval", True),
    ("xsub_train", "xview_val", False), ("train1", "test2", False), ("cs_trainval", "cs_train", False), ("all", "test", False),
    ("train", "train_small", False), ("xsub_train", "xset_train", False),
])
def test_which_splits_are_compared(first: str, second: str, compared: bool) -> None:
    for names in ((first, second), (second, first)):
        found = list(overlaps({key: ["a", "b"] for key in names}, {}))
        assert [overlap.pairs for overlap in found] == [(("a", "a"), ("b", "b"))] * compared


def test_pairs_are_named_by_name_and_by_source() -> None:
    sources = {"a": "1", "b": "2", "c": "1", "d": "3", "e": "2"}
    (found,) = overlaps({"train": ["a", "b", "x"], "test": ["c", "b", "x", "d", "e"]}, sources)
    assert found.pairs == (("b", "b"), ("x", "x"), ("a", "c"), ("b", "e"))
    assert str(found) == "4 clips in both: b, x, a = c (same bytes), b = e (same bytes)"
    (many,) = overlaps({"train": [*"abcdefg"], "test": [*"abcdefg"]}, {})
    assert str(many) == "7 clips in both: a, b, c, d, e and 2 more"


def test_the_same_bytes_under_two_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "own"
    for seed, name in enumerate(("train/walk/a.mp4", "train/run/b.mp4", "test/walk/c.mp4")):
        (root / name).parent.mkdir(parents=True)
        write_video(root / name, 4, seed=seed)
    (root / "test" / "run").mkdir()
    shutil.copy(root / "train" / "run" / "b.mp4", root / "test" / "run" / "copy.mp4")
    with caplog.at_level(logging.WARNING):
        pack(open_dataset("folder", root=root), tmp_path / "out", PackOptions(workers=1, size=96, clips_per_shard=2))
    wanted = "1 clips in both: test%2Frun%2Fcopy = train%2Frun%2Fb (same bytes)"
    assert f"splits test and train: {wanted}" in caplog.text
    assert [str(finding) for finding in verify(tmp_path / "out")] == [f"split: test, train: {wanted}"]


def test_clips_that_a_split_has_twice_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, even if they are in several splits; two parts of a video are not the same."""
    sources = {"a": "1 0 4", "b": "1 0 4", "c": "1 4 4", "d": "1 0 4", "e": "1 0 4"}
    assert doubles({"cs_train": ["a", "b", "c", "d"], "cv_train": ["b", "a", "d", "x"], "cs_test": ["e"]}, sources) == [
        ("a", "b"), ("a", "d")]
    root = tmp_path / "own" / "walk"
    root.mkdir(parents=True)
    for name in ("a", "b", "copy-of-a"):
        write_video(root / f"{name}.mp4", 4, seed=name == "b")
    pack(open_dataset("folder", root=root.parent), tmp_path / "out", PackOptions(workers=1, size=96))
    assert "clips of the same pictures as another one of their split: walk%2Fcopy-of-a = walk%2Fa" in caplog.messages


def test_parts_of_one_video_are_not_the_same(tmp_path: Path) -> None:
    """Clips cut out of one long video share its bytes, not their frames."""
    video = write_video(tmp_path / "long.mp4", 12)
    clips = [ClipAnnotation(f"c{a}", 0, video, start_frame=a, end_frame=b) for a, b in itertools.pairwise((0, 4, 8))]
    again = ClipAnnotation("again", 0, video, start_frame=4, end_frame=8)
    splits = {"train": ["c0"], "test": ["c4", "again"]}
    pack(DataSet("cut", layout("coco17"), ("x",), splits, [*clips, again]), tmp_path / "out", PackOptions(workers=1, size=96))
    assert verify(tmp_path / "out") == []
    splits = {"train": ["c4"], "test": ["c0", "again"]}
    pack(DataSet("cut", layout("coco17"), ("x",), splits, [*clips, again]), tmp_path / "leak", PackOptions(workers=1, size=96))
    assert "1 clips in both: c4 = again (same bytes)" in str(verify(tmp_path / "leak")[0])
