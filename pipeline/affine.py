"""Axis-aligned 2x3 maps between pictures, in continuous pixel coordinates.

Convention, everywhere: the centre of pixel (column j, row i) is the point (j + 0.5, i + 0.5); a picture of width w
spans x from 0 to w. A map is a float64 array [[a, b, c], [d, e, f]] with x' = a x + b y + c, y' = d x + e y + f. In
these coordinates resizing is a pure scale (the half-pixel rule of OpenCV's resize): one map serves pixels and joints.

Maps of many clips are composed, inverted and applied at once, (..., 2, 3), by the arithmetic of a single one.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Affine = NDArray[np.float64]  # (2, 3), or (..., 2, 3)
Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels
SMALLEST_SCALE = 1 / 3  # packed pixels per output pixel of a window that OpenCV's `resize` takes (`resampling.py`)


def scale_and_shift(scale_x: float, scale_y: float, shift_x: float, shift_y: float) -> Affine:
    """x' = scale_x x + shift_x, y' = scale_y y + shift_y."""
    return np.array([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y]], dtype=np.float64)


def window_map(window: ArrayLike, size: float) -> Affine:
    """The map from a `size` x `size` picture to the window (x1, y1, x2, y2) that was resized to it; or (..., 4) windows."""
    window = np.asarray(window, np.float64)
    affine = np.zeros((*window.shape[:-1], 2, 3))
    affine[..., [0, 1], [0, 1]] = (window[..., 2:] - window[..., :2]) / size
    affine[..., 2] = window[..., :2]
    return affine


def mirror_map(size: float) -> Affine:
    """x -> size - x."""
    return scale_and_shift(-1.0, 1.0, size, 0.0)


def compose(outer: Affine, inner: Affine) -> Affine:
    """The map p -> outer(inner(p))."""
    product = outer[..., :1] * inner[..., :1, :] + outer[..., 1:2] * inner[..., 1:, :]
    product[..., 2] += outer[..., 2]
    return product


def invert(affine: Affine) -> Affine:
    """The inverse map. Raises ValueError when a map collapses the plane."""
    a, b, c, d, e, f = np.moveaxis(affine.reshape(*affine.shape[:-2], 6), -1, 0)
    determinant = a * e - b * d
    wrong = ~(np.isfinite(affine).all(axis=(-2, -1)) & (np.abs(determinant) >= 1e-12))
    if wrong.any():
        first = affine[wrong][0] if affine.ndim > 2 else affine
        raise ValueError(f"affine map {first.tolist()} has no inverse: expected finite numbers and a non-zero scale")
    inverse = np.stack([e, -b, b * f - c * e, -d, a, c * d - a * f], axis=-1) / determinant[..., None]
    return inverse.reshape(affine.shape)


def apply(affine: Affine, points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map points (..., 2), all by one map or each by its own (maps broadcast to the points)."""
    moved = np.empty(np.broadcast_shapes(points.shape, (*affine.shape[:-2], 2)))
    for axis in (0, 1):
        along = moved[..., axis]
        np.multiply(points[..., axis], affine[..., axis, axis], out=along)
        along += affine[..., axis, 2]
    return moved


def corners(output_to_source: Affine, size: int) -> NDArray[np.float64]:
    """(2, 2): where the first and the last corner of the output, (0, 0) and (size, size), lie."""
    return apply(output_to_source, np.array([[0.0, 0.0], [size, size]]))


def pixel_index_form(output_to_source: Affine) -> Affine:
    """The same map between pixel *indices* (centre of pixel 0 = 0), as OpenCV's warpAffine takes it."""
    index_map = output_to_source.copy()
    index_map[:, 2] += output_to_source[:, :2].sum(axis=1) / 2 - 0.5
    return index_map


def source_window(output_to_source: Affine, size: int, width: int, height: int) -> Window:
    """Pixels (x1, y1, x2, y2) of a width x height picture that bilinear sampling of the whole output can touch.

    At least one pixel wide and high, even if the output is entirely outside the picture.
    """
    (x1, x2), (y1, y2) = (
        _touched(row, size, length) for row, length in zip(output_to_source.tolist(), (width, height), strict=True)
    )
    return x1, y1, x2, y2


def _touched(row: list[float], size: int, length: int) -> tuple[int, int]:
    """First pixel and the one after the last, of `length` pixels, along the axis that this row of a map computes."""
    by_x, by_y, shift = row
    low, high = sorted(end * by_x + end * by_y + shift - 0.5 for end in (0.5, size - 0.5))  # outermost sampling points
    first = min(max(math.floor(low) - 1, 0), length - 1)
    return first, min(max(math.floor(high) + 3, first + 1), length)


def whole_window(output_to_packed: Affine, size: int) -> Window | None:
    """The window that the output shows, if it lies on whole pixels and is at most three times smaller; else None.

    At a smaller scale more than one row of output pixels per side would lie beyond the centres of the window's outermost
    pixels.
    """
    (scale_x, _, low_x), (_, scale_y, low_y) = output_to_packed.tolist()
    ends = (*sorted((low_x, low_x + size * scale_x)), *sorted((low_y, low_y + size * scale_y)))
    x1, x2, y1, y2 = map(round, ends)
    between = max(abs(end - whole) for end, whole in zip(ends, (x1, x2, y1, y2), strict=True))
    if between > 1e-6 or min(abs(scale_x), scale_y) <= SMALLEST_SCALE:
        return None
    return x1, y1, x2, y2
