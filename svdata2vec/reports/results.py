"""The result of an evaluation in words: accuracies with their intervals, the weakest classes, the most frequent confusions."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from svdata2vec.runs.intervals import accuracy_intervals, class_hits, wilson

NAMES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean per class"}
INTERVALS = "95 % intervals: Wilson's score; of the mean per class, from Wilson's of the classes"
LINES = 15  # of a list in a terminal


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(share: float, interval: Sequence[float]) -> str:
    """72.0 % (69.1 to 74.7)."""
    return f"{percent(share)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def accuracies(result: Mapping[str, Any]) -> dict[str, str]:
    """Each accuracy of a result with its interval, by name. Results of earlier versions have none: it is computed."""
    intervals = result.get("intervals") or accuracy_intervals(result["top1"], result["top5"], result["confusion"])
    return {name: with_interval(result[name], intervals[name]) for name in NAMES}


def by_probe(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name of the probe, its figures) of a probe run's result; those of earlier versions lack some."""
    names = {"linear probe": result, "attentive probe": result.get("attentive")}
    names |= {"nearest neighbour": result.get("nearest"), f"{result['knn']['neighbours']} nearest neighbours": result["knn"]}
    return [(name, figures) for name, figures in names.items() if figures is not None]


def scored(result: Mapping[str, Any]) -> str:
    """How many clips the figures are of: 100, or 98 of 100 where some could not be read."""
    count = result["count"]
    clips = result.get("clips", count)  # earlier versions did not say
    return str(count) if clips == count else f"{count} of {clips}"


def class_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(class, clips, accuracy with its interval) from the weakest up; classes without a clip last."""
    rows = [(hits / total if total else 2.0, name, hits, total) for name, (hits, total) in zip(
        result["classes"], class_hits(result["confusion"]), strict=True)]
    return [
        (name, str(total), with_interval(hits / total, wilson(hits, total)) if total else "")
        for _, name, hits, total in sorted(rows, key=lambda row: (row[0], -row[3]))
    ]


def confusion_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(true class, class it was taken for, clips) of all mistakes, the most frequent first."""
    cells = [
        (count, true, predicted)
        for true, row in enumerate(result["confusion"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    names, totals = result["classes"], [total for _, total in class_hits(result["confusion"])]
    return [
        (names[true], names[predicted], f"{count} of {totals[true]}")
        for count, true, predicted in sorted(cells, key=lambda cell: (-cell[0], *cell[1:]))
    ]


def summary(result: Mapping[str, Any], width: int) -> str:
    """A result for a terminal of so many columns: a few lines per list, names cut where they are too long."""
    views = f", mean of {result['views']} views of a clip" if result["views"] > 1 else ""
    about = (
        f"{scored(result)} clips of split {result['split']} of {result['dataset']} (fingerprint {result['fingerprint'][:12]}), "
        f"seed {result['seed']}, {result['date']}{views}"
    )
    blocks = [
        [result["run"], *textwrap.wrap(about, width)],
        _columns([(NAMES[name], found) for name, found in accuracies(result).items()], width),
        _list(("class", "clips", "accuracy"), class_rows(result), "classes", width),
    ]
    mistakes = confusion_rows(result)
    if mistakes:
        blocks.append(_list(("class", "taken for", "clips"), mistakes, "confusions", width))
    blocks.append(textwrap.wrap(INTERVALS, width))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _list(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], what: str, width: int) -> list[str]:
    more = len(rows) - LINES
    return [*_columns([header, *rows[:LINES]], width), *([f"and {more} more {what}: --json has all"] if more > 0 else [])]


def _columns(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Rows as lines: the last column whole, those before it cut evenly to what is left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[:-1]) > 4:
        widest = max(range(len(widths) - 1), key=lambda column: widths[column])
        widths[widest] -= 1
    return ["  ".join(_fit(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fit(cell: str, size: int) -> str:
    return cell.ljust(size) if len(cell) <= size else f"{cell[: size - 1]}…"
