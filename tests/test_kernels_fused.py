"""The fused ops of the blocks, Triton against the references, on a GPU for real or by the interpreter."""

import itertools
from dataclasses import replace

import kernel_cases as cases
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_compare import all_dtypes, assert_call, assert_op, layouts
from kernel_device import DEVICE, triton_marks
from kernel_inputs import CALLS, Call, Draw, Sizes, batch_norm_prelu, batch_norm_prelu_pool

from svdata2vec.kernels import add_layer_norm, batch_statistics, bias_gelu, launch
from svdata2vec.kernels import functional as K
from svdata2vec.kernels.batch_norm_prelu import _apply_kernel
from svdata2vec.kernels.batch_norm_prelu_pool import (
    _apply_pool_kernel,
    _pool_input_kernel,
    _pool_sums_kernel,
    launch_batch_norm_prelu_pool,
)
from svdata2vec.kernels.batch_statistics import _statistics_kernel

pytestmark = triton_marks()

ROWS = [
    pytest.param((3, 5, 37), id="odd and prime"),
    pytest.param((1, 1, 1), id="one"),
    pytest.param((2, 13, 256), id="the model's"),
    pytest.param((2, 3, 300), id="wide"),
    pytest.param((0, 4, 8), id="no clip"),
    pytest.param((2, 0, 8), id="no token"),
]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What large tensors do in small ones: many tiles, several to a chunk, several chunks, a merge of several steps."""
    shrink_tiles(monkeypatch)


def shrink_tiles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(launch, "TILE_VALUES", 64)
    patch.setattr(launch, "TILE_CHANNELS", 8)
    patch.setattr(add_layer_norm, "TILE_VALUES", 64)
    for module in (add_layer_norm, bias_gelu):
        patch.setattr(module, "MAX_ROW_CHUNKS", 3)
    patch.setattr(batch_statistics, "MAX_SUMMING_PROGRAMS", 6)
    patch.setattr(batch_statistics, "MERGED_CHUNKS", 2)


def check(op: str, shape: tuple[int, int, int], dtype: torch.dtype, layout: str = "contiguous") -> None:
    B, T, D = shape
    assert_call(CALLS[op](Sizes(B, T, D=D, hidden=D), Draw(dtype, DEVICE, dtype)), layout)


@all_dtypes
@layouts
@pytest.mark.parametrize("shape", ROWS)
def test_add_layer_norm(dtype: torch.dtype, layout: str, shape: tuple[int, int, int]) -> None:
    if shape == (1, 1, 1):
        shape = (1, 1, 8)  # of one channel the norm is the bias, of two it is +1 and -1 (see below)
    check("add_layer_norm", shape, dtype, layout)


def test_add_layer_norm_of_two_channels_has_the_gradient_that_rounding_leaves() -> None:
    """The norm is +1 and -1 whatever x is: its gradient is a difference of equal numbers, right to a few of their roundings."""
    x, branch, weight = (torch.tensor([[values]]) for values in ([0.25, 1.0], [0.5, -1.0], [1.5, -2.0]))
    grads = []
    for impl, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaf, other, scale = (tensor.to(DEVICE, dtype) for tensor in (x, branch, weight[0, 0]))
        normed = K.add_layer_norm(leaf.requires_grad_(), other, scale, scale, impl=impl)[1]
        grads += torch.autograd.grad(normed, leaf, torch.tensor([[[3.0, 1.0]]]).to(normed))
    deviation, largest = 0.375, 4.5  # of the sums 0.75 and 0; 3 * 1.5
    bound = 16 * torch.finfo(torch.float32).eps * largest / deviation
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=0, atol=bound)


@pytest.mark.usefixtures("small_tiles")
def test_add_layer_norm_in_many_tiles() -> None:
    check("add_layer_norm", (5, 7, 19), torch.float32)


@all_dtypes
@layouts
def test_add_layer_norm_without_a_branch_is_the_layer_norm(dtype: torch.dtype, layout: str) -> None:
    check("add_layer_norm without a branch", (3, 5, 37), dtype, layout)
    x, ones = torch.randn(3, 5, 37, device=DEVICE), torch.ones(37, device=DEVICE)
    assert K.add_layer_norm(x, None, ones, ones, impl="triton")[0] is x


@pytest.mark.parametrize("used", [0, 1], ids=["the sum", "the norm"])
def test_add_layer_norm_of_which_one_result_is_used(used: int) -> None:
    assert_op(
        lambda x, branch, weight, bias, impl: (
            K.add_layer_norm(x, branch, weight, bias, impl=impl)[used] + 0 * (weight.sum() + bias.sum())
        ),
        [torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8), torch.randn(8)],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_add_layer_norm_under_autocast_writes_what_the_next_product_reads(dtype: torch.dtype) -> None:
    """A float32 stream, a half precision branch, float32 parameters: the plain norm's values, rounded once."""
    x, branch = torch.randn(2, 5, 24).to(DEVICE), torch.randn(2, 5, 24).to(DEVICE, dtype)
    norm = torch.nn.LayerNorm(24).to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    leaves = [x.requires_grad_(), branch.requires_grad_(), norm.weight, norm.bias]
    total, normed = K.add_layer_norm(x, branch, norm.weight, norm.bias, dtype=dtype, impl="triton")
    assert (total.dtype, normed.dtype) == (torch.float32, dtype)
    plain = x + branch
    want = norm(plain)
    torch.testing.assert_close(total, plain, rtol=0, atol=0)
    torch.testing.assert_close(normed.float(), want, rtol=torch.finfo(dtype).eps, atol=1e-5)
    weight = torch.randn_like(normed)
    got_grads = torch.autograd.grad([normed, total], leaves, [weight, torch.ones_like(total)])
    want_grads = torch.autograd.grad([want, plain], leaves, [weight.float(), torch.ones_like(total)])
    assert [grad.dtype for grad in got_grads] == [leaf.dtype for leaf in leaves]
    for got, expected in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(got.dtype).eps, atol=2e-5)


