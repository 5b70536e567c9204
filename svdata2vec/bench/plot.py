"""The picture of a benchmark's record: rates against their limits, and where a clip's time goes."""

from pathlib import Path
from typing import Any


def plot(record: dict[str, Any], path: Path) -> None:
    """Write a PNG: left the stages with their limits (log scale), right the waterfall of the training step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2))
    _rates(left, record)
    _waterfall(right, record)
    text = record["verdict"]["text"]
    figure.suptitle(f"{record['machine']['device']}: {text if len(text) < 130 else text[:127] + '...'}", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _rates(axes: Any, record: dict[str, Any]) -> None:
    names = list(record["stages"])[::-1]
    rows = [record["stages"][name] for name in names]
    rates = [row["clips_per_s"] for row in rows]
    below, above = ([max(sign * (row["clips_per_s"] - row[end]), 0) for row in rows] for sign, end in ((1, "q20"), (-1, "q80")))
    colours = ["tab:grey" if name.startswith("original") else "tab:blue" for name in names]
    bars = axes.barh(names, rates, xerr=[below, above], color=colours, error_kw={"ecolor": "black", "capsize": 2})
    axes.bar_label(bars, fmt="%.0f", padding=6)
    for number, name in enumerate(names):
        limit = record["roofline"].get(name, {}).get("limit_clips_per_s")
        if limit:
            axes.plot([limit, limit], [number - 0.4, number + 0.4], color="tab:red")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("clips/s (red: limit)")


def _waterfall(axes: Any, record: dict[str, Any]) -> None:
    start = 0.0
    step = record["waterfall_ms_per_clip"]["step"]
    for number, (name, value) in enumerate(step.items()):
        axes.bar(number, value, bottom=start, color="tab:red" if name == "data" else "tab:blue")
        axes.text(number, start + value, f"{value:.1f}", ha="center", va="bottom", fontsize=8)
        start += value
    axes.set_xticks(range(len(step)), ["wait for data" if name == "data" else name for name in step], rotation=20, fontsize=8)
    axes.margins(y=0.12)
    axes.set_ylabel("ms per clip of training")
