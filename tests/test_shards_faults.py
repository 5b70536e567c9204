"""Broken input: every fault ends as one line that says what is wrong, and costs no other clip."""

import errno
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pytest
from shards_data import HEIGHT, WIDTH, annotation, block_pose, write_pickle, write_tree, write_video

from svdata2vec.shards import video as shards_video
from svdata2vec.shards.annotations import ClipAnnotation, DataSet, PoseFile, Skipped, safe_key
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing import plan, tarwriter
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.media import is_video
from svdata2vec.shards.readers.pose_files import read_poses
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.readers.videos import read_video_csv
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.verify import verify

OPTIONS = PackOptions(workers=1, size=96)
FRAMES = 6
EMPTY = {"frame_dir": "x", "label": 0, "total_frames": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder `videos` with one good video, good.mp4."""
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "good.mp4", FRAMES)
    return videos


def skipped_reasons(videos: Path, entries: list[dict[str, object]]) -> dict[str, str]:
    """Pack good.mp4 and these annotations; returns the clips left out, and why. The good clip must be packed."""
    root = videos.parent
    path = write_pickle(root / "set.pkl", [annotation("good", 0, FRAMES), *entries])
    pack(read_pyskl(path, videos), root / "out", OPTIONS)
    shards = ShardSet.open(root / "out")
    assert [key.decode() for key in shards.index["key"]] == ["good"]
    assert shards.manifest.splits["train"] == ["good"]
    assert verify(root / "out") == []
    found = [json.loads(line) for line in (root / "out" / "skipped.jsonl").read_text().splitlines()]
    assert all("train" in entry["splits"] for entry in found)
    return {entry["key"]: entry["reason"] for entry in found}


def cut(path: Path, share: float) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_broken_videos_are_listed_with_their_reason(folder: Path) -> None:
    write_video(folder / "cut_end.mp4", 30)
    cut(folder / "cut_end.mp4", 0.6)  # the index of an MP4 stands at its end
    write_video(folder / "cut_fast.mp4", 30, container_options={"movflags": "faststart"})
    cut(folder / "cut_fast.mp4", 0.6)  # the dangerous kind: the index in front promises frames that are gone
    write_video(folder / "cut_mkv.mkv", 30, options={"g": "1"})
    cut(folder / "cut_mkv.mkv", 0.6)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video at all\n" * 100)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    names = ["cut_end", "cut_fast", "cut_mkv", "empty", "text", "noise"]
    reasons = skipped_reasons(folder, [annotation(name, 0, 30) for name in names] + [annotation("absent", 0, 30)])
    assert set(reasons) == {*names, "absent"}
    assert "empty.mp4: the file is empty" in reasons["empty"]
    assert "absent.mp4 (or .avi, ...)" in reasons["absent"]
    for name in ("cut_end", "text", "noise"):
        assert f"{name}.mp4: cannot be decoded (Invalid data" in reasons[name]
    assert "cut_fast.mp4" in reasons["cut_fast"] and "cut_mkv.mkv" in reasons["cut_mkv"]
    assert "video frames but 30 poses" in reasons["cut_mkv"]


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_are_noticed(folder: Path, seed: int) -> None:
    """The decoder conceals what is broken and shows wrong pixels: such a clip must not be packed silently."""
    path = write_video(folder / "flipped.mp4", 30, options={"crf": "1"})
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(len(content) // 10, len(content) * 8 // 10, 3):
        content[place] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    reason = skipped_reasons(folder, [annotation("flipped", 0, 30)])["flipped"]
    assert "is damaged" in reason or "cannot be decoded" in reason or "video frames but 30" in reason


def test_wrong_extension_is_no_fault(folder: Path) -> None:
    write_video(folder / "a.mkv", FRAMES).rename(folder / "a.mp4")
    path = write_pickle(folder.parent / "set.pkl", [annotation("a", 0, FRAMES)])
    assert pack(read_pyskl(path, folder), folder.parent / "out", OPTIONS).num_clips == 1


@pytest.mark.parametrize("cover", [False, True])
def test_audio_only_is_named(folder: Path, cover: bool) -> None:
    """The cover picture of an album is not a video of one frame."""
    import av
    from av.stream import Disposition
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        if cover:
            picture: Any = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame(64, 64, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reasons = skipped_reasons(folder, [annotation("sound", 0, 1)])
    found = "a cover picture, audio" if cover else "audio"
    assert f"sound.mp4: no video stream that can be decoded (found {found})" in reasons["sound"]
    assert not is_video(str((folder / "sound.mp4").rename(folder / "sound.m4b")))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"total_frames": FRAMES - 3, "keypoint": block_pose(FRAMES - 3), "keypoint_score": None},
     "6 video frames but 3 poses; the video is cut short, or the poses belong to another video or skip frames"),
    ({"total_frames": FRAMES + 3, "keypoint": block_pose(FRAMES + 3), "keypoint_score": None},
     "6 video frames but 9 poses"),
    ({"total_frames": 50}, "the annotation has 6 poses but says total_frames = 50"),
    ({"keypoint": np.zeros((1, FRAMES, 17), np.float32)}, "keypoint has shape (1, 6, 17), expected (persons, frames,"),
    ({"keypoint": np.zeros((1, FRAMES, 25, 2), np.float32), "keypoint_score": None}, "expected (persons, frames, 17"),
    ({"keypoint_score": np.zeros((1, FRAMES, 3))}, "joint scores have shape (1, 6, 3), expected (1, 6, 17)"),
    ({"bboxes": np.zeros((FRAMES - 1, 5))}, "boxes have shape (5, 4), expected (6, 4)"),
    ({"keypoint": np.zeros((1, FRAMES, 17, 3), np.float32)}, ""),
])
def test_wrong_annotations_are_listed(folder: Path, changes: dict[str, object], reason: str) -> None:
    write_video(folder / "bad.mp4", FRAMES)
    entry = annotation("bad", 0, FRAMES, **changes)
    if not reason:  # 3-D joints come without scores
        del entry["keypoint_score"]
        reason = "these are metres, not pixels; take the data set's 2-D pickle"
    assert reason in skipped_reasons(folder, [entry])["bad"]


def test_missing_fields_are_listed(folder: Path) -> None:
    entry = annotation("good2", 0, FRAMES)
    del entry["keypoint"]
    reasons = skipped_reasons(folder, [entry])
    assert reasons["good2"].startswith("the annotation has no 'keypoint'; it has frame_dir, label")
    assert "raw_file" not in reasons["good2"]


def test_joints_in_a_file_of_their_own_are_explained(folder: Path) -> None:
    """As in pyskl's pickle of Kinetics."""
    entry = {**annotation("good2", 0, FRAMES), "raw_file": "k400/good2.pkl"}
    del entry["keypoint"]
    reason = skipped_reasons(folder, [entry])["good2"]
    assert reason.endswith("; its joints are in the file that raw_file names: put them here as keypoint (M, T, V, 2)")


def test_one_pose_more_or_less_is_evened_out(folder: Path) -> None:
    for name in ("less", "more"):
        write_video(folder / f"{name}.mp4", FRAMES)
    entries = [annotation("less", 0, FRAMES - 1), annotation("more", 0, FRAMES + 1)]
    pack(read_pyskl(write_pickle(folder.parent / "set.pkl", entries), folder), folder.parent / "out", OPTIONS)
    shards = ShardSet.open(folder.parent / "out")
    less, more = (shards.sample(int(row)) for row in shards.find(["less", "more"]))
    assert less.pose_MTVC.shape[1] == more.pose_MTVC.shape[1] == less.box_T4.shape[0] == FRAMES
    assert np.array_equal(less.pose_MTVC[:, -1], less.pose_MTVC[:, -2])
    assert (less.meta.pose_frames, more.meta.pose_frames) == (FRAMES - 1, FRAMES + 1)


def test_joints_that_are_no_numbers_become_missing(folder: Path) -> None:
    pose = block_pose(FRAMES)
    pose[0, 1, 3] = np.nan, 5
    pose[0, 2, 4] = np.inf, np.inf
    pose[0, 3, 5] = 9000, 20  # far outside the picture
    pose[0, 4, 6] = -10, -10  # a little outside: a person leaving the view
    entries = [annotation("good", 0, FRAMES, keypoint=pose, keypoint_score=np.full(pose.shape[:3], np.nan))]
    pack(read_pyskl(write_pickle(folder.parent / "set.pkl", entries), folder), folder.parent / "out", OPTIONS)
    sample = ShardSet.open(folder.parent / "out").sample(0)
    assert sample.meta.bad_joints == 3
    assert not sample.pose_MTVC[0, [1, 2, 3], [3, 4, 5]].any()
    assert sample.pose_MTVC[0, 4, 6].tolist() == [-10, -10]
    assert sample.score_MTV is not None and np.isfinite(sample.score_MTV).all()
    assert verify(folder.parent / "out") == []


def test_clip_without_anyone_keeps_the_whole_picture(folder: Path) -> None:
    entries = [annotation("good", 0, FRAMES, keypoint=np.zeros((1, FRAMES, 17, 2), np.float16))]
    pack(read_pyskl(write_pickle(folder.parent / "set.pkl", entries), folder), folder.parent / "out", OPTIONS)
    sample = ShardSet.open(folder.parent / "out").sample(0)
    assert not sample.box_T4.any()
    assert sample.meta.packed_to_source[0, 0] == WIDTH / 96
    assert sample.meta.packed_to_source[1, 2] == (HEIGHT - WIDTH) / 2


def test_boxes_of_the_annotation_are_in_video_pixels(folder: Path) -> None:
    boxes = np.array([[10, 20, 110, 120, 0.9]] * FRAMES, np.float32)
    boxes[2] = 0
    boxes[3] = -30, 20, 1e6, 120, 0.9  # leaves the picture, on the right further than can be true
    entries = [annotation("good", 0, FRAMES, scale=2.0, bboxes=list(boxes))]
    pack(read_pyskl(write_pickle(folder.parent / "set.pkl", entries), folder), folder.parent / "out", OPTIONS)
    sample = ShardSet.open(folder.parent / "out").sample(0)
    assert sample.box_T4[1].tolist() == [10, 20, 110, 120] and not sample.box_T4[2].any()
    assert sample.box_T4[3].tolist() == [-30, 20, 1.5 * WIDTH, 120]
    a = sample.meta.packed_to_source
    assert a[0, 2] <= 0 and a[0, 2] + 96 * a[0, 0] >= 118, "the stored square holds the boxes too"


@pytest.mark.parametrize(("content", "message"), [
    (b"", r"set\.pkl: not a readable pickle"),
    (b"garbage", r"set\.pkl: not a readable pickle"),
    (pickle.dumps([EMPTY | {"frame_dir": "good", "keypoint": np.zeros((1, 2, 17, 2))}]),
     r"set\.pkl: names no splits; make them with --split-by"),
    (pickle.dumps({"annotations": [EMPTY | {"frame_dir": "good", "keypoint": np.zeros((1, 2, 17, 2))}],
                   "split": {"train": [], "val": ["videos/good"]}}),
     r"no clip is in a split, val begins with videos%2Fgood, a clip is called good; make them with --split-by"),
    (pickle.dumps({"split": []}), "expected a dictionary with 'split' and 'annotations', or a list of annotations"),
    (pickle.dumps({"annotations": 3, "split": {}}), "'annotations' is of type int, expected a list of dictionaries"),
    (pickle.dumps({"annotations": [EMPTY], "split": {"train": 3}}), "'split' is of type dict, expected {name of a split"),
    (pickle.dumps({"annotations": [], "split": {}}), "'annotations' is empty"),
    (pickle.dumps({"annotations": [EMPTY], "split": {}}), "no clip to pack; all 1 were left out.* has no 'keypoint'"),
    (b"\x80\x02cos\nsystem\nU\x04true\x85R.", r"the pickle wants os\.system; expected NumPy arrays and plain values only"),
])
def test_wrong_pickles_are_refused(folder: Path, content: bytes, message: str) -> None:
    path = folder.parent / "set.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_pyskl(path, folder).check()


def test_wrong_places_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pkl: no such file; expected the annotation pickle"):
        read_pyskl(tmp_path / "none.pkl", folder)
    with pytest.raises(UserError, match=f"{folder}: is a folder; expected the annotation pickle"):
        read_pyskl(folder, folder)
    with pytest.raises(UserError, match=r"none\.csv: no such file; expected a table with path and label"):
        read_video_csv(tmp_path / "none.csv")
    path = write_pickle(tmp_path / "set.pkl", [annotation("good", 0)])
    with pytest.raises(UserError, match="nowhere: no such folder; expected the one with the videos"):
        read_pyskl(path, tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=r"void: no video in this folder; expected \.mp4"):
        read_pyskl(path, tmp_path / "void")
    with pytest.raises(UserError, match="17 joints per person, layout kinect25 has 25"):
        read_pyskl(path, folder, joints="kinect25")


def test_two_videos_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    write_video(folder / "good.avi", FRAMES, codec="mpeg4")
    path = write_pickle(tmp_path / "set.pkl", [annotation("good", 0, FRAMES)])
    with pytest.raises(UserError, match=r"all 1 were left out, the first, good, because: .*good\.avi and .*good\.mp4"):
        pack(read_pyskl(path, folder), tmp_path / "out", OPTIONS)


def test_names_with_dots_and_umlauts(folder: Path, tmp_path: Path) -> None:
    names = ["v1.5_clip", "Übung läuft", "sub/dir.name"]
    (folder / "sub").mkdir()
    for name in names:
        write_video(folder / f"{name}.mp4", FRAMES)
    path = write_pickle(tmp_path / "set.pkl", [annotation(name, 0, FRAMES) for name in names])
    pack(read_pyskl(path, folder), tmp_path / "out", OPTIONS)
    shards = ShardSet.open(tmp_path / "out")
    assert shards.manifest.splits["train"] == ["v1-5_clip", "%C3%9Cbung%20l%C3%A4uft", "sub%2Fdir-name"]
    assert shards.sample(int(shards.rows("train")[1])).meta.source == "Übung läuft.mp4"
    assert verify(tmp_path / "out") == []


def test_same_file_names_in_class_folders(folder: Path, tmp_path: Path) -> None:
    for name, frames in (("walk/001", FRAMES), ("run/001", FRAMES + 4)):
        (folder / name).parent.mkdir()
        write_video(folder / f"{name}.mp4", frames)
    entries = [annotation("walk/001", 0, FRAMES), annotation("run/001.mp4", 1, FRAMES + 4)]
    pack(read_pyskl(write_pickle(tmp_path / "set.pkl", entries), folder), tmp_path / "out", OPTIONS)
    shards = ShardSet.open(tmp_path / "out")
    assert shards.manifest.splits["train"] == ["walk%2F001", "run%2F001"]
    assert shards.index["frames"][shards.rows("train")].tolist() == [FRAMES, FRAMES + 4]


def data_set(videos: Path, *clips: ClipAnnotation, **changes: object) -> DataSet:
    """A data set of one class, all clips in `train`."""
    base = DataSet("set", layout("coco17"), ("x",), {"train": [clip.key for clip in clips]}, list(clips))
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("keys", "changes", "message"), [
    (["a.b"], {}, r"key 'a\.b': a key has ASCII letters, digits and _ - only, no dot; use safe_key\(\)"),
    (["grüß"], {}, "key 'grüß': a key has ASCII letters"),
    (["a" * 81], {}, "81 bytes, at most 80 fit"),
    (["a", "a"], {}, "1 names occur twice, e.g. a; rename one"),
    (["a"], {"splits": {"train": ["a", "b"]}}, "split train: 1 clips without annotation, e.g. b"),
    (["a"], {"splits": {"train": ["a", "a"]}}, "split train: clip a is listed twice"),
    (["a"], {"classes": ()}, r"clip a: label 0, expected 0\.\.-1"),
    ([], {"skipped": [Skipped("q", "why not")]}, "no clip to pack; all 1 were left out, the first, q, because: why"),
])
def test_inconsistent_data_sets_are_refused(folder: Path, tmp_path: Path, keys: list[str], changes: dict[str, object],
                                            message: str) -> None:
    clips = [ClipAnnotation(key, 0, folder / "good.mp4") for key in keys]
    with pytest.raises(UserError, match=message):
        pack(data_set(folder, *clips, **changes), tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("skipped", [[], [Skipped("q", "left out by the reader")]])
def test_nothing_packed_is_an_error(folder: Path, tmp_path: Path, skipped: list[Skipped]) -> None:
    """The reason shown is that of a clip that was to be packed."""
    clip = ClipAnnotation("a", 0, tmp_path / "gone.mp4")
    with pytest.raises(UserError, match=r"none of 1 clips could be packed, see skipped\.jsonl; the first: .*gone\.mp4: "
                                        r"cannot be read \(No such file"):
        pack(data_set(folder, clip, skipped=skipped), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_component_above_the_limit_leaves_out_its_clip_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                               ) -> None:
    size = write_video(folder / "large.mp4", 60).stat().st_size
    monkeypatch.setattr(tarwriter, "MAX_COMPONENT_BYTES", size - 1)
    clips = [ClipAnnotation(name, 0, folder / f"{name}.mp4") for name in ("good", "large")]
    pack(data_set(folder, *clips), tmp_path / "out", PackOptions(workers=1, codec="copy"))
    assert json.loads((tmp_path / "out" / "skipped.jsonl").read_text())["reason"].startswith(
        f"clip large: component mp4 has {size} bytes, expected at most {size - 1}; divide the video, or take a codec")
    assert verify(tmp_path / "out") == [] and ShardSet.open(tmp_path / "out").manifest.num_clips == 1
    with tarwriter.TarWriter(tmp_path / "a.tar") as tar:
        assert tar.add("a", {"mp4": bytes(size - 1)}, ["mp4"]) == ([512], [size - 1]), "as much as the index can say"


def test_cut_video_without_poses_is_found_by_its_own_count(folder: Path, tmp_path: Path) -> None:
    write_video(folder / "cut.mp4", 30, container_options={"movflags": "faststart"},
                options={"g": "1", "crf": "1"}, height=256, width=256)
    cut(folder / "cut.mp4", 0.6)
    clips = [ClipAnnotation("good", 0, folder / "good.mp4"), ClipAnnotation("cut", 0, folder / "cut.mp4")]
    pack(data_set(folder, *clips), tmp_path / "out", OPTIONS)
    reason = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())["reason"]
    assert "cut.mp4: cut short" in reason or "is damaged" in reason or "cannot be decoded" in reason


