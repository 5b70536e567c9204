"""Which clips fine-tuning trains on, and which it validates on: the data set's own split, or some training clips."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svdata2vec.config.schema import DataConfig, FinetuneConfig
from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.runs.data import labelled_rows, require_classes, require_several_classes
from svdata2vec.runs.performers import performers, warn_of_shared_people
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """Index rows to train on, and the split and rows to validate on (no split: none)."""

    train_rows: np.ndarray
    val_split: str | None
    val_rows: np.ndarray


def choose_clips(shards: ShardSet, config: FinetuneConfig) -> Clips:
    """The labelled clips of the training split, and with `eval_every` the clips to validate on.

    If the data set has no validation split, these are held out from the labelled ones.

    Raises UserError if no clip can be validated on, if clips would be trained on or tested as well, or have other classes.
    """
    data, seed = config.data, config.run.seed
    classes = shards.one_class_list(data.train_split)
    require_classes(shards, data.test_split, classes, f"split {data.train_split!r}")
    require_several_classes(shards, data.train_split, data.test_split)
    rows = labelled_rows(shards, data.train_split, config.label_fraction, seed)
    if not config.eval_every:
        warn_of_shared_people(shards, data, rows)
        return Clips(rows, None, rows[:0])
    split = validation_split(shards, data, rows)
    if split is None:
        warn_of_shared_people(shards, data, rows)
        held = hold_out(shards, rows, data.val_fraction, seed)
        return Clips(rows[~held], data.train_split, rows[held])
    require_classes(shards, split, classes, f"split {data.train_split!r}")
    warn_of_shared_people(shards, data, rows, split)
    found = shards.rows(split)
    log.info("validating on the %d clips of split %r", len(found), split)
    return Clips(rows, split, found)


def validation_split(shards: ShardSet, data: DataConfig, train_rows: np.ndarray) -> str | None:
    """The split to validate on, named or the data set's own; None = a share of the training clips (`hold_out`).

    Raises UserError if it has no clip, or one that is trained or tested on.
    """
    split = data.val_split or shards.own_validation(data.train_split, data.test_split)
    if split is None:
        return None
    found = shards.rows(split)
    if not len(found):
        raise UserError(f"{shards.where}: split {split!r} has no clip to validate on; name another with --data.val-split")
    for name, others in ((data.train_split, train_rows), (data.test_split, shards.rows(data.test_split))):
        shared = int(np.isin(found, others).sum())
        if shared:
            raise UserError(
                f"{shards.where}: {shared} clips of the validation split {split!r} are in {name!r} too; name another with "
                "--data.val-split, or none to hold out --data.val-fraction of the training clips"
            )
    return split


def hold_out(
    shards: ShardSet, rows: np.ndarray, fraction: float, seed: int, *, otherwise: str = "set --eval-every 0",
    verbose: bool = True,
) -> np.ndarray:
    """bool per row, True = held out for validation: whole groups of performers where they are known, else a share per class.

    A function of seed and names alone. Every class keeps a clip to train on.

    Args:
        otherwise: advice for the error if none can be held out, besides naming a split.
        verbose: log how many.
    """
    labels = shards.index["label"][rows]
    keys = shards.names(rows)
    groups = performers(shards, rows, keys)
    held = np.zeros(len(rows), bool) if groups is None else _whole_groups(groups, labels, fraction, seed)
    how = f"all of {len(set(np.array(groups)[held]))} of {len(set(groups))} performers" if groups is not None else ""
    if not held.any():
        held, how = _share_per_class(keys, labels, fraction, seed), "a share of each class"
    if not held.any():
        raise UserError(
            f"{shards.where}: none of {len(rows)} training clips can be held out for validation (--data.val-fraction "
            f"{fraction:g}); name a split with --data.val-split, or {otherwise}"
        )
    if verbose:
        log.info("validating on %d of %d training clips, %s", held.sum(), len(rows), how)
    return held


def _whole_groups(groups: Sequence[str], labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Groups in an order drawn by seed, as long as the share comes nearer and every class keeps a clip to train on."""
    group_n, held = np.array(groups), np.zeros(len(groups), bool)
    for group in sorted(set(groups), key=lambda group: keyed_generator("validation", seed, group).random()):
        members = group_n == group
        left = labels[~(held | members)]
        if 2 * (fraction * len(groups) - held.sum()) >= members.sum() and len(np.unique(left)) == len(np.unique(labels)):
            held |= members
    return held


def _share_per_class(keys: Sequence[str], labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Clips drawn by seed and name, of each class its share; a class keeps a clip to train on."""
    draws = [keyed_generator("validation", seed, key).random() for key in keys]
    places: list[tuple[float, float, int]] = []  # where in its class a clip stands, 0 to 1; its draw; itself
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=draws.__getitem__)
        places += [((rank + 0.5) / len(members), draws[i], i) for rank, i in enumerate(members[:-1])]
    held = np.zeros(len(keys), bool)
    held[[i for _, _, i in sorted(places)[: max(1, round(fraction * len(keys)))]]] = True
    return held
