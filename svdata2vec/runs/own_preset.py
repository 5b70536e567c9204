"""The preset `own`: settings that depend on the shards are read off them, before the options are applied on top.

Figures per clip and per class are in the manifest and the index, so nothing is decoded here.
"""

import logging
import math
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np

from svdata2vec.config.presets import OWN_DATA, PAPER_FROM_CLIPS
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import DataConfig, FinetuneConfig, ModelConfig, PretrainConfig, RunConfig
from svdata2vec.runs.card import read_card
from svdata2vec.runs.checkpoint import has_checkpoints
from svdata2vec.runs.data import labelled_rows, open_data, taken_per_epoch
from svdata2vec.runs.folder import read_config
from svdata2vec.runs.performers import performers
from svdata2vec.runs.published import published_config
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.overlap import overlaps
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.split_names import meant

TEST_SPLITS = ("test", "val", "valid", "validation")
MADE = "{0}[:80%]", "{0}[80%:]"  # of the training split, where there is nothing to test on
FRAME_STRIDE, MOST_FRAMES = 3, 40  # of the median clip, every third frame, no more than the method's 40
STEPS_PER_EPOCH = 4  # at least, as far as there are clips
STEPS = {"pretrain": 4000, "finetune": 2000}  # of a whole run, within the epochs below
EPOCHS = {"pretrain": (50, 200), "finetune": (20, 60)}
LARGE_LR = 3e-4  # of the paper's network, at these batches

Config = TypeVar("Config", PretrainConfig, FinetuneConfig, ProbeConfig)

log = logging.getLogger(__name__)


def fit(config: Config) -> Config:
    """The configuration with splits, number of frames, batch, epochs, network and its rate fitted to its shards.

    A run that begins with another's encoder (`--from`) takes that run's network, frames and picture size; where it continues,
    its own.

    Raises UserError where the shards have no training split, or cannot be read.
    """
    return fit_after(config, _made(config))


def fit_after(config: Config, made: PretrainConfig | FinetuneConfig | None) -> Config:
    """`fit` where the run that it begins with has the settings `made`, and may be still to come; None: it begins with none."""
    shards = open_data(config.data)
    train_split, test_split = choose_splits(shards, config.data)
    rows = shards.rows(train_split)
    data = replace(config.data, train_split=train_split, test_split=test_split)
    if "[" in train_split:
        _compare_parts(shards, train_split, test_split)
    if made is not None:
        data, model = replace(data, num_frames=made.data.num_frames, size=made.data.size), replace(made.model, init=None)
    else:
        large = len(rows) >= PAPER_FROM_CLIPS
        data = replace(data, num_frames=frames_of(shards.index["frames"][rows]), size=224 if large else data.size)
        model = ModelConfig() if large or isinstance(config, ProbeConfig) else config.model
    if isinstance(config, ProbeConfig):
        _say_unused(shards, data, validated=False)
        return replace(config, data=data)
    if isinstance(config, FinetuneConfig):
        rows = labelled_rows(shards, train_split, config.label_fraction, config.run.seed, verbose=False)
    clips = taken_per_epoch(shards, rows)
    batch, epochs = batch_and_epochs(clips, config.kind, config.run.batch_size)
    optim = replace(config.optim, lr=LARGE_LR) if model.width == ModelConfig().width else config.optim
    run = replace(config.run, batch_size=batch, epochs=epochs)
    _say(shards, data, run, clips)
    _say_unused(shards, data, validated=isinstance(config, FinetuneConfig) and config.eval_every > 0)
    if isinstance(config, FinetuneConfig):
        return replace(config, data=data, model=model, optim=optim, run=run)
    target = replace(config.target, top_layers=model.depth)
    return replace(config, data=data, model=model, optim=optim, run=run, target=target)


def _made(config: PretrainConfig | FinetuneConfig | ProbeConfig) -> PretrainConfig | FinetuneConfig | None:
    """The settings of the run that another begins with, or continues; None where it begins with none."""
    if isinstance(config, PretrainConfig) or config.pretrained is None:
        return None
    return _begun(config) or published_config(read_card(config.pretrained), config.pretrained)


def _begun(config: FinetuneConfig | ProbeConfig) -> FinetuneConfig | None:
    """The settings of a run that continues, which does not need the run that it began from."""
    if isinstance(config, ProbeConfig) or not has_checkpoints(config.run.out):
        return None
    found = read_config(config.run.out)
    return found if isinstance(found, FinetuneConfig) else None


