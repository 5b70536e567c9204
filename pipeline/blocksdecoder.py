"""Decodes pictures in blocks on a CPU, only the part in a clip's window, in threads (NumPy and OpenCV release the GIL).

B clips, T sampled frames, S output size.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from svdata2vec.pipeline.frames import EncodedClip, block_slices
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder


class BlockClipDecoder:
    """`FrameDecoder` for codec blocks, over `num_threads` threads, started at first use."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Tensor) -> dict[int, str]:
        if self._pool is None:
            cv2.setNumThreads(1)  # else OpenCV's own threads compete with this object's
            self._pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="svdata2vec-blocks")
        reasons = self._pool.map(_decode_clip, clips, out_BTSS3.numpy())
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None


def _decode_clip(clip: EncodedClip, out_TSS3: NDArray[np.uint8]) -> str | None:
    """Fill a clip's frames; returns the reason if they cannot be decoded."""
    assert clip.blocks is not None
    try:
        frames = block_slices(clip, clip.blocks)
    except ValueError as error:
        return str(error)
    resample = Resampler(clip.output_to_packed, out_TSS3.shape[1])
    decode = BlockFrameDecoder(clip.blocks, resample.touched(clip.packed_width, clip.packed_height))
    # The window is placed in a whole picture, so that the arithmetic and the pixels are those of one that is decoded whole.
    picture_HW3 = np.zeros((clip.packed_height, clip.packed_width, 3), np.uint8)
    window_HW3 = picture_HW3[decode.top : decode.top + decode.height, decode.left : decode.left + decode.width]
    for t, frame in enumerate(frames):
        if t and clip.frames_T[t] == clip.frames_T[t - 1]:
            out_TSS3[t] = out_TSS3[t - 1]
            continue
        decode(frame, window_HW3)
        resample(picture_HW3, 0, 0, out_TSS3[t])
    return None
