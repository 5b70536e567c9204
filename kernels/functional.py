"""The public kernels: check the arguments, resolve `impl` once, call the op or its plain reference.

    from svdata2vec.kernels import functional as K
    out_BND = K.attention(qkv, num_heads=8)

Every function takes `impl` ("auto", "triton", "torch"; see dispatch.py) and raises ValueError for a wrong shape, dtype
or device, for an `impl` that can't run here or not at this size, and, for tensors in main memory, for values outside their
range.
The Triton kernels accumulate in float32 and are deterministic: there are no atomic additions. Any strides are allowed unless
a docstring says otherwise.

B clips, T frames, K kept frames, N tokens, H heads, E head dimension, D width, L layers; in `batch_norm_prelu` and
`batch_norm_prelu_pool` F maps, C channels, H W picture; in `bias_gelu` H hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from svdata2vec.kernels.add_layer_norm import add_layer_norm_op
from svdata2vec.kernels.attention import attention_op
from svdata2vec.kernels.batch_norm_prelu import batch_norm_prelu_op
from svdata2vec.kernels.batch_norm_prelu_pool import batch_norm_prelu_pool_op
from svdata2vec.kernels.bias_gelu import bias_gelu_op
from svdata2vec.kernels.checks import FLOATS, require_dtypes, require_kept_frames, require_numbers, require_shapes
from svdata2vec.kernels.dispatch import Impl, announce
from svdata2vec.kernels.fuse_tokens import fuse_tokens_op
from svdata2vec.kernels.gather_blocks import PLACE_BITS, WEIGHT_BITS, gather_blocks_op, plane_bytes
from svdata2vec.kernels.gather_frames import COLOURS, gather_frames_op
from svdata2vec.kernels.layer_targets import (
    NORMALISED_AXES,
    AverageNormalisation,
    LayerNormalisation,
    layer_targets_op,
    layer_targets_reference,
)
from svdata2vec.kernels.masked_mse import masked_mse_op
from svdata2vec.kernels.restore_tokens import restore_tokens_op

__all__ = [
    "add_layer_norm",
    "attention",
    "batch_norm_prelu",
    "batch_norm_prelu_pool",
    "bias_gelu",
    "fuse_tokens",
    "gather_blocks",
    "gather_frames",
    "layer_targets",
    "masked_mse",
    "restore_tokens",
]

# Mean and standard deviation of ImageNet on the scale 0 to 255, in the order R, G, B.
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
    folded: bool = False,
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
            for window 5) lets this kernel and the convolution after it use whole vectors.
        folded: combine 2x2 neighbouring pixels (rows and columns must be even) into one with four times the channels, with
            two such pixels of zeros before every row and column and one after it: a convolution of 7x7 taps, stride 2 and
            padding 3 becomes one of 4x4 taps without stride or padding (`gather_frames.fold`).

    Returns:
        (B*K, channels, H, W) in channels-last memory; channel c * window + i is colour c of frame keep - window//2 + i.
        Folded: (B*K, 4 * channels, H/2 + 3, W/2 + 3), the channels of the upper left pixel first, then of the upper right,
        lower left and lower right pixel.
    """
    require_shapes({"C": COLOURS}, video_BTHWC=video_BTHWC, keep_BK=keep_BK)
    require_dtypes((torch.uint8,), video_BTHWC=video_BTHWC)
    require_kept_frames(keep_BK, video_BTHWC.shape[1])
    if video_BTHWC.stride()[2:] != (video_BTHWC.shape[3] * COLOURS, COLOURS, 1):
        raise ValueError(
            f"video_BTHWC has strides {video_BTHWC.stride()}; each frame must be contiguous (H, W, C); "
            "call .contiguous() where the clip is made"
        )
    channels = _check_windows(mean, std, window, channels, video_BTHWC.shape[2:4] if folded else ())
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; expected a floating point dtype")
    return gather_frames_op.run(impl, video_BTHWC, keep_BK, list(mean), list(std), window, channels, folded, dtype)


