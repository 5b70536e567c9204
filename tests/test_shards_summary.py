"""The final output of `svdata2vec shard`, for every kind of source, and its `summary.json`."""

import json
from pathlib import Path

import numpy as np
import pytest
from shards_data import annotation, folder_bytes, write_pickle, write_tree, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.reading.stats import CLIPS_IN_IT
from svdata2vec.shards.reading.summary import kind_of, summarise, table

PACK = ["--size", "64", "--workers", "1"]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five videos of two classes in splits; one is empty, one no video."""
    root = tmp_path / "videos"
    for number, name in enumerate(("train/run/a", "train/run/b", "train/sit/c", "val/run/d", "val/sit/e")):
        path = root / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 8, number)
    (root / "train" / "sit" / "f.mp4").write_bytes(b"")
    (root / "val" / "sit" / "g.mp4").write_bytes(b"no video at all")
    return root


def words_of(kind: str, videos: Path, out: Path) -> list[str]:
    if kind == "folder":
        return ["shard", kind, str(out), "--root", str(videos), *PACK]
    paths = [str(path) for path in sorted(videos.rglob("*.mp4"))]
    if kind == "csv":
        lines = [f"{path},{Path(path).parts[-2]},{Path(path).parts[-3]}" for path in paths]
        (videos.parent / "table.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
        return ["shard", kind, str(out), "--table", str(videos.parent / "table.csv"), *PACK]
    names = [Path(path).stem for path in paths]
    entries = [annotation(name, number % 2) for number, name in enumerate(names)]
    entries[0]["keypoint"] = np.zeros((1, 8, 17, 2), np.float16)
    pair = np.repeat(np.asarray(entries[1]["keypoint"]), 2, axis=0)
    entries[1] |= {"keypoint": pair, "keypoint_score": np.ones((2, 8, 17), np.float16)}
    (videos.parent / "classes.txt").write_text("run\nsit\n")
    write_pickle(videos.parent / "poses.pkl", entries, {"train": names[:4], "val": names[4:]})
    return ["shard", kind, str(out), "--pickle-path", str(videos.parent / "poses.pkl"), "--videos", str(videos), *PACK]


@pytest.mark.parametrize("kind", ["folder", "csv", "pyskl"])
def test_every_kind_ends_with_the_table_even_after_resume(
    kind: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = words_of(kind, videos, out)
    assert main(words) == 0
    first = capsys.readouterr().out
    bytes_before = folder_bytes(out)
    assert main([*words, "--resume"]) == 0
    assert capsys.readouterr().out == first and folder_bytes(out) == bytes_before
    (out / "summary.json").unlink()
    assert main([*words, "--resume"]) == 0
    assert folder_bytes(out) == bytes_before
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["read"], summary["packed"], summary["frames"]) == (7, 5, 40)
    assert sum(each["clips"] for each in summary["left_out"]) == 2
    assert f"{out}: " in first and "read            7 clips" in first and "packed          5 clips, 40 frames" in first
    assert "left out        2 clips, see skipped.jsonl" in first and "the file is empty" in first
    if kind == "pyskl":
        assert summary["view"] == "persons" and summary["without_joints"] == 1
        assert summary["persons_per_clip"] == {"0": 1, "1": 3, "2": 1}
        assert "persons         0: 1 clips, 1: 3 clips, 2: 1 clips" in first and "1 clips have none" in first
        return
    assert summary["view"] == "picture" and summary["missing_joints"] is None
    assert "shows           whole pictures: videos without skeletons" in first
    assert summary["splits"]["train"]["clips_per_class"] == {"run": 2, "sit": 1}
    assert "split train     3 clips, 2 of 2 classes: run 2, sit 1\n" in first


def test_clips_that_are_left_out_do_not_count_as_packed(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does a class that lost all of its clips."""
    (videos / "train" / "jump").mkdir()
    (videos / "train" / "jump" / "h.mp4").write_bytes(b"")
    with caplog.at_level("INFO"):
        assert main(words_of("folder", videos, tmp_path / "out")) == 0
    assert "8 of 8 clips: 5 packed, 3 left out, " in caplog.text
    said = capsys.readouterr().out
    assert "train     3 clips, 2 of 3 classes (without jump): run 2, sit 1\n" in said
    assert "val       2 clips, 2 of 3 classes (without jump): run 1, sit 1\n" in said


