"""Charts of the benchmarks' records, and the page of `bench run`: verdict, rates against limits, where a clip's time goes."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svdata2vec.bench.record import compare, decoding_line, limit_of, rate_text, stage_rows
from svdata2vec.reports.html_page import figure_image, page, preformatted, section, table, text
from svdata2vec.shards.atomic import write_atomically

CHART_NOTE = (
    "Left: clips/s of each stage, log scale, with 20 % and 80 % quantiles; red: the stage's limit. "
    "Right: milliseconds per clip of the training step, part after part; reading and decoding run beside it (grey)."
)
BLUE, GREY, RED = "#2f6db5", "#9aa6b4", "#c8322b"


def write_page(record: dict[str, Any], path: Path) -> None:
    """One record of `bench run`."""
    sections = [
        section("What bounds it", _verdict(record)),
        section("Stages", table(["stage", "clips/s", "20-80 %", "limit", "reached", "limited by"], stage_rows(record))),
        section("Rates and limits, and where a clip's time goes", figure_image(run_chart(record), CHART_NOTE)),
        section("Against the original's way", _baseline(record)),
        section("Shares", _pairs(_shares(record))),
        section("Counts and ceilings", _pairs({**_scalars(record["counts"]), **_scalars(record["ceilings"])})),
        section("Machine", _pairs(_scalars(record["machine"]))),
        section("Setting", _pairs(_scalars(record["setting"]))),
    ]
    write_atomically(path, page(_title(record), f"svdata2vec bench run, {record['date']}", sections).encode())


def write_comparison(first: dict[str, Any], second: dict[str, Any], path: Path) -> None:
    """Two records of `bench run` on one page."""
    sections = [section("Side by side", preformatted(compare(first, second)))]
    for name, record in (("A", first), ("B", second)):
        chart = figure_image(run_chart(record), CHART_NOTE)
        sections.append(section(f"{name}: {record['machine']['device']}, {record['date']}", _verdict(record) + chart))
    write_atomically(path, page("Two benchmarks", "svdata2vec bench compare", sections).encode())


def _title(record: dict[str, Any]) -> str:
    device, setting = record["machine"]["device"], record["setting"]
    clips = f"{setting['num_frames']} frames of {setting['size']} px"
    return f"{device}: batch {setting['batch_size']}, {clips}, {setting['precision']}"


def _verdict(record: dict[str, Any]) -> str:
    doubts = "".join(f"<p><strong>{text(doubt)}</strong></p>" for doubt in record["doubts"])
    decoder = f"<p>{text(decoding_line(record['decoding']))}</p>" if record.get("decoding") else ""
    return f"{decoder}<p>{text(record['verdict']['text'])}</p>{doubts}"


def _baseline(record: dict[str, Any]) -> str:
    base = record.get("baseline")
    if not base:
        return ""
    return _pairs({
        "model": f"{base['model_speedup']:.1f} times as fast", "train": f"{base['train_speedup']:.1f} times as fast",
        "losses of the same weights differ by": f"{base['loss_difference']:.1e}",
    })


def _shares(record: dict[str, Any]) -> dict[str, str]:
    peak = record["peak_memory_bytes"]
    gpu = {f"peak memory of the GPU, {name}": f"{size / 2**30:.2f} GiB" for name, size in peak["gpu"].items()}
    return {
        "train, share of model": f"{100 * record['train_share_of_model']:.1f} %",
        "data wait": f"{100 * record['data_wait_share']:.1f} %",
        "MFU of train": f"{100 * record['mfu']:.1f} %", "MFU of model": f"{100 * record['mfu_model']:.1f} %",
        **gpu, "peak memory of the process": f"{peak['process'] / 2**30:.2f} GiB",
    }


def _scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Names and values of nested objects, flat."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_scalars(value, f"{prefix}{name}."))
        elif value is not None:
            flat[f"{prefix}{name}"] = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return flat


def _pairs(values: Mapping[str, str]) -> str:
    return table(["", ""], [[name, value] for name, value in values.items()])


# ---- charts -----------------------------------------------------------------------------------------------------------


def run_chart(record: dict[str, Any]) -> Figure:
    """A record of `bench run`: left its rates and limits, right where a clip's time goes."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _rates(left, record)
    _waterfall(right, record["waterfall_ms_per_clip"])
    figure.suptitle(f"{_title(record)}: {record['verdict']['bound']}-bound", fontsize=9)
    return figure


def data_chart(result: dict) -> Figure:
    """A result of `bench data`: CPU time per clip, fastest first."""
    rows = dict(sorted(result["methods"].items(), key=lambda entry: entry[1]["cpu_ms_per_clip"]))
    values = {name: row["cpu_ms_per_clip"] for name, row in rows.items()}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    colours = [BLUE if name.startswith("ours") else GREY for name in values]
    _bars(axes, values, [f"{value:.0f}" for value in values.values()], colours)
    axes.set_xlabel("CPU ms per clip (40 of 100 frames, 224 px)")
    return figure


def _bars(axes: Axes, values: Mapping[str, float], labels: Sequence[str], colours: Sequence[str], **more: Any) -> None:
    """Horizontal bars, the first at the top, with a label at the end of each."""
    drawn = axes.barh(list(values), list(values.values()), color=colours, **more)
    axes.bar_label(drawn, labels=labels, padding=6, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _rates(axes: Axes, record: dict[str, Any]) -> None:
    """A bar per stage on a log scale of clips/s, its spread, and its limit as a red line."""
    stages = record["stages"]
    rates = {name: row["clips_per_s"] for name, row in stages.items()}
    spread = [[max(rates[name] - row["q20"], 0) for name, row in stages.items()],
              [max(row["q80"] - rates[name], 0) for name, row in stages.items()]]
    colours = [GREY if name.startswith("original") else BLUE for name in stages]
    _bars(axes, rates, [rate_text(rate) for rate in rates.values()], colours, xerr=spread, error_kw={"capsize": 2})
    for number, name in enumerate(stages):
        limit = limit_of(record, name).get("limit_clips_per_s")
        if limit:
            axes.plot([limit, limit], [number - 0.4, number + 0.4], color=RED)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")  # powers of ten would be written as formulas, which pages do not draw
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("clips/s (red: limit)")


def _waterfall(axes: Axes, parts: dict[str, dict[str, float]]) -> None:
    """A clip's training step, part after part, in milliseconds; below it what the loader does at the same time."""
    step = {"wait for data" if name == "data" else name: value for name, value in parts["step"].items()}
    values = {**step, **parts["beside"]}
    starts = [*itertools.accumulate([0.0, *step.values()])][:-1] + [0.0] * len(parts["beside"])
    colours = [RED if name == "wait for data" else BLUE if name in step else GREY for name in values]
    _bars(axes, values, [f"{value:.2f} ms" for value in values.values()], colours, left=starts)
    axes.set_xlim(0, 1.3 * max(start + value for start, value in zip(starts, values.values(), strict=True)))
    axes.set_xlabel("ms per clip of training (grey: at the same time)")
