"""Masks, schedules, parameter groups and the teacher's average: pure functions checked against numbers computed by hand."""

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import pretrain_config
from torch import nn

from svdata2vec.config.presets import FINETUNE, PROTOCOLS
from svdata2vec.config.schema import ROUNDING, EmaConfig, MaskConfig, ModelConfig, OptimConfig, mask_counts
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import Encoder
from svdata2vec.model.teacher import Teacher, annealing, ema_decay
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.runtime import Runtime, seed_step
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.optim import build_optimizer, clip_gradients, learning_rate, resolve, set_learning_rate
from svdata2vec.training.pretrain import Pretraining, pretrain


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 64), st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 5))
def test_masks_hold_what_the_ratios_say(frames: int, video: float, skeleton: float, epoch: int) -> None:
    if int(frames * (1 - video) + ROUNDING) < 1:
        with pytest.raises(ValueError, match="keeps none"):
            mask_counts(frames, video, skeleton)
        return
    kept, paired = mask_counts(frames, video, skeleton)
    masks = draw_masks(["a", "b"], frames, MaskConfig(video, skeleton), seed=3, epoch=epoch)
    assert masks.keep_NK.shape == (2, kept)
    assert (masks.keep_NK.diff(dim=1) > 0).all() and (masks.keep_NK >= 0).all() and (masks.keep_NK < frames).all()
    assert ((~masks.skeleton_hidden_NK).sum(1) == paired).all()
    assert (masks.scored_NT.sum(1) == frames - paired).all()
    seen = torch.zeros(2, frames, dtype=torch.bool).scatter(1, masks.keep_NK, ~masks.skeleton_hidden_NK)
    assert (seen == ~masks.scored_NT).all()


