"""Features of a frozen encoder: one vector per clip, the mean over time of the encoder's output.

n clips of a split, D token width; B clips of a batch, M persons, T frames, V joints, C coordinates, H W picture, S its side
"""

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
from svdata2vec.evaluation.persons import find_persons
from svdata2vec.evaluation.span import Span
from svdata2vec.evaluation.video_clip import read_clip
from svdata2vec.model.student import Encoder
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.video import Video
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import build_loader, open_data, require_joints, require_own_shards, warn_of_view
from svdata2vec.runs.published import input_settings, load_encoder_weights, published_config
from svdata2vec.runs.runtime import Runtime, pick_device, running
from svdata2vec.shards.atomic import atomic_file, beside, make_folder, npy_bytes, require_writable, write_atomically
from svdata2vec.shards.boxes import Box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import check_known
from svdata2vec.shards.reading.manifest import INDEX_NAME, MANIFEST_NAME, SUMS_NAME


@dataclass(frozen=True)
class Features:
    """Clips of a split in the split's order.

    Attributes:
        keys: their names.
        features_nD: float32, the mean over time (and over views).
        labels_n: int64.
        lost: names of those that are unusable.
        tokens_nvTD: float32, the tokens that are averaged, of v views of a clip; None unless asked for.
    """

    keys: list[str]
    features_nD: np.ndarray
    labels_n: np.ndarray
    lost: tuple[str, ...] = ()
    tokens_nvTD: np.ndarray | None = None


@dataclass(frozen=True)
class TrainedEncoder:
    """The encoder of a finished run in evaluation mode, and how its input is prepared.

    Attributes:
        encoder: the network, on the device that it was loaded to.
        config: the run's settings; `config.data` and `config.model` say what it reads. An encoder that was trained with
            skeletons and sees RGB alone gets crops around the stored boxes, as fine-tuning and probes do (`input_settings`).
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
    def features(self, video_BTHWC: Video | None = None, joints_BMTVC: Tensor | None = None) -> Tensor:
        """Features (B, D) in float32 on the encoder's device: the mean over time of the encoder's output.

        Args:
            video_BTHWC: uint8 RGB crops; not read by an encoder that sees skeletons only.
            joints_BMTVC: float32, pixels of the crop, zero = missing; not read by an encoder that sees RGB only.
        """
        return self.tokens(video_BTHWC, joints_BMTVC).mean(dim=1)

    @torch.no_grad()
    def tokens(self, video_BTHWC: Video | None = None, joints_BMTVC: Tensor | None = None) -> Tensor:
        """The encoder's output (B, T, D), in float32 on its device; arguments as in `features`."""
        device = self.encoder.temporal_embed.device
        seen = (video_BTHWC if self.modality != "skeleton" else None, joints_BMTVC if self.modality != "rgb" else None)
        if [x is not None for x in seen] != [self.modality != "skeleton", self.modality != "rgb"]:
            raise ValueError(f"this encoder sees {self.modality}; give it video_BTHWC, joints_BMTVC, or both, accordingly")
        self._check(*seen)
        return self.encoder(*(None if x is None else x.to(device, non_blocking=True) for x in seen)).float()

    def _check(self, video_BTHWC: Video | None, joints_BMTVC: Tensor | None) -> None:
        """ValueError unless these are as a loader gives them, of as many clips: the network normalises colours itself."""
        frames, model = self.config.data.num_frames, self.config.model
        joints = (model.persons, frames, self.card["num_joints"], model.coordinates)
        for name, given, dtype, axes, what in (
            ("video_BTHWC", video_BTHWC, torch.uint8, (frames, "H", "W", 3), "uint8 RGB, 0 to 255"),
            ("joints_BMTVC", joints_BMTVC, torch.float32, joints, "float32, pixels of the crop"),
        ):
            shape = tuple(getattr(given, "shape", ()))
            fits = len(shape) == 5 and all(axis in (size, "H", "W") for axis, size in zip(axes, shape[1:], strict=True))
            if given is not None and not (fits and given.dtype == dtype):
                found = f"{getattr(given, 'dtype', type(given).__name__)} {shape}"
                raise ValueError(f"{name} is {found}; expected a tensor of {what}, (B, {', '.join(map(str, axes))})")
        if video_BTHWC is not None and joints_BMTVC is not None and video_BTHWC.shape[0] != joints_BMTVC.shape[0]:
            raise ValueError(f"video_BTHWC is of {video_BTHWC.shape[0]} clips, joints_BMTVC of {joints_BMTVC.shape[0]}")

    def video_features(self, video: str | Path, box: Box | None = None, frames: Span | None = None) -> Tensor:
        """Features (D,) of a video file, prepared as evaluation prepares packed clips (for an encoder that sees RGB): the
        mean over the run's `data.views`.

        Args:
            video: any file that FFmpeg decodes.
            box: around the persons: (x1, y1, x2, y2) in pixels of the upright picture; None = the whole picture.
            frames: (start, stop), a part of the video: its frames from `start`, counted from 0, up to `stop`, which is
                excluded; None = all.

        Raises UserError for an encoder that sees skeletons, for a file that is no video, for a box that is empty or outside the
        picture, and for frames that are not valid or that the video does not have.
        """
        if self.modality != "rgb":
            raise UserError(f"this encoder sees {self.modality}, and a video has no skeletons; load it with modality rgb")
        persons = find_persons(Path(video), box, None, whole_picture=box is None, frames=frames)
        frames_NTSS3 = read_clip(Path(video), self.config.data, persons.box, self.card, frames).frames_NTSS3
        return self.features(torch.from_numpy(frames_NTSS3)).mean(dim=0)


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
    config = replace(config, data=input_settings(config, seen))
    encoder = Encoder(config.model, config.data.num_frames, card["num_joints"], modality=seen)
    load_encoder_weights(encoder, run)
    return TrainedEncoder(encoder.eval().to(where), config, card, seen)


