"""Crop geometry shared by packing and by clip plans: boxes around joints, the padded square. Pure NumPy.

M persons, T frames, V joints, C coordinates (x, y first). A joint whose x and y are both zero is missing.
Boxes are (x1, y1, x2, y2) in picture pixels.
"""

from typing import Literal

import numpy as np

Box = tuple[float, float, float, float]
IntBox = tuple[int, int, int, int]
View = Literal["persons", "picture"]  # what the clips of a set show: their persons, or all that the camera saw

NOBODY: Box = (float("inf"), float("inf"), float("-inf"), float("-inf"))  # the box of no joint, among those of several clips
PADDING = 0.1          # of a box, around its centre (paper's code)
MIN_BOX_PX = 10.0      # narrower or lower than this: the skeleton is noise, use the whole picture (paper's code)
PACK_MARGIN = 1.25     # a square of 40 sampled frames left that of all frames by 11 % of its side at most (once, no record)
# Joints further outside than this part of the picture's longer side are tracking errors, not people leaving the view;
# boxes end there.
OUTSIDE_LIMIT = 0.5
# Least score of a joint that a crop is put around, inside the picture and outside it
# (pipeline/README.md, "What a clip looks like").
CROP_SCORES = (0.1, 0.3)


def present_joints(joints_MTVC: np.ndarray) -> np.ndarray:
    """bool (M, T, V): True where the joint is not missing."""
    return (joints_MTVC[..., :2] != 0).any(axis=-1)


def counted_joints(joints_MTVC: np.ndarray, score_MTV: np.ndarray | None, least: tuple[float, float],
                   width: int, height: int) -> np.ndarray:
    """The joints that a crop is put around: those whose score is too low for their place become missing (a copy, if any).

    `least`: lowest score that counts inside a picture of width x height, and outside it, where a detector guesses. Without
    scores all joints count, and so they do if none would be left.
    """
    if score_MTV is None:
        return joints_MTVC
    xy_MTV2 = joints_MTVC[..., :2]
    outside_MTV = ((xy_MTV2 < 0) | (xy_MTV2 > (width, height))).any(axis=-1)
    inside_least, outside_least = np.array(least, score_MTV.dtype)  # a score of 0.3 stored as float16 is not below 0.3
    low_MTV = score_MTV < np.where(outside_MTV, outside_least, inside_least)
    if not (present_joints(joints_MTVC) & ~low_MTV).any():
        return joints_MTVC
    return np.where(low_MTV[..., None], 0, joints_MTVC)


def joint_box(joints_MTVC: np.ndarray, *, each_coordinate: bool = False) -> Box | None:
    """Smallest box around all non-missing joints of all persons and frames; None if there is none.

    `each_coordinate`: as the paper's code, which takes any zero for missing, also the x of a joint on the left edge.
    """
    if each_coordinate:
        xy_N2 = joints_MTVC[..., :2].reshape(-1, 2)
        return _outer_box(xy_N2, xy_N2, each_coordinate)
    if not len(joints_MTVC):
        return None
    x1, y1, x2, y2 = joint_boxes(joints_MTVC, np.zeros(1, np.int64))[0].tolist()
    return (x1, y1, x2, y2) if x1 <= x2 else None


def joint_boxes(joints_NTVC: np.ndarray, first_B: np.ndarray) -> np.ndarray:
    """(B, 4), `joint_box` of several clips at once; `NOBODY` where there is none.

    The persons of all clips follow each other, those of clip b from `first_B[b]` on, at least one per clip.
    """
    x_NK, y_NK = (joints_NTVC[..., axis].reshape(len(joints_NTVC), -1) for axis in (0, 1))
    there_NK = (x_NK != 0) | (y_NK != 0)
    low_N2 = np.stack([np.where(there_NK, xy_NK, np.inf).min(axis=1, initial=np.inf) for xy_NK in (x_NK, y_NK)], axis=1)
    high_N2 = np.stack([np.where(there_NK, xy_NK, -np.inf).max(axis=1, initial=-np.inf) for xy_NK in (x_NK, y_NK)], axis=1)
    return np.concatenate([np.minimum.reduceat(low_N2, first_B), np.maximum.reduceat(high_N2, first_B)], axis=1)


def _outer_box(low_N2: np.ndarray, high_N2: np.ndarray, each_coordinate: bool) -> Box | None:
    """Box of each axis's smallest `low` and largest `high`, without rows that are all zero, or without any zero."""
    edges = [*low_N2.T, *high_N2.T]
    used_N = ((low_N2 != 0) | (high_N2 != 0)).any(axis=1)
    low_x, low_y, high_x, high_y = (values[values != 0 if each_coordinate else used_N] for values in edges)
    if not (low_x.size and low_y.size and high_x.size and high_y.size):
        return None
    return float(low_x.min()), float(low_y.min()), float(high_x.max()), float(high_y.max())


