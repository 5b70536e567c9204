"""Probes as rows of a study. Features of a pretraining run are computed once and serve all shares of the labels.

n clips, v views, T tokens of a clip, D width, c classes
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svdata2vec.config.files import read_json
from svdata2vec.config.probe import AttentiveConfig, ProbeConfig
from svdata2vec.evaluation.attentive import attentive_scores, fit_attentive
from svdata2vec.evaluation.features import Features, load_encoder
from svdata2vec.evaluation.metrics import measure
from svdata2vec.evaluation.probe import fit_linear, linear_scores, split_features
from svdata2vec.runs.card import read_card, weights_hash
from svdata2vec.runs.data import labelled_rows, open_data
from svdata2vec.runs.provenance import UNKNOWN, commit
from svdata2vec.runs.published import published_config
from svdata2vec.runs.runtime import pick_device, running
from svdata2vec.runs.validation import hold_out, validation_split
from svdata2vec.shards.annotations import safe_key
from svdata2vec.shards.atomic import make_folder, npy_bytes, write_atomically
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.studies.rows import Cell, Kind, Outcome, short_digest, start_of

# The data settings that features depend on.
SEEN = ("num_frames", "size", "crop", "crop_scores", "frame_draw", "views", "decoder")


@dataclass(frozen=True)
class ProbeRow:
    """A probe of the frozen RGB features of a pretraining run.

    Attributes:
        base: settings of the probes.
        start: the pretraining run.
        features: folder of the features.
    """

    name: str
    title: str
    kind: Kind
    probe: Literal["linear", "attentive"]
    base: ProbeConfig
    start: str
    features: Path

    @property
    def grid(self) -> tuple[str, ...]:
        return ("weight_decay",) if self.probe == "linear" else ("lr", "steps")

    def settings(self) -> dict[str, Any]:
        base = self.base
        own: Any = asdict(base.attentive) if self.probe == "attentive" else [base.weight_decay, base.iterations]
        names = (*SEEN, "shards", "train_split", "test_split", "val_split", "val_fraction", "metric")
        return {"start": self.start, "probe": own, "data": {name: getattr(base.data, name) for name in names}}

    def varies(self, fraction: float) -> bool:
        return self.probe != "linear" or fraction < 1 or "{seed}" in self.start

    def before(self, cells: Sequence[Cell]) -> list[Callable[[], Any]]:
        train = self.base.data.train_split
        splits = dict.fromkeys(
            (start_of(self.start, cell.seed), split) for cell in cells for split in (train, self._tested(cell))
        )
        return [partial(make_features, self.base, start, split, self.features) for start, split in splits]

    def run(self, cell: Cell, folder: Path) -> Outcome:
        base, shards = self.base, open_data(self.base.data)
        split, tested, seed = base.data.train_split, self._tested(cell), cell.seed
        start = start_of(self.start, seed)
        rows = labelled_rows(shards, split, cell.fraction, seed)
        held = rows[:0]
        if cell.validate and tested == split:
            mask = hold_out(shards, rows, base.data.val_fraction, seed)
            rows, held = rows[~mask], rows[mask]
        train = read_features(base, start, split, self.features, shards, rows)
        test = read_features(base, start, tested, self.features, shards, held if len(held) else shards.rows(tested))
        begun, classes, chosen = time.process_time(), len(shards.split_classes(split)), dict(cell.choice)
        scores_nc = self._scores(train, test, classes, chosen, seed, start)
        figures = measure(scores_nc, test.labels_n, len(test.keys) + len(test.lost))
        about, about_tested = (_about(base, start, each, self.features) for each in (split, tested))
        return {
            "score": getattr(figures, base.data.metric), "count": figures.count, "clips": figures.clips,
            "labels": len(train.keys), **self._budget(chosen, train),
            "cpu_seconds": time.process_time() - begun + len(train.keys) * about["cpu_seconds"] / max(len(about["keys"]), 1),
            "commits": sorted({commit() or UNKNOWN, *(each.get("commit", UNKNOWN) for each in (about, about_tested))}),
        }

    def _budget(self, chosen: dict[str, float], train: Features) -> dict[str, int]:
        """Steps, and clips seen in them (each view counts); 0 for a linear map, which is fitted on all clips at once."""
        if self.probe == "linear":
            return {"steps": 0, "clips_seen": 0}
        own = self._attentive(chosen)
        return {"steps": own.steps, "clips_seen": own.steps * min(own.batch_size, len(train.keys) * self.base.data.views)}

    def _attentive(self, chosen: dict[str, float]) -> AttentiveConfig:
        own = self.base.attentive
        return replace(own, lr=chosen.get("lr", own.lr), steps=int(chosen.get("steps", own.steps)))

    def _tested(self, cell: Cell) -> str:
        """The split that a cell is tested on; in the search the training split, if the set has no validation split."""
        data = self.base.data
        if not cell.validate:
            return data.test_split
        shards = open_data(data)
        return validation_split(shards, data, shards.rows(data.train_split)) or data.train_split

    def _scores(
        self, train: Features, test: Features, classes: int, chosen: dict[str, float], seed: int, start: Path
    ) -> np.ndarray:
        base = self.base
        if self.probe == "linear":
            weight_decay = chosen.get("weight_decay", base.weight_decay)
            return linear_scores(fit_linear(train, classes, weight_decay, base.iterations), test)
        model, device = published_config(read_card(start), start).model, pick_device(base.device)
        return attentive_scores(fit_attentive(train, classes, self._attentive(chosen), model, seed, device), test, device)


def make_features(base: ProbeConfig, start: Path, split: str, folder: Path) -> None:
    """Write the tokens (n, v, T, D) of a split's clips and what they were made of, unless both are there."""
    path, shards = _place(base, start, split, folder), open_data(base.data)
    made_of = {"shards": shards.manifest.fingerprint, "weights": weights_hash(start)}
    if path.is_file() and path.with_suffix(".json").is_file():
        there = read_json(path.with_suffix(".json"))
        if there.get("made_of") == made_of and "cpu_seconds" in there:
            return
    path.with_suffix(".json").unlink(missing_ok=True)
    trained = load_encoder(start, base.modality, base.device)
    begun = time.process_time()
    with running(base.run) as runtime:
        found = split_features(replace(base, attentive=AttentiveConfig(1)), trained, shards, split, None, runtime)
    assert found.tokens_nvTD is not None
    make_folder(folder)
    write_atomically(path, npy_bytes(found.tokens_nvTD))
    about = {"keys": found.keys, "labels": found.labels_n.tolist(), "lost": found.lost, "made_of": made_of}
    about |= {"cpu_seconds": time.process_time() - begun, "commit": commit() or UNKNOWN}
    write_atomically(path.with_suffix(".json"), json.dumps(about).encode())


