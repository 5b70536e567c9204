"""Bytes that `gather_blocks` moves, computed: the bytes of stored frames that it touches, and those that it writes.

P places along one side of the packed picture, E bytes of a stored frame.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svdata2vec.model.video_encoder import STEM_KERNEL

WINDOW = STEM_KERNEL[0]  # frames


def touched(form: Sequence[int], size: int, map_4: Sequence[int]) -> NDArray[np.bool_]:
    """bool (E,): the bytes of a stored frame that one clip's window reads. form, map_4: as in `gather_blocks`."""
    side, luma_bits, chroma_bits = form
    columns, rows = (_places(side, size, *map_4[first : first + 2]) for first in (0, 2))
    half_columns, half_rows = columns.reshape(-1, 2).any(axis=1), rows.reshape(-1, 2).any(axis=1)
    luma, chroma = _plane(columns, rows, luma_bits), _plane(half_columns, half_rows, chroma_bits)
    return np.concatenate([luma, chroma, chroma])


def _places(side: int, size: int, scale: int, shift: int) -> NDArray[np.bool_]:
    """bool (P,): pixels between which the output's pixels lie, along one side."""
    first = (scale * (2 * np.arange(size) + 1) + shift) >> 32
    found = np.concatenate([first, first + 1])
    used = np.zeros(side, bool)
    used[found[(found >= 0) & (found < side)]] = True
    return used


def _plane(columns: Any, rows: Any, bits: int) -> NDArray[np.bool_]:
    """bool: the bytes of a plane's ends, low bits and high bits that belong to these columns and rows."""
    fours, eights = columns.reshape(-1, 4).any(axis=1), columns.reshape(-1, 8).any(axis=1)
    ends = np.repeat(np.outer(rows.reshape(-1, 4).any(axis=1), fours).ravel(), 2)
    parts = [ends, np.outer(rows, fours).ravel()]
    return np.concatenate([*parts, np.outer(rows, eights).ravel()] if bits == 3 else parts)


def frames_read(keep_BK: NDArray[np.int64], num_frames: int) -> list[int]:
    """Number of distinct frames in each clip's windows."""
    near = keep_BK[:, :, None] + np.arange(WINDOW) - WINDOW // 2
    return [len(np.unique(row[(row >= 0) & (row < num_frames)])) for row in near]
