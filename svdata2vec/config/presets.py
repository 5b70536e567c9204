"""Named runs: a preset is a function that returns a full configuration; a variant calls another and changes a few fields."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from svdata2vec.config.schema import (
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from svdata2vec.pipeline.augment import AugmentConfig

# Data sets with one of their splits: folder of the shards, splits to train and test on (as `DataConfig` begins), a description.
PROTOCOLS = {
    "ntu60-xsub": ("data/ntu60", "xsub_train", "xsub_val", "NTU RGB+D 60, cross-subject (40,091 / 16,487 clips)"),
    "ntu60-xview": ("data/ntu60", "xview_train", "xview_val", "NTU RGB+D 60, cross-view (37,646 / 18,932 clips)"),
    "ntu120-xsub": ("data/ntu120", "xsub_train", "xsub_val", "NTU RGB+D 120, cross-subject (63,026 / 50,919 clips)"),
    "ntu120-xset": ("data/ntu120", "xset_train", "xset_val", "NTU RGB+D 120, cross-setup (54,468 / 59,477 clips)"),
    "smarthome-cs": ("data/smarthome", "cs_train", "cs_test", "Toyota Smarthome, cross-subject (31 classes)"),
    "smarthome-cv1": ("data/smarthome", "cv1_train", "cv1_test", "Toyota Smarthome, cross-view 1 (19 classes)"),
    "smarthome-cv2": ("data/smarthome", "cv2_train", "cv2_test", "Toyota Smarthome, cross-view 2 (19 classes)"),
    "uav-human-csv1": ("data/uav-human", "csv1_train", "csv1_test", "UAV-Human, cross-subject 1 (155 classes)"),
    "uav-human-csv2": ("data/uav-human", "csv2_train", "csv2_test", "UAV-Human, cross-subject 2 (155 classes)"),
    "pku-mmd-xsub": ("data/pku-mmd", "xsub_train", "xsub_val", "PKU-MMD, cross-subject (51 classes)"),
    "pku-mmd-xview": ("data/pku-mmd", "xview_train", "xview_val", "PKU-MMD, cross-view (51 classes)"),
}

Published = TypeVar("Published", PretrainConfig, FinetuneConfig)


def _data(name: str) -> DataConfig:
    """Toyota Smarthome is reported as the mean over its classes, some of which have a hundred times the clips of others."""
    return DataConfig(*PROTOCOLS[name][:3], metric="mean_class" if name.startswith("smarthome") else "top1")


def _pretrain(name: str) -> PretrainConfig:
    return PretrainConfig(data=_data(name), run=RunConfig(out=Path("runs") / f"pretrain-{name}"))


def _finetune(name: str) -> FinetuneConfig:
    data = replace(_data(name), crop="boxes")  # RGB alone: no joints to crop around
    run = RunConfig(out=Path("runs") / f"finetune-{name}", epochs=100)
    return FinetuneConfig(data=data, run=run, optim=replace(FinetuneConfig().optim, accumulate=0))  # as on their two GPUs


def as_published_pretrain() -> PretrainConfig:
    """NTU RGB+D 60, cross-subject, as in the authors' files for their four GPUs."""
    base = _as_published(_pretrain("ntu60-xsub"))
    return replace(base, encode="all_frames", ema=replace(base.ema, schedule="original"))


def as_published_finetune() -> FinetuneConfig:
    """Fine-tuning on RGB alone, as in the authors' files for their two GPUs."""
    return _as_published(_finetune("ntu60-xsub"))


def _as_published(base: Published) -> Published:
    """As the authors train: float32, all joints, their frames in evaluations, 32 clips per GPU, 32 per step on any number of
    GPUs."""
    return replace(
        base,
        data=replace(base.data, crop_scores=(0.0, 0.0), frame_draw="original"),
        optim=replace(base.optim, accumulate=0),
        run=replace(base.run, out=Path("runs") / f"{base.kind}-as-published", batch_size=32, precision="fp32"),
    )


