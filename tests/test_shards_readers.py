"""The readers on miniature data in the published formats, from files to packed clips."""

import inspect
import logging
import pickle
import re
import shutil
from dataclasses import fields
from pathlib import Path

import fsspec
import numpy as np
import pytest
from ntu_files import skeleton_text
from shards_data import WIDTH, annotation, block_pose, clip_of, left_out, packed, reasons, write_pickle, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.plan import PackOptions
from svdata2vec.shards.readers.ntu import (
    PUBLISHED,
    PUBLISHED_VIDEOS,
    XSUB60_TRAIN,
    XSUB120_TRAIN,
    NtuName,
    missing_names,
    ntu_splits,
)
from svdata2vec.shards.readers.skeleton_npy import read_npy_skeleton
from svdata2vec.shards.readers.skeleton_text import FIRST_COLUMNS, read_text_skeleton
from svdata2vec.shards.readers.sources import SOURCES, open_dataset
from svdata2vec.shards.readers.tables import lines, numbers
from svdata2vec.shards.readers.uav_human import CSV1_TRAIN, CSV2_TRAIN

FRAMES = 6
WIDE_HEIGHT = 108  # of a video of the shape of 1920x1080


# ---------------------------------------------------------------------------------------------------- NTU RGB+D

NTU_NAMES = ["S001C001P001R001A001", "S001C002P003R002A060", "S017C003P040R001A031"]


def ntu_pickle(root: Path, names: list[str], **changes: object) -> dict[str, object]:
    """Videos (192x108) and a pickle annotated in 1080p pixels: as published, 10x the video's."""
    videos = root / "nturgbd_videos"
    videos.mkdir()
    entries = []
    for name in names:
        write_video(videos / f"{name}.mp4", FRAMES, height=WIDE_HEIGHT)
        pose = block_pose(FRAMES) * np.array([1920 / WIDTH, 1080 / WIDE_HEIGHT], np.float32)
        entries.append(annotation(name, NtuName.parse(name).action - 1, FRAMES, img_shape=(1080, 1920),
                                  original_shape=(1080, 1920), keypoint=pose.astype(np.float16), **changes))
    split = ntu_splits(names, 60)
    return {"pickle_path": write_pickle(root / "ntu60_2d.pkl", entries, split), "videos": videos}


def test_ntu_pickle_with_joints_in_1080p_on_smaller_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset("ntu60", **ntu_pickle(tmp_path, NTU_NAMES))
    assert dataset.name == "ntu60" and len(dataset.classes) == 60 and dataset.classes[59] == (
        "walking apart from each other")
    with caplog.at_level(logging.WARNING, logger="svdata2vec"):
        shards = packed(dataset, tmp_path)
    assert "split xsub_train: 1 clips, published are 40091 (-40090)" in caplog.text
    assert shards.manifest.splits == {
        "xsub_train": [NTU_NAMES[0]], "xsub_val": NTU_NAMES[1:],
        "xview_train": NTU_NAMES[1:], "xview_val": [NTU_NAMES[0]]}
    sample = clip_of(shards, NTU_NAMES[1])
    assert (sample.meta.setup, sample.meta.camera, sample.meta.subject, sample.label) == (1, 2, 3, 59)
    assert np.abs(sample.pose_MTVC - block_pose(FRAMES)).max() < 0.06
    assert (sample.meta.width, sample.meta.height) == (WIDTH, WIDE_HEIGHT)


def test_ntu_pickle_checks_names_and_labels(tmp_path: Path) -> None:
    sources = ntu_pickle(tmp_path, NTU_NAMES[:1])
    entries = [annotation(NTU_NAMES[0], 5, FRAMES)]
    write_pickle(Path(str(sources["pickle_path"])), entries)
    dataset = open_dataset("ntu60", **sources)
    assert dataset.clips == [] and "clip S001C001P001R001A001 has label 5, its name says 0" in dataset.skipped[0].reason
    with pytest.raises(UserError, match="'walking': expected an NTU RGB"):
        NtuName.parse("walking")


