"""Ways to pretrain, compared over paired seeds by the accuracy of a classifier that sees RGB alone and has few labels.

    python tools/motion/make_motion_clips.py demo/claim/clips --clips 6400
    svdata2vec shard pyskl demo/claim/shards --size 96 --chroma 444 \\
        --pickle-path demo/claim/clips/motion.pkl --videos demo/claim/clips/videos
    python tools/experiments/pretraining_experiment.py claim --shards demo/claim/shards --work demo/claim/runs

claim: the method against its controls and rivals (svdata2vec/README.md, "Controls"), from scratch, and skeletons alone.
controls: the same controls and rivals by probes alone, for runs that are too short for the claim; and untrained networks.
masks: 1, 2, 4 and 8 masks per clip at equal clips, and at equal multiply-adds (`_work`); masks that choose from more frames.
choices: EMA as counted here and as the authors count it, kept frames and all frames, bf16 and float32.
motion: skeleton tokens with the motion of the joints, and those of the paper, with positions alone.

The experiment can be interrupted and started again. The record has the CPU seconds of every run.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import small_cnn
from ending import reported
from pretraining_sides import Experiment, Side, equal_work, make_parser, run_experiment

from svdata2vec.config.label_efficiency import FRACTIONS, LabelEfficiencyConfig, Way
from svdata2vec.config.schema import PretrainConfig, mask_counts
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.runs.runtime import asks_for_bf16, pick_device
from svdata2vec.studies.label_efficiency import lines
from svdata2vec.studies.rows import Cell, FinetuneRow, Kind, Outcome, Row, data_settings
from svdata2vec.training.optim import resolve


def as_it_is(config: PretrainConfig) -> PretrainConfig:
    return config


def with_target(config: PretrainConfig, **changes: object) -> PretrainConfig:
    return replace(config, target=replace(config.target, **changes))  # type: ignore[arg-type]


def random_teacher(config: PretrainConfig) -> PretrainConfig:
    return replace(with_target(config, teacher="encoder"), ema=replace(config.ema, start=1.0, end=1.0))


def rgb_data2vec(config: PretrainConfig) -> PretrainConfig:
    changed = with_target(config, teacher="encoder", teacher_input="rgb", scored="video")
    return replace(changed, mask=replace(config.mask, skeleton_ratio=1.0))


CLAIM: dict[str, Side] = {
    "pretrained": as_it_is,
    "shuffled_skeletons": partial(with_target, shuffle_skeletons=True),
    "random_teacher": random_teacher,
    "joint_regression": partial(with_target, kind="joints"),
    "standardised_joints": partial(with_target, kind="standardised_joints"),
    "rgb_data2vec": rgb_data2vec,
}


def untrained(config: PretrainConfig) -> PretrainConfig:
    """Initial weights: one epoch at a rate too small to change them, which gives BatchNorm its statistics."""
    fixed = replace(random_teacher(config), optim=replace(config.optim, lr=1e-12, base_lr=0.0, min_lr=0.0, weight_decay=0.0))
    return replace(fixed, run=replace(config.run, epochs=1))


CONTROLS: dict[str, Side] = {**CLAIM, "untrained": untrained}


def masks(config: PretrainConfig, repeats: int, wider: float = 1.0) -> PretrainConfig:
    """The given number of masks per clip; they choose from `wider` times the frames that one keeps."""
    kept, _ = mask_counts(config.data.num_frames, config.mask.video_ratio, config.mask.skeleton_ratio)
    encoded = 0 if wider == 1 else min(round(wider * kept), config.data.num_frames)
    return replace(config, mask=replace(config.mask, repeats=repeats, encoded_frames=encoded))


def at_equal_work(side: Side, config: PretrainConfig) -> PretrainConfig:
    return equal_work(side(config), config)


REPEATED: dict[str, Side] = {f"masks_{repeats}": partial(masks, repeats=repeats) for repeats in (1, 2, 4, 8)}
REPEATED["masks_4_wider"] = partial(masks, repeats=4, wider=20 / 13)  # as 20 of the paper's 40 frames
MASKS: dict[str, Side] = {
    **REPEATED, **{f"{name}_work": partial(at_equal_work, side) for name, side in REPEATED.items() if name != "masks_1"},
}


def other_precision(config: PretrainConfig) -> PretrainConfig:
    bf16 = asks_for_bf16(config.run, pick_device(config.run.device))
    return replace(config, run=replace(config.run, precision="fp32" if bf16 else "bf16"))


CHOICES: dict[str, Side] = {
    "pretrained": as_it_is,
    "ema_original": lambda config: replace(config, ema=replace(config.ema, schedule="original")),
    "all_frames": lambda config: replace(config, encode="all_frames"),
    "other_precision": other_precision,
}


def with_motion(config: PretrainConfig, factor: float) -> PretrainConfig:
    return replace(config, model=replace(config.model, joint_motion=factor))


MOTION: dict[str, Side] = {
    "pretrained": partial(with_motion, factor=2.0), "positions_alone": partial(with_motion, factor=0.0),
}


@dataclass(frozen=True)
class SmallCnnRow:
    """A small network for such clips, from scratch on RGB: the same labels, frames, steps, clips per step and grid.

    It has its own colour augmentation, regardless of that of the other rows; steps are not rounded up to whole epochs.
    """

    study: LabelEfficiencyConfig
    name: str = "small_cnn"
    title: str = "small CNN, from scratch"
    kind: Kind = "rival"
    grid: tuple[str, ...] = ("lr", "steps")

    def settings(self) -> dict[str, Any]:
        study = self.study
        accumulate = resolve(study.optim, study.run.batch_size, study.run.epochs).accumulate
        about = {"steps": study.steps, "batch_size": study.run.batch_size, "accumulate": accumulate, "epochs": study.run.epochs}
        data = data_settings(replace(study.data, augment=AugmentConfig()))
        return {"data": data, **about, "persons": study.model.persons}

    def varies(self, fraction: float) -> bool:
        return True

    def before(self, cells: Sequence[Cell]) -> list[Callable[[], Any]]:
        return []

    def run(self, cell: Cell, folder: Path) -> Outcome:
        base, chosen = self.study.classifier(), dict(cell.choice)
        other = FinetuneRow(self.name, self.title, self.kind, base, self.study.steps)
        like, (_, labels) = other.config(cell, folder), other.clips(cell)
        batch, accumulate = like.run.batch_size, like.optim.accumulate
        return small_cnn.run(
            replace(base, run=replace(base.run, seed=cell.seed, batch_size=batch * accumulate), label_fraction=cell.fraction),
            lr=chosen.get("lr", small_cnn.LR), validate=cell.validate,
            steps=int(chosen.get("steps", self.study.steps)) or like.run.epochs * (labels // batch) // accumulate,
        )


def rivals(study: LabelEfficiencyConfig) -> list[Row]:
    """Rows of the claim that are not networks of this project."""
    return [SmallCnnRow(study)]


PROBED: tuple[Way, ...] = ("finetune", "linear", "attentive")
EXPERIMENTS = {
    "claim": Experiment(CLAIM, ("scratch", "scratch_total", *PROBED, "skeleton"), FRACTIONS, 5, "label_efficiency"),
    "controls": Experiment(CONTROLS, ("linear", "attentive"), (0.01, 0.1, 1.0), 3, "controls"),
    "masks": Experiment(MASKS, PROBED, (0.1, 1.0), 5, "masks"),
    "choices": Experiment(CHOICES, PROBED, (0.1, 1.0), 6, "choices"),
    "motion": Experiment(MOTION, ("linear", "attentive"), (0.01, 0.1, 1.0), 3, "motion"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__, [*EXPERIMENTS]).parse_args(arguments)
    more_rows = rivals if options.experiment == "claim" else lambda _: []
    return reported(lambda: "\n".join([*lines(run_experiment(EXPERIMENTS[options.experiment], options, more_rows)), ""]))


if __name__ == "__main__":
    sys.exit(main())
