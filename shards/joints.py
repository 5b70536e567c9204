"""Brings annotated joints and boxes into the pixels of the decoded video and marks what cannot be true as missing.

The one place that cleans joints, for packing and for `predict --poses`. M persons, T annotated frames, V joints.
"""

import numpy as np

from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.boxes import CROP_SCORES, OUTSIDE_LIMIT, counted_joints, person_boxes, present_joints
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.video import VideoInfo

FLOAT16_LIMIT = 65504.0
ASPECT_TOLERANCE = 0.02  # between the shapes of the picture of the joints and of the video, or 2 px (rounded copies)
RELATIVE = 2.0           # joints of which none is further from 0: not pixels, but parts of the picture
LEAST_HELD = 0.25        # of one person's joints in view, by a box that is somebody's


def to_video_pixels(key: str, pose: Pose, info: VideoInfo, num_joints: int) -> tuple[Pose, int]:
    """The pose in pixels of the upright decoded video, and how many joints are NaN, infinite or far outside it.

    These become missing (zero): further outside than OUTSIDE_LIMIT of the longer side. Boxes end there, and scores that
    are not finite become 0. A picture of 1x1 says that the joints are parts of the picture. Raises UserError if an array
    has a wrong shape, and if the joints cannot be of this picture: one of another shape, or turned; parts of the picture
    instead of pixels; most of them far outside, or outside at all where the annotation states no size; boxes in which
    nobody is. And if they state no size while the video's pixels are not square, which most programs ignore.
    """
    with np.errstate(over="ignore"):  # beyond float32: infinite, and so missing
        pose_MTVC = np.array(pose.pose_MTVC, np.float32)[..., :2]
    if pose_MTVC.ndim != 4 or pose_MTVC.shape[2:] != (num_joints, 2):
        raise UserError(f"clip {key}: joints have shape {np.shape(pose.pose_MTVC)}, "
                        f"expected (persons, frames, {num_joints}, 2)")
    seen_MTV = np.isfinite(pose_MTVC).all(axis=-1) & (pose_MTVC != 0).any(axis=-1)
    if pose.width is None and seen_MTV.any() and info.square_width != info.stored_width:
        raise UserError(
            f"clip {key}: the video stores {info.stored_width}x{info.stored_height} with pixels that are not square and shows"
            f" {info.square_width}x{info.stored_height}; its joints may be of either: state their picture as img_shape, "
            "(height, width), or find them in a copy of the video with square pixels and pack that"
        )
    width, height = info.width if pose.width is None else pose.width, info.height if pose.height is None else pose.height
    _check_picture(key, width, height, pose_MTVC[seen_MTV], info)
    scale = np.array([info.width / width, info.height / height], np.float32)
    limit = OUTSIDE_LIMIT * max(info.width, info.height)
    with np.errstate(invalid="ignore", over="ignore"):
        pose_MTVC *= scale
        bad_MTV = ~np.isfinite(pose_MTVC).all(axis=-1)
        low, high = -limit, np.array([info.width, info.height]) + limit
        bad_MTV |= ((pose_MTVC < low) | (pose_MTVC > high)).any(axis=-1)
    if 2 * (far := int((bad_MTV & seen_MTV).sum())) > seen_MTV.sum():
        raise _of_another_size(key, f"{far} of {seen_MTV.sum()} joints lie far outside", info)
    pose_MTVC[bad_MTV] = 0.0
    score_MTV = None if pose.score_MTV is None else _scores(key, pose.score_MTV, pose_MTVC.shape[:3])
    joints_MTV2 = counted_joints(pose_MTVC, score_MTV, CROP_SCORES, info.width, info.height)
    if pose.width is None:
        _check_inside(key, joints_MTV2, info)
    box_T4 = None
    if pose.box_T4 is not None:
        box_T4 = _boxes(key, pose, scale, info, pose_MTVC.shape[1])
        given_T = np.isfinite(pose.box_T4).all(axis=1) & np.any(pose.box_T4, axis=1)
        _check_boxes(key, given_T, box_T4, joints_MTV2, info)
    people = Pose(pose_MTVC, score_MTV, box_T4, info.width, info.height, joined=pose.joined, open_end=pose.open_end,
                  first_number=pose.first_number)
    return people, int(bad_MTV.sum())


def _check_picture(key: str, width: int, height: int, seen_N2: np.ndarray, info: VideoInfo) -> None:
    """UserError unless joints of this picture can be joints of the video. `seen_N2`: those that are finite and there."""
    if (width, height) == (1, 1):
        return
    sizes = (f"clip {key}: the joints are of a picture of {width}x{height} (width x height), the video shows "
             f"{info.width}x{info.height}")
    if width < 1 or height < 1:
        raise UserError(f"{sizes}; expected img_shape, (height, width) in pixels")
    if not _same_shape(width, height, info):
        if not _same_shape(height, width, info):
            raise UserError(f"{sizes}, of another shape; expected the video that the joints were found in, or a scaled copy")
        fits_only_turned = bool((seen_N2 > (width, height)).any() and (seen_N2 <= (height, width)).all())
        raise UserError(sizes + (": img_shape is (width, height); expected (height, width)" if fits_only_turned else
                                 ", which is turned; expected img_shape as (height, width), and joints of the upright picture"))
    if len(seen_N2) and max(width, height) > 16 * RELATIVE and np.abs(seen_N2).max() <= RELATIVE:
        raise UserError(f"clip {key}: all joints lie between {seen_N2.min():.3g} and {seen_N2.max():.3g}, in a picture of "
                        f"{width}x{height}: parts of the picture; expected pixels")


