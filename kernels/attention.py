"""attention: multi-head self-attention for short sequences, straight from the packed qkv projection.

    out[b, :, h] = softmax(scale * q k^T) v       q, k, v = qkv[b, :, h*E:(h+1)*E], the same at D, and at 2*D

Tokens at or beyond `lengths_B[b]` are padding: no token attends to them, and their output and gradient are zero.

B clips, N tokens, H heads, E head dimension, D = H * E.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels import dispatch
from svdata2vec.kernels.launch import cdiv, launch, next_power_of_2, strides
from svdata2vec.kernels.register import register_op


def attention_reference(qkv_BNC: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None) -> Tensor:
    """Plain PyTorch: products in the input's dtype, also inside an autocast region; softmax in at least float32."""
    with torch.autocast(qkv_BNC.device.type, enabled=False):
        q_BHNE, k_BHNE, v_BHNE = _split_heads(qkv_BNC, num_heads)
        prob_BHNN = _probabilities(q_BHNE, k_BHNE, scale, lengths_B).to(qkv_BNC.dtype)
        return _merge_heads(prob_BHNN @ v_BHNE)


def attention_backward_reference(
    grad_BND: Tensor, qkv_BNC: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None
) -> Tensor:
    """Gradient of the packed qkv; the probabilities are recomputed instead of being kept from the forward pass."""
    dtype = qkv_BNC.dtype
    q_BHNE, k_BHNE, v_BHNE = _split_heads(qkv_BNC, num_heads)
    grad_BHNE = grad_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    prob_BHNN = _probabilities(q_BHNE, k_BHNE, scale, lengths_B)
    grad_prob_BHNN = (grad_BHNE @ v_BHNE.mT).to(prob_BHNN.dtype)
    mean_BHN1 = (prob_BHNN * grad_prob_BHNN).sum(-1, keepdim=True)
    grad_score_BHNN = (prob_BHNN * (grad_prob_BHNN - mean_BHN1) * scale).to(dtype)
    grad_q_BHNE = grad_score_BHNN @ k_BHNE
    grad_k_BHNE = grad_score_BHNN.mT @ q_BHNE
    grad_v_BHNE = prob_BHNN.to(dtype).mT @ grad_BHNE
    return torch.cat([_merge_heads(grad) for grad in (grad_q_BHNE, grad_k_BHNE, grad_v_BHNE)], dim=-1)


