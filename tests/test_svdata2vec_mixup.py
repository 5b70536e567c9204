"""Mixup: what is blended and with what weight; a training run with it is reproducible."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import finetune_config
from torch.nn import functional as F

from svdata2vec.config.schema import HeadConfig
from svdata2vec.runs.published import load_published
from svdata2vec.shards.errors import UserError
from svdata2vec.training.finetune import finetune
from svdata2vec.training.mixup import Mixture, draw_mixture

CPU = torch.device("cpu")


def test_off_leaves_clips_and_loss_as_they_are() -> None:
    mixture = draw_mixture(0.0, 3, CPU)
    video, logits, label = torch.randint(0, 256, (3, 2, 4, 4, 3), dtype=torch.uint8), torch.randn(3, 5), torch.arange(3)
    assert mixture.blend(video) is video and mixture.blend(None) is None
    assert mixture.loss(logits, label, 0.1) == F.cross_entropy(logits, label, label_smoothing=0.1)


def test_blended_joints_and_their_motion_do_not_go_together(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """A joint that one of two clips lacks in some frames would seem to jump."""
    base = finetune_config(tiny_shard_folder, tmp_path)
    moving = replace(base, model=replace(base.model, joint_motion=2.0))
    blended = replace(moving, head=replace(base.head, mixup=0.2))
    for modality in ("skeleton", "both"):
        replace(moving, modality=modality)
        with pytest.raises(UserError, match=r"head\.mixup blends joints, and model\.joint_motion would"):
            replace(blended, modality=modality)


def test_clips_and_labels_are_blended_with_the_same_partner_and_share() -> None:
    mixture = Mixture(0.75, torch.tensor([1, 2, 0]))
    video = torch.tensor([0, 100, 203], dtype=torch.uint8).view(3, 1, 1, 1, 1).expand(3, 2, 4, 4, 3)
    mixed = mixture.blend(video)
    assert mixed is not None and mixed.dtype == torch.uint8
    assert mixed[:, 0, 0, 0, 0].tolist() == [25, 126, 152]  # of 25, 125.75 and 152.25
    joints = torch.tensor([10.0, 20.0, 0.0]).view(3, 1, 1, 1, 1)
    blended = mixture.blend(joints)
    assert blended is not None and blended.flatten().tolist() == [12.5, 15.0, 2.5]
    logits = torch.randn(3, 5)
    probability = logits.log_softmax(1)
    expected = -(0.75 * probability[range(3), [4, 0, 2]] + 0.25 * probability[range(3), [0, 2, 4]]).mean()
    torch.testing.assert_close(mixture.loss(logits, torch.tensor([4, 0, 2]), 0.0), expected)
    smoothed = 0.9 * expected - 0.1 * probability.mean()
    torch.testing.assert_close(mixture.loss(logits, torch.tensor([4, 0, 2]), 0.1), smoothed)


def test_shares_follow_the_beta_distribution() -> None:
    for alpha in (0.3, 2.0):
        shares = torch.tensor([draw_mixture(alpha, 2, CPU).share for _ in range(2000)])
        variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
        assert shares.mean() == pytest.approx(0.5, abs=4 * (variance / 2000) ** 0.5)
        assert shares.var() == pytest.approx(variance, rel=0.15)


def test_every_clip_is_a_partner_once_and_any_clip_may_be_its_own() -> None:
    partners_SB = torch.stack([draw_mixture(0.3, 3, CPU).partner_B for _ in range(900)])
    assert (partners_SB.sort(dim=1).values == torch.arange(3)).all()
    shares_BB = F.one_hot(partners_SB, 3).float().mean(0)
    assert (shares_BB - 1 / 3).abs().max() < 0.07


def test_training_with_mixup_is_reproducible_and_different(tiny_shard_folder: Path, tmp_path: Path) -> None:
    weights = {}
    for name, alpha in (("a", 0.8), ("b", 0.8), ("off", 0.0)):
        config = finetune_config(tiny_shard_folder, tmp_path / name, epochs=1)
        finetune(replace(config, head=replace(config.head, mixup=alpha), modality="both"))
        weights[name] = load_published(tmp_path / name)[0]["head.fc1.weight"]
    assert torch.equal(weights["a"], weights["b"]) and not torch.equal(weights["a"], weights["off"])


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(UserError, match=r"head\.mixup is -1\.0: expected a number from 0 to 1000"):
        HeadConfig(mixup=-1.0)
