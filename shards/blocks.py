"""Pictures in blocks of a fixed size, which need no decoder: every pixel lies at a known place (shards/README.md, "Blocks").

A picture is three planes of bytes: Y, and Cb and Cr at half the side (BT.601, full range). A plane is stored as two ends for
every 4x4 pixels and an index of 2 or 3 bits for every pixel, which says where it lies between them. `packing/blockencoder.py`
writes this.

S side of the picture, P of a plane, H W of a window in pixels; L = 2**bits - 1, the highest index.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCK = 4  # pixels of a plane, each way, that share two ends
TILE = 8  # pixels of the picture, each way, that hold whole blocks of all planes
SIDE_MULTIPLE = 32  # of a picture's side: every section then begins at a multiple of 32 bytes of its frame
BITS = (2, 3)
MAGIC, VERSION = b"SVBK", 1
_HEADER = struct.Struct("<4sBBBxII")  # magic, version, bits of luma, bits of chroma, a zero, side, frames
HEADER_BYTES = _HEADER.size
_BYTES4, _WORDS4 = np.uint32(0x01010101), np.uint64(0x0001000100010001)

Bytes = NDArray[np.uint8]
Count = TypeVar("Count", int, NDArray[np.int64])
Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels


@dataclass(frozen=True)
class PlaneLayout:
    """Where a plane lies in its frame: `side` in pixels, `bits` per index, first bytes of its sections.

    `ends`: (P/4, P/4, 2) bytes. `low`: (P, P/4), the indices' two low bits, pixel x in bits 2 (x % 4) of byte x // 4. `high`:
    (P, P/8), their third bit, pixel x in bit x % 8 of byte x // 8; with 2 bits it has no byte. `stop`: behind the last one.
    """

    side: int
    bits: int
    ends: int

    @property
    def low(self) -> int:
        return self.ends + 2 * (self.side // BLOCK) ** 2

    @property
    def high(self) -> int:
        return self.low + self.side * self.side // 4

    @property
    def stop(self) -> int:
        return self.high + (self.side * self.side // 8 if self.bits == 3 else 0)

    def sections(self, frame: Bytes) -> tuple[Bytes, Bytes, Bytes | None]:
        """Views of `ends`, `low` and (3 bits) `high` in the bytes of a frame."""
        blocks = self.side // BLOCK
        ends = frame[self.ends : self.low].reshape(blocks, blocks, 2)
        low = frame[self.low : self.high].reshape(self.side, blocks)
        return ends, low, frame[self.high : self.stop].reshape(self.side, self.side // 8) if self.bits == 3 else None


@dataclass(frozen=True)
class BlockFormat:
    """What must be known to read a frame: its side in pixels, bits of an index in luma and in chroma.

    Raises ValueError for what the format does not have.
    """

    side: int
    luma_bits: int = 3
    chroma_bits: int = 2

    def __post_init__(self) -> None:
        if self.side < 1 or self.side % SIDE_MULTIPLE or self.side >= 2**16:
            raise ValueError(f"blocks: a picture of side {self.side}, expected a multiple of {SIDE_MULTIPLE} below 65536")
        if self.luma_bits not in BITS or self.chroma_bits not in BITS:
            raise ValueError(f"blocks: {self.luma_bits} bits of luma, {self.chroma_bits} of chroma, expected 2 or 3")

    @cached_property
    def planes(self) -> tuple[PlaneLayout, PlaneLayout, PlaneLayout]:
        """Y, Cb, Cr."""
        luma = PlaneLayout(self.side, self.luma_bits, 0)
        blue = PlaneLayout(self.side // 2, self.chroma_bits, luma.stop)
        return luma, blue, PlaneLayout(self.side // 2, self.chroma_bits, blue.stop)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame; a multiple of 32."""
        return self.planes[2].stop

    def clip_bytes(self, num_frames: Count) -> Count:
        """Bytes of a clip with its header, or of several (int64)."""
        return HEADER_BYTES + num_frames * self.frame_bytes

    def header(self, num_frames: int) -> bytes:
        """What stands before the frames."""
        return _HEADER.pack(MAGIC, VERSION, self.luma_bits, self.chroma_bits, self.side, num_frames)


def parse_clip(content: Bytes) -> tuple[BlockFormat, Bytes]:
    """Format and frames (F, frame_bytes) of a clip's `blocks` component, a view of it.

    Raises ValueError if it does not begin with a header of this version, or its length is not what the header says.
    """
    if len(content) < HEADER_BYTES:
        raise ValueError(f"blocks: {len(content)} bytes, expected a header of {HEADER_BYTES}")
    magic, version, luma_bits, chroma_bits, side, num_frames = _HEADER.unpack(content[:HEADER_BYTES].tobytes())
    if magic != MAGIC:
        raise ValueError(f"blocks: begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"blocks: version {version}, this program reads {VERSION}; pack again or use the program that made it")
    found = BlockFormat(side, luma_bits, chroma_bits)
    if len(content) != found.clip_bytes(num_frames):
        raise ValueError(f"blocks: {len(content)} bytes, expected {found.clip_bytes(num_frames)} for {num_frames} frames of "
                         f"side {side} with {luma_bits} and {chroma_bits} bits")
    return found, content[HEADER_BYTES:].reshape(num_frames, found.frame_bytes)


class BlockDecoder:
    """Decodes one window of frames, in memory of its own: whoever decodes many frames makes one and keeps it.

    `window`: the pixels that are wanted, None = all; decoded are `width` x `height` at `left`, `top`: whole tiles around it.
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
        """(H, W, 3) RGB of the window of a frame (frame_bytes,), in `out_HW3` or new."""
        luma, blue, red = (decode(frame) for decode in self._planes)
        height, width = luma.shape
        for small, large in zip((blue, red), self._chroma, strict=True):
            cv2.resize(small, (width, height), dst=large, interpolation=cv2.INTER_NEAREST)
        cv2.merge([luma, self._chroma[1], self._chroma[0]], dst=self._ycc_HW3)
        out_HW3 = np.empty_like(self._ycc_HW3) if out_HW3 is None else out_HW3
        # To the bit the README's integers, on all 2**24 colours (tests/test_shards_blocks.py).
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
        # (L - i) first + i second + L // 2 = i (second - first) + (L first + L // 2): modulo 2**16 on the way, exact at its end
        np.copyto(value_R4W, index_HW.reshape(value_R4W.shape))
        np.multiply(value_R4W, spread_words(second_RC - first_RC)[:, None], out=value_R4W)
        start_RC = first_RC * self._highest + self._highest // np.uint16(2)
        np.add(value_R4W, spread_words(start_RC)[:, None], out=value_R4W)
        np.floor_divide(value_R4W, self._highest, out=value_R4W)
        np.copyto(self._out_HW, value_R4W.reshape(height, width), casting="unsafe")
        return self._out_HW


def spread_bytes(value_RC: Bytes) -> Bytes:
    """(R, 4 C): a byte of every block for each pixel of one of its rows."""
    return (value_RC.astype(np.uint32) * _BYTES4).view(np.uint8)


def spread_words(value_RC: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(R, 4 C): a number of every block for each pixel of one of its rows."""
    return (value_RC.astype(np.uint64) * _WORDS4).view(np.uint16)


# Four indices of two bits as they lie in a byte -> as four bytes (one number: OpenCV looks up 32 bits at once).
_UNPACKED = (np.arange(256, dtype=np.uint8)[:, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).view(np.int32)