def _about(base: ProbeConfig, start: Path, split: str, folder: Path) -> dict[str, Any]:
    """What `make_features` wrote beside a split's features."""
    about: dict[str, Any] = read_json(_place(base, start, split, folder).with_suffix(".json"))
    return about


def read_features(base: ProbeConfig, start: Path, split: str, folder: Path, shards: ShardSet, rows: np.ndarray) -> Features:
    """Features of some rows of a split, in their order, from the files of `make_features`."""
    path, about = _place(base, start, split, folder), _about(base, start, split, folder)
    place = {key: number for number, key in enumerate(about["keys"])}
    keys = shards.names(rows)
    kept = [key for key in keys if key in place]
    chosen_n = np.array([place[key] for key in kept], np.int64)
    tokens_nvTD = np.load(path, mmap_mode="r")[chosen_n]
    lost = tuple(key for key in keys if key not in place)
    return Features(kept, tokens_nvTD.mean((1, 2)), np.array(about["labels"])[chosen_n], lost, tokens_nvTD)


def _place(base: ProbeConfig, start: Path, split: str, folder: Path) -> Path:
    seen = {name: getattr(base.data, name) for name in SEEN}
    about = [str(start.resolve()), base.data.shards, split, base.modality, seen]
    return folder / f"{start.name}-{safe_key(split)}-{short_digest(about)}.npy"
