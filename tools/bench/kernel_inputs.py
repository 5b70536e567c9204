"""Calls of every op at chosen sizes: the inputs of the kernel tests, the benchmark and the GPU check.

B clips, T frames or tokens, K kept frames, D width, H heads, L layers; in `bias_gelu` the width is `hidden`; in
`batch_norm_prelu` and `batch_norm_prelu_pool` maps are F frames, C channels, H W picture.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdata2vec.kernels import functional as K
from svdata2vec.kernels.dispatch import Impl


@dataclass(frozen=True)
class Sizes:
    """The model's sizes, on two clips of small pictures."""

    B: int = 2
    T: int = 40
    K: int = 13
    D: int = 256
    L: int = 8
    H: int = 8
    hidden: int = 1024
    side: int = 64
    window: int = 5
    channels: int | None = 16
    maps: tuple[int, int, int, int] = (3, 64, 9, 7)


@dataclass(frozen=True)
class Draw:
    """Random tensors: activations of one dtype, learned parameters of another."""

    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    parameter_dtype: torch.dtype = torch.float32

    def activation(self, *shape: int, mean: float = 0.0) -> Tensor:
        return (torch.randn(shape, device=self.device) + mean).to(self.dtype)

    def maps(self, *shape: int, mean: float = 0.0) -> Tensor:
        return self.activation(*shape, mean=mean).contiguous(memory_format=torch.channels_last)

    def parameter(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.parameter_dtype)

    def mask(self, *shape: int, share: float) -> Tensor:
        return torch.rand(shape, device=self.device) < share


