"""The page of a benchmark's record: verdict, table, rates against limits and the waterfall; one file, drawn as inline SVG."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svdata2vec.bench.record import compare
from svdata2vec.reports.html_page import page, section, table

WIDTH, LABEL, ROW = 900, 150, 30  # pixels: of a drawing, of its labels, of a bar's row
PLOT = WIDTH - LABEL - 180  # the bars; figures stand to the right of them
RATES_NOTE = "Bars: clips/s, log scale, with 20 % and 80 % quantiles; red: the stage's limit."
WATERFALL_NOTE = "Milliseconds per clip of the training step, part after part; reading and decoding run beside it (grey)."
BLUE, GREY, RED = "#2f6db5", "#9aa6b4", "#c8322b"


def write_page(record: dict[str, Any], path: Path) -> None:
    """One record of `bench run`."""
    sections = [
        section("What bounds it", _verdict(record)),
        section("Stages", _stage_table(record)),
        section("Rates and limits", rates_drawing(record) + _note(RATES_NOTE)),
        section("Where a clip's time goes", waterfall_drawing(record) + _note(WATERFALL_NOTE)),
        section("Against the original's way", _baseline(record)),
        section("Shares", _pairs(_shares(record))),
        section("Counts and ceilings", _pairs({**_scalars(record["counts"]), **_scalars(record["ceilings"])})),
        section("Machine", _pairs(_scalars(record["machine"]))),
        section("Setting", _pairs(_scalars(record["setting"]))),
    ]
    path.write_text(page(_title(record), f"svdata2vec bench run, {record['date']}", sections))


def write_comparison(first: dict[str, Any], second: dict[str, Any], path: Path) -> None:
    """Two records of `bench run` on one page."""
    sections = [section("Side by side", f"<pre>{html.escape(compare(first, second))}</pre>")]
    for name, record in (("A", first), ("B", second)):
        drawings = rates_drawing(record) + waterfall_drawing(record)
        sections.append(section(f"{name}: {record['machine']['device']}, {record['date']}", _verdict(record) + drawings))
    path.write_text(page("Two benchmarks", "svdata2vec bench compare", sections))


def _title(record: dict[str, Any]) -> str:
    device, setting = record["machine"]["device"], record["setting"]
    clips = f"{setting['num_frames']} frames of {setting['size']} px"
    return f"{device}: batch {setting['batch_size']}, {clips}, {setting['precision']}"


def _verdict(record: dict[str, Any]) -> str:
    doubts = "".join(f"<p><strong>{html.escape(doubt)}</strong></p>" for doubt in record["doubts"])
    return f"<p>{html.escape(record['verdict']['text'])}</p>{doubts}"


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _stage_table(record: dict[str, Any]) -> str:
    rows = []
    for name, row in record["stages"].items():
        roof = record["roofline"].get(name, {})
        limit, reached = roof.get("limit_clips_per_s"), roof.get("efficiency")
        rows.append([
            name, rate_text(row["clips_per_s"]), f"{rate_text(row['q20'])} to {rate_text(row['q80'])}",
            "" if limit is None else rate_text(limit), "" if reached is None else f"{100 * reached:.3g} %",
            roof.get("limited_by", ""),
        ])
    return table(["stage", "clips/s", "20-80 %", "limit", "reached", "limited by"], rows)


def rate_text(rate: float) -> str:
    """Clips per second with three digits, thousands apart."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


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


# ---- drawings ---------------------------------------------------------------------------------------------------------


def rates_drawing(record: dict[str, Any]) -> str:
    """A bar per stage on a log scale of clips/s, its spread, and its limit as a red line."""
    limits = {name: roof.get("limit_clips_per_s") for name, roof in record["roofline"].items()}
    values = [row[key] for row in record["stages"].values() for key in ("q20", "q80", "clips_per_s")]
    place = log_scale([*values, *(limit for limit in limits.values() if limit)])
    parts = []
    for number, (name, row) in enumerate(record["stages"].items()):
        top, rate, limit = number * ROW, row["clips_per_s"], limits.get(name)
        said = f"{rate_text(rate)} of {rate_text(limit)} ({100 * rate / limit:.3g} %)" if limit else rate_text(rate)
        parts += [
            _label(name, top), _bar(LABEL, top, place(rate), GREY if name.startswith("original") else BLUE),
            _line(LABEL + place(row["q20"]), LABEL + place(row["q80"]), top + ROW / 2, top + ROW / 2, "black"),
            _text(LABEL + place(max(rate, row["q80"], limit or 0)) + 8, top, said),
        ]
        if limit:
            parts.append(_line(LABEL + place(limit), LABEL + place(limit), top + 2, top + ROW - 2, RED))
    return _svg(parts, len(record["stages"]), "clips per second of each stage, and its limit")


def log_scale(values: Sequence[float]) -> Callable[[float], float]:
    """Pixels of a value: half the smallest at the left edge, the largest at the right one."""
    low, high = math.log(min(values) / 2), math.log(max(values))
    return lambda value: PLOT * (math.log(value) - low) / (high - low)


def waterfall_drawing(record: dict[str, Any]) -> str:
    """A clip's training step, part after part, in milliseconds; below it what the loader does at the same time."""
    step, beside = (record["waterfall_ms_per_clip"][name] for name in ("step", "beside"))
    scale = PLOT / max(sum(step.values()), *beside.values())
    parts, start = [], 0.0
    for number, (name, value) in enumerate(step.items()):
        waits = name == "data"
        parts += _part("wait for data" if waits else name, number, start, value, scale, RED if waits else BLUE)
        start += value
    for number, (name, value) in enumerate(beside.items(), start=len(step)):
        parts += _part(name, number, 0.0, value, scale, GREY)
    return _svg(parts, len(step) + len(beside), "milliseconds per clip of the training step")


def _part(name: str, number: int, start: float, value: float, scale: float, colour: str) -> list[str]:
    left, top = LABEL + start * scale, number * ROW
    return [_label(name, top), _bar(left, top, value * scale, colour), _text(left + value * scale + 8, top, f"{value:.2f} ms")]


def _svg(parts: Sequence[str], rows: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {rows * ROW}" width="100%" role="img" font-family="system-ui, sans-serif" font-size="13">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )


def _label(text: str, top: float) -> str:
    return f'<text x="{LABEL - 10}" y="{top + 20:.1f}" text-anchor="end">{html.escape(text)}</text>'


def _text(left: float, top: float, text: str) -> str:
    return f'<text x="{left:.1f}" y="{top + 20:.1f}">{html.escape(text)}</text>'


def _bar(left: float, top: float, width: float, colour: str) -> str:
    return f'<rect x="{left:.2f}" y="{top + 5:.1f}" width="{max(width, 0.5):.2f}" height="{ROW - 10}" fill="{colour}"/>'


def _line(x1: float, x2: float, y1: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="2"/>'
