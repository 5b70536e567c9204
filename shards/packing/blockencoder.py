"""Writes pictures in blocks (`shards/blocks.py`): every block's ends by least squares, as fast as JPEGs are written.

NumPy on whole planes in memory that is kept. R rows and C columns of blocks, W = 4C pixels in a row; 4 rows of pixels, RW of
each: the first pixel rows of all blocks, then their second ones, and so on.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.blocks import BLOCK, BlockFormat, Bytes, PlaneLayout, spread_bytes, spread_words

Words = NDArray[np.uint16]
Floats = NDArray[np.floating]  # of 32 bits
_SCALE_BITS = 13  # an index times a share of the span fits into 16 bits: 7 * 2**13 + 2**12 < 2**16
# How far inside its darkest and brightest pixel, in 256ths of the span, a block's ends begin, by bits: of 0 to 32 the best on
# real pictures. With a second search for the nearest index after the fit they come 0.05 dB closer, for half as much time again.
_INSET = {2: 20, 3: 8}
_SUM4, _TOP_WORD = np.uint64(0x0001000100010001), slice(3, None, 4)  # of four words in a product: their sum is the highest
_PACK4, _TOP_BYTE = np.uint32(0x01041040), slice(3, None, 4)  # four bytes of 0..3 in a product: side by side in the highest


class BlockEncoder:
    """Frames (S, S, 3) uint8 RGB to (frame_bytes,) bytes each."""

    def __init__(self, layout: BlockFormat) -> None:
        side = layout.side
        self.layout = layout
        self._luma = _PlaneEncoder(layout.luma_bits, side // BLOCK, side // BLOCK)
        self._chroma = _PlaneEncoder(layout.chroma_bits, side // BLOCK, side // 2 // BLOCK)  # both, one above the other
        self._luma_SS = np.empty((side, side), np.uint8)
        self._rgb_HH3, self._ycc_HH3 = (np.empty((side // 2, side // 2, 3), np.uint8) for _ in range(2))
        self._chroma_2HH = np.empty((2, side // 2, side // 2), np.uint8)  # of half the side

    def __call__(self, frame_SS3: Bytes) -> Bytes:
        """The coded frame, in memory of its own."""
        cv2.cvtColor(frame_SS3, cv2.COLOR_RGB2GRAY, dst=self._luma_SS)  # the Y of BT.601
        half = self._rgb_HH3.shape[:2]
        cv2.resize(frame_SS3, half, dst=self._rgb_HH3, interpolation=cv2.INTER_AREA)
        cv2.cvtColor(self._rgb_HH3, cv2.COLOR_RGB2YCrCb, dst=self._ycc_HH3)
        cv2.extractChannel(self._ycc_HH3, 2, self._chroma_2HH[0])
        cv2.extractChannel(self._ycc_HH3, 1, self._chroma_2HH[1])
        coded = np.empty(self.layout.frame_bytes, np.uint8)
        chroma, layouts = self._chroma_2HH.reshape(-1, half[1]), self.layout.planes
        for encoder, plane, parts in ((self._luma, self._luma_SS, layouts[:1]), (self._chroma, chroma, layouts[1:])):
            encoder(plane)
            for number, layout in enumerate(parts):
                encoder.write(coded, layout, number)
        return coded


class _PlaneEncoder:
    """Planes of R x C blocks."""

    def __init__(self, bits: int, rows: int, columns: int) -> None:
        self._highest, self._inset = 2**bits - 1, np.uint16(_INSET[bits])
        self._shape = rows, columns
        pixels, width = (BLOCK, rows, BLOCK * columns), BLOCK * columns
        self._pixel_4RW, self._index_4RW = np.empty(pixels, np.uint8), np.empty(pixels, np.uint8)
        self._level_4RW, self._value_4RW = np.empty(pixels, np.uint16), np.empty(pixels, np.uint16)
        self._row_RW, self._sum_RW = np.empty((rows, width), np.uint8), np.empty((rows, width), np.uint16)
        self._packed_4RC = np.empty((BLOCK, rows, columns), np.uint32)
        self._ends_RC2, self._zero_RC = np.empty((rows, columns, 2), np.uint8), np.zeros((rows, columns), np.float32)
        span = np.maximum(np.arange(256), 1)  # flat blocks have index 0, as nothing lies above their end
        self._per_level = ((self._highest << _SCALE_BITS) / span + 0.5).astype(np.uint16)

    def __call__(self, plane_HW: Bytes) -> None:
        """Find indices and ends: the nearest of even levels just inside the extremes, then the line through them."""
        rows, columns = self._shape
        np.copyto(self._pixel_4RW, plane_HW.reshape(rows, BLOCK, BLOCK * columns).transpose(1, 0, 2))
        first_RC, last_RC = self._extreme(np.minimum), self._extreme(np.maximum)
        inset_RC = ((last_RC - first_RC) * self._inset >> np.uint16(8)).astype(np.uint8)
        self._assign(first_RC + inset_RC, last_RC - inset_RC)
        self._ends_RC2[..., 0], self._ends_RC2[..., 1] = self._fit()
        np.bitwise_and(self._index_4RW.view(np.uint32), np.uint32(0x03030303), out=self._packed_4RC)
        np.multiply(self._packed_4RC, _PACK4, out=self._packed_4RC)

    def write(self, coded: Bytes, layout: PlaneLayout, number: int) -> None:
        """Put the `number`th plane of those that lie one above the other where it belongs in the frame."""
        ends, low, high = layout.sections(coded)
        rows = layout.side // BLOCK
        part = slice(number * rows, (number + 1) * rows)
        ends[:] = self._ends_RC2[part]
        low.reshape(rows, BLOCK, -1)[:] = self._packed_4RC[:, part].view(np.uint8)[..., _TOP_BYTE].transpose(1, 0, 2)
        if high is not None:
            third_4RW = np.packbits(self._index_4RW[:, part] & np.uint8(4), axis=-1, bitorder="little")
            high.reshape(rows, BLOCK, -1)[:] = third_4RW.transpose(1, 0, 2)

    def _extreme(self, of: np.ufunc) -> Bytes:
        """(R, C) the lowest or highest pixel of every block."""
        row_RW, pixel_4RW = self._row_RW, self._pixel_4RW
        of(pixel_4RW[0], pixel_4RW[1], out=row_RW)
        of(row_RW, pixel_4RW[2], out=row_RW)
        of(row_RW, pixel_4RW[3], out=row_RW)
        row_RC4 = row_RW.reshape(*self._shape, BLOCK)
        return of(of(row_RC4[..., 0], row_RC4[..., 1]), of(row_RC4[..., 2], row_RC4[..., 3]))

    def _assign(self, first_RC: Bytes, last_RC: Bytes) -> None:
        """The index of every pixel: the nearest of the levels between two ends, the first the lower one."""
        span_RC, first_RW = last_RC - first_RC, spread_bytes(first_RC)
        above, level = self._index_4RW, self._level_4RW
        np.maximum(self._pixel_4RW, first_RW, out=above)
        np.subtract(above, first_RW, out=above)
        np.minimum(above, spread_bytes(span_RC), out=above)
        np.copyto(level, above)
        per_level_RC = cv2.LUT(span_RC, self._per_level).astype(np.uint16, copy=False)
        np.multiply(level, spread_words(per_level_RC), out=level)
        np.add(level, np.uint16(1 << (_SCALE_BITS - 1)), out=level)
        np.right_shift(level, np.uint16(_SCALE_BITS), out=level)
        np.copyto(self._index_4RW, level, casting="unsafe")

    def _fit(self) -> tuple[Bytes, Bytes]:
        """Both ends (R, C) of the line through (index, pixel) of each block that is nearest to its pixels."""
        index, value = self._level_4RW, self._value_4RW
        np.copyto(value, self._pixel_4RW)
        count, i_RC, v_RC = np.float32(BLOCK * BLOCK), self._sum(index), self._sum(value)
        iv_RC = self._sum(np.multiply(index, value, out=value))
        ii_RC = self._sum(np.multiply(index, index, out=index))
        spread_RC = np.maximum(count * ii_RC - i_RC * i_RC, np.float32(1))  # flat: all indices are 0, and the slope, too
        slope_RC = (count * iv_RC - i_RC * v_RC) / spread_RC
        start_RC = (v_RC - slope_RC * i_RC) / count
        slope_RC *= np.float32(self._highest)
        # OpenCV's sums in bytes round, and cut to 0..255
        first_RC, last_RC = (cv2.add(start_RC, end_RC, dtype=cv2.CV_8U) for end_RC in (self._zero_RC, slope_RC))
        return first_RC.astype(np.uint8, copy=False), last_RC.astype(np.uint8, copy=False)

    def _sum(self, value_4RW: Words) -> Floats:
        """(R, C) sum of every block's pixels; below 2**16: at most 16 * 7 * 255."""
        sum_RW = self._sum_RW
        np.add(value_4RW[0], value_4RW[1], out=sum_RW)
        np.add(sum_RW, value_4RW[2], out=sum_RW)
        np.add(sum_RW, value_4RW[3], out=sum_RW)
        return (sum_RW.view(np.uint64) * _SUM4).view(np.uint16)[:, _TOP_WORD].astype(np.float32)
