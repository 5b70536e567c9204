"""Encodes pictures in blocks (`shards/blocks.py`): every block's ends by least squares, in up to 1.5 times the time of JPEGs.

NumPy processes all planes at once, in memory that is reused. N blocks of Y, then Cb, then Cr, each row by row; X, Y column and
row of a pixel in its block: the upper left pixels of all blocks, then those below them, and so on. P = 4N pixels, a row of
every block.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.blocks import BLOCK, BlockFormat, Bytes

Words = NDArray[np.uint16]
Floats = NDArray[np.floating]  # of 32 bits
Copies: TypeAlias = list[tuple[NDArray[Any], NDArray[Any]]]
_SCALE_BITS = 13  # an index times a share of the span fits into 16 bits: 7 * 2**13 + 2**12 < 2**16
# By bits: how far inside its darkest and brightest pixel a block's ends start, in 256ths of the span; the best of 0 to 32 on
# real pictures. A second search for the nearest index after the fit gained 0.05 dB, for half as much time again
# (tried once, 2026-11-26, no record).
_INSET = {2: 20, 3: 8}


class BlockFrameEncoder:
    """Encodes frames (S, S, 3) uint8 RGB to (frame_bytes,) bytes each; the result is in the same memory each time."""

    def __init__(self, layout: BlockFormat) -> None:
        side = layout.side
        self.layout = layout
        self._coded = np.empty(layout.frame_bytes, np.uint8)
        self._luma_SS = np.empty((side, side), np.uint8)
        self._rgb_HH3, self._ycc_HH3 = (np.empty((side // 2, side // 2, 3), np.uint8) for _ in range(2))
        self._half_3HH = np.empty((3, side // 2, side // 2), np.uint8)  # Y, Cr, Cb of half the side
        self._fit = _BlockFit(layout, (self._luma_SS, self._half_3HH[2], self._half_3HH[1]), self._coded)

    def __call__(self, frame_SS3: Bytes) -> Bytes:
        """The coded frame."""
        cv2.cvtColor(frame_SS3, cv2.COLOR_RGB2GRAY, dst=self._luma_SS)  # the Y of BT.601
        half = self._rgb_HH3.shape[:2]
        cv2.resize(frame_SS3, half, dst=self._rgb_HH3, interpolation=cv2.INTER_AREA)
        cv2.cvtColor(self._rgb_HH3, cv2.COLOR_RGB2YCrCb, dst=self._ycc_HH3)
        cv2.split(self._ycc_HH3, [*self._half_3HH])
        self._fit()
        return self._coded


class _BlockFit:
    """Indices and ends of all blocks of a frame."""

    def __init__(self, layout: BlockFormat, planes: Sequence[Bytes], coded: Bytes) -> None:
        """planes: the pixels to read. coded: the frame to write. Both are the same memory at every call."""
        counts = [(plane.side // BLOCK) ** 2 for plane in layout.planes]
        blocks = sum(counts)
        self._inset_N = np.repeat(np.array([_INSET[plane.bits] for plane in layout.planes], np.uint16), counts)
        self._highest_N = np.repeat(np.array([2**plane.bits - 1 for plane in layout.planes], np.float32), counts)
        # Little memory, reused while it is in the CPU's cache: the copied rows are no longer needed when levels are written,
        # nor are pixels when bits are.
        self._pixel_XYN, self._index_XYN = (np.empty((BLOCK, BLOCK, blocks), np.uint8) for _ in range(2))
        self._level_XYN, self._value_XYN = (np.empty((BLOCK, BLOCK, blocks), np.uint16) for _ in range(2))
        self._given_4P = self._level_XYN.reshape(-1).view(np.uint8)[: BLOCK * BLOCK * blocks].reshape(BLOCK, -1)
        self._packed_YN, self._third_YN = (np.empty((BLOCK, blocks), np.uint8) for _ in range(2))
        self._ends_N2 = np.empty((blocks, 2), np.uint8)
        self._zero_1N: Floats = np.zeros((1, blocks), np.float32)
        self._per_level_N = np.empty(blocks, np.uint16)
        span = np.maximum(np.arange(256), 1)  # flat blocks have index 0, as no pixel is above their end
        shares = [((2**plane.bits - 1 << _SCALE_BITS) / span + 0.5).astype(np.uint16) for plane in layout.planes[:2]]
        self._shares = [(slice(counts[0]), shares[0]), (slice(counts[0], None), shares[1])]  # luma, chroma
        self._taken, self._written, self._thirds = self._copies(layout, planes, coded)

    def _copies(self, layout: BlockFormat, planes: Sequence[Bytes], coded: Bytes) -> tuple[Copies, Copies, Copies]:
        """Views (to, from): of each plane's pixels, of its sections in the frame, and of its third bits (of two blocks)."""
        taken: Copies = []
        written: Copies = []
        thirds: Copies = []
        start = 0
        for plane, pixels in zip(layout.planes, planes, strict=True):
            rows, stop = plane.side // BLOCK, start + (plane.side // BLOCK) ** 2
            given_4RS = self._given_4P[:, BLOCK * start : BLOCK * stop].reshape(BLOCK, rows, plane.side)
            packed_YRC, third_YRC = (
                byte_YN[:, start:stop].reshape(BLOCK, rows, rows) for byte_YN in (self._packed_YN, self._third_YN)
            )
            ends, low, high = plane.sections(coded)
            taken.append((given_4RS, pixels.reshape(rows, BLOCK, plane.side).transpose(1, 0, 2)))
            written.append((ends.reshape(-1, 2), self._ends_N2[start:stop]))
            written.append((low.reshape(rows, BLOCK, rows), packed_YRC.transpose(1, 0, 2)))
            if high is not None:
                thirds.append((high.reshape(rows, BLOCK, -1), third_YRC.view(np.uint16).transpose(1, 0, 2)))
            start = stop
        return taken, written, thirds

    def __call__(self) -> None:
        """Find indices (the nearest of even levels between ends just inside the extremes), then fit the ends to them."""
        for given_4RS, pixels_4RS in self._taken:
            np.copyto(given_4RS, pixels_4RS)
        width = self._given_4P.size // BLOCK
        cv2.split(self._given_4P.reshape(1, width, BLOCK), [pixel_YN.reshape(1, width) for pixel_YN in self._pixel_XYN])
        first_N, last_N = (of.reduce(self._pixel_XYN, axis=(0, 1)) for of in (np.minimum, np.maximum))
        inset_N = ((last_N - first_N) * self._inset_N >> np.uint16(8)).astype(np.uint8)
        self._assign(first_N + inset_N, last_N - inset_N)
        self._fit_ends()
        self._write()

    def _assign(self, first_N: Bytes, last_N: Bytes) -> None:
        """The index of every pixel: the nearest level between the two ends, of which the first is the lower one."""
        span_N, above, level = last_N - first_N, self._index_XYN, self._level_XYN
        np.maximum(self._pixel_XYN, first_N, out=above)
        np.minimum(above, last_N, out=above)
        np.subtract(above, first_N, out=level)
        for blocks, shares in self._shares:
            self._per_level_N[blocks] = cv2.LUT(span_N[None, blocks], shares)[0]
        np.multiply(level, self._per_level_N, out=level)
        np.add(level, np.uint16(1 << (_SCALE_BITS - 1)), out=level)
        np.right_shift(level, np.uint16(_SCALE_BITS), out=level)
        np.copyto(self._index_XYN, level, casting="unsafe")

    def _fit_ends(self) -> None:
        """The ends of each block: those of the line through (index, pixel) with the least squared error."""
        index, value, square = self._index_XYN, self._value_XYN, self._pixel_XYN
        np.copyto(value, self._pixel_XYN)
        count, v_N = np.float32(BLOCK * BLOCK), _sum(value)  # at most 16 * 255
        np.multiply(self._level_XYN, value, out=value)
        iv_N, i_N = _sum(value), _sum(index)  # at most 16 * 7 * 255, and 16 * 7
        np.multiply(index, index, out=square)
        square_YN = np.add.reduce(square, axis=0, dtype=np.uint8)  # at most 4 * 49
        ii_N = np.add.reduce(square_YN, axis=0, dtype=np.uint16).astype(np.float32)
        spread_N = np.maximum(count * ii_N - i_N * i_N, np.float32(1))  # flat: all indices are 0, and the slope, too
        slope_N = (count * iv_N - i_N * v_N) / spread_N
        start_N = (v_N - slope_N * i_N) / count
        slope_N *= self._highest_N
        # OpenCV's byte sums round and saturate to 0..255
        for place, end_N in enumerate((self._zero_1N, slope_N[None])):
            self._ends_N2[:, place] = cv2.add(start_N[None], end_N, dtype=cv2.CV_8U)

    def _write(self) -> None:
        """Write all planes into the frame."""
        bits_XYN = self._pixel_XYN
        np.bitwise_and(self._index_XYN, np.uint8(3), out=bits_XYN)
        _side_by_side(bits_XYN, 4, self._packed_YN)
        for place, value in self._written:
            np.copyto(place, value)
        if self._thirds:
            np.greater(self._index_XYN, np.uint8(3), out=bits_XYN.view(np.bool_))
            _side_by_side(bits_XYN, 2, self._third_YN)
        for place, pair in self._thirds:  # the bits of two blocks, in the lower half of a byte each
            np.copyto(place, pair | pair >> np.uint16(4), casting="unsafe")


def _sum(value_XYN: Bytes | Words) -> Floats:
    """(N,) sum of every block's numbers, which must fit into their type."""
    return np.add.reduce(value_XYN, axis=(0, 1), dtype=value_XYN.dtype).astype(np.float32)


def _side_by_side(value_XYN: Bytes, scale: int, out_YN: Bytes) -> None:
    """Combine the four numbers below `scale` in each row of a block into a byte, the first one lowest. Changes `value_XYN`."""
    odd_2YN = value_XYN[1::2]
    np.multiply(odd_2YN, np.uint8(scale), out=odd_2YN)
    np.add(odd_2YN, value_XYN[::2], out=odd_2YN)
    np.multiply(odd_2YN[1], np.uint8(scale * scale), out=out_YN)
    np.add(out_YN, odd_2YN[0], out=out_YN)
