"""Tracking of persons, the work folder, the pickle and the command line of pose extraction: everything except mmpose itself."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import extract_poses
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_cases import BlockModel, V, person, together
from pose_inputs import GivenBoxes, find_videos, work_name
from pose_work import VideoPoses, WorkFolder
from shards_data import HEIGHT, WIDTH, block_xy, frame_picture, write_video
from waiting import wait_for

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.media import VideoFolder
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.tracking import Detections, TrackingOptions, box_iou, inside, track_persons, without_duplicates


def seen(joints_TV2: np.ndarray) -> list[int]:
    """Frames in which a person is seen."""
    return np.flatnonzero(joints_TV2.any(axis=(1, 2))).tolist()


# --- tracking -----------------------------------------------------------------------------------------------------------


def test_two_persons_keep_their_places_whatever_the_order_of_detections() -> None:
    """Two walk past each other at different heights, detected in shuffled order, one with a duplicate detection."""
    rng = np.random.default_rng(0)
    frames = []
    for t in range(40):
        big, small = person(10 + 4 * t, 20, 60, 150), person(250 - 4 * t, 90, 40, 90, score=0.8)
        duplicate = person(11 + 4 * t, 21, 60, 150, score=0.5)
        entries = [big, small, duplicate]
        frames.append(together([entries[i] for i in rng.permutation(3)]))
    found = track_persons(frames)
    assert found.joints_MTV2.shape == (2, 40, V, 2)
    for t in range(40):
        assert np.array_equal(found.joints_MTV2[0, t], person(10 + 4 * t, 20, 60, 150).joints_NV2[0])
        assert np.array_equal(found.joints_MTV2[1, t], person(250 - 4 * t, 90, 40, 90).joints_NV2[0])
        x1, x2 = min(10 + 4 * t, 250 - 4 * t), max(70 + 4 * t, 290 - 4 * t)
        assert found.box_T5[t].tolist() == pytest.approx([x1, 20, x2, 180, 0.9])


def test_gaps_stay_empty_and_the_person_stays_the_same() -> None:
    missing = {5, 6, 7, 20}
    frames = [together([] if t in missing else [person(50 + t, 30)]) for t in range(30)]
    found = track_persons(frames)
    assert found.joints_MTV2.shape[:2] == (1, 30)
    assert seen(found.joints_MTV2[0]) == [t for t in range(30) if t not in missing]
    assert not found.box_T5[sorted(missing)].any() and not found.joint_score_MTV[0, sorted(missing)].any()


@pytest.mark.parametrize(("shift", "gap", "joined"), [(60, 30, True), (60, 95, False), (150, 30, False)])
def test_a_person_who_comes_back_near_by_is_the_same_one(shift: float, gap: int, joined: bool) -> None:
    """After a gap the boxes no longer overlap: place and size decide, and not for ever."""
    before, after = [together([person(50, 30)])] * 20, [together([person(50 + shift, 30)])] * 20
    found = track_persons(before + [together([])] * gap + after)
    assert found.joints_MTV2.shape[0] == (1 if joined else 2)
    assert len(seen(found.joints_MTV2[0])) == (40 if joined else 20)


def test_a_child_does_not_continue_an_adult() -> None:
    frames = [together([person(50, 30, 60, 150)])] * 10 + [together([])] * 20 + [together([person(55, 100, 20, 50)])] * 10
    assert seen(track_persons(frames).joints_MTV2[0]) == list(range(10))


def test_main_persons_are_large_for_long() -> None:
    """A passer-by (large, brief) and a far figure (small, always there) give way to the two who act."""
    frames = []
    for t in range(60):
        people = [person(50, 30, 50, 120), person(150, 40, 45, 110), person(400, 10, 8, 20)]
        if 30 <= t < 33:
            people.append(person(250, 0, 80, 200))
        frames.append(together(people))
    found = track_persons(frames)
    assert found.joints_MTV2[:, 0, 0, 0] == pytest.approx([52.5, 152.25])
    assert track_persons(frames, options=TrackingOptions(persons=1)).joints_MTV2.shape[0] == 1
    alone = [together([person(50, 30, 50, 120), person(400, 10, 8, 20)])] * 20
    assert track_persons(alone).joints_MTV2.shape[0] == 1, "a figure of a sixth of the size is not a second actor"


def test_people_who_hug_are_two_and_a_pose_found_twice_is_one() -> None:
    left, right = person(50, 30, 60, 150), person(58, 32, 60, 150)
    mirrored = Detections(right.box_N4, right.score_N, right.joints_NV2[:, ::-1], right.joint_score_NV)
    hug = together([left, mirrored])
    assert 0.65 < box_iou(left.box_N4, mirrored.box_N4)[0, 0] < 0.9
    assert len(without_duplicates(hug)) == 2
    upper_body = Detections(np.array([[50, 30, 110, 100]], np.float32), np.array([0.5], np.float32), left.joints_NV2 + 2,
                            left.joint_score_NV)
    assert box_iou(left.box_N4, upper_body.box_N4)[0, 0] < 0.5
    assert len(without_duplicates(together([left, upper_body]))) == 1


@pytest.mark.parametrize(("shift", "missing", "other_missing", "persons"), [
    (30, range(5, V), range(5, V), 2), (30, range(2, V), range(2, V), 2), (30, range(8), range(8, V), 2),  # few joints seen
    (5, [], [3], 1), (5, range(6), range(V - 6, V), 1), (5, range(2, V), range(2, V), 2)])
def test_joints_that_are_missing_are_not_compared(
    shift: float, missing: list[int], other_missing: list[int], persons: int
) -> None:
    """(0, 0) is no place: neither as far as a joint of the other's, nor on top of its (0, 0)."""
    one, other = person(50, 30, 60, 150), person(50 + shift, 30, 60, 150, score=0.5)
    one.joints_NV2[0, list(missing)] = other.joints_NV2[0, list(other_missing)] = 0
    assert box_iou(one.box_N4, other.box_N4)[0, 0] < 0.9
    assert len(without_duplicates(together([one, other]))) == persons


