"""The teacher: an exponential moving average of the encoder blocks, read without gradient.

Method: svdata2vec/README.md, "Targets, loss and teacher".

B clips, T frames, D width, L target layers
"""

import copy
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import EmaConfig, TargetConfig
from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.functional import layer_targets
from svdata2vec.model.student import Encoder
from svdata2vec.model.transformer import Block
from svdata2vec.pipeline.video import Video


class Teacher(nn.Module):
    """float32 copy of the student's encoder blocks, always in evaluation mode, part of every checkpoint."""

    def __init__(self, student_blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(student_blocks).float().requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: no dropout, no stochastic depth in the targets."""
        return super().train(False)

    def tokens(self, student_tokens_BTD: Tensor, video_BTHWC: Video, joints_BMTVC: Tensor) -> Tensor:
        """What the teacher reads (B, T, D): the student's embedded tokens. Subclasses may embed video and joints themselves."""
        return student_tokens_BTD

    @torch.no_grad()
    def forward(self, tokens_BTD: Tensor, target: TargetConfig, impl: Impl = "auto") -> Tensor:
        """Targets (B, T, D) in float32: normalised outputs of the top blocks, averaged."""
        layers_LBTD = tokens_BTD.new_empty((target.top_layers, *tokens_BTD.shape))
        first = len(self.blocks) - target.top_layers
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            layer_BTD = layers_LBTD[number - first] if number >= first else None
            # A block's sum is written where the targets read it; its MLP's output has to be copied there.
            tokens_BTD, mlp_BTD = block.forward_with_mlp(tokens_BTD, None if target.feed_forward else layer_BTD)
            if target.feed_forward and layer_BTD is not None:
                layer_BTD.copy_(mlp_BTD)
        return layer_targets(
            layers_LBTD,
            normalise_layer=target.normalise_layer,
            normalise_average=target.normalise_average,
            impl=impl,
        )

    @torch.no_grad()
    def update(self, encoder: Encoder, decay: float) -> None:
        """teacher <- decay * teacher + (1 - decay) * student, in float32 (`decay` in 0..1)."""
        mine: list[Tensor] = list(self.blocks.parameters())
        theirs = [p.detach().float() for p in encoder.blocks.parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)


def annealing(config: EmaConfig, steps_per_epoch: Fraction, epochs: int) -> EmaConfig:
    """The settings with `anneal_steps` in place of a share of the run."""
    if not config.anneal_share:
        return config
    steps = max(round(config.anneal_share * epochs * steps_per_epoch), 1)
    return replace(config, anneal_steps=steps, anneal_share=0.0)


def ema_decay(config: EmaConfig, step: int | Fraction, steps_per_epoch: int | Fraction) -> float | None:
    """Decay after optimizer step number `step` (the first is 0); None = no update after this step.

    Steps have as many clips as those that the run began with; larger or smaller ones count as fractions of these.

    "global" anneals linearly over `anneal_steps` optimizer steps. "original" reproduces the authors' code, which counts
    within the epoch and skips the first step of each epoch but the very first of a run (svdata2vec/README.md, "Decisions").
    """
    if config.schedule == "original":
        begun, step = step > 0, step % steps_per_epoch
        if begun and step == 0:
            return None
    fraction = float(min(step / config.anneal_steps, 1))
    return config.start + fraction * (config.end - config.start)
