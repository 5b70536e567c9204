"""add_layer_norm: the residual sum of a pre-norm block and its LayerNorm, in one pass over memory.

    total[b, n]  = x[b, n] + branch[b, n]
    normed[b, n] = (total[b, n] - mean) / sqrt(variance + eps) * weight + bias      over the channels of total[b, n]

`normed` is written in the dtype that its consumer computes in: under autocast the plain LayerNorm writes float32, which the
next matrix product has to cast. The sum is rounded to its own dtype before it is normalised, as in the plain version. Without
a branch this is the LayerNorm of x alone, and no sum is written.

One of the fused block ops behind `model.fused_blocks`, off by default (README.md, at the end).

B clips, N tokens, D width; R rows of (B, N) flattened.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import TILE_VALUES, cdiv, launch, next_power_of_2, row_chunks, strides
from svdata2vec.kernels.register import Gradient, register_op
from svdata2vec.kernels.tiles import clip_and_token, divide, load_vector, tile_at


def add_layer_norm_reference(
    x_BND: Tensor, branch_BND: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain PyTorch: the sum in its terms' common dtype (empty without a branch), the normalised sum in `dtype`, and the mean
    and 1 / deviation of each row in at least float32."""
    total_BND = x_BND if branch_BND is None else x_BND + branch_BND
    written = _empty_total(x_BND, None) if branch_BND is None else total_BND.contiguous()
    exact = torch.promote_types(total_BND.dtype, torch.float32)
    total_BND = total_BND.to(exact)
    normed_BND = torch.nn.functional.layer_norm(total_BND, weight_D.shape, weight_D.to(exact), bias_D.to(exact), eps)
    variance_R, mean_R = torch.var_mean(total_BND.flatten(0, 1), -1, correction=0)
    return written, normed_BND.to(dtype).contiguous(), mean_R, torch.rsqrt(variance_R + eps)


def add_layer_norm_backward_reference(
    grad_total_BND: Tensor | None,
    grad_normed_BND: Tensor,
    total_BND: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    weight_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the sum (thus of `x` and of `branch`), and of weight and bias (2, D) in at least float32."""
    exact = mean_R.dtype
    shape_BN1 = (*total_BND.shape[:2], 1)
    centre_BND = (total_BND.to(exact) - mean_R.view(shape_BN1)) * rstd_R.view(shape_BN1)
    grad_BND = grad_normed_BND.to(exact)
    scaled_BND = grad_BND * weight_D.to(exact)
    along_BN1 = (scaled_BND * centre_BND).mean(-1, keepdim=True)
    result_BND = (scaled_BND - scaled_BND.mean(-1, keepdim=True) - centre_BND * along_BN1) * rstd_R.view(shape_BN1)
    if grad_total_BND is not None:
        result_BND = result_BND + grad_total_BND.to(exact)
    grads_2D = torch.stack([(grad_BND * centre_BND).sum((0, 1)), grad_BND.sum((0, 1))])
    return result_BND.to(total_BND.dtype).contiguous(), grads_2D


@triton.jit
def _add_layer_norm_kernel(
    x_ptr: tl.tensor,  # (B, N, D)
    branch_ptr: tl.tensor,  # (B, N, D); not read unless HAS_BRANCH
    weight_ptr: tl.tensor,  # (D,) contiguous
    bias_ptr: tl.tensor,  # (D,) contiguous
    total_ptr: tl.tensor,  # (B, N, D) contiguous; not written unless HAS_BRANCH
    normed_ptr: tl.tensor,  # (B, N, D) contiguous
    mean_ptr: tl.tensor,  # (R,) float32
    rstd_ptr: tl.tensor,  # (R,) float32
    num_rows: tl.tensor,  # B * N
    num_tokens: tl.tensor,
    width: tl.tensor,
    x_strides: tl.tuple,
    branch_strides: tl.tuple,
    eps: float,
    HAS_BRANCH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # all channels
) -> None:
    """One program holds BLOCK_R whole tokens, so the sum is written once and not read again."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d_D = tl.arange(0, BLOCK_D).to(tl.int64)
    clip_R, token_R = clip_and_token(row_R, num_tokens)
    valid_RD = (row_R < num_rows)[:, None] & (d_D < width)[None, :]
    x_at_RD = tile_at(clip_R, token_R, d_D, x_strides)
    at_RD = row_R.to(tl.int64)[:, None] * width + d_D[None, :]
    total_RD = tl.load(x_ptr + x_at_RD, mask=valid_RD, other=0).to(tl.float32)
    if HAS_BRANCH:
        branch_at_RD = tile_at(clip_R, token_R, d_D, branch_strides)
        total_RD += tl.load(branch_ptr + branch_at_RD, mask=valid_RD, other=0).to(tl.float32)
        rounded_RD = total_RD.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at_RD, rounded_RD, mask=valid_RD)
        total_RD = rounded_RD.to(tl.float32)

    mean_R = divide(tl.sum(total_RD, axis=1), width)
    centred_RD = tl.where(valid_RD, total_RD - mean_R[:, None], 0.0)
    rstd_R = tl.rsqrt(divide(tl.sum(centred_RD * centred_RD, axis=1), width) + eps)
    weight_D, bias_D = load_vector(weight_ptr, d_D, width), load_vector(bias_ptr, d_D, width)
    normed_RD = centred_RD * rstd_R[:, None] * weight_D[None, :] + bias_D[None, :]

    tl.store(normed_ptr + at_RD, normed_RD.to(normed_ptr.dtype.element_ty), mask=valid_RD)
    tl.store(mean_ptr + row_R, mean_R, mask=row_R < num_rows)
    tl.store(rstd_ptr + row_R, rstd_R, mask=row_R < num_rows)


