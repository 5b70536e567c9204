"""The plain PyTorch side of every op against float64 truths written as loops, value and every gradient."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import Draw, Sizes, draw_keep, gather_blocks
from tolerances import assert_exact
from torch import Tensor

from svdata2vec.kernels import dispatch
from svdata2vec.kernels import functional as K
from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.gather_blocks import decode
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder

IMPLS: tuple[Impl, ...] = ("auto", "torch")
both = pytest.mark.parametrize("impl", IMPLS)
MEAN, STD = K.IMAGENET_MEAN, K.IMAGENET_STD


def leaf(*shape: int) -> Tensor:
    """A float64 tensor that collects a gradient."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same_with_gradients(run: Callable[..., Tensor], truth: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Compare value and every gradient of `run(*leaves)` with those of `truth(*leaves)`."""
    got, want = run(*leaves), truth(*leaves)
    assert_exact(got, want, "value")
    weight = torch.randn_like(want)
    pairs = zip(torch.autograd.grad(got, leaves, weight), torch.autograd.grad(want, leaves, weight), strict=True)
    for number, (got_grad, want_grad) in enumerate(pairs):
        assert_exact(got_grad, want_grad, f"gradient of input {number}")


@both
@pytest.mark.parametrize(("window", "channels"), [(5, None), (1, None), (3, 16)])
def test_gather_frames_equals_the_loop(impl: Impl, window: int, channels: int | None) -> None:
    video = torch.randint(0, 256, (3, 7, 4, 5, 3), dtype=torch.uint8)
    keep = torch.tensor([[0, 1, 6], [2, 3, 4], [0, 5, 6]])
    got = K.gather_frames(video, keep, window=window, dtype=torch.float64, channels=channels, impl=impl)
    want = cases.gather_frames_truth(video, keep, MEAN, STD, window)
    torch.testing.assert_close(got[:, : 3 * window], want, rtol=1e-6, atol=1e-6)  # normalised in float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert not got[:, 3 * window :].any()


