"""restore_tokens: the decoder's input, with encoded tokens back at their frames and the mask token everywhere else.

    full[b, t] = temporal[t] + (encoded[b, k] if keep[b, k] == t for some k, else mask_token)

B clips, T frames, K kept frames, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import MAX_CLIP_CHUNKS, cdiv, frame_tile, launch, row_chunks, strides
from svdata2vec.kernels.register import register_op
from svdata2vec.kernels.tiles import row_at, tile_at, token_of_frame


def restore_tokens_reference(encoded_BKD: Tensor, mask_token_D: Tensor, keep_BK: Tensor, temporal_TD: Tensor) -> Tensor:
    """Plain PyTorch: computed in at least float32, rounded once to the dtype of `encoded_BKD`."""
    B, K, D = encoded_BKD.shape
    T = temporal_TD.shape[0]
    exact = torch.promote_types(encoded_BKD.dtype, torch.float32)
    full_BTD = mask_token_D.to(exact).expand(B, T, D)
    full_BTD = full_BTD.scatter(1, keep_BK[:, :, None].expand(B, K, D), encoded_BKD.to(exact))
    return (full_BTD + temporal_TD.to(exact)).to(encoded_BKD.dtype)


def restore_tokens_backward_reference(
    grad_BTD: Tensor, keep_BK: Tensor, mask_dtype: torch.dtype, temporal_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of encoded (B,K,D), mask token (D,) and temporal (T,D)."""
    B, T, D = grad_BTD.shape
    K = keep_BK.shape[1]
    exact = torch.promote_types(grad_BTD.dtype, torch.float32)
    grad_encoded_BKD = grad_BTD.gather(1, keep_BK[:, :, None].expand(B, K, D))
    masked_BT = torch.ones((B, T), dtype=exact, device=grad_BTD.device).scatter(1, keep_BK, 0.0)
    grad_mask_D = torch.einsum("bt,btd->d", masked_BT, grad_BTD.to(exact))
    return grad_encoded_BKD, grad_mask_D.to(mask_dtype), grad_BTD.to(exact).sum(0).to(temporal_dtype)