def test_keys_from_any_name_are_valid() -> None:
    for name in ("a b", "x/y.z", "~+=", "日本", ".", "a" * 500):
        assert safe_key(name) == safe_key(name)
        replace(ClipAnnotation("k", 0, "v"), key=safe_key(name))
        DataSet("s", layout("coco17"), ("x",), {}, [ClipAnnotation(safe_key(name), 0, "v")]).check()


@pytest.mark.parametrize(("failures", "packed"), [(2, True), (3, False)])
def test_a_store_that_fails_for_a_moment_loses_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, packed: bool
) -> None:
    """Clips cannot be added to a finished set, so temporary faults are waited for, permanent ones are not."""
    store = fsspec.filesystem("memory")
    for name in ("a", "b", "gone"):
        store.pipe(f"/flaky/c/{name}.mp4", write_video(tmp_path / "v.mp4", 3).read_bytes())
    dataset = open_dataset("folder", root="memory://flaky")
    store.rm("/flaky/c/gone.mp4")
    read, opened = shards_video.open_bytes, []

    def sometimes(path: str) -> IO[bytes]:
        opened.append(Path(path).stem)
        if opened[-1] == "a" and opened.count("a") <= failures:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return read(path)

    monkeypatch.setattr(shards_video, "open_bytes", sometimes)
    monkeypatch.setattr("svdata2vec.shards.packing.shard.RETRY_SECONDS", (0.0, 0.0))
    splits = pack(dataset, tmp_path / "set", PackOptions(workers=1, size=32)).splits
    assert splits == {"train": ["c%2Fa", "c%2Fb"] if packed else ["c%2Fb"]}
    assert [opened.count(name) for name in ("a", "b", "gone")] == [3, 1, 1]


