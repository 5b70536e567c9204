"""A study: a hyper-parameter search, then the cells of all rows, and their comparison over seeds."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from svdata2vec.config.label_efficiency import SearchConfig
from svdata2vec.config.schema import Device
from svdata2vec.runs.intervals import mean_over_seeds
from svdata2vec.runs.provenance import UNKNOWN
from svdata2vec.shards.atomic import make_folder
from svdata2vec.shards.lock import folder_lock
from svdata2vec.studies.jobs import run_all
from svdata2vec.studies.rows import Cell, Choice, Outcome, Row, found_outcome, run_cell

log = logging.getLogger(__name__)

Chosen = dict[tuple[str, float], Choice]  # by row and share of labels
Found = dict[tuple[str, Cell], Outcome | None]  # None: not finished


@dataclass(frozen=True)
class Plan:
    """What a study runs.

    Attributes:
        rows: in the order of the record.
        fractions, seeds: shares of the labels, and seeds, of every row.
        search: the grid, and the shares and seeds that it is tried on.
        out: folder of cells, runs and features.
        fingerprint: of the shards.
        jobs: runs at a time.
        keep_runs: keep the folders of finished runs.
        collect: start nothing, use what is finished.
        device: where the runs train.
    """

    rows: Sequence[Row]
    fractions: Sequence[float]
    seeds: Sequence[int]
    search: SearchConfig
    out: Path
    fingerprint: str = ""
    jobs: int = 1
    keep_runs: bool = False
    collect: bool = False
    device: Device = "auto"


def run_study(plan: Plan) -> dict[str, Any]:
    """Search, then run every cell with the hyper-parameters chosen; returns rows, differences and search as in the record.

    Raises UserError if another study is running in the folder.
    """
    if plan.collect:
        return _search_and_run(plan)
    make_folder(plan.out)
    with folder_lock(plan.out, "running a study in"):
        for unfinished in plan.out.glob("*/*.tmp"):  # of a study that was killed
            unfinished.unlink(missing_ok=True)
        return _search_and_run(plan)


def _search_and_run(plan: Plan) -> dict[str, Any]:
    tried = list(search_cells(plan))
    chosen, search = _choose(plan, _run(plan, tried))
    cells = [
        (row, Cell(fraction, seed, tuple(chosen[row.name, fraction].items())))
        for row in plan.rows for fraction in plan.fractions if (row.name, fraction) in chosen for seed in plan.seeds
    ]
    found = _run(plan, cells)
    rows = [row for each in plan.rows if (row := _row(plan, each, chosen, found))["cells"]]
    return {"seeds": list(plan.seeds), "rows": rows, "differences": differences(rows), "search": search}


def _run(plan: Plan, cells: Sequence[tuple[Row, Cell]]) -> Found:
    if plan.collect:
        return {(row.name, cell): found_outcome(row, cell, plan.out, plan.fingerprint) for row, cell in cells}
    waiting: dict[str, tuple[Row, list[Cell]]] = {}
    for row, cell in cells:
        if found_outcome(row, cell, plan.out, plan.fingerprint) is None:
            waiting.setdefault(row.name, (row, []))[1].append(cell)
    left = sum(len(each) for _, each in waiting.values())
    if left:
        log.info("%s: %d of %d runs to do, %d at a time", plan.out, left, len(cells), plan.jobs)
    elif cells:
        log.info("%s: all %d runs are finished already", plan.out, len(cells))
    before: dict[str, Callable[[], Any]] = {repr(job): job for row, each in waiting.values() for job in row.before(each)}
    run_all([*before.values()], plan.jobs, plan.device)
    # The longest first, i.e. those with most labels and steps, so that no process idles at the end.
    order = sorted(cells, key=lambda each: -each[1].fraction * dict(each[1].choice).get("steps", 1))
    jobs = [partial(run_cell, row, cell, plan.out, plan.fingerprint, plan.keep_runs) for row, cell in order]
    outcomes = run_all(jobs, plan.jobs, plan.device)
    return {(row.name, cell): outcome for (row, cell), outcome in zip(order, outcomes, strict=True)}


# ---- the search -------------------------------------------------------------------------------------------------------


def combinations(row: Row, search: SearchConfig) -> list[Choice]:
    """All combinations of those values of the grid that apply to a row; just the empty one if none does."""
    names = [name for name in row.grid if getattr(search, name)]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(getattr(search, n) for n in names))]


def search_cells(plan: Plan) -> Iterable[tuple[Row, Cell]]:
    """What the search tries, for the rows that have more than one combination to choose from."""
    for row in plan.rows:
        choices = combinations(row, plan.search)
        if len(choices) > 1:
            for fraction, choice in itertools.product(plan.search.fractions or plan.fractions, choices):
                yield from ((row, cell) for cell in _trials(plan, fraction, choice))


def _trials(plan: Plan, fraction: float, choice: Choice) -> list[Cell]:
    """The cells that try a combination, one for each seed of the search."""
    return [Cell(fraction, seed, tuple(choice.items()), validate=True) for seed in plan.seeds[: plan.search.seeds]]


def _choose(plan: Plan, found: Found) -> tuple[Chosen, list[dict[str, Any]]]:
    """For every row and share, the combination with the best mean over seeds on validation clips; the first if several tie.

    A row with a single combination takes it untried. While a search is unfinished (`plan.collect`), nothing is chosen.
    """
    best: Chosen = {}
    tried = []
    searched = plan.search.fractions or plan.fractions
    for row, fraction in itertools.product(plan.rows, searched):
        choices = combinations(row, plan.search)
        if len(choices) == 1:
            best[row.name, fraction] = choices[0]
        elif grid := _grid(plan, row, fraction, choices, found):
            choice, _ = max(grid, key=lambda result: mean(result[1]))
            best[row.name, fraction] = choice
            results = [{**other, "scores": scores} for other, scores in grid]
            tried.append({"row": row.name, "fraction": fraction, "chosen": choice, "grid": results})
    chosen = {
        (row.name, fraction): best[row.name, nearest]
        for row in plan.rows for fraction in plan.fractions
        if (row.name, nearest := min(searched, key=lambda other: abs(math.log(other / fraction)))) in best
    }
    return chosen, tried


def _grid(
    plan: Plan, row: Row, fraction: float, choices: Sequence[Choice], found: Found
) -> list[tuple[Choice, list[float]]]:
    """Every combination with its scores, by seed; empty while any of them is missing."""
    grid = []
    for choice in choices:
        outcomes = [found[row.name, cell] for cell in _trials(plan, fraction, choice)]
        scores = [outcome["score"] for outcome in outcomes if outcome is not None]
        if len(scores) < len(outcomes):
            return []
        grid.append((choice, scores))
    return grid


# ---- the comparison ---------------------------------------------------------------------------------------------------


def _row(plan: Plan, row: Row, chosen: Chosen, found: Found) -> dict[str, Any]:
    cells = []
    for fraction in plan.fractions:
        choice = chosen.get((row.name, fraction))
        if choice is None:
            continue
        outcomes = [found[row.name, Cell(fraction, seed, tuple(choice.items()))] for seed in plan.seeds]
        there = [outcome for outcome in outcomes if outcome is not None]
        if there:
            scores, spent = ([outcome[name] if outcome else None for outcome in outcomes] for name in ("score", "cpu_seconds"))
            cells.append({
                "fraction": fraction, "choice": choice, "scores": scores, **over_seeds(scores),
                **({} if row.varies(fraction) else {"interval": None}),
                **{name: there[0][name] for name in ("labels", "steps", "clips_seen")},
                **{name: value for name, value in there[0].items() if name in ("count", "clips")},  # earlier ones lack them
                "cpu_seconds": spent,
                "commits": sorted({made_by for outcome in there for made_by in _commits(outcome)}),
            })
    return {"name": row.name, "title": row.title, "kind": row.kind, "cells": cells}


def _commits(outcome: Outcome) -> list[str]:
    """Commits that an outcome was made at; those of earlier versions name the last one alone."""
    found: list[str] = outcome.get("commits") or [outcome.get("commit") or UNKNOWN]
    return found


def over_seeds(scores: Sequence[float | None]) -> dict[str, Any]:
    """Mean of the scores that exist, and its 95 % interval by Student's t; no interval for a single score."""
    values = [score for score in scores if score is not None]
    if len(values) < 2:
        return {"mean": values[0] if values else None, "interval": None}
    middle, interval = mean_over_seeds(values)
    return {"mean": middle, "interval": list(interval)}


def fewer_seeds(there: int, wanted: int) -> str:
    """Suffix of a figure from fewer seeds than the study has; empty if none is missing."""
    return "" if there == wanted else f", {there} of {wanted} seeds"


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row of ours against all others, paired by seed, at every share of labels; not corrected for multiple comparisons."""
    found = []
    for row, other in itertools.permutations(rows, 2):
        if row["kind"] != "ours" or (other["kind"] == "ours" and rows.index(other) < rows.index(row)):
            continue
        theirs = {cell["fraction"]: cell for cell in other["cells"]}
        for cell in row["cells"]:
            its_cell = theirs.get(cell["fraction"], {"scores": [None] * len(cell["scores"])})
            pairs = zip(cell["scores"], its_cell["scores"], strict=True)
            values = [mine - its for mine, its in pairs if mine is not None and its is not None]
            if values:
                about = {"row": row["name"], "against": other["name"], "fraction": cell["fraction"]}
                varies = any(each.get("interval", ()) is not None for each in (cell, its_cell))
                compared = over_seeds(values) | ({} if varies else {"interval": None})
                found.append({**about, **compared, "seeds": len(values)})
    return found
