"""Small studies: shards with three splits, and the settings of one row of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from shards_data import edit_manifest
from tiny import MODEL, NUM_CLIPS, data_config, tiny_shards

from svdata2vec.config.label_efficiency import LabelEfficiencyConfig
from svdata2vec.config.probe import AttentiveConfig
from svdata2vec.config.schema import HeadConfig, OptimConfig, RunConfig


def split_shards(folder: Path) -> Path:
    """Splits t_train, t_val and t_test of six, two and four clips, in which all have the five classes of the set."""
    root = tiny_shards(folder / "shards")
    keys = [f"clip{i:05d}" for i in range(NUM_CLIPS)]
    edit_manifest(root, splits={"t_train": keys[:6], "t_val": keys[6:8], "t_test": keys[8:]})
    return root


def small_study(shards: Path, out: Path, **changes: Any) -> LabelEfficiencyConfig:
    data = replace(data_config(shards), train_split="t_train", test_split="t_test")
    base = LabelEfficiencyConfig(
        data=data, model=MODEL, head=HeadConfig(hidden=16), optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup_epochs=1),
        run=RunConfig(out, epochs=2, batch_size=4, device="cpu", precision="fp32", log_every=1),
        fractions=(0.5, 1.0), seeds=2, steps=3, attentive=AttentiveConfig(steps=3), ways=("scratch",),
    )
    return replace(base, **changes)