def extract(trained: TrainedEncoder, loader: ClipLoader, runtime: Runtime, *, tokens: bool = False) -> Features:
    """Features of every clip of the loader's split; all processes get all of them. `tokens`: also return the tokens."""
    def network(batch: ClipBatch) -> Tensor:
        tokens_BTD = trained.tokens(batch.video_BTHWC, batch.joints_BMTVC)
        return tokens_BTD.flatten(1) if tokens else tokens_BTD.mean(dim=1)

    found, values_nX, labels_n = over_split(loader, runtime, network)
    places: dict[str, list[int]] = {}
    for number, key in enumerate(found):
        places.setdefault(key, []).append(number)
    split = loader.shards.names(loader.order.rows)
    kept, views = [key for key in split if key in places], loader.plan.views
    # Views that could not be read are replaced by other views of the same clip.
    order_nv = np.array([(places[key] * views)[:views] for key in kept])
    values_nvX = values_nX[order_nv]
    lost = tuple(key for key in split if key not in places)
    if not tokens:
        return Features(kept, _mean(values_nvX), labels_n[order_nv[:, 0]], lost)
    tokens_nvTD = values_nvX.reshape(*order_nv.shape, loader.plan.num_frames, -1)
    features_nvD = torch.from_numpy(tokens_nvTD).mean(dim=2).numpy()
    return Features(kept, _mean(features_nvD), labels_n[order_nv[:, 0]], lost, tokens_nvTD)


def _mean(features_nvD: np.ndarray) -> np.ndarray:
    """Over views; of one view itself, bit for bit."""
    return features_nvD[:, 0] if features_nvD.shape[1] == 1 else features_nvD.mean(axis=1)


def embed(
    run: Path,
    split: str,
    out: Path,
    *,
    shards: str | None = None,
    modality: Modality | None = None,
    views: int | None = None,
    batch_size: int = 32,
    device: Device = "auto",
) -> Features:
    """Write the features of a split to `out`; arguments as the options of `svdata2vec embed`."""
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"{out}: expected a file name that ends in .npy or .parquet")
    if out.name in (INDEX_NAME, SUMS_NAME) and (out.parent / MANIFEST_NAME).is_file():
        raise UserError(f"{out}: packed shards have a file of this name, which it would replace; choose another name")
    if out.suffix == ".parquet":
        _require_pyarrow(out)
    require_writable(out, *([] if out.suffix == ".parquet" else [".json"]))
    trained = load_encoder(run, modality, device)
    data = trained.config.data
    if shards is None:
        require_own_shards(run, data)
    data = replace(data, shards=shards or data.shards, test_split=split, weights=(), views=views or data.views)
    config = replace(trained.config, data=data, run=RunConfig(batch_size=batch_size, device=device))
    packed = open_data(data)
    require_joints(packed, run, trained.card, trained.modality, split)
    warn_of_view(packed, split, trained.card)
    with running(config.run) as runtime:
        with build_loader(packed, config, runtime, train=False, modality=trained.modality, views=data.views) as loader:
            features = extract(trained, loader, runtime)
        if runtime.is_main:
            write_features(out, features, packed.split_classes(split))
    return features


def write_features(out: Path, features: Features, classes: Sequence[str]) -> None:
    """Write features with their clips' names, labels and classes."""
    make_folder(out.parent)
    if out.suffix == ".parquet":
        pyarrow, parquet = _require_pyarrow(out)
        rows = pyarrow.array(list(features.features_nD), pyarrow.list_(pyarrow.float32(), features.features_nD.shape[1]))
        names = [classes[label] for label in features.labels_n]
        columns = {"key": features.keys, "label": features.labels_n, "class": names, "feature": rows}
        with atomic_file(out) as file:
            parquet.write_table(pyarrow.table(columns), file)
        return
    names_of_rows = beside(out, ".json")
    names_of_rows.unlink(missing_ok=True)  # those of an older file would be taken for this one's
    write_atomically(out, npy_bytes(features.features_nD.astype(np.float32, copy=False)))
    index = {"keys": features.keys, "labels": features.labels_n.tolist(), "classes": list(classes), "lost": features.lost}
    write_atomically(names_of_rows, json.dumps(index, indent=1).encode())


def _require_pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{out}: writing Parquet needs pyarrow: pip install 'svdata2vec[parquet]'; or write .npy") from None
    return pyarrow, parquet
