"""From a configuration to loaders: the one place where the trainer meets shards and pipeline."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from svdata2vec.config.schema import DataConfig, FinetuneConfig, Modality, PretrainConfig
from svdata2vec.model.student import frames_seen
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.order import entries_per_epoch
from svdata2vec.runs.card import joints_of, shown_whole
from svdata2vec.runs.cores import fit_loader, usable_cores
from svdata2vec.runs.runtime import Runtime, device_name
from svdata2vec.runs.tuned import Tuned, load_tuned
from svdata2vec.shards.boxes import present_joints
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.joined import JoinedShards, set_names
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet

EMPTY_NPY_BYTES = 128  # of a .npy file that is a header alone
FEW = 0.03  # share of a split's clips that may lack joints without a warning
SHOWN_CLASSES = 8  # in a warning
REMOTE_CLIPS_LOOKED_AT = 100  # for joints, one request each

log = logging.getLogger(__name__)


def open_data(data: DataConfig) -> ShardSet:
    """The shards of a configuration, in folders or behind URLs, which share the cache; several sets are joined, and so is one
    that has weights or gets another joint layout."""
    names = set_names(data.shards)
    cache_bytes = int(data.remote_cache_gb * 1e9 / max(sum("://" in name for name in names), 1))
    sets = [open_shards(name, fetch=data.remote_fetch, cache_bytes=cache_bytes) for name in names]
    return JoinedShards(sets, data.layout, data.weights) if len(sets) > 1 or data.layout or data.weights else sets[0]


def require_own_shards(run: Path, data: DataConfig) -> None:
    """UserError where shards of a finished run are not where it found them; it names them as its command did."""
    for name in set_names(data.shards):
        if "://" not in name and not Path(name).is_dir():
            raise UserError(f"{Path(name).absolute()}: no such folder; expected the shards that {run} was trained on: start "
                            "the command in the folder that the run was started in, or say with --shards where they are")


def fit_data(data: DataConfig, runtime: Runtime, shards: ShardSet, *, verbose: bool = False) -> DataConfig:
    """The loader's settings filled in where they are None: as tuned on this device for the shards' codec, or by its cores.

    verbose: log which tuned settings are used.
    """
    device, name = runtime.device, device_name(runtime.device)
    tuned = load_tuned(name, shards.manifest.codec)
    fitted = fit_loader(data, device.type, usable_cores(), tuned)
    if verbose and tuned is not None and runtime.is_main:
        used = Tuned(fitted.threads or 1, fitted.engine_share or 0.0, fitted.run_pictures)
        taken = used == replace(tuned, threads=tuned.threads or used.threads)
        log.info("decoding as tuned on %s: %s%s", name, used, "" if taken else ", options and cores considered")
    return fitted


def build_loader(
    shards: ShardSet,
    config: PretrainConfig | FinetuneConfig,
    runtime: Runtime,
    *,
    train: bool,
    modality: Modality = "both",
    split: str | None = None,
    rows: np.ndarray | None = None,
    views: int = 1,
    every_frame: bool = False,
    loader_class: type[ClipLoader] = ClipLoader,
) -> ClipLoader:
    """Loader of the training split (shuffled, augmented, last short batch dropped) or of the test split (every clip once).

    Args:
        modality: what the batches hold.
        split: to take instead of the configuration's.
        rows: index rows to take instead of the whole split.
        views: frame draws per clip of the test split; the caller averages over them.
        every_frame: also those that the masks of a pretraining run leave unseen, for people to look at.
        loader_class: of the loader.

    Raises UserError for a split or a joint layout that does not fit, and for fewer training clips than one step takes.
    """
    if config.data.decoder == "reference" and runtime.device.type != "cpu":
        raise UserError("--data.decoder reference runs on a CPU; leave it out, or set the device to cpu as well")
    data, model = fit_data(config.data, runtime, shards, verbose=train), config.model
    if modality != "rgb" and model.coordinates != 2:
        raise UserError(f"--model.coordinates is {model.coordinates}; shards hold 2 per joint, x and y")
    split, step = split or (data.train_split if train else data.test_split), config.run.batch_size * runtime.world_size
    # BatchNorm of the classifier needs two clips, and skeletons of another clip need another one.
    alone = isinstance(config, PretrainConfig) and not config.target.shuffle_skeletons
    require_clips(shards, config, split, rows, step if train else 0)
    return loader_class(
        shards,
        split,
        data.plan(model.persons, views),
        batch_size=config.run.batch_size,
        train=train,
        seed=config.run.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        device=str(runtime.device),
        decoder=data.decoder,
        num_threads=data.threads or 1,
        engine_share=1.0 if data.engine_share is None else data.engine_share,
        run_pictures=data.run_pictures,
        num_readers=data.readers or 0,
        prefetch=data.prefetch,
        video=modality != "skeleton",
        joints=modality != "rgb",
        limit=rows,
        smallest_batch=1 if alone else 2,
        max_bad_rate=data.max_bad_rate,
        check_hashes=data.check_hashes,
        seen=frames_seen(config) if train and isinstance(config, PretrainConfig) and not every_frame else None,
    )


def require_same_clips(loader: ClipLoader, runtime: Runtime) -> None:
    """UserError unless the loaders of all processes share out the same clips."""
    runtime.require_same(
        loader.state_dict()["fingerprint"],
        f"{loader.shards.where}: the processes find different clips there; pack them once, and copy the folder to all nodes",
    )


def require_clips(
    shards: ShardSet, config: PretrainConfig | FinetuneConfig, split: str, rows: np.ndarray | None, step: int
) -> None:
    """UserError unless the clips that are used of a split (all, or `rows`) are at least one, and enough for a step."""
    total = len(shards.rows(split))
    used = total if rows is None else len(rows)
    if not used:
        names = ", ".join(f"{name!r}" for name, keys in shards.manifest.splits.items() if len(keys)) or "none"
        raise UserError(f"{shards.where}: split {split!r} has no clips; splits that have some: {names}")
    taken = taken_per_epoch(shards, shards.rows(split) if rows is None else rows)
    if taken < step and taken == used:
        share = more = ""
        if isinstance(config, FinetuneConfig) and used < total:
            validated = f", --eval-every {config.eval_every} may hold out others" if config.eval_every else ""
            share = f" (--label-fraction {config.label_fraction:g}{validated})"
            more = ", or a larger --label-fraction" if config.label_fraction < 1 else ""
        raise UserError(f"split {split!r}: {used} of {total} clips are used{share}, one step takes {step}; set a smaller "
                        f"--run.batch-size (clips per process){more}")
    if taken < step:
        raise UserError(f"split {split!r}: an epoch takes {taken} of {used} clips by --data.weights, one step takes {step}; "
                        "set a smaller --run.batch-size (clips per process), or larger weights")


def taken_per_epoch(shards: ShardSet, rows: np.ndarray) -> int:
    """How many of these rows a training epoch takes, by the sets' weights."""
    weighted = shards.shares(rows)
    return sum(entries_per_epoch(len(places), weight) for places, weight in weighted) if weighted else len(rows)


