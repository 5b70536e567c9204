"""Resampling on a CPU against the reference decoder's exact weights, and training windows on whole packed pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_factory import picture

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.affine import whole_window
from svdata2vec.pipeline.plan import on_whole_pixels
from svdata2vec.pipeline.reference import resample
from svdata2vec.pipeline.resampling import Resampler

SIZE = 48


def greatest_difference(source_HW3: np.ndarray, output_to_packed: np.ndarray) -> int:
    """Largest difference from the reference decoder's output, in grey levels; only the window `touched` is passed in."""
    resampler = Resampler(output_to_packed, SIZE)
    x1, y1, x2, y2 = resampler.touched(source_HW3.shape[1], source_HW3.shape[0])
    out = np.full((SIZE, SIZE, 3), 77, np.uint8)
    resampler(source_HW3[y1:y2, x1:x2], x1, y1, out)
    return int(np.abs(out.astype(int) - resample(source_HW3, output_to_packed, SIZE)).max())


@pytest.mark.parametrize(
    "window", [(10, 20, 60, 70), (-30.3, -9, 50.2, 130), (40.25, 40, 41.5, 44), (200, 0, 300, 50), (-200, 5, -100, 9)]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_reference_decoder_sums_all_pixels_by_the_hat_function(window: tuple[float, ...], mirrored: bool) -> None:
    source = picture(97, 3)[:80]
    output_to_packed = affine.window_map(window, SIZE)
    if mirrored:
        output_to_packed = affine.compose(output_to_packed, affine.mirror_map(SIZE))
    weights = []
    for axis, pixels in ((1, 80), (0, 97)):
        centres = output_to_packed[axis, axis] * (np.arange(SIZE) + 0.5) + output_to_packed[axis, 2]
        weights.append(np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(pixels) - 0.5)))
    expected = np.einsum("sh,tw,hwc->stc", *weights, source.astype(float))
    found = resample(source, output_to_packed, SIZE)
    assert np.abs(found - expected).max() <= 0.5 + 1e-9 and found.any() == (expected > 0.5).any()


@settings(max_examples=150, deadline=None)
@given(
    x=st.integers(-60, 110), y=st.integers(-60, 110), width=st.integers(17, 140), height=st.integers(17, 140),
    mirrored=st.booleans(), fraction=st.sampled_from([0.0, 0.3]),
)
def test_any_window_within_one_grey_level_of_exact_arithmetic(x, y, width, height, mirrored, fraction):
    """On whole pixels and between them, inside the picture, partly and wholly outside, mirrored or not."""
    window = affine.window_map((x + fraction, y, x + width, y + height), SIZE)
    output_to_packed = affine.compose(window, affine.mirror_map(SIZE)) if mirrored else window
    assert (whole_window(output_to_packed, SIZE) == (x, y, x + width, y + height)) is (fraction == 0)
    assert greatest_difference(picture(97, x % 5), output_to_packed) <= 1


def test_the_neighbours_of_an_enlarged_window_matter():
    source = picture(97, 1)
    enlarged = affine.window_map((30, 30, 50, 60), SIZE)
    assert whole_window(enlarged, SIZE) == (30, 30, 50, 60) and greatest_difference(source, enlarged) <= 1
    repeated_edges = cv2.resize(source[30:60, 30:50], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    assert np.abs(repeated_edges.astype(int) - resample(source, enlarged, SIZE)).max() > 1
    much_enlarged = affine.window_map((30, 30, 30 + SIZE // 3, 60), SIZE)
    assert whole_window(much_enlarged, SIZE) is None and greatest_difference(source, much_enlarged) <= 1


@pytest.mark.parametrize(("window", "inner"), [
    ((30, 20, 70, 80), np.s_[:, 1:-1]), ((20, 30, 80, 70), np.s_[1:-1]),
    ((20, 20, 80, 80), np.s_[:]), ((30, 30, 70, 70), np.s_[1:-1, 1:-1]),
])
def test_only_the_ends_of_an_enlarged_axis_are_sampled_again(window, inner):
    """All other pixels are bit for bit those of OpenCV's `resize`."""
    for seed in range(20):
        source, out = picture(97, seed), np.empty((SIZE, SIZE, 3), np.uint8)
        Resampler(affine.window_map(window, SIZE), SIZE)(source, 0, 0, out)
        x1, y1, x2, y2 = window
        resized = cv2.resize(source[y1:y2, x1:x2], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(out[inner], resized[inner])


@pytest.mark.parametrize("mirrored", [False, True])
def test_training_windows_move_to_whole_packed_pixels(mirrored):
    packed_to_source = affine.scale_and_shift(1.7, 1.7, 100.3, -20.1)
    generator = np.random.default_rng(0)
    for _ in range(50):
        low, length = generator.uniform(-20, 60, 2), generator.uniform(SIZE / 3 + 1, 150, 2)
        wanted = affine.window_map((*low, *(low + length)), SIZE)
        wanted = affine.compose(wanted, affine.mirror_map(SIZE)) if mirrored else wanted
        moved = on_whole_pixels(affine.compose(packed_to_source, wanted), packed_to_source, SIZE)
        found = affine.compose(affine.invert(packed_to_source), moved)
        assert whole_window(found, SIZE) is not None
        corners = np.array([[0, 0], [SIZE, SIZE]])
        assert np.abs(affine.apply(found, corners) - affine.apply(wanted, corners)).max() <= 1
        assert np.sign(found[0, 0]) == (-1 if mirrored else 1)
    enlarged = affine.compose(packed_to_source, affine.window_map((3.3, 4.4, 3.3 + SIZE / 4, 99), SIZE))
    np.testing.assert_array_equal(on_whole_pixels(enlarged, packed_to_source, SIZE), enlarged)