@triton.jit
def _add_layer_norm_backward_kernel(
    grad_total_ptr: tl.tensor,  # (B, N, D); not read unless HAS_GRAD_TOTAL
    grad_normed_ptr: tl.tensor,  # (B, N, D)
    total_ptr: tl.tensor,  # (B, N, D)
    mean_ptr: tl.tensor,  # (R,) float32
    rstd_ptr: tl.tensor,  # (R,) float32
    weight_ptr: tl.tensor,  # (D,) contiguous
    grad_ptr: tl.tensor,  # (B, N, D) contiguous: gradient of the sum
    partial_ptr: tl.tensor,  # (chunks, 2, D) float32: weight and bias gradient of each chunk of rows
    num_rows: tl.tensor,  # B * N
    num_tokens: tl.tensor,
    width: tl.tensor,
    rows_per_chunk: tl.tensor,  # a multiple of BLOCK_R
    grad_total_strides: tl.tuple,
    grad_normed_strides: tl.tuple,
    total_strides: tl.tuple,
    HAS_GRAD_TOTAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # all channels
) -> None:
    """One program walks through a chunk of tokens and keeps the sums of the weight and bias gradients in registers."""
    chunk = tl.program_id(0)
    d_D = tl.arange(0, BLOCK_D).to(tl.int64)
    weight_D = load_vector(weight_ptr, d_D, width)
    grad_weight_RD = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    grad_bias_RD = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    first = chunk * rows_per_chunk
    for row in range(first, tl.minimum(first + rows_per_chunk, num_rows), BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        clip_R, token_R = clip_and_token(row_R, num_tokens)
        valid_RD = (row_R < num_rows)[:, None] & (d_D < width)[None, :]
        at_RD = row_R.to(tl.int64)[:, None] * width + d_D[None, :]
        normed_at_RD = tile_at(clip_R, token_R, d_D, grad_normed_strides)
        grad_RD = tl.load(grad_normed_ptr + normed_at_RD, mask=valid_RD, other=0).to(tl.float32)
        total_at_RD = tile_at(clip_R, token_R, d_D, total_strides)
        total_RD = tl.load(total_ptr + total_at_RD, mask=valid_RD, other=0).to(tl.float32)
        mean_R = tl.load(mean_ptr + row_R, mask=row_R < num_rows, other=0)
        rstd_R = tl.load(rstd_ptr + row_R, mask=row_R < num_rows, other=0)

        centre_RD = tl.where(valid_RD, (total_RD - mean_R[:, None]) * rstd_R[:, None], 0.0)
        grad_weight_RD += grad_RD * centre_RD
        grad_bias_RD += grad_RD
        scaled_RD = grad_RD * weight_D[None, :]
        mean_scaled_R = tl.sum(scaled_RD, axis=1) / width
        along_R = tl.sum(scaled_RD * centre_RD, axis=1) / width
        result_RD = (scaled_RD - mean_scaled_R[:, None] - centre_RD * along_R[:, None]) * rstd_R[:, None]
        if HAS_GRAD_TOTAL:
            direct_at_RD = tile_at(clip_R, token_R, d_D, grad_total_strides)
            result_RD += tl.load(grad_total_ptr + direct_at_RD, mask=valid_RD, other=0).to(tl.float32)
        tl.store(grad_ptr + at_RD, result_RD.to(grad_ptr.dtype.element_ty), mask=valid_RD)

    partial_D = partial_ptr + chunk.to(tl.int64) * 2 * width + d_D
    tl.store(partial_D, tl.sum(grad_weight_RD, axis=0), mask=d_D < width)
    tl.store(partial_D + width, tl.sum(grad_bias_RD, axis=0), mask=d_D < width)


MAX_WIDTH = 8192
# One program per SM of an H100 (132): the partial sums of 128 chunks at width 256 are a quarter of a megabyte, a tenth of
# the activation of 5,120 tokens.
MAX_ROW_CHUNKS = 128


def too_large(x_BND: Tensor, *_: Any) -> str:
    """Why a token does not fit into one program; empty if it does."""
    width = x_BND.shape[2]
    return f"{width} channels; the Triton kernel takes up to {MAX_WIDTH}" if width > MAX_WIDTH else ""


def _tile(width: int) -> tuple[int, int, int]:
    """(rows, channels, warps) of a tile of whole rows."""
    channels = next_power_of_2(max(width, 1))
    return max(TILE_VALUES // channels, 1), channels, 4 if channels <= TILE_VALUES else 8


def launch_add_layer_norm(
    x_BND: Tensor, branch_BND: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start the Triton kernel; arguments as in the reference. Also returns mean and 1 / deviation of each row.

    Raises:
        ValueError: a token has more channels than one program can hold.
    """
    B, N, D = x_BND.shape
    if why := too_large(x_BND):
        raise ValueError(f"add_layer_norm: {why}; use impl='torch'")
    rows, channels, num_warps = _tile(D)
    total_BND, normed_BND = _empty_total(x_BND, branch_BND), x_BND.new_empty((B, N, D), dtype=dtype)
    branch = x_BND if branch_BND is None else branch_BND
    mean_R, rstd_R = (x_BND.new_empty((B * N,), dtype=torch.float32) for _ in range(2))
    launch(
        _add_layer_norm_kernel,
        (cdiv(B * N, rows),),
        *(x_BND, branch, weight_D.contiguous(), bias_D.contiguous(), total_BND, normed_BND, mean_R, rstd_R),
        *(B * N, N, D),
        *strides(x_BND, branch),
        eps,
        HAS_BRANCH=branch_BND is not None,
        BLOCK_R=rows,
        BLOCK_D=channels,
        num_warps=num_warps,
    )
    return total_BND, normed_BND, mean_R, rstd_R


def _empty_total(x_BND: Tensor, branch_BND: Tensor | None) -> Tensor:
    """An uninitialised tensor for the sum, with no elements if there is nothing to add."""
    if branch_BND is None:
        return x_BND.new_empty((0,))
    return x_BND.new_empty(x_BND.shape, dtype=torch.promote_types(x_BND.dtype, branch_BND.dtype))


def launch_add_layer_norm_backward(
    grad_total_BND: Tensor | None,
    grad_normed_BND: Tensor,
    total_BND: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    weight_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """Start the Triton kernel; the sum over chunks of rows is a second, fixed-order pass over at most 128 slices."""
    B, N, D = total_BND.shape
    rows, channels, num_warps = _tile(D)
    chunks, rows_per_chunk = row_chunks(B * N, rows, MAX_ROW_CHUNKS)
    grad_BND = total_BND.new_empty((B, N, D))
    partial_C2D = total_BND.new_empty((chunks, 2, D), dtype=torch.float32)
    skipped = grad_normed_BND if grad_total_BND is None else grad_total_BND
    launch(
        _add_layer_norm_backward_kernel,
        (chunks,),
        *(skipped, grad_normed_BND, total_BND, mean_R, rstd_R, weight_D.contiguous(), grad_BND, partial_C2D),
        *(B * N, N, D, rows_per_chunk),
        *strides(skipped, grad_normed_BND, total_BND),
        HAS_GRAD_TOTAL=grad_total_BND is not None,
        BLOCK_R=rows,
        BLOCK_D=channels,
        num_warps=num_warps,
    )
    return grad_BND, partial_C2D.sum(0)


add_layer_norm_backward_op = register_op(
    "add_layer_norm_backward", add_layer_norm_backward_reference, launch_add_layer_norm_backward
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_BND, branch_BND, weight_D, bias_D, _, _ = inputs
    total_BND, _, mean_R, rstd_R = output
    ctx.has_branch = branch_BND is not None
    ctx.save_for_backward(total_BND if ctx.has_branch else x_BND, mean_R, rstd_R, weight_D)
    ctx.dtypes = x_BND.dtype, branch_BND.dtype if ctx.has_branch else x_BND.dtype, weight_D.dtype, bias_D.dtype
    ctx.mark_non_differentiable(mean_R, rstd_R)
    ctx.set_materialize_grads(False)  # no tensors of zeros for unused results


def _backward(
    ctx: Any, grad_total_BND: Tensor | None, grad_normed_BND: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    x_dtype, branch_dtype, weight_dtype, bias_dtype = ctx.dtypes
    grad_total_BND = grad_total_BND if ctx.has_branch else None  # else of an empty tensor; a compiled graph may pass it
    grad_BND, grad_weight_D, grad_bias_D = grad_total_BND, None, None
    if grad_normed_BND is not None:
        grad_BND, grads_2D = add_layer_norm_backward_op(grad_total_BND, grad_normed_BND, *ctx.saved_tensors)
        grad_weight_D, grad_bias_D = grads_2D[0].to(weight_dtype), grads_2D[1].to(bias_dtype)
    if grad_BND is None:
        return (None,) * 6
    # One gradient for both terms of a sum; a copy only where their dtypes differ.
    grad_branch_BND = grad_BND.to(branch_dtype) if ctx.has_branch else None
    return grad_BND.to(x_dtype), grad_branch_BND, grad_weight_D, grad_bias_D, None, None


add_layer_norm_op = register_op(
    "add_layer_norm", add_layer_norm_reference, launch_add_layer_norm, gradient=Gradient(_backward, _save),
    too_large=too_large,
)