def require_skeletons(shards: ShardSet, split: str) -> None:
    """UserError if no clip of a split has a joint; a warning if more than a few have none."""
    empty, total = clips_without_joints(shards, split), len(shards.rows(split))
    if total and empty == total:
        raise UserError(
            f"{shards.where}: split {split!r} has no skeletons, which pretraining and the modalities both and skeleton read; "
            "make them with tools/pose/extract_poses.py, or fine-tune with --modality rgb"
        )
    if empty > FEW * total:
        text = "%s: %d of %d clips of split %r (%.0f %%) have no joint: their skeletons say nothing; see `svdata2vec inspect`"
        log.warning(text, shards.where, empty, total, split, 100 * empty / total)


def clips_without_joints(shards: ShardSet, split: str) -> int:
    """Clips of a split in which nobody has a joint, as index and manifest say.

    The manifest of an older set says nothing of clips whose persons have no joints. There they count only if there is no
    other clip with persons: clips are read up to the first that has a joint, or that is damaged and may have one; over a
    network it gives up after some.
    """
    rows = shards.rows(split)
    with_persons, noted = rows[_pose_bytes(shards, rows) > EMPTY_NPY_BYTES], shards.manifest.without_joints
    if noted is not None:
        return len(rows) - len(np.setdiff1d(with_persons, noted))
    looked_at = with_persons if shards.tars else with_persons[:REMOTE_CLIPS_LOOKED_AT]
    some = len(looked_at) < len(with_persons) or any(_may_have_joints(shards, int(row)) for row in looked_at)
    return len(rows) - len(with_persons) if some else len(rows)


def _may_have_joints(shards: ShardSet, row: int) -> bool:
    try:
        return bool(present_joints(shards.sample(row, video=False).pose_MTVC).any())
    except (OSError, ValueError, OverflowError):
        return True


def _pose_bytes(shards: ShardSet, rows: np.ndarray) -> np.ndarray:
    return shards.index["size"][rows, shards.manifest.components.index("pose.npy")]


def warn_of_view(shards: ShardSet, split: str, card: dict[str, Any] | None = None) -> None:
    """Warn if clips are not shown to the network as they should be.

    Args:
        split: to be read.
        card: of the run that reads it; None: a run that is about to begin.
    """
    view = shards.manifest.view
    if view == "persons" and (_pose_bytes(shards, shards.rows(split)) <= EMPTY_NPY_BYTES).all():
        log.warning("%s: split %r shows nobody, its whole pictures are squeezed into a square; pack the videos again with "
                    "`svdata2vec shard folder` or `csv`, which keeps their shape", shards.where, split)
    elif card is not None and shown_whole(card) != (view == "picture"):
        seen = {True: "whole pictures", False: "crops around persons"}
        log.warning("the run was trained on %s, %s holds %s", seen[shown_whole(card)], shards.where, seen[view == "picture"])


