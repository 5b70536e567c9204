"""attention: multi-head self-attention for short sequences, straight from the packed qkv projection.

    out[b, :, h] = softmax(scale * q k^T) v       q, k, v = qkv[b, :, h*E:(h+1)*E], the same at D, and at 2*D

Tokens at or beyond `lengths_B[b]` are padding: nobody attends to them, their output and their gradient are zero.

B clips, N tokens, H heads, E head dimension, D = H * E.
"""

from typing import Any

import torch
from torch import Tensor

from svdata2vec.kernels.dispatch import refuse_double_backward

# --- reference ------------------------------------------------------------------------------------------------------


def attention_reference(qkv_BN3HE: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None) -> Tensor:
    """Plain PyTorch: products in the input's dtype, softmax in at least float32."""
    q_BHNE, k_BHNE, v_BHNE = _split_heads(qkv_BN3HE, num_heads)
    prob_BHNN = _probabilities(q_BHNE, k_BHNE, scale, lengths_B).to(qkv_BN3HE.dtype)
    return _merge_heads(prob_BHNN @ v_BHNE)


def attention_backward_reference(
    grad_BND: Tensor, qkv_BN3HE: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None
) -> Tensor:
    """Gradient of the packed qkv; the probabilities are computed again instead of being kept from the forward pass."""
    dtype = qkv_BN3HE.dtype
    B, N, D = grad_BND.shape
    q_BHNE, k_BHNE, v_BHNE = _split_heads(qkv_BN3HE, num_heads)
    grad_BHNE = grad_BND.view(B, N, num_heads, D // num_heads).transpose(1, 2)
    prob_BHNN = _probabilities(q_BHNE, k_BHNE, scale, lengths_B)
    grad_prob_BHNN = (grad_BHNE @ v_BHNE.mT).to(prob_BHNN.dtype)
    mean_BHN1 = (prob_BHNN * grad_prob_BHNN).sum(-1, keepdim=True)
    grad_score_BHNN = (prob_BHNN * (grad_prob_BHNN - mean_BHN1) * scale).to(dtype)
    grad_q_BHNE = grad_score_BHNN @ k_BHNE
    grad_k_BHNE = grad_score_BHNN.mT @ q_BHNE
    grad_v_BHNE = prob_BHNN.to(dtype).mT @ grad_BHNE
    return torch.cat([_merge_heads(grad) for grad in (grad_q_BHNE, grad_k_BHNE, grad_v_BHNE)], dim=-1)


def _split_heads(qkv_BN3HE: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    B, N, packed = qkv_BN3HE.shape
    q_BHNE, k_BHNE, v_BHNE = qkv_BN3HE.view(B, N, 3, num_heads, packed // 3 // num_heads).permute(2, 0, 3, 1, 4)
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


# --- registration ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("svdata2vec::attention", mutates_args=(), device_types="cpu")
def attention_op(qkv_BN3HE: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None) -> Tensor:
    """See `functional.attention`."""
    return attention_reference(qkv_BN3HE, num_heads, scale, lengths_B)


@torch.library.custom_op("svdata2vec::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward_op(
    grad_BND: Tensor, qkv_BN3HE: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None
) -> Tensor:
    """Gradient of `attention` with respect to the packed qkv."""
    return attention_backward_reference(grad_BND, qkv_BN3HE, num_heads, scale, lengths_B)


@attention_op.register_fake
def _(qkv_BN3HE: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None) -> Tensor:
    B, N, packed = qkv_BN3HE.shape
    return qkv_BN3HE.new_empty((B, N, packed // 3))


@attention_backward_op.register_fake
def _(grad_BND: Tensor, qkv_BN3HE: Tensor, num_heads: int, scale: float, lengths_B: Tensor | None) -> Tensor:
    return qkv_BN3HE.new_empty(qkv_BN3HE.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv_BN3HE, ctx.num_heads, ctx.scale, lengths_B = inputs
    ctx.save_for_backward(qkv_BN3HE, lengths_B)


def _backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor | None, ...]:
    qkv_BN3HE, lengths_B = ctx.saved_tensors
    return attention_backward_op(grad_BND, qkv_BN3HE, ctx.num_heads, ctx.scale, lengths_B), None, None, None


attention_op.register_autograd(_backward, setup_context=_save)
refuse_double_backward(attention_backward_op, "attention")
