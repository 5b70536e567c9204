"""Resamples decoded pictures to the model's on a CPU, by the plan's map, with OpenCV. Imports no torch.

Bilinear without antialiasing, black outside. A training window lies on whole packed pixels (`plan.on_whole_pixels`), so
that OpenCV's `resize` can be used, which takes a third of the time of `warpAffine`: a clip takes 18 ms instead of 26, decoding
included (tools/results/bench_geometry.json). S output size.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline import affine


class Resampler:
    """Computes the output pixels of one clip from its packed pictures, within one grey level of exact arithmetic.

    Args:
        output_to_packed: (2, 3), axis-aligned.
        size: side of the output, in pixels.
    """

    def __init__(self, output_to_packed: affine.Affine, size: int) -> None:
        self.size, self._map = size, output_to_packed
        scale_x, scale_y = float(output_to_packed[0, 0]), float(output_to_packed[1, 1])
        self._mirrored = scale_x < 0
        self._enlarged = [axis for axis, scale in enumerate((scale_x, scale_y)) if abs(scale) < 1]
        self._window = affine.whole_window(output_to_packed, size)
        self._part: tuple[int, int, affine.Affine] | None = None  # left, top, and the map for a part that starts there

    def touched(self, width: int, height: int) -> affine.Window:
        """Window of a width x height picture that is sampled and has to be decoded, at least one pixel wide and high."""
        return affine.source_window(self._map, self.size, width, height)

    def __call__(self, picture_HW3: NDArray[np.uint8], left: int, top: int, out_SS3: NDArray[np.uint8]) -> None:
        """Fill `out_SS3` from a part of the packed picture whose first pixel is its pixel (left, top)."""
        if self._window is None:
            _warp(picture_HW3, self._index_map(left, top), out_SS3)
            return
        x1, y1, x2, y2 = self._window
        window = cut_out(picture_HW3, (x1 - left, y1 - top, x2 - left, y2 - top))
        cv2.resize(window, (self.size, self.size), dst=out_SS3, interpolation=cv2.INTER_LINEAR)
        if self._mirrored:
            cv2.flip(out_SS3, 1, dst=out_SS3)  # in place: takes a third as long as mirroring the window
        for axis in self._enlarged:
            _warp_ends(picture_HW3, self._index_map(left, top), out_SS3, axis)

    def _index_map(self, left: int, top: int) -> affine.Affine:
        """Map output -> pixels of a part of the packed picture, in OpenCV's form; a clip's parts mostly share it."""
        part = self._part
        if part is None or part[:2] != (left, top):
            index_map = affine.pixel_index_form(self._map)
            index_map[:, 2] -= left, top
            self._part = part = left, top, index_map
        return part[2]


def _warp(picture_HW3: NDArray[np.uint8], index_map: affine.Affine, out_HW3: NDArray[np.uint8]) -> None:
    cv2.warpAffine(
        picture_HW3, index_map, (out_HW3.shape[1], out_HW3.shape[0]), dst=out_HW3,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0),
    )


def _warp_ends(picture_HW3: NDArray[np.uint8], index_map: affine.Affine, out_SS3: NDArray[np.uint8], axis: int) -> None:
    """Sample the first and the last column (axis 0) or row (1) again: if a window is enlarged along an axis, they depend on
    pixels outside it too, which `resize` does not use."""
    last = len(out_SS3) - 1
    ends = index_map.copy()
    ends[:, axis] *= last
    if axis == 0:
        two_S23 = np.empty((last + 1, 2, 3), np.uint8)
        _warp(picture_HW3, ends, two_S23)
        out_SS3[:, ::last] = two_S23
    else:
        two_2S3 = np.empty((2, last + 1, 3), np.uint8)
        _warp(picture_HW3, ends, two_2S3)
        out_SS3[::last] = two_2S3


def cut_out(picture_HW3: NDArray[np.uint8], window: affine.Window) -> NDArray[np.uint8]:
    """A window of a picture, without a copy if it is inside the picture; pixels outside are black."""
    x1, y1, x2, y2 = window
    inside = picture_HW3[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if inside.shape[:2] == (y2 - y1, x2 - x1):
        return inside
    canvas = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    if inside.size:
        top, left = max(-y1, 0), max(-x1, 0)
        canvas[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return canvas
