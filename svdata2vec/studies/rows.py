"""Rows of a study: ways to get a classifier from few labels. A cell is one run of a row: share of labels, seed, choice."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from svdata2vec.config.checked_json import values_hash
from svdata2vec.config.files import read_json, to_values
from svdata2vec.config.schema import DataConfig, FinetuneConfig
from svdata2vec.runs.card import read_card, weights_hash
from svdata2vec.runs.data import labelled_rows, open_data, taken_per_epoch
from svdata2vec.runs.folder import TECHNICAL
from svdata2vec.runs.image_init import images_hash
from svdata2vec.runs.metrics_log import cost, read_metrics
from svdata2vec.runs.provenance import UNKNOWN, commit
from svdata2vec.runs.validation import hold_out, validation_split
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.training.finetune import finetune
from svdata2vec.training.optim import resolve

Kind = Literal["ours", "rival", "control", "reference"]
Choice = dict[str, float]  # hyper-parameters by name
# Score, count (of clips scored), clips (of the split), labels, steps, clips_seen, cpu_seconds, commits.
Outcome = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a row. `validate`: tested on validation clips, for the search, instead of the test split."""

    fraction: float
    seed: int
    choice: tuple[tuple[str, float], ...] = ()
    validate: bool = False

    @property
    def name(self) -> str:
        chosen = "".join(f"-{name}{_exact(value)}" for name, value in self.choice)
        return f"{_exact(self.fraction)}-{self.seed}{chosen}{'-val' if self.validate else ''}"


def _exact(value: float) -> str:
    """A number with few digits if they are exact, otherwise with all: two cells must not share a file."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


class Row(Protocol):
    """A way to get a classifier. `grid`: which of the search's hyper-parameters it has."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def grid(self) -> tuple[str, ...]: ...

    def settings(self) -> dict[str, Any]:
        """Everything but the cell that decides its figures."""

    def varies(self, fraction: float) -> bool:
        """Whether its scores with a share of the labels depend on the seed; if not, they have no interval over seeds."""

    def before(self, cells: Sequence[Cell]) -> list[Callable[[], Any]]:
        """Jobs to be done before these cells; equal jobs of several rows are done once."""

    def run(self, cell: Cell, folder: Path) -> Outcome:
        """Train and test; `folder` is for its run, and may hold an interrupted one to resume."""


def run_cell(row: Row, cell: Cell, out: Path, fingerprint: str = "", keep: bool = False) -> Outcome:
    """The cell's outcome: read from `out/cells`, or computed and written there.

    Args:
        fingerprint: of the shards.
        keep: keep the folder of its run.
    """
    found = found_outcome(row, cell, out, fingerprint)
    if found is not None:
        return found
    path, made = cell_path(row, cell, out), made_of(row, cell.seed, fingerprint)
    folder = out / "runs" / f"{path.stem}-{short_digest(made)}"  # with other shards or weights it is another run
    outcome = {"commits": [commit() or UNKNOWN], **row.run(cell, folder)}
    make_folder(path.parent)
    about = {"row": row.name, "cell": asdict(cell), "settings": row.settings(), "made_of": made}
    write_atomically(path, json.dumps({**about, "outcome": outcome}, indent=1).encode())
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def found_outcome(row: Row, cell: Cell, out: Path, fingerprint: str) -> Outcome | None:
    """Outcome of a finished cell; None if there is none, or if its shards or pretraining run have been replaced since."""
    path = cell_path(row, cell, out)
    if not path.is_file():
        return None
    found, now = read_json(path), made_of(row, cell.seed, fingerprint)
    if found.get("made_of", now) != now:
        log.warning("%s: its shards or its pretraining run have been replaced since; it does not count", path)
        return None
    return found["outcome"]


def made_of(row: Row, seed: int, fingerprint: str) -> dict[str, str | None]:
    """Hashes of what a cell reads, since names do not identify it: shards, and weights that it starts from."""
    start = getattr(row, "start", None)
    made: dict[str, str | None] = {
        "shards": fingerprint, "weights": None if start is None else weights_hash(start_of(start, seed))
    }
    images = row.base.model.init if isinstance(row, FinetuneRow) else None
    return made if images is None else {**made, "images": images_hash(images)}


