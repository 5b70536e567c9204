"""Optional training augmentation: its options and random draws. Off by default, not part of the method.

Everything is drawn once per clip and holds for all its frames. The draws belong to the clip plan, so they are keyed like
all others; `pixels.py` applies them. Imports no torch: the command line reads these options.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from svdata2vec.shards.ranges import ABOVE_0, Range, Share

Shares = Annotated[tuple[float, float], Range(ABOVE_0, 1, rising=True)]  # from .. to

ERASE_ATTEMPTS = 10
ERASE_ASPECT = (0.3, 1 / 0.3)  # Zhong et al., "Random Erasing Data Augmentation", section 3


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation beyond the paper's, all off by default; drawn once per clip and applied to all its frames.

    Checked by the configuration that contains it, which knows its name for messages.
    """

    temporal_crop: Shares = (1.0, 1.0)
    """Share of the clip that frames are drawn from, from .. to."""
    brightness: Share = 0.0
    """Largest change of brightness: its factor is drawn from 1 - b .. 1 + b."""
    contrast: Share = 0.0
    """Largest change of contrast."""
    saturation: Share = 0.0
    """Largest change of saturation."""
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    """Largest turn of the colour wheel; 0.5 = half a turn."""
    erase_probability: Share = 0.0
    """How often a rectangle of the picture is blackened."""
    erase_area: Shares = (0.02, 0.33)
    """Share of the picture that is blackened, from .. to."""

    @property
    def changes_pixels(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.erase_probability))


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
    """Draw the changes to the `size` x `size` pictures of one clip; None if every option is off."""
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