def choose_splits(shards: ShardSet, data: DataConfig) -> tuple[str, str]:
    """Splits to train and test on: those that were named, else by their names in the shards, else made.

    What is made is a fifth of each class of the training split to test on, which is then not trained on.
    """
    names = [*shards.manifest.splits]
    train = data.train_split
    if train == OWN_DATA.train_split:
        trains = ["train"] if "train" in names else [name for name in names if "train" in name.lower()] or names
        if len(trains) != 1:
            raise UserError(
                f"{shards.where}: which split to train on is not clear; it has {', '.join(names) or 'none'}; name one with "
                "--data.train-split"
            )
        train, *_ = trains
    if data.test_split != OWN_DATA.test_split:
        return train, data.test_split
    for wanted in (*TEST_SPLITS, *(train.lower().replace("train", ending) for ending in TEST_SPLITS)):
        for name in sorted(names, reverse=True):  # of those that differ in case alone first the one in small letters
            if name.lower() == wanted and name != train and len(shards.rows(name)):
                return train, name
    if data.train_split == train:
        shards.rows(train)  # a misspelt name, which no part would mend
        raise UserError(
            f"{shards.where}: no split to test on; name one with --data.test-split, or parts: --data.train-split "
            f"'{MADE[0].format(train)}' --data.test-split '{MADE[1].format(train)}'"
        )
    return MADE[0].format(train), MADE[1].format(train)


def _compare_parts(shards: ShardSet, train_split: str, test_split: str) -> None:
    """Warn where parts of a split, which are made by names alone, share videos or people. Reads every clip's description."""
    if not shards.tars:  # behind a URL
        return
    parts = {role: shards.rows(split) for role, split in (("train", train_split), ("test", test_split))}
    keys = {role: shards.names(rows) for role, rows in parts.items()}
    pictures = {}
    for key, row in [pair for role, rows in parts.items() for pair in zip(keys[role], rows.tolist(), strict=True)]:
        with suppress(ValueError, OSError):  # a damaged clip, which a run leaves out
            pictures[key] = ClipMeta.from_bytes(shards.read(row, ["json"])["json"], key).pictures
    for overlap in overlaps(keys, {key: same for key, same in pictures.items() if same}):
        log.warning("%s: %s and %s: %s; remove one of each and pack again", shards.where, train_split, test_split, overlap)
    people = {role: set(performers(shards, rows, keys[role]) or ()) for role, rows in parts.items()}
    if both := sorted(people["train"] & people["test"]):
        log.warning(
            "%s: %s and %s show the same people (%s), so the test will not say how well new people are recognised; pack with "
            "--split-by subject", shards.where, train_split, test_split, ", ".join(both[:5]),
        )


def frames_of(frames_n: np.ndarray) -> int:
    """Frames to sample from clips of these lengths: a third of the median clip's, a multiple of 8 from 8 to 40."""
    if not len(frames_n):
        return 8
    return int(np.clip(8 * (np.median(frames_n) // (8 * FRAME_STRIDE)), 8, MOST_FRAMES))


def batch_and_epochs(clips: int, kind: str, largest: int) -> tuple[int, int]:
    """(clips per batch, epochs): a power of two that leaves some steps per epoch; enough epochs for a number of steps."""
    batch = 2
    while 2 * batch <= min(largest, clips // STEPS_PER_EPOCH):
        batch *= 2
    low, high = EPOCHS[kind]
    return batch, min(max(math.ceil(STEPS[kind] / max(clips // batch, 1)), low), high)


def _say(shards: ShardSet, data: DataConfig, run: RunConfig, clips: int) -> None:
    log.info(
        "%s: training on %d clips (%s), testing on %d (%s); %d frames of %d px, batches of %d, %d epochs, where no option says "
        "otherwise",
        shards.where, clips, data.train_split, len(shards.rows(data.test_split)), data.test_split, data.num_frames, data.size,
        run.batch_size, run.epochs,
    )


def _say_unused(shards: ShardSet, data: DataConfig, *, validated: bool) -> None:
    """Name the splits with clips that the run does not use; loudly where the name seems to be a misspelt one."""
    validation = data.val_split or shards.own_validation(data.train_split, data.test_split)
    used = [data.train_split, data.test_split, *([validation] if validated and validation else [])]
    used_rows = np.concatenate([shards.rows(name) for name in used])
    unused = {name: len(np.setdiff1d(shards.rows(name), used_rows)) for name in shards.manifest.splits}
    if any(unused.values()):
        log.info("%s: splits with clips that are not used here: %s", shards.where,
                 ", ".join(f"{name} ({clips} clips)" for name, clips in unused.items() if clips))
    for name, clips in unused.items():
        if clips and (near := meant(name)):
            log.warning("%s: the %d clips of split %r are not used; did you mean %r? If so, correct it and pack again",
                        shards.where, clips, name, near)
