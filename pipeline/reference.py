"""The plan executed slowly and obviously, to hold the graph against: PyAV or OpenCV decodes, two matrices resample."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdata2vec.pipeline.container import cut_off_reason
from svdata2vec.pipeline.frames import EncodedClip, jpeg_slices
from svdata2vec.shards.reading.decode import decode_video


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
        """Nothing to give back."""


def _decode(clip: EncodedClip) -> list[NDArray[np.uint8]]:
    if clip.offsets is not None:
        return decode_jpegs(clip)
    reason = cut_off_reason(clip.video)
    if reason is not None:
        raise ValueError(reason)
    frames = decode_video(clip.video, clip.frames_T)
    return [frames[number] for number in clip.frames_T.tolist()]


def decode_jpegs(clip: EncodedClip) -> list[NDArray[np.uint8]]:
    """The wanted frames (H, W, 3) RGB of concatenated JPEGs. Raises ValueError for a damaged one."""
    frames = []
    for data in jpeg_slices(clip):
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        if frame is None:
            raise ValueError(f"clip {clip.key}: OpenCV cannot decode one of its JPEGs")
        frames.append(frame.astype(np.uint8, copy=False))
    return frames


def resample(picture_HWC: NDArray[np.uint8], output_to_packed: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Exact bilinear sampling with black outside: one (S, W) and one (S, H) matrix of weights."""
    height, width = picture_HWC.shape[:2]
    rows_SH = _weights(output_to_packed[1, 1], output_to_packed[1, 2], size, height)
    columns_SW = _weights(output_to_packed[0, 0], output_to_packed[0, 2], size, width)
    across = np.tensordot(columns_SW, picture_HWC.astype(np.float64), axes=(1, 1))  # (S, H, 3)
    both = np.tensordot(rows_SH, across, axes=(1, 1))  # (S, S, 3)
    return np.clip(np.rint(both), 0, 255).astype(np.uint8)


def _weights(scale: float, shift: float, size: int, source_size: int) -> NDArray[np.float64]:
    """weights[i, j]: share of source pixel j in output pixel i, the hat function around the mapped centre."""
    centre_S1 = (scale * (np.arange(size) + 0.5) + shift)[:, None]
    return np.maximum(0.0, 1.0 - np.abs(centre_S1 - (np.arange(source_size) + 0.5)))