@triton.jit
def _restore_tokens_kernel(
    encoded_ptr: tl.tensor,  # (B, K, D)
    mask_token_ptr: tl.tensor,  # (D,)
    keep_ptr: tl.tensor,  # (B, K) int64
    temporal_ptr: tl.tensor,  # (T, D)
    full_ptr: tl.tensor,  # (B, T, D) contiguous
    num_kept: tl.tensor,
    num_frames: tl.tensor,
    width: tl.tensor,
    encoded_strides: tl.tuple,
    mask_token_strides: tl.tuple,
    keep_strides: tl.tuple,
    temporal_strides: tl.tuple,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program computes BLOCK_T frames of one clip."""
    clip = tl.program_id(0).to(tl.int64)
    t_T = (tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    d_D = (tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    valid_TD = (t_T < num_frames)[:, None] & (d_D < width)[None, :]
    kept_T = token_of_frame(keep_ptr + clip * keep_strides[0], keep_strides[1], num_kept, t_T, BLOCK_K)

    encoded_at_T = row_at(clip, kept_T, encoded_strides)
    encoded_TD = tl.load(
        encoded_ptr + encoded_at_T[:, None] + d_D[None, :] * encoded_strides[2],
        mask=(kept_T >= 0)[:, None] & valid_TD,
        other=0,
    )
    mask_D = tl.load(mask_token_ptr + d_D * mask_token_strides[0], mask=d_D < width, other=0)
    temporal_at_TD = (t_T * temporal_strides[0])[:, None] + d_D[None, :] * temporal_strides[1]
    temporal_TD = tl.load(temporal_ptr + temporal_at_TD, mask=valid_TD, other=0)
    token_TD = tl.where((kept_T >= 0)[:, None], encoded_TD.to(tl.float32), mask_D.to(tl.float32)[None, :])
    full_TD = token_TD + temporal_TD.to(tl.float32)
    at_TD = (clip * num_frames + t_T)[:, None] * width + d_D[None, :]
    tl.store(full_ptr + at_TD, full_TD.to(full_ptr.dtype.element_ty), mask=valid_TD)


@triton.jit
def _restore_tokens_backward_kernel(
    grad_ptr: tl.tensor,  # (B, T, D)
    keep_ptr: tl.tensor,  # (B, K) int64
    grad_encoded_ptr: tl.tensor,  # (B, K, D) contiguous
    partial_all_ptr: tl.tensor,  # (chunks, T, D) float32: sums over the clips of a chunk
    partial_masked_ptr: tl.tensor,  # (chunks, T, D) float32: the same, over masked positions alone
    num_clips: tl.tensor,
    num_kept: tl.tensor,
    num_frames: tl.tensor,
    width: tl.tensor,
    clips_per_chunk: tl.tensor,
    grad_strides: tl.tuple,
    keep_strides: tl.tuple,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program reads BLOCK_T frames of a chunk of clips once, and adds or writes each row where it belongs."""
    chunk = tl.program_id(0).to(tl.int64)
    t_T = (tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    d_D = (tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    valid_TD = (t_T < num_frames)[:, None] & (d_D < width)[None, :]
    all_TD = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    masked_TD = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)

    first = chunk * clips_per_chunk
    for clip in range(first, tl.minimum(first + clips_per_chunk, num_clips)):
        kept_T = token_of_frame(keep_ptr + clip * keep_strides[0], keep_strides[1], num_kept, t_T, BLOCK_K)
        grad_TD = tl.load(grad_ptr + tile_at(clip, t_T, d_D, grad_strides), mask=valid_TD, other=0)
        is_kept_T1 = (kept_T >= 0)[:, None]
        token_TD = (clip * num_kept + kept_T)[:, None] * width + d_D[None, :]
        tl.store(grad_encoded_ptr + token_TD, grad_TD, mask=is_kept_T1 & valid_TD)
        all_TD += grad_TD.to(tl.float32)
        masked_TD += tl.where(is_kept_T1, 0.0, grad_TD.to(tl.float32))

    at_TD = (chunk * num_frames + t_T)[:, None] * width + d_D[None, :]
    tl.store(partial_all_ptr + at_TD, all_TD, mask=valid_TD)
    tl.store(partial_masked_ptr + at_TD, masked_TD, mask=valid_TD)


def launch_restore_tokens(encoded_BKD: Tensor, mask_token_D: Tensor, keep_BK: Tensor, temporal_TD: Tensor) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    B, K, D = encoded_BKD.shape
    T = temporal_TD.shape[0]
    full_BTD = encoded_BKD.new_empty((B, T, D))
    tile = frame_tile(D, K)
    launch(
        _restore_tokens_kernel,
        (B, cdiv(T, tile["BLOCK_T"]), cdiv(D, tile["BLOCK_D"])),
        *(encoded_BKD, mask_token_D, keep_BK, temporal_TD, full_BTD),
        *(K, T, D),
        *strides(encoded_BKD, mask_token_D, keep_BK, temporal_TD),
        **tile,
    )
    return full_BTD


def launch_restore_tokens_backward(
    grad_BTD: Tensor, keep_BK: Tensor, mask_dtype: torch.dtype, temporal_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Start the Triton kernel; the sums over chunks of clips are a second, fixed-order pass over at most 32 slices."""
    B, T, D = grad_BTD.shape
    K = keep_BK.shape[1]
    grad_encoded_BKD = grad_BTD.new_empty((B, K, D))
    chunks, clips_per_chunk = row_chunks(B, 1, MAX_CLIP_CHUNKS)
    partial_2CTD = grad_BTD.new_empty((2, chunks, T, D), dtype=torch.float32)
    tile = frame_tile(D, K)
    launch(
        _restore_tokens_backward_kernel,
        (chunks, cdiv(T, tile["BLOCK_T"]), cdiv(D, tile["BLOCK_D"])),
        *(grad_BTD, keep_BK, grad_encoded_BKD, *partial_2CTD),
        *(B, K, T, D, clips_per_chunk),
        *strides(grad_BTD, keep_BK),
        **tile,
    )
    all_TD, masked_TD = partial_2CTD.sum(1)
    return grad_encoded_BKD, masked_TD.sum(0).to(mask_dtype), all_TD.to(temporal_dtype)


restore_tokens_backward_op = register_op(
    "restore_tokens_backward", restore_tokens_backward_reference, launch_restore_tokens_backward
)
restore_tokens_op = register_op(
    "restore_tokens",
    restore_tokens_reference,
    launch_restore_tokens,
    backward=restore_tokens_backward_op,
    differentiable=["encoded_BKD", "mask_token_D", "temporal_TD"],
    save=lambda inputs, results: (inputs[2], inputs[1].dtype, inputs[3].dtype),  # keep_BK, and dtypes of two gradients
)
