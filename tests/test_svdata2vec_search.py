"""The search of a study: every row chooses from the same grid by its validation clips, on rows whose scores are known."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_study import small_study, split_shards

from svdata2vec.config.label_efficiency import SearchConfig
from svdata2vec.config.schema import OptimConfig
from svdata2vec.shards.errors import UserError
from svdata2vec.studies import study
from svdata2vec.studies.label_efficiency import label_efficiency
from svdata2vec.studies.rows import Cell, Kind, Outcome
from svdata2vec.studies.study import Plan, run_study


@dataclass(frozen=True)
class Planted:
    """A row whose scores are known: best at lr 0.01 with few labels, at 0.1 with many; seeds move all alike."""

    name: str = "planted"
    kind: Kind = "ours"
    gain: float = 0.0
    grid: tuple[str, ...] = ("lr", "steps")

    @property
    def title(self) -> str:
        return self.name

    def settings(self) -> dict[str, Any]:
        return {"gain": self.gain}

    def varies(self, fraction: float) -> bool:
        return True

    def before(self, cells: Any) -> list[Any]:
        return []

    def run(self, cell: Cell, folder: Path) -> Outcome:
        chosen = dict(cell.choice)
        best = 0.01 if cell.fraction < 0.2 else 0.1
        right = 0.2 * (chosen.get("lr") == best) + (0.1 if chosen.get("steps") == 9 else 0.0)
        luck = 0.3 if cell.validate and cell.seed == 1 and chosen.get("lr") != best else 0.0  # of one seed alone
        trap = -1.0 if not cell.validate and "lr" not in chosen else 0.0
        score = 0.3 + right + luck + trap + self.gain + 0.01 * cell.seed
        return {"score": score, "labels": int(100 * cell.fraction), "steps": 9, "clips_seen": 9, "cpu_seconds": 1.0}


def test_every_row_chooses_by_the_same_grid_on_validation_clips(tmp_path: Path) -> None:
    search = SearchConfig(lr=(0.1, 0.01), steps=(3, 9), drop_path=(0.5,), seeds=2, fractions=(0.1, 1.0))
    rows = [Planted(), Planted("other", "rival", 0.125)]
    found = run_study(Plan(rows, (0.1, 0.25, 0.4, 1.0), [0, 1, 2], search, tmp_path))
    for row, gain in zip(found["rows"], (0.0, 0.125), strict=True):
        assert [cell["choice"] for cell in row["cells"]] == [
            {"lr": lr, "steps": 9} for lr in (0.01, 0.01, 0.1, 0.1)  # by its ratio a quarter is nearer to a tenth, 40 % to all
        ]
        assert row["cells"][3]["scores"] == pytest.approx([0.6 + gain + 0.01 * seed for seed in range(3)])
    assert len(found["search"]) == 4 and all(len(tried["grid"]) == 4 for tried in found["search"])
    assert all(len(each["scores"]) == 2 for tried in found["search"] for each in tried["grid"])
    assert len([*tmp_path.glob("cells/*-val-*")]) == 2 * 2 * 4 * 2  # rows, shares, combinations, seeds
    for each in found["differences"]:
        assert (each["row"], each["against"], each["seeds"]) == ("planted", "other", 3)
        assert each["mean"] == pytest.approx(-0.125) and each["interval"] == pytest.approx([-0.125, -0.125])


def test_a_single_value_is_taken_untried(tmp_path: Path) -> None:
    """By the row that has no other; one that may choose is searched as ever."""
    search = SearchConfig(lr=(0.1,), weight_decay=(1.0, 2.0), fractions=(0.1,))
    rows = [Planted(), Planted("other", "rival", grid=("lr", "weight_decay"))]
    found = run_study(Plan(rows, (0.1, 1.0), [0], search, tmp_path))
    assert [cell["choice"] for cell in found["rows"][0]["cells"]] == 2 * [{"lr": 0.1}]
    assert [tried["row"] for tried in found["search"]] == ["other"]
    assert sorted(path.name.split("-")[0] for path in tmp_path.glob("cells/*-val-*")) == ["other", "other"]


def test_cells_without_a_search_are_none_of_a_study_whose_search_is_not_finished(tmp_path: Path) -> None:
    """A study that is searched after all, in the same folder, and collected before it has chosen: its other row tells more."""
    rows = [Planted(), Planted("fixed", "rival", grid=())]
    run_study(Plan(rows, (0.1,), [0], SearchConfig(), tmp_path))
    found = run_study(Plan(rows, (0.1,), [0], SearchConfig(lr=(0.1, 0.01)), tmp_path, collect=True))
    assert [len(row["cells"]) for row in found["rows"]] == [1] and found["rows"][0]["name"] == "fixed"


def test_a_grid_that_has_grown_has_not_chosen_before_all_of_it_is_tried(tmp_path: Path) -> None:
    """Else rows of one record were searched over different grids; what the smaller one chose is collected by its options."""
    rows, smaller, grown = [Planted()], SearchConfig(lr=(0.1, 0.2)), SearchConfig(lr=(0.1, 0.2, 0.01))
    run_study(Plan(rows, (0.1,), [0], smaller, tmp_path))
    found = [run_study(Plan(rows, (0.1,), [0], search, tmp_path, collect=True)) for search in (smaller, grown)]
    assert [(len(each["rows"]), len(each["search"])) for each in found] == [(1, 1), (0, 0)]


def test_the_record_says_how_many_clips_its_scores_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of earlier studies do not say."""
    plan = Plan([Planted()], (0.1,), [0], SearchConfig(), tmp_path)
    (earlier,) = run_study(plan)["rows"][0]["cells"]
    assert not {"count", "clips"} & earlier.keys()
    made = Planted.run
    monkeypatch.setattr(Planted, "run", lambda row, cell, folder: {**made(row, cell, folder), "count": 11, "clips": 12})
    (cell,) = run_study(replace(plan, out=tmp_path / "new"))["rows"][0]["cells"]
    assert (cell["count"], cell["clips"]) == (11, 12)