def require_classes(shards: ShardSet, split: str, classes: Sequence[str], whose: object) -> None:
    """UserError if a split has other classes than the network: its labels would mean something else."""
    for found, expected in zip_longest(shards.one_class_list(split), classes):
        if found != expected:
            raise UserError(
                f"{shards.where}: split {split!r} has other classes than {whose} (the first that differs: {found!r} instead of "
                f"{expected!r}); give a split of the same data set and protocol"
            )


def require_several_classes(shards: ShardSet, train_split: str, test_split: str) -> None:
    """UserError if all training clips are of one class; warns of classes that are tested but have no training clip."""
    trained, tested = (np.unique(shards.index["label"][shards.rows(split)]) for split in (train_split, test_split))
    names = shards.manifest.classes
    if len(trained) == 1:
        raise UserError(
            f"{shards.where}: all clips of split {train_split!r} are of class {names[trained[0]]!r}: there is nothing to tell "
            "apart; give a split, or pack videos, of two classes or more"
        )
    untaught = [repr(names[label]) for label in np.setdiff1d(tested, trained)]
    if untaught:
        shown = ", ".join([*untaught[:SHOWN_CLASSES], *(["..."] if len(untaught) > SHOWN_CLASSES else [])])
        text = "%s: split %r tests %d of %d classes without a clip of split %r to learn them from: %s"
        log.warning(text, shards.where, test_split, len(untaught), len(tested), train_split, shown)


def warn_of_shared_clips(shards: ShardSet, test_split: str, rows: np.ndarray) -> None:
    """Warn if clips of the test split are among those trained or validated on (`rows`)."""
    test_rows = shards.rows(test_split)
    shared = np.isin(test_rows, rows).sum()
    if shared:
        text = "%d of %d clips of the test split %r are trained or validated on: its accuracy says little about new clips"
        log.warning(text, shared, len(test_rows), test_split)


def warn_of_earlier_clips(shards: ShardSet, test_split: str, card: Mapping[str, Any], run: Path) -> None:
    """Warn if clips of the test split are among those of a finished run (with this card), or of the one that it began from."""
    for part, whose in (("trained_on", str(run)), ("pretrained_on", f"the run that {run} began from")):
        earlier = card.get(part) or {}
        if earlier.get("fingerprint") != shards.manifest.fingerprint:
            continue
        test_rows = shards.rows(test_split)
        shared = np.isin(test_rows, shards.rows(earlier["split"])).sum()
        if shared:
            log.warning("%d of %d clips of the test split %r are of split %r, which %s was trained on: its accuracy says "
                        "little about new clips", shared, len(test_rows), test_split, earlier["split"], whose)


def require_joints(shards: ShardSet, run: Path | None, card: dict[str, Any], modality: Modality, split: str) -> None:
    """UserError if the shards' joints are not those that a finished run (with this card) reads, or if there are none."""
    if modality == "rgb":
        return
    layout, count, joints = shards.manifest.layout, card["num_joints"], joints_of(card)
    if len(layout.joints) != count or (joints is not None and list(layout.joints) != joints):
        trained = (card.get("trained_on") or {}).get("layout", "of a layout that is not known")
        raise UserError(
            f"{shards.where} has {len(layout.joints)} joints ({layout.name}), {run} was trained on {count} ({trained}); "
            "give shards of the run's joint layout, or bring a run's to one with --data.layout"
        )
    require_skeletons(shards, split)


def refuse_validation(data: DataConfig, why: str) -> None:
    """UserError that ends with `why` if a validation split, or a share for it, is given to work that validates nothing."""
    unused = data.without_validation()
    if data.val_split != unused.val_split:
        raise UserError(f"--data.val-split is {data.val_split!r}, but {why}")
    if data.val_fraction != unused.val_fraction:
        raise UserError(f"--data.val-fraction is {data.val_fraction:g}, but {why}")


def labelled_rows(shards: ShardSet, split: str, fraction: float, seed: int, *, verbose: bool = True) -> np.ndarray:
    """Index rows of a share of a split, drawn per class by seed (at least one clip of every class that occurs).

    verbose: log how many.
    """
    rows = shards.rows(split)
    if fraction == 1:
        return rows
    labels = shards.index["label"][rows]
    rng = np.random.Generator(np.random.Philox(seed))
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(rows[labels == label])
        chosen.append(members[: max(1, round(fraction * len(members)))])
    if verbose:
        log.info("split %r: %d of %d clips labelled", split, sum(map(len, chosen)), len(rows))
    return np.sort(np.concatenate(chosen))
