"""Small shards and configurations for the tests of training: seconds on one core, every part of a run real."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_factory import shard_set
from safetensors.torch import load_file

from svdata2vec.config.schema import (
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    TargetConfig,
)

NUM_CLIPS = 12
MODEL = ModelConfig(width=32, depth=2, decoder_depth=1, heads=2, stem_width=16)


def tiny_shards(root: Path) -> Path:
    """Twelve clips of five classes in a split "all"."""
    shard_set(root, NUM_CLIPS, num_frames=lambda i: 10 + i % 3, size=64)
    return root


def data_config(shards: Path) -> DataConfig:
    return DataConfig(str(shards), "all", "all", num_frames=6, size=32, threads=1, prefetch=1)


def run_config(out: Path, **changes: Any) -> RunConfig:
    base = RunConfig(out, epochs=2, batch_size=4, device="cpu", precision="fp32", log_every=1, checkpoint_every=2)
    return dataclasses.replace(base, **changes)


def pretrain_config(shards: Path, out: Path, *, optim: OptimConfig | None = None, **run: Any) -> PretrainConfig:
    return PretrainConfig(
        data=data_config(shards),
        model=MODEL,
        target=TargetConfig(top_layers=2),
        optim=optim or OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1),
        run=run_config(out, **run),
    )


def student_config(model: ModelConfig = MODEL, **changes: Any) -> PretrainConfig:
    """Settings of a student that is made without a run."""
    data = DataConfig(num_frames=6, size=32)
    return dataclasses.replace(PretrainConfig(data=data, model=model, target=TargetConfig(top_layers=2)), **changes)


def finetune_config(shards: Path, out: Path, *, pretrained: Path | None = None, **run: Any) -> FinetuneConfig:
    return FinetuneConfig(
        data=data_config(shards),
        model=MODEL,
        head=HeadConfig(hidden=16, drop_path=0.2),
        run=run_config(out, **run),
        pretrained=pretrained,
    )


def assert_same_weights(a: Path, b: Path) -> None:
    """Two folders of finished runs: the same tensors, bit for bit."""
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_after(kind: Any, number: int | None, monkeypatch: pytest.MonkeyPatch, *, bad: bool = False) -> None:
    """Ask runs to stop after this step (None: never); `bad`: no gradient of theirs is finite."""
    step = kind.step

    def stopping(run: Any, batches: Any) -> None:
        if bad:
            run.stepper.backward = lambda loss, clips: (loss * float("nan")).backward()
        step(run, batches)
        if run.stepper.step == number:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kind, "step", stopping)
