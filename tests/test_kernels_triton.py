"""The Triton kernels against the references, on a GPU for real or by the interpreter (see kernel_device.py).

Judged by distance: the kernel and the reference are both compared with the reference in float64 (see tolerances.py).
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_compare import all_dtypes, assert_call, assert_op, layouts
from kernel_device import DEVICE, triton_marks
from kernel_inputs import CALLS, Call, Draw, Sizes, gather_blocks, masked_mse
from kernel_step import step_inputs, step_loss
from torch import Tensor

from svdata2vec.kernels import functional as K
from svdata2vec.kernels import launch
from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.fuse_tokens import fuse_tokens_backward_reference, launch_fuse_tokens_backward
from svdata2vec.kernels.gather_blocks import launch_gather_blocks
from svdata2vec.kernels.restore_tokens import launch_restore_tokens_backward, restore_tokens_backward_reference

pytestmark = triton_marks()


def drawn(op: str, dtype: torch.dtype, sizes: Sizes) -> Call:
    """A call whose tensors all have one dtype, on the device of the tests."""
    return CALLS[op](sizes, Draw(dtype, DEVICE, dtype))


def token_sizes(shape: tuple[int, ...]) -> Sizes:
    B, T, kept, D = shape
    return Sizes(B, T, kept, D)


@all_dtypes
@pytest.mark.parametrize("folded", [False, True], ids=["pixel by pixel", "folded"])
@pytest.mark.parametrize(
    ("shape", "window", "channels"),
    [
        pytest.param((2, 6, 5, 7, 3), 5, None, id="odd"),
        pytest.param((2, 6, 10, 4, 3), 5, None, id="even"),
        pytest.param((2, 6, 16, 16, 3), 5, 16, id="padded channels"),
        pytest.param((1, 1, 1, 1, 1), 5, None, id="one"),
        pytest.param((2, 4, 3, 5, 4), 1, 8, id="window of one, all kept"),
        pytest.param((2, 4, 3, 5, 0), 3, None, id="nothing kept"),
    ],
)
def test_gather_frames(
    dtype: torch.dtype, shape: tuple[int, ...], window: int, channels: int | None, folded: bool
) -> None:
    B, T, H, W, kept = shape
    H, W = (H + H % 2, W + W % 2) if folded else (H, W)
    call = drawn("gather_frames", dtype, Sizes(B, T, kept, window=window, channels=channels))
    video = torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8).to(DEVICE)
    call = replace(call, fixed={**call.fixed, "video_BTHWC": video, "folded": folded})
    results = [call(impl=impl)[0] for impl in ("triton", "torch")]
    # The same float32 operations in the same order: not one bit may differ.
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert results[0].stride() == results[1].stride() or not results[0].numel()


@pytest.mark.parametrize("folded", [False, True], ids=["pixel by pixel", "folded"])
@pytest.mark.parametrize(
    ("shape", "window", "channels", "bits", "dtype"),
    [
        pytest.param((1, 6, 11, 1), 5, None, (3, 2), torch.bfloat16, id="odd"),
        pytest.param((1, 4, 11, 1), 3, None, (2, 2), torch.float32, id="two bits"),
        pytest.param((1, 4, 11, 1), 3, None, (3, 3), torch.float16, id="three bits"),
        pytest.param((1, 4, 26, 1), 3, 16, (3, 2), torch.float32, id="padded channels, larger than a program"),
        pytest.param((1, 1, 1, 1), 5, None, (3, 2), torch.bfloat16, id="one"),
        pytest.param((2, 2, 12, 2), 1, 4, (3, 2), torch.bfloat16, id="window of one, all kept"),
        pytest.param((2, 4, 5, 0), 3, None, (3, 2), torch.bfloat16, id="nothing kept"),
    ],
)
def test_gather_blocks(
    shape: tuple[int, ...], window: int, channels: int | None, bits: tuple[int, int], dtype: torch.dtype, folded: bool
) -> None:
    B, T, side, kept = shape
    sizes = Sizes(B, T, kept, side=side, window=window, channels=channels)
    call = gather_blocks(sizes, Draw(dtype, DEVICE), luma_bits=bits[0], chroma_bits=bits[1], folded=folded)
    results = [call(impl=impl)[0] for impl in ("triton", "torch")]
    torch.testing.assert_close(*results, rtol=0, atol=0)  # integers up to the grey level, then the operations of gather_frames
    assert results[0].stride() == results[1].stride() or not results[0].numel()


def test_gather_blocks_as_grey_levels() -> None:
    fixed = gather_blocks(Sizes(2, 3, 2, side=9, window=1, channels=3), Draw(torch.uint8, DEVICE)).fixed
    results = [K.gather_blocks(**fixed, mean=(0, 0, 0), std=(1, 1, 1), impl=impl) for impl in ("triton", "torch")]
    assert torch.equal(*results) and len(results[0].unique()) > 50


def test_gather_blocks_reads_beyond_two_gibibytes_and_only_what_is_stored() -> None:
    """Clips 2**31 + 64 bytes apart; on a GPU a number without a frame, which nothing checks there, is a missing frame."""
    fixed = gather_blocks(Sizes(2, 3, 1, side=9, window=3), Draw(torch.float32, DEVICE)).fixed
    dense, apart = fixed["blocks_BTE"], 2**31 + 64
    base = torch.empty(apart + dense[0].numel(), dtype=torch.uint8, device=DEVICE)
    blocks = base.as_strided(dense.shape, (apart, dense.shape[2], 1))
    blocks.copy_(dense)
    got, want = K.gather_blocks(**fixed | {"blocks_BTE": blocks}, impl="triton"), K.gather_blocks(**fixed, impl="torch")
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    ones = [1.0, 1.0, 1.0]
    missing, maps, keep, form = torch.full_like(fixed["frame_BT"], 10**9), fixed["map_B4"], fixed["keep_BK"], fixed["form"]
    nothing = launch_gather_blocks(dense, missing, maps, keep, list(form), 9, ones, ones, 3, 16, False, torch.float32)
    assert not nothing.any()


def test_gather_frames_of_a_slice_of_a_longer_clip() -> None:
    video = torch.randint(0, 256, (2, 9, 4, 5, 3), dtype=torch.uint8).to(DEVICE)[:, 1:8:2]
    keep = torch.tensor([[0, 3], [1, 2]]).to(DEVICE)
    results = [K.gather_frames(video, keep, impl=impl) for impl in ("triton", "torch")]
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_gather_frames_reads_beyond_two_gibibytes() -> None:
    """Clips 2**30 + 64 bytes apart: the stride fits in 32 bits, the third clip's offset doesn't. Few pages are touched."""
    frame, apart = 4 * 5 * 3, 2**30 + 64
    base = torch.empty(2 * apart + 3 * frame, dtype=torch.uint8, device=DEVICE)
    video = base.as_strided((3, 3, 4, 5, 3), (apart, frame, 15, 3, 1))
    video.copy_(torch.randint(0, 256, video.shape, dtype=torch.uint8))
    keep = torch.tensor([[0, 2], [1, 2], [0, 1]]).to(DEVICE)
    got = K.gather_frames(video, keep, impl="triton")
    torch.testing.assert_close(got, K.gather_frames(video.contiguous(), keep, impl="torch"), rtol=0, atol=0)


def test_attention_reads_beyond_two_giga_elements() -> None:
    apart = 2**30 + 64
    base = torch.empty(2 * apart + 5 * 48, dtype=torch.float16, device=DEVICE)
    qkv = base.as_strided((3, 5, 48), (apart, 48, 1))
    qkv.copy_(torch.randn(qkv.shape))
    got, want = K.attention(qkv, 1, impl="triton"), K.attention(qkv.contiguous(), 1, impl="triton")
    torch.testing.assert_close(got, want, rtol=0, atol=0)


TOKEN_SHAPES = [
    pytest.param((3, 7, 3, 37), id="odd and prime"),
    pytest.param((1, 1, 1, 1), id="one"),
    pytest.param((2, 40, 13, 256), id="the model's"),
    pytest.param((2, 5, 5, 300), id="all kept, wide"),
    pytest.param((2, 5, 0, 16), id="nothing kept"),
    pytest.param((0, 5, 2, 16), id="no clip"),
    pytest.param((35, 3, 2, 5), id="more clips than chunks"),
]


@all_dtypes
@layouts
@pytest.mark.parametrize("shape", TOKEN_SHAPES)
def test_fuse_tokens(dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> None:
    assert_call(drawn("fuse_tokens", dtype, token_sizes(shape)), layout)


@pytest.mark.parametrize("hidden", [False, True], ids=["all visible", "all hidden"])
def test_fuse_tokens_with_float32_parameters_under_bfloat16_tokens(hidden: bool) -> None:
    call = CALLS["fuse_tokens"](Sizes(2, 6, 3, 8), Draw(torch.bfloat16, DEVICE))
    call.fixed["skeleton_hidden_BK"].fill_(hidden)
    assert_call(call)


@all_dtypes
@layouts
@pytest.mark.parametrize("shape", TOKEN_SHAPES)
def test_restore_tokens(dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> None:
    assert_call(drawn("restore_tokens", dtype, token_sizes(shape)), layout)


@pytest.mark.parametrize("op", ["fuse_tokens", "restore_tokens"])
def test_a_token_of_a_frame_outside_the_clip_changes_no_other_gradient(op: str) -> None:
    """Nothing refuses it on a GPU; its own gradient is undefined."""
    keep, frames, dtypes = torch.tensor([[1, 4], [0, 9]], device=DEVICE), 4, (torch.float32, torch.float32)
    hidden, grad_BKD = torch.tensor([[False, True], [True, False]], device=DEVICE), torch.randn(2, 2, 5, device=DEVICE)
    if op == "fuse_tokens":
        got = launch_fuse_tokens_backward(grad_BKD, keep, hidden, frames, *dtypes)
        want = fuse_tokens_backward_reference(grad_BKD[:, :1], keep[:, :1], hidden[:, :1], frames, *dtypes)
    else:
        grad_BTD = torch.randn(2, frames, 5, device=DEVICE)
        got = launch_restore_tokens_backward(grad_BTD, keep, *dtypes)
        want = restore_tokens_backward_reference(grad_BTD, keep[:, :1], *dtypes)
    torch.testing.assert_close((got[0][:, :1], *got[1:]), want)


@all_dtypes
@layouts
@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        pytest.param((2, 13, 8, 32), None, id="the student's"),
        pytest.param((1, 40, 2, 32), None, id="the teacher's"),
        pytest.param((3, 5, 3, 24), (5, 0, 2), id="ragged, one empty clip"),
        pytest.param((1, 77, 1, 17), (50,), id="prime and ragged"),
        pytest.param((1, 128, 1, 64), None, id="the largest"),
        pytest.param((2, 1, 3, 16), None, id="one token"),
        pytest.param((2, 0, 2, 16), None, id="no token"),
        pytest.param((0, 3, 2, 16), None, id="no clip"),
    ],
)
def test_attention(
    dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int], lengths: tuple[int, ...] | None
) -> None:
    B, N, H, E = shape
    call = drawn("attention", dtype, Sizes(B, N, H=H, D=H * E))
    call.fixed["lengths_B"] = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    assert_call(call, layout)


def test_attention_of_large_scores_stays_finite() -> None:
    qkv = (60 * torch.randn(1, 6, 48)).to(DEVICE)
    assert_op(lambda x, impl: K.attention(x, 1, scale=1.0, impl=impl), [qkv])


def test_attention_accepts_lengths_in_32_bits_and_an_expanded_gradient() -> None:
    qkv = torch.randn(2, 4, 48).to(DEVICE).requires_grad_()
    lengths = torch.tensor([3, 4], dtype=torch.int32, device=DEVICE)
    grads = [torch.autograd.grad(K.attention(qkv, 1, lengths, impl=impl).sum(), qkv)[0] for impl in ("triton", "torch")]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@all_dtypes
@layouts
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((3, 2, 7, 37), id="odd and prime"),
        pytest.param((8, 1, 40, 256), id="the model's"),
        pytest.param((1, 1, 1, 1), id="one"),
        pytest.param((2, 2, 300, 3), id="long"),
        pytest.param((2, 0, 4, 5), id="no clip"),
    ],
)
def test_layer_targets(dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> None:
    L, B, T, D = shape
    assert_call(drawn("layer_targets", dtype, Sizes(B, T, D=D, L=L)), layout)


def test_layer_targets_of_constant_channels_are_zero() -> None:
    layers = torch.full((2, 1, 5, 4), 7.0, device=DEVICE)
    assert not K.layer_targets(layers, impl="triton").any()


@all_dtypes
@layouts
@pytest.mark.parametrize("scored", ["some", "none", "all"])
@pytest.mark.parametrize("shape", [(3, 7, 37), (1, 1, 1), (2, 40, 256), (2, 3, 700), (0, 3, 4)], ids=str)
def test_masked_mse(dtype: torch.dtype, layout: str, scored: str, shape: tuple[int, int, int]) -> None:
    share = {"some": 0.6, "none": -1.0, "all": 2.0}[scored]
    B, T, D = shape
    assert_call(masked_mse(Sizes(B, T, D=D), Draw(dtype, DEVICE), share=share), layout)


def test_masked_mse_does_not_read_what_is_not_scored() -> None:
    prediction = torch.randn(2, 3, 4).to(DEVICE).requires_grad_()
    target = torch.randn(2, 3, 4).to(DEVICE)
    target[0, 1] = float("nan")
    scored = torch.ones(2, 3, dtype=torch.bool, device=DEVICE)
    scored[0, 1] = False
    loss = K.masked_mse(prediction, target, scored, impl="triton")
    (grad,) = torch.autograd.grad(loss, prediction)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), num_clips=st.integers(1, 3), num_frames=st.integers(1, 12))
def test_any_mask_survives_fuse_and_restore(data: st.DataObject, num_clips: int, num_frames: int) -> None:
    num_kept = data.draw(st.integers(0, num_frames))
    frames = st.lists(st.integers(0, num_frames - 1), min_size=num_kept, max_size=num_kept, unique=True).map(sorted)
    keep = torch.tensor(data.draw(st.lists(frames, min_size=num_clips, max_size=num_clips)), dtype=torch.int64)
    keep = keep.view(num_clips, num_kept).to(DEVICE)
    hidden = torch.rand(num_clips, num_kept).to(DEVICE) < data.draw(st.sampled_from([-1.0, 0.5, 2.0]))
    shapes = [(num_clips, num_kept, 2), (num_clips, num_frames, 2), (num_frames, 2), (2,)]

    def run(video: Tensor, skeleton: Tensor, temporal: Tensor, mask: Tensor, impl: Impl) -> Tensor:
        student = K.fuse_tokens(video, skeleton, keep, hidden, temporal, impl=impl)
        return K.restore_tokens(student, mask, keep, temporal, impl=impl)

    assert_op(run, [torch.randn(shape) for shape in shapes])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), num_tokens=st.integers(1, 40), num_heads=st.integers(1, 3), head_dim=st.integers(1, 33))
def test_any_packing_of_pairs_keeps_them_apart(
    data: st.DataObject, num_tokens: int, num_heads: int, head_dim: int
) -> None:
    call = drawn("attention", torch.float32, Sizes(2, num_tokens, H=num_heads, D=num_heads * head_dim))
    lengths = data.draw(st.none() | st.lists(st.integers(0, num_tokens), min_size=2, max_size=2))
    call.fixed["lengths_B"] = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    assert_call(call)


def _step(inputs: dict[str, Any], impl: Impl) -> list[Tensor]:
    """Loss and gradients."""
    loss = step_loss(inputs, impl)
    return [loss, *torch.autograd.grad(loss, list(inputs["leaves"].values()))]


def test_a_step_through_every_op_has_the_reference_loss_and_gradients() -> None:
    inputs = step_inputs(DEVICE)
    torch.testing.assert_close(_step(inputs, "triton"), _step(inputs, "torch"), rtol=2e-5, atol=2e-5)


def test_a_step_is_deterministic() -> None:
    inputs = step_inputs(DEVICE)
    torch.testing.assert_close(_step(inputs, "triton"), _step(inputs, "triton"), rtol=0, atol=0)


def test_launch_geometry_does_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ops except the loss add the same numbers in the same order whatever the tile."""
    inputs = step_inputs(DEVICE)
    keep, leaves = inputs["keep"], inputs["leaves"]

    def outcomes() -> list[Tensor]:
        video, skeleton, mask = (leaves[name].detach().requires_grad_() for name in ("skeleton", "skeleton", "mask"))
        temporal = leaves["temporal"].detach().requires_grad_()
        kept_video = video[:, : keep.shape[1]]
        student = K.fuse_tokens(kept_video, skeleton, keep, inputs["hidden"], temporal, impl="triton")
        full = K.restore_tokens(student, mask, keep, temporal, impl="triton")
        return [full, *torch.autograd.grad(full.square().sum(), [video, skeleton, mask, temporal])]

    before = outcomes()
    monkeypatch.setattr(launch, "TILE_VALUES", 64)
    monkeypatch.setattr(launch, "TILE_CHANNELS", 8)
    torch.testing.assert_close(outcomes(), before, rtol=0, atol=0)


def _capture_a_step() -> None:
    """On one side stream from the start: autograd returns to where it met a leaf, and may not capture the default."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs = step_inputs(DEVICE)
        want = [tensor.detach().clone() for tensor in _step(inputs, "triton")]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            got = _step(inputs, "triton")
        graph.replay()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_step_survives_capture_in_a_cuda_graph() -> None:
    """In a process of its own: after a capture that failed nothing else runs on the GPU."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        child.submit(_capture_a_step).result()


@pytest.mark.gpu
def test_a_step_compiles_without_a_graph_break() -> None:
    inputs = step_inputs(DEVICE)
    loss = torch.compile(step_loss, fullgraph=True)(inputs, "triton")
    got = [loss, *torch.autograd.grad(loss, list(inputs["leaves"].values()))]
    torch.testing.assert_close(got, _step(inputs, "triton"), rtol=1e-4, atol=1e-4)
