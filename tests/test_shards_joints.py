"""Joints of an annotation in the pixels of the video: scaled, cleaned, or refused because they belong to another picture."""

from dataclasses import replace

import numpy as np
import pytest
from shards_data import write_video

from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.joints import stored_boxes, to_video_pixels
from svdata2vec.shards.video import VideoInfo, VideoReader

FRAMES = 6


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    """Facts of a video of 192x108."""
    with VideoReader(write_video(tmp_path_factory.mktemp("joints") / "a.mp4", 2, height=108)) as reader:
        return reader.info


def of_picture(width: int | None, height: int | None, scale_x: float, scale_y: float) -> Pose:
    """Joints all over a video of 192x108, in pixels of another picture."""
    spread = np.linspace(0.05, 0.95, 17)
    xy_V2 = np.stack([spread * 192 * scale_x, spread * 108 * scale_y], 1)
    return Pose(np.broadcast_to(xy_V2, (1, FRAMES, 17, 2)).astype(np.float32), width=width, height=height)


@pytest.mark.parametrize(("width", "height", "scale"), [
    (1920, 1080, (10, 10)), (None, None, (1, 1)), (96, 54, (0.5, 0.5)), (1920, 1088, (10, 1088 / 108)),
    (1, 1, (1 / 192, 1 / 108)),
])
def test_joints_of_a_scaled_picture_are_brought_to_the_video(
    info: VideoInfo, width: int | None, height: int | None, scale: tuple[float, float]
) -> None:
    people, bad = to_video_pixels("a", of_picture(width, height, *scale), info, 17)
    assert bad == 0 and np.allclose(people.pose_MTVC, of_picture(None, None, 1, 1).pose_MTVC, atol=1e-4)


def test_joints_of_a_picture_as_it_is_stored_are_stretched_with_its_pixels(info: VideoInfo) -> None:
    """Most programs use the stored picture and ignore the aspect ratio of its pixels, here 4:3."""
    wide = replace(info, stored_width=144, square_width=192)
    people, _ = to_video_pixels("a", of_picture(144, 108, 0.75, 1), wide, 17)
    assert np.allclose(people.pose_MTVC, of_picture(None, None, 1, 1).pose_MTVC, atol=1e-4)
    with pytest.raises(UserError, match=r"144x108 .*, the video shows 192x108, of another shape"):
        to_video_pixels("a", of_picture(144, 108, 0.75, 1), info, 17)


def test_joints_of_pixels_that_are_not_square_need_the_size_of_their_picture(info: VideoInfo) -> None:
    """They were taken for joints of the picture as it is shown; most programs read it as it is stored."""
    wide = replace(info, stored_width=144, square_width=192)
    with pytest.raises(UserError, match=r"stores 144x108 with pixels that are not square and shows 192x108; .* img_shape, "):
        to_video_pixels("a", of_picture(None, None, 0.75, 1), wide, 17)
    nobody = replace(of_picture(None, None, 1, 1), pose_MTVC=np.zeros((1, FRAMES, 17, 2)))
    parts = of_picture(1, 1, 1 / 192, 1 / 108)
    assert [to_video_pixels("a", pose, wide, 17)[1] for pose in (nobody, parts)] == [0, 0]


def test_a_small_copy_has_the_same_shape_but_for_two_pixels(info: VideoInfo) -> None:
    small = replace(info, width=64, height=36, stored_width=64, stored_height=36, square_width=64)
    people, _ = to_video_pixels("a", of_picture(20, 11, 20 / 192, 11 / 108), small, 17)  # 20 / 64 * 36 is 11.25
    assert np.allclose(people.pose_MTVC, of_picture(None, None, 1 / 3, 1 / 3).pose_MTVC, atol=1e-4)
    with pytest.raises(UserError, match=r"20x10 .*, the video shows 64x36, of another shape"):
        to_video_pixels("a", of_picture(20, 10, 1, 1), small, 17)