def draw_keep(num_clips: int, num_frames: int, num_kept: int, device: str | torch.device = "cpu") -> Tensor:
    """(B, K) int64, ascending along K."""
    return torch.rand(num_clips, num_frames, device=device).argsort(1)[:, :num_kept].sort(1).values


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `functional.<op>`: `inputs`, which gradients reach, and all that is `fixed`."""

    op: str
    inputs: dict[str, Tensor]
    fixed: dict[str, Any]

    def __call__(self, *inputs: Tensor, impl: Impl) -> tuple[Tensor, ...]:
        """The results with these values of `inputs`; in training, followed by the updated running statistics."""
        fixed = dict(self.fixed)
        running = [name for name in fixed if name.startswith("running_")]
        for name in running:
            fixed[name] = fixed[name].to(torch.promote_types(inputs[0].dtype, torch.float32), copy=True)
        result = getattr(K, self.op)(**dict(zip(self.inputs, inputs, strict=True)), **fixed, impl=impl)
        moved = [fixed[name] for name in running if fixed["training"]]
        return (*((result,) if isinstance(result, Tensor) else result), *moved)


def values_and_gradients(
    run: Callable[..., tuple[Tensor, ...]], inputs: Iterable[Tensor], weigh: Callable[[Tensor], Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The results of `run(*inputs)`, and the gradient of every input for results weighted by `weigh` (default: random)."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    values = run(*leaves)
    trained = [value for value in values if value.requires_grad]
    weights = [(weigh or random_weight)(value) for value in trained]
    return [value.detach() for value in values], list(torch.autograd.grad(trained, leaves, weights)) if trained else []


def random_weight(value: Tensor) -> Tensor:
    """The same numbers for every result of this shape, exact in every dtype."""
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(value)


def gather_frames(sizes: Sizes, draw: Draw, *, folded: bool = False) -> Call:
    side = sizes.side + sizes.side % 2 if folded else sizes.side
    shape = sizes.B, sizes.T, side, side, 3
    video = torch.randint(0, 256, shape, dtype=torch.uint8, device=draw.device)
    keep = draw_keep(sizes.B, sizes.T, sizes.K, draw.device)
    fixed = {"keep_BK": keep, "window": sizes.window, "channels": sizes.channels, "folded": folded, "dtype": draw.dtype}
    return Call("gather_frames", {}, {"video_BTHWC": video, **fixed})


def gather_blocks(
    sizes: Sizes, draw: Draw, *, luma_bits: int = 3, chroma_bits: int = 2, folded: bool = False
) -> Call:
    """Windows mirrored or not, shrunk or enlarged, that leave the packed picture here and there; frames in any order."""
    sizes = replace(sizes, side=sizes.side + sizes.side % 2) if folded else sizes
    side = 32 * max(sizes.side * 10 // 7 // 32, 1)  # 320 for 224
    bytes_of = side * side // 8 * (1 + luma_bits) + side * side // 16 * (1 + chroma_bits)
    blocks = torch.randint(0, 256, (sizes.B, sizes.T, bytes_of), dtype=torch.uint8, device=draw.device)
    length = side * (0.4 + 0.7 * torch.rand(sizes.B, 2, dtype=torch.float64))
    start = (side - length) * (1.2 * torch.rand(sizes.B, 2, dtype=torch.float64) - 0.1)
    mirrored = torch.rand(sizes.B) < 0.5
    start[mirrored, 0] += length[mirrored, 0]
    length[mirrored, 0] *= -1
    maps = torch.cat([torch.diag_embed(length / sizes.side), start[:, :, None]], dim=2)
    fixed = {
        "blocks_BTE": blocks, "map_B4": K.block_maps(maps).to(draw.device),
        "frame_BT": torch.randint(0, sizes.T, (sizes.B, sizes.T), device=draw.device),
        "keep_BK": draw_keep(sizes.B, sizes.T, sizes.K, draw.device), "form": (side, luma_bits, chroma_bits),
        "size": sizes.side, "window": sizes.window, "channels": sizes.channels, "folded": folded, "dtype": draw.dtype,
    }
    return Call("gather_blocks", {}, fixed)


def fuse_tokens(sizes: Sizes, draw: Draw) -> Call:
    B, T, K_, D = sizes.B, sizes.T, sizes.K, sizes.D
    tokens = {"video_BKD": draw.activation(B, K_, D), "skeleton_BTD": draw.activation(B, T, D)}
    fixed = {"keep_BK": draw_keep(B, T, K_, draw.device), "skeleton_hidden_BK": draw.mask(B, K_, share=0.75)}
    return Call("fuse_tokens", {**tokens, "temporal_TD": draw.parameter(T, D)}, fixed)


def restore_tokens(sizes: Sizes, draw: Draw) -> Call:
    parameters = {"mask_token_D": draw.parameter(sizes.D), "temporal_TD": draw.parameter(sizes.T, sizes.D)}
    encoded = {"encoded_BKD": draw.activation(sizes.B, sizes.K, sizes.D)}
    return Call("restore_tokens", {**encoded, **parameters}, {"keep_BK": draw_keep(sizes.B, sizes.T, sizes.K, draw.device)})


def attention(sizes: Sizes, draw: Draw, *, ragged: bool = False) -> Call:
    lengths = torch.randint(0, sizes.T + 1, (sizes.B,), device=draw.device) if ragged else None
    qkv = {"qkv_BNC": draw.activation(sizes.B, sizes.T, 3 * sizes.D)}
    return Call("attention", qkv, {"num_heads": sizes.H, "lengths_B": lengths})


def layer_targets(sizes: Sizes, draw: Draw) -> Call:
    return Call("layer_targets", {"layers_LBTD": draw.activation(sizes.L, sizes.B, sizes.T, sizes.D, mean=OFF_ZERO)}, {})


def masked_mse(sizes: Sizes, draw: Draw, *, share: float = 37 / 40) -> Call:
    prediction = {"prediction_BTD": draw.activation(sizes.B, sizes.T, sizes.D)}
    target = torch.randn(sizes.B, sizes.T, sizes.D, device=draw.device)
    return Call("masked_mse", prediction, {"target_BTD": target, "scored_BT": draw.mask(sizes.B, sizes.T, share=share)})


def add_layer_norm(sizes: Sizes, draw: Draw, *, branch: bool = True) -> Call:
    B, T, D = sizes.B, sizes.T, sizes.D
    terms = {"x_BND": draw.activation(B, T, D, mean=OFF_ZERO), **({"branch_BND": draw.activation(B, T, D)} if branch else {})}
    parameters = {"weight_D": draw.parameter(D), "bias_D": draw.parameter(D)}
    return Call("add_layer_norm", {**terms, **parameters}, {} if branch else {"branch_BND": None})


def bias_gelu(sizes: Sizes, draw: Draw) -> Call:
    product = 2 * draw.activation(sizes.B, sizes.T, sizes.hidden)
    return Call("bias_gelu", {"x_BNH": product, "bias_H": draw.parameter(sizes.hidden)}, {})


def batch_norm_prelu(sizes: Sizes, draw: Draw, *, shortcut: bool = True, training: bool = True) -> Call:
    C = sizes.maps[1]
    maps = {"x_FCHW": draw.maps(*sizes.maps, mean=OFF_ZERO), **({"shortcut_FCHW": draw.maps(*sizes.maps)} if shortcut else {})}
    parameters = {name: draw.parameter(C) for name in ("weight_C", "bias_C", "slope_C")}  # slopes of both signs
    mean, variance = torch.randn(C, device=draw.device), torch.rand(C, device=draw.device) + 0.5
    fixed = {"running_mean_C": mean, "running_variance_C": variance, "training": training}
    return Call("batch_norm_prelu", {**maps, **parameters}, fixed)


def batch_norm_prelu_pool(sizes: Sizes, draw: Draw, *, training: bool = True) -> Call:
    call = batch_norm_prelu(sizes, draw, shortcut=False, training=training)
    return replace(call, op="batch_norm_prelu_pool")


# A mean far from zero: a variance must not be computed as a difference of large numbers.
OFF_ZERO = 3.0

# Every op once under its own name, and the variants that take another path through its kernels.
CALLS: dict[str, Callable[[Sizes, Draw], Call]] = {
    "gather_frames": gather_frames,
    "gather_frames folded": partial(gather_frames, folded=True),
    "gather_blocks": gather_blocks,
    "gather_blocks of two bits": partial(gather_blocks, luma_bits=2),
    "gather_blocks of three bits": partial(gather_blocks, chroma_bits=3),
    "gather_blocks folded": partial(gather_blocks, folded=True),
    "fuse_tokens": fuse_tokens,
    "restore_tokens": restore_tokens,
    "attention": attention,
    "attention of ragged clips": partial(attention, ragged=True),
    "layer_targets": layer_targets,
    "masked_mse": masked_mse,
    "add_layer_norm": add_layer_norm,
    "add_layer_norm without a branch": partial(add_layer_norm, branch=False),
    "bias_gelu": bias_gelu,
    "batch_norm_prelu": batch_norm_prelu,
    "batch_norm_prelu without a shortcut": partial(batch_norm_prelu, shortcut=False),
    "batch_norm_prelu in evaluation": partial(batch_norm_prelu, training=False),
    "batch_norm_prelu_pool": batch_norm_prelu_pool,
    "batch_norm_prelu_pool in evaluation": partial(batch_norm_prelu_pool, training=False),
}
