"""Four lines about classifiers on the same labels: chance, a small CNN, from scratch (as many multiply-adds), pretrained.

    python tools/experiments/demo_summary.py demo [--json tools/results/demo.json]

reads the results of tools/demo.sh: the runs demo/pretrain, demo/scratch, demo/pretrained, and demo/small_cnn.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ending import reported

from svdata2vec.runs.intervals import wilson
from svdata2vec.runs.metrics_log import cost, read_metrics
from svdata2vec.runs.provenance import machine, save
from svdata2vec.runs.runtime import pick_device
from svdata2vec.shards.atomic import read_object
from svdata2vec.shards.errors import UserError

ROWS = {
    "small_cnn": "small CNN from scratch", "scratch": "RGB from scratch, as many multiply-adds",
    "pretrained": "RGB after pretraining",
}
LEFT = ("pretrain", "scratch/result.json", "pretrained/result.json", "small_cnn.json")


def summarise(demo: Path) -> dict[str, Any]:
    """Figures of the demo's runs; UserError if one is missing, or if the classifiers have not seen the same labels."""
    lacking = [name for name in LEFT if not (demo / name).exists()]
    if lacking:
        raise UserError(f"{demo}: {', '.join(lacking)} not found; `bash tools/demo.sh` leaves them in its folder, at its end")
    scratch, pretrained, small = (figures_in(demo / name) for name in LEFT[1:])
    if len({result["labels"] for result in (scratch, pretrained, small)}) != 1:
        raise UserError(f"{demo}: the classifiers had not the same labels; remove the folder and run tools/demo.sh again")
    log, before = read_metrics(demo / "pretrain"), cost(demo / "pretrain")
    costs = {name: cost(demo / name) for name in ("scratch", "pretrained")}
    costs["pretrained"] = {name: value + before[name] for name, value in costs["pretrained"].items()}
    costs["small_cnn"] = {name: small[name] for name in ("steps", "clips_seen", "cpu_seconds")}
    return {
        "classes": len(scratch["classes"]),
        "test_clips": scratch["count"],
        "labelled_clips": scratch["labels"],
        "pretrain_steps": log[-1]["step"],
        "pretrain_loss_first_last": [log[0]["loss"], log[-1]["loss"]],
        "target_std_first_last": [log[0]["target_std"], log[-1]["target_std"]],
        "pretrain_clips_per_second": sorted(row["clips_per_second"] for row in log)[len(log) // 2],
        "top1_small_cnn": small["score"],
        "top1_scratch": scratch["top1"],
        "top1_pretrained": pretrained["top1"],
        "costs": costs,
    }


def figures_in(file: Path) -> dict[str, Any]:
    """The content of a file; UserError if it is not a JSON object."""
    found = read_object(file)
    if found is None:
        raise UserError(f"{file} holds no figures; run tools/demo.sh again without it")
    return found


def lines(figures: dict[str, Any]) -> str:
    classes, clips, labels = figures["classes"], figures["test_clips"], figures["labelled_clips"]
    width = max(map(len, ROWS.values()))
    found = [f"{'chance':{width}s}{100 / classes:6.1f} %   {classes} classes, {clips} test clips of unseen subjects"]
    for name, title in ROWS.items():
        top1, spent = figures[f"top1_{name}"], figures["costs"][name]
        low, high = (100 * end for end in wilson(round(top1 * clips), clips))
        found.append(f"{title:{width}s}{100 * top1:6.1f} %   {low:.0f} to {high:.0f}; {spent['steps']} steps, "
                     f"{spent['cpu_seconds']:.0f} CPU seconds")
    return "\n".join([*found, f"{labels} labelled clips for each, one seed; 95 % intervals over the test clips"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the demo's folder")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    read = [options.demo / name for name in ("pretrain", "scratch", "pretrained", "small_cnn.json")]
    return reported(lambda: summary(options.demo, options.json), options.json, reads=read)


def summary(demo: Path, record: Path | None) -> str:
    """Print the last lines of `demo.sh`, and write their record."""
    figures = summarise(demo)
    if record is not None:
        save({**machine(pick_device("auto")), **figures}, record)
    return lines(figures) + "\n"


if __name__ == "__main__":
    sys.exit(main())