@pytest.mark.parametrize(("width", "height", "scale", "message"), [
    (1080, 1920, (10, 10), r"picture of 1080x1920 \(width x height\), the video shows 192x108: img_shape is \(width, height\)"),
    (1080, 1920, (5, 5), r"1080x1920 .* the video shows 192x108, which is turned; expected img_shape as \(height, width\)"),
    (640, 480, (3, 3), r"640x480 .*, the video shows 192x108, of another shape"),
    (224, 224, (1, 2), r"224x224 .*, the video shows 192x108, of another shape"),
    (0, 1080, (1, 1), r"0x1080 .*; expected img_shape"),
    (-1920, -1080, (1, 1), r"-1920x-1080 .*; expected img_shape, \(height, width\) in pixels"),
    (1920, 1080, (1 / 192, 1 / 108), "all joints lie between 0.05 and 0.95, in a picture of 1920x1080: parts of the picture"),
    (None, None, (1 / 192, 1 / 108), "all joints lie between 0.05 and 0.95, in a picture of 192x108"),
    (None, None, (20, 20), r"\d+ of 102 joints lie far outside the 192x108 picture"),
])
def test_joints_of_another_picture_are_refused_with_both_sizes(
    info: VideoInfo, width: int | None, height: int | None, scale: tuple[float, float], message: str
) -> None:
    with pytest.raises(UserError, match=f"clip a: .*{message}"):
        to_video_pixels("a", of_picture(width, height, *scale), info, 17)


def test_joints_of_a_larger_video_are_refused_where_no_size_is_stated(info: VideoInfo) -> None:
    """Poses of the originals, videos that were shrunk later. Joints that a detector guesses below the picture prove nothing."""
    spread = np.linspace(-0.4, 0.4, 17)
    pose_MTVC = np.tile(np.stack([96 - 30 * spread, 54 + 108 * spread], 1).astype(np.float32), (1, FRAMES, 1, 1))
    with pytest.raises(UserError, match=r"clip a: 96 of 102 joints lie outside the 192x108 picture: .* expected the video"):
        to_video_pixels("a", Pose(2 * pose_MTVC), info, 17)
    assert to_video_pixels("a", Pose(2 * pose_MTVC, width=384, height=216), info, 17)[1] == 0
    close_up = pose_MTVC + np.float32([0, 60])
    guessed = np.tile(np.where(close_up[0, 0, :, 1] > 108, 0.2, 0.9), (1, FRAMES, 1))
    assert to_video_pixels("a", Pose(close_up, guessed), info, 17)[1] == 0


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_boxes_of_another_size_than_the_video_are_refused(info: VideoInfo, scale: float) -> None:
    """As in the authors' pickles, whose boxes are those of copies of half the size; one box for several persons is not such."""
    first = np.tile(np.float32([[90, 50], [110, 70], [100, 60], [95, 65]]), (1, FRAMES, 1, 1))
    joints_MTVC = np.concatenate([first, first - 30, first + 30, first - 50, first + np.float32([60, 0])])
    box_T4 = np.tile(np.float32([88, 48, 112, 72]), (FRAMES, 1))
    pose = Pose(10 * joints_MTVC, None, box_T4, 1920, 1080, video_box=True)
    assert np.array_equal(stored_boxes(to_video_pixels("a", pose, info, 4)[0]), box_T4)
    with pytest.raises(UserError, match=rf"clip a: {FRAMES} of {FRAMES} boxes hold nobody's joints"):
        to_video_pixels("a", replace(pose, box_T4=scale * box_T4), info, 4)


