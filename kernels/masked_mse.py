"""masked_mse: squared error averaged over channels and over the scored positions of the batch.

    loss = sum over scored (b, t) of mean over d of (prediction - target)^2, divided by the number of scored positions

No scored position at all gives loss 0 and gradient 0. Only the prediction has a gradient.

B clips, T frames, D width.
"""

from typing import Any

import torch
from torch import Tensor

from svdata2vec.kernels.dispatch import refuse_double_backward

# --- reference ------------------------------------------------------------------------------------------------------


def masked_mse_reference(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    """Plain PyTorch in at least float32, which is also the dtype of the result."""
    error_BTD = _scored_difference(prediction_BTD, target_BTD.detach(), scored_BT)
    return error_BTD.square().mean(-1).sum() / scored_BT.sum().clamp(min=1)


def masked_mse_backward_reference(
    grad: Tensor, prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor
) -> Tensor:
    """Gradient of the prediction: 2 * (prediction - target) / (D * scored positions) where scored, else zero."""
    factor = grad * 2.0 / (prediction_BTD.shape[-1] * scored_BT.sum().clamp(min=1))
    grad_BTD = _scored_difference(prediction_BTD, target_BTD, scored_BT) * factor
    return grad_BTD.to(prediction_BTD.dtype).contiguous()


def _scored_difference(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    exact = torch.promote_types(prediction_BTD.dtype, torch.float32)
    # `where` and not a product: a position that isn't scored may hold anything, NaN included.
    return torch.where(scored_BT[:, :, None], prediction_BTD.to(exact) - target_BTD.to(exact), 0.0)


# --- registration ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("svdata2vec::masked_mse", mutates_args=(), device_types="cpu")
def masked_mse_op(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    """See `functional.masked_mse`."""
    return masked_mse_reference(prediction_BTD, target_BTD, scored_BT)


@torch.library.custom_op("svdata2vec::masked_mse_backward", mutates_args=(), device_types="cpu")
def masked_mse_backward_op(grad: Tensor, prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    """Gradient of `masked_mse` with respect to the prediction; `grad` is the scalar gradient of the loss."""
    return masked_mse_backward_reference(grad, prediction_BTD, target_BTD, scored_BT)


@masked_mse_op.register_fake
def _(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    return prediction_BTD.new_empty((), dtype=torch.promote_types(prediction_BTD.dtype, torch.float32))


@masked_mse_backward_op.register_fake
def _(grad: Tensor, prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor) -> Tensor:
    return prediction_BTD.new_empty(prediction_BTD.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return masked_mse_backward_op(grad, *ctx.saved_tensors), None, None


masked_mse_op.register_autograd(_backward, setup_context=_save)
refuse_double_backward(masked_mse_backward_op, "masked_mse")