def cell_path(row: Row, cell: Cell, out: Path) -> Path:
    """Where the outcome of a cell is stored; other settings go to another file."""
    return out / "cells" / f"{row.name}-{cell.name}-{short_digest(row.settings())}.json"


def short_digest(values: Any) -> str:
    """Eight hexadecimal digits that tell apart the files of different settings."""
    return values_hash(values)[:8]


def data_settings(data: DataConfig) -> dict[str, Any]:
    """The data settings that decide a row's figures."""
    return {name: value for name, value in to_values(data).items() if not f"data.{name}".startswith(TECHNICAL)}


def start_of(run: str, seed: int) -> Path:
    """The folder of a pretraining run, in which {seed} stands for the seed."""
    return Path(run.replace("{seed}", str(seed)))


@dataclass(frozen=True)
class FinetuneRow:
    """A network trained with labels, from scratch or from a pretraining run.

    Attributes:
        base: settings of the classifier.
        steps: optimizer steps, rounded up to whole epochs; 0 = `base.run.epochs`.
        start: pretraining run, or None.
        bonus_clips: further clips that it may see, worth the pretraining that others have had.
    """

    name: str
    title: str
    kind: Kind
    base: FinetuneConfig
    steps: int
    start: str | None = None
    bonus_clips: int = 0
    grid: tuple[str, ...] = ("lr", "steps", "drop_path")

    def settings(self) -> dict[str, Any]:
        values = {**to_values(self.base), "data": data_settings(self.base.data)}
        values["run"] = {name: values["run"][name] for name in ("epochs", "batch_size", "precision")}
        return {**values, "steps": self.steps, "start": self.start, "bonus_clips": self.bonus_clips}

    def varies(self, fraction: float) -> bool:
        return True

    def before(self, cells: Sequence[Cell]) -> list[Callable[[], Any]]:
        return []

    def clips(self, cell: Cell) -> tuple[str | None, int]:
        """The data set's own validation split for a cell of the search, if it has one; and how many clips an epoch takes."""
        shards, data = open_data(self.base.data), self.base.data
        rows, own = labelled_rows(shards, data.train_split, cell.fraction, cell.seed), None
        if cell.validate:
            own = validation_split(shards, data, shards.rows(data.train_split))
            rows = rows if own else rows[~hold_out(shards, rows, data.val_fraction, cell.seed)]
        return own, taken_per_epoch(shards, rows)

    def config(self, cell: Cell, folder: Path) -> FinetuneConfig:
        """The run of a cell: its share of labels, its budget in whole epochs, batches that the labelled clips fill."""
        chosen, base = dict(cell.choice), self.base
        own, labels = self.clips(cell)
        holds_out = cell.validate and own is None
        data = replace(base.data if holds_out else base.data.without_validation(), test_split=own or base.data.test_split)
        batch = min(base.run.batch_size, labels)
        accumulate = max(min(resolve(base.optim, batch, base.run.epochs).accumulate, labels // batch), 1)
        per_step, per_epoch = batch * accumulate, labels // batch * batch
        steps = int(chosen.get("steps", self.steps))
        clips = (steps * per_step if steps else base.run.epochs * per_epoch) + self.bonus_clips
        epochs = -(-clips // per_epoch)
        optim = replace(base.optim, lr=chosen.get("lr", base.optim.lr), accumulate=accumulate, lr_batch=0)
        if not optim.warmup_share:
            optim = replace(optim, warmup_share=min(base.optim.warmup_epochs / base.run.epochs, 0.5))
        return replace(
            base, data=data, optim=optim, label_fraction=cell.fraction, eval_every=epochs if holds_out else 0,
            head=replace(base.head, drop_path=chosen.get("drop_path", base.head.drop_path)),
            run=replace(base.run, out=folder, seed=cell.seed, epochs=epochs, batch_size=batch),
            pretrained=None if self.start is None else start_of(self.start, cell.seed),
        )

    def run(self, cell: Cell, folder: Path) -> Outcome:
        config = self.config(cell, folder)
        result = finetune(config)
        metric = config.data.metric
        tested = result["validation"] if config.eval_every else result
        return {
            "score": tested[metric], "count": tested["count"], "clips": tested["clips"], "labels": result["labels"],
            **cost(folder), "loss": read_metrics(folder)[-1]["loss"], "commits": read_card(folder)["commits"],
        }
