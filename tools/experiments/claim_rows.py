"""Rows of the claim besides those of the study: the small CNN, and what is trained end to end with more steps on labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import small_cnn

from svdata2vec.config.label_efficiency import LabelEfficiencyConfig, Way
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.shards.errors import UserError
from svdata2vec.studies.rows import Cell, FinetuneRow, Kind, Outcome, Row, data_settings


@dataclass(frozen=True)
class SmallCnnRow:
    """A small network for such clips, from scratch on RGB: the same labels, frames, steps, clips per step and grid.

    Its colours change as its recipe has it, whatever those of the other rows do.
    """

    study: LabelEfficiencyConfig
    name: str = "small_cnn"
    title: str = "small CNN, from scratch"
    kind: Kind = "rival"
    grid: tuple[str, ...] = ("lr", "steps")

    def settings(self) -> dict[str, Any]:
        study = self.study
        about = {"steps": study.steps, "batch_size": study.run.batch_size, "persons": study.model.persons}
        return {"data": data_settings(replace(study.data, augment=AugmentConfig())), **about}

    def before(self, cells: Sequence[Cell]) -> list[Callable[[], Any]]:
        return []

    def run(self, cell: Cell, folder: Path) -> Outcome:
        base, chosen = self.study.classifier(), dict(cell.choice)
        return small_cnn.run(
            replace(base, run=replace(base.run, seed=cell.seed), label_fraction=cell.fraction),
            lr=chosen.get("lr", small_cnn.LR), steps=int(chosen.get("steps", self.study.steps)) or small_cnn.STEPS,
            validate=cell.validate,
        )


@dataclass(frozen=True)
class Longer:
    """Another row with `times` the steps on labels: those of its choice, or `steps`."""

    row: Row
    times: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.row.name}_longer"

    @property
    def title(self) -> str:
        return f"{self.row.title}, {self.times} times the steps"

    @property
    def kind(self) -> Kind:
        return self.row.kind

    @property
    def grid(self) -> tuple[str, ...]:
        return self.row.grid

    @property
    def start(self) -> str | None:
        return getattr(self.row, "start", None)

    def settings(self) -> dict[str, Any]:
        return {**self.row.settings(), "times": self.times}

    def before(self, cells: Sequence[Cell]) -> list[Callable[[], Any]]:
        return self.row.before(cells)

    def run(self, cell: Cell, folder: Path) -> Outcome:
        chosen = dict(cell.choice)
        chosen["steps"] = self.times * int(chosen.get("steps", self.steps))
        return self.row.run(replace(cell, choice=tuple(chosen.items())), folder)


def further_rows(study: LabelEfficiencyConfig, times: int = 1) -> list[Row]:
    """Rows of the claim besides those of the study: the small CNN; where `times` is more than 1, it, scratch and the first side
    fine-tuned with so many times the steps, too. UserError unless the study counts in steps."""
    if times == 1:
        return [SmallCnnRow(study)]
    if not (study.steps or study.search.steps):
        raise UserError("--times counts from the study's steps; give --study --steps or --search.steps")
    (first, _, start), base = study.pretrained[0].partition("="), study.classifier()
    title = f"{first.replace('_', ' ')}, fine-tuned"
    kind: Kind = "ours" if first == "pretrained" else "rival"
    trained: dict[Way, Row] = {
        "scratch": FinetuneRow("scratch", "from scratch", "rival", base, study.steps),
        "finetune": FinetuneRow(first, title, kind, base, study.steps, start),
    }
    rows = [SmallCnnRow(study), *(row for way, row in trained.items() if way in study.ways)]
    return [SmallCnnRow(study), *(Longer(row, times, study.steps) for row in rows)]
