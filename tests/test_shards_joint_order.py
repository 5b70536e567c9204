"""The joint layout of a pickle: given, requested if the count is ambiguous, and compared with the bones."""

import logging
from pathlib import Path

import numpy as np
import pytest
from shards_data import annotation, clip_of, packed, write_pickle, write_video

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import LAYOUTS, layout, to_coco17
from svdata2vec.shards.readers.joint_order import choose_layout
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.readers.sources import open_dataset

FRAMES = 6
# A person who stands: x to the right of the picture (so the left side is at larger x), y downwards, in pixels.
STANDING = {
    "nose": (96, 20), "eye": (3, 16), "ear": (6, 18), "shoulder": (14, 36), "elbow": (20, 56), "wrist": (22, 74),
    "hip": (9, 74), "knee": (10, 96), "ankle": (11, 118), "hand": (22, 78), "hand_tip": (22, 82), "thumb": (19, 79),
    "foot": (13, 122), "big_toe": (13, 122), "small_toe": (15, 121), "heel": (10, 121), "head": (96, 10), "neck": (96, 32),
    "spine_shoulder": (96, 37), "thorax": (96, 37), "spine": (96, 55), "spine_mid": (96, 55), "spine_base": (96, 73),
    "root": (96, 73), "mid_hip": (96, 73), "hip_": (96, 73), "eye_inner": (2, 16), "eye_outer": (4, 16), "mouth": (3, 24),
    "pinky": (23, 81), "index": (22, 82), "foot_index": (13, 122),
}


def standing(name: str) -> np.ndarray:
    """float32 (1, FRAMES, V, 2): the person in the joints of a layout, one pixel further in every frame."""
    joints = []
    for joint in layout(name).joints:
        side = {"l_": 1, "r_": -1}.get(joint[:2])
        x, y = STANDING["hip_" if joint == "hip" else joint if side is None else joint[2:]]
        joints.append((x if side is None else 96 + side * x, y))
    walk = np.stack([np.arange(FRAMES), np.zeros(FRAMES)], 1)
    return (np.array(joints, np.float32)[None, None] + walk[None, :, None]).astype(np.float32)


def pickle_of(root: Path, name: str) -> dict[str, object]:
    """A pickle of one clip with the joints of this layout."""
    (root / "videos").mkdir()
    write_video(root / "videos" / "a.mp4", FRAMES)
    pose = standing(name)
    entry = annotation("a", 0, FRAMES, keypoint=pose, keypoint_score=np.full(pose.shape[:3], 0.9, np.float16))
    return {"pickle_path": write_pickle(root / "set.pkl", [entry]), "videos": root / "videos"}


@pytest.mark.parametrize("name", ["kinect25", "body25"])
def test_25_joints_must_be_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    sources = pickle_of(tmp_path, name)
    with pytest.raises(UserError, match=r"set\.pkl: 25 joints per person may be kinect25 or body25; say which with --joints"):
        open_dataset("pyskl", **sources)
    with caplog.at_level(logging.INFO, logger="svdata2vec"):
        dataset = open_dataset("pyskl", **sources, joints=name)
    assert dataset.layout == layout(name)
    assert f"25 joints per person, {name} (as named)" in caplog.text and "look like" not in caplog.text
    other = "body25" if name == "kinect25" else "kinect25"
    open_dataset("pyskl", **sources, joints=other)
    assert f"the joints look like {name}, not {other} (bones of " in caplog.text


def test_17_joints_are_those_of_coco_unless_the_bones_say_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="svdata2vec"):
        assert choose_layout([standing("coco17")], None, "coco17", "a.pkl").name == "coco17"
    assert "a.pkl: 17 joints per person, coco17 (as the format says)" in caplog.text
    with pytest.raises(UserError, match=r"a\.pkl: the joints look like h36m17, not coco17 .* say which with --joints"):
        choose_layout([standing("h36m17")], None, "coco17", "a.pkl")
    assert choose_layout([standing("h36m17")], "h36m17", "coco17", "a.pkl").name == "h36m17"


@pytest.mark.parametrize("name", ["smarthome15", "openpose18", "halpe26", "mediapipe33"])
def test_a_count_that_one_layout_has_is_reported(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="svdata2vec"):
        assert choose_layout([standing(name)], None, "coco17", "a.pkl").name == name
    assert f"{name} (the only known layout with that number)" in caplog.text


def test_a_count_that_no_layout_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.pkl: 20 joints per person fit no known layout; expected those of coco17, "):
        choose_layout([np.ones((1, 3, 20, 2), np.float32)], None, "coco17", "a.pkl")


def test_missing_and_infinite_joints_have_no_bones(caplog: pytest.LogCaptureFixture) -> None:
    for value in (0.0, np.nan, np.inf):
        pose = standing("body25")
        pose[:, :-1] = value
        pose[:, -1, 5:] = value
        choose_layout([pose], "body25", None, "a.pkl")
        choose_layout([np.full_like(pose, value)], "body25", None, "a.pkl")
    assert "look like" not in caplog.text
    other = standing("kinect25")
    other[..., 24, :] = np.nan  # of one thumb, and every other frame in one point
    other[:, ::2] = 50
    choose_layout([other], "body25", None, "a.pkl")
    assert "the joints look like kinect25, not body25" in caplog.text


@pytest.mark.parametrize("name", ["body25", "mediapipe33", "halpe26"])
def test_any_layout_is_packed_as_coco17(tmp_path: Path, name: str) -> None:
    dataset = open_dataset("pyskl", **pickle_of(tmp_path, name), joints=name, as_coco17=True)
    shards = packed(dataset, tmp_path)
    sample = clip_of(shards, "a")
    assert shards.manifest.layout == layout("coco17")
    assert np.array_equal(sample.pose_MTVC, to_coco17(standing(name), layout(name), 2))
    assert np.abs(sample.pose_MTVC - standing("coco17")).max() < 1e-3
    assert sample.score_MTV is not None and sample.score_MTV.shape == (1, FRAMES, 17)


def test_help_names_every_layout() -> None:
    assert [name for name in LAYOUTS if name not in str(read_pyskl.__doc__)] == []
