"""Decodes pictures in blocks on a CPU: the exact integer reference, also used by loaders on a CPU (shards/README.md, "Blocks").

R C blocks of a plane, H W pixels of a window; L = 2**bits - 1, the highest index.
"""

import cv2
import numpy as np

from svdata2vec.shards.blocks import BLOCK, TILE, BlockFormat, Bytes, PlaneLayout, spread_words

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels
# Byte with four indices of two bits -> four bytes (as one number: OpenCV looks up 32 bits at once).
_UNPACKED = (np.arange(256, dtype=np.uint8)[:, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).view(np.int32)


class BlockFrameDecoder:
    """Decodes one window of frames, in its own buffers: make one decoder for many frames.

    `window`: the wanted pixels, None = all. The decoded part is whole tiles around it: `width` x `height` at `left`, `top`.
    """

    def __init__(self, layout: BlockFormat, window: Window | None = None) -> None:
        self.layout = layout
        x1, y1, x2, y2 = window or (0, 0, layout.side, layout.side)
        if not (0 <= x1 < x2 <= layout.side and 0 <= y1 < y2 <= layout.side):
            raise ValueError(f"window {(x1, y1, x2, y2)} of a picture of side {layout.side}: expected one inside it")
        self.left, self.top = x1 // TILE * TILE, y1 // TILE * TILE
        self.width, self.height = -(-x2 // TILE) * TILE - self.left, -(-y2 // TILE) * TILE - self.top
        height, width = self.height, self.width
        self._planes = [
            _PlaneDecoder(plane, self.left // shrink, self.top // shrink, width // shrink, height // shrink)
            for plane, shrink in zip(layout.planes, (1, 2, 2), strict=True)
        ]
        self._ycc_HW3 = np.empty((height, width, 3), np.uint8)
        self._chroma = [np.empty((height, width), np.uint8) for _ in range(2)]

    def __call__(self, frame: Bytes, out_HW3: Bytes | None = None) -> Bytes:
        """(H, W, 3) RGB of the window of a frame (frame_bytes,), in `out_HW3` or in new memory."""
        luma, blue, red = (decode(frame) for decode in self._planes)
        height, width = luma.shape
        for small, large in zip((blue, red), self._chroma, strict=True):
            cv2.resize(small, (width, height), dst=large, interpolation=cv2.INTER_NEAREST)
        cv2.merge([luma, self._chroma[1], self._chroma[0]], dst=self._ycc_HW3)
        out_HW3 = np.empty_like(self._ycc_HW3) if out_HW3 is None else out_HW3
        # Bit for bit the README's integer formulas, for all 2**24 colours (tests/test_shards_blocks.py).
        cv2.cvtColor(self._ycc_HW3, cv2.COLOR_YCrCb2RGB, dst=out_HW3)
        return out_HW3


class _PlaneDecoder:
    """A window of one plane, on whole blocks (of a third bit, on whole bytes)."""

    def __init__(self, plane: PlaneLayout, left: int, top: int, width: int, height: int) -> None:
        self._plane, self._highest = plane, np.uint16(2**plane.bits - 1)
        columns, rows = width // BLOCK, height // BLOCK
        self._rows = slice(top // BLOCK, top // BLOCK + rows), slice(top, top + height)
        self._columns = slice(left // BLOCK, left // BLOCK + columns)
        self._bytes = slice(left // 8, -(-(left + width) // 8))  # of the third bits; a chroma window may begin in mid-byte
        self._skipped = left % 8
        self._index_HW = np.empty((height, width), np.uint8)
        self._value_R4W = np.empty((rows, BLOCK, width), np.uint16)
        self._out_HW = np.empty((height, width), np.uint8)

    def __call__(self, frame: Bytes) -> Bytes:
        """(H, W) bytes of the plane; the same memory each time."""
        ends, low, high = self._plane.sections(frame)
        index_HW, value_R4W = self._index_HW, self._value_R4W
        height, width = index_HW.shape
        cv2.LUT(low[self._rows[1], self._columns], _UNPACKED, dst=index_HW.view(np.int32))
        if high is not None:
            bits = np.unpackbits(high[self._rows[1], self._bytes], axis=1, bitorder="little")
            index_HW |= bits[:, self._skipped : self._skipped + width] << np.uint8(2)
        ends_RC2 = ends[self._rows[0], self._columns].astype(np.uint16)
        first_RC, second_RC = ends_RC2[..., 0], ends_RC2[..., 1]
        # (L - i) first + i second + L // 2 = i (second - first) + (L first + L // 2): modulo 2**16 until it is exact at the end
        np.copyto(value_R4W, index_HW.reshape(value_R4W.shape))
        np.multiply(value_R4W, spread_words(second_RC - first_RC)[:, None], out=value_R4W)
        start_RC = first_RC * self._highest + self._highest // np.uint16(2)
        np.add(value_R4W, spread_words(start_RC)[:, None], out=value_R4W)
        np.floor_divide(value_R4W, self._highest, out=value_R4W)
        np.copyto(self._out_HW, value_R4W.reshape(height, width), casting="unsafe")
        return self._out_HW
