"""Optional training augmentation: its options, and what is drawn from them. Off by default, no part of the method.

Everything is drawn once per clip and holds for all its frames. The draws belong to the clip plan, so they are keyed like
all others; `pixels.py` carries them out. Imports no torch: the command line reads these options.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svdata2vec.shards.errors import UserError

ERASE_ATTEMPTS = 10
ERASE_ASPECT = (0.3, 1 / 0.3)  # Zhong et al., "Random Erasing Data Augmentation", section 3


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation beyond the paper's, all off by default; drawn once per clip and applied to all its frames."""

    temporal_crop: tuple[float, float] = (1.0, 1.0)
    """Share of the clip that frames are drawn from, from .. to."""
    brightness: float = 0.0
    """Largest change of brightness: its factor is drawn from 1 - b .. 1 + b."""
    contrast: float = 0.0
    """Largest change of contrast."""
    saturation: float = 0.0
    """Largest change of saturation."""
    hue: float = 0.0
    """Largest turn of the colour wheel; 0.5 = half a turn."""
    erase_probability: float = 0.0
    """How often a rectangle of the picture is blackened."""
    erase_area: tuple[float, float] = (0.02, 0.33)
    """Share of the picture that is blackened, from .. to."""

    def check(self) -> None:
        """Raise UserError for a value out of range. The configuration that holds this one calls it: it knows its name."""
        for name in ("temporal_crop", "erase_area"):
            check_shares(f"augment.{name}", getattr(self, name))
        for name in ("brightness", "contrast", "saturation", "erase_probability"):
            check_number(f"augment.{name}", getattr(self, name), 0, 1)
        check_number("augment.hue", self.hue, 0, 0.5)

    @property
    def changes_pixels(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.erase_probability))


def check_shares(name: str, shares: tuple[float, float]) -> None:
    """Raise UserError unless `shares` is a range within 0..1, without 0."""
    if not 0 < shares[0] <= shares[1] <= 1:
        raise UserError(f"{name} is {shares}: expected 0 < smallest <= largest <= 1")


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, whole: bool = False) -> None:
    """Raise UserError unless `value` is a finite number, or a `whole` one, with low <= value <= high."""
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or value == math.inf:
        kind = "a whole number" if whole else "a number"
        expected = f"{low} or more, {kind}" if high == math.inf else f"{kind} from {low} to {high}"
        raise UserError(f"{name} is {value!r}: expected {expected}")


def check_known(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of the known ones."""
    if value not in known:
        raise UserError(f"{name} is {value!r}: expected {' or '.join(map(repr, known))}")


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


def draw_pixel_augment(generator: np.random.Generator, config: AugmentConfig, size: int) -> PixelAugment | None:
    """Draw what is done to the `size` x `size` pictures of one clip; None when every option is off."""
    if not config.changes_pixels:
        return None
    brightness, contrast, saturation = (
        float(generator.uniform(1 - width, 1 + width))
        for width in (config.brightness, config.contrast, config.saturation)
    )
    hue = float(generator.uniform(-config.hue, config.hue))
    erase = _draw_erase(generator, config, size) if generator.random() < config.erase_probability else None
    return PixelAugment(brightness, contrast, saturation, hue, erase)


def _draw_erase(generator: np.random.Generator, config: AugmentConfig, size: int) -> tuple[int, int, int, int] | None:
    for _ in range(ERASE_ATTEMPTS):
        area = generator.uniform(*config.erase_area) * size**2
        aspect = float(np.exp(generator.uniform(*np.log(ERASE_ASPECT).tolist())))
        width, height = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < width < size and 0 < height < size:
            x, y = (int(generator.integers(size - side + 1)) for side in (width, height))
            return x, y, x + width, y + height
    return None
