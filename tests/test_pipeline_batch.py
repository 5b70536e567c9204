"""Batches check themselves; pixel augmentations do what their parameters say."""

import numpy as np
import pytest
import torch

from svdata2vec.pipeline.augment import AugmentConfig, PixelAugment, draw_pixel_augment
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.pixels import apply_pixel_augment

VIDEO, JOINTS = torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, 2, 3, 17, 2)
LABELS = torch.zeros(2, dtype=torch.int64)


def test_a_good_batch_tells_its_shapes():
    batch = ClipBatch(VIDEO, JOINTS, LABELS, ("a", "b"))
    assert len(batch) == 2 and "(2, 3, 8, 8, 3)" in repr(batch) and "clips=2" in repr(batch)
    moved = batch.to("meta")
    assert moved.video_BTHWC.device.type == "meta" and moved.keys == batch.keys and moved.view_B is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_BTHWC": VIDEO.float()}, "video_BTHWC is torch.float32"),
        ({"video_BTHWC": VIDEO[0]}, "5 dimensions and 2 clips"),
        ({"video_BTHWC": VIDEO[..., :2]}, "expected 3 colours last"),
        ({"joints_BMTVC": JOINTS.double()}, "joints_BMTVC is torch.float64"),
        ({"joints_BMTVC": JOINTS[:, :, :2]}, "video_BTHWC has 3 frames but joints_BMTVC 2"),
        ({"label_B": LABELS[:1]}, "label_B is torch.int64 of shape"),
        ({"keys": ("a",)}, "expected torch.int64 with 1 dimensions and 1 clips"),
        ({"view_B": LABELS.int()}, "view_B is torch.int32"),
    ],
)
def test_a_wrong_batch_is_refused(change, message):
    fields = {"video_BTHWC": VIDEO, "joints_BMTVC": JOINTS, "label_B": LABELS, "keys": ("a", "b"), **change}
    with pytest.raises(ValueError, match=message):
        ClipBatch(**fields)


def frames(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(40, 200, (3, 16, 16, 3), dtype=np.uint8))


def changed(augment: PixelAugment) -> tuple[np.ndarray, np.ndarray]:
    before = frames()
    after = before.clone()
    apply_pixel_augment(after, augment)
    return before.numpy().astype(float), after.numpy().astype(float)


def test_colour_changes_are_what_they_are_called():
    before, after = changed(PixelAugment(brightness=1.2))
    np.testing.assert_allclose(after, np.minimum(before * 1.2, 255), atol=0.51)
    before, after = changed(PixelAugment(saturation=0.0))
    np.testing.assert_allclose(after, (before @ [0.299, 0.587, 0.114])[..., None].repeat(3, -1), atol=0.51)
    before, after = changed(PixelAugment(contrast=0.5))
    assert 0.45 < after.std() / before.std() < 0.55 and abs(after.mean() - before.mean()) < 3
    before, after = changed(PixelAugment(hue=1 / 3))  # a third of a turn exchanges the three colours
    np.testing.assert_allclose(after, np.roll(before, 1, axis=-1), atol=0.51)


def test_colour_changes_read_nothing_back():
    """On a GPU a value that is read waits for all that was queued; the device `meta` has no values to read."""
    apply_pixel_augment(frames().to("meta"), PixelAugment(0.8, 1.3, 0.7, 0.2, (2, 5, 9, 12)))
    with pytest.raises((RuntimeError, NotImplementedError)):
        frames().to("meta").float().mean().cpu()


def test_all_colour_changes_together_keep_the_order_of_their_definition():
    """Brightness, contrast around the mean grey, saturation, hue, each by itself in float64."""
    generator = np.random.default_rng(1)
    weights = np.array([0.299, 0.587, 0.114])
    for seed in range(20):
        brightness, contrast, saturation = generator.uniform(0.6, 1.4, 3)
        before = frames(seed)
        after = before.clone()
        apply_pixel_augment(after, PixelAugment(brightness, contrast, saturation, 1 / 3))
        bright = before.numpy() * brightness
        mean_grey = bright[:, ::4, ::4].reshape(-1, 3).mean(0) @ weights
        tense = contrast * bright + (1 - contrast) * mean_grey
        want = saturation * tense + (1 - saturation) * (tense @ weights)[..., None]
        np.testing.assert_allclose(after.numpy(), np.clip(np.roll(want, 1, axis=-1), 0, 255), atol=0.51)


def test_erasing_blackens_one_window_in_all_frames():
    before, after = changed(PixelAugment(erase=(2, 5, 9, 12)))
    assert not after[:, 5:12, 2:9].any()
    after[:, 5:12, 2:9] = before[:, 5:12, 2:9]
    np.testing.assert_array_equal(after, before)


def test_parameters_stay_in_their_ranges():
    config = AugmentConfig(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, erase_probability=0.5)
    drawn = [draw_pixel_augment(np.random.default_rng(seed), config, 224) for seed in range(300)]
    for name, middle, width in (("brightness", 1, 0.4), ("contrast", 1, 0.3), ("saturation", 1, 0.2), ("hue", 0, 0.1)):
        change = np.array([getattr(augment, name) for augment in drawn]) - middle
        assert -width <= change.min() < -0.9 * width and 0.9 * width < change.max() <= width
    erased = [augment.erase for augment in drawn if augment.erase]
    assert 100 < len(erased) < 200
    for x1, y1, x2, y2 in erased:
        assert 0 <= x1 < x2 <= 224 and 0 <= y1 < y2 <= 224
        assert 0.01 < (x2 - x1) * (y2 - y1) / 224**2 < 0.35
    assert draw_pixel_augment(np.random.default_rng(0), AugmentConfig(), 224) is None