def _check_windows(
    mean: Sequence[float], std: Sequence[float], window: int, channels: int | None, folded: Sequence[int]
) -> int:
    """Number of channels of a window of frames: as given, else as many as it fills. ValueError for impossible arguments."""
    if len(mean) != COLOURS or len(std) != COLOURS or min(std) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must hold one value per colour, std above 0")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; expected an odd number of frames, so that one is in the middle")
    channels = COLOURS * window if channels is None else channels
    if channels < COLOURS * window:
        raise ValueError(f"channels is {channels}; a window of {window} frames fills {COLOURS * window}")
    if any(side % 2 for side in folded):
        raise ValueError(f"a picture of {' x '.join(map(str, folded))} pixels cannot be folded; expected even numbers")
    return channels


def gather_blocks(
    blocks_BTE: Tensor,
    frame_BT: Tensor,
    map_B4: Tensor,
    keep_BK: Tensor,
    form: Sequence[int],
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    window: int = 5,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int | None = None,
    folded: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """`gather_frames` of clips that are stored as blocks, which are decoded and resampled on the way.

    Args:
        blocks_BTE: uint8, the stored frames of each clip, each frame contiguous; frames that `frame_BT` does not name are not
            read.
        frame_BT: int64, number of the stored frame that is the clip's frame t.
        map_B4: int64, position of each clip's output in its packed pictures, from `block_maps`; black outside of them.
        keep_BK: as in `gather_frames`.
        form: side of the packed picture, bits of a luma index, bits of a chroma index.
        size: side of the output.
        mean, std, window, channels, folded: as in `gather_frames`; applied to pixels rounded to grey levels, as decoded
            pixels are.
        dtype: of the result; uint8 returns the grey levels themselves with mean 0, std 1 and window 1.

    Returns:
        (B*K, channels, size, size) in channels-last memory, or folded.
    """
    sizes = require_shapes({"4": 4}, blocks_BTE=blocks_BTE, frame_BT=frame_BT, map_B4=map_B4, keep_BK=keep_BK)
    require_dtypes((torch.uint8,), blocks_BTE=blocks_BTE)
    require_dtypes((torch.int64,), frame_BT=frame_BT, map_B4=map_B4)
    require_kept_frames(keep_BK, sizes["T"])
    require_numbers(frame_BT, sizes["T"])
    side, luma_bits, chroma_bits = form
    if side < 1 or side % 32 or luma_bits not in (2, 3) or chroma_bits not in (2, 3):
        raise ValueError(f"form is {tuple(form)}; expected a side that is a multiple of 32, and twice 2 or 3 bits")
    expected = plane_bytes(side, luma_bits) + 2 * plane_bytes(side // 2, chroma_bits)
    places = (*blocks_BTE.stride()[:2], blocks_BTE.storage_offset())
    if sizes["E"] != expected or blocks_BTE.stride(2) != 1 or any(place % 2 for place in places):
        raise ValueError(
            f"blocks_BTE has shape {tuple(blocks_BTE.shape)} and strides {blocks_BTE.stride()} and offset {places[2]} in its "
            f"storage; a frame of form {tuple(form)} is {expected} neighbouring bytes, at an even address"
        )
    channels = _check_windows(mean, std, window, channels, (size, size) if folded else ())
    if dtype not in (*FLOATS, torch.uint8):
        raise ValueError(f"dtype is {dtype}; expected a floating point dtype or uint8")
    return gather_blocks_op.run(
        impl, blocks_BTE, frame_BT, map_B4, keep_BK, list(form), size, list(mean), list(std), window, channels, folded, dtype
    )


def block_maps(output_to_packed_B23: Tensor) -> Tensor:
    """Axis-aligned maps from output to packed picture (float64, continuous coordinates) as `gather_blocks` takes them.

    int64 (B, 4): scale and shift of columns, then of rows, such that scale * (2 j + 1) + shift is the place of output pixel j
    among the centres of packed pixels, in units of 2**-32, with half a weight's unit for rounding.
    """
    scale_B2 = output_to_packed_B23[:, [0, 1], [0, 1]].double() / 2
    shift_B2 = output_to_packed_B23[:, :, 2].double() - 0.5 + 0.5 ** (WEIGHT_BITS + 1)
    return torch.stack([scale_B2, shift_B2], dim=2).mul(2.0**PLACE_BITS).round().long().flatten(1)


def fuse_tokens(
    video_BKD: Tensor,
    skeleton_BTD: Tensor,
    keep_BK: Tensor,
    skeleton_hidden_BK: Tensor,
    temporal_TD: Tensor,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """The student's tokens: (video + skeleton) / 2 + temporal, or video + temporal if the skeleton is hidden.

    Args:
        video_BKD: tokens of the kept frames.
        skeleton_BTD: tokens of all frames; frame keep_BK[b, k] belongs to video token (b, k).
        keep_BK: int64, strictly increasing along K, values in [0, T).
        skeleton_hidden_BK: bool, True = this token shows video only.
        temporal_TD: temporal embedding. The three float tensors may differ in dtype.

    Returns:
        (B, K, D) in the dtype of `video_BKD`. Gradients reach video, skeleton and temporal.
    """
    tokens = {"video_BKD": video_BKD, "skeleton_BTD": skeleton_BTD, "temporal_TD": temporal_TD}
    sizes = require_shapes({}, **tokens, keep_BK=keep_BK, skeleton_hidden_BK=skeleton_hidden_BK)
    require_dtypes(FLOATS, **tokens)
    require_dtypes((torch.bool,), skeleton_hidden_BK=skeleton_hidden_BK)
    require_kept_frames(keep_BK, sizes["T"])
    return fuse_tokens_op.run(impl, video_BKD, skeleton_BTD, keep_BK, skeleton_hidden_BK, temporal_TD)


def restore_tokens(
    encoded_BKD: Tensor, mask_token_D: Tensor, keep_BK: Tensor, temporal_TD: Tensor, *, impl: Impl = "auto"
) -> Tensor:
    """The decoder's tokens: encoded tokens at their frames, the mask token at all others, plus a temporal embedding.

    Args:
        encoded_BKD: tokens of the kept frames.
        mask_token_D: learned token.
        keep_BK: int64, strictly increasing along K, values in [0, T).
        temporal_TD: temporal embedding; its length is the number of frames of a clip.

    Returns:
        (B, T, D) in the dtype of `encoded_BKD`. Gradients reach encoded tokens, mask token and temporal.
    """
    tokens = {"encoded_BKD": encoded_BKD, "mask_token_D": mask_token_D, "temporal_TD": temporal_TD}
    sizes = require_shapes({}, **tokens, keep_BK=keep_BK)
    require_dtypes(FLOATS, **tokens)
    require_kept_frames(keep_BK, sizes["T"])
    return restore_tokens_op.run(impl, encoded_BKD, mask_token_D, keep_BK, temporal_TD)


def attention(
    qkv_BNC: Tensor,
    num_heads: int,
    lengths_B: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Multi-head self-attention from the packed projection, without permutes and without N x N matrices in memory.

    Args:
        qkv_BNC: (B, N, 3*D), columns q, k, v, each split into heads.
        num_heads: H; D = H * E.
        lengths_B: int32 or int64, real tokens per clip in [0, N]; the rest is padding: no token attends to it, and its
            output and gradient are zero.
        scale: of the scores; E**-0.5 by default.

    Returns:
        (B, N, D), heads side by side, in the dtype of `qkv_BNC`. The gradient reaches `qkv_BNC`; the backward pass
        recomputes the probabilities, so only the input is kept.
    """
    packed = require_shapes({}, qkv_BNC=qkv_BNC, lengths_B=lengths_B)["C"]
    require_dtypes(FLOATS, qkv_BNC=qkv_BNC)
    require_dtypes((torch.int32, torch.int64), lengths_B=lengths_B)
    if num_heads < 1 or packed % (3 * num_heads) or packed == 0:
        raise ValueError(f"qkv_BNC is {packed} wide, which isn't 3 * D with D a multiple of num_heads={num_heads}")
    scale = (packed // 3 // num_heads) ** -0.5 if scale is None else scale
    return attention_op.run(impl, qkv_BNC, num_heads, scale, lengths_B)


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
        normalise_average: the same for the average: "instance", "layer" or "none".
        eps: added to the biased variance.

    Returns:
        (B, T, D) float32 (float64 for float64 layers), without gradient. Only "instance" with "none" is fused; other
        combinations run the reference under impl="auto", which is logged, and are refused under impl="triton".
    """
    sizes = require_shapes({}, layers_LBTD=layers_LBTD)
    require_dtypes(FLOATS, layers_LBTD=layers_LBTD)
    if normalise_layer not in NORMALISED_AXES:
        raise ValueError(f"normalise_layer is {normalise_layer!r}; expected one of {', '.join(NORMALISED_AXES)}")
    if normalise_average not in ("instance", "layer", "none"):
        raise ValueError(f"normalise_average is {normalise_average!r}; expected one of instance, layer, none")
    if sizes["L"] == 0:
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
    return layer_targets_op.run(impl, layers_LBTD.detach(), eps)


def masked_mse(prediction_BTD: Tensor, target_BTD: Tensor, scored_BT: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Squared error, averaged over channels and over the scored positions of the batch.

    Args:
        prediction_BTD: the decoder's output.
        target_BTD: from `layer_targets`; may differ in dtype; gets no gradient.
        scored_BT: bool, True = hidden from the student and counted here.

    Returns:
        A float32 scalar (float64 for a float64 prediction); 0 if nothing is scored.
    """
    require_shapes({}, prediction_BTD=prediction_BTD, target_BTD=target_BTD, scored_BT=scored_BT)
    require_dtypes(FLOATS, prediction_BTD=prediction_BTD, target_BTD=target_BTD)
    require_dtypes((torch.bool,), scored_BT=scored_BT)
    loss, _ = masked_mse_op.run(impl, prediction_BTD, target_BTD.detach(), scored_BT)
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
        dtype: of the normalised result, for example the one that its consumer computes in (default: that of the sum).

    Returns:
        The sum, in the terms' common dtype, and its norm; both (B, N, D). Gradients reach both terms, weight and bias.
    """
    tensors = {"x_BND": x_BND, "branch_BND": branch_BND, "weight_D": weight_D, "bias_D": bias_D}
    sizes = require_shapes({}, **tensors)
    require_dtypes(FLOATS, **tensors)
    if sizes["D"] == 0:
        raise ValueError("x_BND has no channel; a LayerNorm needs at least one")
    if dtype is None:
        dtype = x_BND.dtype if branch_BND is None else torch.promote_types(x_BND.dtype, branch_BND.dtype)
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; expected a floating point dtype")
    total_BND, normed_BND, _, _ = add_layer_norm_op.run(impl, x_BND, branch_BND, weight_D, bias_D, eps, dtype)
    return x_BND if branch_BND is None else total_BND, normed_BND


def bias_gelu(x_BNH: Tensor, bias_H: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Exact GELU(x + bias), by the error function, as after an MLP's first matrix product.

    Args:
        x_BNH: the product without its bias.
        bias_H: may differ in dtype.

    Returns:
        (B, N, H) in the dtype of `x_BNH`. Gradients reach the product and the bias; only the product is kept for them.
    """
    require_shapes({}, x_BNH=x_BNH, bias_H=bias_H)
    require_dtypes(FLOATS, x_BNH=x_BNH, bias_H=bias_H)
    return bias_gelu_op.run(impl, x_BNH, bias_H)


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
        slope_C: of the PReLU, for arguments that aren't positive.
        running_mean_C, running_variance_C: the statistics in evaluation; in training they are updated in place, as
            `nn.BatchNorm2d` does: `running += momentum * (batch - running)`, with the unbiased variance.
        shortcut_FCHW: added between BatchNorm and PReLU; channels-last; may differ in dtype.
        training: normalise by the batch's mean and biased variance, at least two values per channel.
        eps: added to the variance.

    Returns:
        (F, C, H, W) in channels-last memory, in the common dtype of x and shortcut. Gradients reach x, the shortcut, weight,
        bias and slope.
    """
    vectors = (weight_C, bias_C, slope_C, running_mean_C, running_variance_C)
    count = _check_norm({"x_FCHW": x_FCHW, "shortcut_FCHW": shortcut_FCHW}, vectors, training)
    given = (None, None) if training else vectors[3:]
    out_FCHW, *batch = batch_norm_prelu_op.run(impl, x_FCHW, shortcut_FCHW, *vectors[:3], *given, eps)
    if training:
        _update_running(vectors[3:], batch, count, momentum)
    return out_FCHW


def batch_norm_prelu_pool(
    x_FCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    slope_C: Tensor,
    running_mean_C: Tensor,
    running_variance_C: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: Impl = "auto",
) -> Tensor:
    """The maximum over 3x3 pixels, stride 2, padding 1, of PReLU(BatchNorm(x)): `batch_norm_prelu` and `nn.MaxPool2d(3, 2, 1)`.

    Args:
        x_FCHW: feature maps in channels-last memory, of at least one channel and pixel.
        weight_C ... eps: as in `batch_norm_prelu`; statistics are those of all of x.

    Returns:
        (F, C, (H + 1) // 2, (W + 1) // 2) in channels-last memory, in the dtype of x, rounded once. Gradients reach x, weight,
        bias and slope; among equal values the first, row by row, gets the gradient.
    """
    vectors = (weight_C, bias_C, slope_C, running_mean_C, running_variance_C)
    count = _check_norm({"x_FCHW": x_FCHW}, vectors, training)
    if 0 in x_FCHW.shape[1:]:
        raise ValueError(f"x_FCHW has shape {tuple(x_FCHW.shape)}; a maximum needs at least one channel and pixel")
    given = (None, None) if training else vectors[3:]
    out_FCPQ, _, *batch = batch_norm_prelu_pool_op.run(impl, x_FCHW, *vectors[:3], *given, eps)
    if training:
        _update_running(vectors[3:], batch, count, momentum)
    return out_FCPQ


def _check_norm(maps: dict[str, Tensor | None], vectors: Sequence[Tensor], training: bool) -> int:
    """Number of values of a channel. ValueError for maps and vectors that cannot be normalised."""
    names = ("weight_C", "bias_C", "slope_C", "running_mean_C", "running_variance_C")
    named = dict(zip(names, vectors, strict=True))
    sizes = require_shapes({}, **maps, **named)
    require_dtypes(FLOATS, **maps, **named)
    for name, tensor in maps.items():
        if tensor is not None and not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{name} has strides {tensor.stride()}; expected channels-last memory; "
                "call .contiguous(memory_format=torch.channels_last) where the map is made"
            )
    count = sizes["F"] * sizes["H"] * sizes["W"]
    if training and count < 2:
        shape = tuple(sizes[letter] for letter in "FCHW")
        raise ValueError(f"x_FCHW has shape {shape}; training needs at least two values per channel")
    return count


@torch.no_grad()
def _update_running(running: Sequence[Tensor], batch: Sequence[Tensor], count: int, momentum: float) -> None:
    """Move running statistics towards those of a batch that has `count` values per channel."""
    running_mean_C, running_variance_C = running
    mean_C, variance_C = batch
    running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
    unbiased_C = variance_C * (count / (count - 1))
    running_variance_C.lerp_(unbiased_C.to(running_variance_C.dtype), momentum)
