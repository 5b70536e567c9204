"""Three lines about fine-tuning runs on the same labels: chance, RGB from scratch, RGB after pretraining.

    python tools/experiments/demo_summary.py demo [--json tools/results/demo.json]

reads the runs that tools/demo.sh leaves: demo/pretrain, demo/scratch, demo/pretrained.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from svdata2vec.bench.machine import machine
from svdata2vec.bench.record import save
from svdata2vec.runs.metrics_log import read_metrics


def summarise(demo: Path) -> dict[str, Any]:
    """Figures of the demo's three runs; both classifiers must have seen the same labels for as many steps."""
    scratch, pretrained = (json.loads((demo / name / "result.json").read_text()) for name in ("scratch", "pretrained"))
    steps = [read_metrics(demo / name / "metrics.jsonl")[-1]["step"] for name in ("scratch", "pretrained")]
    if scratch["labels"] != pretrained["labels"] or steps[0] != steps[1]:
        raise SystemExit(f"{demo}: the two classifiers were not trained alike; remove the folder and run tools/demo.sh again")
    log = read_metrics(demo / "pretrain" / "metrics.jsonl")
    return {
        "classes": len(scratch["classes"]),
        "test_clips": scratch["count"],
        "labelled_clips": scratch["labels"],
        "finetune_steps": steps[0],
        "pretrain_steps": log[-1]["step"],
        "pretrain_loss_first_last": [log[0]["loss"], log[-1]["loss"]],
        "target_std_first_last": [log[0]["target_std"], log[-1]["target_std"]],
        "pretrain_clips_per_second": sorted(row["clips_per_second"] for row in log)[len(log) // 2],
        "top1_scratch": scratch["top1"],
        "top1_pretrained": pretrained["top1"],
    }


def lines(figures: dict[str, Any]) -> str:
    classes, clips, labels = figures["classes"], figures["test_clips"], figures["labelled_clips"]
    return (
        f"chance                 {100 / classes:5.1f} %   ({classes} classes, {clips} test clips of unseen subjects)\n"
        f"RGB from scratch       {100 * figures['top1_scratch']:5.1f} %   ({labels} labelled clips)\n"
        f"RGB after pretraining  {100 * figures['top1_pretrained']:5.1f} %   (same labels, same fine-tuning steps)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the demo's folder")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures = summarise(options.demo)
    if options.json is not None:
        save({**machine(), **figures}, options.json)
    print(lines(figures))


if __name__ == "__main__":
    main()
