"""How a video's stored picture becomes the one that is shown: turned, mirrored, its pixels made square."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Orientation:
    """Mirrored left to right first, then turned counter-clockwise by `rotation` (0, 90, 180, 270) degrees."""

    rotation: int = 0
    mirrored: bool = False

    @classmethod
    def of(cls, frame: Any) -> "Orientation":
        """What the display matrix of a decoded frame says, to the nearest quarter turn; upright if it has none.

        The matrix (ISO 14496-12, libavutil/display.h: nine 32-bit numbers, of which the first two of every row of three
        count here) maps the stored x axis to (a, b), the y axis to (c, d); y runs down.
        """
        stored = frame.side_data.get("DISPLAYMATRIX")
        if stored is None:
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()
        mirrored = a * d - b * c < 0
        if mirrored:  # what remains after the mirror is a turn
            a, b = -a, -b
        clockwise = round(math.degrees(math.atan2(b, a)) / 90)
        return cls(-clockwise * 90 % 360, mirrored)

    @property
    def turns_sides(self) -> bool:
        """Whether width and height are swapped."""
        return self.rotation % 180 == 90

    def apply(self, picture_HWC: np.ndarray) -> np.ndarray:
        """The picture as it is shown; a view."""
        return np.rot90(picture_HWC[:, ::-1] if self.mirrored else picture_HWC, self.rotation // 90)

    def __str__(self) -> str:
        """`mirrored and turned by 90 degrees`; empty if it is neither."""
        turned = f"turned by {self.rotation} degrees" if self.rotation else ""
        return " and ".join(filter(None, ("mirrored" if self.mirrored else "", turned)))
