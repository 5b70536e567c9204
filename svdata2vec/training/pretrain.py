"""Pretraining: one step top to bottom, and the loop around it.

B clips, M persons, T frames, K kept frames, V joints, C coordinates, H W picture, D width
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import PretrainConfig
from svdata2vec.kernels.functional import masked_mse
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher, ema_decay
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.card import model_card
from svdata2vec.runs.data import build_loader, open_data, to_device
from svdata2vec.runs.folder import finish_run, is_finished, read_result
from svdata2vec.runs.runtime import Runtime, running, unwrap
from svdata2vec.training.loop import EpochBatch, Stateful, train
from svdata2vec.training.optim import build_optimizer
from svdata2vec.training.stepper import Stepper


@dataclass(frozen=True)
class StepOutput:
    """Loss of one batch (with gradient) and the spreads that show a collapse: standard deviations over the batch."""

    loss: Tensor
    target_std: Tensor
    prediction_std: Tensor


def forward(
    student: nn.Module, teacher: Teacher, video_BTHWC: Tensor, joints_BMTVC: Tensor, masks: Masks, config: PretrainConfig
) -> StepOutput:
    """Masked prediction of the teacher's latents (the paper, section 3).

    The student sees K video tokens, some with their skeleton; the teacher sees the whole skeleton; the loss is taken where
    the skeleton is hidden from the student.
    """
    output = student(video_BTHWC, joints_BMTVC, masks)
    target_BTD = teacher(output.teacher_tokens_BTD, config.target, config.model.impl)
    prediction_BTD = output.prediction_BTD.float()
    loss = masked_mse(prediction_BTD, target_BTD, masks.scored_BT, impl=config.model.impl)
    return StepOutput(loss, spread(target_BTD), spread(prediction_BTD))


def spread(x_BTD: Tensor) -> Tensor:
    """Standard deviation over the batch, averaged over time and width; 0 when every clip looks the same."""
    return x_BTD.detach().std(dim=0, correction=0).mean()


class Pretraining:
    """Everything a pretraining run holds, wired once; `step` is the training step.

    Args:
        config: the resolved configuration.
        runtime: this process and its device.
        loader: training clips.
        num_joints: V of the shards' joint layout.
    """

    def __init__(self, config: PretrainConfig, runtime: Runtime, loader: ClipLoader, num_joints: int) -> None:
        torch.manual_seed(config.run.seed)
        model = SVData2Vec(
            config.model,
            config.data.num_frames,
            num_joints,
            all_frames=config.encode == "all_frames",
            teacher_input=config.target.teacher_input,
        )
        self.config, self.runtime, self.loader = config, runtime, loader
        self.teacher = Teacher(model.encoder.blocks).to(runtime.device)
        self.student = runtime.wrap(model, config.run)
        self.optimizer = build_optimizer(self.model.named_parameters(), config.optim)
        self.stepper = Stepper(
            config.optim, config.run, runtime, self.student, self.optimizer, loader.batches_per_epoch
        )

    @property
    def model(self) -> SVData2Vec:
        model = unwrap(self.student)
        assert isinstance(model, SVData2Vec)
        return model

    def step(self, batches: list[EpochBatch]) -> None:
        """One optimizer step over `optim.accumulate` batches, then the teacher's update."""
        stepper = self.stepper
        stepper.begin()
        for epoch, batch in batches:
            output = self.forward(batch, epoch)
            stepper.clock.mark("forward")
            stepper.backward(output.loss, self.student, last=batch is batches[-1][1])
            stepper.note({"loss": output.loss, "target_std": output.target_std, "prediction_std": output.prediction_std})
        stepper.update([key for _, batch in batches for key in batch.keys])
        decay = ema_decay(self.config.ema, stepper.step, stepper.steps_per_epoch)
        if decay is not None:
            self.teacher.update(self.model.encoder.blocks, decay)
        stepper.end({"ema_decay": 1.0 if decay is None else decay})

    def forward(self, batch: ClipBatch, epoch: int) -> StepOutput:
        """Masks, student, teacher and loss of one batch of the loader."""
        data, mask = self.config.data, self.config.mask
        masks = draw_masks(
            batch.keys, data.num_frames, mask.video_ratio, mask.skeleton_ratio, self.config.run.seed, epoch
        ).to(self.runtime.device)
        video_BTHWC, joints_BMTVC, _ = to_device(batch, self.runtime.device)
        assert video_BTHWC is not None and joints_BMTVC is not None
        with self.runtime.autocast():
            return forward(self.student, self.teacher, video_BTHWC, joints_BMTVC, masks, self.config)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint holds."""
        return {
            "student": self.model,
            "teacher": self.teacher,
            "optimizer": self.optimizer,
            "stepper": self.stepper,
            "loader": self.loader,
        }

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Nothing to measure without labels."""
        return {}


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train (or continue) a run in `config.run.out` and publish its weights; returns the last record of its log."""
    with running(config.run) as runtime:
        if is_finished(config, config.run):
            return read_result(config.run)
        shards = open_data(config.data)
        num_joints = len(shards.manifest.layout.joints)
        with build_loader(shards, config.data, config.run, runtime, config.model.persons, train=True) as loader:
            run = Pretraining(config, runtime, loader, num_joints)
            result = train(run, model_card("pretrain", config, num_joints=num_joints, shards=shards))
        finish_run(config.run, runtime, result)
        return result
