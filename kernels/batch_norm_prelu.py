"""batch_norm_prelu: BatchNorm, an optional shortcut, and PReLU per channel, of channels-last feature maps.

    z[m, c]   = (x[m, c] - mean[c]) / sqrt(variance[c] + eps) * weight[c] + bias[c] + shortcut[m, c]
    out[m, c] = z where z > 0, else slope[c] * z

In training, mean and (biased) variance are those of the batch, and gradients pass through them; in evaluation they are
given. Neither the normalised map nor z is kept: the backward pass recomputes them from x and the shortcut.

One of the fused block ops behind `model.fused_blocks`, off by default (README.md, at the end).

F maps (frames), C channels, H W picture; M = F*H*W rows of C channels, the memory of a channels-last map; G chunks.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.batch_statistics import channel_chunks, launch_batch_statistics
from svdata2vec.kernels.launch import cdiv, channel_tile, launch
from svdata2vec.kernels.register import Gradient, register_op
from svdata2vec.kernels.tiles import load_vector


def batch_norm_prelu_reference(
    x_FCHW: Tensor,
    shortcut_FCHW: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor | None,
    variance_C: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch in at least float32, rounded once; also the batch's mean and variance, empty if they were given."""
    exact = torch.promote_types(x_FCHW.dtype, torch.float32)
    x, statistics = x_FCHW.to(exact), no_statistics(x_FCHW)
    if mean_C is None or variance_C is None:
        mean_C = x.mean((0, 2, 3))
        variance_C = (x - _per_channel(mean_C)).square().mean((0, 2, 3))
        statistics = mean_C, variance_C
    z = (x - _per_channel(mean_C)) * _per_channel(torch.rsqrt(variance_C.to(exact) + eps) * weight_C)
    z = z + _per_channel(bias_C)
    if shortcut_FCHW is not None:
        z = z + shortcut_FCHW.to(exact)
    out_FCHW = torch.where(z > 0, z, z * _per_channel(slope_C.to(exact)))
    return clone_channels_last(out_FCHW.to(_result_dtype(x_FCHW, shortcut_FCHW))), *statistics


