"""Masks, schedules, parameter groups and the teacher's average: pure functions held against numbers by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from svdata2vec.config.schema import EmaConfig, ModelConfig, OptimConfig
from svdata2vec.model.masking import Masks, draw_masks, mask_counts
from svdata2vec.model.teacher import Teacher, ema_decay
from svdata2vec.model.transformer import Block
from svdata2vec.runs.runtime import seed_step
from svdata2vec.training.optim import build_optimizer, clip_gradients, layer_scale, learning_rate, set_learning_rate


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 64), st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 5))
def test_masks_hold_what_the_ratios_say(frames: int, video: float, skeleton: float, epoch: int) -> None:
    if int(frames * (1 - video)) < 1:
        with pytest.raises(ValueError, match="keeps none"):
            mask_counts(frames, video, skeleton)
        return
    kept, paired = mask_counts(frames, video, skeleton)
    masks = draw_masks(["a", "b"], frames, video, skeleton, seed=3, epoch=epoch)
    assert masks.keep_NK.shape == (2, kept)
    assert (masks.keep_NK.diff(dim=1) > 0).all() and (masks.keep_NK >= 0).all() and (masks.keep_NK < frames).all()
    assert ((~masks.skeleton_hidden_NK).sum(1) == paired).all()
    assert (masks.scored_NT.sum(1) == frames - paired).all()
    seen = torch.zeros(2, frames, dtype=torch.bool).scatter(1, masks.keep_NK, ~masks.skeleton_hidden_NK)
    assert (seen == ~masks.scored_NT).all()


def test_masks_of_a_clip_depend_on_seed_epoch_and_key_only() -> None:
    alone = draw_masks(["x"], 40, 0.66, 0.75, seed=1, epoch=2)
    among = draw_masks(["a", "b", "x"], 40, 0.66, 0.75, seed=1, epoch=2)
    assert torch.equal(alone.keep_NK[0], among.keep_NK[2]) and torch.equal(alone.scored_NT[0], among.scored_NT[2])
    for other in (draw_masks(["x"], 40, 0.66, 0.75, 2, 2), draw_masks(["x"], 40, 0.66, 0.75, 1, 3)):
        assert not torch.equal(alone.keep_NK, other.keep_NK)


def test_masks_are_frozen_for_old_checkpoints() -> None:
    """A run that was saved must go on with the same masks with every later version."""
    masks = draw_masks(["key"], 8, 0.5, 0.5, seed=1, epoch=2)
    assert masks.keep_NK.tolist() == [[0, 3, 4, 6]]
    assert masks.skeleton_hidden_NK.tolist() == [[True, False, True, False]]


def test_random_numbers_of_a_step_depend_on_seed_step_and_rank_only() -> None:
    draws = {}
    for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        seed_step(*place)
        draw = tuple(torch.rand(2).tolist())
        assert draws.setdefault(place, draw) == draw
    assert len(set(draws.values())) == 4


def test_every_frame_is_kept_equally_often() -> None:
    masks = draw_masks([f"k{i}" for i in range(2000)], 40, 0.66, 0.75, seed=0, epoch=0)
    shares = np.bincount(masks.keep_NK.flatten().numpy(), minlength=40) / 2000
    assert np.abs(shares - 13 / 40).max() < 0.05


def test_masks_check_themselves() -> None:
    keep, hidden = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected one shape, int64 and bool"):
        Masks(keep, hidden, torch.zeros(1, 4, dtype=torch.bool), keep)


def test_learning_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup_epochs=2)
    rates = [learning_rate(config, step, steps_per_epoch=10, epochs=12) for step in (0, 10, 20, 70, 120, 500)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2])


def test_ema_decay_of_both_schedules() -> None:
    steady = EmaConfig(start=0.9, end=1.0, anneal_steps=100)
    assert [ema_decay(steady, step, 10) for step in (0, 50, 100, 900)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    original = EmaConfig(start=0.9, end=1.0, anneal_steps=100, schedule="original")
    assert [ema_decay(original, step, 10) for step in (0, 1, 9, 10, 11)] == [
        pytest.approx(0.9), pytest.approx(0.901), pytest.approx(0.909), None, pytest.approx(0.901)
    ]


def test_teacher_moves_by_the_decay() -> None:
    blocks = nn.ModuleList([Block(ModelConfig(width=8, heads=2))])
    teacher = Teacher(blocks)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.add_(1.0)
    teacher.update(blocks, decay=0.75)
    for old, new in zip(before, teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize(
    ("name", "power"),
    [
        ("encoder.temporal_embed", 9), ("encoder.skeleton_embed.proj.weight", 9), ("encoder.blocks.0.attn.qkv.weight", 8),
        ("encoder.blocks.7.norm1.bias", 1), ("encoder.video_encoder.stem.conv.weight", 0), ("head.fc1.weight", 0),
        ("encoder.norm.weight", 0),
    ],
)
def test_layer_decay_is_the_papers(name: str, power: int) -> None:
    assert layer_scale(name, depth=8, layer_decay=0.8) == pytest.approx(0.8**power)


def test_no_weight_decay_on_biases_and_one_dimensional_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(weight_decay=0.05))
    decays = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {(4, 3): 0.05, (4,): 0.0}
    set_learning_rate(optimizer, 0.5)
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)


def test_gradients_are_clipped_to_the_norm_only_when_asked() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(optimizer, 0.0).item() == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(5.0)
    clip_gradients(optimizer, 1.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