def _split_heads(qkv_BNC: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q_BHNE, k_BHNE, v_BHNE = qkv_BNC.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q_BHNE, k_BHNE, v_BHNE


def _merge_heads(x_BHNE: Tensor) -> Tensor:
    return x_BHNE.transpose(1, 2).flatten(2)


def _probabilities(q_BHNE: Tensor, k_BHNE: Tensor, scale: float, lengths_B: Tensor | None) -> Tensor:
    """softmax(scale * q k^T) in at least float32; rows and columns of padding are zero, not NaN."""
    score_BHNN = (q_BHNE @ k_BHNE.mT).to(torch.promote_types(q_BHNE.dtype, torch.float32)) * scale
    if lengths_B is None:
        return score_BHNN.softmax(-1)
    real_BN = torch.arange(score_BHNN.shape[-1], device=score_BHNN.device) < lengths_B[:, None]
    # A finite stand-in for -inf: a clip of length 0 has no real column, and softmax of -inf alone is NaN.
    score_BHNN = score_BHNN.masked_fill(~real_BN[:, None, None, :], torch.finfo(score_BHNN.dtype).min)
    return score_BHNN.softmax(-1) * (real_BN[:, None, :, None] & real_BN[:, None, None, :])


# A program holds BLOCK_N rows of tokens: PAIRS whole (clip, head) pairs, one after the other; neighbouring pairs are
# neighbouring heads of one clip. One score matrix covers them all, and a mask keeps the pairs apart, so that 13 tokens
# fill the tensor cores' tiles, and 40 or 128 tokens need no separate kernel. Every row of scores is complete within the
# program, so the softmax needs no running maximum, and the forward pass stores nothing for the backward pass. Each
# gradient is owned by one program, so there are no atomic additions.
# The sizes are constants of the kernel: it is compiled for each, and finding a row takes no division at run time.
# k and v are loaded where they are used, again for each block of queries: that costs L1 hits and saves registers.
# "tf32x3" only affects float32: three tensor core products that together keep float32's digits.


@triton.jit
def _locate_rows(
    row: tl.tensor,
    lengths_ptr: tl.tensor,
    num_pairs: tl.tensor,
    N: tl.constexpr,
    H: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """For each row of this program: index of its pair; clip, token, head (int64); whether the row exists; whether its token
    is real."""
    part = row // N
    pair = (tl.program_id(0) * PAIRS + part).to(tl.int64)
    token = (row % N).to(tl.int64)
    clip = pair // H
    exists = (row < PAIRS * N) & (pair < num_pairs)
    real = exists
    if HAS_LENGTHS:
        real &= token < tl.load(lengths_ptr + clip, mask=exists, other=0)
    return part, clip, token, pair % H, exists, real


@triton.jit
def _head_at(
    clip_N: tl.tensor, token_N: tl.tensor, head_N: tl.tensor, e_E: tl.tensor, strides: tl.tuple, E: tl.constexpr
) -> tl.tensor:
    """(rows, BLOCK_E) offsets of each row's head in (B, N, channels)."""
    return (clip_N * strides[0] + token_N * strides[1] + head_N * E * strides[2])[:, None] + e_E[None, :] * strides[2]


@triton.jit
def _softmax(score_MN: tl.tensor, allowed_MN: tl.tensor) -> tl.tensor:
    """Row softmax over the allowed columns; rows without any are zero. The finite floor avoids inf - inf."""
    score_MN = tl.where(allowed_MN, score_MN, -1e30)
    exp_MN = tl.where(allowed_MN, tl.exp(score_MN - tl.max(score_MN, axis=1)[:, None]), 0.0)
    sum_M = tl.sum(exp_MN, axis=1)
    return exp_MN / tl.where(sum_M > 0.0, sum_M, 1.0)[:, None]


@triton.jit
def _attention_kernel(
    qkv_ptr: tl.tensor,  # (B, N, 3 * H * E)
    lengths_ptr: tl.tensor,  # (B,) integers; not read unless HAS_LENGTHS
    out_ptr: tl.tensor,  # (B, N, H * E) contiguous
    num_pairs: tl.tensor,  # B * H
    qkv_strides: tl.tuple,
    scale: float,
    N: tl.constexpr,
    H: tl.constexpr,
    E: tl.constexpr,
    PAIRS: tl.constexpr,  # per program
    HAS_LENGTHS: tl.constexpr,
    BLOCK_M: tl.constexpr,  # query rows at a time
    BLOCK_N: tl.constexpr,  # all rows of the program
    BLOCK_E: tl.constexpr,
) -> None:
    """One program computes the output of all its pairs."""
    e_E = tl.arange(0, BLOCK_E).to(tl.int64)
    in_head_1E = (e_E < E)[None, :]
    width = H * E
    part_N, clip_N, token_N, head_N, _, real_N = _locate_rows(
        tl.arange(0, BLOCK_N), lengths_ptr, num_pairs, N, H, PAIRS, HAS_LENGTHS
    )
    at_NE = _head_at(clip_N, token_N, head_N, e_E, qkv_strides, E)
    read_NE = real_N[:, None] & in_head_1E

    for first in range(0, BLOCK_N, BLOCK_M):
        part_M, clip_M, token_M, head_M, exists_M, real_M = _locate_rows(
            first + tl.arange(0, BLOCK_M), lengths_ptr, num_pairs, N, H, PAIRS, HAS_LENGTHS
        )
        q_at_ME = _head_at(clip_M, token_M, head_M, e_E, qkv_strides, E)
        k_NE = tl.load(qkv_ptr + width * qkv_strides[2] + at_NE, mask=read_NE, other=0)
        q_ME = tl.load(qkv_ptr + q_at_ME, mask=real_M[:, None] & in_head_1E, other=0)
        score_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="tf32x3") * scale
        allowed_MN = (part_M[:, None] == part_N[None, :]) & real_M[:, None] & real_N[None, :]
        prob_MN = _softmax(score_MN, allowed_MN).to(q_ME.dtype)
        v_NE = tl.load(qkv_ptr + 2 * width * qkv_strides[2] + at_NE, mask=read_NE, other=0)
        out_ME = tl.dot(prob_MN, v_NE, input_precision="tf32x3")
        out_at_M = (clip_M * N + token_M) * width + head_M * E
        out_mask_ME = exists_M[:, None] & in_head_1E
        tl.store(out_ptr + out_at_M[:, None] + e_E[None, :], out_ME.to(out_ptr.dtype.element_ty), mask=out_mask_ME)


@triton.jit
def _attention_backward_kernel(
    grad_ptr: tl.tensor,  # (B, N, H * E): gradient of the output
    qkv_ptr: tl.tensor,  # (B, N, 3 * H * E)
    lengths_ptr: tl.tensor,  # (B,) integers; not read unless HAS_LENGTHS
    grad_qkv_ptr: tl.tensor,  # (B, N, 3 * H * E) contiguous
    num_pairs: tl.tensor,  # B * H
    grad_strides: tl.tuple,
    qkv_strides: tl.tuple,
    scale: float,
    N: tl.constexpr,
    H: tl.constexpr,
    E: tl.constexpr,
    PAIRS: tl.constexpr,  # per program
    HAS_LENGTHS: tl.constexpr,
    BLOCK_M: tl.constexpr,  # query rows at a time
    BLOCK_N: tl.constexpr,  # all rows of the program
    BLOCK_E: tl.constexpr,
) -> None:
    """One program computes the gradients of q, k and v of all its pairs, from recomputed probabilities."""
    e_E = tl.arange(0, BLOCK_E).to(tl.int64)
    in_head_1E = (e_E < E)[None, :]
    width = H * E
    part_N, clip_N, token_N, head_N, exists_N, real_N = _locate_rows(
        tl.arange(0, BLOCK_N), lengths_ptr, num_pairs, N, H, PAIRS, HAS_LENGTHS
    )
    at_NE = _head_at(clip_N, token_N, head_N, e_E, qkv_strides, E)
    read_NE = real_N[:, None] & in_head_1E
    grad_k_NE = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)
    grad_v_NE = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)

    for first in range(0, BLOCK_N, BLOCK_M):
        part_M, clip_M, token_M, head_M, exists_M, real_M = _locate_rows(
            first + tl.arange(0, BLOCK_M), lengths_ptr, num_pairs, N, H, PAIRS, HAS_LENGTHS
        )
        read_ME = real_M[:, None] & in_head_1E
        row_at_M = clip_M * qkv_strides[0] + token_M * qkv_strides[1] + head_M * E * qkv_strides[2]
        q_ME = tl.load(qkv_ptr + row_at_M[:, None] + e_E[None, :] * qkv_strides[2], mask=read_ME, other=0)
        grad_at_M = clip_M * grad_strides[0] + token_M * grad_strides[1] + head_M * E * grad_strides[2]
        grad_ME = tl.load(grad_ptr + grad_at_M[:, None] + e_E[None, :] * grad_strides[2], mask=read_ME, other=0)

        k_NE = tl.load(qkv_ptr + width * qkv_strides[2] + at_NE, mask=read_NE, other=0)
        score_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="tf32x3") * scale
        allowed_MN = (part_M[:, None] == part_N[None, :]) & real_M[:, None] & real_N[None, :]
        prob_MN = _softmax(score_MN, allowed_MN)
        grad_v_NE = tl.dot(tl.trans(prob_MN.to(grad_ME.dtype)), grad_ME, grad_v_NE, input_precision="tf32x3")
        v_NE = tl.load(qkv_ptr + 2 * width * qkv_strides[2] + at_NE, mask=read_NE, other=0)
        grad_prob_MN = tl.dot(grad_ME, tl.trans(v_NE), input_precision="tf32x3")
        mean_M = tl.sum(prob_MN * grad_prob_MN, axis=1)
        grad_score_MN = (prob_MN * (grad_prob_MN - mean_M[:, None]) * scale).to(q_ME.dtype)
        grad_k_NE = tl.dot(tl.trans(grad_score_MN), q_ME, grad_k_NE, input_precision="tf32x3")
        grad_q_ME = tl.dot(grad_score_MN, k_NE, input_precision="tf32x3")

        to_M = (clip_M * N + token_M) * 3 * width + head_M * E
        to_mask_ME = exists_M[:, None] & in_head_1E
        tl.store(
            grad_qkv_ptr + to_M[:, None] + e_E[None, :], grad_q_ME.to(grad_qkv_ptr.dtype.element_ty), mask=to_mask_ME
        )

    to_N = (clip_N * N + token_N) * 3 * width + head_N * E
    to_NE = grad_qkv_ptr + to_N[:, None] + e_E[None, :]
    to_mask_NE = exists_N[:, None] & in_head_1E
    tl.store(to_NE + width, grad_k_NE.to(grad_qkv_ptr.dtype.element_ty), mask=to_mask_NE)
    tl.store(to_NE + 2 * width, grad_v_NE.to(grad_qkv_ptr.dtype.element_ty), mask=to_mask_NE)


