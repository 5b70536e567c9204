"""Decoding and resampling on the CPU without DALI: PyAV and OpenCV. Imports no torch: decoder processes start quickly."""

import io

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine
from svdata2vec.pipeline.frames import cut_off_reason


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
        with av.open(io.BytesIO(video.data), "r") as container:
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


def warp_frame(picture_HWC: NDArray[np.uint8], index_map: Affine, out_SS3: NDArray[np.uint8]) -> None:
    """Sample a picture into `out_SS3`: bilinear, no antialiasing, black outside. Within one grey level of exact arithmetic.

    index_map: (2, 3), output to picture pixel indices (`affine.pixel_index_form`).
    """
    cv2.warpAffine(
        picture_HWC, index_map, (out_SS3.shape[1], out_SS3.shape[0]), dst=out_SS3,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0),
    )