DEMO_DATA = DataConfig("demo/shards", "xsub_train", "xsub_test", num_frames=16, size=64)
SMALL_MODEL = ModelConfig(width=128, depth=4, decoder_depth=2, heads=4, stem_width=32)
DEMO_MODEL = replace(SMALL_MODEL, stem_width=16, stem_init="change")  # synthetic clips: a camera that hardly moves
COLOURS = AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.5)  # clothes are unrelated to its classes


def demo_pretrain() -> PretrainConfig:
    """A small network on the synthetic motion data set, with targets that include motion: minutes on two CPU cores."""
    base = PretrainConfig()
    return replace(
        base,
        data=DEMO_DATA,
        model=replace(DEMO_MODEL, joint_motion=2.0),
        target=replace(base.target, top_layers=4),
        ema=replace(base.ema, start=0.99, end=0.999, anneal_share=0.2),
        optim=OptimConfig(lr=1e-3, lr_batch=16, min_lr=1e-4, warmup_epochs=2),
        run=RunConfig(out=Path("demo/pretrain"), epochs=20, batch_size=16, log_every=20, checkpoint_every=200),
    )


def demo_finetune() -> FinetuneConfig:
    """The demo's classifier: RGB alone, few labels, each clip's colours changed."""
    base = FinetuneConfig()
    return replace(
        base,
        data=replace(DEMO_DATA, crop="boxes", augment=COLOURS),
        model=DEMO_MODEL,
        head=HeadConfig(hidden=256, drop_path=0.0),
        optim=replace(base.optim, lr=1e-3, lr_batch=16, warmup_share=0.1),
        run=RunConfig(out=Path("demo/finetune"), epochs=120, batch_size=16, log_every=10, checkpoint_every=200),
        label_fraction=0.1,
    )


OWN_DATA = DataConfig("data/mine", "train[:80%]", "train[80%:]", num_frames=16, size=128, frame_draw="centre")
PAPER_FROM_CLIPS = 2000  # training clips from which on the preset `own` takes the paper's network and picture size


def own_pretrain() -> PretrainConfig:
    """Own videos with skeletons; `runs/own_preset.py` fits it to the shards."""
    base = demo_pretrain()
    run = replace(base.run, out=Path("runs/pretrain-own"), log_every=10)
    ema, optim = replace(base.ema, anneal_share=0.5), _in_shares(base.optim)
    return replace(base, data=OWN_DATA, model=SMALL_MODEL, ema=ema, optim=optim, run=run)


def own_finetune() -> FinetuneConfig:
    """Own videos, RGB alone; `runs/own_preset.py` fits it to the shards."""
    base = demo_finetune()
    run = replace(base.run, out=Path("runs/finetune-own"))
    data, head = replace(OWN_DATA, crop="boxes"), replace(base.head, drop_path=0.1)
    return replace(base, data=data, model=SMALL_MODEL, head=head, optim=_in_shares(base.optim), run=run, label_fraction=1.0)


def _in_shares(optim: OptimConfig) -> OptimConfig:
    """Warm-up and final rate as shares, for runs of any length; a rate for batches of any size."""
    return replace(optim, lr_batch=0, warmup_share=0.1, min_lr_share=0.05)


PRETRAIN: dict[str, Callable[[], PretrainConfig]] = {
    **{name: partial(_pretrain, name) for name in PROTOCOLS},
    "as-published": as_published_pretrain,
    "own": own_pretrain,
    "demo": demo_pretrain,
}
FINETUNE: dict[str, Callable[[], FinetuneConfig]] = {
    **{name: partial(_finetune, name) for name in PROTOCOLS},
    "as-published": as_published_finetune,
    "own": own_finetune,
    "demo": demo_finetune,
}


def describe(name: str) -> str:
    """One line about a preset, for `--help`."""
    others = {
        "as-published": "NTU RGB+D 60, cross-subject, with every setting of the authors' files",
        "own": "your own videos: splits, frames, batch, epochs and network fit the shards",
        "demo": "synthetic motion clips, small network, for a CPU",
    }
    return PROTOCOLS[name][3] if name in PROTOCOLS else others[name]
