"""One HTML file about one or several runs: figures, curves, confusion, inputs, and where the time went.

Everything is inside the file (pictures as data URIs), so it opens anywhere, without a network.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svdata2vec import __version__
from svdata2vec.config.files import to_json
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.reports.contact_sheet import contact_sheet, to_png
from svdata2vec.reports.html_page import drawn, figure_image, image, legend_name, note, page, preformatted, section, text
from svdata2vec.reports.label_curve import COLOURS, caption, label_curve, points_on, read_record
from svdata2vec.reports.result_tables import class_tables, outcomes, results
from svdata2vec.reports.results import scored
from svdata2vec.runs.data import build_loader, open_data
from svdata2vec.runs.folder import FINISHED, Settings, read_config, read_result
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.validation import choose_clips
from svdata2vec.shards.atomic import require_writable, write_atomically
from svdata2vec.shards.errors import UserError

# Figures of curves: logged fields with their titles, and a caption.
CURVES = (
    ({"loss": "loss", "accuracy": "training accuracy", "val_top1": "validation top-1",
      "val_mean_class": "validation, mean per class", "grad_norm": "gradient norm", "lr": "learning rate"},
     "Loss and accuracy by epoch"),
    ({"target_std": "target spread", "prediction_std": "prediction spread"},
     "Standard deviation of targets and predictions over the batch: a collapse would send both to zero"),
)
TIME_PARTS = {"data": "#e6a817", "forward": "#2f7ed8", "backward": "#1b4f91", "graph": "#2f7ed8", "optimizer": "#7f8c8d"}
DASHES = ("-", "--", ":", "-.")  # of curves, once all colours are taken
MOST_IN_A_COLUMN = 16  # runs in a legend, per row of curves
OTHER_COLOUR = "#d5dbe3"
MOST_COUNTED, MOST_NAMED = 40, 160  # classes of a confusion matrix with counts in it, and with names, a third of an inch each
TIMES = "Milliseconds per clip by part of training; other: whatever is no part of a step, such as validation and checkpoints"


@dataclass(frozen=True)
class Run:
    """What a run left in its folder."""

    name: str
    config: Settings
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None
    finished: bool = True

    def series(self, field: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a logged field."""
        rows = [row for row in self.metrics if field in row]
        return [row["epoch"] for row in rows], [row[field] for row in rows]


