"""Decodes the video component of a packed clip completely and reports its faults."""

import itertools
from collections.abc import Iterator
from io import BytesIO

import av
import cv2
import numpy as np

from svdata2vec.shards.reading.decode import cut_off_reason
from svdata2vec.shards.reading.sample import JPEG_END, JPEG_START, ClipMeta, Sample

BASELINE = b"\xff\xc0"  # marker of a baseline frame header: hardware decoders read no other


def video_faults(sample: Sample) -> Iterator[str]:
    """Messages about frames that are damaged, of the wrong size, missing or too many.

    Blocks are not decoded: any bytes are valid, their number was checked when the clip was parsed, and the checksum covers the
    rest.
    """
    video, offsets, meta = sample.video, sample.offsets, sample.meta
    if video is None or sample.blocks is not None:
        return
    if offsets is None:
        yield from _stream_faults(video, meta)
        return
    for frame, (start, end) in enumerate(itertools.pairwise(offsets)):
        message = _jpeg_fault(bytes(video[start:end]), meta)
        if message:
            yield f"frame {frame}: {message}"


def _jpeg_fault(content: bytes, meta: ClipMeta) -> str:
    if not content.startswith(JPEG_START) or not content.endswith(JPEG_END):
        return "not a complete JPEG"
    if BASELINE not in content:
        return "not a baseline JPEG"
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        return f"cannot be decoded ({error})"
    if picture is None:
        return "cannot be decoded"
    return _size_fault(picture.shape[1], picture.shape[0], meta)


def _size_fault(width: int, height: int, meta: ClipMeta) -> str:
    if (width, height) == (meta.packed_width, meta.packed_height):
        return ""
    return f"{width}x{height} pixels, expected {meta.packed_width}x{meta.packed_height}"


def _stream_faults(video: memoryview, meta: ClipMeta) -> Iterator[str]:
    if (problem := cut_off_reason(np.frombuffer(video, np.uint8))) is not None:
        yield problem
        return
    count = 0
    try:
        with av.open(BytesIO(video), mode="r", metadata_errors="ignore") as container:
            container.streams.video[0].codec_context.thread_count = 1
            for count, frame in enumerate(container.decode(video=0), start=1):
                message = "damaged" if frame.is_corrupt else _size_fault(frame.width, frame.height, meta)
                if message:
                    yield f"frame {count - 1}: {message}"
    except (av.error.FFmpegError, IndexError) as error:
        yield f"cannot be decoded after frame {count} ({error})"
        return
    if count != meta.num_frames:
        yield f"{count} frames can be decoded, expected {meta.num_frames}"
