"""The public kernels: checked arguments in, `impl` resolved once, one op or its plain reference called.

    from svdata2vec.kernels import functional as K
    out_BND = K.attention(qkv, num_heads=8)

Every function takes `impl` ("auto", "triton", "torch"; see dispatch.py) and raises ValueError for a wrong shape, dtype
or device, for an `impl` that can't run here, and for values outside their range where they lie in main memory.
The Triton kernels accumulate in float32 and are deterministic: there are no atomic additions. Strides are free unless a
docstring demands otherwise.

B clips, T frames, K kept frames, N tokens, H heads, E head dimension, D width, L layers; in `batch_norm_prelu` F maps, C
channels, H W picture; in `bias_gelu` H hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from svdata2vec.kernels.add_layer_norm import add_layer_norm_op, add_layer_norm_reference
from svdata2vec.kernels.attention import attention_op, attention_reference
from svdata2vec.kernels.batch_norm_prelu import batch_norm_prelu_op, batch_norm_prelu_reference
from svdata2vec.kernels.bias_gelu import bias_gelu_op, bias_gelu_reference
from svdata2vec.kernels.checks import (
    FLOATS,
    require_dtype,
    require_kept_frames,
    require_same_device,
    require_shape,
)
from svdata2vec.kernels.dispatch import Impl, announce, use_op
from svdata2vec.kernels.fuse_tokens import fuse_tokens_op, fuse_tokens_reference
from svdata2vec.kernels.gather_frames import COLOURS, gather_frames_op, gather_frames_reference
from svdata2vec.kernels.layer_targets import (
    NORMALISED_AXES,
    AverageNormalisation,
    LayerNormalisation,
    layer_targets_op,
    layer_targets_reference,
)
from svdata2vec.kernels.masked_mse import masked_mse_op, masked_mse_reference
from svdata2vec.kernels.restore_tokens import restore_tokens_op, restore_tokens_reference

__all__ = [
    "add_layer_norm",
    "attention",
    "batch_norm_prelu",
    "bias_gelu",
    "fuse_tokens",
    "gather_frames",
    "layer_targets",
    "masked_mse",
    "restore_tokens",
]

# The mean and standard deviation of ImageNet on the scale 0 to 255, in the order R, G, B.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def gather_frames(
    video_BTHWC: Tensor,
    keep_BK: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    window: int = 5,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Normalised windows of frames around the kept frames, as channels.

    Args:
        video_BTHWC: uint8, contiguous within each frame.
        keep_BK: int64, strictly increasing along K, values in [0, T).
        mean, std: per colour, on the scale 0 to 255; `(value - mean) / std` in float32.
        window: odd number of frames around each kept frame; those outside the clip are zero *after* normalisation.
        dtype: of the result.
        channels: how many channels to write, at least 3 * window (the default); the rest are zero. A multiple of 8 (16
            for window 5) lets this kernel and the convolution behind it use whole vectors.

    Returns:
        (B*K, channels, H, W) in channels-last memory; channel c * window + i is colour c of frame keep - window//2 + i.
    """
    require_shape("video_BTHWC", video_BTHWC, B=None, T=None, H=None, W=None, C=COLOURS)
    require_dtype("video_BTHWC", video_BTHWC, (torch.uint8,))
    B, T, _, W, C = video_BTHWC.shape
    _require_keep(keep_BK, B, T, "video_BTHWC", video_BTHWC)
    if video_BTHWC.stride()[2:] != (W * C, C, 1):
        raise ValueError(
            f"video_BTHWC has strides {video_BTHWC.stride()}; each frame must be contiguous (H, W, C); "
            "call .contiguous() where the clip is made"
        )
    if len(mean) != COLOURS or len(std) != COLOURS or min(std) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must hold one value per colour, std above 0")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; expected an odd number of frames, so that one is in the middle")
    channels = COLOURS * window if channels is None else channels
    if channels < COLOURS * window:
        raise ValueError(f"channels is {channels}; a window of {window} frames fills {COLOURS * window}")
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; expected a floating point dtype")
    run = gather_frames_op if use_op("gather_frames", impl, video_BTHWC) else gather_frames_reference
    return run(video_BTHWC, keep_BK, list(mean), list(std), window, channels, dtype)


