"""Some frames of a stored clip, by PyAV and OpenCV. Imports neither torch nor DALI: decoder processes start in a moment."""

import io

import av
import cv2
import numpy as np
from numpy.typing import NDArray

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"  # a JPEG's first and last two bytes


def decode_video(video: NDArray[np.uint8], frames_T: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
    """{frame number: (H, W, 3) RGB} of the wanted frames (any order, repeats allowed), one codec thread.

    Decodes from the start up to the last wanted frame; colours are converted for wanted frames only. Raises ValueError
    when the bytes are no video, are damaged, or end before the last wanted frame. (The decoder conceals damage and marks
    the frame; the frames after it show it too, unmarked.)
    """
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


def decode_jpegs(blob: memoryview, offsets: NDArray[np.int64], frames_K: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """(H, W, 3) RGB of the wanted frames of concatenated JPEGs. Raises ValueError for a damaged one.

    A JPEG that is cut short would be filled up with grey in silence: its first and last two bytes are looked at.
    """
    frames = []
    for number in frames_K.tolist():
        content = blob[offsets[number] : offsets[number + 1]]
        whole = content[:2] == JPEG_START and content[-2:] == JPEG_END
        frame = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) if whole else None
        if frame is None:
            raise ValueError(f"frame {number} is not a whole JPEG picture")
        frames.append(frame.astype(np.uint8, copy=False))
    return frames
