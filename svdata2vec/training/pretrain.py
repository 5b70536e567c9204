"""Pretraining: one step top to bottom, and the loop around it.

B clips, R masks of each clip, N = B * R masks, M persons, T frames, V joints, C coordinates, H W picture, D width
"""

import functools
import logging
import shlex
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import EmaConfig, PretrainConfig, TargetConfig
from svdata2vec.kernels.functional import masked_mse
from svdata2vec.model.controls import EncoderTeacher, joint_loss, joint_targets
from svdata2vec.model.execution import compile_parts
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import Encoder, SVData2Vec
from svdata2vec.model.teacher import Teacher, annealing, ema_decay
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.video import Video
from svdata2vec.runs.card import model_card
from svdata2vec.runs.data import build_loader, open_data, refuse_validation, require_skeletons
from svdata2vec.runs.finished import run_once
from svdata2vec.runs.folder import finish_run
from svdata2vec.runs.image_init import start_from_images
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.training.collapse import SPREADS, WATCHED, CollapseGuard
from svdata2vec.training.graph import CapturedPass
from svdata2vec.training.loop import TrainingRun, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """Loss of one batch (with gradient) and the spreads that show a collapse: standard deviations over the batch."""

    loss: Tensor
    target_std: Tensor
    prediction_std: Tensor


def forward(
    student: nn.Module, teacher: Teacher, video_BTHWC: Video, joints_BMTVC: Tensor, masks: Masks, config: PretrainConfig
) -> StepOutput:
    """Masked prediction of the teacher's latents (the paper, section 3).

    The student sees K video tokens, some with their skeleton; the teacher sees the whole skeleton; the loss is taken where
    the skeleton is hidden from the student. Controls have other targets, or other frames are scored.
    """
    output = student(video_BTHWC, joints_BMTVC, masks)
    prediction_NTD = output.prediction_NTD.float()
    scored_NT = masks.scored_NT if config.target.scored == "skeleton" else masks.frames_without_video
    present_BTD = None
    if config.target.predicts_joints:
        target_BTD, present_BTD = joint_targets(joints_BMTVC, config)
        loss = joint_loss(prediction_NTD, target_BTD, present_BTD, scored_NT, masks)
    else:
        tokens_BTD = teacher.tokens(output.teacher_tokens_BTD, video_BTHWC, joints_BMTVC)
        target_BTD = teacher(tokens_BTD, config.target, config.model.impl)
        loss = masked_mse(prediction_NTD, masks.of_clips(target_BTD), scored_NT, impl=config.model.impl)
    return StepOutput(loss, spread(target_BTD, present_BTD), spread(prediction_NTD.unflatten(0, (-1, masks.repeats))))


def make_teacher(encoder: Encoder, target: TargetConfig) -> Teacher:
    """The teacher of a student that has just been initialised."""
    return EncoderTeacher(encoder, target.teacher_input) if target.teacher == "encoder" else Teacher(encoder.blocks)


def spread(x_B: Tensor, present_B: Tensor | None = None) -> Tensor:
    """Standard deviation over the batch, averaged over all values that any clip has (`present_B`); 0 if all clips look the
    same."""
    std = x_B.detach().std(dim=0, correction=0)
    if present_B is None:
        return std.mean()
    counted = present_B.any(0)
    return (std * counted).sum() / counted.sum().clamp_min(1)


