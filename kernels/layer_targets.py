"""layer_targets: what the student has to predict: the teacher's top layers, each normalised, then averaged.

    target = normalise_average(mean over l of normalise_layer(layers[l]))

"instance" normalises per clip and channel over time, "layer" per token over channels, "batch" per channel over clips
and time; all with the biased variance and without learned parameters. No gradient: the teacher isn't trained.

L layers, B clips, T frames, D width.
"""

from typing import Literal

import torch
from torch import Tensor

LayerNormalisation = Literal["instance", "layer", "batch", "none"]
AverageNormalisation = Literal["instance", "layer", "none"]

# Axes of (..., B, T, D) that share one mean and one variance.
NORMALISED_AXES: dict[str, tuple[int, ...]] = {"instance": (-2,), "layer": (-1,), "batch": (-3, -2), "none": ()}


# --- reference ------------------------------------------------------------------------------------------------------


def layer_targets_reference(
    layers_LBTD: Tensor, eps: float, normalise_layer: LayerNormalisation, normalise_average: AverageNormalisation
) -> Tensor:
    """Plain PyTorch in at least float32, which is also the dtype of the result."""
    exact = torch.promote_types(layers_LBTD.dtype, torch.float32)
    target_BTD = _normalise(layers_LBTD.detach().to(exact), normalise_layer, eps).mean(0)
    return _normalise(target_BTD, normalise_average, eps)


def _normalise(x: Tensor, kind: str, eps: float) -> Tensor:
    axes = NORMALISED_AXES[kind]
    if not axes:
        return x
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps)


# --- registration ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("svdata2vec::layer_targets", mutates_args=(), device_types="cpu")
def layer_targets_op(layers_LBTD: Tensor, eps: float) -> Tensor:
    """See `functional.layer_targets`; the fused case: instance normalisation per layer, none of the average."""
    return layer_targets_reference(layers_LBTD, eps, "instance", "none").contiguous()


@layer_targets_op.register_fake
def _(layers_LBTD: Tensor, eps: float) -> Tensor:
    return layers_LBTD.new_empty(layers_LBTD.shape[1:], dtype=torch.promote_types(layers_LBTD.dtype, torch.float32))