@all_dtypes
@layouts
@pytest.mark.parametrize("shape", ROWS)
def test_bias_gelu(dtype: torch.dtype, layout: str, shape: tuple[int, int, int]) -> None:
    check("bias_gelu", shape, dtype, layout)


@pytest.mark.usefixtures("small_tiles")
def test_bias_gelu_in_many_tiles() -> None:
    check("bias_gelu", (5, 7, 19), torch.float32)


def test_bias_gelu_far_from_zero_is_the_identity_or_nothing() -> None:
    x = torch.tensor([-60.0, -12.0, 12.0, 60.0], device=DEVICE).view(1, 1, 4).requires_grad_()
    out = K.bias_gelu(x, torch.zeros(4, device=DEVICE), impl="triton")
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x.detach().clamp(min=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(grad, (x.detach() > 0).float(), rtol=0, atol=1e-6)


def check_batch_norm(
    shape: tuple[int, int, int, int], dtype: torch.dtype, training: bool, shortcut: bool, layout: str = "contiguous"
) -> None:
    call = batch_norm_prelu(Sizes(maps=shape), Draw(dtype, DEVICE, dtype), shortcut=shortcut, training=training)
    assert_call(call, layout)


MAPS = [
    pytest.param((3, 5, 4, 7), True, False, id="odd and prime"),
    pytest.param((3, 5, 4, 7), True, True, id="odd and prime, shortcut"),
    pytest.param((2, 3, 1, 2), True, True, id="four values"),
    pytest.param((2, 300, 3, 2), True, False, id="wide"),
    pytest.param((2, 7, 3, 2), False, True, id="evaluation, shortcut"),
    pytest.param((1, 1, 1, 1), False, False, id="evaluation of one value"),
    pytest.param((0, 5, 2, 3), False, True, id="evaluation of no map"),
]


@all_dtypes
@layouts
@pytest.mark.parametrize(("shape", "training", "shortcut"), MAPS)
def test_batch_norm_prelu(
    dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int], training: bool, shortcut: bool
) -> None:
    check_batch_norm(shape, dtype, training, shortcut, layout)


def spread_batch_norm(shape: tuple[int, int, int, int], training: bool, shortcut: bool) -> Call:
    """The first draw whose channels have a spread: a few values may lie so close that their differences have no digits left."""
    for seed in itertools.count():
        torch.manual_seed(seed)
        draw = Draw(torch.float32, DEVICE, torch.float32)
        call = batch_norm_prelu(Sizes(maps=shape), draw, shortcut=shortcut, training=training)
        if not training or call.inputs["x_FCHW"].std((0, 2, 3), correction=0).min() > 0.5:
            return call
    raise AssertionError  # endless


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 11), st.integers(1, 5), st.integers(1, 5)),
    training=st.booleans(),
    shortcut=st.booleans(),
)
def test_batch_norm_of_any_map_in_many_tiles(sizes: tuple[int, int, int, int], training: bool, shortcut: bool) -> None:
    F, C, H, W = sizes
    # Two values are normalised to +1 and -1 whatever they are: their gradient is a difference of equal numbers.
    training = training and F * H * W > 3
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch)
        assert_call(spread_batch_norm((F, C, H, W), training, shortcut))


