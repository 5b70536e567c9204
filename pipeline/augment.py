"""Optional pixel augmentations: colour jitter and random erasing. Drawn once per clip, applied to every frame alike.

Not part of the method (off by default). The parameters are part of the clip plan, so they are keyed like everything
else; the pixels are changed after the geometry, on the device where the frames are. T frames, H W picture.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
ERASE_ATTEMPTS = 10
ERASE_ASPECT = (0.3, 1 / 0.3)  # Zhong et al., "Random Erasing Data Augmentation", section 3


class AugmentConfig(Protocol):
    """The fields of `PlanConfig` that are read here."""

    @property
    def size(self) -> int: ...
    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def hue(self) -> float: ...
    @property
    def erase_probability(self) -> float: ...
    @property
    def erase_area(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class PixelAugment:
    """Factors (1 = unchanged), hue turn (0 = unchanged) and the erased window (x1, y1, x2, y2) in output pixels."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    erase: tuple[int, int, int, int] | None = None

    @property
    def changes_colour(self) -> bool:
        return (self.brightness, self.contrast, self.saturation, self.hue) != (1.0, 1.0, 1.0, 0.0)


def draw_pixel_augment(generator: np.random.Generator, config: AugmentConfig) -> PixelAugment | None:
    """Draw the parameters of one clip; None when every option is off."""
    if not (config.brightness or config.contrast or config.saturation or config.hue or config.erase_probability):
        return None
    brightness, contrast, saturation = (
        float(generator.uniform(1 - width, 1 + width))
        for width in (config.brightness, config.contrast, config.saturation)
    )
    hue = float(generator.uniform(-config.hue, config.hue))
    erase = _draw_erase(generator, config) if generator.random() < config.erase_probability else None
    return PixelAugment(brightness, contrast, saturation, hue, erase)


def _draw_erase(generator: np.random.Generator, config: AugmentConfig) -> tuple[int, int, int, int] | None:
    for _ in range(ERASE_ATTEMPTS):
        area = generator.uniform(*config.erase_area) * config.size**2
        aspect = float(np.exp(generator.uniform(*np.log(ERASE_ASPECT).tolist())))
        width, height = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < width < config.size and 0 < height < config.size:
            x, y = (int(generator.integers(config.size - side + 1)) for side in (width, height))
            return x, y, x + width, y + height
    return None


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
    """All four changes are affine in RGB, so they are one 3x3 matrix and one shift per clip."""
    grey_33 = np.tile(np.array(GREY_WEIGHTS), (3, 1))
    saturate_33 = augment.saturation * np.eye(3) + (1 - augment.saturation) * grey_33
    after_33 = _hue_rotation(augment.hue) @ saturate_33
    matrix_33 = after_33 * (augment.brightness * augment.contrast)
    sampled_N3 = video_THWC[:, ::4, ::4].reshape(-1, 3).to(torch.float32)  # a sixteenth is enough for a mean
    mean_grey = float(sampled_N3.mean(0).cpu() @ torch.tensor(GREY_WEIGHTS)) * augment.brightness
    shift_3 = after_33 @ np.full(3, (1 - augment.contrast) * mean_grey)
    device = video_THWC.device
    return torch.from_numpy(matrix_33).to(device, torch.float32), torch.from_numpy(shift_3).to(device, torch.float32)


def _hue_rotation(turn: float) -> np.ndarray:
    """(3, 3) rotation of the RGB cube around its grey diagonal by `turn` turns (Rodrigues' formula)."""
    angle = 2 * np.pi * turn
    axis_3 = np.full(3, 1 / np.sqrt(3))
    cross_33 = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross_33 + (1 - np.cos(angle)) * np.outer(axis_3, axis_3)