@pytest.mark.parametrize(("number", "tries"), [(errno.ESTALE, 2), (errno.EIO, 2), (errno.ELOOP, 1)])
def test_a_file_server_that_fails_for_a_moment_loses_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, tries: int
) -> None:
    dataset = open_dataset("folder", root=write_tree(tmp_path / "videos", "c/a.mp4", "c/b.mp4"))
    read, opened = shards_video.open_bytes, []

    def sometimes(path: str) -> IO[bytes]:
        opened.append(Path(path).stem)
        if opened == ["a"] or opened == ["b", "a"]:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(shards_video, "open_bytes", sometimes)
    monkeypatch.setattr("svdata2vec.shards.packing.shard.RETRY_SECONDS", (0.0,))
    assert pack(dataset, tmp_path / "set", PackOptions(workers=1, size=32)).num_clips == tries
    assert opened.count("a") == tries


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_leave_no_clip_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    dataset = open_dataset("folder", root=write_tree(tmp_path / "videos", "c/a.mp4"))

    def refuse(path: str) -> IO[bytes]:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(shards_video, "open_bytes", refuse)
    with pytest.raises(MachineError, match=rf"c/a\.mp4: {os.strerror(number)}; raise the limit \(`ulimit -n`\)$"):
        pack(dataset, tmp_path / "set", PackOptions(workers=1, size=32))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_skeleton_that_the_machine_cannot_read_is_in_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Otherwise its content would have changed for the run that resumes."""
    clip = ClipAnnotation("a", 0, tmp_path / "a.mp4", pose_file=PoseFile(read_poses, str(tmp_path / "a.npz"), ("npz", "a")))
    dataset = DataSet("set", layout("coco17"), ("walk",), {"train": ["a"]}, [clip])

    def refuse(path: str, *_: Any, **__: Any) -> IO[bytes]:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(plan, "open_bytes", refuse)
    with pytest.raises(MachineError, match=rf"a\.npz: .*{os.strerror(number)}"):
        plan.make_plan(dataset, OPTIONS)
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):  # packing tries again, or ends
        read_poses(str(tmp_path / "a.npz"), "npz", "a", 17, None, 2, 0.0)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error", "x.txt"), MachineError("the store is away")])
def test_a_machine_that_fails_leaves_no_item_out(error: Exception) -> None:
    def fail(_: int) -> ClipAnnotation:
        raise error

    with pytest.raises(MachineError, match=r"x\.txt: cannot be read \(Input/output error\); its disk or server fails|is away"):
        clips_of([1], fail, lambda _: ("key", "source"), [])