def batch_norm_prelu_backward_reference(
    grad_FCHW: Tensor,
    x_FCHW: Tensor,
    shortcut_FCHW: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and of the shortcut (empty without one), and of weight, bias and slope (3, C)."""
    exact = torch.promote_types(x_FCHW.dtype, torch.float32)
    rstd_C = torch.rsqrt(variance_C.to(exact) + eps)
    centre = (x_FCHW.to(exact) - _per_channel(mean_C)) * _per_channel(rstd_C)
    z = centre * _per_channel(weight_C) + _per_channel(bias_C)
    if shortcut_FCHW is not None:
        z = z + shortcut_FCHW.to(exact)
    grad = grad_FCHW.to(exact)
    grad_z = torch.where(z > 0, grad, grad * _per_channel(slope_C.to(exact)))
    grads_3C = torch.stack([(grad_z * centre).sum((0, 2, 3)), grad_z.sum((0, 2, 3)), (grad * z.clamp(max=0)).sum((0, 2, 3))])
    through = grad_z
    if training:
        along_C, mean_grad_C = grads_3C[0] / _num_rows(x_FCHW), grads_3C[1] / _num_rows(x_FCHW)
        through = grad_z - _per_channel(mean_grad_C) - centre * _per_channel(along_C)
    grad_x = through * _per_channel(rstd_C * weight_C)
    grad_shortcut = x_FCHW.new_empty((0,)) if shortcut_FCHW is None else clone_channels_last(grad_z.to(shortcut_FCHW.dtype))
    return clone_channels_last(grad_x.to(x_FCHW.dtype)), grad_shortcut, grads_3C


def _per_channel(vector_C: Tensor) -> Tensor:
    return vector_C[:, None, None]


def _num_rows(x_FCHW: Tensor) -> int:
    return x_FCHW.shape[0] * x_FCHW.shape[2] * x_FCHW.shape[3]


def _result_dtype(x_FCHW: Tensor, shortcut_FCHW: Tensor | None) -> torch.dtype:
    return x_FCHW.dtype if shortcut_FCHW is None else torch.promote_types(x_FCHW.dtype, shortcut_FCHW.dtype)


def no_statistics(x_FCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Empty mean and variance, returned if both were given."""
    exact = torch.promote_types(x_FCHW.dtype, torch.float32)
    return x_FCHW.new_empty((0,), dtype=exact), x_FCHW.new_empty((0,), dtype=exact)


def clone_channels_last(x_FCHW: Tensor) -> Tensor:
    """A copy with the strides of a channels-last map, even if an axis of size 1 would allow others."""
    return x_FCHW.clone(memory_format=torch.channels_last)


# A map is a matrix of M rows: in channels-last memory a row is found without a division. Rows are counted in 64 bits.


@triton.jit
def _load_channels(ptr: tl.tensor, c_C: tl.tensor, num_channels: tl.tensor) -> tl.tensor:
    """(1, BLOCK_C) values of a vector over channels, in float32."""
    return load_vector(ptr, c_C, num_channels)[None, :]


@triton.jit
def _apply_kernel(
    x_ptr: tl.tensor,  # (M, C)
    shortcut_ptr: tl.tensor,  # (M, C); not read unless HAS_SHORTCUT
    vectors: tl.tuple,  # (C,) each: weight, bias, slope, mean, variance
    out_ptr: tl.tensor,  # (M, C)
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    eps: float,
    HAS_SHORTCUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program computes BLOCK_R x BLOCK_C values of the result."""
    weight_ptr, bias_ptr, slope_ptr, mean_ptr, variance_ptr = vectors
    row_R = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_RC = (row_R < num_rows)[:, None] & (c_C < num_channels)[None, :]
    at_RC = row_R[:, None] * num_channels + c_C[None, :]
    rstd_1C = tl.rsqrt(_load_channels(variance_ptr, c_C, num_channels) + eps)
    x_RC = tl.load(x_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
    z_RC = (x_RC - _load_channels(mean_ptr, c_C, num_channels)) * (rstd_1C * _load_channels(weight_ptr, c_C, num_channels))
    z_RC += _load_channels(bias_ptr, c_C, num_channels)
    if HAS_SHORTCUT:
        z_RC += tl.load(shortcut_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
    out_RC = tl.where(z_RC > 0, z_RC, z_RC * _load_channels(slope_ptr, c_C, num_channels))
    tl.store(out_ptr + at_RC, out_RC.to(out_ptr.dtype.element_ty), mask=valid_RC)


@triton.jit
def _backward_sums_kernel(
    grad_ptr: tl.tensor,  # (M, C): gradient of the result
    x_ptr: tl.tensor,  # (M, C)
    shortcut_ptr: tl.tensor,  # (M, C); not read unless HAS_SHORTCUT
    vectors: tl.tuple,  # (C,) each: weight, bias, slope, mean, variance
    grad_shortcut_ptr: tl.tensor,  # (M, C), which is also the gradient of z; not written unless HAS_SHORTCUT
    partial_ptr: tl.tensor,  # (G, 3, C) float32: gradients of weight, bias and slope of each chunk of rows
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    rows_per_chunk: tl.tensor,  # a multiple of BLOCK_R
    eps: float,
    HAS_SHORTCUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program walks through a chunk of rows of BLOCK_C channels and keeps three sums."""
    weight_ptr, bias_ptr, slope_ptr, mean_ptr, variance_ptr = vectors
    chunk = tl.program_id(0).to(tl.int64)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    rstd_1C = tl.rsqrt(_load_channels(variance_ptr, c_C, num_channels) + eps)
    mean_1C, weight_1C = _load_channels(mean_ptr, c_C, num_channels), _load_channels(weight_ptr, c_C, num_channels)
    bias_1C, slope_1C = _load_channels(bias_ptr, c_C, num_channels), _load_channels(slope_ptr, c_C, num_channels)
    grad_weight_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    grad_bias_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    grad_slope_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    first = chunk * rows_per_chunk
    for row in range(first, tl.minimum(first + rows_per_chunk, num_rows), BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R).to(tl.int64)
        valid_RC = (row_R < num_rows)[:, None] & (c_C < num_channels)[None, :]
        at_RC = row_R[:, None] * num_channels + c_C[None, :]
        grad_RC = tl.load(grad_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
        centre_RC = (tl.load(x_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32) - mean_1C) * rstd_1C
        z_RC = centre_RC * weight_1C + bias_1C
        if HAS_SHORTCUT:
            z_RC += tl.load(shortcut_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
        grad_z_RC = tl.where(z_RC > 0, grad_RC, grad_RC * slope_1C)
        if HAS_SHORTCUT:
            tl.store(grad_shortcut_ptr + at_RC, grad_z_RC.to(grad_shortcut_ptr.dtype.element_ty), mask=valid_RC)
        grad_weight_RC += grad_z_RC * centre_RC  # all three are zero where the mask skipped the gradient
        grad_bias_RC += grad_z_RC
        grad_slope_RC += grad_RC * tl.minimum(z_RC, 0.0)
    at_C = partial_ptr + chunk * 3 * num_channels + c_C
    tl.store(at_C, tl.sum(grad_weight_RC, axis=0), mask=c_C < num_channels)
    tl.store(at_C + num_channels, tl.sum(grad_bias_RC, axis=0), mask=c_C < num_channels)
    tl.store(at_C + 2 * num_channels, tl.sum(grad_slope_RC, axis=0), mask=c_C < num_channels)


@triton.jit
def _backward_input_kernel(
    grad_ptr: tl.tensor,  # (M, C): gradient of z with HAS_SHORTCUT, else of the result
    x_ptr: tl.tensor,  # (M, C)
    vectors: tl.tuple,  # (C,) each: weight, bias, slope, mean, variance
    sums_ptr: tl.tensor,  # (3, C) float32: gradients of weight, bias and slope
    grad_x_ptr: tl.tensor,  # (M, C)
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    eps: float,
    TRAINING: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program computes BLOCK_R x BLOCK_C values of x's gradient, in training through mean and variance too."""
    weight_ptr, bias_ptr, slope_ptr, mean_ptr, variance_ptr = vectors
    row_R = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_RC = (row_R < num_rows)[:, None] & (c_C < num_channels)[None, :]
    at_RC = row_R[:, None] * num_channels + c_C[None, :]
    rstd_1C = tl.rsqrt(_load_channels(variance_ptr, c_C, num_channels) + eps)
    weight_1C = _load_channels(weight_ptr, c_C, num_channels)
    grad_RC = tl.load(grad_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
    if TRAINING or not HAS_SHORTCUT:
        x_RC = tl.load(x_ptr + at_RC, mask=valid_RC, other=0).to(tl.float32)
        centre_RC = (x_RC - _load_channels(mean_ptr, c_C, num_channels)) * rstd_1C
    if not HAS_SHORTCUT:
        z_RC = centre_RC * weight_1C + _load_channels(bias_ptr, c_C, num_channels)
        grad_RC = tl.where(z_RC > 0, grad_RC, grad_RC * _load_channels(slope_ptr, c_C, num_channels))
    if TRAINING:
        along_1C = _load_channels(sums_ptr, c_C, num_channels) / num_rows
        mean_grad_1C = _load_channels(sums_ptr + num_channels, c_C, num_channels) / num_rows
        grad_RC = grad_RC - mean_grad_1C - centre_RC * along_1C
    grad_x_RC = grad_RC * (rstd_1C * weight_1C)
    tl.store(grad_x_ptr + at_RC, grad_x_RC.to(grad_x_ptr.dtype.element_ty), mask=valid_RC)


def launch_batch_norm_prelu(
    x_FCHW: Tensor,
    shortcut_FCHW: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor | None,
    variance_C: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Start the Triton kernels; arguments as in the reference. Returns empty statistics if they were given."""
    saved = launch_batch_statistics(x_FCHW) if mean_C is None or variance_C is None else no_statistics(x_FCHW)
    mean_C, variance_C = (mean_C, variance_C) if mean_C is not None and variance_C is not None else saved
    num_rows, num_channels = _num_rows(x_FCHW), x_FCHW.shape[1]
    rows, channels = channel_tile(num_channels)
    out_FCHW = torch.empty_like(x_FCHW, dtype=_result_dtype(x_FCHW, shortcut_FCHW), memory_format=torch.channels_last)
    vectors = tuple(vector.contiguous() for vector in (weight_C, bias_C, slope_C, mean_C, variance_C))
    launch(
        _apply_kernel,
        (cdiv(num_rows, rows), cdiv(num_channels, channels)),
        *(x_FCHW, x_FCHW if shortcut_FCHW is None else shortcut_FCHW, vectors, out_FCHW),
        *(num_rows, num_channels, eps),
        HAS_SHORTCUT=shortcut_FCHW is not None,
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    return out_FCHW, *saved


def launch_batch_norm_prelu_backward(
    grad_FCHW: Tensor,
    x_FCHW: Tensor,
    shortcut_FCHW: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Start the Triton kernels: three sums over rows (and the shortcut's gradient), then the gradient of x.

    A gradient that isn't channels-last (pooling over the picture sends back an expanded tensor) is copied first.
    """
    grad_FCHW = grad_FCHW.contiguous(memory_format=torch.channels_last)
    num_rows, num_channels = _num_rows(x_FCHW), x_FCHW.shape[1]
    chunks, rows_per_chunk, rows, channels = channel_chunks(num_rows, num_channels)
    has_shortcut = shortcut_FCHW is not None
    grad_x_FCHW = torch.empty_like(x_FCHW, memory_format=torch.channels_last)
    grad_shortcut_FCHW = x_FCHW.new_empty((0,))
    if shortcut_FCHW is not None:
        grad_shortcut_FCHW = torch.empty_like(shortcut_FCHW, memory_format=torch.channels_last)
    partial_G3C = x_FCHW.new_empty((chunks, 3, num_channels), dtype=torch.float32)
    vectors = tuple(vector.contiguous() for vector in (weight_C, bias_C, slope_C, mean_C, variance_C))
    launch(
        _backward_sums_kernel,
        (chunks, cdiv(num_channels, channels)),
        *(grad_FCHW, x_FCHW, x_FCHW if shortcut_FCHW is None else shortcut_FCHW, vectors),
        *(grad_shortcut_FCHW, partial_G3C, num_rows, num_channels, rows_per_chunk, eps),
        HAS_SHORTCUT=has_shortcut,
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    grads_3C = partial_G3C.sum(0)  # a fixed order over at most 1024 slices
    launch(
        _backward_input_kernel,
        (cdiv(num_rows, rows), cdiv(num_channels, channels)),
        *(grad_shortcut_FCHW if has_shortcut else grad_FCHW, x_FCHW, vectors, grads_3C, grad_x_FCHW),
        *(num_rows, num_channels, eps),
        TRAINING=training,
        HAS_SHORTCUT=has_shortcut,
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    return grad_x_FCHW, grad_shortcut_FCHW, grads_3C


batch_norm_prelu_backward_op = register_op(
    "batch_norm_prelu_backward", batch_norm_prelu_backward_reference, launch_batch_norm_prelu_backward
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, mean_C, variance_C, ctx.eps = inputs
    ctx.training = mean_C is None
    statistics = output[1:] if ctx.training else (mean_C, variance_C)
    ctx.save_for_backward(*tensors, *statistics)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no tensors of zeros as gradients of the statistics


def _backward(ctx: Any, grad_FCHW: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_FCHW is None:
        return (None,) * 8
    x_FCHW, shortcut_FCHW, *vectors = ctx.saved_tensors
    grad_x_FCHW, grad_shortcut_FCHW, grads_3C = batch_norm_prelu_backward_op(
        grad_FCHW, x_FCHW, shortcut_FCHW, *vectors, ctx.eps, ctx.training
    )
    parameters = [grad.to(vector.dtype) for grad, vector in zip(grads_3C, vectors, strict=False)]
    return grad_x_FCHW, None if shortcut_FCHW is None else grad_shortcut_FCHW, *parameters, None, None, None


batch_norm_prelu_op = register_op(
    "batch_norm_prelu", batch_norm_prelu_reference, launch_batch_norm_prelu, gradient=Gradient(_backward, _save)
)
