"""Golden values of the method: 20 losses, and a teacher, that change exactly if some part of the method changes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_curve import DISTANCE_TOLERANCE, GOLDEN, STEPS, TOLERANCE, golden_curve

from svdata2vec.model import masking, teacher
from svdata2vec.model.student import Decoder, SkeletonEmbedding
from svdata2vec.model.teacher import Teacher
from svdata2vec.training import loop, pretrain, stepper

EXPECTED = json.loads(GOLDEN.read_text())


def differences(curve: dict[str, Any]) -> tuple[float, float]:
    """In tolerances: the largest one of the losses, and that of the teacher's distance."""
    losses = [abs(found / golden - 1) for found, golden in zip(curve["loss"], EXPECTED["loss"], strict=True)]
    distance = abs(curve["teacher_distance"] / EXPECTED["teacher_distance"] - 1)
    return max(losses) / TOLERANCE, distance / DISTANCE_TOLERANCE


def test_losses_and_teacher_are_those_of_the_golden_curve(tiny_shard_folder: Path, tmp_path: Path) -> None:
    curve = golden_curve(tiny_shard_folder, tmp_path / "run")
    assert len(curve["loss"]) == STEPS
    assert max(differences(curve)) < 1, "the method has changed; if that is meant, see tests/helpers/golden_curve.py"


def without_temporal_embedding(real: Callable) -> Callable:
    def forward(decoder: Decoder, *arguments: torch.Tensor) -> torch.Tensor:
        decoder.temporal_embed.data.zero_()
        return real(decoder, *arguments)

    return forward


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["weight_decay"] = 20
    return optimizer


# What is changed, where, and how the changed function is made of the real one.
CHANGES: dict[str, tuple[Any, str, Callable[[Callable], Callable]]] = {
    "targets are not normalised": (
        teacher, "layer_targets", lambda real: lambda layers, **options: real(layers, **options | {"normalise_layer": "none"})),
    "targets of the last block alone": (
        teacher, "layer_targets", lambda real: lambda layers, **options: real(layers[-1:], **options)),
    "the teacher stands still": (Teacher, "update", lambda _: lambda *arguments: None),
    "the decay is counted one step late": (
        pretrain, "ema_decay", lambda real: lambda config, step, steps: real(config, max(step - 1, 0), steps)),
    "masks of another seed": (
        pretrain, "draw_masks",
        lambda real: lambda keys, frames, config, seed, epoch: real(keys, frames, config, seed + 1, epoch)),
    "the loss is taken at every frame": (
        masking, "scored_frames", lambda real: lambda *arguments: np.ones_like(real(*arguments))),
    "no warm-up": (stepper, "learning_rate", lambda real: lambda config, *arguments: config.lr),
    "weights decay by a quarter more": (
        loop, "build_optimizer", lambda real: lambda names, optim: real(names, replace(optim, weight_decay=25))),
    "everything decays, biases too": (
        loop, "build_optimizer", lambda real: lambda *arguments: decaying(real(*arguments))),
    "persons in another order": (
        SkeletonEmbedding, "forward", lambda real: lambda module, joints_BMTVC: real(module, joints_BMTVC.flip(1))),
    "the decoder does not know the time": (Decoder, "forward", without_temporal_embedding),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_method_shows(
    change: str, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By three tolerances at the least."""
    owner, name, make = CHANGES[change]
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    found = differences(golden_curve(tiny_shard_folder, tmp_path / "run"))
    print(f"{change}: {found[0]:.1e} {found[1]:.1e}")
    assert max(found) > 3
