"""Accuracy over the number of labels: the record of `svdata2vec label-efficiency`, drawn, with further runs as points on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svdata2vec.config.checked_json import NUMBER, check_record
from svdata2vec.config.files import read_json
from svdata2vec.reports.html_page import legend_name
from svdata2vec.reports.results import NAMES
from svdata2vec.shards.errors import UserError, require_file
from svdata2vec.shards.ranges import LARGEST, Range

COMMAND = "`svdata2vec label-efficiency PRESET`"
LINES = {"ours": "-", "rival": "--", "control": ":", "reference": "-."}  # of each kind of row
COLOURS = [colormaps[name](number) for name, size in (("tab10", 10), ("Dark2", 8)) for number in range(size)]
SCHEMA: dict[str, Any] = {
    "metric": set(NAMES), "seeds": [int], "settings?": {"pretrained?": [str]},
    "data": {
        "name": str, "fingerprint": str, "classes": Range(1, LARGEST), "test_split": str, "clips": {"*": Range(0, LARGEST)},
    },
    "rows": [{
        "title": str, "kind": set(LINES),
        "cells": [{"labels": Range(1, LARGEST), "mean?": NUMBER, "interval?": [NUMBER]}],
    }],
}


@dataclass(frozen=True)
class Point:
    """A run that is not in the record: labelled clips and accuracy (0..1); number of its test clips, if they are others."""

    title: str
    labels: int
    score: float
    other_clips: int | None = None


def read_record(path: Path) -> dict[str, Any]:
    """A checked record; UserError names the file and what is wrong with it."""
    require_file(path, f"a record written by {COMMAND}")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("kind") != "label-efficiency":
        raise UserError(f"{path}: not a record of label efficiency; expected a file that {COMMAND} wrote")
    check_record(record, SCHEMA, path)
    wrong = [cell for row in record["rows"] for cell in row["cells"] if len(cell.get("interval") or (0, 1)) != 2]
    if wrong:
        raise UserError(f"{path} is damaged: an interval of {len(wrong[0]['interval'])} numbers, expected 2")
    return record


def points_on(record: dict[str, Any], results: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[Point], list[str]]:
    """From (run, its result): points for a record's chart, and for each run that is left out the reason."""
    points, left_out = [], []
    for title, result in results:
        if differing := _differing(record["data"], result):
            left_out.append(f"{title} ({differing})")
        else:
            points.append(Point(title, result["labels"], result[record["metric"]], _other_clips(record["data"], result)))
    return points, left_out


def _differing(data: dict[str, Any], result: Mapping[str, Any]) -> str:
    """How a result's data differ from those of the lines; empty if they do not."""
    found = {
        "data set": (result.get("dataset", "unknown"), data["name"]),
        "test split": (result.get("split", "unknown"), data["test_split"]),
        "classes": (len(result["classes"]), data["classes"]),
    }
    return ", ".join(f"{what} {its}, lines: {theirs}" for what, (its, theirs) in found.items() if its != theirs)


def _other_clips(data: dict[str, Any], result: Mapping[str, Any]) -> int | None:
    """Number of a result's test clips, if they are not those of the lines; None if they are."""
    clips: int = result.get("clips", result["count"])
    same = result.get("fingerprint") == data["fingerprint"] and clips == data["clips"].get(data["test_split"])
    return None if same else clips


def label_curve(record: dict[str, Any], points: Sequence[Point] = ()) -> Figure:
    """A line per row with 95 % intervals over seeds, chance, and the points; labels on a logarithmic axis, accuracy in %."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(record["rows"]):
        _line(axes, row, COLOURS[number % len(COLOURS)])
    for number, point in enumerate(points):
        marker = "*Pd^vXs"[number % 7]
        axes.plot([point.labels], [100 * point.score], marker, color="black", ms=9, label=legend_name(point.title))
    axes.axhline(100 / record["data"]["classes"], color="grey", lw=1, label="chance")
    labels = {cell["labels"] for row in record["rows"] for cell in row["cells"]}
    axes.set_xscale("log")
    axes.set_xticks(sorted(labels), [f"{count:,}" for count in sorted(labels)])
    axes.minorticks_off()
    axes.set_ylim(0, min(100, axes.get_ylim()[1]))  # intervals of few seeds reach beyond what an accuracy can be
    axes.set_xlabel("labelled clips")
    axes.set_ylabel(f"{NAMES[record['metric']]} (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _line(axes: Axes, row: dict[str, Any], colour: tuple[float, ...]) -> None:
    """Means of the cells that have one; a bar where there is an interval."""
    cells = sorted((cell for cell in row["cells"] if cell.get("mean") is not None), key=lambda cell: cell["labels"])
    if not cells:
        return
    labels, means = [cell["labels"] for cell in cells], [100 * cell["mean"] for cell in cells]
    axes.plot(labels, means, LINES[row["kind"]], color=colour, marker=".", label=legend_name(row["title"]))
    for cell in cells:
        if cell.get("interval"):
            axes.plot([cell["labels"]] * 2, [100 * end for end in cell["interval"]], color=colour, lw=4, alpha=0.3)


def caption(record: dict[str, Any], points: Sequence[Point]) -> str:
    """What the picture shows."""
    data = record["data"]
    starts = [start for start in record.get("settings", {}).get("pretrained", ()) if "{seed}" not in start]
    one = ", which share one pretraining run" if starts and len(record["seeds"]) > 1 else ""
    lines = f"Lines: means over {len(record['seeds'])} seeds{one} on {data['name']}, bars: their 95 % intervals (Student's)"
    marks = "Black marks: single runs of this report, perhaps with fewer unlabelled clips"
    others = [f"{point.title} ({point.other_clips:,})" for point in points if point.other_clips is not None]
    clips = data["clips"].get(data["test_split"], 0)
    apart = f"Of other clips of this name, whose test clips are counted here: {', '.join(others)}; lines: {clips:,}"
    return ". ".join([lines, *([marks] if points else []), *([apart] if others else [])])
