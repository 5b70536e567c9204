"""The model card: what accompanies published weights, in `model.json`, so that they can be used without their run."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors

from svdata2vec.config.checked_json import check_record, read_sealed, sealed
from svdata2vec.config.files import to_values
from svdata2vec.config.schema import DataConfig, FinetuneConfig, PretrainConfig
from svdata2vec.kernels.functional import IMAGENET_MEAN, IMAGENET_STD
from svdata2vec.runs.checkpoint import has_checkpoints
from svdata2vec.runs.failures import first_line
from svdata2vec.runs.folder import CARD, CONFIG, WEIGHTS
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.boxes import PACK_MARGIN
from svdata2vec.shards.errors import UserError, require_folder
from svdata2vec.shards.layouts import LAYOUTS
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.reading.shardset import ShardSet

SUMMARIES = {
    "pretrain": "SV-data2vec student after self-supervised pretraining on video and skeletons: encoder and decoder",
    "finetune": "SV-data2vec classifier: encoder and classification head, trained together",
    "probe": "SV-data2vec linear probe: frozen encoder, mean over time, one Linear",
}

# Schema of a card; those of earlier versions have fewer fields.
_SCHEMA: dict[str, Any] = {
    "kind": set(SUMMARIES), "config": dict, "num_joints": Range(0, 10_000), "joints?": [str], "classes": [str],
    "preprocessing?": {"view?": str}, "trained_on?": dict, "evaluation?": dict, "history?": [str], "commits?": [str],
    "weights?": str,
}
ABOUT = ("dataset", "fingerprint", "split", "seed", "metric", "date")  # what a result is about


def model_card(
    kind: str,
    config: PretrainConfig | FinetuneConfig,
    *,
    num_joints: int,
    classes: Sequence[str] = (),
    shards: ShardSet | None = None,
    train_clips: int | None = None,
) -> dict[str, Any]:
    """What a network is, what it was trained on and how its input is prepared; `publish` adds the version.

    Args:
        kind: "pretrain", "finetune" or "probe".
        config: the resolved configuration.
        num_joints: V of the joint layout; 0 without skeletons.
        classes: names of the outputs, in order; none for "pretrain".
        shards: the data set that it was trained on, where known.
        train_clips: clips that were trained on, where they are a part of the split.
    """
    card: dict[str, Any] = {
        "kind": kind,
        "summary": SUMMARIES[kind],
        "modality": config.modality if isinstance(config, FinetuneConfig) else "both",
        "num_joints": num_joints,
        "classes": list(classes),
        "preprocessing": _preprocessing(config, shards),
        "config": to_values(config),
    }
    if shards is not None:
        card["joints"] = list(shards.manifest.layout.joints)
        card["trained_on"] = _data_of(shards, config.data, train_clips)
    if isinstance(config, FinetuneConfig) and config.pretrained is not None:
        card["pretrained_on"] = _trained_on(config.pretrained, config.run.out)
    return card


def _preprocessing(config: PretrainConfig | FinetuneConfig, shards: ShardSet | None) -> dict[str, Any]:
    data = config.data
    plan = data.plan()
    return {
        "num_frames": data.num_frames,
        "size": data.size,
        "view": "persons" if shards is None else shards.manifest.view,
        "crop": data.crop,
        "padding": plan.padding,
        "stored_size": 0 if shards is None else shards.manifest.packed_size,
        "stored_margin": (PACK_MARGIN - 1) / 2,
        "resize": "cubic (OpenCV's INTER_CUBIC) to the stored size, of it the crop, bilinear; pixel centres at + 0.5, "
        "black outside, no antialiasing",
        "frame_draw": data.frame_draw,
        "frame_seed": plan.frame_seed,
        "views": data.views,
        "colours": "RGB, uint8, 0 to 255; the network normalises them itself",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "joints": f"pixels of the {data.size} x {data.size} crop, zero = missing",
        "persons": config.model.persons,
        "frames": f"one per temporal segment, the same in every evaluation ({data.frame_draw} draw)",
    }


def _data_of(shards: ShardSet, data: DataConfig, train_clips: int | None) -> dict[str, Any]:
    """The data set of a run that begins; `sets`, where several are read as one, or one otherwise than it is stored."""
    manifest, sets = shards.manifest, shards.describe(data.train_split)
    return {
        "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint,
        "layout": manifest.layout.name,
        "split": data.train_split,
        "clips": len(shards.rows(data.train_split)) if train_clips is None else train_clips,
        **({"sets": sets} if len(sets) > 1 or data.weights or data.layout else {}),
    }


def _trained_on(source: Path, out: Path) -> dict[str, Any] | None:
    """The data set and the hash of the run that a run in the folder `out` begins from; one that goes on does not need it."""
    try:
        return {**(read_card(source).get("trained_on") or {}), "weights": weights_hash(source)}
    except UserError:
        if has_checkpoints(out):
            return None
        raise


def read_card(run: Path) -> dict[str, Any]:
    """The card of a finished run, given its folder or its `model.safetensors`."""
    folder, expected = run_folder(run), "the folder of a finished run (pretrain, finetune or probe)"
    require_folder(folder, expected)
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            if (folder / CONFIG).is_file():
                raise UserError(f"{folder}: no {name}, its run is not finished; start that run again to go on")
            raise UserError(f"{folder}: no {name}; expected {expected}")
    path = folder / CARD
    return check_record(read_sealed(path), _SCHEMA, path)


def joints_of(card: dict[str, Any]) -> list[str] | None:
    """Names of the joints that a network was trained with, in order; None where they are not known."""
    if "joints" in card:
        return list(card["joints"])
    layout = LAYOUTS.get((card.get("trained_on") or {}).get("layout", ""))  # a card of an earlier version names no more
    return None if layout is None else list(layout.joints)


@contextmanager
def opened_weights(run: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file of a finished run's weights, and what its header says of them. UserError if one of the two is damaged."""
    path = run_folder(run) / WEIGHTS
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file, json.loads((file.metadata() or {}).get("svdata2vec", "{}"))
    except (safetensors.SafetensorError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); copy it again") from error


