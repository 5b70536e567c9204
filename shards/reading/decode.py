"""Decodes some frames of a stored clip with PyAV and OpenCV, and checks its bytes before that.

DALI and FFmpeg show the missing part of a cut-off file as grey, black or stale pictures and report nothing. So the
structure is checked first: the marks around every JPEG, the outermost lengths of MP4/MOV and Matroska/WebM (other
containers are not checked). Imports neither torch nor DALI, so that decoder processes start quickly.
"""

import io

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder
from svdata2vec.shards.reading.sample import JPEG_END, JPEG_START

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def decode_video(video: NDArray[np.uint8], frames_T: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
    """{frame number: (H, W, 3) RGB} of the wanted frames (any order, repeats allowed), one codec thread.

    Decodes from the start up to the last wanted frame; colours are converted for wanted frames only. Raises ValueError
    when the bytes are no video, cut off, damaged, or end before the last wanted frame. (FFmpeg conceals damage and marks
    the frame; the frames after it show it too, unmarked.)
    """
    reason = cut_off_reason(video)
    if reason is not None:
        raise ValueError(reason)
    wanted = set(frames_T.tolist())
    found: dict[int, NDArray[np.uint8]] = {}
    try:
        with av.open(io.BytesIO(video.data), "r", metadata_errors="ignore") as container:
            container.streams.video[0].thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if frame.is_corrupt:
                    raise ValueError(f"frame {number} of the video is damaged")
                if number in wanted:
                    found[number] = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
                    if len(found) == len(wanted):
                        return found
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"the video cannot be decoded: {error}") from error
    raise ValueError(f"frame {max(wanted)} wanted, but the video ends before it")


def decode_jpeg(content: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of frame `number`. Raises ValueError for a damaged one.

    Its first and last two bytes are checked, as a truncated JPEG would silently be filled up with grey.
    """
    whole = content[:2].tobytes() == JPEG_START and content[-2:].tobytes() == JPEG_END
    frame = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if whole else None
    if frame is None:
        raise ValueError(f"frame {number} is not a whole JPEG picture")
    return frame.astype(np.uint8, copy=False)


def decode_still(content: NDArray[np.uint8], number: int, blocks: BlockFrameDecoder | None) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of frame `number`, in blocks or, if `blocks` is None, a JPEG. ValueError for a damaged one."""
    return decode_jpeg(content, number) if blocks is None else blocks(content)


def cut_off_reason(video: NDArray[np.uint8]) -> str | None:
    """Why the bytes cannot be the whole file; None if no reason is found."""
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
    """(value or None for unknown, position after it) of an EBML variable-length number."""
    first = int(video[position]) if position < video.size else 0
    length = 9 - first.bit_length()
    bits = int.from_bytes(video[position : position + length].tobytes(), "big") & ((1 << (7 * length)) - 1)
    return (None if bits == (1 << (7 * length)) - 1 else bits), position + length
