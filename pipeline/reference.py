"""The reference decoder: executes a plan slowly but simply; the other decoders are compared with it.

PyAV or OpenCV decodes, NumPy resamples. B clips, T sampled frames, S output size.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from svdata2vec.pipeline.frames import EncodedClip, block_slices, different, jpeg_slices
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder
from svdata2vec.shards.reading.decode import decode_jpeg, decode_video


class ReferenceDecoder:
    """`FrameDecoder` without DALI: decodes clip by clip on the calling thread."""

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Tensor) -> dict[int, str]:
        failed: dict[int, str] = {}
        for i, clip in enumerate(clips):
            try:
                frames = _decode(clip)
            except (ValueError, cv2.error) as error:
                failed[i] = str(error)
                continue
            for t, frame in enumerate(frames):
                out_BTSS3[i, t] = torch.from_numpy(resample(frame, clip.output_to_packed, out_BTSS3.shape[2]))
        return failed

    def close(self) -> None:
        """Nothing to release."""


def _decode(clip: EncodedClip) -> list[NDArray[np.uint8]]:
    """The wanted frames, (H, W, 3) RGB each. Raises ValueError for a damaged clip."""
    if clip.offsets is None:
        frames = decode_video(clip.video, clip.frames_T)
        return [frames[number] for number in clip.frames_T.tolist()]
    if clip.blocks is not None:
        return [BlockFrameDecoder(clip.blocks)(data) for data in block_slices(clip, clip.blocks)]
    (jpegs,) = jpeg_slices([clip])
    slices = zip(jpegs.pictures, different(clip), strict=True)
    pictures = [decode_jpeg(np.frombuffer(data, np.uint8), frame) for data, frame in slices]
    return [pictures[place] for place in jpegs.places.tolist()]


def resample(picture_HWC: NDArray[np.uint8], output_to_packed: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Exact bilinear sampling with black outside: columns, then rows, in float64.

    Matrix products would do the same, but the threads of NumPy's BLAS spin while they wait for each other, which takes long
    on a busy machine.
    """
    across_HSC = _between_neighbours(picture_HWC, 1, output_to_packed[0, 0], output_to_packed[0, 2], size)
    both_SSC = _between_neighbours(across_HSC, 0, output_to_packed[1, 1], output_to_packed[1, 2], size)
    return np.clip(np.rint(both_SSC), 0, 255).astype(np.uint8)


def _between_neighbours(picture: NDArray[Any], axis: int, scale: float, shift: float, size: int) -> NDArray[np.float64]:
    """`size` pixels along an axis: each the sum of its two nearest source pixels j, weighted by the hat function."""
    centre_S = scale * (np.arange(size) + 0.5) + shift
    first_S = np.floor(centre_S - 0.5)
    padded = np.pad(picture, [(2, 2) if other == axis else (0, 0) for other in range(picture.ndim)])  # black
    others = tuple(other for other in range(picture.ndim) if other != axis)

    def part(j_S: NDArray[np.float64]) -> NDArray[np.float64]:
        share_S = np.maximum(0.0, 1.0 - np.abs(centre_S - (j_S + 0.5)))
        place_S = np.clip(j_S, -2, picture.shape[axis] + 1).astype(np.int64) + 2
        return np.expand_dims(share_S, others) * padded.take(place_S, axis)

    return part(first_S) + part(first_S + 1)


def psnr(frames: ArrayLike, expected: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB between two pictures (or stacks of them) of one shape, values 0 to 255."""
    error = np.square(np.asarray(frames, np.float64) - np.asarray(expected, np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
