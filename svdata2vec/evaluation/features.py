"""Features of a frozen encoder: one vector per clip, the mean over time of the encoder's output.

n clips, D token width
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from svdata2vec.config.files import from_dict
from svdata2vec.config.schema import DataConfig, Device, Modality, ModelConfig, RunConfig
from svdata2vec.model.student import Encoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.data import build_loader, open_data, require_joints, to_device
from svdata2vec.runs.published import load_encoder, load_published
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError


@dataclass(frozen=True)
class Features:
    """Clips of a split in the split's order: names, float32 features (n, D), labels (n,)."""

    keys: list[str]
    features_nD: np.ndarray
    labels_n: np.ndarray


@dataclass(frozen=True)
class TrainedEncoder:
    """The encoder of a finished run, and how its input was prepared."""

    encoder: Encoder
    model: ModelConfig
    data: DataConfig
    card: dict[str, Any]
    modality: Modality


def open_encoder(run: Path, modality: Modality | None = None) -> TrainedEncoder:
    """The encoder of a finished run (pretrain, finetune or probe), in evaluation mode.

    Args:
        run: its folder.
        modality: what the encoder shall see; default: "rgb" after pretraining, else what the classifier sees.
    """
    _, card = load_published(run)
    model = from_dict(ModelConfig, card["config"]["model"], f"{run}/model.json: model")
    data = from_dict(DataConfig, card["config"]["data"], f"{run}/model.json: data")
    seen: Modality = modality or card["config"].get("modality", "rgb")
    if seen != "rgb" and not card["num_joints"]:
        raise UserError(f"{run} has no skeleton embedding; take modality rgb")
    encoder = Encoder(model, data.num_frames, card["num_joints"], modality=seen)
    load_encoder(encoder, run)
    return TrainedEncoder(encoder.eval(), model, data, card, seen)


@torch.no_grad()
def extract(encoder: Encoder, loader: ClipLoader, runtime: Runtime) -> Features:
    """Features of every clip of the loader's split, in evaluation mode; all processes get the whole."""
    encoder.eval()
    mine: list[tuple[str, np.ndarray, int]] = []
    for batch in loader:
        video_BTHWC, joints_BMTVC, _ = to_device(batch, runtime.device)
        with runtime.autocast():
            features_BTD = encoder(video_BTHWC, joints_BMTVC)
        pooled_BD = features_BTD.float().mean(dim=1).cpu().numpy()
        mine.extend(zip(batch.keys, pooled_BD, batch.label_B.tolist(), strict=True))
    parts: list[list[tuple[str, np.ndarray, int]]] = [mine]
    if runtime.world_size > 1:
        parts = [[] for _ in range(runtime.world_size)]
        dist.all_gather_object(parts, mine)
    found = {key: (feature, label) for part in parts for key, feature, label in part}
    order = [key.decode() for key in loader.shards.index["key"][loader.order.rows].tolist()]
    keys = [key for key in order if key in found]
    if not keys:
        raise UserError(f"split {loader.split} has no clip to take features of")
    features_nD = np.stack([found[key][0] for key in keys])
    return Features(keys, features_nD, np.array([found[key][1] for key in keys], np.int64))


def embed(
    run: Path,
    split: str,
    out: Path,
    *,
    shards: str | None = None,
    modality: Modality | None = None,
    batch_size: int = 32,
    device: Device = "auto",
) -> Features:
    """Write the features of a split to `out`: .npy (with clip names and labels beside it, in OUT.json) or .parquet.

    Args:
        run: folder of a finished run.
        split: clips to take.
        out: file to write; its ending says how.
        shards: folder of shards; default: the run's own.
        modality: see `open_encoder`.
        batch_size: clips at a time.
        device: "auto", "cpu" or "cuda".
    """
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"{out}: expected a file name that ends in .npy or .parquet")
    if out.suffix == ".parquet":
        _require_pyarrow(out)
    trained = open_encoder(run, modality)
    data = replace(trained.data, shards=shards or trained.data.shards, test_split=split)
    settings = RunConfig(batch_size=batch_size, device=device)
    packed = open_data(data)
    require_joints(packed, run, trained.card["num_joints"], trained.modality)
    with running(settings) as runtime:
        encoder = trained.encoder.to(runtime.device)
        persons = trained.model.persons
        with build_loader(packed, data, settings, runtime, persons, train=False, modality=trained.modality) as loader:
            features = extract(encoder, loader, runtime)
        if runtime.is_main:
            write_features(out, features, packed.split_classes(split))
    return features


def write_features(out: Path, features: Features, classes: Sequence[str]) -> None:
    """Write features with their clips' names, labels and classes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        pyarrow, parquet = _require_pyarrow(out)
        rows = pyarrow.array(list(features.features_nD), pyarrow.list_(pyarrow.float32(), features.features_nD.shape[1]))
        names = [classes[label] for label in features.labels_n]
        columns = {"key": features.keys, "label": features.labels_n, "class": names, "feature": rows}
        parquet.write_table(pyarrow.table(columns), out)
        return
    with out.open("wb") as file:
        np.save(file, features.features_nD.astype(np.float32, copy=False))
    index = {"keys": features.keys, "labels": features.labels_n.tolist(), "classes": list(classes)}
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps(index, indent=1).encode())


def _require_pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{out}: writing Parquet needs pyarrow: pip install svdata2vec[parquet]; or write .npy") from None
    return pyarrow, parquet
