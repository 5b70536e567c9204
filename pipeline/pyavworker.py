"""A decoder process: takes an encoded clip, writes its frames into shared memory. `pyavdecoder.py` starts it.

T frames, S output size.
"""

import mmap
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.shards.reading.decode import decode_video


class Request(NamedTuple):
    """One clip: its container's bytes, wanted frames (T,), output -> packed (2, 3), output size in pixels."""

    video: bytes
    frames_T: NDArray[np.int64]
    output_to_packed: Affine
    size: int


def answering(descriptors: list[int]) -> Callable[[Request], str | None]:
    """Decodes requests into the memory behind a descriptor."""
    cv2.setNumThreads(1)
    return partial(decode, descriptor=descriptors[0])


def decode(request: Request, descriptor: int) -> str | None:
    """Write uint8 (T, S, S, 3) to the shared memory; returns the reason if the clip cannot be decoded."""
    try:
        frames = decode_video(np.frombuffer(request.video, np.uint8), request.frames_T)
    except ValueError as error:
        return str(error)
    shape = (len(request.frames_T), request.size, request.size, 3)
    with mmap.mmap(descriptor, int(np.prod(shape))) as memory:
        out_TSS3 = np.frombuffer(memory, np.uint8).reshape(shape)
        resampler = Resampler(request.output_to_packed, request.size)
        for t, number in enumerate(request.frames_T.tolist()):
            resampler(frames[number], 0, 0, out_TSS3[t])
        del out_TSS3
    return None
