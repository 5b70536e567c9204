"""The cost of a training step is that of its layers, computed by hand and as PyTorch executes them."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from svdata2vec.config.schema import DataConfig, ModelConfig, PretrainConfig, TargetConfig
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.step_cost import forward_macs, step_bytes, step_flops, step_layers
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher

STUDENT = ("video", "skeleton", "encoder", "decoder")
DEFAULT = PretrainConfig()
ALL_FRAMES = dataclasses.replace(DEFAULT, encode="all_frames")


def test_multiply_adds_of_the_default_preset_by_hand() -> None:
    stem = 112 * 112 * 64 * (3 * 5 * 7 * 7)
    first = 4 * 56 * 56 * 64 * (9 * 64)
    stages = ((28, 128), (14, 256), (7, 512))
    later = sum(side * side * wide * (9 * wide // 2 + 3 * 9 * wide + wide // 2) for side, wide in stages)
    frame = stem + first + later + 512 * 256
    block = 12 * 256 * 256
    encoder = 8 * (13 * block + 2 * 13 * 13 * 256)
    decoder = 3 * (40 * block + 2 * 40 * 40 * 256) + (13 + 40) * 256 * 256
    skeleton = 40 * (2 * 2 * 17) * 256
    for config, frames, stated in ((DEFAULT, 13, 29.9), (ALL_FRAMES, 40, 91.6)):
        counted = forward_macs(step_layers(config, 17), STUDENT)
        assert counted == frames * frame + encoder + decoder + skeleton
        assert counted / 1e9 == pytest.approx(stated, abs=0.05)


def test_flop_of_a_step_by_hand() -> None:
    layers = step_layers(DEFAULT, 17)
    student, teacher = forward_macs(layers, STUDENT), forward_macs(layers, ["teacher"])
    without_input_gradient = 13 * 112 * 112 * 64 * 735 + 40 * 68 * 256
    assert step_flops(layers) == 2 * (3 * student - without_input_gradient + teacher)
    assert teacher == 8 * (40 * 12 * 256 * 256 + 2 * 40 * 40 * 256)


@pytest.mark.parametrize(("encode", "joint_motion"), [("kept_frames", 0.0), ("all_frames", 0.0), ("kept_frames", 2.0)])
def test_counts_agree_with_what_pytorch_executes(encode: Any, joint_motion: float) -> None:
    """Forward and backward of student and teacher, counted by PyTorch from the calls themselves."""
    model = ModelConfig(width=32, depth=3, decoder_depth=2, heads=2, stem_width=16, impl="torch", joint_motion=joint_motion)
    config = PretrainConfig(
        data=DataConfig(num_frames=10, size=64), model=model, encode=encode,
        target=dataclasses.replace(DEFAULT.target, top_layers=3),
    )
    student = SVData2Vec(config, 17)
    teacher = Teacher(student.encoder.blocks)
    masks = draw_masks(["a"], 10, config.mask, 0, 0)
    with FlopCounterMode(display=False) as forward:
        output = student(torch.zeros(1, 10, 64, 64, 3, dtype=torch.uint8), torch.rand(1, 2, 10, 17, 2), masks)
    with FlopCounterMode(display=False) as backward:
        output.prediction_NTD.sum().backward()
    with FlopCounterMode(display=False) as teaching:
        teacher(output.teacher_tokens_BTD, config.target, "torch")
    layers = step_layers(config, 17)
    assert forward.get_total_flops() == 2 * forward_macs(layers, STUDENT)
    assert teaching.get_total_flops() == 2 * forward_macs(layers, ["teacher"])
    whole = sum(counter.get_total_flops() for counter in (forward, backward, teaching))
    assert whole == pytest.approx(step_flops(layers), rel=0.01)


def test_the_teacher_is_the_one_that_makes_the_targets() -> None:
    """One that is an encoder and reads the video encodes every frame; joints as the target need none."""
    blocks = forward_macs(step_layers(DEFAULT, 17), ["teacher"])
    frames = forward_macs(step_layers(ALL_FRAMES, 17), ["video"])
    for target, counted in (
        (TargetConfig(teacher="encoder", teacher_input="rgb", scored="video"), blocks + frames),
        (TargetConfig(teacher="encoder"), blocks), (TargetConfig(kind="joints"), 0),
    ):
        assert forward_macs(step_layers(dataclasses.replace(DEFAULT, target=target), 17), ["teacher"]) == counted


def test_bytes_of_a_step() -> None:
    layers = step_layers(DEFAULT, 17)
    big = dataclasses.replace(DEFAULT, run=dataclasses.replace(DEFAULT.run, batch_size=64))
    weights = 4 * sum(layer.weights * (4 if layer.part == "teacher" else 10) for layer in layers)
    assert step_bytes(layers, DEFAULT, 2) - step_bytes(layers, big, 2) == pytest.approx(weights / 32 - weights / 64)
    clip = 40 * 224 * 224 * 3
    activations = step_bytes(layers, DEFAULT, 2) - weights / 32 - clip
    assert step_bytes(layers, DEFAULT, 4) - weights / 32 - clip == pytest.approx(2 * activations)
    parameters = sum(p.numel() for p in SVData2Vec(DEFAULT, 17).parameters())
    counted = sum(layer.weights for layer in layers if layer.part != "teacher")
    assert counted == pytest.approx(parameters, rel=0.005)  # biases, norms, embeddings are left out