def test_gather_frames_feeds_a_convolution_like_the_whole_clip() -> None:
    """The point of the op: Conv2d over windows with reshaped weights equals the stem's Conv3d at the kept frames."""
    video = torch.randint(0, 256, (2, 6, 9, 8, 3), dtype=torch.uint8)
    keep = torch.tensor([[0, 3], [2, 5]])
    weight = torch.randn(4, 3, 5, 7, 7)
    whole = (video.float() - torch.tensor(MEAN)) / torch.tensor(STD)
    want = torch.nn.functional.conv3d(whole.permute(0, 4, 1, 2, 3), weight, stride=(1, 2, 2), padding=(2, 3, 3))
    want = torch.stack([want[b, :, t] for b in range(2) for t in keep[b].tolist()])
    got = torch.nn.functional.conv2d(K.gather_frames(video, keep), weight.reshape(4, 15, 7, 7), stride=2, padding=3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize(("H", "W"), [(8, 12), (2, 2)])
def test_folded_windows_hold_each_pixel_once(impl: Impl, H: int, W: int) -> None:
    """Each pixel is found again by its place, and nothing lies around them."""
    video, keep = torch.randint(0, 256, (2, 6, H, W, 3), dtype=torch.uint8), torch.tensor([[0, 3], [2, 5]])
    options = {"dtype": torch.float64, "channels": 16, "impl": impl}
    plain, got = K.gather_frames(video, keep, **options), K.gather_frames(video, keep, folded=True, **options)
    want = torch.zeros(4, 64, H // 2 + 3, W // 2 + 3, dtype=torch.float64)
    for y, x in itertools.product(range(H), range(W)):
        part = 2 * (y % 2) + x % 2
        want[:, 16 * part : 16 * part + 16, y // 2 + 2, x // 2 + 2] = plain[:, :, y, x]
    assert_exact(got, want, "folded windows")
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_frames_that_cannot_be_folded_are_refused() -> None:
    video = torch.zeros(1, 2, 6, 5, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a picture of 6 x 5 pixels cannot be folded; expected even numbers"):
        K.gather_frames(video, torch.zeros(1, 1, dtype=torch.int64), folded=True)


@both
@pytest.mark.parametrize("bits", [(3, 2), (2, 2), (3, 3), (2, 3)])
def test_gather_blocks_equals_the_loop(impl: Impl, bits: tuple[int, int]) -> None:
    """Grey levels within 0.63 of exact arithmetic: half a level of rounding, an eighth of weights in units of 2**-11."""
    shrunk, mirrored, beyond = [[4.7, 0, -6.2], [0, 3.9, 3.4]], [[-0.8, 0, 32.5], [0, 0.6, -1.25]], [[-5, 0, 35], [0, 5, -3]]
    maps = torch.tensor([shrunk, mirrored, beyond], dtype=torch.float64)
    call = gather_blocks(Sizes(3, 2, 1, side=7), Draw(), luma_bits=bits[0], chroma_bits=bits[1])
    call.fixed.update(map_B4=K.block_maps(maps), keep_BK=torch.arange(2).expand(3, 2), window=1, channels=3)
    got = K.gather_blocks(**call.fixed | {"mean": (0, 0, 0), "std": (1, 1, 1), "dtype": torch.uint8}, impl=impl)
    stored = call.fixed["blocks_BTE"].tolist()
    worst = 0.0
    for clip, numbers in enumerate(call.fixed["frame_BT"].tolist()):
        (scale_x, _, shift_x), (_, scale_y, shift_y) = maps[clip].tolist()
        for frame, number in enumerate(numbers):
            pixel = functools.partial(cases.block_pixel_truth, stored[clip][number], 32, *bits)
            for row, column in itertools.product(range(7), repeat=2):
                place = scale_x * (column + 0.5) + shift_x - 0.5, scale_y * (row + 0.5) + shift_y - 0.5
                want = cases.bilinear_truth(pixel, *place)
                found = got[clip * 2 + frame, :, row, column].tolist()
                worst = max(worst, *(abs(a - b) for a, b in zip(found, want, strict=True)))
    assert 0.3 < worst <= 0.63


@both
@pytest.mark.parametrize("folded", [False, True])
def test_gather_blocks_is_gather_frames_of_the_decoded_pictures(impl: Impl, folded: bool) -> None:
    fixed = gather_blocks(Sizes(2, 5, 3, side=20), Draw(), folded=folded).fixed
    every = fixed | {"folded": False, "keep_BK": torch.arange(5).expand(2, 5), "window": 1, "channels": 3, "dtype": torch.uint8}
    levels = K.gather_blocks(**every, mean=(0, 0, 0), std=(1, 1, 1), impl=impl)
    video = levels.permute(0, 2, 3, 1).unflatten(0, (2, 5))
    got = K.gather_blocks(**fixed, impl=impl)
    want = K.gather_frames(video, fixed["keep_BK"], channels=fixed["channels"], folded=folded, impl=impl)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert got.stride() == want.stride() and got[:, :15].std() > 0.5


@pytest.mark.parametrize("bits", [(3, 2), (2, 2), (3, 3), (2, 3)])
def test_gather_blocks_decodes_as_the_shards_do(bits: tuple[int, int]) -> None:
    form = BlockFormat(64, *bits)
    frames = torch.randint(0, 256, (3, form.frame_bytes), dtype=torch.uint8)
    whole = BlockFrameDecoder(form)
    assert (decode(frames, 64, *bits).numpy() == np.stack([whole(frame) for frame in frames.numpy()])).all()


@both
@pytest.mark.parametrize("shape", [(2, 7, 3, 5), (1, 1, 1, 1), (3, 5, 5, 2), (2, 4, 0, 3)])
def test_fuse_tokens_equals_the_loop(impl: Impl, shape: tuple[int, int, int, int]) -> None:
    B, T, kept, D = shape
    keep = draw_keep(B, T, kept)
    hidden = torch.rand(B, kept) < 0.5
    assert_same_with_gradients(
        lambda video, skeleton, temporal: K.fuse_tokens(video, skeleton, keep, hidden, temporal, impl=impl),
        lambda video, skeleton, temporal: cases.fuse_tokens_truth(video, skeleton, keep, hidden, temporal)
        + 0 * (skeleton.sum() + temporal.sum()),
        [leaf(B, kept, D), leaf(B, T, D), leaf(T, D)],
    )


@both
@pytest.mark.parametrize("shape", [(2, 7, 3, 5), (1, 1, 1, 1), (3, 5, 5, 2), (2, 4, 0, 3)])
def test_restore_tokens_equals_the_loop(impl: Impl, shape: tuple[int, int, int, int]) -> None:
    B, T, kept, D = shape
    keep = draw_keep(B, T, kept)
    assert_same_with_gradients(
        lambda encoded, mask, temporal: K.restore_tokens(encoded, mask, keep, temporal, impl=impl),
        lambda encoded, mask, temporal: cases.restore_tokens_truth(encoded, mask, keep, temporal)
        + 0 * (encoded.sum() + mask.sum()),
        [leaf(B, kept, D), leaf(D), leaf(T, D)],
    )


@both
@pytest.mark.parametrize("lengths", [None, (5, 1, 0), (3, 5, 4)])
@pytest.mark.parametrize(("heads", "width"), [(2, 6), (1, 5), (4, 4)])
def test_attention_equals_the_loop(impl: Impl, lengths: tuple[int, ...] | None, heads: int, width: int) -> None:
    lengths_B = None if lengths is None else torch.tensor(lengths)
    scale = cases.default_scale(width // heads)
    assert_same_with_gradients(
        lambda qkv: K.attention(qkv, heads, lengths_B, impl=impl),
        lambda qkv: cases.attention_truth(qkv, heads, scale, lengths_B),
        [leaf(3, 5, 3 * width)],
    )


@both
@pytest.mark.parametrize("normalise_layer", ["instance", "layer", "batch", "none"])
@pytest.mark.parametrize("normalise_average", ["instance", "layer", "none"])
def test_layer_targets_equals_the_loop(impl: Impl, normalise_layer: Any, normalise_average: Any) -> None:
    layers = torch.randn(3, 2, 7, 5, dtype=torch.float64)
    got = K.layer_targets(layers, normalise_layer=normalise_layer, normalise_average=normalise_average, impl=impl)
    assert_exact(got, cases.layer_targets_truth(layers, normalise_layer, normalise_average, 1e-5))


@both
def test_layer_targets_are_float32_and_carry_no_gradient(impl: Impl) -> None:
    target = K.layer_targets(torch.randn(2, 2, 3, 4, dtype=torch.bfloat16, requires_grad=True), impl=impl)
    assert target.dtype == torch.float32
    assert not target.requires_grad


@both
@pytest.mark.parametrize("scored", ["some", "none", "all"])
def test_masked_mse_equals_the_loop(impl: Impl, scored: str) -> None:
    scored_BT = {"some": torch.rand(3, 5) < 0.6, "none": torch.zeros(3, 5) > 0, "all": torch.ones(3, 5) > 0}[scored]
    target = torch.randn(3, 5, 4, dtype=torch.float64)
    assert_same_with_gradients(
        lambda prediction: K.masked_mse(prediction, target, scored_BT, impl=impl),
        lambda prediction: cases.masked_mse_truth(prediction, target, scored_BT),
        [leaf(3, 5, 4)],
    )


@both
def test_masked_mse_ignores_whatever_is_not_scored(impl: Impl) -> None:
    prediction = torch.randn(2, 3, 4, requires_grad=True)
    target = torch.randn(2, 3, 4)
    target[0, 1] = float("nan")
    scored = torch.ones(2, 3, dtype=torch.bool)
    scored[0, 1] = False
    loss = K.masked_mse(prediction, target, scored, impl=impl)
    (grad,) = torch.autograd.grad(loss, prediction)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert not grad[0, 1].any()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), num_clips=st.integers(1, 3), num_frames=st.integers(1, 9))
def test_any_mask_survives_fuse_and_restore(data: st.DataObject, num_clips: int, num_frames: int) -> None:
    """Whatever is kept or hidden: each token lands on its own frame and each gradient returns to its source."""
    num_kept = data.draw(st.integers(0, num_frames))
    frames = st.lists(st.integers(0, num_frames - 1), min_size=num_kept, max_size=num_kept, unique=True).map(sorted)
    keep = torch.tensor(data.draw(st.lists(frames, min_size=num_clips, max_size=num_clips)), dtype=torch.int64)
    keep = keep.view(num_clips, num_kept)
    row = st.lists(st.booleans(), min_size=num_kept, max_size=num_kept)
    hidden = torch.tensor(data.draw(st.lists(row, min_size=num_clips, max_size=num_clips)), dtype=torch.bool)
    hidden = hidden.view(num_clips, num_kept)
    leaves = [leaf(num_clips, num_kept, 2), leaf(num_clips, num_frames, 2), leaf(num_frames, 2), leaf(2)]

    def through(video: Tensor, skeleton: Tensor, temporal: Tensor, mask: Tensor) -> Tensor:
        return K.restore_tokens(K.fuse_tokens(video, skeleton, keep, hidden, temporal), mask, keep, temporal)

    def truth(video: Tensor, skeleton: Tensor, temporal: Tensor, mask: Tensor) -> Tensor:
        student = cases.fuse_tokens_truth(video, skeleton, keep, hidden, temporal)
        return cases.restore_tokens_truth(student, mask, keep, temporal) + 0 * (
            video.sum() + skeleton.sum() + temporal.sum() + mask.sum()
        )

    assert_same_with_gradients(through, truth, leaves)


@both
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 2), (3, 1, 7)])
def test_add_layer_norm_equals_the_loop(impl: Impl, shape: tuple[int, int, int]) -> None:
    assert_same_with_gradients(
        lambda *leaves: torch.stack(K.add_layer_norm(*leaves, impl=impl)),
        lambda *leaves: torch.stack(cases.add_layer_norm_truth(*leaves)),
        [leaf(*shape), leaf(*shape), leaf(shape[2]), leaf(shape[2])],
    )