def test_ntu_pickle_of_an_older_tool_and_with_splits_of_its_own(tmp_path: Path) -> None:
    sources = ntu_pickle(tmp_path, NTU_NAMES[:1])
    entry = annotation(NTU_NAMES[0], 0, FRAMES, img_shape=None, original_shape=None)
    write_pickle(Path(str(sources["pickle_path"])), [entry], {"xsub_val": NTU_NAMES[:1]})
    dataset = open_dataset("ntu60", **sources)
    assert [(clip.width, clip.height) for clip in dataset.clips] == [(1920, 1080)]
    assert dataset.splits == {"xsub_val": NTU_NAMES[:1]}, "not xsub_train, of which the subject is by the name"


def test_a_video_missing_for_a_pickle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In `skipped.jsonl`, with its splits, and in the closing table; the pickle only where it is at fault itself."""
    options = ntu_pickle(tmp_path, NTU_NAMES)
    (tmp_path / "nturgbd_videos" / f"{NTU_NAMES[1]}.mp4").unlink()
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(pickle.loads((tmp_path / "ntu60_2d.pkl").read_bytes())["annotations"]))
    for name in ("ntu60_2d.pkl", "list.pkl"):  # with splits, and with those that the names tell
        words = ["--pickle-path", str(tmp_path / name), "--videos", str(options["videos"]), "--workers", "1", "--size", "96"]
        assert main(["shard", "ntu60", str(tmp_path / f"of-{name}"), *words]) == 0
        assert left_out(tmp_path / f"of-{name}") == {NTU_NAMES[1]: (NTU_NAMES[1], ["xsub_val", "xview_train"])}
        assert f", e.g. {NTU_NAMES[1]}\n" in capsys.readouterr().out


def test_bodies_that_share_an_id_are_two_persons(tmp_path: Path) -> None:
    one, other = block_pose(FRAMES)[0], block_pose(FRAMES)[0] + 40
    text = skeleton_text({"7": one, "8": other}, FRAMES, 2, 0)
    (tmp_path / "a.skeleton").write_text(text.replace("\n8 0 1", "\n7 0 1"))
    pose_MTVC = read_text_skeleton(str(tmp_path / "a.skeleton"), FIRST_COLUMNS, 17, None, None).pose_MTVC
    assert np.allclose(pose_MTVC, [one, other], atol=1e-3)


@pytest.mark.parametrize("form", ["id", "npy"])
def test_a_place_in_the_list_identifies_no_person(tmp_path: Path, form: str) -> None:
    """The first person goes, and the second one is the first of each list: the first slot was half one's, half the other's."""
    pose = np.tile(block_pose(FRAMES, 25), (2, 1, 1, 1)).astype(np.float32)
    pose[1] += (300, 0)
    pose[0, FRAMES // 2 :] = 0
    pose[1, 0, 3] = np.nan, 7
    listed = np.where(pose[0].any(axis=(1, 2))[None, :, None, None], pose, np.stack([pose[1], np.zeros_like(pose[1])]))
    if form == "id":
        first, second = np.where(listed.any(axis=(2, 3), keepdims=True), listed, np.nan)
        text = skeleton_text({"7": first, "8": second}, FRAMES, 2, 0)
        (tmp_path / "a.skeleton").write_text(text.replace("\n8 0 1", "\n7 0 1"))
        found = read_text_skeleton(str(tmp_path / "a.skeleton"), FIRST_COLUMNS, 25, None, None).pose_MTVC
    else:
        np.save(tmp_path / "a.npy", {f"rgb_body{m}": one for m, one in enumerate(listed)})  # type: ignore[arg-type]
        found = read_npy_skeleton(str(tmp_path / "a.npy"), 1920, 1080).pose_MTVC
    assert np.allclose(found, pose, atol=1e-3, equal_nan=True)


def test_ntu_official_numbers() -> None:
    assert len(missing_names(60)) == 302
    assert len(missing_names(120)) == 535
    assert missing_names(60) < missing_names(120)
    assert {"S001C002P005R002A008", "S007C003P027R002A013", "S017C003P020R001A059"} <= missing_names(60)
    assert "S032C003P067R002A077" in missing_names(120)
    assert all(NtuName.parse(name).setup <= 17 for name in missing_names(60))
    subjects_60 = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}  # as both papers list them
    assert subjects_60 == XSUB60_TRAIN
    assert subjects_60 | {45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91,
                          92, 93, 94, 95, 97, 98, 100, 103} == XSUB120_TRAIN
    assert len(lines("ntu_classes.txt")) == 120
    for classes, total, videos in ((60, 56578, 56880), (120, 113945, 114480)):
        first, second = sorted({name.split("_")[0] for name in PUBLISHED[classes]})
        for protocol in (first, second):
            assert sum(n for name, n in PUBLISHED[classes].items() if name.startswith(protocol)) == total
            assert sum(n for name, n in PUBLISHED_VIDEOS[classes].items() if name.startswith(protocol)) == videos
        # The missing list, divided by our rules, explains every difference between videos and skeletons.
        missing = {name: len(keys) for name, keys in ntu_splits(missing_names(classes), classes).items()}
        assert missing == {name: PUBLISHED_VIDEOS[classes][name] - PUBLISHED[classes][name] for name in missing}
    splits = ntu_splits(["S002C001P001R001A120", "S003C001P106R001A061"], 120)
    assert splits == {"xsub_train": ["S002C001P001R001A120"], "xsub_val": ["S003C001P106R001A061"],
                      "xset_train": ["S002C001P001R001A120"], "xset_val": ["S003C001P106R001A061"]}


def ntu_raw(root: Path) -> dict[str, object]:
    """Two good samples, one of the missing list, one video without skeleton, one skeleton without video."""
    videos, skeletons = root / "nturgb+d_rgb", root / "nturgb+d_skeletons"
    videos.mkdir()
    skeletons.mkdir()
    pose = block_pose(FRAMES, 25)[0] * [1920 / WIDTH, 1080 / WIDE_HEIGHT]
    late = pose.copy() + 30
    late[:2] = np.nan
    late[3, 4] = np.nan, 7.0  # one joint without colour position, as the sensor gives it
    for name in (NTU_NAMES[0], NTU_NAMES[1], "S001C002P005R002A008", "S002C001P007R001A002"):
        write_video(videos / f"{name}_rgb.avi", FRAMES, codec="mpeg4", height=WIDE_HEIGHT)
    for name in (NTU_NAMES[0], NTU_NAMES[1], "S001C002P005R002A008", "S003C001P007R001A002"):
        text = skeleton_text({"72057594037931101": late, "72057594037931368": pose}, FRAMES, 12, 5)
        (skeletons / f"{name}.skeleton").write_text(text)
    return {"skeletons": skeletons, "videos": videos}


def test_ntu_raw_skeletons(tmp_path: Path) -> None:
    dataset = open_dataset("ntu60-skeleton", **ntu_raw(tmp_path))
    assert [clip.key for clip in dataset.clips] == NTU_NAMES[:2]
    assert {entry.key: entry.reason for entry in dataset.skipped} == {
        "S001C002P005R002A008": "in the official list of samples with missing or incomplete skeletons",
        "S002C001P007R001A002": "no file S002C001P007R001A002.skeleton",
        "S003C001P007R001A002": "no video S003C001P007R001A002_rgb.avi or S003C001P007R001A002.mp4"}
    shards = packed(dataset, tmp_path)
    videos, skeletons = tmp_path / "nturgb+d_rgb", tmp_path / "nturgb+d_skeletons"
    assert left_out(shards.root) == {
        "S001C002P005R002A008": (f"{skeletons}/S001C002P005R002A008.skeleton", ["xsub_train", "xview_train"]),
        "S002C001P007R001A002": (f"{videos}/S002C001P007R001A002_rgb.avi", ["xsub_val", "xview_val"]),
        "S003C001P007R001A002": (f"{skeletons}/S003C001P007R001A002.skeleton", ["xsub_val", "xview_val"])}
    sample = clip_of(shards, NTU_NAMES[1])
    assert (sample.meta.setup, sample.meta.camera, sample.meta.subject, sample.label) == (1, 2, 3, 59)
    assert shards.manifest.layout.name == "kinect25"
    assert sample.pose_MTVC.shape == (2, FRAMES, 25, 2)
    assert np.abs(sample.pose_MTVC[0] - block_pose(FRAMES, 25)[0]).max() < 0.01, "longest on screen comes first"
    assert not sample.pose_MTVC[1, :2].any(), "a body that is not seen is missing"
    assert not sample.pose_MTVC[1, 3, 4].any() and sample.meta.bad_joints == 1
    rgb = tmp_path / "nturgb+d_rgb" / f"{NTU_NAMES[0]}_rgb.avi"
    (rgb.parent / f"{NTU_NAMES[0]}.mp4").write_bytes(rgb.read_bytes())
    twice = open_dataset("ntu60-skeleton", **ntu_raw_again(tmp_path))
    assert [clip.key for clip in twice.clips] == NTU_NAMES[1:2]
    assert re.search(r"A\d+\.mp4 and \S+_rgb\.avi both fit S\S+_rgb or S\S+; rename", twice.skipped[0].reason)
    kept = open_dataset("ntu60-skeleton", **ntu_raw_again(tmp_path), keep_missing=True)
    assert "S001C002P005R002A008" in [clip.key for clip in kept.clips]
    assert kept.published == PUBLISHED_VIDEOS[60]


def test_samples_of_ntu_120_are_not_of_ntu_60(tmp_path: Path) -> None:
    sources = ntu_raw(tmp_path)
    names = ["S017C001P001R001A060", "S018C001P001R001A001", "S017C001P001R001A061"]
    for name in names:
        (tmp_path / "nturgb+d_skeletons" / f"{name}.skeleton").touch()
    for kind, there in (("ntu60-skeleton", names[:1]), ("ntu120-skeleton", names)):
        dataset = open_dataset(kind, **sources)
        listed = {key for keys in dataset.splits.values() for key in keys}
        assert {*there} == {*names} & listed == {*names} & reasons(dataset).keys()


def test_ntu_skeletons_rewritten_by_txt2npy(tmp_path: Path) -> None:
    """The same poses, bodies in the order of each frame's list; neither code nor anything but a dictionary in the file."""
    sources = ntu_raw(tmp_path)
    folder = Path(str(sources["skeletons"]))
    text_poses = {}
    pose_file = open_dataset("ntu60-skeleton", **sources).clips[0].pose_file
    assert pose_file is not None
    for path in sorted(folder.glob("*.skeleton")):
        pose = pose_file.read(str(path), *pose_file.arguments).pose_MTVC
        text_poses[path.name[:20]] = pose
        rows = {"file_name": path.name[:20], "nbodys": [2] * FRAMES, "njoints": 25}
        rows |= {f"rgb_body{m}": pose[m].astype(np.float64) for m in range(len(pose))}
        np.save(path.with_name(path.name + ".npy"), rows)  # type: ignore[arg-type]
        path.unlink()
    dataset = open_dataset("ntu60-skeleton", **sources)
    assert [clip.key for clip in dataset.clips] == NTU_NAMES[:2]
    for clip in dataset.clips:
        loaded = clip.load_pose()
        assert loaded is not None and np.array_equal(loaded.pose_MTVC, text_poses[clip.key], equal_nan=True)
        assert (loaded.width, loaded.height) == (1920, 1080)
    assert packed(dataset, tmp_path).manifest.num_clips == 2
    for content, message in ((np.zeros(3), r"an array of shape \(3,\)"), ({"a": 1}, "rgb_body0 and so on have shapes none"),
                             ([1], "an array of shape|holds no dictionary"), (print, "the pickle wants builtins.print")):
        np.save(tmp_path / "odd.npy", np.array(content, dtype=None if isinstance(content, np.ndarray) else object))
        with pytest.raises(UserError, match=message):
            read_npy_skeleton(str(tmp_path / "odd.npy"), 1920, 1080)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_skeletons_with_a_mark_are_read(tmp_path: Path, encoding: str) -> None:
    pose_file = open_dataset("ntu60-skeleton", **ntu_raw(tmp_path)).clips[0].pose_file
    assert pose_file is not None
    plain = pose_file.read(pose_file.path, *pose_file.arguments)
    Path(pose_file.path).write_bytes(Path(pose_file.path).read_text().replace("\n", "\r\n").encode(encoding))
    found = pose_file.read(pose_file.path, *pose_file.arguments)
    assert np.array_equal(found.pose_MTVC, plain.pose_MTVC, equal_nan=True)


