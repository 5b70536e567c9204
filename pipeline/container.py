"""Finds cut-off video files without decoding them: decoders show what is missing as stale or black frames in silence.

Only the outermost lengths of MP4/MOV and Matroska/WebM are read; other containers pass.
"""

import numpy as np
from numpy.typing import NDArray

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def cut_off_reason(video: NDArray[np.uint8]) -> str | None:
    """Why the bytes cannot be the whole file; None if nothing speaks against it."""
    if video.size == 0:
        return "the video has no bytes"
    if video[4:8].tobytes() == b"ftyp":
        return _mp4_reason(video)
    if video[:4].tobytes() == _EBML:
        return _matroska_reason(video)
    return None


def _mp4_reason(video: NDArray[np.uint8]) -> str | None:
    """Boxes follow each other: 4 bytes size, 4 bytes type; size 1 = 8 more bytes of size, size 0 = to the end."""
    position, seen = 0, set()
    while position < video.size:
        header = video[position : position + 16].tobytes()
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        elif size == 0:
            size = video.size - position
        if len(header) < 8 or size < 8 or position + size > video.size:
            name = kind.decode("latin-1") if kind.isalnum() else "unreadable"
            return f"the MP4 is cut off or damaged: box {name} at byte {position} does not fit in {video.size} bytes"
        seen.add(kind)
        position += size
    return None if b"moov" in seen else "the MP4 has no moov box (the writer did not finish it)"


def _matroska_reason(video: NDArray[np.uint8]) -> str | None:
    """EBML header, then one Segment with its size as a variable-length number (all ones = unknown)."""
    header_size, position = _vint(video, 4)
    position += header_size or 0
    if video[position : position + 4].tobytes() != _SEGMENT:
        return "the Matroska file has no Segment after its header"
    size, start = _vint(video, position + 4)
    if size is not None and start + size > video.size:
        return f"the Matroska file is cut off: {start + size} bytes promised, {video.size} there"
    return None


def _vint(video: NDArray[np.uint8], position: int) -> tuple[int | None, int]:
    """(value or None for unknown, position behind it) of an EBML variable-length number."""
    first = int(video[position]) if position < video.size else 0
    length = 9 - first.bit_length()
    bits = int.from_bytes(video[position : position + length].tobytes(), "big") & ((1 << (7 * length)) - 1)
    return (None if bits == (1 << (7 * length)) - 1 else bits), position + length
