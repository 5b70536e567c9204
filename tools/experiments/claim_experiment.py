"""The paper's claim in small: does pretraining on video + skeletons help a classifier that sees RGB alone?

    python tools/motion/make_motion_clips.py demo/claim/clips --clips 1200
    svdata2vec shard pyskl demo/claim/shards --size 96 \\
        --pickle-path demo/claim/clips/motion.pkl --videos demo/claim/clips/videos
    python tools/experiments/claim_experiment.py --shards demo/claim/shards \\
        --work demo/claim/runs --out tools/results/claim.json

For every seed three classifiers are fine-tuned on RGB with 5 %, 20 % and all of the labels, each for the same number of
steps: from scratch, after pretraining on the skeletons' latents (SV-data2vec), and after pretraining on the latents of RGB
(the ablation: another input for the teacher, which needs the video tokens of all frames). The frozen encoders are probed
too, and beside them one whose weights never moved. Writes every accuracy as JSON, and a plot beside it. Finished runs in
`--work` are reused.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment import make_parser, on_shards, probe_all_labels, process_pool, write_record
from matplotlib.figure import Figure

from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.config.schema import OptimConfig, PretrainConfig
from svdata2vec.runs.data import labelled_rows
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

FRACTIONS = (0.05, 0.2, 1.0)
PRETRAINED = ("rgb", "skeleton")  # what the teacher reads
STARTS = ("scratch", *PRETRAINED)
PROBED = ("untrained", *PRETRAINED)
STILL = 1e-12  # a learning rate that moves no weight: BatchNorm gets its statistics, nothing is learnt
NAMES = {
    "scratch": "from scratch", "rgb": "after pretraining on RGB targets", "skeleton": "after pretraining on skeleton targets",
}


def pretrain_config(options: argparse.Namespace, kind: str, seed: int) -> PretrainConfig:
    """The demo's pretraining with another input for the teacher."""
    config = on_shards(demo_pretrain(), options, f"pretrain-{kind}-{seed}", seed)
    if kind == "untrained":
        return replace(config, optim=OptimConfig(lr=STILL, min_lr=STILL), run=replace(config.run, epochs=1))
    config = replace(config, run=replace(config.run, epochs=options.epochs))
    if kind == "rgb":
        return replace(config, encode="all_frames", target=replace(config.target, teacher_input="rgb"))
    return config