def fuse_tokens(
    video_BKD: Tensor,
    skeleton_BTD: Tensor,
    keep_BK: Tensor,
    skeleton_hidden_BK: Tensor,
    temporal_TD: Tensor,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """The student's tokens: (video + skeleton) / 2 + temporal, or video + temporal where the skeleton is hidden.

    Args:
        video_BKD: tokens of the kept frames.
        skeleton_BTD: tokens of all frames; frame keep_BK[b, k] belongs to video token (b, k).
        keep_BK: int64, strictly increasing along K, values in [0, T).
        skeleton_hidden_BK: bool, True = this token shows video only.
        temporal_TD: temporal embedding. The three float tensors may differ in dtype.

    Returns:
        (B, K, D) in the dtype of `video_BKD`. Gradients reach video, skeleton and temporal.
    """
    require_shape("video_BKD", video_BKD, B=None, K=None, D=None)
    B, K, D = video_BKD.shape
    require_shape("skeleton_BTD", skeleton_BTD, B=B, T=None, D=D)
    T = skeleton_BTD.shape[1]
    require_shape("temporal_TD", temporal_TD, T=T, D=D)
    require_shape("skeleton_hidden_BK", skeleton_hidden_BK, B=B, K=K)
    require_dtype("skeleton_hidden_BK", skeleton_hidden_BK, (torch.bool,))
    for name, tensor in (("video_BKD", video_BKD), ("skeleton_BTD", skeleton_BTD), ("temporal_TD", temporal_TD)):
        require_dtype(name, tensor, FLOATS)
    require_same_device("video_BKD", video_BKD, skeleton_BTD=skeleton_BTD, temporal_TD=temporal_TD)
    require_same_device("video_BKD", video_BKD, skeleton_hidden_BK=skeleton_hidden_BK)
    _require_keep(keep_BK, B, T, "video_BKD", video_BKD, num_kept=K)
    run = fuse_tokens_op if use_op("fuse_tokens", impl, video_BKD) else fuse_tokens_reference
    return run(video_BKD, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD)


def restore_tokens(
    encoded_BKD: Tensor, mask_token_D: Tensor, keep_BK: Tensor, temporal_TD: Tensor, *, impl: Impl = "auto"
) -> Tensor:
    """The decoder's tokens: encoded tokens at their frames, the mask token at all others, plus a temporal embedding.

    Args:
        encoded_BKD: tokens of the kept frames.
        mask_token_D: learned token.
        keep_BK: int64, strictly increasing along K, values in [0, T).
        temporal_TD: temporal embedding; its length says how many frames a clip has.

    Returns:
        (B, T, D) in the dtype of `encoded_BKD`. Gradients reach encoded tokens, mask token and temporal.
    """
    require_shape("encoded_BKD", encoded_BKD, B=None, K=None, D=None)
    B, K, D = encoded_BKD.shape
    require_shape("mask_token_D", mask_token_D, D=D)
    require_shape("temporal_TD", temporal_TD, T=None, D=D)
    for name, tensor in (("encoded_BKD", encoded_BKD), ("mask_token_D", mask_token_D), ("temporal_TD", temporal_TD)):
        require_dtype(name, tensor, FLOATS)
    require_same_device("encoded_BKD", encoded_BKD, mask_token_D=mask_token_D, temporal_TD=temporal_TD)
    _require_keep(keep_BK, B, temporal_TD.shape[0], "encoded_BKD", encoded_BKD, num_kept=K)
    run = restore_tokens_op if use_op("restore_tokens", impl, encoded_BKD) else restore_tokens_reference
    return run(encoded_BKD, mask_token_D, keep_BK, temporal_TD)


def attention(
    qkv_BN3HE: Tensor,
    num_heads: int,
    lengths_B: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Multi-head self-attention from the packed projection, without permutes and without N x N matrices in memory.

    Args:
        qkv_BN3HE: (B, N, 3*D), columns q, k, v, each split into heads. The Triton kernel takes N <= 128 and E <= 64.
        num_heads: H; D = H * E.
        lengths_B: int32 or int64, real tokens per clip in [0, N]; the rest is padding: nobody attends to it, and its
            output and gradient are zero.
        scale: of the scores; E**-0.5 by default.

    Returns:
        (B, N, D), heads side by side, in the dtype of `qkv_BN3HE`. Gradient to `qkv_BN3HE`; the backward pass computes
        the probabilities again, so that nothing but the input is kept.
    """
    require_shape("qkv_BN3HE", qkv_BN3HE, B=None, N=None, QKV=None)
    require_dtype("qkv_BN3HE", qkv_BN3HE, FLOATS)
    B, _, packed = qkv_BN3HE.shape
    if num_heads < 1 or packed % (3 * num_heads) or packed == 0:
        raise ValueError(f"qkv_BN3HE is {packed} wide, which isn't 3 * D with D a multiple of num_heads={num_heads}")
    if lengths_B is not None:
        require_shape("lengths_B", lengths_B, B=B)
        require_dtype("lengths_B", lengths_B, (torch.int32, torch.int64))
        require_same_device("qkv_BN3HE", qkv_BN3HE, lengths_B=lengths_B)
    scale = (packed // 3 // num_heads) ** -0.5 if scale is None else scale
    run = attention_op if use_op("attention", impl, qkv_BN3HE) else attention_reference
    return run(qkv_BN3HE, num_heads, scale, lengths_B)


def layer_targets(
    layers_LBTD: Tensor,
    *,
    normalise_layer: LayerNormalisation = "instance",
    normalise_average: AverageNormalisation = "none",
    eps: float = 1e-5,
    impl: Impl = "auto",
) -> Tensor:
    """Prediction targets: each layer normalised, then averaged over layers (algorithm: data2vec's targets).

    Args:
        layers_LBTD: outputs of the teacher's top layers.
        normalise_layer: "instance" (per clip and channel over time), "layer" (per token), "batch" (per channel over
            clips and time), or "none".
        normalise_average: the same of the average: "instance", "layer" or "none".
        eps: added to the biased variance.

    Returns:
        (B, T, D) float32 (float64 for float64 layers), without gradient. Only "instance" with "none" is fused; other
        combinations run the reference under impl="auto", which the log says, and are refused under impl="triton".
    """
    require_shape("layers_LBTD", layers_LBTD, L=None, B=None, T=None, D=None)
    require_dtype("layers_LBTD", layers_LBTD, FLOATS)
    if normalise_layer not in NORMALISED_AXES:
        raise ValueError(f"normalise_layer is {normalise_layer!r}; expected one of {', '.join(NORMALISED_AXES)}")
    if normalise_average not in ("instance", "layer", "none"):
        raise ValueError(f"normalise_average is {normalise_average!r}; expected one of instance, layer, none")
    if 0 in layers_LBTD.shape[:1]:
        raise ValueError("layers_LBTD holds no layer; expected at least one to average")
    fused = normalise_layer == "instance" and normalise_average == "none"
    if impl == "triton" and not fused:
        raise ValueError(
            f"layer_targets: no fused kernel for normalise_layer={normalise_layer!r} with "
            f"normalise_average={normalise_average!r}; use impl='auto' or 'torch'"
        )
    if not fused:
        announce("layer_targets", f"PyTorch reference ({normalise_layer}, then {normalise_average}, isn't fused)")
        return layer_targets_reference(layers_LBTD, eps, normalise_layer, normalise_average)
    if use_op("layer_targets", impl, layers_LBTD):
        return layer_targets_op(layers_LBTD.detach(), eps)
    return layer_targets_reference(layers_LBTD, eps, normalise_layer, normalise_average)


def masked_mse(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Squared error, averaged over channels and over the scored positions of the batch.

    Args:
        prediction_BTD: the decoder's output.
        target_BTD: from `layer_targets`; may differ in dtype; gets no gradient.
        scored_BT: bool, True = hidden from the student and counted here.

    Returns:
        A float32 scalar (float64 for a float64 prediction); 0 if nothing is scored.
    """
    require_shape("prediction_BTD", prediction_BTD, B=None, T=None, D=None)
    B, T, D = prediction_BTD.shape
    require_shape("target_BTD", target_BTD, B=B, T=T, D=D)
    require_shape("scored_BT", scored_BT, B=B, T=T)
    require_dtype("prediction_BTD", prediction_BTD, FLOATS)
    require_dtype("target_BTD", target_BTD, FLOATS)
    require_dtype("scored_BT", scored_BT, (torch.bool,))
    require_same_device("prediction_BTD", prediction_BTD, target_BTD=target_BTD, scored_BT=scored_BT)
    if not use_op("masked_mse", impl, prediction_BTD):
        return masked_mse_reference(prediction_BTD, target_BTD, scored_BT)
    loss, _ = masked_mse_op(prediction_BTD, target_BTD.detach(), scored_BT)
    return loss


def add_layer_norm(
    x_BND: Tensor,
    branch_BND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """A residual sum and its LayerNorm: `total = x + branch`, and `LayerNorm(total)` over the channels.

    Args:
        x_BND, branch_BND: the terms; they may differ in dtype. Without a branch the sum is x itself.
        weight_D, bias_D: of the LayerNorm; float32 parameters serve activations of any dtype.
        eps: added to the biased variance.
        dtype: of the normalised result: what its reader computes in (default: that of the sum).

    Returns:
        The sum, in the terms' common dtype, and its norm; both (B, N, D). Gradients reach both terms, weight and bias. The
        Triton kernel takes D <= 8192.
    """
    require_shape("x_BND", x_BND, B=None, N=None, D=None)
    B, N, D = x_BND.shape
    tensors = {"x_BND": x_BND, "weight_D": weight_D, "bias_D": bias_D}
    require_shape("weight_D", weight_D, D=D)
    require_shape("bias_D", bias_D, D=D)
    if branch_BND is not None:
        require_shape("branch_BND", branch_BND, B=B, N=N, D=D)
        tensors["branch_BND"] = branch_BND
    for name, tensor in tensors.items():
        require_dtype(name, tensor, FLOATS)
        require_same_device("x_BND", x_BND, **{name: tensor})
    if D == 0:
        raise ValueError("x_BND has no channel; a LayerNorm needs at least one")
    if dtype is None:
        dtype = x_BND.dtype if branch_BND is None else torch.promote_types(x_BND.dtype, branch_BND.dtype)
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; expected a floating point dtype")
    if not use_op("add_layer_norm", impl, x_BND):
        return add_layer_norm_reference(x_BND, branch_BND, weight_D, bias_D, eps, dtype)
    total_BND, normed_BND, _, _ = add_layer_norm_op(x_BND, branch_BND, weight_D, bias_D, eps, dtype)
    return x_BND if branch_BND is None else total_BND, normed_BND


def bias_gelu(x_BNH: Tensor, bias_H: Tensor, *, impl: Impl = "auto") -> Tensor:
    """GELU(x + bias), exact (by the error function): what follows an MLP's first matrix product.

    Args:
        x_BNH: the product without its bias.
        bias_H: may differ in dtype.

    Returns:
        (B, N, H) in the dtype of `x_BNH`. Gradients reach the product and the bias; only the product is kept for them.
    """
    require_shape("x_BNH", x_BNH, B=None, N=None, H=None)
    require_shape("bias_H", bias_H, H=x_BNH.shape[2])
    require_dtype("x_BNH", x_BNH, FLOATS)
    require_dtype("bias_H", bias_H, FLOATS)
    require_same_device("x_BNH", x_BNH, bias_H=bias_H)
    return (bias_gelu_op if use_op("bias_gelu", impl, x_BNH) else bias_gelu_reference)(x_BNH, bias_H)


def batch_norm_prelu(
    x_FCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    running_mean_C: Tensor,
    running_variance_C: Tensor,
    *,
    shortcut_FCHW: Tensor | None = None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: Impl = "auto",
) -> Tensor:
    """PReLU(BatchNorm(x) + shortcut) of channels-last maps, with the statistics of this process's batch alone.

    Args:
        x_FCHW: feature maps in channels-last memory.
        weight_C, bias_C: of the BatchNorm; float32 parameters serve maps of any dtype.
        slope_C: of the PReLU where its argument isn't positive.
        running_mean_C, running_variance_C: the statistics in evaluation; in training they are updated in place, as
            `nn.BatchNorm2d` does: `running += momentum * (batch - running)`, with the unbiased variance.
        shortcut_FCHW: added between the two; channels-last; may differ in dtype.
        training: normalise by the batch's mean and biased variance, at least two values per channel.
        eps: added to the variance.

    Returns:
        (F, C, H, W) in channels-last memory, in the common dtype of x and shortcut. Gradients reach x, the shortcut, weight,
        bias and slope.
    """
    require_shape("x_FCHW", x_FCHW, F=None, C=None, H=None, W=None)
    F, C, H, W = x_FCHW.shape
    maps = {"x_FCHW": x_FCHW}
    if shortcut_FCHW is not None:
        require_shape("shortcut_FCHW", shortcut_FCHW, F=F, C=C, H=H, W=W)
        maps["shortcut_FCHW"] = shortcut_FCHW
    vectors = {"weight_C": weight_C, "bias_C": bias_C, "slope_C": slope_C}
    vectors |= {"running_mean_C": running_mean_C, "running_variance_C": running_variance_C}
    for name, tensor in vectors.items():
        require_shape(name, tensor, C=C)
    for name, tensor in {**maps, **vectors}.items():
        require_dtype(name, tensor, FLOATS)
    require_same_device("x_FCHW", x_FCHW, shortcut_FCHW=shortcut_FCHW, **vectors)
    for name, tensor in maps.items():
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{name} has strides {tensor.stride()}; expected channels-last memory; "
                "call .contiguous(memory_format=torch.channels_last) where the map is made"
            )
    if training and F * H * W < 2:
        raise ValueError(f"x_FCHW has shape {tuple(x_FCHW.shape)}; training needs at least two values per channel")
    run = batch_norm_prelu_op if use_op("batch_norm_prelu", impl, x_FCHW) else batch_norm_prelu_reference
    mean_C, variance_C = (None if training else running_C for running_C in (running_mean_C, running_variance_C))
    out_FCHW, mean_C, variance_C = run(x_FCHW, shortcut_FCHW, weight_C, bias_C, slope_C, mean_C, variance_C, eps)
    if training:
        _update_running(running_mean_C, mean_C, momentum)
        _update_running(running_variance_C, variance_C * (F * H * W / (F * H * W - 1)), momentum)
    return out_FCHW


@torch.no_grad()
def _update_running(running_C: Tensor, batch_C: Tensor, momentum: float) -> None:
    running_C.lerp_(batch_C.detach().to(running_C.dtype), momentum)


def _require_keep(
    keep_BK: Tensor, num_clips: int, num_frames: int, other_name: str, other: Tensor, num_kept: int | None = None
) -> None:
    require_shape("keep_BK", keep_BK, B=num_clips, K=num_kept)
    require_dtype("keep_BK", keep_BK, (torch.int64,))
    require_same_device(other_name, other, keep_BK=keep_BK)
    require_kept_frames(keep_BK, num_frames)
