"""Resampling on the CPU: one affine map, bilinear, no antialiasing, black outside the packed picture.

OpenCV's warpAffine equals exact bilinear interpolation within one grey level (of 255) and adds 9 ms of CPU time to the
decoding of a clip (40 frames, 320 -> 224 px), DALI's slice + resize 31 and its warp_affine 93 ms
(tools/results/bench_geometry.json).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline import affine


def warp_frame(picture_HWC: NDArray[np.uint8], index_map: affine.Affine, out_SS3: NDArray[np.uint8]) -> None:
    """Sample a picture into `out_SS3`; `index_map` (2, 3) maps output to picture pixel indices (`pixel_index_form`)."""
    cv2.warpAffine(
        picture_HWC,
        index_map,
        (out_SS3.shape[1], out_SS3.shape[0]),
        dst=out_SS3,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0),
    )