def ntu_raw_again(root: Path) -> dict[str, object]:
    """The folders that ntu_raw made."""
    return {"skeletons": root / "nturgb+d_skeletons", "videos": root / "nturgb+d_rgb"}


@pytest.mark.parametrize(("text", "message"), [
    ("2\n1\n7 0 0\n25\n", r"a\.skeleton: ends after line 4; the file is cut short"),
    ("x\n", r"a\.skeleton, line 1: expected a count, found 'x'"),
    ("1\n1\n7 0 0\n17\n", r"a\.skeleton, line 4: expected 25 joints"),
    ("1\n1\n7 0 0\n25\n1 2 3\n", r"a\.skeleton, line 5: expected the numbers of a joint, found '1 2 3'"),
])
def test_damaged_skeletons_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    sources = ntu_raw(tmp_path)
    dataset = open_dataset("ntu60-skeleton", **sources)
    (tmp_path / "a.skeleton").write_text(text)
    pose_file = dataset.clips[0].pose_file
    assert pose_file is not None
    with pytest.raises(UserError, match=message):
        pose_file.read(str(tmp_path / "a.skeleton"), *pose_file.arguments)


# ---------------------------------------------------------------------------------------------------- UAV-Human

def test_uav_human(tmp_path: Path) -> None:
    videos, skeletons = tmp_path / "videos", tmp_path / "skeletons"
    videos.mkdir()
    skeletons.mkdir()
    train = "P000S00G10B10H10UC022000LC021000A000R0_08241716"
    test = "P001S02G10B00H10UC102000LC092000A154R0_09131758"
    for name in (train, test):
        write_video(videos / f"{name}.avi", FRAMES, codec="mpeg4")
        text = skeleton_text({"0": block_pose(FRAMES)[0]}, FRAMES, 3, 0)
        (skeletons / f"{name}.txt").write_text(text)
    dataset = open_dataset("uav-human", videos=videos, skeletons=skeletons)
    assert dataset.splits == {"csv1_train": [train], "csv1_test": [test], "csv2_train": [train], "csv2_test": [test]}
    assert len(dataset.classes) == 155
    sample = clip_of(packed(dataset, tmp_path), test)
    assert (sample.label, sample.meta.subject, sample.meta.setup) == (154, 1, 2)
    assert np.abs(sample.pose_MTVC - block_pose(FRAMES)).max() < 1e-3
    fewer = open_dataset("uav-human", videos=videos, skeletons=skeletons, classes=[f"action {i}" for i in range(154)])
    assert reasons(fewer) == {test: f"{videos / test}.avi: action 154, expected 0..153"}
    for place in (videos / f"{test}.avi", skeletons / f"{test}.txt"):
        (place.parent / "more").mkdir()
        (place.parent / "more" / place.name).write_bytes(place.read_bytes())
    twice = open_dataset("uav-human", videos=videos, skeletons=skeletons)
    assert len(twice.clips) == 2 and [entry.key for entry in twice.skipped] == [f"more/{test}.txt", f"{test} (again)"]
    (skeletons / "more" / f"{test}.txt").unlink()
    (videos / "more" / f"{test}.avi").unlink()
    (skeletons / f"{test}.txt").unlink()
    assert open_dataset("uav-human", videos=videos, skeletons=skeletons).skipped[0].reason == f"no skeleton '{test}.txt'"
    assert left_out(packed(open_dataset("uav-human", videos=videos, skeletons=skeletons), tmp_path / "lacking").root) == {
        test: (str(videos / f"{test}.avi"), ["csv1_test", "csv2_test"])}
    (videos / f"{train}.avi").rename(videos / f"{test}.avi")
    lacking = open_dataset("uav-human", videos=videos, skeletons=skeletons)
    assert reasons(lacking)[train] == f"no video '{train}' below {videos}" and lacking.splits["csv1_train"] == [train]


