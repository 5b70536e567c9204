"""restore_tokens: the decoder's input: encoded tokens back at their frames, the mask token everywhere else.

    full[b, t] = temporal[t] + (encoded[b, k] if keep[b, k] == t for some k, else mask_token)

B clips, T frames, K kept frames, D width.
"""

from typing import Any

import torch
from torch import Tensor

from svdata2vec.kernels.dispatch import refuse_double_backward

# --- reference ------------------------------------------------------------------------------------------------------


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


# --- registration ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("svdata2vec::restore_tokens", mutates_args=(), device_types="cpu")
def restore_tokens_op(encoded_BKD: Tensor, mask_token_D: Tensor, keep_BK: Tensor, temporal_TD: Tensor) -> Tensor:
    """See `functional.restore_tokens`."""
    return restore_tokens_reference(encoded_BKD, mask_token_D, keep_BK, temporal_TD)


@torch.library.custom_op("svdata2vec::restore_tokens_backward", mutates_args=(), device_types="cpu")
def restore_tokens_backward_op(
    grad_BTD: Tensor, keep_BK: Tensor, mask_dtype: torch.dtype, temporal_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `restore_tokens` with respect to encoded, mask token and temporal."""
    return restore_tokens_backward_reference(grad_BTD, keep_BK, mask_dtype, temporal_dtype)


@restore_tokens_op.register_fake
def _(encoded_BKD: Tensor, mask_token_D: Tensor, keep_BK: Tensor, temporal_TD: Tensor) -> Tensor:
    return encoded_BKD.new_empty((encoded_BKD.shape[0], temporal_TD.shape[0], encoded_BKD.shape[2]))


@restore_tokens_backward_op.register_fake
def _(
    grad_BTD: Tensor, keep_BK: Tensor, mask_dtype: torch.dtype, temporal_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = grad_BTD.shape
    return (
        grad_BTD.new_empty((B, keep_BK.shape[1], D)),
        grad_BTD.new_empty((D,), dtype=mask_dtype),
        grad_BTD.new_empty((T, D), dtype=temporal_dtype),
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, mask_token_D, keep_BK, temporal_TD = inputs
    ctx.save_for_backward(keep_BK)
    ctx.dtypes = mask_token_D.dtype, temporal_TD.dtype


def _backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
    (keep_BK,) = ctx.saved_tensors
    encoded, mask_token, temporal = restore_tokens_backward_op(grad_BTD, keep_BK, *ctx.dtypes)
    return encoded, mask_token, None, temporal


restore_tokens_op.register_autograd(_backward, setup_context=_save)
refuse_double_backward(restore_tokens_backward_op, "restore_tokens")