def _check_inside(key: str, joints_MTVC: np.ndarray, info: VideoInfo) -> None:
    """UserError if most joints lie outside the picture: a copy of the video is smaller than the one that they were found in."""
    there_MTV = present_joints(joints_MTVC)
    outside_MTV = there_MTV & ((joints_MTVC < 0) | (joints_MTVC > (info.width, info.height))).any(axis=-1)
    if 2 * outside_MTV.sum() > there_MTV.sum():
        raise _of_another_size(key, f"{outside_MTV.sum()} of {there_MTV.sum()} joints lie outside", info)


def _of_another_size(key: str, found: str, info: VideoInfo) -> UserError:
    return UserError(f"clip {key}: {found} the {info.width}x{info.height} picture: they are in pixels of another size; "
                     "expected the video that they were found in, or img_shape, (height, width) of its picture")


def _check_boxes(key: str, given_T: np.ndarray, box_T4: np.ndarray, joints_MTV2: np.ndarray, info: VideoInfo) -> None:
    """UserError if most boxes that are given (`given_T`) hold nobody: of each person less than LEAST_HELD.

    So do x, y, width, height, parts of the picture, and pixels of a picture of another size.
    """
    picture_MTV = (joints_MTV2 >= 0).all(axis=-1) & (joints_MTV2 <= (info.width, info.height)).all(axis=-1)
    counted_MTV = present_joints(joints_MTV2) & picture_MTV
    held_MTV = (joints_MTV2 >= box_T4[:, None, :2]).all(axis=-1) & (joints_MTV2 <= box_T4[:, None, 2:]).all(axis=-1)
    held_MT, counted_MT = (counted_MTV & held_MTV).sum(axis=2), counted_MTV.sum(axis=2)
    holds_MT = (held_MT >= LEAST_HELD * counted_MT) & (counted_MT > 0)
    empty_T = given_T & ~holds_MT.any(axis=0) & counted_MT.any(axis=0)
    if 2 * empty_T.sum() > given_T.sum():
        raise UserError(f"clip {key}: {empty_T.sum()} of {given_T.sum()} boxes hold nobody's joints; expected x1, y1, x2, y2 "
                        "in pixels (bboxes of a pickle: of the video's picture)")


def _same_shape(width: int, height: int, info: VideoInfo) -> bool:
    """Whether a picture has the shape of the video's, but for rounding: as shown, or as stored where pixels are not square."""
    shapes = [(info.width, info.height)]
    if not info.orientation.turns_sides:
        shapes.append((info.stored_width, info.stored_height))
    return any(abs(height * wide / width - high) <= max(ASPECT_TOLERANCE * high, 2) for wide, high in shapes)


def stored_boxes(pose: Pose) -> np.ndarray:
    """float32 (T, 4): the annotation's boxes if one can be used, else around each frame's joints whose scores count for crops.

    `pose`: cleaned, with the size of its picture.
    """
    if pose.box_T4 is not None and pose.box_T4.any():
        return pose.box_T4
    assert pose.width is not None and pose.height is not None
    return person_boxes(counted_joints(pose.pose_MTVC, pose.score_MTV, CROP_SCORES, pose.width, pose.height))


def _scores(key: str, score_MTV: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(score_MTV) != shape:
        raise UserError(f"clip {key}: joint scores have shape {np.shape(score_MTV)}, expected {shape}")
    finite_MTV = np.nan_to_num(np.asarray(score_MTV, np.float32), posinf=0.0, neginf=0.0)
    return np.clip(finite_MTV, -FLOAT16_LIMIT, FLOAT16_LIMIT).astype(np.float16)


def _boxes(key: str, pose: Pose, scale: np.ndarray, info: VideoInfo, num_frames: int) -> np.ndarray:
    box_T4 = np.array(pose.box_T4, np.float32)
    if box_T4.shape != (num_frames, 4):
        raise UserError(f"clip {key}: boxes have shape {box_T4.shape}, expected ({num_frames}, 4)")
    if not pose.video_box:
        box_T4 *= np.concatenate([scale, scale])
    # A box may leave the picture, as its person does: its crop is black there. Cut off, it would be another crop.
    limit = OUTSIDE_LIMIT * max(info.width, info.height)
    high = np.array([info.width, info.height] * 2, np.float32) + limit
    box_T4 = np.clip(np.where(np.isfinite(box_T4).all(axis=1, keepdims=True), box_T4, 0), -limit, high)
    empty_T = (box_T4[:, 2] <= box_T4[:, 0]) | (box_T4[:, 3] <= box_T4[:, 1])
    box_T4[empty_T] = 0.0
    return box_T4
