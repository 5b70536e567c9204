"""fuse_tokens: the student's input tokens, gathered from both modalities in one pass.

    student[b, k] = temporal[t] + (video[b, k] + skeleton[b, t]) / 2   where the skeleton is visible
                    temporal[t] +  video[b, k]                         where it is hidden        with t = keep[b, k]

B clips, T frames, K kept frames, D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import MAX_CLIP_CHUNKS, cdiv, channel_tile, frame_tile, launch, row_chunks, strides
from svdata2vec.kernels.register import register_op
from svdata2vec.kernels.tiles import clip_and_token, row_at, token_of_frame


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


@triton.jit
def _fuse_tokens_kernel(
    video_ptr: tl.tensor,  # (B, K, D)
    skeleton_ptr: tl.tensor,  # (B, T, D)
    keep_ptr: tl.tensor,  # (B, K) int64
    hidden_ptr: tl.tensor,  # (B, K) bool
    temporal_ptr: tl.tensor,  # (T, D)
    student_ptr: tl.tensor,  # (B, K, D) contiguous
    num_rows: tl.tensor,  # B * K
    num_kept: tl.tensor,
    num_frames: tl.tensor,
    width: tl.tensor,
    video_strides: tl.tuple,
    skeleton_strides: tl.tuple,
    keep_strides: tl.tuple,
    hidden_strides: tl.tuple,
    temporal_strides: tl.tuple,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program computes BLOCK_R tokens: rows of (B, K) flattened, so that 13 tokens per clip waste no lane."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d_D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    row_valid_R, d_valid_D = row_R < num_rows, d_D < width
    clip_R, kept_R = clip_and_token(row_R, num_kept)

    frame_R = tl.load(keep_ptr + row_at(clip_R, kept_R, keep_strides), mask=row_valid_R, other=-1)
    hidden_R = tl.load(hidden_ptr + row_at(clip_R, kept_R, hidden_strides), mask=row_valid_R, other=1)
    in_clip_R = (frame_R >= 0) & (frame_R < num_frames)
    visible_R = in_clip_R & (hidden_R == 0)

    valid_RD = row_valid_R[:, None] & d_valid_D[None, :]
    video_at_R = row_at(clip_R, kept_R, video_strides)
    video_RD = tl.load(video_ptr + video_at_R[:, None] + d_D[None, :] * video_strides[2], mask=valid_RD, other=0)
    skeleton_at_R = row_at(clip_R, frame_R, skeleton_strides)
    skeleton_RD = tl.load(
        skeleton_ptr + skeleton_at_R[:, None] + d_D[None, :] * skeleton_strides[2],
        mask=visible_R[:, None] & d_valid_D[None, :],  # a hidden token isn't even read
        other=0,
    )
    temporal_RD = tl.load(
        temporal_ptr + (frame_R * temporal_strides[0])[:, None] + d_D[None, :] * temporal_strides[1],
        mask=in_clip_R[:, None] & d_valid_D[None, :],
        other=0,
    )
    video_RD = video_RD.to(tl.float32)
    fused_RD = tl.where(visible_R[:, None], (video_RD + skeleton_RD.to(tl.float32)) * 0.5, video_RD)
    student_RD = fused_RD + temporal_RD.to(tl.float32)
    at_RD = row_R.to(tl.int64)[:, None] * width + d_D[None, :]
    tl.store(student_ptr + at_RD, student_RD.to(student_ptr.dtype.element_ty), mask=valid_RD)


@triton.jit
def _fuse_tokens_backward_kernel(
    grad_ptr: tl.tensor,  # (B, K, D)
    keep_ptr: tl.tensor,  # (B, K) int64
    hidden_ptr: tl.tensor,  # (B, K) bool
    grad_video_ptr: tl.tensor,  # (B, K, D) contiguous
    grad_skeleton_ptr: tl.tensor,  # (B, T, D) contiguous
    partial_ptr: tl.tensor,  # (chunks, T, D) float32: temporal gradient of each chunk of clips
    num_clips: tl.tensor,
    num_kept: tl.tensor,
    num_frames: tl.tensor,
    width: tl.tensor,
    clips_per_chunk: tl.tensor,
    grad_strides: tl.tuple,
    keep_strides: tl.tuple,
    hidden_strides: tl.tuple,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program serves BLOCK_T frames of a chunk of clips: each frame looks up the token it fed, if any."""
    chunk = tl.program_id(0).to(tl.int64)
    t_T = (tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    d_D = (tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    valid_TD = (t_T < num_frames)[:, None] & (d_D < width)[None, :]
    total_TD = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)

    first = chunk * clips_per_chunk
    for clip in range(first, tl.minimum(first + clips_per_chunk, num_clips)):
        kept_T = token_of_frame(keep_ptr + clip * keep_strides[0], keep_strides[1], num_kept, t_T, BLOCK_K)
        hidden_at_T = hidden_ptr + clip * hidden_strides[0] + kept_T * hidden_strides[1]
        hidden_T = tl.load(hidden_at_T, mask=kept_T >= 0, other=1)
        fed_TD = (kept_T >= 0)[:, None] & valid_TD

        grad_at_T = row_at(clip, kept_T, grad_strides)
        grad_TD = tl.load(grad_ptr + grad_at_T[:, None] + d_D[None, :] * grad_strides[2], mask=fed_TD, other=0)
        grad_TD = grad_TD.to(tl.float32)
        total_TD += grad_TD
        half_TD = grad_TD * 0.5
        visible_T1 = (hidden_T == 0)[:, None]
        grad_video_TD = tl.where(visible_T1, half_TD, grad_TD)
        grad_skeleton_TD = tl.where(visible_T1, half_TD, 0.0)

        token_TD = (clip * num_kept + kept_T)[:, None] * width + d_D[None, :]
        tl.store(grad_video_ptr + token_TD, grad_video_TD.to(grad_video_ptr.dtype.element_ty), mask=fed_TD)
        frame_TD = (clip * num_frames + t_T)[:, None] * width + d_D[None, :]
        tl.store(grad_skeleton_ptr + frame_TD, grad_skeleton_TD.to(grad_skeleton_ptr.dtype.element_ty), mask=valid_TD)

    partial_TD = (chunk * num_frames + t_T)[:, None] * width + d_D[None, :]
    tl.store(partial_ptr + partial_TD, total_TD, mask=valid_TD)


def launch_fuse_tokens(
    video_BKD: Tensor, skeleton_BTD: Tensor, keep_BK: Tensor, skeleton_hidden_BK: Tensor, temporal_TD: Tensor
) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    B, K, D = video_BKD.shape
    student_BKD = video_BKD.new_empty((B, K, D))
    rows, channels = channel_tile(D)
    launch(
        _fuse_tokens_kernel,
        (cdiv(B * K, rows), cdiv(D, channels)),
        *(video_BKD, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD, student_BKD),
        *(B * K, K, skeleton_BTD.shape[1], D),
        *strides(video_BKD, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD),
        BLOCK_R=rows,
        BLOCK_D=channels,
    )
    return student_BKD


def launch_fuse_tokens_backward(
    grad_BKD: Tensor,
    keep_BK: Tensor,
    skeleton_hidden_BK: Tensor,
    num_frames: int,
    skeleton_dtype: torch.dtype,
    temporal_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Start the Triton kernel; the sum over chunks of clips is a second, fixed-order pass over at most 32 slices."""
    B, K, D = grad_BKD.shape
    grad_video_BKD = grad_BKD.new_empty((B, K, D))
    grad_skeleton_BTD = grad_BKD.new_empty((B, num_frames, D), dtype=skeleton_dtype)
    chunks, clips_per_chunk = row_chunks(B, 1, MAX_CLIP_CHUNKS)
    partial_CTD = grad_BKD.new_empty((chunks, num_frames, D), dtype=torch.float32)
    tile = frame_tile(D, K)
    launch(
        _fuse_tokens_backward_kernel,
        (chunks, cdiv(num_frames, tile["BLOCK_T"]), cdiv(D, tile["BLOCK_D"])),
        *(grad_BKD, keep_BK, skeleton_hidden_BK, grad_video_BKD, grad_skeleton_BTD, partial_CTD),
        *(B, K, num_frames, D, clips_per_chunk),
        *strides(grad_BKD, keep_BK, skeleton_hidden_BK),
        **tile,
    )
    return grad_video_BKD, grad_skeleton_BTD, partial_CTD.sum(0).to(temporal_dtype)


def _save(inputs: tuple[Any, ...], results: tuple[Any, ...]) -> tuple[Any, ...]:
    _, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD = inputs
    return keep_BK, skeleton_hidden_BK, skeleton_BTD.shape[1], skeleton_BTD.dtype, temporal_TD.dtype


fuse_tokens_backward_op = register_op("fuse_tokens_backward", fuse_tokens_backward_reference, launch_fuse_tokens_backward)
fuse_tokens_op = register_op(
    "fuse_tokens",
    fuse_tokens_reference,
    launch_fuse_tokens,
    backward=fuse_tokens_backward_op,
    differentiable=["video_BKD", "skeleton_BTD", "temporal_TD"],
    save=_save,
)
