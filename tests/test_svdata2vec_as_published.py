"""The preset `as-published`: the numbers of the authors' files, and the table of its differences from the default."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from tiny import pretrain_config

from svdata2vec.config.files import to_values
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.schema import EmaConfig
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.training.optim import resolve
from svdata2vec.training.pretrain import pretrain

README = ROOT / "svdata2vec" / "README.md"

# What the authors' yaml, scripts and defaults say; pretraining on 4 GPUs, fine-tuning on 2, each with 32 clips.
DATA = {
    "train_split": "xsub_train", "test_split": "xsub_val", "num_frames": 40, "size": 224, "crop_scores": [0, 0],
    "frame_draw": "original", "views": 1, "metric": "top1",
}
MODEL = {
    "width": 256, "depth": 8, "decoder_depth": 3, "heads": 8, "mlp_ratio": 4, "stem_width": 64, "persons": 2, "coordinates": 2,
}
THEIRS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data": {**DATA, "crop": "joints"},
        "model": MODEL,
        "mask": {"video_ratio": 0.66, "skeleton_ratio": 0.75, "repeats": 1, "encoded_frames": 0},
        "target": {
            "top_layers": 8, "normalise_layer": "instance", "normalise_average": "none", "feed_forward": False,
            "teacher_input": "skeleton",
        },
        "ema": {"start": 0.999, "end": 0.99999, "anneal_steps": 50_000, "anneal_share": 0, "schedule": "original"},
        "optim": {
            "lr": 1e-3, "min_lr": 5e-4, "warmup_epochs": 20, "betas": [0.9, 0.95], "weight_decay": 0.05, "clip_grad": 0,
            "accumulate": 0, "base_lr": 0, "lr_batch": 128, "min_lr_share": 0, "warmup_share": 0,
        },
        "run": {"epochs": 400, "batch_size": 32, "precision": "fp32", "sync_batchnorm": False},
        "encode": "all_frames",
    },
    "finetune": {
        "data": {**DATA, "crop": "boxes"},
        "model": MODEL,
        "head": {
            "hidden": 2048, "dropout": 0.3, "drop_path": 0.3, "label_smoothing": 0.1, "layer_decay": 0.8, "mixup": 0,
        },
        "optim": {
            "lr": 3e-4, "min_lr": 1e-5, "warmup_epochs": 5, "betas": [0.9, 0.999], "weight_decay": 0.05, "clip_grad": 0,
            "accumulate": 0, "base_lr": 0, "lr_batch": 64, "min_lr_share": 0, "warmup_share": 0,
        },
        "run": {"epochs": 100, "batch_size": 32, "precision": "fp32", "sync_batchnorm": False},
        "modality": "rgb", "label_fraction": 1, "eval_every": 0,
    },
}
PRESETS: dict[str, Any] = {"pretrain": PRETRAIN, "finetune": FINETUNE}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def settings(kind: str, preset: str) -> dict[str, Any]:
    return dict(flat(to_values(PRESETS[kind][preset]())))


@pytest.mark.parametrize("kind", THEIRS)
def test_the_preset_has_the_authors_values(kind: str) -> None:
    found, theirs = settings(kind, "as-published"), dict(flat(THEIRS[kind]))
    assert {name: found[name] for name in theirs} == theirs
    assert PRESETS[kind]["as-published"]().data.augment == AugmentConfig()
    optim, their_gpus = PRESETS[kind]["as-published"]().optim, {"pretrain": 4, "finetune": 2}[kind]
    for gpus in (1, 2, their_gpus):
        assert gpus * resolve(optim, gpus * 32, found["run.epochs"]).accumulate == their_gpus


@pytest.mark.parametrize("kind", THEIRS)
def test_the_readme_names_what_differs_from_the_default(kind: str) -> None:
    default, theirs = settings(kind, "ntu60-xsub"), settings(kind, "as-published")
    differing = {
        f"--{name.replace('_', '-')}": (default[name], theirs[name])
        for name in theirs if default[name] != theirs[name] and name != "run.out"
    }
    text = README.read_text().split("## As published")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(--[\w.-]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    named = {name: (before, after) for name, when, before, after in rows if when in (kind, "both")}
    assert named == {name: tuple(map(shown, values)) for name, values in differing.items()}


def shown(value: Any) -> str:
    """As an option takes it."""
    return " ".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value)


def test_the_teacher_follows_the_very_first_step(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Of a run of three steps per epoch: all but the first of the later epochs."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=3)
    pretrain(replace(config, ema=EmaConfig(0.9, 1.0, anneal_steps=10, schedule="original")))
    decays = [record["ema_decay"] for record in read_metrics(tmp_path / "run")]
    assert decays == pytest.approx([0.9, 0.91, 0.92, 1.0, 0.91, 0.92, 1.0, 0.91, 0.92])