def person_boxes(joints_MTVC: np.ndarray) -> np.ndarray:
    """float32 (T, 4): box around all persons' joints frame by frame; zeros where nobody is."""
    present_MTV1 = present_joints(joints_MTVC)[..., None]
    low_T2 = np.where(present_MTV1, joints_MTVC[..., :2], np.inf).min(axis=(0, 2), initial=np.inf)
    high_T2 = np.where(present_MTV1, joints_MTVC[..., :2], -np.inf).max(axis=(0, 2), initial=-np.inf)
    box_T4 = np.concatenate([low_T2, high_T2], axis=1)
    return np.where(np.isfinite(box_T4), box_T4, 0.0).astype(np.float32)


def union_box(box_T4: np.ndarray, *, each_coordinate: bool = False) -> Box | None:
    """Smallest box around all boxes that are not all zero; None if there is none.

    `each_coordinate`: as the paper's code, which leaves out every coordinate that is zero, also a box's left edge at 0.
    """
    return _outer_box(box_T4[:, :2], box_T4[:, 2:], each_coordinate)


def crop_square(box: Box | None, width: int, height: int) -> IntBox:
    """The crop of a clip in whole pixels; it may leave the picture (black there).

    No box, or one narrower or lower than 10 px: the whole picture (0, 0, width, height), which is not a square.
    Else the box grown by PADDING around its centre, its shorter side grown to the longer one, edges truncated toward zero
    (so the sides may differ by one pixel), as the paper's code does it. Computed in its precision, float32: there
    100 - 50 * 1.1 is 45, in float64 a little less, and truncation would make that 44.
    """
    crop_B4 = crop_squares(np.array([box or NOBODY]), np.array([[width, height]]), PADDING)
    x1, y1, x2, y2 = map(int, crop_B4[0].tolist())
    return x1, y1, x2, y2


def crop_squares(box_B4: np.ndarray, picture_B2: np.ndarray, padding: float) -> np.ndarray:
    """float64 (B, 4), `crop_square` of several clips at once: their boxes (or `NOBODY`), widths and heights."""
    two, grown = np.float32(2), np.float32(1 + padding)
    with np.errstate(over="ignore", invalid="ignore"):  # of joints that no picture holds: not a number, or infinite
        low_B2, high_B2 = np.split(box_B4.astype(np.float32), 2, axis=1)
        side_B2 = high_B2 - low_B2
        half_B1 = (side_B2 / two * grown).max(axis=1, keepdims=True)
        centre_B2 = (low_B2 + high_B2) / two
        square_B4 = np.trunc(np.concatenate([centre_B2 - half_B1, centre_B2 + half_B1], axis=1)) + 0.0  # never -0
    whole_B4 = np.concatenate([np.zeros_like(picture_B2), picture_B2], axis=1)
    return np.where((side_B2 < MIN_BOX_PX).any(axis=1, keepdims=True), whole_B4, square_B4.astype(np.float64))


def picture_square(width: int, height: int) -> Box:
    """The smallest square around the whole picture, with its centre: nothing is lost, its shape stays, the rest is black."""
    side = max(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def packed_square(box: Box | None, width: int, height: int, size: int) -> tuple[int, int, int]:
    """(x, y, side) in whole source pixels of the square that is stored for a clip.

    It is PACK_MARGIN times the padded square of `box` (the union over the whole clip), less what lies outside the
    picture on all sides anyway, and at least `size` pixels: a small person is stored at the source's own resolution
    with more surroundings, never enlarged. Pixels of the square outside the picture are black.
    """
    x1, y1, x2, y2 = crop_square(box, width, height)
    grow = (PACK_MARGIN - 1) / 2 * max(x2 - x1, y2 - y1)
    left, right = max(x1 - grow, 0), min(x2 + grow, width)
    top, bottom = max(y1 - grow, 0), min(y2 + grow, height)
    if right <= left or bottom <= top:  # nobody inside the picture
        left, top, right, bottom = 0, 0, width, height
    side = max(int(np.ceil(right) - np.floor(left)), int(np.ceil(bottom) - np.floor(top)), size)
    x = round((left + right) / 2 - side / 2)
    y = round((top + bottom) / 2 - side / 2)
    return x, y, side


def packed_to_source(x: int, y: int, side: int, size: int) -> np.ndarray:
    """float64 (2, 3): packed coordinates -> source coordinates; the centre of pixel (i, j) is (j + 0.5, i + 0.5)."""
    scale = side / size
    return np.array([[scale, 0.0, x], [0.0, scale, y]])
