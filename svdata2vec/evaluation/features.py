"""Features of a frozen encoder: one vector per clip, the mean over time of the encoder's output.

n clips of a split, D token width; B clips of a batch, M persons, T frames, V joints, C coordinates, H W picture, S its side
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from svdata2vec.config.schema import Device, FinetuneConfig, Modality, PretrainConfig, RunConfig
from svdata2vec.evaluation.evaluate import over_split
from svdata2vec.evaluation.persons import Box, find_persons
from svdata2vec.evaluation.video_clip import read_clip
from svdata2vec.model.student import Encoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import build_loader, open_data, require_joints, warn_of_view
from svdata2vec.runs.published import load_encoder_weights, published_config
from svdata2vec.runs.runtime import Runtime, pick_device, running
from svdata2vec.shards.atomic import atomic_file, write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import check_known


@dataclass(frozen=True)
class Features:
    """Clips of a split in the split's order: names, float32 features (n, D), labels (n,); names of those that are unusable."""

    keys: list[str]
    features_nD: np.ndarray
    labels_n: np.ndarray
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainedEncoder:
    """The encoder of a finished run in evaluation mode, and how its input is prepared.

    Attributes:
        encoder: the network, on the device that it was loaded to.
        config: the run's settings; `config.data` and `config.model` say what it reads. After pretraining an encoder that
            sees RGB alone gets crops around the stored boxes, as fine-tuning and probes do.
        card: the run's `model.json`.
        modality: what the encoder sees: "rgb", "skeleton" or "both".
    """

    encoder: Encoder
    config: PretrainConfig | FinetuneConfig
    card: dict[str, Any]
    modality: Modality

    @property
    def plan(self) -> PlanConfig:
        """How a `ClipLoader` prepares clips for this encoder."""
        return self.config.data.plan(self.config.model.persons)

    @torch.no_grad()
    def features(self, video_BTHWC: Tensor | None = None, joints_BMTVC: Tensor | None = None) -> Tensor:
        """Features (B, D) in float32 on the encoder's device: the mean over time of what the encoder gives.

        Args:
            video_BTHWC: uint8 RGB crops; not read by an encoder that sees skeletons only.
            joints_BMTVC: float32, pixels of the crop, zero = missing; not read by an encoder that sees RGB only.
        """
        device = self.encoder.temporal_embed.device
        seen = (video_BTHWC if self.modality != "skeleton" else None, joints_BMTVC if self.modality != "rgb" else None)
        if [x is not None for x in seen] != [self.modality != "skeleton", self.modality != "rgb"]:
            raise ValueError(f"this encoder sees {self.modality}; give it video_BTHWC, joints_BMTVC, or both, accordingly")
        features_BTD = self.encoder(*(None if x is None else x.to(device, non_blocking=True) for x in seen))
        return features_BTD.float().mean(dim=1)

    def video_features(self, video: str | Path, box: Box | None = None) -> Tensor:
        """Features (D,) of a video file, prepared as evaluation prepares packed clips (for an encoder that sees RGB).

        Args:
            video: any file that FFmpeg decodes.
            box: around the persons: (x1, y1, x2, y2) in pixels of the upright picture; None = the whole picture.

        Raises UserError for a file that is no video, and for a box that is empty or outside the picture.
        """
        persons = find_persons(Path(video), box, None, whole_picture=box is None)
        frames_TSS3 = read_clip(Path(video), self.config.data, persons.box, self.card).frames_TSS3
        return self.features(torch.from_numpy(frames_TSS3)[None])[0]


def load_encoder(run: str | Path, modality: Modality | None = None, device: Device = "auto") -> TrainedEncoder:
    """The encoder of a finished run (pretrain, finetune or probe), in evaluation mode.

    Args:
        run: its folder.
        modality: what the encoder sees; default: "rgb" after pretraining, else what the classifier sees.
        device: where it runs: "auto" (the GPU if there is one), "cpu" or "cuda".

    Raises:
        UserError: no finished run, or one without what the modality needs; an unknown modality or device; no GPU.
    """
    run, where = Path(run), pick_device(device)
    card = read_card(run)
    config = published_config(card, run)
    seen: Modality = modality or ("rgb" if isinstance(config, PretrainConfig) else config.modality)
    check_known("modality", seen, get_args(Modality))
    if seen != "rgb" and not card["num_joints"]:
        raise UserError(f"{run} has no skeleton embedding; take modality rgb")
    if isinstance(config, PretrainConfig) and seen == "rgb":
        config = replace(config, data=replace(config.data, crop="boxes"))  # no joints to crop around, as in fine-tuning
    encoder = Encoder(config.model, config.data.num_frames, card["num_joints"], modality=seen)
    load_encoder_weights(encoder, run)
    return TrainedEncoder(encoder.eval().to(where), config, card, seen)


def extract(trained: TrainedEncoder, loader: ClipLoader, runtime: Runtime) -> Features:
    """Features of every clip of the loader's split; all processes get the whole."""
    found, features_nD, labels_n = over_split(
        loader, runtime, lambda batch: trained.features(batch.video_BTHWC, batch.joints_BMTVC)
    )
    place = {key: number for number, key in enumerate(found)}
    split = [key.decode() for key in loader.shards.index["key"][loader.order.rows].tolist()]
    order_n = [place[key] for key in split if key in place]
    lost = tuple(key for key in split if key not in place)
    return Features([found[number] for number in order_n], features_nD[order_n], labels_n[order_n], lost)


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
    """Write the features of a split to `out`; arguments as the options of `svdata2vec embed`."""
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"{out}: expected a file name that ends in .npy or .parquet")
    if out.suffix == ".parquet":
        _require_pyarrow(out)
    trained = load_encoder(run, modality, device)
    data = replace(trained.config.data, shards=shards or trained.config.data.shards, test_split=split)
    config = replace(trained.config, data=data, run=RunConfig(batch_size=batch_size, device=device))
    packed = open_data(data)
    require_joints(packed, run, trained.card["num_joints"], trained.modality, split)
    warn_of_view(packed, split, trained.card)
    with running(config.run) as runtime:
        with build_loader(packed, config, runtime, train=False, modality=trained.modality) as loader:
            features = extract(trained, loader, runtime)
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
        with atomic_file(out) as file:
            parquet.write_table(pyarrow.table(columns), file)
        return
    np.save(buffer := io.BytesIO(), features.features_nD.astype(np.float32, copy=False))  # NumPy hides why a file fails
    write_atomically(out, buffer.getvalue())
    index = {"keys": features.keys, "labels": features.labels_n.tolist(), "classes": list(classes), "lost": features.lost}
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps(index, indent=1).encode())


def _require_pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{out}: writing Parquet needs pyarrow: pip install 'svdata2vec[parquet]'; or write .npy") from None
    return pyarrow, parquet