def test_intervals_are_students_and_paired() -> None:
    rows = [
        {"name": name, "kind": kind, "cells": [{"fraction": 0.1, "scores": scores}]}
        for name, kind, scores in (("a", "ours", [0.5, 0.6, 0.7, None]), ("b", "rival", [0.4, 0.55, 0.55, 0.9]))
    ]
    third = {"name": "c", "kind": "ours", "cells": [{"fraction": 0.1, "scores": [0.5, 0.5, 0.5, 0.5]}]}
    pairs = [(each["row"], each["against"]) for each in study.differences([*rows, third])]
    assert pairs == [("a", "b"), ("a", "c"), ("c", "b")], "of two of ours once"
    (found,) = study.differences(rows)
    values = np.array([0.1, 0.05, 0.15])
    half = 4.3027 * values.std(ddof=1) / math.sqrt(3)
    assert found["mean"] == pytest.approx(0.1) and found["seeds"] == 3
    assert found["interval"] == pytest.approx([0.1 - half, 0.1 + half])


# ---- on shards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_shards(tmp_path_factory.mktemp("splits"))


def test_a_named_validation_split_serves_the_search_alone(shards: Path, tmp_path: Path) -> None:
    config = small_study(shards, tmp_path, seeds=1, fractions=(1.0,), search=SearchConfig(lr=(0.001, 0.002)))
    named = replace(config, data=replace(config.data, val_split="t_val"))
    assert label_efficiency(named)["rows"][0]["cells"][0]["labels"] == 6


@pytest.mark.parametrize(
    ("ways", "search", "message"),
    [
        (("scratch",), SearchConfig(lr=(0.1,), seeds=4), r"^search\.seeds is 4: expected 1 to 2 \(seeds\)$"),
        (("scratch",), SearchConfig(weight_decay=(0.1,)), r"^search\.weight_decay .*\(scratch\) has it; .* one of linear$"),
        (("linear",), SearchConfig(steps=(3,)), r"^search\.steps is given, but nothing in ways \(linear\) has it"),
        (("attentive", "linear"), SearchConfig(drop_path=(0.1,)), r"^search\.drop_path is given, but nothing in ways"),
        (("scratch",), SearchConfig(lr=(0.1,)), r"^search\.lr has .* optim\.base_lr would take their place; leave one"),
        (("scratch",), SearchConfig(lr=(0.1, 1e-6)), r"^search\.lr has 1e-06: the rate would rise from there to optim\.min_lr"),
        (("scratch",), SearchConfig(lr=(0.1,), fractions=(0.1,)), r"^search\.fractions, .* there is nothing to choose; give"),
        (("scratch",), SearchConfig(seeds=2), r"there is nothing to choose; give several values to one of search\.lr, "),
    ],
)
def test_a_pointless_search_is_refused(
    ways: tuple, search: SearchConfig, message: str, shards: Path, tmp_path: Path
) -> None:
    optim = OptimConfig(base_lr=0.1 if "base_lr" in message else 0.0)
    with pytest.raises(UserError, match=message):
        small_study(shards, tmp_path, ways=ways, search=search, optim=optim)


def test_a_study_without_a_search_needs_no_validation_split(shards: Path, tmp_path: Path) -> None:
    config = small_study(shards, tmp_path)
    for given in ({"val_split": "t_val"}, {"val_fraction": 0.2}):
        with pytest.raises(UserError, match=r"data\.val_fraction say where to choose, but there is nothing to choose"):
            replace(config, data=replace(config.data, **given))
    for twice in ({"lr": (0.1, 0.2, 0.1)}, {"steps": (3, 3)}, {"fractions": (0.1, 0.1)}):
        with pytest.raises(UserError, match=r"^search\.\w+ is .*: expected every value once"):
            SearchConfig(**twice)