@both
def test_add_layer_norm_without_a_branch_equals_the_loop(impl: Impl) -> None:
    assert_same_with_gradients(
        lambda x, *parameters: K.add_layer_norm(x, None, *parameters, impl=impl)[1],
        lambda x, *parameters: cases.add_layer_norm_truth(x, torch.zeros_like(x), *parameters)[1],
        [leaf(2, 3, 5), leaf(5), leaf(5)],
    )


@both
def test_bias_gelu_equals_the_loop(impl: Impl) -> None:
    leaves = [leaf(2, 3, 5), leaf(5)]
    assert_same_with_gradients(lambda *x: K.bias_gelu(*x, impl=impl), cases.bias_gelu_truth, leaves)


@both
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (5, 1, 1, 1), (1, 4, 1, 3)])
def test_batch_norm_prelu_equals_the_loop(impl: Impl, training: bool, shortcut: bool, shape: tuple[int, ...]) -> None:
    C = shape[1]
    mean, variance = torch.randn(C, dtype=torch.float64), torch.rand(C, dtype=torch.float64) + 0.5
    running = mean.clone(), variance.clone()

    def run(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, *more: Tensor) -> Tensor:
        maps = [cases.channels_last(x), *(cases.channels_last(added) for added in more)]
        return K.batch_norm_prelu(
            maps[0], weight, bias, slope, *running, shortcut_FCHW=maps[1] if more else None, training=training, impl=impl
        )

    def truth(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, *more: Tensor) -> Tensor:
        statistics = None if training else (mean, variance)
        return cases.batch_norm_prelu_truth(x, weight, bias, slope, statistics, more[0] if more else None, 1e-5)[0]

    leaves = [leaf(*shape), leaf(C), leaf(C), leaf(C), *([leaf(*shape)] if shortcut else [])]
    assert_same_with_gradients(run, truth, leaves)
    x, weight, bias, slope = leaves[:4]
    _, batch_mean, batch_variance = cases.batch_norm_prelu_truth(x, weight, bias, slope, None, None, 1e-5)
    want = (mean.lerp(batch_mean, 0.1), variance.lerp(batch_variance, 0.1)) if training else (mean, variance)
    for got, expected in zip(running, want, strict=True):
        assert_exact(got, expected, "running statistic")


