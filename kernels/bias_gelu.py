"""bias_gelu: bias and exact GELU after the first matrix product of an MLP.

    out[b, n, h] = z * (1 + erf(z / sqrt(2))) / 2      with z = x[b, n, h] + bias[h]

The backward pass recomputes z from the product and computes the bias gradient in the same pass over memory.

One of the fused block ops behind `model.fused_blocks`, off by default (README.md, at the end).

B clips, N tokens, H hidden width; R rows of (B, N) flattened.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import cdiv, channel_tile, launch, row_chunks, strides
from svdata2vec.kernels.register import register_op
from svdata2vec.kernels.tiles import clip_and_token, load_vector, tile_at


def bias_gelu_reference(x_BNH: Tensor, bias_H: Tensor) -> Tensor:
    """Plain PyTorch: computed in at least float32, rounded once to the dtype of `x_BNH`."""
    exact = torch.promote_types(x_BNH.dtype, torch.float32)
    return torch.nn.functional.gelu(x_BNH.to(exact) + bias_H.to(exact)).to(x_BNH.dtype).contiguous()


def bias_gelu_backward_reference(grad_BNH: Tensor, x_BNH: Tensor, bias_H: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the product and of the bias. GELU' is the normal distribution function at z plus z times its density."""
    exact = torch.promote_types(x_BNH.dtype, torch.float32)
    z_BNH = x_BNH.to(exact) + bias_H.to(exact)
    below_BNH = 0.5 * (1.0 + torch.erf(z_BNH * math.sqrt(0.5)))
    density_BNH = torch.exp(-0.5 * z_BNH * z_BNH) / math.sqrt(2.0 * math.pi)
    grad_z_BNH = grad_BNH.to(exact) * (below_BNH + z_BNH * density_BNH)
    return grad_z_BNH.to(x_BNH.dtype).contiguous(), grad_z_BNH.sum((0, 1)).to(bias_H.dtype)


SQRT_HALF = tl.constexpr(math.sqrt(0.5))
INVERSE_SQRT_TAU = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))