class Pretraining(TrainingRun):
    """A pretraining run: student and teacher, for the joint layout of the loader's shards."""

    config: PretrainConfig
    model: SVData2Vec

    def __init__(self, config: PretrainConfig, runtime: Runtime, loader: ClipLoader) -> None:
        torch.manual_seed(config.run.seed)
        model = SVData2Vec(config, len(loader.shards.manifest.layout.joints))
        if config.target.teacher_reads_video and runtime.world_size > 1 and not config.run.sync_batchnorm:
            raise UserError(
                f"--target.teacher is encoder with --target.teacher-input {config.target.teacher_input}: {runtime.world_size} "
                "processes need --run.sync-batchnorm, or each has other statistics in its teacher"
            )
        self.teacher = make_teacher(model.encoder, config.target).to(runtime.device)
        if config.run.launch == "compiled":
            compile_parts(self.teacher)
        super().__init__(config, runtime, loader, model)
        self.collapse = CollapseGuard(config.collapse_records)
        self.captured: CapturedPass | None = None
        if config.run.launch == "graph":
            self.captured = CapturedPass(lambda *inputs: vars(self.compute(*inputs)), self.model)

    def differentiate(self, batch: ClipBatch, epoch: int, *, last: bool) -> dict[str, Tensor]:
        if self.captured is None or len(batch) != self.config.run.batch_size:  # captured for whole batches
            return super().differentiate(batch, epoch, last=last)
        figures = self.captured(*self.inputs(batch, epoch))
        self.stepper.clock.mark("graph")
        return figures

    def figures(self, batch: ClipBatch, epoch: int) -> dict[str, Tensor]:
        return vars(self.forward(batch, epoch))

    def forward(self, batch: ClipBatch, epoch: int) -> StepOutput:
        """Masks, student, teacher and loss of one batch of the loader."""
        return self.compute(*self.inputs(batch, epoch))

    def inputs(self, batch: ClipBatch, epoch: int) -> tuple[Tensor, ...]:
        """Video, joints and the four tensors of the masks, on the device."""
        config, device = self.config, self.runtime.device
        masks = draw_masks(batch.keys, config.data.num_frames, config.mask, config.run.seed, epoch)
        batch = batch.to(device)
        assert batch.video_BTHWC is not None and batch.joints_BMTVC is not None
        joints_BMTVC = batch.joints_BMTVC.roll(1, 0) if config.target.shuffle_skeletons else batch.joints_BMTVC
        return batch.video_BTHWC, joints_BMTVC, *vars(masks.to(device)).values()

    def compute(self, video_BTHWC: Video, joints_BMTVC: Tensor, *masks: Tensor) -> StepOutput:
        """Student, teacher and loss, in the run's precision."""
        with self.runtime.autocast():
            return forward(self.network, self.teacher, video_BTHWC, joints_BMTVC, Masks(*masks), self.config)

    def after_update(self) -> dict[str, float]:
        """Update the teacher."""
        stepper = self.stepper
        per_epoch = stepper.reference_steps_per_epoch
        decay = ema_decay(self.ema, stepper.epochs * per_epoch, per_epoch)
        if decay is not None:
            decay **= stepper.clips / stepper.reference_clips
            self.teacher.update(self.model.encoder, decay)
        return {"ema_decay": 1.0 if decay is None else decay}

    @functools.cached_property
    def ema(self) -> EmaConfig:
        """The teacher's schedule in steps; read after a checkpoint is loaded, which may change what a step counts as."""
        return annealing(self.config.ema, self.stepper.reference_steps_per_epoch, self.config.run.epochs)

    def plan(self) -> list[str]:
        ema, epoch = self.ema, float(self.ema.anneal_steps / self.stepper.reference_steps_per_epoch)
        when = f"at epoch {epoch:.1f}" if ema.schedule == "global" else f"{ema.anneal_steps} steps into an epoch"
        return [*super().plan(), f"teacher's decay {ema.start:g}, rising to {ema.end:g} {when}"]

    def watch(self, record: dict[str, float]) -> None:
        """End a collapsed run, on all processes at once: they see the same averages. A batch of one clip has no spread."""
        if self.config.run.batch_size > 1:
            watched = WATCHED if self.config.target.normalised else tuple(SPREADS)  # otherwise the loss has no scale of its own
            self.collapse.check({name: record[name] for name in watched if name in record})

    def parts(self) -> dict[str, Any]:
        return {"student": self.model, "teacher": self.teacher, "collapse": self.collapse, **super().parts()}


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train (or continue) a run in `config.run.out` and publish its weights; returns the last record of its log."""
    return run_once(config, functools.partial(_pretrain, config))


def _pretrain(config: PretrainConfig, runtime: Runtime) -> dict[str, Any]:
    refuse_validation(config.data, "pretraining validates nothing; leave it out")
    shards = open_data(config.data)
    if config.target.teacher_input != "rgb" or config.target.predicts_joints:
        require_skeletons(shards, config.data.train_split)
    card = model_card("pretrain", config, num_joints=len(shards.manifest.layout.joints), shards=shards)
    with build_loader(shards, config, runtime, train=True) as loader:
        run = Pretraining(config, runtime, loader)
        card.update(start_from_images(run.model.encoder, config))
        if config.model.init is not None:
            run.teacher.update(run.model.encoder, 0.0)  # the two are equal at the start
        result = train(run, card)
    finish_run(config.run, runtime, result)
    log.info("%s: pretrained; next: svdata2vec finetune PRESET --from %s", config.run.out, shlex.quote(str(config.run.out)))
    return result
