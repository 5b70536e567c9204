"""Every number of a training's settings at both ends of its range, in real runs: finite weights, or one line."""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pytest
from safetensors.torch import load_file
from tiny import finetune_config, pretrain_config

from svdata2vec.config.schema import DataConfig, FinetuneConfig, OptimConfig, PretrainConfig
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

Config = TypeVar("Config", bound=PretrainConfig | FinetuneConfig)

# In place of an end: what the data or other settings at this end exclude, and what would take gigabytes or minutes.
LOW = {
    "model.coordinates": 2, "model.mlp_ratio": 1.0, "mask.skeleton_ratio": 0.5, "run.batch_size": 2,
    "data.val_fraction": DataConfig.val_fraction,  # nothing is validated
}
HIGH = {
    "data.num_frames": 16, "data.size": 64, "data.threads": 3, "data.readers": 1, "data.prefetch": 20, "data.views": 3,
    "model.width": 32, "model.heads": 32, "model.depth": 4, "model.decoder_depth": 4, "model.stem_width": 32,
    "model.coordinates": 2, "mask.video_ratio": 0.9, "mask.encoded_frames": 16, "mask.repeats": 3, "target.top_layers": 4,
    "run.epochs": 2, "run.batch_size": 4, "optim.accumulate": 2, "optim.min_lr": 1000.0, "optim.warmup_share": 0.2,
}


def ends(hint: Any, declared: Range | None = None) -> tuple[Any, Any] | None:
    """The smallest and the largest value that a field's annotation declares; None for what is no number."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return ends(parts[0], next((mark for mark in parts[1:] if isinstance(mark, Range)), declared))
    if typing.get_origin(hint) is tuple:
        found = [ends(part, declared) for part in parts]
        return None if None in found else typing.cast("tuple[Any, Any]", tuple(zip(*found, strict=True)))  # type: ignore[arg-type]
    if hint in (int, float):
        assert declared is not None
        return hint(declared.low), hint(declared.high)
    return next((found for found in (ends(part, declared) for part in parts) if found is not None), None)


def at_end(config: Any, end: int, instead: dict[str, Any], prefix: str = "") -> Any:
    """The configuration with every number at the low (0) or high (1) end of its range."""
    changes = {}
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        found = ends(hints[field.name])
        if dataclasses.is_dataclass(value):
            changes[field.name] = at_end(value, end, instead, f"{name}.")
        elif found is not None:
            changes[field.name] = instead.get(name, found[end])
    return dataclasses.replace(config, **changes)


def finite_weights(out: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in load_file(out / "model.safetensors").values())


@pytest.mark.parametrize(("make", "run"), [(pretrain_config, pretrain), (finetune_config, finetune)])
def test_every_number_at_the_low_end(
    make: Callable[..., Any], run: Callable[[Any], Any], tiny_shard_folder: Path, tmp_path: Path
) -> None:
    config = at_end(make(tiny_shard_folder, tmp_path / "run"), 0, LOW)
    assert (config.data.num_frames, config.model.width, config.optim.lr) == (1, 1, 1e-15)
    run(config)
    assert finite_weights(tmp_path / "run")


@pytest.mark.parametrize(("make", "run", "instead"), [
    (pretrain_config, pretrain, {"data.val_fraction": DataConfig.val_fraction}),  # it validates nothing
    (finetune_config, finetune, {}),
])
def test_every_number_at_the_high_end(
    make: Callable[..., Any], run: Callable[[Any], Any], instead: dict[str, Any], tiny_shard_folder: Path, tmp_path: Path
) -> None:
    """Its rates lead nowhere; what is published is finite nevertheless, or else nothing is."""
    config = at_end(make(tiny_shard_folder, tmp_path / "run"), 1, HIGH | instead)
    assert config.optim.lr == config.optim.weight_decay == 1000
    try:
        run(config)
    except RunFailedError as error:
        assert "\n" not in str(error) and "not finite" in str(error)
        assert not (tmp_path / "run" / "model.safetensors").exists()
    else:
        assert finite_weights(tmp_path / "run")


def test_weights_that_overflow_are_not_published(tiny_shard_folder: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=1000.0, weight_decay=1000.0, warmup_epochs=0)
    with pytest.raises(RunFailedError, match="not finite"):
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, epochs=8))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(("repeated", "fits"), [({"encode": "kept_frames"}, False), ({"encode": "all_frames"}, True)])
def test_batch_norm_needs_two_values(repeated: dict[str, Any], fits: bool, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """One clip per batch is fine where more than one place of a frame, or more than one frame, is encoded."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", batch_size=1, epochs=1)
    change = {"mask": dataclasses.replace(config.mask, video_ratio=0.8), **repeated}
    if fits:
        pretrain(dataclasses.replace(config, **change))
    else:
        with pytest.raises(UserError, match=r"run\.batch_size is 1"):
            dataclasses.replace(config, **change)
