"""Passes over memory of the fused block ops, counted by hand: the traffic of a block with and without them.

One pass is one activation read or written in the compute dtype (bfloat16 in training on a GPU); a float32 tensor between
two modules is two passes. Vectors over channels and the partial sums of reductions are too small to count.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Passes:
    """Passes of the forward and of the backward pass, and activations kept from one for the other."""

    forward: float
    backward: float
    kept: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class BlockOp:
    """What one fused op replaces, module by module (`modules`) and as that op (`fused`); `why` spells both counts out."""

    modules: Passes
    fused: Passes
    why: str


# Module by module means under autocast on a GPU, as training runs it: there LayerNorm reads and writes float32, with a cast
# before it and one behind it.
BLOCK_OPS: dict[str, BlockOp] = {
    "add_layer_norm without branch": BlockOp(
        Passes(10, 16, 3),
        Passes(2, 3, 2),
        "modules: cast 3, norm 4 (float32), cast 3; back: cast 3, norm 6, its parameters 4, cast 3. Fused: x in, norm out; "
        "back: gradient and x in, gradient out.",
    ),
    "add_layer_norm": BlockOp(
        Passes(13, 19, 3),
        Passes(4, 4, 2),
        "as above and a sum of 3; back: as above and a sum of gradients of 3. Fused: two terms in, sum and norm out; back: two "
        "gradients and the sum in, one gradient out.",
    ),
    "bias_gelu": BlockOp(
        Passes(2, 4, 1),
        Passes(2, 3, 1),
        "modules: the product adds its bias by itself, GELU 2; back: GELU 3, the bias's sum 1. Fused: the bias's sum is free.",
    ),
    "batch_norm_prelu": BlockOp(
        Passes(5, 10, 2),
        Passes(3, 5, 1),
        "modules: statistics 1, norm 2, PReLU 2; back: PReLU 4 (it writes a whole map for the slope's gradient), that map's "
        "sum 1, norm 2 + 3. Fused: statistics 1, the rest 2; back: sums 2, gradient 3. What the PReLU reads isn't kept.",
    ),
    "batch_norm_prelu_pool": BlockOp(
        Passes(7.25, 13.25, 4),
        Passes(2.375, 3.75, 1.125),
        "as above; the maximum reads 1, writes a quarter, and 1 of numbers of 8 bytes; back: these, filled, 3.25. Fused: "
        "statistics 1, x 1, a quarter out and a byte to each value of it; back: x and both of these twice, gradient 1.",
    ),
    "batch_norm_prelu with shortcut": BlockOp(
        Passes(8, 10, 2),
        Passes(4, 7, 2),
        "as above and a sum of 3. Fused: the shortcut is one more map to read; back: the sums also write the shortcut's "
        "gradient. The shortcut is kept in place of the sum: where it is the block's own input, that is kept anyway.",
    ),
}


def map_values(batch: int, kept_frames: int, side: int, stem_width: int) -> dict[str, int]:
    """Number of values of all feature maps that go through each kind of BatchNorm of the video encoder."""
    frames = batch * kept_frames
    plain = with_shortcut = 0
    for stage in range(4):
        values = frames * stem_width * 2**stage * (side // 4 // 2**stage) ** 2
        plain, with_shortcut = plain + 2 * values, with_shortcut + 2 * values  # two blocks of two convolutions
    stem = frames * stem_width * (side // 2) ** 2
    return {"batch_norm_prelu_pool": stem, "batch_norm_prelu": plain, "batch_norm_prelu with shortcut": with_shortcut}


def trunk_gigabytes(batch: int, kept_frames: int, side: int, stem_width: int) -> tuple[float, float]:
    """Gigabytes that all BatchNorms of a training step, and the maximum behind the first, move in bfloat16: module by module,
    and fused."""
    values = map_values(batch, kept_frames, side, stem_width)
    modules = sum(BLOCK_OPS[name].modules.total * count for name, count in values.items())
    fused = sum(BLOCK_OPS[name].fused.total * count for name, count in values.items())
    return 2 * modules / 1e9, 2 * fused / 1e9