def weights_hash(run: Path) -> str | None:
    """The hash that the weights of a finished run carry; None of an earlier version."""
    with opened_weights(run) as (_, inside):
        found: str | None = inside.get("sha256")
    return found


def other_start(source: Path | None, card: dict[str, Any]) -> bool:
    """Whether the weights of `source` are not those that a run (with this card) began from.

    False if that is not known: `source` is missing, or one of the two was made by an earlier version.
    """
    before = (card.get("pretrained_on") or {}).get("weights")
    if source is None or before is None:
        return False
    try:
        return weights_hash(source) not in (None, before)
    except (OSError, UserError):  # missing or damaged
        return False


def shown_whole(card: dict[str, Any]) -> bool:
    """True if a run was trained on whole pictures, not on crops around persons."""
    return (card.get("preprocessing") or {}).get("view") == "picture"


def run_folder(run: Path) -> Path:
    return run.parent if run.name == WEIGHTS else run


def complete_card(folder: Path, **entries: Any) -> None:
    """Add entries, such as the figures of an evaluation, to the card of published weights."""
    card = {**read_card(folder), **entries}
    write_atomically(folder / CARD, sealed(card))


def evaluation_entry(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a result that belong on a card, and what they are figures of."""
    return {name: result[name] for name in (*ABOUT, "count", "clips", "top1", "top5", "mean_class", "intervals")}


def evaluated_on(shards: ShardSet, split: str, metric: str, seed: int) -> dict[str, Any]:
    """What a result is about: data set, split, seed of the run, the figure that its protocol reports, day (UTC)."""
    manifest = shards.manifest
    values = (manifest.dataset, manifest.fingerprint, split, seed, metric, f"{datetime.now(UTC):%Y-%m-%d}")
    return dict(zip(ABOUT, values, strict=True))