def test_unusable_detections_are_ignored() -> None:
    good = person(50, 30, score=TrackingOptions().min_score)
    broken = [person(200, 30) for _ in range(4)]
    broken[0].joints_NV2[0, 3, 1] = np.nan
    broken[1].box_N4[0, 2] = np.inf
    broken[2].score_N[0] = 0.1
    broken[3].box_N4[0, 2] = broken[3].box_N4[0, 0] + 1
    found = track_persons([together([*broken, good])] * 5)
    assert found.joints_MTV2.shape[0] == 1 and np.array_equal(found.joints_MTV2[0, 2], good.joints_NV2[0])


def test_a_clip_without_anybody_keeps_its_frames() -> None:
    found = track_persons([together([])] * 7)
    assert found.joints_MTV2.shape == (1, 7, V, 2)
    assert not found.joints_MTV2.any() and not found.box_T5.any()


def test_boxes_end_at_the_border_and_joints_do_not_move() -> None:
    cut = inside(person(-20, 80), 192, 128)
    assert cut.box_N4[0].tolist() == [0, 80, 20, 128]
    assert np.array_equal(cut.joints_NV2, person(-20, 80).joints_NV2)


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_iou_counts_pixels(corners: list[tuple[int, int, int, int]]) -> None:
    boxes = np.array([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners], np.float64)
    grid = np.zeros((len(boxes), 12, 12), bool)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        grid[number, y1:y2, x1:x2] = True
    common = (grid[:, None] & grid[None]).sum((2, 3))
    union = (grid[:, None] | grid[None]).sum((2, 3))
    assert box_iou(boxes, boxes) == pytest.approx(np.where(union > 0, common / np.maximum(union, 1), 0))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_result_does_not_depend_on_the_order_in_a_frame(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames, shuffled = [], []
    for _ in range(12):
        people = [person(*rng.uniform(0, 200, 2), *rng.uniform(5, 120, 2), score=rng.uniform(0.2, 1))
                  for _ in range(rng.integers(0, 6))]
        frames.append(together(people))
        shuffled.append(together([people[i] for i in rng.permutation(len(people))]))
    first, second = track_persons(frames), track_persons(shuffled)
    assert np.array_equal(first.joints_MTV2, second.joints_MTV2) and np.array_equal(first.box_T5, second.box_T5)


# --- inputs -------------------------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_labels_and_splits_come_from_folders_tables_or_not_at_all(tmp_path: Path) -> None:
    found = find_videos([str(touch(tmp_path / "a", "walk/1.mp4", "run/2.mp4"))])
    assert found.classes == ("run", "walk") and [(v.name, v.label) for v in found.videos] == [("2", 0), ("1", 1)]
    found = find_videos([str(touch(tmp_path / "b", "train/walk/1.mp4", "test/run/2.mp4"))])
    assert {(v.name, v.label, v.split) for v in found.videos} == {("1", 1, "train"), ("2", 0, "test")}
    found = find_videos([str(touch(tmp_path / "c", "1.mp4", "2.avi"))])
    assert found.classes == ("unlabelled",) and [v.name for v in found.videos] == ["1", "2"]
    table = tmp_path / "c" / "list.csv"
    table.write_text("path,label,split\n1.mp4,jump,train\n2.avi,fall,val\n")
    found = find_videos([str(table)])
    assert found.classes == ("fall", "jump") and [(v.label, v.split) for v in found.videos] == [(1, "train"), (0, "val")]
    assert Path(found.videos[0].path) == tmp_path / "c" / "1.mp4"


def test_one_name_in_two_class_folders(tmp_path: Path) -> None:
    """The folder stands in front then, as the packer reads it; hidden files are passed over, what cannot be used is listed."""
    names = ("train/run/1.mp4", "train/walk/1.mp4", "test/run/1.wmv", "train/run/2.mp4", "train/run/._1.mp4")
    root = touch(tmp_path / "own", *names)
    (root / "train" / "run" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    found = find_videos([str(root)])
    assert [(v.name, v.split) for v in found.videos] == [
        ("test/run/1", "test"), ("train/run/1", "train"), ("2", "train"), ("walk/1", "train")]
    assert [(path.rpartition("/")[2], "cannot be reached" in reason) for path, reason in found.left_out.items()] == [
        ("gone.mp4", True)]
    packer = VideoFolder(root)
    assert [packer.find(v.name) for v in found.videos] == [v.path for v in found.videos]
    assert [work_name(v.name) for v in found.videos] == ["test%2Frun%2F1.npz", "train%2Frun%2F1.npz", "2.npz", "walk%2F1.npz"]


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.avi and .*1\.mp4 have the same name; rename one"):
        find_videos([str(touch(tmp_path / "twice", "1.mp4", "1.avi"))])
    with pytest.raises(UserError, match=r"2\.mp4: lies beside folders"):
        find_videos([str(touch(tmp_path / "mixed", "run/1.mp4", "2.mp4"))])
    with pytest.raises(UserError, match="no such file or folder"):
        find_videos([str(tmp_path / "nothing.mp4")])
    with pytest.raises(UserError, match=r"notes\.txt: expected a video"):
        find_videos([str(touch(tmp_path, "notes.txt") / "notes.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video in this folder"):
        find_videos([str(tmp_path / "empty")])


def test_boxes_are_read_per_frame(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("frame,x1,y1,x2,y2,score\n0,1,2,30,40,0.9\n2,5,6,70,80,0.9\n2,7,8,90,95,0.4\n")
    boxes = GivenBoxes(tmp_path).read("a")
    assert sorted(boxes) == [0, 2] and boxes[2].tolist() == [[5, 6, 70, 80], [7, 8, 90, 95]]
    (tmp_path / "b.csv").write_text("frame,x1,y1,x2,y2\n0,1,2,30,40\nzero,1,2,3,4\n1,9,2,3,4\n2,1,2,3,4\n3,1,nan,3,4\n4,1,2\n")
    with pytest.raises(UserError, match=r"b\.csv: wrong lines: 4, among them 3, 4, 6; expected frame,x1,y1,x2,y2 as numbers, "):
        GivenBoxes(tmp_path).read("b")
    with pytest.raises(UserError, match="no boxes for this video"):
        GivenBoxes(tmp_path).read("c")
    with pytest.raises(UserError, match="no such folder"):
        GivenBoxes(tmp_path / "nowhere")


# --- the whole run, with a model that finds the block of the test videos ----------------------------------------------------


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> BlockModel:
    block = BlockModel()
    monkeypatch.setattr(extract_poses, "load_model", lambda given: block)
    return block


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos (one with a variable frame rate), a broken and a truncated one."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("walk", "run"):
        (root / name).mkdir()
    write_video(root / "walk" / "a.mp4", 8)
    write_video(root / "walk" / "b.mp4", 13, seed=1, times=[0, 1, 2, 4, 8, 9, 10, 20, 21, 22, 30, 31, 32])
    write_video(root / "run" / "c.mp4", 6, seed=2)
    (root / "run" / "broken.mp4").write_bytes(b"no video" * 100)
    whole = write_video(root / "cut.mp4", 12, seed=3).read_bytes()
    (root / "cut.mp4").unlink()
    (root / "run" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return root


def run(*arguments: object) -> int:
    return extract_poses.main([str(argument) for argument in arguments])


def load(path: Path) -> dict[str, Any]:
    content = pickle.loads(path.read_bytes())
    assert isinstance(content, dict)
    return content


def test_every_frame_has_its_pose_and_the_packer_takes_the_pickle(videos: Path, tmp_path: Path, model: BlockModel) -> None:
    out = tmp_path / "poses" / "own.pkl"
    assert run(videos, "--out", out) == 0
    content = load(out)
    assert content["split"] == {"train": ["c", "a", "b"]} and (out.parent / "classes.txt").read_text() == "run\nwalk\n"
    for entry in content["annotations"]:
        count = {"a": 8, "b": 13, "c": 6}[entry["frame_dir"]]
        assert entry["total_frames"] == count and entry["img_shape"] == entry["original_shape"] == (HEIGHT, WIDTH)
        assert entry["keypoint"].shape == (1, count, V, 2) and entry["keypoint"].dtype == np.float16
        assert entry["keypoint_score"].shape == (1, count, V) and entry["keypoint_score"].dtype == np.float16
        for t in range(count):
            x, y = block_xy(t)
            assert entry["bboxes"][t, :4] == pytest.approx([x, y, x + 24, y + 40], abs=0.4), f"frame {t}"
    skipped = [json.loads(line) for line in (tmp_path / "poses/own.work/skipped.jsonl").read_text().splitlines()]
    assert [Path(entry["video"]).name for entry in skipped] == ["broken.mp4", "cut.mp4"]
    assert all("cannot be decoded" in entry["reason"] for entry in skipped)

    dataset = read_pyskl(out, videos)
    assert not dataset.skipped
    pack(dataset, tmp_path / "shards", PackOptions(workers=1, size=64))
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.manifest.classes == ("run", "walk") and len(shards.rows("train")) == 3
    by_name = {entry["frame_dir"]: entry for entry in content["annotations"]}
    for row in shards.rows("train"):
        sample = shards.sample(int(row))
        entry = by_name[sample.key]
        assert sample.label == entry["label"]
        assert np.array_equal(sample.pose_MTVC, entry["keypoint"].astype(np.float32))
        assert np.array_equal(sample.box_T4, entry["bboxes"][:, :4])


def test_the_model_gets_whole_frames_blue_first(videos: Path, tmp_path: Path, model: BlockModel,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenCV would read them, which is what mmpose expects."""
    frames: list[np.ndarray] = []
    monkeypatch.setattr(model, "prepare", lambda frame, boxes: [frames.append(frame) or frame])
    assert run(videos / "walk" / "a.mp4", "--out", tmp_path / "x.pkl") == 0
    assert len(frames) == 8
    for t, frame in enumerate(frames):
        assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
        wanted = frame_picture(0, t)[..., ::-1].astype(int)
        assert np.abs(frame - wanted).mean() < 4 < np.abs(frame - wanted[..., ::-1]).mean()


def test_the_wrong_environment_is_named(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This one has no mmpose."""
    assert run(videos, "--out", tmp_path / "x.pkl", "--random-weights", "--device", "cpu") == 2
    assert "mmpose cannot be imported" in (error := capsys.readouterr().err) and "run tools/pose/pose_env.sh" in error


def test_a_second_run_does_only_what_is_new(videos: Path, tmp_path: Path, model: BlockModel,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "videos"
    (root / "walk").mkdir(parents=True)
    for name in ("a", "b"):
        (root / "walk" / f"{name}.mp4").write_bytes((videos / "walk" / f"{name}.mp4").read_bytes())
    out = tmp_path / "own.pkl"
    assert run(root, "--out", out) == 0
    first = out.read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "own.work").glob("*.npz")}
    assert run(root, "--out", out) == 0
    assert "2 finished before" in capsys.readouterr().out and out.read_bytes() == first
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "own.work").glob("*.npz")}
    write_video(root / "walk" / "a.mp4", 5)
    (tmp_path / "own.work" / "b.npz").write_bytes(b"PK half a file")
    assert run(root, "--out", out) == 0
    assert "0 finished before" in capsys.readouterr().out
    assert [entry["total_frames"] for entry in load(out)["annotations"]] == [5, 13]
    assert not list((tmp_path / "own.work").glob(".*")), "no temporary files are left"


def test_parts_share_a_work_folder(videos: Path, tmp_path: Path, model: BlockModel,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.pkl"
    for part in ("0/2", "1/2"):
        assert run(videos, "--out", out, "--part", part) == 0
    assert not out.exists()
    assert run(videos, "--out", out) == 0
    assert "3 finished before" in capsys.readouterr().out
    assert run(videos, "--out", tmp_path / "once.pkl") == 0
    assert [entry["frame_dir"] for entry in load(out)["annotations"]] == ["c", "a", "b"]
    assert out.read_bytes() == (tmp_path / "once.pkl").read_bytes()


def test_boxes_of_an_earlier_run_are_taken(videos: Path, tmp_path: Path, model: BlockModel) -> None:
    assert run(videos / "walk", "--out", tmp_path / "first.pkl") == 0
    arguments = (videos / "walk", "--model", "hrnet-w32", "--boxes", tmp_path / "first.work", "--out", tmp_path / "second.pkl")
    assert run(*arguments) == 0
    for first, second in zip(*(load(tmp_path / f"{name}.pkl")["annotations"] for name in ("first", "second")), strict=True):
        assert np.array_equal(first["bboxes"], second["bboxes"])
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "a.csv").write_text("frame,x1,y1,x2,y2\n8,1,2,30,40\n")
    (tmp_path / "boxes" / "b.csv").write_text("frame,x1,y1,x2,y2\n3,1,2,30,40\n")
    out = tmp_path / "third.pkl"
    assert run(videos / "walk", "--model", "hrnet-w32", "--boxes", tmp_path / "boxes", "--out", out) == 0
    assert "has 8 frames, but there are boxes for frame 8" in (tmp_path / "third.work" / "skipped.jsonl").read_text()
    assert np.flatnonzero(load(out)["annotations"][0]["bboxes"].any(axis=1)).tolist() == [3]
    (tmp_path / "boxes" / "b.csv").write_text("frame,x1,y1,x2,y2\n5,11,12,30,40\n")  # corrected: found again
    assert run(videos / "walk", "--model", "hrnet-w32", "--boxes", tmp_path / "boxes", "--out", out) == 0
    assert np.flatnonzero(load(out)["annotations"][0]["bboxes"].any(axis=1)).tolist() == [5]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--out", "x.json"], r"--out x\.json: expected a file name that ends in \.pkl"),
    (["--out", "x.pkl", "--part", "2/2"], "--part 2/2: expected I/N with I below N"),
    (["--out", "x.pkl", "--batch", "0"], "--batch 0: expected at least 1"),
    (["--out", "x.pkl", "--min-score", "3"], "--min-score 3.0: expected 0 to 1"),
    (["--out", "x.pkl", "--model", "hrnet-w32"], "pass their folder with --boxes"),
    (["--out", "x.pkl", "--boxes", "."], "rtmo-m finds boxes itself"),
])
def test_wrong_options_end_with_one_line(arguments: list[str], message: str, videos: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(videos, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1


def test_other_settings_and_other_classes_are_refused(videos: Path, tmp_path: Path, model: BlockModel,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert run(videos / "walk", "--out", tmp_path / "x.pkl") == 0
    assert run(videos / "walk", "--out", tmp_path / "x.pkl", "--model", "rtmo-l") == 2
    assert "holds results made with model=rtmo-m, now model=rtmo-l; choose another folder" in capsys.readouterr().err
    assert run(videos, "--out", tmp_path / "y.pkl") == 2
    assert "classes.txt: names other classes" in capsys.readouterr().err


def test_nothing_usable_is_an_error(tmp_path: Path, model: BlockModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(touch(tmp_path / "v", "a.mp4"), "--out", tmp_path / "x.pkl") == 2
    assert "none of 1 videos can be used" in capsys.readouterr().err
    assert not (tmp_path / "x.pkl").exists()


def test_kill_at_any_moment_costs_at_most_one_video(videos: Path, tmp_path: Path) -> None:
    """The process is killed between two videos' files; what it leaves is whole, and the next run ends as if undisturbed."""
    script = ("import sys, time; sys.path[:0] = sys.argv[1].split(':'); import pose_cases, extract_poses\n"
              "class Slow(pose_cases.BlockModel):\n"
              "    def predict(self, prepared):\n"
              "        time.sleep(0.4)\n"
              "        return super().predict(prepared)\n"
              "extract_poses.load_model = lambda given: Slow()\n"
              "sys.exit(extract_poses.main(sys.argv[2:]))")
    tests = Path(__file__).parent
    path = f"{tests / 'helpers'}:{tests.parent / 'tools' / 'pose'}"
    out = tmp_path / "x.pkl"
    command = [sys.executable, "-c", script, path, str(videos / "walk"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "x.work" / "a.npz").exists() or process.poll() is not None)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and not (tmp_path / "x.work" / "b.npz").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 finished before" in again.stdout
    assert [entry["total_frames"] for entry in load(out)["annotations"]] == [8, 13]


# --- parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "advice"), [
    (OSError(28, "No space left on device"), "No space left on device; finished videos are kept, run again to continue"),
    (MemoryError(), "out of memory; use a smaller --batch and run again to continue"),
])
def test_what_is_full_ends_with_one_line(error: Exception, advice: str, videos: Path, tmp_path: Path, model: BlockModel,
                                         monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(WorkFolder, "save", full)
    assert run(videos, "--out", tmp_path / "x.pkl") == 1
    assert advice in capsys.readouterr().err


def test_a_model_that_fails_leaves_no_video_out(
    videos: Path, tmp_path: Path, model: BlockModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After such an error every call of CUDA fails: all videos that are left would be skipped, and the pickle written."""
    predict, out = BlockModel.predict, tmp_path / "x.pkl"

    def fail(model: BlockModel, prepared: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(BlockModel, "predict", fail)
    assert run(videos, "--out", out) == 1 and not out.exists()
    said = capsys.readouterr().err
    assert re.search(r"\.mp4: the model failed \(CUDA error: an illegal memory access was encountered\); finished videos", said)
    monkeypatch.setattr(BlockModel, "predict", predict)
    assert run(videos, "--out", out) == 0


def test_a_failed_download_leaves_the_work_folder_free(
    videos: Path, tmp_path: Path, model: BlockModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(_: object) -> None:
        raise UserError("https://x/rtmo.pth: cannot be downloaded")

    out = tmp_path / "x.pkl"
    with monkeypatch.context() as patched:
        patched.setattr(extract_poses, "load_model", offline)
        assert run(videos, "--out", out) == 2
    assert not (tmp_path / "x.work").exists()
    assert run(videos, "--out", out, "--model", "rtmo-t") == 0, "another model, as nothing is finished"
    assert json.loads((tmp_path / "x.work" / "settings.json").read_text())["model"] == "rtmo-t"
    capsys.readouterr()
    assert run(videos, "--out", out) == 2
    assert "holds results made with model=rtmo-t, now model=rtmo-m" in capsys.readouterr().err


def test_results_of_two_settings_do_not_mix(videos: Path, tmp_path: Path) -> None:
    """Of two processes that begin at the same time, with other settings, the second to finish a video is refused."""
    video = find_videos([str(videos)]).videos[0]
    poses = VideoPoses([person(10, 10)], 64, 64)
    one, other = (WorkFolder(tmp_path / "work", {"model": name}) for name in ("a", "b"))
    one.save(video, poses)
    with pytest.raises(UserError, match="holds results made with model=a, now model=b"):
        other.save(video, poses)


def test_progress_tells_rate_and_end() -> None:
    progress = extract_poses.Progress(10)
    assert progress.line(1.0).endswith("unknown left")
    for _ in range(4):
        progress.frames(100)
        progress.video(skipped=1)
    assert progress.line(20.0) == "4/10 videos, 400 frames, 20.0 frames/s, 1 skipped, 0:00:30 left"