def test_uav_human_official_numbers() -> None:
    """All of the 119 subjects that the two published lists leave out of training."""
    assert set(range(119)) - CSV1_TRAIN == {1, 3, 4, 9, 22, 23, 24, 31, 41, 54, 58, 60, 66, 72, 74, 75, 91, 92, 93, 94, 95, 96,
                                            97, 99, 101, 104, 107, 108, 109, 113}
    assert set(range(119)) - CSV2_TRAIN == {1, 2, 7, 9, 13, 15, 17, 23, 25, 27, 28, 33, 34, 41, 42, 48, 50, 51, 53, 55, 58, 65,
                                            68, 76, 82, 85, 90, 98, 105, 116}
    assert max(CSV1_TRAIN | CSV2_TRAIN) == 118


# ---------------------------------------------------------------------------------------------------- own videos

def test_folder_of_classes(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for name in ("train/jump/a.b.mp4", "train/walk/a.mp4", "val/walk/grüß.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, 4)
    dataset = open_dataset("folder", root=root)
    assert dataset.classes == ("jump", "walk")
    assert dataset.splits == {"train": ["train%2Fjump%2Fa-b", "train%2Fwalk%2Fa"],
                              "val": ["val%2Fwalk%2Fgr%C3%BC%C3%9F"]}
    shards = packed(dataset, tmp_path)
    assert clip_of(shards, "val%2Fwalk%2Fgr%C3%BC%C3%9F").meta.source == "grüß.mp4"
    loose = ("loose.mp4", "more/walk/loose.mp4", "train/loose.mp4")
    for name in loose:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with_loose = open_dataset("folder", root=root)
    assert [clip.key for clip in with_loose.clips] == [clip.key for clip in dataset.clips]
    assert [entry.reason for entry in with_loose.skipped] == [
        f"{name}: expected class/video.mp4, or one of train, val, valid, validation, test above the class folders"
        for name in loose]
    with pytest.raises(UserError, match="no video in this folder"):
        open_dataset("folder", root=tmp_path / "packed")
    for folder, near in (("Train", "train"), ("tset", "test")):
        (root / folder / "walk").mkdir(parents=True)
        shutil.copy(root / "val" / "walk" / "grüß.mp4", root / folder / "walk" / "a.mp4")
        (reason,) = [each.reason for each in open_dataset("folder", root=root).skipped if each.reason.startswith(f"{folder}/")]
        assert reason.endswith(f"above the class folders; did you mean {near}?")


def test_pickle_and_videos_behind_urls(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    write_video(tmp_path / "a.mp4", FRAMES)
    write_pickle(tmp_path / "set.pkl", [annotation("a", 0, FRAMES)])
    memory.pipe("/bucket/videos/sub/a.mp4", (tmp_path / "a.mp4").read_bytes())
    memory.pipe("/bucket/set.pkl", (tmp_path / "set.pkl").read_bytes())
    dataset = open_dataset("pyskl", pickle_path="memory://bucket/set.pkl", videos="memory://bucket/videos")
    assert str(dataset.clips[0].video) == "memory:///bucket/videos/sub/a.mp4"
    assert clip_of(packed(dataset, tmp_path), "a").meta.num_frames == FRAMES
    with pytest.raises(UserError, match="memory://bucket/none: no such folder; expected the one with the videos"):
        open_dataset("pyskl", pickle_path="memory://bucket/set.pkl", videos="memory://bucket/none")


def test_csv_of_videos(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", 4)
    write_video(tmp_path / "clips" / "b.mp4", 5)
    table = tmp_path / "own.csv"
    table.write_text(f"path,label,split\nclips/a.mp4,walk,train\nfile://{tmp_path}/clips/b.mp4,jump,val\n")
    dataset = open_dataset("csv", table=table)
    assert dataset.classes == ("jump", "walk")
    shards = packed(dataset, tmp_path)
    assert [shards.sample(int(shards.rows(split)[0])).meta.num_frames for split in ("train", "val")] == [4, 5]
    table.write_text("path,label\nclips/a.mp4,1\n")
    assert open_dataset("csv", table=table).classes == ("class_0", "class_1")
    table.write_text("path,label,split\nclips/a.mp4,walk,val\nclips/b.mp4,,val\n,walk,test\n")
    lacking = packed(open_dataset("csv", table=table), tmp_path / "lacking")
    assert left_out(lacking.root) == {"line 3": (str(tmp_path / "clips/b.mp4"), ["val"]), "line 4": (str(table), ["test"])}
    assert len(lacking.rows("val")) == 1
    table.write_text("path,label,split\nclips/a.mp4,walk,\nclips/b.mp4,walk,val\nc.mp4,,val\n")
    assert open_dataset("csv", table=table).splits == {"train": ["clips%2Fa"], "val": ["clips%2Fb", "line 4"]}
    made = open_dataset("csv", table=table, split_by="random:0.5").splits
    assert sorted(made["train"] + made["val"]) == ["clips%2Fa", "clips%2Fb"]
    table.write_text("path,label\nclips/a.mp4,\n")
    assert "own.csv, line 2: label '': unlabelled" in open_dataset("csv", table=table).skipped[0].reason
    table.write_text("file;label\na;b\n")
    with pytest.raises(UserError, match=r"own\.csv: expected a header with path and label, .* found 'file;label'"):
        open_dataset("csv", table=table)
    table.write_text("path,label\nclips/a.mp4,swim\n")
    dataset = open_dataset("csv", table=table, classes=("jump", "walk"))
    assert "line 2: label 'swim' is not among the classes jump, walk" in dataset.skipped[0].reason


# ---------------------------------------------------------------------------------------------------- registry

def test_registry_checks_kinds_and_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown kind of data set 'ucf': expected one of ntu60, ntu120"):
        open_dataset("ucf")
    with pytest.raises(UserError, match="data set kind ntu60 needs 'pickle_path'; its options are pickle_path, videos"):
        open_dataset("ntu60", videos=tmp_path)
    with pytest.raises(UserError, match="data set kind csv does not take 'vidoes'"):
        open_dataset("csv", vidoes=tmp_path)
    for source in SOURCES.values():
        assert source.about and inspect.getdoc(source.read)


def test_number_lists() -> None:
    assert numbers("1, 3-5") == {1, 3, 4, 5}
    with pytest.raises(UserError, match="'1,x': expected numbers like 1,2,4-6"):
        numbers("1,x")


# ---------------------------------------------------------------------------------------------------- command line

def help_of(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `svdata2vec shard KIND --help` prints, without frames and line breaks."""
    with pytest.raises(SystemExit) as ended:
        main(["shard", kind, "--help"])
    assert not ended.value.code
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("kind", list(SOURCES))
def test_help_has_a_sentence_for_every_option(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = help_of(kind, capsys)
    names = [*SOURCES[kind].options, *(field.name for field in fields(PackOptions))]
    for name in names:
        option = name.replace("_", "-")
        found = re.search(rf" --{option}(?:, --no-{option})? ([^()]*(?:\([^()]*\)[^()]*)*?)\((?:required|default)", page)
        assert found is not None, f"{kind} has no --{option}"
        sentence = re.sub(r"^(?:[A-Z{}|\[\] .]+(?= |$))", "", found[1]).strip()  # less the placeholder of its value
        assert re.fullmatch(r"\S+ .* .*\.", sentence), f"{kind} --{option} is not explained: {found[0]!r}"
    for word in ("UserError", "DataSet", "Args", "`skipped`", "split_classes"):
        assert word not in page, f"{kind}: {word} means nothing to a user"


def test_help_explains_the_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    page = help_of("pyskl", capsys)
    for text in ("split: {", "annotations: a list", "frame_dir: file name", "label: number of its class, from 0",
                 "total_frames: T", "keypoint: array (M, T, V, 2), x and y of every joint in pixels of img_shape",
                 "both 0 where it is missing", "img_shape, or original_shape: (height, width)",
                 "keypoint_score: array (M, T, V)",
                 "bboxes: array (T, 4), x1, y1, x2, y2 of a box around all persons in pixels of the video"):
        assert text in page
