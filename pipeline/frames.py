"""Encoded clips as decoders take them, and what is wrong with one before anything is decoded.

DALI and FFmpeg show the missing part of a cut-off file as grey, black or stale pictures and report nothing. So the
structure is checked first: the marks around every JPEG, the outermost lengths of MP4/MOV and Matroska/WebM (other
containers pass). T sampled frames, F frames of the clip.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


@dataclass(frozen=True)
class EncodedClip:
    """The encoded video of one clip, the frames wanted and where the output pixels lie in its packed picture.

    video: 1-D uint8. offsets: int64 (F+1,) for concatenated JPEGs, None for a video container. frames_T: int64.
    output_to_packed (2, 3). packed_width, packed_height: pixels of the encoded picture. numbers_K: the stored clip's
    numbers of the K frames that `video` holds and `frames_T` counts, where these are not all.
    """

    key: str
    video: NDArray[np.uint8]
    offsets: NDArray[np.int64] | None
    frames_T: NDArray[np.int64]
    output_to_packed: Affine
    packed_width: int
    packed_height: int
    numbers_K: NDArray[np.int64] | None = None

    def stored_number(self, frame: int) -> int:
        """What the stored clip calls a frame of `video`."""
        return frame if self.numbers_K is None else int(self.numbers_K[frame])


def jpeg_slices(clip: EncodedClip) -> list[NDArray[np.uint8]]:
    """The JPEGs of the wanted frames, without copying.

    Raises ValueError when the offset table does not fit the bytes, or when a picture does not begin and end as a JPEG
    does: a decoder would fill what is missing with grey and say nothing.
    """
    offsets = clip.offsets
    if offsets is None:
        raise ValueError(f"clip {clip.key}: no offsets.npy for its concatenated JPEGs")
    if int(clip.frames_T.max()) + 1 >= len(offsets):
        raise ValueError(f"clip {clip.key}: frame {int(clip.frames_T.max())} wanted, {len(offsets) - 1} stored")
    starts, stops = offsets[clip.frames_T], offsets[clip.frames_T + 1]
    if starts.min() < 0 or (stops - starts).min() < 4 or stops.max() > clip.video.size:
        raise ValueError(f"clip {clip.key}: offsets.npy points outside the {clip.video.size} bytes of its JPEGs")
    marks_T4 = clip.video[np.stack([starts, starts + 1, stops - 2, stops - 1], axis=1)]
    wrong = np.flatnonzero((marks_T4 != (0xFF, 0xD8, 0xFF, 0xD9)).any(axis=1))
    if wrong.size:
        frame = clip.stored_number(int(clip.frames_T[wrong[0]]))
        raise ValueError(f"clip {clip.key}: frame {frame} is not a whole JPEG picture")
    return [clip.video[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


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