def test_a_clip_without_joints_is_of_any_picture_of_its_shape(info: VideoInfo) -> None:
    nobody = Pose(np.zeros((1, FRAMES, 17, 2), np.float32), width=1920, height=1080)
    assert not to_video_pixels("a", nobody, info, 17)[0].pose_MTVC.any()
    missing = Pose(np.full((1, FRAMES, 17, 2), np.nan, np.float32))
    assert to_video_pixels("a", missing, info, 17)[1] == FRAMES * 17


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e6])
def test_impossible_joints_are_missing_and_counted(info: VideoInfo, value: float) -> None:
    pose = of_picture(1920, 1080, 10, 10)
    damaged = pose.pose_MTVC.copy()
    damaged[0, 2, 3, 1] = value
    damaged[0, 2, 4:6] = (-900, 500), (2820, 500)  # outside, but not far
    scores = np.full((1, FRAMES, 17), value, np.float64)
    boxes = np.tile(np.float32([-50, 10, 1900, 1070]), (FRAMES, 1))
    boxes[1, 2], boxes[2, 3], boxes[3, 3] = boxes[1, 0], value, boxes[3, 1]
    people, bad = to_video_pixels("a", Pose(damaged, scores, boxes, 1920, 1080), info, 17)
    assert bad == 1 and not people.pose_MTVC[0, 2, 3].any() and np.isfinite(people.pose_MTVC).all()
    assert np.allclose(people.pose_MTVC[0, 2, 4:6], [(-90, 50), (282, 50)])
    assert people.score_MTV is not None
    assert np.all(people.score_MTV == (np.clip(value, -65504, 65504) if np.isfinite(value) else 0))
    far_down = [-5, 1, 190, 108 + 96] if value == 1e38 else [0] * 4
    whole = [-5, 1, 190, 107]
    assert np.allclose(stored_boxes(people), [whole, [0] * 4, far_down, [0] * 4, whole, whole])


def test_boxes_of_which_none_can_be_used_give_way_to_the_joints(info: VideoInfo) -> None:
    pose_MTVC = np.tile(np.float32([[10, 20], [30, 60]]), (1, FRAMES, 1, 1))
    for useless in (np.nan, 0.0):
        people, _ = to_video_pixels("a", Pose(pose_MTVC, None, np.full((FRAMES, 4), useless), 192, 108), info, 2)
        assert stored_boxes(people).tolist() == [[10, 20, 30, 60]] * FRAMES


def test_boxes_are_around_the_joints_whose_scores_count(info: VideoInfo) -> None:
    pose = of_picture(None, None, 1, 1)
    joints, scores = pose.pose_MTVC.copy(), np.full((1, FRAMES, 17), 0.9)
    joints[0, :, 0], scores[0, :, 0] = (100, 150), 0.2   # below the picture
    joints[0, :, 1], scores[0, :, 1] = (1, 1), 0.05      # in it
    people, _ = to_video_pixels("a", Pose(joints, scores), info, 17)
    low, high = pose.pose_MTVC[0, 0, 2], pose.pose_MTVC[0, 0, -1]
    assert np.allclose(stored_boxes(people)[0], [*low, *high])
    unscored, _ = to_video_pixels("a", Pose(joints), info, 17)
    assert np.allclose(stored_boxes(unscored)[0], [1, 1, high[0], 150])


@pytest.mark.parametrize(("boxes", "wrong"), [
    ([[60, 40, 90, 85]] * FRAMES, 0),
    ([[140, 20, 180, 100]] * FRAMES, 0),  # around one of two persons
    ([[60, 20, 180, 100]] * 3 + [[0, 0, 0, 0]] * 3, 0),
    ([[60, 40, 90, 85]] * 3 + [[0, 90, 30, 108]] * 3, 0),  # as many right as wrong
    ([[60, 40, 30, 45]] * FRAMES, 6),  # x, y, width, height
    ([[0.3, 0.3, 0.5, 0.8]] * FRAMES, 6),  # parts of the picture
    ([[30, 20, 45, 42]] * 4 + [[60, 40, 90, 85]] * 2, 4),  # of a picture of half the size, but for two
])
def test_boxes_that_hold_nobody_are_refused(info: VideoInfo, boxes: list[list[float]], wrong: int) -> None:
    spread_V2 = np.linspace(0.05, 0.95, 17)[:, None]
    pose_MTVC = np.stack([np.broadcast_to(corner + spread_V2 * size, (FRAMES, 17, 2))
                          for corner, size in (((62, 42), (24, 40)), ((142, 22), (36, 76)))])
    score_MTV = np.ones((2, FRAMES, 17))
    pose_MTVC[0, :, 9:], score_MTV[0, :, 9:] = (75, 150), 0.2  # legs below the picture, as guessed in a close-up
    pose = Pose(pose_MTVC, score_MTV, np.float32(boxes))
    if wrong:
        with pytest.raises(UserError, match=f"clip a: {wrong} of 6 boxes hold nobody's joints; expected x1, y1, x2, y2"):
            to_video_pixels("a", pose, info, 17)
    else:
        assert to_video_pixels("a", pose, info, 17)[0].box_T4 is not None