def test_ratios_are_those_that_are_written() -> None:
    """Of 40 frames 0.8 keeps 8 and 0.9 keeps 4, whatever 1 - 0.8 is in binary."""
    for frames, percent in itertools.product(range(1, 101), range(100)):
        if (kept := frames * (100 - percent) // 100) > 0:
            assert mask_counts(frames, percent / 100, percent / 100) == (kept, kept * (100 - percent) // 100)


def test_masks_of_a_clip_depend_on_seed_epoch_and_key_only() -> None:
    alone = draw_masks(["x"], 40, MaskConfig(0.66, 0.75), seed=1, epoch=2)
    among = draw_masks(["a", "b", "x"], 40, MaskConfig(0.66, 0.75), seed=1, epoch=2)
    assert torch.equal(alone.keep_NK[0], among.keep_NK[2]) and torch.equal(alone.scored_NT[0], among.scored_NT[2])
    for other in (draw_masks(["x"], 40, MaskConfig(0.66, 0.75), 2, 2), draw_masks(["x"], 40, MaskConfig(0.66, 0.75), 1, 3)):
        assert not torch.equal(alone.keep_NK, other.keep_NK)


def test_masks_are_frozen_for_old_checkpoints() -> None:
    """A run that was saved must go on with the same masks with every later version."""
    masks = draw_masks(["key"], 8, MaskConfig(0.5, 0.5), seed=1, epoch=2)
    assert masks.keep_NK.tolist() == [[0, 3, 4, 6]]
    assert masks.skeleton_hidden_NK.tolist() == [[True, False, True, False]]


def test_random_numbers_of_a_step_depend_on_seed_step_and_rank_only() -> None:
    draws = {}
    for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        seed_step(*place)
        draw = tuple(torch.rand(2).tolist())
        assert draws.setdefault(place, draw) == draw
    assert len(set(draws.values())) == 4


def test_a_run_draws_the_numbers_of_its_seed_step_and_rank(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config, runtime = pretrain_config(tiny_shard_folder, tmp_path, seed=5), Runtime(torch.device("cpu"), 0, 1, bf16=False)
    with build_loader(ShardSet.open(tiny_shard_folder), config, runtime, train=True) as loader:
        runs = [Pretraining(replace(config, run=replace(config.run, seed=seed)), runtime, loader) for seed in (5, 6, 5)]
    first, other, again = (run.model.decoder.mask_token for run in runs)
    assert torch.equal(first, again) and not torch.equal(first, other)
    stepper = runs[0].stepper
    for step, rank in ((0, 0), (0, 1), (3, 1)):
        stepper.step, stepper.runtime = step, replace(runtime, rank=rank)
        stepper.begin()
        found = torch.rand(3)
        seed_step(5, step, rank)
        assert torch.equal(found, torch.rand(3))


def test_every_frame_is_kept_equally_often() -> None:
    masks = draw_masks([f"k{i}" for i in range(2000)], 40, MaskConfig(0.66, 0.75), seed=0, epoch=0)
    shares = np.bincount(masks.keep_NK.flatten().numpy(), minlength=40) / 2000
    assert np.abs(shares - 13 / 40).max() < 0.05


def test_masks_check_themselves() -> None:
    keep, hidden = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected one shape, int64 and bool"):
        Masks(keep, hidden, torch.zeros(1, 4, dtype=torch.bool), keep)


def test_learning_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup_epochs=2)
    rates = [learning_rate(config, step / 10, 12) for step in (0, 10, 20, 70, 120, 500)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2])
    assert learning_rate(replace(config, warmup_epochs=0), 0, 12) == 1.0


def test_ema_decay_of_both_schedules() -> None:
    steady = EmaConfig(start=0.9, end=1.0, anneal_steps=100)
    assert [ema_decay(steady, step, 10) for step in (0, 50, 100, 900)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    original = EmaConfig(start=0.9, end=1.0, anneal_steps=100, schedule="original")
    assert [ema_decay(original, step, 10) for step in (0, 1, 9, 10, 11)] == [
        pytest.approx(0.9), pytest.approx(0.901), pytest.approx(0.909), None, pytest.approx(0.901)
    ]


def test_teacher_moves_by_the_decay() -> None:
    encoder = Encoder(ModelConfig(width=8, heads=2, depth=1), num_frames=4, num_joints=3, modality="skeleton")
    teacher = Teacher(encoder.blocks)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for parameter in encoder.blocks.parameters():
            parameter.add_(1.0)
    teacher.update(encoder, decay=0.75)
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
    optimizer = build_optimizer([(name, nn.Parameter(torch.zeros(2, 2)))], OptimConfig(), depth=8, layer_decay=0.8)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.8**power)


def test_no_weight_decay_on_biases_and_one_dimensional_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(weight_decay=0.05))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {"0.weight": 0.05, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}
    set_learning_rate(optimizer, 0.5)
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)


def test_gradients_are_clipped_to_the_norm_only_when_asked() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(optimizer, 0.0).item() == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(5.0)
    for largest, norm in ((6.0, 5.0), (1.0, 1.0), (2.0, 1.0)):  # never scaled up
        clip_gradients(optimizer, largest)
        assert model.weight.grad.norm().item() == pytest.approx(norm, rel=1e-4)


# ---- rates, warm-up and annealing as shares of a run -----------------------------------------------------------------------


def test_rates_follow_the_clips_per_step_and_shares_the_run() -> None:
    config = OptimConfig(base_lr=2e-3, min_lr_share=0.1, warmup_share=0.05, accumulate=2)
    found = resolve(config, batch=64, epochs=40)
    assert (found.lr, found.min_lr, found.warmup_epochs) == pytest.approx((1e-3, 1e-4, 2.0))
    assert resolve(found, 64, 40) == found
    assert resolve(config, 1024, 40).lr == pytest.approx(16e-3)
    plain = OptimConfig(lr=1e-3, min_lr=5e-4, warmup_epochs=20)
    assert resolve(plain, 4096, 400) == plain


@pytest.mark.parametrize("batch", [1, 32, 64, 128, 1024])
def test_the_last_rate_follows_the_clips_per_step_as_the_peak_does(batch: int) -> None:
    """As the log advises where `lr` belongs to another number of clips: the paper's rates at 128."""
    found = resolve(OptimConfig(base_lr=2e-3), batch, 400)
    assert (found.lr, found.min_lr) == pytest.approx((1e-3 * batch / 128, 5e-4 * batch / 128))


