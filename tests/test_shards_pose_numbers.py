"""The frame that a pose belongs to: numbers in the names of images and pose files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_data import packed, write_tree

from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.pose_files import read_poses
from svdata2vec.shards.readers.pose_formats import PARSERS
from svdata2vec.shards.readers.sources import open_dataset

FRAMES = 8


def body(t: int) -> np.ndarray:
    """(17, 2): joints of a person who walks to the right."""
    return np.stack([60 + t + 1.5 * np.arange(17), 30 + 4.0 * np.arange(17)], 1)


def flat(joints_V2: np.ndarray) -> list[float]:
    return [float(value) for x, y in joints_V2 for value in (x, y, 0.75)]


def coco_of(path: Path, *names: str, **of_image: Sequence[Any]) -> None:
    """A file whose image i has this name and the body of frame i."""
    fields = [dict(zip(of_image, values, strict=True)) for values in zip(*of_image.values(), strict=True)] or [{}] * len(names)
    images = [{"id": t, "file_name": name, **more} for t, (name, more) in enumerate(zip(names, fields, strict=True))]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": image["id"], "keypoints": flat(body(t))}
                                                             for t, image in enumerate(images)]}))


@pytest.mark.parametrize(("name", "ids"), [
    ("frame-{0:04d}_jpg.rf.{1:032x}.jpg", [3, 1, 0, 2, 4, 7, 6, 5]),  # Roboflow: a hash behind the number, ids in no order
    ("{1:08x}-frame_{0}.jpg", [3, 1, 0, 2, 4, 7, 6, 5]),  # Label Studio: a hash in front of it
    ("frame_{0}.jpg", [3, 1, 0, 2, 4, 7, 6, 5]),
    ("{0:04d}_1080p.jpg", range(FRAMES)),  # one number for all: ids order them
    ("{1:x}_{0}.jpg", range(FRAMES)),
    ("001.mp4", range(FRAMES)),  # the video's own name
])
def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path, name: str, ids: Sequence[int]) -> None:
    hashes = [0x1D8E4E27C47D124F9B1 * (t + 3) % 0xFFFFFFFB for t in range(FRAMES)]
    coco_of(tmp_path / "a.json", *(name.format(t, hashes[t]) for t in range(FRAMES)), id=list(ids))
    found = read_poses(str(tmp_path / "a.json"), "coco", "a", 17, None, 1, 0.3)
    assert np.allclose(found.pose_MTVC[0], [body(t) for t in range(FRAMES)], atol=0.01)


@pytest.mark.parametrize("kind", [int, str, float])
def test_frame_ids_of_any_type_are_numbers(tmp_path: Path, kind: type) -> None:
    """Ids of images are in the opposite order; two frames show nobody and are left out."""
    shown = [0, 1, 3, 4, 6, 7]
    coco_of(tmp_path / "a.json", *["x.jpg"] * 6, id=list(range(6))[::-1], frame_id=[kind(t) for t in shown])
    found = read_poses(str(tmp_path / "a.json"), "coco", "a", 17, None, 1, 0.3)
    assert np.allclose(found.pose_MTVC[0, shown], [body(place) for place in range(6)], atol=0.01)
    assert found.pose_MTVC.shape[1] == 8 and not found.pose_MTVC[0, [2, 5]].any()


@pytest.mark.parametrize(("names", "ids", "message"), [
    (["0.jpg", "1.jpg", "1.jpg", "2.jpg"], [0, 1, 2, 3], "a.json, a: images '1.jpg' and '1.jpg' both are frame 1; expected"),
    (["a1.jpg", "b1.jpg", "a2.jpg"], [0, 1, 2], "images 'a1.jpg' and 'b1.jpg' both are frame 1"),
    (["a1.jpg", "cover.jpg"], [0, 1], "image 'cover.jpg' has no frame number, others have"),
    (["7-c81.jpg", "8-5b7.jpg"], [0, 1], "which number in '8-5b7.jpg' and '7-c81.jpg' is the frame's"),
])
def test_numbers_of_frames_that_contradict_are_refused(tmp_path: Path, names: list[str], ids: list[int], message: str) -> None:
    coco_of(tmp_path / "a.json", *names, id=ids)
    with pytest.raises(UserError, match=message):
        read_poses(str(tmp_path / "a.json"), "coco", "a", 17, None, 1, 0.3)


@pytest.mark.parametrize("form", ["alphapose", "coco", "openpose", "yolo"])
def test_time_stamps_are_no_numbers_of_frames(tmp_path: Path, form: str) -> None:
    """Taken for frame numbers, they would need a list of 1,700,000,000 frames."""
    stamps = [1_700_000_000 + t for t in (0, 1, 3)]
    if form == "coco":
        coco_of(tmp_path / "a.json", *(f"{stamp}.jpg" for stamp in stamps))
    people = [{"image_id": f"{stamp}.jpg", "keypoints": flat(body(0))} for stamp in stamps]
    (tmp_path / "b.json").write_text(json.dumps(people))
    for stamp in stamps:
        (tmp_path / f"a_{stamp}_keypoints.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": flat(body(0))}]}))
        (tmp_path / f"a_{stamp}.txt").write_text("0 0.5 0.5 0.1 0.1" + " 0.5 0.5 1" * 17)
    path = {"coco": tmp_path / "a.json", "alphapose": tmp_path / "b.json"}.get(form, tmp_path)
    with pytest.raises(UserError, match=r"frame number 170000000\d, but persons in 3 frames only; expected frames counted"):
        PARSERS[form](str(path), "a", 17)


@pytest.mark.parametrize(("first", "poses", "frame_of_first"), [
    (2, FRAMES - 2, 2), (3, FRAMES - 2, 2), (30, FRAMES, 0), (30, FRAMES - 1, 0), (1, FRAMES - 1, 0)])
def test_the_video_decides_where_numbers_begin(tmp_path: Path, first: int, poses: int, frame_of_first: int) -> None:
    """Frames of a whole video, from 0 or from 1, whose first ones show nobody and are left out; or of a part cut out of one."""
    coco_of(tmp_path / "a.json", *(f"{first + t:06d}.jpg" for t in range(poses)))
    videos = write_tree(tmp_path / "videos", "walk/a.mp4", num_frames=FRAMES)
    dataset = open_dataset("poses-json", videos=videos, poses=tmp_path / "a.json", format="coco")
    sample = packed(dataset, tmp_path).sample(0)
    assert not sample.pose_MTVC[:, :frame_of_first].any()
    assert np.allclose(sample.pose_MTVC[0, frame_of_first :][:poses], [body(t) for t in range(poses)], atol=0.01)


def test_alphapose_counts_from_the_first_image(tmp_path: Path) -> None:
    """frame_00001.jpg is frame 0, "1.jpg" of a video is frame 1."""
    for names, expected in ((("frame_00001.jpg", "frame_00002.jpg"), [1, 1]), (("1.jpg", "2.jpg"), [0, 1, 1]),
                            (("000001.jpg",), [1]), (("img_0.jpg", "img_1.jpg"), [1, 1])):
        found = [{"image_id": name, "keypoints": flat(body(0)), "score": 1.0} for name in names]
        (tmp_path / "a.json").write_text(json.dumps(found))
        parse = PARSERS["alphapose"]
        assert [len(frame) for frame in parse(str(tmp_path / "a.json"), "", 17).frames] == expected


def write_frames(folder: Path, form: str, numbers: Sequence[int]) -> Path:
    """The poses of these frames as a program calls them."""
    for number in numbers:
        if form == "openpose":
            people = [{"pose_keypoints_2d": flat(body(number))}]
            (folder / f"a_{number:012d}_keypoints.json").write_text(json.dumps({"people": people}))
        elif form == "yolo":
            (folder / f"a_{number + 1}.txt").write_text("0 0.5 0.5 0.1 0.1" + " 0.5 0.5 1" * 17)
    if form == "alphapose":
        found = [{"image_id": f"{number}.jpg", "keypoints": flat(body(number)), "score": 1.0} for number in numbers]
        (folder / "a.json").write_text(json.dumps(found))
        return folder / "a.json"
    return folder


@pytest.mark.parametrize("form", ["alphapose", "yolo"])
@pytest.mark.parametrize("numbers", [range(0, 12, 2), [3, 6, 9, 15, 18, 21]])
def test_poses_of_every_second_frame_are_not_a_video_with_gaps(
    tmp_path: Path, form: str, numbers: Sequence[int]
) -> None:
    path = write_frames(tmp_path, form, numbers)
    with pytest.raises(UserError, match=rf"poses of one frame in {numbers[1] - numbers[0]} alone; expected those of every fr"):
        PARSERS[form](str(path), "a", 17)
    assert len(PARSERS[form](str(write_frames(tmp_path, form, [*numbers, 22, 23])), "a", 17).frames) == 24


@pytest.mark.parametrize(("numbers", "seen"), [(range(3, FRAMES), range(3, FRAMES)), (range(0, FRAMES, 2), None)])
def test_openpose_of_some_frames(tmp_path: Path, numbers: range, seen: range | None) -> None:
    """--frame_first was taken for a video from 1, every pose a frame early; --frame_step for frames without anybody."""
    (tmp_path / "poses").mkdir()
    videos = write_tree(tmp_path / "videos", "walk/a.mp4", num_frames=FRAMES)
    dataset = open_dataset("poses-json", videos=videos, poses=write_frames(tmp_path / "poses", "openpose", numbers),
                           format="openpose", joints="coco17")
    if seen is None:
        with pytest.raises(UserError, match=r"8 video frames but 4 poses.* or skip frames"):
            packed(dataset, tmp_path)
        return
    found = packed(dataset, tmp_path).sample(0).pose_MTVC[0]
    assert np.allclose(found[list(seen)], [body(t) for t in seen], atol=0.01) and not found[: seen[0]].any()


def test_an_open_end_is_filled_and_never_cut() -> None:
    pose = Pose(np.ones((1, 9, 17, 2)), open_end=True)
    assert pose.until(7) is pose and pose.until(9) is pose
    assert pose.until(11).pose_MTVC[0, :, 0, 0].tolist() == [1] * 9 + [0] * 2


def test_a_part_of_a_pose_is_one_of_its_scores_and_boxes_too() -> None:
    frame_T = np.arange(9.0)
    pose = Pose(np.tile(frame_T[None, :, None, None], (1, 1, 17, 2)), np.tile(frame_T[None, :, None], (1, 1, 17)),
                np.tile(frame_T[:, None], (1, 4))).between(2, 5)
    assert pose.score_MTV is not None and pose.box_T4 is not None
    assert pose.pose_MTVC[0, :, 0, 0].tolist() == pose.score_MTV[0, :, 0].tolist() == pose.box_T4[:, 0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("images", [("000001_cam2.jpg", "000002_cam2.jpg"), ("walk_7.jpg", "run_7.jpg")])
def test_images_of_one_number_are_not_one_frame_of_alphapose(tmp_path: Path, images: tuple[str, str]) -> None:
    """The poses of all frames were taken for persons of one."""
    results = [{"image_id": image, "keypoints": flat(body(0)), "score": 1.0} for image in images]
    (tmp_path / "a.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=rf"images '{images[0]}' and '{images[1]}' both are frame [27]; expected every"):
        PARSERS["alphapose"](str(tmp_path / "a.json"), "a", 17)
    (tmp_path / "a.json").write_text(json.dumps([dict(results[0])] * 2))  # two persons
    assert [len(people) for people in PARSERS["alphapose"](str(tmp_path / "a.json"), "a", 17).frames][-1] == 2


@pytest.mark.parametrize(("form", "names"), [
    ("yolo", ("a_01.txt", "a_1.txt")), ("openpose", ("a_000000000001_keypoints.json", "a_1_keypoints.json")),
])
def test_two_files_of_one_frame_are_named(tmp_path: Path, form: str, names: tuple[str, str]) -> None:
    """The last one was taken."""
    for name in names:
        (tmp_path / name).write_text(json.dumps({"people": []}) if form == "openpose" else "")
    with pytest.raises(UserError, match=rf"{names[0]} and {names[1]} both are frame 1; expected every frame once"):
        PARSERS[form](str(tmp_path), "a", 17)


def of_mmpose(path: Path, *frames: Sequence[Sequence[float]]) -> list[int]:
    """Persons per frame of a file with these boxes."""
    people = [
        [{"keypoints": body(t).tolist(), "keypoint_scores": [0.8] * 17, "bbox": [box], "bbox_score": 1} for box in boxes]
        for t, boxes in enumerate(frames)
    ]
    path.write_text(json.dumps([{"frame_id": t, "instances": each} for t, each in enumerate(people)]))
    return [len(found) for found in PARSERS["mmpose"](str(path), "a", 17).frames]


def test_mmpose_takes_a_picture_without_anybody_for_a_person(tmp_path: Path) -> None:
    """Of a detector that finds nobody it makes one box, the picture, with score 1: it was kept as a person."""
    path, whole = tmp_path / "a.json", (0, 0, 192, 128)
    person, corner = (55.5, 20.25, 90.5, 110.0), (0.0, 0.0, 30.0, 60.0)
    assert of_mmpose(path, [person], [whole], [whole], [person, corner]) == [1, 0, 0, 2]
    assert of_mmpose(path, [person], [corner], [person]) == [1, 1, 1], "somebody in the corner is smaller than the other"
    assert of_mmpose(path, [whole], [whole]) == [1, 1], "no detector was asked"
    assert of_mmpose(path, [person], [(0, 0, 191.5, 128)], [(0.5, 0, 192, 128)]) == [1, 1, 1]
    assert of_mmpose(path, [person], [whole, person]) == [1, 2] and of_mmpose(path, [], []) == [0, 0]


@pytest.mark.parametrize(("form", "numbers", "said"), [
    ("yolo", range(4), True), ("alphapose", range(6), True), ("yolo", range(7), False), ("openpose", range(FRAMES), False),
    ("yolo", (6, 7), False),
])
def test_clips_whose_poses_end_early_are_reported(
    tmp_path: Path, form: str, numbers: Sequence[int], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Files that leave out empty frames do not tell people who leave from a program that was stopped."""
    (tmp_path / "poses").mkdir()
    videos = write_tree(tmp_path / "videos", "walk/a.mp4", num_frames=FRAMES)
    dataset = open_dataset("poses-json", videos=videos, poses=write_frames(tmp_path / "poses", form, numbers), format=form,
                           joints="coco17")
    assert packed(dataset, tmp_path).sample(0).pose_MTVC.shape[1] == FRAMES
    text = f"in 1 clips nobody is found in the last quarter or more, e.g. in walk%2Fa after {len(numbers)} of {FRAMES} frames: "
    assert (text in caplog.text) == said == ("last quarter" in caplog.text)
