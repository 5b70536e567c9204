"""layer_targets: the student's prediction targets: the teacher's top layers, each normalised, then averaged.

    target = normalise_average(mean over l of normalise_layer(layers[l]))

"instance" normalises per clip and channel over time, "layer" per token over channels, "batch" per channel over clips
and time; all with the biased variance and without learned parameters. No gradient: the teacher isn't trained.

L layers, B clips, T frames, D width.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import cdiv, launch, next_power_of_2, strides
from svdata2vec.kernels.register import register_op
from svdata2vec.kernels.tiles import divide

LayerNormalisation = Literal["instance", "layer", "batch", "none"]
AverageNormalisation = Literal["instance", "layer", "none"]

# Axes of (..., B, T, D) that share one mean and one variance.
NORMALISED_AXES: dict[str, tuple[int, ...]] = {"instance": (-2,), "layer": (-1,), "batch": (-3, -2), "none": ()}


def layer_targets_reference(
    layers_LBTD: Tensor,
    eps: float,
    normalise_layer: LayerNormalisation = "instance",
    normalise_average: AverageNormalisation = "none",
) -> Tensor:
    """Plain PyTorch in at least float32, which is also the dtype of the result. Only the defaults have a kernel."""
    exact = torch.promote_types(layers_LBTD.dtype, torch.float32)
    target_BTD = _normalise(layers_LBTD.detach().to(exact), normalise_layer, eps).mean(0)
    return _normalise(target_BTD, normalise_average, eps).contiguous()


def _normalise(x: Tensor, kind: str, eps: float) -> Tensor:
    axes = NORMALISED_AXES[kind]
    if not axes:
        return x
    centred = x - x.mean(axes, keepdim=True)
    # Not torch.var_mean, which is far slower over an inner axis on a CPU.
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


@triton.jit
def _layer_targets_kernel(
    layers_ptr: tl.tensor,  # (L, B, T, D)
    target_ptr: tl.tensor,  # (B, T, D) contiguous, float32
    num_layers: tl.tensor,
    num_frames: tl.tensor,
    width: tl.tensor,
    strides: tl.tuple,
    eps: float,
    BLOCK_T: tl.constexpr,  # all frames of a clip
    BLOCK_D: tl.constexpr,
) -> None:
    """One program holds all frames of BLOCK_D channels of one clip, so each layer is read exactly once."""
    clip = tl.program_id(0).to(tl.int64)
    t_T = tl.arange(0, BLOCK_T).to(tl.int64)
    d_D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    valid_TD = (t_T < num_frames)[:, None] & (d_D < width)[None, :]
    source_TD = clip * strides[1] + (t_T * strides[2])[:, None] + d_D[None, :] * strides[3]
    sum_TD = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for layer in range(num_layers):
        x_TD = tl.load(layers_ptr + tl.cast(layer, tl.int64) * strides[0] + source_TD, mask=valid_TD, other=0)
        x_TD = x_TD.to(tl.float32)
        mean_D = divide(tl.sum(x_TD, axis=0), num_frames)
        # From the values in registers: mean of squares minus square of the mean would lose precision if the mean is large.
        centred_TD = tl.where(valid_TD, x_TD - mean_D[None, :], 0.0)
        variance_D = divide(tl.sum(centred_TD * centred_TD, axis=0), num_frames)
        sum_TD += centred_TD * tl.rsqrt(variance_D + eps)[None, :]
    at_TD = (clip * num_frames + t_T)[:, None] * width + d_D[None, :]
    tl.store(target_ptr + at_TD, sum_TD / num_layers, mask=valid_TD)


# Values per program: 64 (40 frames rounded up) x 32 channels are 16 per thread in four warps, held about four times over
# in registers; a row of 32 bfloat16 is two whole sectors of 32 bytes. 1024 programs at batch 128 and width 256.
TARGET_TILE_VALUES = 2048
MAX_FRAMES = 1024


def too_large(layers_LBTD: Tensor, *_: float) -> str:
    """Why a clip's frames do not fit into one program; empty if they do."""
    T = layers_LBTD.shape[2]
    return f"{T} frames; the Triton kernel takes up to {MAX_FRAMES}" if T > MAX_FRAMES else ""


def launch_layer_targets(layers_LBTD: Tensor, eps: float) -> Tensor:
    """Start the Triton kernel.

    Raises:
        ValueError: a clip has more frames than one program can hold.
    """
    L, B, T, D = layers_LBTD.shape
    if why := too_large(layers_LBTD):
        raise ValueError(f"layer_targets: {why}; use impl='torch'")
    target_BTD = layers_LBTD.new_empty((B, T, D), dtype=torch.float32)
    frames = next_power_of_2(max(T, 1))
    channels = min(max(TARGET_TILE_VALUES // frames, 8), next_power_of_2(D), 32)
    launch(
        _layer_targets_kernel,
        (B, cdiv(D, channels)) if T else (0,),
        *(layers_LBTD, target_BTD),
        *(L, T, D),
        *strides(layers_LBTD),
        eps,
        BLOCK_T=frames,
        BLOCK_D=channels,
    )
    return target_BTD


layer_targets_op = register_op("layer_targets", layer_targets_reference, launch_layer_targets, too_large=too_large)