@triton.jit
def _bias_gelu_kernel(
    x_ptr: tl.tensor,  # (B, N, H)
    bias_ptr: tl.tensor,  # (H,) contiguous
    out_ptr: tl.tensor,  # (B, N, H) contiguous
    num_rows: tl.tensor,  # B * N
    num_tokens: tl.tensor,
    width: tl.tensor,
    x_strides: tl.tuple,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """One program computes BLOCK_R x BLOCK_H values."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    h_H = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    clip_R, token_R = clip_and_token(row_R, num_tokens)
    valid_RH = (row_R < num_rows)[:, None] & (h_H < width)[None, :]
    x_at_RH = tile_at(clip_R, token_R, h_H, x_strides)
    bias_H = load_vector(bias_ptr, h_H, width)
    z_RH = tl.load(x_ptr + x_at_RH, mask=valid_RH, other=0).to(tl.float32) + bias_H[None, :]
    out_RH = 0.5 * z_RH * (1.0 + tl.erf(z_RH * SQRT_HALF))
    at_RH = row_R.to(tl.int64)[:, None] * width + h_H[None, :]
    tl.store(out_ptr + at_RH, out_RH.to(out_ptr.dtype.element_ty), mask=valid_RH)


@triton.jit
def _bias_gelu_backward_kernel(
    grad_ptr: tl.tensor,  # (B, N, H): gradient of the result
    x_ptr: tl.tensor,  # (B, N, H)
    bias_ptr: tl.tensor,  # (H,) contiguous
    grad_x_ptr: tl.tensor,  # (B, N, H) contiguous
    partial_ptr: tl.tensor,  # (chunks, H) float32: bias gradient of each chunk of rows
    num_rows: tl.tensor,  # B * N
    num_tokens: tl.tensor,
    width: tl.tensor,
    rows_per_chunk: tl.tensor,  # a multiple of BLOCK_R
    grad_strides: tl.tuple,
    x_strides: tl.tuple,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """One program walks through a chunk of rows of BLOCK_H channels and keeps the sum for the bias gradient."""
    chunk = tl.program_id(0)
    h_H = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    bias_H = load_vector(bias_ptr, h_H, width)
    total_RH = tl.zeros((BLOCK_R, BLOCK_H), dtype=tl.float32)
    first = chunk * rows_per_chunk
    for row in range(first, tl.minimum(first + rows_per_chunk, num_rows), BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        clip_R, token_R = clip_and_token(row_R, num_tokens)
        valid_RH = (row_R < num_rows)[:, None] & (h_H < width)[None, :]
        grad_at_RH, x_at_RH = tile_at(clip_R, token_R, h_H, grad_strides), tile_at(clip_R, token_R, h_H, x_strides)
        grad_RH = tl.load(grad_ptr + grad_at_RH, mask=valid_RH, other=0).to(tl.float32)
        z_RH = tl.load(x_ptr + x_at_RH, mask=valid_RH, other=0).to(tl.float32) + bias_H[None, :]
        below_RH = 0.5 * (1.0 + tl.erf(z_RH * SQRT_HALF))
        grad_z_RH = grad_RH * (below_RH + z_RH * tl.exp(-0.5 * z_RH * z_RH) * INVERSE_SQRT_TAU)
        total_RH += grad_z_RH  # zero where the mask skipped the gradient
        at_RH = row_R.to(tl.int64)[:, None] * width + h_H[None, :]
        tl.store(grad_x_ptr + at_RH, grad_z_RH.to(grad_x_ptr.dtype.element_ty), mask=valid_RH)
    tl.store(partial_ptr + chunk.to(tl.int64) * width + h_H, tl.sum(total_RH, axis=0), mask=h_H < width)


# Four blocks of 256 channels (hidden width 1024) give 512 programs, four for each SM of an H100.
MAX_ROW_CHUNKS = 128


def launch_bias_gelu(x_BNH: Tensor, bias_H: Tensor) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    B, N, H = x_BNH.shape
    out_BNH = x_BNH.new_empty((B, N, H))
    rows, channels = channel_tile(H)
    launch(
        _bias_gelu_kernel,
        (cdiv(B * N, rows), cdiv(H, channels)),
        *(x_BNH, bias_H.contiguous(), out_BNH),
        *(B * N, N, H),
        *strides(x_BNH),
        BLOCK_R=rows,
        BLOCK_H=channels,
    )
    return out_BNH


def launch_bias_gelu_backward(grad_BNH: Tensor, x_BNH: Tensor, bias_H: Tensor) -> tuple[Tensor, Tensor]:
    """Start the Triton kernel; the sum over chunks of rows is a second, fixed-order pass over at most 128 slices."""
    B, N, H = x_BNH.shape
    rows, channels = channel_tile(H)
    chunks, rows_per_chunk = row_chunks(B * N, rows, MAX_ROW_CHUNKS)
    grad_x_BNH = x_BNH.new_empty((B, N, H))
    partial_CH = x_BNH.new_empty((chunks, H), dtype=torch.float32)
    launch(
        _bias_gelu_backward_kernel,
        (chunks, cdiv(H, channels)),
        *(grad_BNH, x_BNH, bias_H.contiguous(), grad_x_BNH, partial_CH),
        *(B * N, N, H, rows_per_chunk),
        *strides(grad_BNH, x_BNH),
        BLOCK_R=rows,
        BLOCK_H=channels,
    )
    return grad_x_BNH, partial_CH.sum(0).to(bias_H.dtype)


bias_gelu_backward_op = register_op("bias_gelu_backward", bias_gelu_backward_reference, launch_bias_gelu_backward)
bias_gelu_op = register_op(
    "bias_gelu", bias_gelu_reference, launch_bias_gelu, backward=bias_gelu_backward_op, differentiable=["x_BNH", "bias_H"]
)
