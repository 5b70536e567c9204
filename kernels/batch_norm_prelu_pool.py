"""batch_norm_prelu_pool: `batch_norm_prelu` followed by the maximum of 3x3 pixels, stride 2: the end of the video stem.

    out[f, i, j, c] = max over the pixels of (2i-1 .. 2i+1, 2j-1 .. 2j+1) inside the map, of PReLU(BatchNorm(x))[f, y, x, c]

The map of the stem is by far the largest of the network: neither its normalised values nor the PReLU's results are written.
After the statistics, the forward pass reads x once more and keeps, in a byte, which pixel was the largest. In the backward
pass each pixel gathers from the up to four pooled pixels that it may be the largest of, so no additions collide.

One of the fused block ops behind `model.fused_blocks`, off by default (README.md, at the end).

F maps (frames), C channels, H W picture, P Q pooled picture; R rows of a tile; G chunks.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.batch_norm_prelu import (
    batch_norm_prelu_backward_reference,
    batch_norm_prelu_reference,
    clone_channels_last,
    no_statistics,
)
from svdata2vec.kernels.batch_statistics import launch_batch_statistics, summing_programs
from svdata2vec.kernels.launch import cdiv, channel_tile, launch, row_chunks
from svdata2vec.kernels.register import Gradient, register_op
from svdata2vec.kernels.tiles import load_vector


def pooled(side: int) -> int:
    """Pixels along a side after the maximum: windows of three, stride 2, one pixel of padding at either end."""
    return (side - 1) // 2 + 1


def batch_norm_prelu_pool_reference(
    x_FCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor | None,
    variance_C: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain PyTorch in at least float32, rounded once. Also returns which of the nine pixels was the largest (uint8, row by
    row; the first of equal ones), and the batch's mean and variance, empty if they were given."""
    exact_FCHW = x_FCHW.to(torch.promote_types(x_FCHW.dtype, torch.float32))
    act_FCHW, *statistics = batch_norm_prelu_reference(exact_FCHW, None, weight_C, bias_C, slope_C, mean_C, variance_C, eps)
    out_FCPQ, index_FCPQ = torch.nn.functional.max_pool2d(act_FCHW, 3, 2, 1, return_indices=True)
    i_P1, j_Q = (torch.arange(size, device=x_FCHW.device) for size in out_FCPQ.shape[2:])
    width = max(x_FCHW.shape[3], 1)
    tap_FCPQ = 3 * (index_FCPQ // width - 2 * i_P1[:, None] + 1) + index_FCPQ % width - 2 * j_Q + 1
    out_FCPQ, tap_FCPQ = clone_channels_last(out_FCPQ.to(x_FCHW.dtype)), clone_channels_last(tap_FCPQ.to(torch.uint8))
    return out_FCPQ, tap_FCPQ, *statistics  # type: ignore[return-value]


def batch_norm_prelu_pool_backward_reference(
    grad_FCPQ: Tensor,
    x_FCHW: Tensor,
    tap_FCPQ: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight, bias and slope (3, C)."""
    exact = torch.promote_types(x_FCHW.dtype, torch.float32)
    i_P, j_Q = (torch.arange(size, device=x_FCHW.device) for size in grad_FCPQ.shape[2:])
    tap = tap_FCPQ.long()
    index_FCPQ = (2 * i_P[:, None] - 1 + tap // 3) * x_FCHW.shape[3] + 2 * j_Q - 1 + tap % 3
    grad_FCM = torch.zeros_like(x_FCHW, dtype=exact, memory_format=torch.contiguous_format).flatten(2)
    grad_FCM = grad_FCM.scatter_add(2, index_FCPQ.flatten(2), grad_FCPQ.to(exact).flatten(2))
    grad_x_FCHW, _, grads_3C = batch_norm_prelu_backward_reference(
        grad_FCM.view(x_FCHW.shape), x_FCHW, None, weight_C, bias_C, slope_C, mean_C, variance_C, eps, training
    )
    return grad_x_FCHW, grads_3C


@triton.jit
def _vectors(
    vectors: tl.tuple, c_C: tl.tensor, num_channels: tl.tensor, eps: float
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """(1, C) in float32: mean, reciprocal of the deviation, weight, bias and slope."""
    weight_C = load_vector(vectors[0], c_C, num_channels)
    bias_C, slope_C = load_vector(vectors[1], c_C, num_channels), load_vector(vectors[2], c_C, num_channels)
    mean_C, variance_C = load_vector(vectors[3], c_C, num_channels), load_vector(vectors[4], c_C, num_channels)
    return mean_C[None, :], tl.rsqrt(variance_C + eps)[None, :], weight_C[None, :], bias_C[None, :], slope_C[None, :]


# A tile is BLOCK_R pixels of one frame: offsets within a frame are 32-bit, whose division costs only a few instructions.


@triton.jit
def _apply_pool_kernel(
    x_ptr: tl.tensor,  # (F, H*W, C)
    vectors: tl.tuple,  # (C,) each: weight, bias, slope, mean, variance
    out_ptr: tl.tensor,  # (F, P*Q, C)
    tap_ptr: tl.tensor,  # (F, P*Q, C) uint8
    num_channels: tl.tensor,
    tiles: tl.tensor,  # of a pooled frame
    picture: tl.tuple,  # H, W, P, Q
    eps: float,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program computes BLOCK_R x BLOCK_C pooled values."""
    H, W, P, Q = picture
    frame = (tl.program_id(0) // tiles).to(tl.int64)
    pixel_R = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there_R, there_C = pixel_R < P * Q, c_C < num_channels
    top_R, left_R = 2 * (pixel_R // Q) - 1, 2 * (pixel_R % Q) - 1
    x_ptr += frame * H * W * num_channels
    mean_1C, rstd_1C, weight_1C, bias_1C, slope_1C = _vectors(vectors, c_C, num_channels, eps)
    best_RC = tl.full((BLOCK_R, BLOCK_C), float("-inf"), tl.float32)
    tap_RC = tl.full((BLOCK_R, BLOCK_C), -1, tl.int32)  # none yet
    for tap in tl.static_range(9):
        y_R, x_R = top_R + tap // 3, left_R + tap % 3
        inside_RC = (there_R & (y_R >= 0) & (y_R < H) & (x_R >= 0) & (x_R < W))[:, None] & there_C[None, :]
        at_RC = (y_R * W + x_R)[:, None] * num_channels + c_C[None, :]
        z_RC = (tl.load(x_ptr + at_RC, mask=inside_RC, other=0).to(tl.float32) - mean_1C) * (rstd_1C * weight_1C) + bias_1C
        value_RC = tl.where(z_RC > 0, z_RC, z_RC * slope_1C)
        # As in PyTorch: the first of equal values, even if all are -inf; NaN wins.
        larger_RC = inside_RC & ((value_RC > best_RC) | (value_RC != value_RC) | (tap_RC < 0))
        best_RC, tap_RC = tl.where(larger_RC, value_RC, best_RC), tl.where(larger_RC, tap, tap_RC)
    at_RC = frame * P * Q * num_channels + (pixel_R[:, None] * num_channels + c_C[None, :])
    written_RC = there_R[:, None] & there_C[None, :]
    tl.store(out_ptr + at_RC, best_RC.to(out_ptr.dtype.element_ty), mask=written_RC)
    tl.store(tap_ptr + at_RC, tap_RC.to(tl.uint8), mask=written_RC)


@triton.jit
def _pool_sums_kernel(
    grad_ptr: tl.tensor,  # (F, P*Q, C): gradient of the result
    tap_ptr: tl.tensor,  # (F, P*Q, C) uint8
    x_ptr: tl.tensor,  # (F, H*W, C)
    vectors: tl.tuple,  # (C,) each: weight, bias, slope, mean, variance
    partial_ptr: tl.tensor,  # (G, 3, C) float32: gradients of weight, bias and slope of each chunk of tiles
    num_channels: tl.tensor,
    tiles: tl.tensor,  # of a pooled frame
    num_tiles: tl.tensor,  # of all
    tiles_per_chunk: tl.tensor,
    picture: tl.tuple,  # H, W, P, Q
    eps: float,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program walks through a chunk of tiles of pooled pixels, BLOCK_C channels wide, and keeps three sums."""
    H, W, P, Q = picture
    chunk = tl.program_id(0)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_1C, rstd_1C, weight_1C, bias_1C, slope_1C = _vectors(vectors, c_C, num_channels, eps)
    grad_weight_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    grad_bias_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    grad_slope_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for tile in range(chunk * tiles_per_chunk, tl.minimum((chunk + 1) * tiles_per_chunk, num_tiles)):
        frame = (tile // tiles).to(tl.int64)
        pixel_R = tile % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
        valid_RC = (pixel_R < P * Q)[:, None] & (c_C < num_channels)[None, :]
        at_RC = frame * P * Q * num_channels + (pixel_R[:, None] * num_channels + c_C[None, :])
        grad_RC = tl.load(grad_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
        tap_RC = tl.load(tap_ptr + at_RC, mask=valid_RC, other=4).to(tl.int32)  # 4: the middle, always inside
        y_RC, x_RC = (2 * (pixel_R // Q) - 1)[:, None] + tap_RC // 3, (2 * (pixel_R % Q) - 1)[:, None] + tap_RC % 3
        from_RC = frame * H * W * num_channels + ((y_RC * W + x_RC) * num_channels + c_C[None, :])
        centre_RC = (tl.load(x_ptr + from_RC, mask=valid_RC, other=0).to(tl.float32) - mean_1C) * rstd_1C
        z_RC = centre_RC * weight_1C + bias_1C
        grad_z_RC = tl.where(z_RC > 0, grad_RC, grad_RC * slope_1C)
        grad_weight_RC += grad_z_RC * centre_RC  # all three are zero where the mask skipped the gradient
        grad_bias_RC += grad_z_RC
        grad_slope_RC += grad_RC * tl.minimum(z_RC, 0.0)
    at_C = partial_ptr + chunk * 3 * num_channels + c_C
    tl.store(at_C, tl.sum(grad_weight_RC, axis=0), mask=c_C < num_channels)
    tl.store(at_C + num_channels, tl.sum(grad_bias_RC, axis=0), mask=c_C < num_channels)
    tl.store(at_C + 2 * num_channels, tl.sum(grad_slope_RC, axis=0), mask=c_C < num_channels)


@triton.jit
def _pool_input_kernel(
    grad_ptr: tl.tensor,  # (F, P*Q, C): gradient of the result
    tap_ptr: tl.tensor,  # (F, P*Q, C) uint8
    x_ptr: tl.tensor,  # (F, H*W, C)
    vectors: tl.tuple,  # (C,) each: weight, bias, slope, mean, variance
    sums_ptr: tl.tensor,  # (3, C) float32: gradients of weight, bias and slope
    grad_x_ptr: tl.tensor,  # (F, H*W, C)
    num_rows: tl.tensor,  # F*H*W
    num_channels: tl.tensor,
    tiles: tl.tensor,  # of a frame
    picture: tl.tuple,  # H, W, P, Q
    eps: float,
    TRAINING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program computes BLOCK_R x BLOCK_C values of x's gradient, in training through mean and variance too."""
    H, W, P, Q = picture
    frame = (tl.program_id(0) // tiles).to(tl.int64)
    pixel_R = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_RC = (pixel_R < H * W)[:, None] & (c_C < num_channels)[None, :]
    y_R, x_R = pixel_R // W, pixel_R % W
    pooled_at = frame * P * Q * num_channels
    grad_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for window in tl.static_range(4):  # an even row lies in the windows of one pooled row, an odd one in those of two
        i_R, j_R = y_R // 2 + window // 2, x_R // 2 + window % 2
        dy_R, dx_R = y_R - 2 * i_R + 1, x_R - 2 * j_R + 1
        covers_R = (dy_R >= 0) & (dx_R >= 0) & (i_R < P) & (j_R < Q)
        at_RC = pooled_at + ((i_R * Q + j_R)[:, None] * num_channels + c_C[None, :])
        read_RC = valid_RC & covers_R[:, None]
        taken_RC = tl.load(tap_ptr + at_RC, mask=read_RC, other=9).to(tl.int32) == (3 * dy_R + dx_R)[:, None]
        grad_RC += tl.where(taken_RC, tl.load(grad_ptr + at_RC, mask=read_RC, other=0).to(tl.float32), 0.0)
    mean_1C, rstd_1C, weight_1C, bias_1C, slope_1C = _vectors(vectors, c_C, num_channels, eps)
    at_RC = frame * H * W * num_channels + (pixel_R[:, None] * num_channels + c_C[None, :])
    centre_RC = (tl.load(x_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32) - mean_1C) * rstd_1C
    grad_RC = tl.where(centre_RC * weight_1C + bias_1C > 0, grad_RC, grad_RC * slope_1C)
    if TRAINING:
        along_1C = load_vector(sums_ptr, c_C, num_channels)[None, :] / num_rows
        mean_grad_1C = load_vector(sums_ptr + num_channels, c_C, num_channels)[None, :] / num_rows
        grad_RC = grad_RC - mean_grad_1C - centre_RC * along_1C
    grad_x_RC = grad_RC * (rstd_1C * weight_1C)
    tl.store(grad_x_ptr + at_RC, grad_x_RC.to(grad_x_ptr.dtype.element_ty), mask=valid_RC)


MOST_VALUES = 2**31 - 1  # of a frame


def too_large(x_FCHW: Tensor, *_: Any) -> str:
    """Why a frame has too many values for 32-bit offsets; empty if it does not."""
    values = math.prod(x_FCHW.shape[1:])
    return f"{values} values a frame; the Triton kernel counts to {MOST_VALUES}" if values > MOST_VALUES else ""


def launch_batch_norm_prelu_pool(
    x_FCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor | None,
    variance_C: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start the Triton kernels; arguments as in the reference. Returns empty statistics if they were given.

    Raises:
        ValueError: a frame has more values than 32 bits can count.
    """
    F, C, H, W = x_FCHW.shape
    if why := too_large(x_FCHW):
        raise ValueError(f"batch_norm_prelu_pool: {why}; use impl='torch'")
    saved = no_statistics(x_FCHW)
    if mean_C is None or variance_C is None:
        mean_C, variance_C = saved = launch_batch_statistics(x_FCHW)
    P, Q = pooled(H), pooled(W)
    out_FCPQ, tap_FCPQ = (
        torch.empty((F, C, P, Q), dtype=dtype, device=x_FCHW.device, memory_format=torch.channels_last)
        for dtype in (x_FCHW.dtype, torch.uint8)
    )
    rows, channels = channel_tile(C)
    tiles = cdiv(P * Q, rows)
    vectors = tuple(vector.contiguous() for vector in (weight_C, bias_C, slope_C, mean_C, variance_C))
    launch(
        _apply_pool_kernel,
        (F * tiles, cdiv(C, channels)),
        *(x_FCHW, vectors, out_FCPQ, tap_FCPQ, C, tiles, (H, W, P, Q), eps),
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    return out_FCPQ, tap_FCPQ, *saved


def launch_batch_norm_prelu_pool_backward(
    grad_FCPQ: Tensor,
    x_FCHW: Tensor,
    tap_FCPQ: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Start the Triton kernels: three sums over pooled rows, then the gradient of x. A gradient that isn't channels-last is
    copied first."""
    grad_FCPQ = grad_FCPQ.contiguous(memory_format=torch.channels_last)
    F, C, H, W = x_FCHW.shape
    P, Q = grad_FCPQ.shape[2:]
    rows, channels = channel_tile(C)
    tiles = cdiv(P * Q, rows)
    chunks, tiles_per_chunk = row_chunks(F * tiles, 1, summing_programs(C))
    partial_G3C = x_FCHW.new_empty((chunks, 3, C), dtype=torch.float32)
    vectors = tuple(vector.contiguous() for vector in (weight_C, bias_C, slope_C, mean_C, variance_C))
    launch(
        _pool_sums_kernel,
        (chunks, cdiv(C, channels)),
        *(grad_FCPQ, tap_FCPQ, x_FCHW, vectors, partial_G3C),
        *(C, tiles, F * tiles, tiles_per_chunk, (H, W, P, Q), eps),
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    grads_3C = partial_G3C.sum(0)  # a fixed order over at most 1024 slices
    grad_x_FCHW = torch.empty_like(x_FCHW, memory_format=torch.channels_last)
    tiles = cdiv(H * W, rows)
    launch(
        _pool_input_kernel,
        (F * tiles, cdiv(C, channels)),
        *(grad_FCPQ, tap_FCPQ, x_FCHW, vectors, grads_3C, grad_x_FCHW),
        *(F * H * W, C, tiles, (H, W, P, Q), eps),
        TRAINING=training,
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    return grad_x_FCHW, grads_3C


batch_norm_prelu_pool_backward_op = register_op(
    "batch_norm_prelu_pool_backward", batch_norm_prelu_pool_backward_reference, launch_batch_norm_prelu_pool_backward
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_FCHW, *parameters, mean_C, variance_C, ctx.eps = inputs
    ctx.training = mean_C is None
    statistics = output[2:] if ctx.training else (mean_C, variance_C)
    ctx.save_for_backward(x_FCHW, output[1], *parameters, *statistics)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no tensors of zeros for results without a gradient


def _backward(ctx: Any, grad_FCPQ: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_FCPQ is None:
        return (None,) * 7
    x_FCHW, tap_FCPQ, *vectors = ctx.saved_tensors
    grad_x_FCHW, grads_3C = batch_norm_prelu_pool_backward_op(grad_FCPQ, x_FCHW, tap_FCPQ, *vectors, ctx.eps, ctx.training)
    parameters = [grad.to(vector.dtype) for grad, vector in zip(grads_3C, vectors, strict=False)]
    return grad_x_FCHW, *parameters, None, None, None


batch_norm_prelu_pool_op = register_op(
    "batch_norm_prelu_pool", batch_norm_prelu_pool_reference, launch_batch_norm_prelu_pool, gradient=Gradient(_backward, _save),
    too_large=too_large,
)