POOLED = [
    pytest.param((3, 11, 5, 7), True, id="odd and prime"),
    pytest.param((2, 64, 8, 6), True, id="even"),
    pytest.param((2, 37, 1, 4), True, id="one row"),
    pytest.param((2, 300, 3, 3), True, id="wide"),
    pytest.param((2, 7, 4, 5), False, id="evaluation"),
    pytest.param((1, 1, 1, 1), False, id="evaluation of one value"),
    pytest.param((0, 5, 2, 3), False, id="evaluation of no map"),
]


@all_dtypes
@layouts
@pytest.mark.parametrize(("shape", "training"), POOLED)
def test_batch_norm_prelu_pool(dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int], training: bool) -> None:
    assert_call(batch_norm_prelu_pool(Sizes(maps=shape), Draw(dtype, DEVICE, dtype), training=training), layout)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 7), st.integers(1, 7)), training=st.booleans())
def test_the_maximum_of_any_map_in_many_tiles(sizes: tuple[int, int, int, int], training: bool) -> None:
    F, _, H, W = sizes
    call = spread_batch_norm(sizes, training and F * H * W > 3, shortcut=False)
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch)
        assert_call(replace(call, op="batch_norm_prelu_pool"))


def test_the_first_of_equal_values_has_the_gradient_and_nan_propagates() -> None:
    """As in PyTorch, where a map is flat and where it has diverged."""
    norm, prelu, pool = torch.nn.BatchNorm2d(2).eval().to(DEVICE), torch.nn.PReLU(2).to(DEVICE), torch.nn.MaxPool2d(3, 2, 1)
    x = cases.channels_last(torch.ones(2, 2, 5, 4)).to(DEVICE)
    x[0, 1, 2, 1], x[0, 1, 0, 0] = torch.nan, -torch.inf
    x[1, 0, :2, :2] = x[1, 0, 3:, 2:] = -torch.inf  # whole windows, at two corners
    vectors = norm.weight, norm.bias, prelu.weight, norm.running_mean, norm.running_var
    outcomes = []
    for run in (
        lambda leaf: K.batch_norm_prelu_pool(leaf, *vectors, training=False, impl="triton"),  # type: ignore[arg-type]
        lambda leaf: pool(prelu(norm(leaf))),
    ):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        weight = torch.arange(1, 1 + out.numel(), device=DEVICE).view(out.shape).to(out)
        outcomes.append((out, torch.autograd.grad(out, leaf, weight)[0]))
    torch.testing.assert_close(*outcomes, equal_nan=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_running_statistics_are_those_of_the_module(momentum: float) -> None:
    norm, prelu = torch.nn.BatchNorm2d(11, momentum=momentum).to(DEVICE), torch.nn.PReLU(11).to(DEVICE)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[union-attr]
    for _ in range(3):
        x = cases.channels_last(3 * torch.randn(2, 11, 5, 3) - 4).to(DEVICE)
        got = K.batch_norm_prelu(
            x, norm.weight, norm.bias, prelu.weight, mean, variance, training=True, momentum=momentum, impl="triton"
        )
        torch.testing.assert_close(got, prelu(norm(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([mean, variance], [norm.running_mean, norm.running_var], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_the_variance_survives_a_mean_far_from_zero() -> None:
    """Values of 4096 +- 1: the difference of the mean square and the squared mean has no digit left in float32."""
    values = 4096 + torch.randn(6, 9, 5, 7, dtype=torch.float64)
    x = cases.channels_last(values.float()).to(DEVICE)
    want = x.double().var((0, 2, 3), correction=0)
    naive = x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
    assert ((naive.double() - want).abs() / want).max() > 0.1
    mean, variance = batch_statistics.launch_batch_statistics(x)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), want, rtol=1e-3, atol=0)


def test_rows_are_found_beyond_two_giga_elements() -> None:
    """Clips 2**30 + 64 values apart: the stride fits in 32 bits, the third clip's offset doesn't. Few pages are touched."""
    apart = 2**30 + 64
    x = torch.empty(2 * apart + 5 * 48, dtype=torch.float16, device=DEVICE).as_strided((3, 5, 48), (apart, 48, 1))
    x.copy_(torch.randn(x.shape))
    ones, zeros = torch.ones(48, device=DEVICE), torch.zeros(48, device=DEVICE)
    for tensors in zip(
        (*K.add_layer_norm(x, x, ones, zeros, impl="triton"), K.bias_gelu(x, ones, impl="triton")),
        (*K.add_layer_norm(x, x, ones, zeros, impl="torch"), K.bias_gelu(x, ones, impl="torch")),
        strict=True,
    ):
        torch.testing.assert_close(*tensors, rtol=1e-3, atol=2e-3)


def test_rows_of_a_map_are_found_beyond_two_giga_elements() -> None:
    """One program on three rows of 2**30 + 64 channels, of which it serves the first eight."""
    apart = 2**30 + 64
    x, out = (torch.empty(2 * apart + 8, dtype=torch.float16, device=DEVICE) for _ in range(2))
    values = [tensor.as_strided((3, 8), (apart, 1)) for tensor in (x, out)]
    values[0].copy_(torch.randn(3, 8))
    vectors = tuple(torch.rand(8, device=DEVICE) + 0.5 for _ in range(5))
    tiles = {"BLOCK_R": 4, "BLOCK_C": 8, "num_warps": 4}
    launch.launch(_apply_kernel, (1, 1), x, x, vectors, out, 3, apart, 0.0, HAS_SHORTCUT=False, **tiles)
    weight, bias, slope, mean, variance = vectors
    z = (values[0].float() - mean) / variance.sqrt() * weight + bias
    torch.testing.assert_close(values[1].float(), torch.where(z > 0, z, slope * z), rtol=1e-3, atol=1e-3)
    found = [torch.empty(8, device=DEVICE) for _ in range(2)]
    launch.launch(_statistics_kernel, (1, 1), x, *found, 3, apart, 4, **tiles)
    torch.testing.assert_close(found[0], values[0].float().mean(0), rtol=1e-5, atol=1e-5)


def test_frames_of_a_pooled_map_are_found_beyond_two_giga_elements() -> None:
    """Three frames of 2**30 + 64 values, of which the upper left corner is looked at. Few pages are touched."""
    apart, C = 2**30 + 64, 8
    picture, tiles = (apart // (4 * C), 4, 1, 1), {"BLOCK_R": 8, "BLOCK_C": C}
    x, grad_x = (torch.empty(2 * apart + 8 * C, dtype=torch.float16, device=DEVICE) for _ in range(2))
    corners, grads = (tensor.as_strided((3, 2, 4, C), (apart, 4 * C, C, 1)) for tensor in (x, grad_x))
    corners.copy_(torch.randn(3, 2, 4, C))
    vectors = tuple(torch.rand(C, device=DEVICE) + 0.5 for _ in range(5))
    out, tap = torch.empty(3, C, device=DEVICE), torch.empty(3, C, dtype=torch.uint8, device=DEVICE)
    launch.launch(_apply_pool_kernel, (3, 1), x, vectors, out, tap, C, 1, picture, 0.0, **tiles)
    weight, bias, slope, mean, variance = vectors
    z = (corners.float() - mean) / variance.sqrt() * weight + bias
    want, where = torch.where(z > 0, z, slope * z)[:, :, :2].flatten(1, 2).max(1)
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-3)
    assert (tap == torch.tensor([4, 5, 7, 8], device=DEVICE)[where]).all()

    grad, sums = torch.randn(3, C, device=DEVICE), torch.empty(1, 3, C, device=DEVICE)
    launch.launch(_pool_sums_kernel, (1, 1), grad, tap, x, vectors, sums, C, 1, 3, 3, picture, 0.0, **tiles)
    chosen = z[:, :, :2].flatten(1, 2).gather(1, where[:, None])[:, 0]
    grad_z = torch.where(chosen > 0, grad, slope * grad)
    torch.testing.assert_close(sums[0, 1], grad_z.sum(0), rtol=1e-3, atol=1e-3)
    inputs = grad, tap, x, vectors, sums[0], grad_x
    launch.launch(_pool_input_kernel, (3, 1), *inputs, 1, C, 1, picture, 0.0, TRAINING=False, **tiles)
    spread = torch.zeros(3, 4, C, device=DEVICE).scatter(1, where[:, None], (grad_z * weight / variance.sqrt())[:, None])
    torch.testing.assert_close(grads[:, :, :2].flatten(1, 2).float(), spread, rtol=2e-3, atol=2e-3)
    assert not grads[:, :, 2:].any()


def test_a_frame_beyond_32_bits_is_refused() -> None:
    x = torch.empty(1, device="meta").expand(1, 64, 2**13, 2**12)
    with pytest.raises(ValueError, match="pool: 2147483648 values a frame; the Triton kernel counts to 2147483647; use"):
        launch_batch_norm_prelu_pool(x, torch.empty(64), torch.empty(64), torch.empty(64), None, None, 1e-5)