@pytest.mark.parametrize(("batch", "batches"), [(16, 4), (32, 2), (64, 1), (96, 1), (256, 1), (25, 3)])
def test_accumulation_makes_up_for_missing_gpus(batch: int, batches: int) -> None:
    assert resolve(OptimConfig(accumulate=0, lr_batch=64), batch, 100).accumulate == batches


def test_a_rate_that_would_rise_is_refused() -> None:
    with pytest.raises(UserError, match=r"rise from its peak 0.0001 to 0.0005; set --optim.min-lr to .*--optim.min-lr-share"):
        resolve(OptimConfig(lr=1e-4), 32, 400)
    assert resolve(OptimConfig(lr=1e-4, min_lr_share=0.5), 32, 400).min_lr == pytest.approx(5e-5)
    assert resolve(OptimConfig(lr=1e-4, min_lr=1e-4), 32, 400).min_lr == 1e-4  # it stays


@pytest.mark.parametrize(("epochs", "warmup"), [(400, 20), (21, 20), (20, 2), (10, 1)])
def test_a_run_leaves_its_warm_up(epochs: int, warmup: float) -> None:
    found = resolve(OptimConfig(), 32, epochs)
    assert found.warmup_epochs == pytest.approx(warmup)
    rates = [learning_rate(found, place / 10, epochs) for place in range(10 * epochs + 1)]
    assert max(rates) == pytest.approx(found.lr) and rates[-1] == pytest.approx(found.min_lr)


def test_annealing_as_a_share_of_the_run() -> None:
    config = EmaConfig(anneal_share=0.25)
    assert annealing(config, Fraction(25, 2), 40).anneal_steps == 125
    assert annealing(EmaConfig(anneal_share=0.01), Fraction(25, 2), 1).anneal_steps == 1
    assert annealing(EmaConfig(), Fraction(25, 2), 40) == EmaConfig()


@pytest.mark.parametrize("name", [name for name in FINETUNE if name in PROTOCOLS])
def test_fine_tuning_presets_have_the_authors_batch(name: str) -> None:
    """32 clips per process, 64 per step, on one process and on two."""
    config = FINETUNE[name]()
    assert config.run.batch_size == 32 and config.optim.lr_batch == 64
    assert [resolve(config.optim, 32 * processes, 100).accumulate * 32 * processes for processes in (1, 2)] == [64, 64]


def test_a_run_says_what_it_is_going_to_do(tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optim = OptimConfig(base_lr=0.064, min_lr_share=0.5, warmup_share=0.25, accumulate=0, lr_batch=8)
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, epochs=4)
    with caplog.at_level("INFO"):
        pretrain(replace(config, ema=EmaConfig(anneal_share=0.5)))
    lines = [record.message for record in caplog.records]
    wanted = [
        "4 epochs of 12 clips, 6 steps; clips per step: 8 (batch_size 4 x processes 1 x accumulate 2)",
        "learning rate 0 to 0.002 in 1 epochs, then down to 0.001",
        "teacher's decay 0.999, rising to 0.99999 at epoch 2.0",
    ]
    assert [line for line in lines if line in wanted] == wanted
    assert not [line for line in lines if "belongs to" in line or "warm-up takes" in line]
    records = read_metrics(tmp_path / "run")
    assert max(record["lr"] for record in records) > 0.0019 and records[-1]["ema_decay"] == pytest.approx(0.99999)


def test_a_rate_of_another_batch_and_a_warm_up_that_is_too_long_are_warned_of(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", optim=OptimConfig(), epochs=1))
    assert "optim.lr 0.001 belongs to 128 clips per step, this run has 4; scale it with --optim.base-lr 0.002" in caplog.text
    assert "optim.warmup_epochs 20 is not below run.epochs 1: the warm-up takes 0.1 epochs" in caplog.text
