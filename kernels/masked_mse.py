"""masked_mse: squared error averaged over channels and over the scored positions of the batch.

    loss = sum over scored (b, t) of mean over d of (prediction - target)^2, divided by the number of scored positions

Without any scored position, loss and gradient are 0. Only the prediction has a gradient.

B clips, T frames, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import cdiv, channel_tile, launch, strides
from svdata2vec.kernels.register import register_op
from svdata2vec.kernels.tiles import clip_and_token, divide, row_at, tile_at


def masked_mse_reference(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch: the loss, in at least float32, and the number of scored positions."""
    error_BTD = _scored_difference(prediction_BTD, target_BTD, scored_BT)
    num_scored = scored_BT.sum()
    return error_BTD.square().mean(-1).sum() / num_scored.clamp(min=1), num_scored


def masked_mse_backward_reference(
    grad: Tensor, num_scored: Tensor, prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor
) -> Tensor:
    """Gradient of the prediction: 2 * (prediction - target) / (D * scored positions) where scored, else zero."""
    factor = grad * 2.0 / (prediction_BTD.shape[-1] * num_scored.clamp(min=1))
    grad_BTD = _scored_difference(prediction_BTD, target_BTD, scored_BT) * factor
    return grad_BTD.to(prediction_BTD.dtype).contiguous()


