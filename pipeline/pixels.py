"""Applies the augmentation that `augment.py` drew for a clip: colour jitter and random erasing, on the frames' device.

T frames, H W picture, C colours.
"""

import numpy as np
import torch
from torch import Tensor

from svdata2vec.pipeline.augment import PixelAugment

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def apply_pixel_augment(video_THWC: Tensor, augment: PixelAugment) -> None:
    """Change uint8 frames in place: brightness, contrast (around the clip's mean grey), saturation, hue, then erase."""
    if augment.changes_colour:
        matrix_33, shift_3 = _colour_map(video_THWC, augment)
        rgb_N3 = video_THWC.reshape(-1, 3).to(torch.float32)
        changed_N3 = torch.addmm(shift_3, rgb_N3, matrix_33.T).round_().clamp_(0, 255)
        video_THWC.copy_(changed_N3.to(torch.uint8).view_as(video_THWC))
    if augment.erase is not None:
        x1, y1, x2, y2 = augment.erase
        video_THWC[:, y1:y2, x1:x2] = 0


def _colour_map(video_THWC: Tensor, augment: PixelAugment) -> tuple[Tensor, Tensor]:
    """All four changes are affine in RGB, so they are one 3x3 matrix and one shift per clip.

    The shift depends on the clip's mean grey, which stays on the frames' device: nothing here waits for a GPU.
    """
    grey_33 = np.tile(np.array(GREY_WEIGHTS), (3, 1))
    saturate_33 = augment.saturation * np.eye(3) + (1 - augment.saturation) * grey_33
    after_33 = _hue_rotation(augment.hue) @ saturate_33
    matrix_33 = after_33 * (augment.brightness * augment.contrast)
    shift_per_grey_3 = after_33 @ np.full(3, (1 - augment.contrast) * augment.brightness)
    host_53 = torch.from_numpy(np.stack([*matrix_33, shift_per_grey_3, GREY_WEIGHTS]))
    *matrix, per_grey_3, grey_3 = host_53.to(video_THWC.device, non_blocking=True)
    sampled_N3 = video_THWC[:, ::4, ::4].reshape(-1, 3).to(torch.float32)  # a sixteenth of the pixels is enough for a mean
    mean_grey = sampled_N3.mean(0) @ grey_3.float()
    return torch.stack(matrix).float(), (mean_grey.double() * per_grey_3).float()


def _hue_rotation(turn: float) -> np.ndarray:
    """(3, 3) rotation of the RGB cube around its grey diagonal by `turn` turns (Rodrigues' formula)."""
    angle = 2 * np.pi * turn
    axis_3 = np.full(3, 1 / np.sqrt(3))
    cross_33 = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross_33 + (1 - np.cos(angle)) * np.outer(axis_3, axis_3)
