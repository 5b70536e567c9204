"""Writes pictures in blocks (`shards/blocks.py`): every block's ends by least squares, about as fast as JPEGs.

NumPy on all planes at once, in memory that is kept. N blocks of Y, then Cb, then Cr, each row by row; 4 rows of pixels, P = 4N
in each: the first pixel rows of all blocks, then their second ones, and so on.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.blocks import BLOCK, BlockFormat, Bytes, spread_bytes, spread_words

Words = NDArray[np.uint16]
Floats = NDArray[np.floating]  # of 32 bits
Copies: TypeAlias = list[tuple[NDArray[Any], NDArray[Any]]]
Array = TypeVar("Array", Bytes, Words)
_SCALE_BITS = 13  # an index times a share of the span fits into 16 bits: 7 * 2**13 + 2**12 < 2**16
# How far inside its darkest and brightest pixel, in 256ths of the span, a block's ends begin, by bits: of 0 to 32 the best on
# real pictures. With a second search for the nearest index after the fit they come 0.05 dB closer, for half as much time again.
_INSET = {2: 20, 3: 8}
_SUM_WORDS, _SUM_BYTES = np.uint64(0x0001000100010001), np.uint32(0x01010101)  # times four: their sum is the highest one
_PACK4 = np.uint32(0x01041040)  # times four bytes of 0..3: they lie side by side in the highest


class BlockEncoder:
    """Frames (S, S, 3) uint8 RGB to (frame_bytes,) bytes each, in the same memory each time."""

    def __init__(self, layout: BlockFormat) -> None:
        side = layout.side
        self.layout = layout
        self._coded = np.empty(layout.frame_bytes, np.uint8)
        self._luma_SS = np.empty((side, side), np.uint8)
        self._rgb_HH3, self._ycc_HH3 = (np.empty((side // 2, side // 2, 3), np.uint8) for _ in range(2))
        self._chroma_2HH = np.empty((2, side // 2, side // 2), np.uint8)  # of half the side
        self._fit = _BlockFit(layout, (self._luma_SS, *self._chroma_2HH), self._coded)

    def __call__(self, frame_SS3: Bytes) -> Bytes:
        """The coded frame."""
        cv2.cvtColor(frame_SS3, cv2.COLOR_RGB2GRAY, dst=self._luma_SS)  # the Y of BT.601
        half = self._rgb_HH3.shape[:2]
        cv2.resize(frame_SS3, half, dst=self._rgb_HH3, interpolation=cv2.INTER_AREA)
        cv2.cvtColor(self._rgb_HH3, cv2.COLOR_RGB2YCrCb, dst=self._ycc_HH3)
        cv2.extractChannel(self._ycc_HH3, 2, self._chroma_2HH[0])
        cv2.extractChannel(self._ycc_HH3, 1, self._chroma_2HH[1])
        self._fit()
        return self._coded


class _BlockFit:
    """Indices and ends of all blocks of a frame."""

    def __init__(self, layout: BlockFormat, planes: Sequence[Bytes], coded: Bytes) -> None:
        """planes: the pixels that are read, coded: the frame that is written, both the same memory each time."""
        counts = [(plane.side // BLOCK) ** 2 for plane in layout.planes]
        blocks, width = sum(counts), BLOCK * sum(counts)
        self._inset_N = np.repeat(np.array([_INSET[plane.bits] for plane in layout.planes], np.uint16), counts)
        self._highest_N = np.repeat(np.array([2**plane.bits - 1 for plane in layout.planes], np.float32), counts)
        self._pixel_4P, self._index_4P = (np.empty((BLOCK, width), np.uint8) for _ in range(2))
        # Memory that is used again while the processor's cache has it: pixels are no longer needed when these are.
        self._square_4P, self._packed_4N = self._pixel_4P, self._pixel_4P.view(np.uint32)
        self._level_4P, self._value_4P = (np.empty((BLOCK, width), np.uint16) for _ in range(2))
        self._row_P, self._pair = np.empty(width, np.uint8), np.empty(width - 1, np.uint8)
        self._sum_P: Words = np.empty(width, np.uint16)
        self._ends_N2 = np.empty((blocks, 2), np.uint8)
        self._zero_1N: Floats = np.zeros((1, blocks), np.float32)
        self._per_level_N = np.empty(blocks, np.uint16)
        span = np.maximum(np.arange(256), 1)  # flat blocks have index 0, as nothing lies above their end
        shares = [((2**plane.bits - 1 << _SCALE_BITS) / span + 0.5).astype(np.uint16) for plane in layout.planes[:2]]
        self._shares = [(slice(counts[0]), shares[0]), (slice(counts[0], None), shares[1])]  # luma, chroma
        self._taken, self._written, self._thirds = self._copies(layout, planes, coded)

    def _copies(self, layout: BlockFormat, planes: Sequence[Bytes], coded: Bytes) -> tuple[Copies, Copies, Copies]:
        """Views (to, from): of each plane's pixels, of its sections in the frame, and of its third bits with their indices."""
        taken: Copies = []
        written: Copies = []
        thirds: Copies = []
        start = 0
        for plane, pixels in zip(layout.planes, planes, strict=True):
            rows, stop = plane.side // BLOCK, start + (plane.side // BLOCK) ** 2
            pixel_4RS, index_4RS = (
                value_4P[:, BLOCK * start : BLOCK * stop].reshape(BLOCK, rows, plane.side)
                for value_4P in (self._pixel_4P, self._index_4P)
            )
            ends, low, high = plane.sections(coded)
            taken.append((pixel_4RS, pixels.reshape(rows, BLOCK, plane.side).transpose(1, 0, 2)))
            packed_4RC = self._packed_4N[:, start:stop].reshape(BLOCK, rows, rows)
            written.append((ends.reshape(-1, 2), self._ends_N2[start:stop]))
            written.append((low.reshape(rows, BLOCK, rows), packed_4RC.transpose(1, 0, 2)))
            if high is not None:
                thirds.append((high.reshape(rows, BLOCK, -1), index_4RS))
            start = stop
        return taken, written, thirds

    def __call__(self) -> None:
        """Find indices and ends: the nearest of even levels just inside the extremes, then the line through them."""
        for pixel_4RS, given_4RS in self._taken:
            np.copyto(pixel_4RS, given_4RS)
        first_N, last_N = self._extreme(np.minimum), self._extreme(np.maximum)
        inset_N = ((last_N - first_N) * self._inset_N >> np.uint16(8)).astype(np.uint8)
        self._assign(first_N + inset_N, last_N - inset_N)
        self._fit_ends()
        self._write()

    def _write(self) -> None:
        """Put all planes where they belong in the frame."""
        np.bitwise_and(self._index_4P.view(np.uint32), np.uint32(0x03030303), out=self._packed_4N)
        np.multiply(self._packed_4N, _PACK4, out=self._packed_4N)
        np.right_shift(self._packed_4N, np.uint32(24), out=self._packed_4N)
        for place, value in self._written:
            np.copyto(place, value, casting="unsafe")
        for place, index_4RS in self._thirds:
            third = np.packbits(index_4RS & np.uint8(4), bitorder="little")
            np.copyto(place, third.reshape(BLOCK, len(place), -1).transpose(1, 0, 2))

    def _extreme(self, of: np.ufunc) -> Bytes:
        """(N,) the lowest or highest pixel of every block."""
        row_P = self._over_rows(of, self._pixel_4P, self._row_P)
        of(row_P[:-1], row_P[1:], out=self._pair)  # of neighbours; then only those at the beginning and middle of a block
        return of(self._pair[::BLOCK], self._pair[2::BLOCK])

    def _assign(self, first_N: Bytes, last_N: Bytes) -> None:
        """The index of every pixel: the nearest of the levels between two ends, the first the lower one."""
        span_N, first_P = last_N - first_N, spread_bytes(first_N)
        above, level = self._index_4P, self._level_4P
        np.maximum(self._pixel_4P, first_P, out=above)
        np.subtract(above, first_P, out=above)
        np.minimum(above, spread_bytes(span_N), out=above)
        np.copyto(level, above)
        for blocks, shares in self._shares:
            self._per_level_N[blocks] = cv2.LUT(span_N[None, blocks], shares)[0]
        np.multiply(level, spread_words(self._per_level_N), out=level)
        np.add(level, np.uint16(1 << (_SCALE_BITS - 1)), out=level)
        np.right_shift(level, np.uint16(_SCALE_BITS), out=level)
        np.copyto(self._index_4P, level, casting="unsafe")

    def _fit_ends(self) -> None:
        """Both ends of the line through (index, pixel) of each block that is nearest to its pixels."""
        index, value = self._index_4P, self._value_4P
        np.copyto(value, self._pixel_4P)
        count, v_N = np.float32(BLOCK * BLOCK), self._sum(value)
        np.multiply(self._level_4P, value, out=value)
        iv_N = self._sum(value)
        i_P = self._over_rows(np.add, index, self._row_P)  # at most 4 * 7
        i_N = (i_P.view(np.uint32) * _SUM_BYTES >> np.uint32(24)).astype(np.float32)
        np.multiply(index, index, out=self._square_4P)
        np.copyto(self._sum_P, self._over_rows(np.add, self._square_4P, self._row_P))  # at most 4 * 49
        ii_N = self._over_columns()
        spread_N = np.maximum(count * ii_N - i_N * i_N, np.float32(1))  # flat: all indices are 0, and the slope, too
        slope_N = (count * iv_N - i_N * v_N) / spread_N
        start_N = (v_N - slope_N * i_N) / count
        slope_N *= self._highest_N
        # OpenCV's sums in bytes round, and cut to 0..255
        for place, end_N in enumerate((self._zero_1N, slope_N[None])):
            self._ends_N2[:, place] = cv2.add(start_N[None], end_N, dtype=cv2.CV_8U)

    def _sum(self, value_4P: Words) -> Floats:
        """(N,) sum of every block's pixels; below 2**16: at most 16 * 7 * 255."""
        self._over_rows(np.add, value_4P, self._sum_P)
        return self._over_columns()

    def _over_columns(self) -> Floats:
        """(N,) sums of four words each of `_sum_P`."""
        return (self._sum_P.view(np.uint64) * _SUM_WORDS >> np.uint64(48)).astype(np.float32)

    @staticmethod
    def _over_rows(of: np.ufunc, value_4P: Bytes | Words, out_P: Array) -> Array:
        """(P,) in `out_P`, of a block's four rows of pixels."""
        of(value_4P[0], value_4P[1], out=out_P)
        of(out_P, value_4P[2], out=out_P)
        return of(out_P, value_4P[3], out=out_P)
