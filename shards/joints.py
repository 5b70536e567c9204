"""Brings annotated joints and boxes into the pixels of the decoded video and marks what cannot be true as missing.

The one place that cleans joints, for packing and for `predict --poses`. M persons, T annotated frames, V joints.
"""

import numpy as np

from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.boxes import CROP_SCORES, OUTSIDE_LIMIT, counted_joints, person_boxes
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.video import VideoInfo

FLOAT16_LIMIT = 65504.0


def to_video_pixels(key: str, pose: Pose, info: VideoInfo, num_joints: int) -> tuple[Pose, int]:
    """The pose in pixels of the upright decoded video, and how many joints are NaN, infinite or far outside it.

    These become missing (zero): further outside than OUTSIDE_LIMIT of the longer side. Boxes end there, and scores that
    are not finite become 0. Raises UserError if an array has a wrong shape.
    """
    with np.errstate(over="ignore"):  # beyond float32: infinite, and so missing
        pose_MTVC = np.array(pose.pose_MTVC, np.float32)[..., :2]
    if pose_MTVC.ndim != 4 or pose_MTVC.shape[2:] != (num_joints, 2):
        raise UserError(f"clip {key}: joints have shape {np.shape(pose.pose_MTVC)}, "
                        f"expected (persons, frames, {num_joints}, 2)")
    scale = np.array([info.width / (pose.width or info.width), info.height / (pose.height or info.height)], np.float32)
    limit = OUTSIDE_LIMIT * max(info.width, info.height)
    with np.errstate(invalid="ignore", over="ignore"):
        pose_MTVC *= scale
        bad_MTV = ~np.isfinite(pose_MTVC).all(axis=-1)
        low, high = -limit, np.array([info.width, info.height]) + limit
        bad_MTV |= ((pose_MTVC < low) | (pose_MTVC > high)).any(axis=-1)
    pose_MTVC[bad_MTV] = 0.0
    score_MTV = None if pose.score_MTV is None else _scores(key, pose.score_MTV, pose_MTVC.shape[:3])
    box_T4 = None if pose.box_T4 is None else _boxes(key, pose, scale, info, pose_MTVC.shape[1])
    return Pose(pose_MTVC, score_MTV, box_T4, info.width, info.height, joined=pose.joined), int(bad_MTV.sum())


def stored_boxes(pose: Pose) -> np.ndarray:
    """float32 (T, 4): the boxes of the annotation, else around the joints of each frame whose scores count for a crop.

    `pose`: cleaned, with the size of its picture.
    """
    if pose.box_T4 is not None:
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
