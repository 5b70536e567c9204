"""fuse_tokens: the student's input tokens, gathered from both modalities in one pass.

    student[b, k] = temporal[t] + (video[b, k] + skeleton[b, t]) / 2   where the skeleton is visible
                    temporal[t] +  video[b, k]                         where it is hidden        with t = keep[b, k]

B clips, T frames, K kept frames, D width.
"""

from typing import Any

import torch
from torch import Tensor

from svdata2vec.kernels.dispatch import refuse_double_backward

# --- reference ------------------------------------------------------------------------------------------------------


def fuse_tokens_reference(
    video_BKD: Tensor, skeleton_BTD: Tensor, keep_BK: Tensor, skeleton_hidden_BK: Tensor, temporal_TD: Tensor
) -> Tensor:
    """Plain PyTorch: computed in at least float32, rounded once to the dtype of `video_BKD`."""
    exact = torch.promote_types(video_BKD.dtype, torch.float32)
    index_BKD = keep_BK[:, :, None].expand_as(video_BKD)
    video, skeleton = video_BKD.to(exact), skeleton_BTD.gather(1, index_BKD).to(exact)
    fused_BKD = torch.where(skeleton_hidden_BK[:, :, None], video, (video + skeleton) * 0.5)
    return (fused_BKD + temporal_TD.to(exact)[keep_BK]).to(video_BKD.dtype).contiguous()


def fuse_tokens_backward_reference(
    grad_BKD: Tensor,
    keep_BK: Tensor,
    skeleton_hidden_BK: Tensor,
    num_frames: int,
    skeleton_dtype: torch.dtype,
    temporal_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of video (B,K,D), skeleton (B,T,D) and temporal (T,D): each frame collects from the tokens it fed."""
    exact = torch.promote_types(grad_BKD.dtype, torch.float32)
    grad, hidden_BK1 = grad_BKD.to(exact), skeleton_hidden_BK[:, :, None]
    half = grad * 0.5
    grad_video_BKD = torch.where(hidden_BK1, grad, half)
    feeds_BTK = (torch.arange(num_frames, device=keep_BK.device)[None, :, None] == keep_BK[:, None, :]).to(exact)
    grad_skeleton_BTD = feeds_BTK @ half.masked_fill(hidden_BK1, 0.0)
    grad_temporal_TD = torch.einsum("btk,bkd->td", feeds_BTK, grad)
    return (
        grad_video_BKD.to(grad_BKD.dtype).contiguous(),
        grad_skeleton_BTD.to(skeleton_dtype),
        grad_temporal_TD.to(temporal_dtype),
    )


# --- registration ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("svdata2vec::fuse_tokens", mutates_args=(), device_types="cpu")
def fuse_tokens_op(
    video_BKD: Tensor, skeleton_BTD: Tensor, keep_BK: Tensor, skeleton_hidden_BK: Tensor, temporal_TD: Tensor
) -> Tensor:
    """See `functional.fuse_tokens`."""
    return fuse_tokens_reference(video_BKD, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD)


@torch.library.custom_op("svdata2vec::fuse_tokens_backward", mutates_args=(), device_types="cpu")
def fuse_tokens_backward_op(
    grad_BKD: Tensor,
    keep_BK: Tensor,
    skeleton_hidden_BK: Tensor,
    num_frames: int,
    skeleton_dtype: torch.dtype,
    temporal_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `fuse_tokens` with respect to video, skeleton and temporal."""
    return fuse_tokens_backward_reference(
        grad_BKD, keep_BK, skeleton_hidden_BK, num_frames, skeleton_dtype, temporal_dtype
    )


@fuse_tokens_op.register_fake
def _(video_BKD: Tensor, skeleton_BTD: Tensor, keep_BK: Tensor, hidden_BK: Tensor, temporal_TD: Tensor) -> Tensor:
    return video_BKD.new_empty(video_BKD.shape)


@fuse_tokens_backward_op.register_fake
def _(
    grad_BKD: Tensor,
    keep_BK: Tensor,
    hidden_BK: Tensor,
    num_frames: int,
    skeleton_dtype: torch.dtype,
    temporal_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, D = grad_BKD.shape
    return (
        grad_BKD.new_empty(grad_BKD.shape),
        grad_BKD.new_empty((B, num_frames, D), dtype=skeleton_dtype),
        grad_BKD.new_empty((num_frames, D), dtype=temporal_dtype),
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD = inputs
    ctx.save_for_backward(keep_BK, skeleton_hidden_BK)
    ctx.num_frames = skeleton_BTD.shape[1]
    ctx.dtypes = skeleton_BTD.dtype, temporal_TD.dtype


def _backward(ctx: Any, grad_BKD: Tensor) -> tuple[Tensor | None, ...]:
    keep_BK, skeleton_hidden_BK = ctx.saved_tensors
    video, skeleton, temporal = fuse_tokens_backward_op(
        grad_BKD, keep_BK, skeleton_hidden_BK, ctx.num_frames, *ctx.dtypes
    )
    return video, skeleton, None, None, temporal


fuse_tokens_op.register_autograd(_backward, setup_context=_save)
refuse_double_backward(fuse_tokens_backward_op, "fuse_tokens")