def write_report(folders: Sequence[Path], out: Path, label_efficiency: Path | None = None) -> None:
    """Write the report of these run folders to `out`; a folder that holds no run is an error that names it.

    label_efficiency: a record of `svdata2vec label-efficiency` whose curves come first, with the runs' classifiers as points.
    """
    if not folders:
        raise UserError("no run given; expected one or more run folders")
    if out.suffix not in (".html", ".htm"):  # as no file of a run does, nor the record
        raise UserError(f"{out}: expected a file name that ends in .html")
    require_writable(out)
    runs = [read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
    sections = [
        _label_curve(runs, label_efficiency) if label_efficiency is not None else "",
        results([each for run in runs for each in outcomes(run.name, run.config, run.result)]),
        section("Training curves", "".join(figure_image(curves(runs, fields), words) for fields, words in CURVES)),
        section("Where the time went", figure_image(times(runs), TIMES)),
        *(_confusion(run) for run in runs if run.result),
        _inputs(runs),
        section("Settings", "".join(_settings(run) for run in runs)),
    ]
    names = ", ".join(run.name if run.finished else f"{run.name} (not finished)" for run in runs)
    remark = f"svdata2vec {__version__}, PyTorch {torch.__version__}; runs: {names}"
    write_atomically(out, page("svdata2vec report", remark, sections).encode())


def names_of(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders around them as tell those of one name apart."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]  # noqa: PTH100 - a link keeps its own name

    def name(own: tuple[str, ...]) -> str:
        others = [other for other in parts if other != own]
        length = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        return str(Path(*own[-length:]))

    return [name(own) for own in parts]


def read_run(folder: Path, name: str) -> Run:
    """Configuration, metrics and result of a run's folder."""
    config, finished = read_config(folder), (folder / FINISHED).is_file()
    result = read_result(folder, config.kind) if config.kind != "pretrain" and finished else None
    return Run(name, config, read_metrics(folder), result, finished)


def _label_curve(runs: Sequence[Run], path: Path) -> str:
    record = read_record(path)
    tuned = [(run.name, run.result) for run in runs if run.config.kind == "finetune" and run.result]
    points, left_out = points_on(record, tuned)
    remark = note(f"Not drawn, as they are of something else: {'; '.join(left_out)}") if left_out else ""
    return section("Accuracy over labels", figure_image(label_curve(record, points), caption(record, points)) + remark)


def curves(runs: Sequence[Run], titles: dict[str, str]) -> Figure | None:
    """Those of the fields that a run has logged, two in a row."""
    names = [name for name in titles if any(run.series(name)[0] for run in runs)]
    if not names:
        return None
    rows, columns = -(-len(names) // 2), min(len(names), 2)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    last = max(epoch for run in runs for name in names for epoch in run.series(name)[0])
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for line, run in enumerate(runs):
            _curve(axes, run, name, COLOURS[line % len(COLOURS)], DASHES[line // len(COLOURS) % len(DASHES)])
        axes.set_xlim(0, 1.05 * last)
        axes.set_ylim(bottom=0)
        axes.set_title(titles[name], fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.grid(alpha=0.3)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0),
        ncols=-(-len(runs) // (MOST_IN_A_COLUMN * rows)),
    )  # beside the curves, which it would hide or press flat
    return figure


def _curve(axes: Axes, run: Run, name: str, colour: tuple[float, ...], dashes: str) -> None:
    """A line; of one record, which makes none, a dot with its value; without any, the run's name in the legend alone."""
    epochs, values = run.series(name)
    marker = "o" if len(epochs) == 1 else "." if len(epochs) < 30 else None
    axes.plot(epochs, values, label=legend_name(run.name), color=colour, ls=dashes, marker=marker)
    if len(epochs) == 1:
        axes.annotate(
            f"{values[0]:.3g}", (epochs[0], values[0]), xytext=(-8, 0), textcoords="offset points", ha="right", va="center",
            fontsize=8,
        )


def times(runs: Sequence[Run]) -> Figure | None:
    """A bar per run with a log, and its rate over all of its time."""
    timed = [run for run in runs if run.metrics]
    if not timed:
        return None
    figure = Figure(figsize=(9, 0.9 + 0.5 * len(timed)), layout="constrained")
    axes = figure.add_subplot()
    rows = [_milliseconds(run.metrics) for run in timed]
    parts = [part for part in rows[0] if any(row[part] for row in rows)]
    for y, row in enumerate(rows):
        left = 0.0
        for part in parts:
            axes.barh(y, row[part], left=left, color=TIME_PARTS.get(part, OTHER_COLOUR), label=part if y == 0 else None)
            left += row[part]
        axes.text(left, y, f" {1e3 / max(left, 1e-9):.1f} clips/s", va="center", fontsize=9)
    axes.set_yticks(range(len(timed)), [drawn(run.name) for run in timed])
    axes.set_xlabel("milliseconds per clip (data = waiting for the loader)")
    axes.set_xlim(0, 1.15 * max(sum(row.values()) for row in rows))
    axes.legend(ncols=len(parts), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _milliseconds(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Per clip, by part of the steps; the rest of the time by the wall clock is `other` (a GPU's clock may differ a little)."""
    clips = sum(row["clips_per_second"] * row["seconds_total"] for row in metrics)
    seconds = {part: sum(row.get(f"seconds_{part}", 0.0) for row in metrics) for part in TIME_PARTS}
    seconds["other"] = sum(row["seconds_total"] for row in metrics) - sum(seconds.values())
    return {part: 1e3 * spent / max(clips, 1e-9) for part, spent in seconds.items()}


def _confusion(run: Run) -> str:
    assert run.result is not None
    counts = np.array(run.result["confusion"], float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = [drawn(name) for name in run.result["classes"]]
    side = 2.5 + 0.3 * min(len(classes), MOST_NAMED)
    figure = Figure(figsize=(side, side * 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= MOST_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= MOST_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=7, color=colour)
    picture = figure_image(figure, f"{scored(run.result)} test clips of {run.name} by true and predicted class")
    return section(f"Confusion: {run.name}", picture + class_tables(run.result))


def _inputs(runs: Sequence[Run]) -> str:
    run = min(runs, key=lambda run: ("pretrain", "finetune", "probe").index(run.config.kind))
    data = run.config.data
    if isinstance(run.config, ProbeConfig):
        return ""  # nothing is trained on augmented clips
    try:
        shards = open_data(data)
        runtime = Runtime(torch.device("cpu"), 0, 1, bf16=False)
        rows = choose_clips(shards, run.config).train_rows if isinstance(run.config, FinetuneConfig) else None
        with build_loader(shards, run.config, runtime, train=True, rows=rows, every_frame=True) as loader:
            batch = next(iter(loader))
    except UserError as error:
        return section("Inputs", note(f"No pictures: {error}"))
    picture = contact_sheet(batch, shards.manifest.layout, shards.split_classes(data.train_split))
    caption = f"First training batch of {run.name}: augmented crops at {data.size} px, joints as the teacher gets them"
    return section("Inputs", image(to_png(picture), caption))


def _settings(run: Run) -> str:
    title = text(f"{run.name} ({run.config.kind})")
    return f"<details><summary>{title}</summary>{preformatted(to_json(run.config))}</details>"