def _scored_difference(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    exact = torch.promote_types(prediction_BTD.dtype, torch.float32)
    # `where` and not a product: a position that isn't scored may hold anything, NaN included.
    return torch.where(scored_BT[:, :, None], prediction_BTD.to(exact) - target_BTD.to(exact), 0.0)


@triton.jit
def _partial_errors_kernel(
    prediction_ptr: tl.tensor,  # (B, T, D)
    target_ptr: tl.tensor,  # (B, T, D)
    scored_ptr: tl.tensor,  # (B, T) bool
    error_ptr: tl.tensor,  # (programs,) float32: sum of squared errors
    count_ptr: tl.tensor,  # (programs,) int32: scored positions
    num_rows: tl.tensor,  # B * T
    num_frames: tl.tensor,
    width: tl.tensor,
    prediction_strides: tl.tuple,
    target_strides: tl.tuple,
    scored_strides: tl.tuple,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program sums BLOCK_R positions over all channels; positions that aren't scored are not read."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    clip_R, t_R = clip_and_token(row_R, num_frames)
    scored_at_R = row_at(clip_R, t_R, scored_strides)
    scored_R = tl.load(scored_ptr + scored_at_R, mask=row_R < num_rows, other=0) != 0
    error_RD = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    for first in range(0, width, BLOCK_D):
        d_D = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        read_RD = scored_R[:, None] & (d_D < width)[None, :]
        prediction_at_RD = tile_at(clip_R, t_R, d_D, prediction_strides)
        target_at_RD = tile_at(clip_R, t_R, d_D, target_strides)
        prediction_RD = tl.load(prediction_ptr + prediction_at_RD, mask=read_RD, other=0).to(tl.float32)
        target_RD = tl.load(target_ptr + target_at_RD, mask=read_RD, other=0).to(tl.float32)
        difference_RD = prediction_RD - target_RD
        error_RD += difference_RD * difference_RD
    tl.store(error_ptr + tl.program_id(0), tl.sum(tl.sum(error_RD, axis=1), axis=0))
    tl.store(count_ptr + tl.program_id(0), tl.sum(scored_R.to(tl.int32), axis=0))


@triton.jit
def _finish_kernel(
    error_ptr: tl.tensor,  # (parts,) float32
    count_ptr: tl.tensor,  # (parts,) int32
    loss_ptr: tl.tensor,  # () float32
    scored_ptr: tl.tensor,  # () int64
    num_parts: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program adds all parts in a fixed order."""
    error = tl.zeros((BLOCK,), dtype=tl.float32)
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, num_parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        error += tl.load(error_ptr + part, mask=part < num_parts, other=0)
        count += tl.load(count_ptr + part, mask=part < num_parts, other=0)
    scored = tl.sum(count, axis=0)
    tl.store(loss_ptr, divide(tl.sum(error, axis=0), tl.maximum(scored, 1).to(tl.float32) * width))
    tl.store(scored_ptr, scored.to(tl.int64))


@triton.jit
def _masked_mse_backward_kernel(
    grad_ptr: tl.tensor,  # () float32: gradient of the loss
    num_scored_ptr: tl.tensor,  # () int64
    prediction_ptr: tl.tensor,  # (B, T, D)
    target_ptr: tl.tensor,  # (B, T, D)
    scored_ptr: tl.tensor,  # (B, T) bool
    grad_prediction_ptr: tl.tensor,  # (B, T, D) contiguous
    num_rows: tl.tensor,  # B * T
    num_frames: tl.tensor,
    width: tl.tensor,
    prediction_strides: tl.tuple,
    target_strides: tl.tuple,
    scored_strides: tl.tuple,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program writes BLOCK_R x BLOCK_D values of the gradient; the factor never leaves the GPU."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d_D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    clip_R, t_R = clip_and_token(row_R, num_frames)
    scored_at_R = row_at(clip_R, t_R, scored_strides)
    scored_R = tl.load(scored_ptr + scored_at_R, mask=row_R < num_rows, other=0) != 0
    read_RD = scored_R[:, None] & (d_D < width)[None, :]
    prediction_at_R, target_at_R = row_at(clip_R, t_R, prediction_strides), row_at(clip_R, t_R, target_strides)
    prediction_at_RD = prediction_at_R[:, None] + d_D[None, :] * prediction_strides[2]
    target_at_RD = target_at_R[:, None] + d_D[None, :] * target_strides[2]
    prediction_RD = tl.load(prediction_ptr + prediction_at_RD, mask=read_RD, other=0).to(tl.float32)
    target_RD = tl.load(target_ptr + target_at_RD, mask=read_RD, other=0).to(tl.float32)

    num_scored = tl.maximum(tl.load(num_scored_ptr), 1).to(tl.float32)
    factor = tl.load(grad_ptr) * 2.0 / (num_scored * width)
    grad_RD = ((prediction_RD - target_RD) * factor).to(grad_prediction_ptr.dtype.element_ty)
    at_RD = row_R.to(tl.int64)[:, None] * width + d_D[None, :]
    tl.store(grad_prediction_ptr + at_RD, grad_RD, mask=(row_R < num_rows)[:, None] & (d_D < width)[None, :])


def launch_masked_mse(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Start the Triton kernels: errors of blocks of positions, then their sum; arguments as in the reference."""
    B, T, D = prediction_BTD.shape
    rows, channels = channel_tile(D)
    rows = max(rows // 2, 1)  # two operands and a sum in registers; more programs are welcome too
    programs = cdiv(B * T, rows)
    error_P = prediction_BTD.new_empty((programs,), dtype=torch.float32)
    count_P = prediction_BTD.new_empty((programs,), dtype=torch.int32)
    loss = prediction_BTD.new_empty((), dtype=torch.float32)
    num_scored = prediction_BTD.new_empty((), dtype=torch.int64)
    launch(
        _partial_errors_kernel,
        (programs,),
        *(prediction_BTD, target_BTD, scored_BT, error_P, count_P),
        *(B * T, T, D),
        *strides(prediction_BTD, target_BTD, scored_BT),
        BLOCK_R=rows,
        BLOCK_D=channels,
    )
    launch(_finish_kernel, (1,), error_P, count_P, loss, num_scored, programs, D, BLOCK=1024)
    return loss, num_scored


def launch_masked_mse_backward(
    grad: Tensor, num_scored: Tensor, prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor
) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    B, T, D = prediction_BTD.shape
    grad_BTD = prediction_BTD.new_empty((B, T, D))
    rows, channels = channel_tile(D)
    launch(
        _masked_mse_backward_kernel,
        (cdiv(B * T, rows), cdiv(D, channels)),
        *(grad, num_scored, prediction_BTD, target_BTD, scored_BT, grad_BTD),
        *(B * T, T, D),
        *strides(prediction_BTD, target_BTD, scored_BT),
        BLOCK_R=rows,
        BLOCK_D=channels,
    )
    return grad_BTD


masked_mse_backward_op = register_op("masked_mse_backward", masked_mse_backward_reference, launch_masked_mse_backward)
masked_mse_op = register_op(
    "masked_mse",
    masked_mse_reference,
    launch_masked_mse,
    backward=masked_mse_backward_op,
    differentiable=["prediction_BTD"],
    save=lambda inputs, results: (results[1], *inputs),  # the number of scored positions first
)