def test_joints_that_are_missing_or_cannot_be_true_are_counted(videos: Path, tmp_path: Path) -> None:
    words = words_of("pyskl", videos, tmp_path / "out")
    names = [path.stem for path in sorted(videos.rglob("*.mp4"))]
    entries = [annotation(name, number % 2) for number, name in enumerate(names)]
    for entry in reversed(entries):
        joints = np.array(entry["keypoint"])
        joints[:, :4, :, :] = 0  # of half of the frames nobody is there
        joints[:, 4:, 0] = 0  # in the others the first joint is missing
        entry["keypoint"] = joints
    joints[0, 7, 5] = np.nan  # of the first clip
    write_pickle(tmp_path / "poses.pkl", entries, {"train": names})
    assert main(words) == 0
    summary = summarise(tmp_path / "out")
    assert summary.missing_joints == pytest.approx((5 * 4 + 1) / (5 * 4 * 17), abs=1e-6) and summary.bad_joints == 1


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_joints_of_smaller_copies_are_reported(scale: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Poses that state no size, found in copies of half the size: nothing in one clip tells them from a person in a corner."""
    videos = write_tree(tmp_path / "videos", *(f"{number}.mp4" for number in range(CLIPS_IN_IT)))
    words = words_of("pyskl", videos, tmp_path / "out")
    entries = [annotation(str(number), number % 2, 4, img_shape=None, original_shape=None) for number in range(CLIPS_IN_IT)]
    for entry in entries:
        entry["keypoint"] = scale * (np.array(entry["keypoint"], np.float32) + np.float32([60, 40]))  # to the lower right
    write_pickle(tmp_path / "poses.pkl", entries)
    assert main(words) == 0
    remark = "of 95 % of the clips, persons are in the left 38 % and the upper 45 % of the picture: if their joints were found"
    assert (f"\n  but look        {remark} in smaller copies" in capsys.readouterr().out) == (scale < 1)
    main(["verify", str(tmp_path / "out"), "--workers", "1"])
    assert (f"no fault, but note: {remark}" in capsys.readouterr().out) == (scale < 1)


def test_reasons_of_one_kind_are_counted_together() -> None:
    assert kind_of("/data/a b/x.mp4: cut short, 49 of 100 frames can be decoded", "walk%2Fx", "/data/a b/x.mp4") == (
        kind_of("/else/y.mkv: cut short, 3 of 7 frames can be decoded", "run%2Fy", "/else/y.mkv")
    )
    assert kind_of("clip k1: joint scores have shape (1, 2), expected (3, 4)", "k1", "v.mp4") == (
        "joint scores have shape (N, N), expected (N, N)"
    )
    assert kind_of("v.mp4: label 'Laufen' is unknown; correct the table", "k", "v.mp4") == "label ... is unknown"
    for folder in ("/a/b", "a/b"):
        twice = f"{folder}/1.mp4 has the name of another video, '{folder}/1.mov'; rename one"
        assert kind_of(twice, "b%2F1 (again)", f"{folder}/1.mp4") == "has the name of another video, ..."
    deep = "run/deep/z.mp4: expected class/video.mp4, or one of train, val above the class folders"
    assert kind_of(deep, "run/deep/z.mp4", "/a/run/deep/z.mp4") == deep.removeprefix("run/deep/z.mp4: ")
    twice = "t.csv, line 27: 'a b.mp4' is the file of line 2, which is taken"
    assert kind_of(twice, "line 27", "v/a b.mp4") == "t.csv, line N: ... is the file of line N, which is taken"
    assert kind_of("v/t.csv, line 5: the path is empty", "line 5", "v/t.csv") == "line N: the path is empty"
    assert kind_of("", "k", "") == "no reason given"


def test_names_cannot_write_to_the_terminal(videos: Path, tmp_path: Path) -> None:
    assert main(words_of("folder", videos, tmp_path / "out")) == 0
    summary = summarise(tmp_path / "out")
    shown = table(tmp_path / "out\x1b[2J", summary)
    assert "\x1b" not in shown and "\\x1b[2J" in shown


@pytest.mark.parametrize("damage", [b"{", b"[]\n", b'{"key": "a"}\n', b"\xff\n"])
def test_a_damaged_list_of_what_was_skipped_is_one_line(
    damage: bytes, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of("folder", videos, tmp_path / "out")
    assert main(words) == 0
    (tmp_path / "out" / "skipped.jsonl").write_bytes(damage)
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert "skipped.jsonl: damaged (" in capsys.readouterr().err
