"""Cost of a training step per clip, counted from the layers' shapes: multiply-adds, FLOP, bytes.

MAC = one multiplication and one addition (2 FLOP). Norms, activations, pooling and the loss are left out: together they are
below a hundredth of the multiply-adds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from svdata2vec.config.schema import ModelConfig, PretrainConfig, mask_counts

Part = Literal["video", "skeleton", "encoder", "decoder", "teacher"]

STEM_TAPS = 3 * 5 * 7 * 7  # multiply-adds of one output value of the stem
# Passes over a layer's output, at least: written and read going forward; read again, its gradient written and read.
TRAINED_PASSES = 5
TEACHER_PASSES = 2
# float32 words per weight and step: weight read forward and backward; gradient written and read; AdamW reads and writes
# the weight and its two averages.
OPTIMIZER_WORDS = 2 + 2 + 6
TEACHER_WORDS = 1 + 3  # read by the forward pass; the average reads teacher and student and writes the teacher


@dataclass(frozen=True)
class Layer:
    """A convolution, a linear map or a pair of attention products.

    Attributes:
        macs: multiply-adds of one clip's forward pass.
        outputs: values that it writes for one clip.
        weights: its parameters.
        input_gradient: False where nothing before it learns, so that the backward pass costs half.
    """

    part: Part
    macs: int
    outputs: int
    weights: int
    input_gradient: bool = True


def step_layers(config: PretrainConfig, num_joints: int) -> list[Layer]:
    """Every layer of student and teacher at the shapes of one clip (svdata2vec/README.md, "Networks")."""
    model, frames = config.model, config.data.num_frames
    width, coordinates = model.width, model.persons * model.coordinates * num_joints
    read = 2 * coordinates if model.joint_motion else coordinates
    return [
        *_video(model, config.num_encoded, config.data.size),
        Layer("skeleton", frames * read * width, frames * width, read * width, input_gradient=False),
        *_repeated(config.mask.repeats, mask_layers(config)),
        *_teacher(config),
    ]


def _teacher(config: PretrainConfig) -> Iterator[Layer]:
    """The forward pass that makes the targets; none where the joints are the target."""
    model, frames = config.model, config.data.num_frames
    if config.target.teacher_reads_video:
        yield from (replace(layer, part="teacher") for layer in _video(model, frames, config.data.size))
    if not config.target.predicts_joints:
        yield from _blocks("teacher", model, model.depth, frames)


def mask_layers(config: PretrainConfig) -> list[Layer]:
    """The layers that run once for every mask of a clip: the encoder's blocks and the decoder."""
    model, frames = config.model, config.data.num_frames
    kept, _ = mask_counts(frames, config.mask.video_ratio, config.mask.skeleton_ratio)
    return [
        *_blocks("encoder", model, model.depth, kept),
        _linear("decoder", kept, model.width, model.width),
        *_blocks("decoder", model, model.decoder_depth, frames),
        _linear("decoder", frames, model.width, model.width),
    ]


def _repeated(repeats: int, layers: Iterable[Layer]) -> Iterator[Layer]:
    """The same layers, run `repeats` times for one clip."""
    for layer in layers:
        yield replace(layer, macs=repeats * layer.macs, outputs=repeats * layer.outputs)


def _video(model: ModelConfig, frames: int, size: int) -> Iterator[Layer]:
    side, channels = size // 2, model.stem_width
    pixels = frames * side * side
    yield Layer("video", pixels * channels * STEM_TAPS, pixels * channels, channels * STEM_TAPS, input_gradient=False)
    side //= 2
    for stage in range(4):
        wide = model.stem_width * 2**stage
        side //= 1 if stage == 0 else 2
        taps = [9 * channels, 9 * wide, 9 * wide, 9 * wide] + ([channels] if stage else [])
        for inputs in taps:
            pixels = frames * side * side
            yield Layer("video", pixels * wide * inputs, pixels * wide, wide * inputs)
        channels = wide
    yield _linear("video", frames, channels, model.width)


def _linear(part: Part, tokens: int, inputs: int, outputs: int) -> Layer:
    return Layer(part, tokens * inputs * outputs, tokens * outputs, inputs * outputs)


def _blocks(part: Part, model: ModelConfig, depth: int, tokens: int) -> Iterator[Layer]:
    width, hidden = model.width, int(model.width * model.mlp_ratio)
    for _ in range(depth):
        yield _linear(part, tokens, width, 3 * width)
        yield Layer(part, 2 * tokens * tokens * width, tokens * width, 0)  # scores and their sum of values, fused
        yield _linear(part, tokens, width, width)
        yield _linear(part, tokens, width, hidden)
        yield _linear(part, tokens, hidden, width)


def forward_macs(layers: Iterable[Layer], parts: Sequence[Part]) -> int:
    """Multiply-adds of one clip's forward pass, of some parts."""
    return sum(layer.macs for layer in layers if layer.part in parts)


def step_flops(layers: Iterable[Layer]) -> int:
    """FLOP per clip of a training step: forward, gradient of the weights, gradient of the inputs where one is needed."""
    return sum(2 * layer.macs * (1 if layer.part == "teacher" else 2 + layer.input_gradient) for layer in layers)


def step_bytes(layers: Iterable[Layer], config: PretrainConfig, value_bytes: int) -> float:
    """Bytes per clip that a training step moves at least, everything between two layers' products fused.

    Args:
        value_bytes: size of an activation (2 for bf16, 4 for float32); weights and optimizer are float32.
    """
    total = 0.0
    for layer in layers:
        teacher = layer.part == "teacher"
        total += layer.outputs * value_bytes * (TEACHER_PASSES if teacher else TRAINED_PASSES)
        total += 4 * layer.weights * (TEACHER_WORDS if teacher else OPTIMIZER_WORDS) / config.run.batch_size
    return total + clip_bytes(config)


def clip_bytes(config: PretrainConfig) -> int:
    """Bytes of one decoded clip: uint8 RGB frames."""
    return config.data.num_frames * config.data.size**2 * 3
