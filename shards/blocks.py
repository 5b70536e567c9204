"""Pictures in blocks of a fixed size, which need no decoder: every pixel lies at a known place (shards/README.md, "Blocks").

A picture is three planes of bytes: Y, and Cb and Cr at half the side (BT.601, full range). A plane is stored as two ends for
every 4x4 pixels and an index of 2 or 3 bits for every pixel, which says where it lies between them. `packing/blockencoder.py`
writes this, `reading/blockdecoder.py` reads it; settings need this file alone, hence no OpenCV here.

S side of the picture, P of a plane in pixels; L = 2**bits - 1, the highest index.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.errors import AGAIN

BLOCK = 4  # pixels of a plane, each way, that share two ends
TILE = 8  # pixels of the picture, each way, that hold whole blocks of all planes
SIDE_MULTIPLE = 32  # of a picture's side: every section then begins at a multiple of 32 bytes of its frame
BITS = (2, 3)
MAGIC, VERSION = b"SVBK", 1
_HEADER = struct.Struct("<4sBBBBII")  # magic, version, bits of luma, bits of chroma, a zero, side, frames
HEADER_BYTES = _HEADER.size
_WORDS4 = np.uint64(0x0001000100010001)

Bytes = NDArray[np.uint8]
Count = TypeVar("Count", int, NDArray[np.int64])


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

    def __str__(self) -> str:
        return f"of side {self.side} with {self.luma_bits} bits of luma, {self.chroma_bits} of chroma"

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
        """The bytes before the frames."""
        return _HEADER.pack(MAGIC, VERSION, self.luma_bits, self.chroma_bits, 0, self.side, num_frames)


def parse_clip(content: Bytes) -> tuple[BlockFormat, Bytes]:
    """Format and frames (F, frame_bytes) of a clip's `blocks` component, a view of it.

    Raises ValueError if it does not begin with a header of this version, or its length is not what the header says.
    """
    if len(content) < HEADER_BYTES:
        raise ValueError(f"blocks: {len(content)} bytes, expected a header of {HEADER_BYTES}; {AGAIN}")
    magic, version, luma_bits, chroma_bits, zero, side, num_frames = _HEADER.unpack(content[:HEADER_BYTES].tobytes())
    if magic != MAGIC:
        raise ValueError(f"blocks: begins with {magic!r}, expected {MAGIC!r}; {AGAIN}")
    if version != VERSION:
        raise ValueError(f"blocks: version {version}, this program reads {VERSION}; pack again or use the program that made it")
    if zero:
        raise ValueError(f"blocks: byte 7 of the header is {zero}, expected 0; {AGAIN}")
    try:
        found = BlockFormat(side, luma_bits, chroma_bits)
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from None
    if len(content) != found.clip_bytes(num_frames):
        raise ValueError(f"blocks: {len(content)} bytes, expected {found.clip_bytes(num_frames)} for {num_frames} frames of "
                         f"side {side} with {luma_bits} and {chroma_bits} bits; {AGAIN}")
    return found, content[HEADER_BYTES:].reshape(num_frames, found.frame_bytes)


def spread_words(value_NC: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(..., 4 C): a number of every block (..., C) for each pixel of one of its rows."""
    return (value_NC.astype(np.uint64) * _WORDS4).view(np.uint16)