@both
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 1, 6), (1, 4, 7, 3)])
def test_batch_norm_prelu_pool_equals_the_loop(impl: Impl, training: bool, shape: tuple[int, ...]) -> None:
    C = shape[1]
    mean, variance = torch.randn(C, dtype=torch.float64), torch.rand(C, dtype=torch.float64) + 0.5
    running = mean.clone(), variance.clone()

    def run(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
        return K.batch_norm_prelu_pool(cases.channels_last(x), weight, bias, slope, *running, training=training, impl=impl)

    def truth(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
        statistics = None if training else (mean, variance)
        return cases.max_pool_truth(cases.batch_norm_prelu_truth(x, weight, bias, slope, statistics, None, 1e-5)[0])

    leaves = [leaf(*shape), leaf(C), leaf(C), leaf(C)]
    assert_same_with_gradients(run, truth, leaves)
    _, batch_mean, batch_variance = cases.batch_norm_prelu_truth(*leaves, None, None, 1e-5)
    want = (mean.lerp(batch_mean, 0.1), variance.lerp(batch_variance, 0.1)) if training else (mean, variance)
    for got, expected in zip(running, want, strict=True):
        assert_exact(got, expected, "running statistic")


@both
@pytest.mark.parametrize("training", [False, True])
def test_fused_steps_equal_the_modules_of_pytorch(impl: Impl, training: bool) -> None:
    """Value, gradients and buffers of `LayerNorm`, `gelu(Linear)` and `BatchNorm2d` with `PReLU`, in float32."""
    norm, batch_norm, prelu = torch.nn.LayerNorm(6), torch.nn.BatchNorm2d(6).train(training), torch.nn.PReLU(6)
    linear = torch.nn.Linear(6, 6)
    mean, variance = batch_norm.running_mean.clone(), batch_norm.running_var.clone()  # type: ignore[union-attr]
    x, branch = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 6, requires_grad=True)
    maps = cases.channels_last(torch.randn(3, 6, 4, 5) + 2).requires_grad_()

    def fused() -> list[Tensor]:
        total, normed = K.add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps, impl=impl)
        hidden = K.bias_gelu(torch.nn.functional.linear(normed, linear.weight), linear.bias, impl=impl)
        weights = batch_norm.weight, batch_norm.bias, prelu.weight
        out = K.batch_norm_prelu(maps, *weights, mean, variance, shortcut_FCHW=maps, training=training, impl=impl)
        return [total, hidden, out]

    def plain() -> list[Tensor]:
        total = x + branch
        return [total, torch.nn.functional.gelu(linear(norm(total))), prelu(batch_norm(maps) + maps)]

    leaves = [x, branch, maps, *(p for module in (norm, linear, batch_norm, prelu) for p in module.parameters())]
    results = [fused(), plain()]
    weights = [torch.randn_like(tensor) for tensor in results[0]]
    grads = [torch.autograd.grad(result, leaves, weights) for result in results]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close([mean, variance], [batch_norm.running_mean, batch_norm.running_var], rtol=1e-6, atol=1e-6)


def test_auto_is_the_op_and_torch_is_plain(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_announced", set())
    qkv = torch.randn(1, 2, 6, requires_grad=True)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert "svdata2vec" in type(K.attention(qkv, 1).grad_fn).__name__
            assert "svdata2vec" not in type(K.attention(qkv, 1, impl="torch").grad_fn).__name__
    assert [record.message for record in caplog.records] == ["attention: PyTorch reference on cpu"]