def run_pretraining(options: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    config = pretrain_config(options, kind, seed)
    pretrain(config)
    records = read_metrics(config.run.out / "metrics.jsonl")
    last = records[-1]
    return {
        "kind": kind, "seed": seed, "loss_first_last": [records[0]["loss"], last["loss"]], "target_std": last["target_std"],
        "prediction_std": last["prediction_std"], "steps": last["step"],
    }


def run_finetuning(options: argparse.Namespace, start: str, fraction: float, seed: int) -> dict[str, Any]:
    """Top-1 on unseen subjects; every start sees the same labels for the same number of steps."""
    base = on_shards(demo_finetune(), options, f"rgb-{start}-{fraction:g}-{seed}", seed)
    labels = len(labelled_rows(ShardSet.open(options.shards), base.data.train_split, fraction, seed))
    epochs = -(-options.steps // (labels // base.run.batch_size))
    config = replace(
        base, label_fraction=fraction, run=replace(base.run, epochs=epochs),
        optim=replace(base.optim, warmup_epochs=epochs / 10),
        pretrained=None if start == "scratch" else options.work / f"pretrain-{start}-{seed}",
    )
    result = finetune(config)
    return {"start": start, "fraction": fraction, "seed": seed, "labels": labels, "top1": result["top1"],
            "steps": read_metrics(config.run.out / "metrics.jsonl")[-1]["step"], "test_clips": result["count"]}


def run_probe(options: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    result = probe_all_labels(options, f"pretrain-{kind}-{seed}", seed)
    return {"kind": kind, "seed": seed, "linear_top1": result["top1"], "knn_top1": result["knn"]["top1"]}


def run_all(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All runs, `--jobs` at a time: pretraining first, then whatever starts from it."""
    seeds = range(options.seeds)
    with process_pool(options.jobs) as pool:
        slowest_first = ("rgb", "skeleton", "untrained")  # so that no process idles at the end
        pretraining = [pool.submit(run_pretraining, options, kind, seed) for kind in slowest_first for seed in seeds]
        found = {"pretraining": [future.result() for future in pretraining]}
        probes = [pool.submit(run_probe, options, kind, seed) for kind in PROBED for seed in seeds]
        tunings = [
            pool.submit(run_finetuning, options, start, fraction, seed)
            for seed in seeds for fraction in FRACTIONS for start in STARTS
        ]
        found["probes"] = [future.result() for future in probes]
        found["finetuning"] = [future.result() for future in tunings]
    return found


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per share of labels: mean and range over seeds of each start, and in how many seeds each is better than scratch."""
    rows = []
    for fraction in FRACTIONS:
        top1 = {
            start: [run["top1"] for run in found["finetuning"] if (run["start"], run["fraction"]) == (start, fraction)]
            for start in STARTS
        }
        labels = [run["labels"] for run in found["finetuning"] if run["fraction"] == fraction]
        rows.append({
            "fraction": fraction, "labels": labels[0],
            "mean_top1": {start: statistics.mean(values) for start, values in top1.items()},
            "range_top1": {start: [min(values), max(values)] for start, values in top1.items()},
            "seeds_above_scratch": {
                start: sum(mine > scratch for mine, scratch in zip(top1[start], top1["scratch"], strict=True))
                for start in PRETRAINED
            },
        })
    probes = {
        kind: {
            name: statistics.mean(run[name] for run in found["probes"] if run["kind"] == kind)
            for name in ("linear_top1", "knn_top1")
        }
        for kind in PROBED
    }
    return {"fractions": rows, "probes": probes}


def plot(record: dict[str, Any], path: Path) -> None:
    """Accuracy over labels, a line per start, a dot per seed; probes beside it."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    lines, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    for number, start in enumerate(STARTS):
        labels = [row["labels"] for row in record["comparison"]["fractions"]]
        means = [100 * row["mean_top1"][start] for row in record["comparison"]["fractions"]]
        lines.plot(labels, means, color=f"C{number}", label=NAMES[start])
        runs = [run for run in record["finetuning"] if run["start"] == start]
        lines.plot([run["labels"] for run in runs], [100 * run["top1"] for run in runs], "o", color=f"C{number}", ms=4)
    lines.axhline(100 / record["classes"], color="grey", ls=":", label="chance")
    lines.set_xscale("log")
    lines.set_xticks(labels, [str(label) for label in labels])
    lines.minorticks_off()
    lines.set_xlabel("labelled clips")
    lines.set_title("fine-tuned on RGB: top-1 (%), a dot per seed", fontsize=10)
    lines.legend(fontsize=8)
    for x, kind in enumerate(PROBED):
        for shift, name, colour in ((-0.2, "linear_top1", "lightgrey"), (0.2, "knn_top1", "whitesmoke")):
            values = [100 * run[name] for run in record["probes"] if run["kind"] == kind]
            bars.bar(x + shift, statistics.mean(values), 0.38, color=colour, edgecolor="grey")
            bars.plot([x + shift] * len(values), values, "o", color="black", ms=4)
    bars.set_xticks(range(len(PROBED)), PROBED)
    bars.set_title("frozen RGB features: linear probe, k-NN (%)", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, seeds=3, epochs=24)
    parser.add_argument("--steps", type=Range(1).parser(int), default=270, help="of each fine-tuning, up to whole epochs")
    options = parser.parse_args()
    found = run_all(options)
    shards = ShardSet.open(options.shards)
    splits = {name: len(shards.rows(name)) for name in (demo_finetune().data.train_split, demo_finetune().data.test_split)}
    settings = {name: getattr(options, name) for name in ("epochs", "steps", "precision", "seeds")}
    compared = compare(found)
    figures = {**settings, "classes": len(shards.manifest.classes), "clips": splits, "comparison": compared, **found}
    write_record(options.out, figures, plot, compared)


if __name__ == "__main__":
    main()