MAX_TOKENS = 128
MAX_HEAD_DIM = 64


def too_large(qkv_BNC: Tensor, num_heads: int, *_: Any) -> str:
    """Why a sequence with its heads does not fit into one program; empty if it does."""
    N, packed = qkv_BNC.shape[1:]
    head_dim = packed // 3 // num_heads
    if N <= MAX_TOKENS and head_dim <= MAX_HEAD_DIM:
        return ""
    return (
        f"{N} tokens and heads of {head_dim}; the Triton kernel takes up to {MAX_TOKENS} tokens and heads of up to "
        f"{MAX_HEAD_DIM}"
    )


def choose_tiles(num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Launch constants of both kernels.

    The smallest tile that holds a pair: less of the score matrix is masked than in a larger tile of several pairs.

    At least 32 rows: 13 tokens (26 of 32 rows used) leave the same share idle as one pair in 16 rows would, at half as many
    programs. Above 64 tokens, and in float32, the queries go through in blocks of 16: the backward pass holds four M x N
    matrices and their operands, and ptxas (for sm_80, sm_90 and sm_100) finds registers for all of it this way, but not
    with blocks of 32. In float32 the products take three passes, hence more warps; 128 tokens still spill.
    """
    block_n = max(next_power_of_2(num_tokens), 32)
    full = dtype == torch.float32
    return {
        "BLOCK_M": 16 if full or block_n > 64 else block_n,
        "BLOCK_N": block_n,
        "BLOCK_E": max(next_power_of_2(head_dim), 16),
        "num_warps": {32: 4, 64: 8, 128: 8}[block_n] if full else {32: 2, 64: 4, 128: 8}[block_n],
    }


def launch_attention(qkv_BNC: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None) -> Tensor:
    """Start the Triton kernel; arguments as in the reference.

    Raises:
        ValueError: the sequence or the heads are larger than one program can hold.
    """
    B, N, packed = qkv_BNC.shape
    out_BND = qkv_BNC.new_empty((B, N, packed // 3))
    _launch(_attention_kernel, (qkv_BNC,), out_BND, num_heads, scale, lengths_B)
    return out_BND


def launch_attention_backward(
    grad_BND: Tensor, qkv_BNC: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None
) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    grad_qkv_BNC = qkv_BNC.new_empty(qkv_BNC.shape)
    _launch(_attention_backward_kernel, (grad_BND, qkv_BNC), grad_qkv_BNC, num_heads, scale, lengths_B)
    return grad_qkv_BNC


def _launch(
    kernel: Any, inputs: tuple[Tensor, ...], result: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None
) -> None:
    """Check the size and launch either kernel; `inputs` ends with the packed qkv."""
    qkv_BNC = inputs[-1]
    B, N, packed = qkv_BNC.shape
    head_dim = packed // 3 // num_heads
    if why := too_large(qkv_BNC, num_heads):
        raise ValueError(f"attention: {why}; use impl='torch'")
    if qkv_BNC.dtype == torch.bfloat16 and not dispatch.BF16_PRODUCTS:
        raise ValueError(
            "attention: Triton's interpreter multiplies the bit patterns of bfloat16 matrices; take float32 or float16"
        )
    tiles = choose_tiles(max(N, 1), head_dim, qkv_BNC.dtype)
    pairs_per_program = tiles["BLOCK_N"] // max(N, 1)
    launch(
        kernel,
        (cdiv(B * num_heads, pairs_per_program) if N else 0,),
        *(*inputs, qkv_BNC if lengths_B is None else lengths_B.contiguous(), result),
        *(B * num_heads, *strides(*inputs), scale),
        N=N,
        H=num_heads,
        E=head_dim,
        PAIRS=pairs_per_program,
        HAS_LENGTHS=lengths_B is not None,
        **tiles,
    )


attention_backward_op = register_op("attention_backward", attention_backward_reference, launch_attention_backward)
attention_op = register_op(
    "attention", attention_reference, launch_attention, backward=attention_backward_op, differentiable=["qkv_BNC"],
    too_large=too_large,
)
