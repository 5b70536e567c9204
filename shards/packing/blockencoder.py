"""Writes pictures in blocks (`shards/blocks.py`): every block's ends by least squares, as fast as JPEGs are written.

NumPy on whole planes in memory that is kept. R rows and C columns of blocks, 4C pixels in a row.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.blocks import BLOCK, BlockFormat, Bytes, PlaneLayout, spread_bytes, spread_words

Words = NDArray[np.uint16]
Floats = NDArray[np.floating]  # of 32 bits
_SCALE_BITS = 13  # an index times a share of the span fits into 16 bits: 7 * 2**13 + 2**12 < 2**16
_SUM4, _TOP_WORD = np.uint64(0x0001000100010001), slice(3, None, 4)  # of four words in a product: their sum is the highest
_PACK4, _TOP_BYTE = np.uint32(0x01041040), slice(3, None, 4)  # four bytes of 0..3 in a product: side by side in the highest


class BlockEncoder:
    """Frames (S, S, 3) uint8 RGB to (frame_bytes,) bytes each."""

    def __init__(self, layout: BlockFormat) -> None:
        side = layout.side
        self.layout = layout
        self._luma = _PlaneEncoder(layout.luma_bits, side // BLOCK, side // BLOCK)
        self._chroma = _PlaneEncoder(layout.chroma_bits, side // BLOCK, side // 2 // BLOCK)  # both, one above the other
        self._ycc_SS3 = np.empty((side, side, 3), np.uint8)
        self._planes = [np.empty((side, side), np.uint8) for _ in range(3)]
        self._half = np.empty((2, side // 2, side // 2), np.uint8)

    def __call__(self, frame_SS3: Bytes) -> Bytes:
        """The coded frame, in memory of its own."""
        cv2.cvtColor(frame_SS3, cv2.COLOR_RGB2YCrCb, dst=self._ycc_SS3)
        cv2.split(self._ycc_SS3, self._planes)
        luma, red, blue = self._planes
        for large, small in zip((blue, red), self._half, strict=True):
            cv2.resize(large, small.shape, dst=small, interpolation=cv2.INTER_AREA)
        coded = np.empty(self.layout.frame_bytes, np.uint8)
        half = self._half.reshape(-1, self._half.shape[2])
        layouts = self.layout.planes
        for encoder, plane, parts in ((self._luma, luma, layouts[:1]), (self._chroma, half, layouts[1:])):
            encoder(plane)
            for number, layout in enumerate(parts):
                encoder.write(coded, layout, number)
        return coded


class _PlaneEncoder:
    """Planes of R x C blocks."""

    def __init__(self, bits: int, rows: int, columns: int) -> None:
        self._highest = highest = 2**bits - 1
        self._shape = rows, columns
        pixels, width = (rows, BLOCK, BLOCK * columns), BLOCK * columns
        self._above_R4W = np.empty(pixels, np.uint8)  # how far a pixel lies above its block's first end
        self._index_R4W, self._product_R4W, self._value_R4W = (np.empty(pixels, np.uint16) for _ in range(3))
        self._row_RW, self._sum_RW = np.empty((rows, width), np.uint8), np.empty((rows, width), np.uint16)
        self._packed_R4C = np.empty((rows, BLOCK, columns), np.uint32)
        self._ends_RC2 = np.empty((rows, columns, 2), np.uint8)
        span = np.maximum(np.arange(256), 1)  # flat blocks have index 0 as nothing lies above their end
        self._per_level = ((highest << _SCALE_BITS) / span + 0.5).astype(np.uint16)

    def __call__(self, plane_HW: Bytes) -> None:
        """Find ends and indices: from the extremes, ends by least squares, then the nearest index to each pixel."""
        pixel_R4W = plane_HW.reshape(self._above_R4W.shape)
        first_RC, second_RC = self._extreme(np.minimum, pixel_R4W), self._extreme(np.maximum, pixel_R4W)
        self._assign(pixel_R4W, first_RC, second_RC)
        first_RC, second_RC = self._fit(pixel_R4W, first_RC, second_RC)
        self._assign(pixel_R4W, first_RC, second_RC)
        self._ends_RC2[..., 0], self._ends_RC2[..., 1] = first_RC, second_RC
        np.copyto(self._above_R4W, self._index_R4W, casting="unsafe")
        np.bitwise_and(self._above_R4W.view(np.uint32), np.uint32(0x03030303), out=self._packed_R4C)
        np.multiply(self._packed_R4C, _PACK4, out=self._packed_R4C)

    def write(self, coded: Bytes, layout: PlaneLayout, number: int) -> None:
        """Put the `number`th plane of those that lie one above the other where it belongs in the frame."""
        ends, low, high = layout.sections(coded)
        part = slice(number * len(ends), (number + 1) * len(ends))
        ends[:] = self._ends_RC2[part]
        low[:] = self._packed_R4C[part].view(np.uint8)[..., _TOP_BYTE].reshape(low.shape)
        if high is not None:
            third_HW = (self._above_R4W[part] & np.uint8(4)).reshape(layout.side, layout.side)
            high[:] = np.packbits(third_HW, axis=1, bitorder="little")

    def _extreme(self, of: np.ufunc, pixel_R4W: Bytes) -> Bytes:
        """(R, C) the lowest or highest pixel of every block."""
        row_RW = self._row_RW
        of(pixel_R4W[:, 0], pixel_R4W[:, 1], out=row_RW)
        of(row_RW, pixel_R4W[:, 2], out=row_RW)
        of(row_RW, pixel_R4W[:, 3], out=row_RW)
        row_RC4 = row_RW.reshape(*self._shape, BLOCK)
        return of(of(row_RC4[..., 0], row_RC4[..., 1]), of(row_RC4[..., 2], row_RC4[..., 3]))

    def _assign(self, pixel_R4W: Bytes, first_RC: Bytes, second_RC: Bytes) -> None:
        """The index of every pixel between its block's ends, the first the lower one."""
        span_RC, first_R1W = second_RC - first_RC, spread_bytes(first_RC)
        above, index = self._above_R4W, self._index_R4W
        np.maximum(pixel_R4W, first_R1W, out=above)
        np.subtract(above, first_R1W, out=above)
        np.minimum(above, spread_bytes(span_RC), out=above)
        np.copyto(index, above)
        per_level_RC = cv2.LUT(span_RC, self._per_level).astype(np.uint16, copy=False)
        np.multiply(index, spread_words(per_level_RC), out=index)
        np.add(index, np.uint16(1 << (_SCALE_BITS - 1)), out=index)
        np.right_shift(index, np.uint16(_SCALE_BITS), out=index)

    def _fit(self, pixel_R4W: Bytes, first_RC: Bytes, second_RC: Bytes) -> tuple[Bytes, Bytes]:
        """Ends of the line through (index, pixel) of each block that is nearest to its pixels."""
        index, value, product = self._index_R4W, self._value_R4W, self._product_R4W
        np.copyto(value, pixel_R4W)
        count, i_RC, v_RC = np.float32(BLOCK * BLOCK), self._sum(index), self._sum(value)
        ii_RC = self._sum(np.multiply(index, index, out=product))
        iv_RC = self._sum(np.multiply(index, value, out=product))
        spread_RC = count * ii_RC - i_RC * i_RC
        flat_RC = spread_RC == 0
        spread_RC[flat_RC] = 1
        slope_RC = (count * iv_RC - i_RC * v_RC) / spread_RC
        start_RC = (v_RC - slope_RC * i_RC) / count
        fitted_second = _to_byte(start_RC + np.float32(self._highest) * slope_RC)
        fitted_first = _to_byte(start_RC)
        np.copyto(fitted_first, first_RC, where=flat_RC)
        np.copyto(fitted_second, second_RC, where=flat_RC)
        return fitted_first, fitted_second

    def _sum(self, value_R4W: Words) -> Floats:
        """(R, C) sum of every block's pixels; below 2**16: at most 16 * 7 * 255."""
        sum_RW = self._sum_RW
        np.add(value_R4W[:, 0], value_R4W[:, 1], out=sum_RW)
        np.add(sum_RW, value_R4W[:, 2], out=sum_RW)
        np.add(sum_RW, value_R4W[:, 3], out=sum_RW)
        return (sum_RW.view(np.uint64) * _SUM4).view(np.uint16)[:, _TOP_WORD].astype(np.float32)


def _to_byte(value_RC: Floats) -> Bytes:
    """Rounded and cut to 0..255; uses up its argument."""
    value_RC += np.float32(0.5)
    np.maximum(value_RC, np.float32(0), out=value_RC)
    np.minimum(value_RC, np.float32(255), out=value_RC)
    return value_RC.astype(np.uint8)
