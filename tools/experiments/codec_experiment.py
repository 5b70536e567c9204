"""Is less learnt from pictures in blocks than from JPEGs? The demo on the same clips packed both ways, paired seeds.

    svdata2vec shard pyskl demo/blocks --pickle-path demo/clips/motion.pkl --videos demo/clips/videos --size 96 --codec blocks
    python tools/experiments/codec_experiment.py --shards demo/shards --blocks demo/blocks \\
        --work demo/experiment --out tools/results/codec_experiment.json

For every seed and codec: pretraining, fine-tuning on RGB with few labels, and the probe with all labels. Everything drawn at
random is the same for both, so that any difference comes from the codec or from rounding. Writes the accuracies, the
differences with their intervals over seeds, and a plot beside them. Finished runs in `--work` are reused.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ending import reported
from matplotlib.figure import Figure

from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.config.probe import PROBE
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.evaluation.probe import probe
from svdata2vec.reports.html_page import save_figure
from svdata2vec.runs.intervals import mean_over_seeds
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.provenance import machine, save
from svdata2vec.runs.runtime import pick_device
from svdata2vec.shards.atomic import beside
from svdata2vec.shards.ranges import Range
from svdata2vec.studies.jobs import run_all
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

CODECS = ("jpeg", "blocks")
FIGURES = {"top1": "RGB top-1", "probe_top1": "linear probe top-1", "loss": "pretraining loss at the end"}

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All runs of one seed: each figure by codec."""
    found: dict[str, Any] = {"seed": seed, **{name: {} for name in FIGURES}}
    for codec, shards in zip(CODECS, (options.shards, options.blocks), strict=True):
        config = on_shards(demo_pretrain(), shards, options, f"{codec}-{seed}", seed)
        pretrain(replace(config, run=replace(config.run, epochs=options.epochs)))
        found["loss"][codec] = read_metrics(config.run.out)[-1]["loss"]
        found["probe_top1"][codec] = probe_all_labels(shards, config.run.out, seed)["top1"]
        tuned = on_shards(demo_finetune(), shards, options, f"rgb-{codec}-{seed}", seed)
        found["top1"][codec] = finetune(replace(tuned, pretrained=config.run.out))["top1"]
    return found


def on_shards(base: Config, shards: Path, options: argparse.Namespace, name: str, seed: int) -> Config:
    """A preset on some shards, in the folder `name` of the experiment's runs."""
    run = replace(base.run, out=options.work / name, seed=seed, precision=options.precision)
    return replace(base, data=replace(base.data, shards=str(shards), threads=1), run=run)


def probe_all_labels(shards: Path, run: Path, seed: int) -> dict[str, Any]:
    """Linear probe and nearest neighbours on a run's frozen RGB features, with all labels."""
    base = PROBE["demo"]()
    return probe(replace(
        base, data=replace(base.data, shards=str(shards), threads=1), label_fraction=1.0, seed=seed,
        pretrained=run, out=run.with_name(f"probe-{run.name}"),
    ))


def compare(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """For each figure the means of both codecs, and the mean of blocks minus jpeg with its interval over seeds."""
    result: dict[str, Any] = {}
    for name in FIGURES:
        mean, interval = mean_over_seeds([found[name]["blocks"] - found[name]["jpeg"] for found in seeds])
        means = {codec: sum(found[name][codec] for found in seeds) / len(seeds) for codec in CODECS}
        result[name] = {"mean": means, "difference": mean, "interval": list(interval)}
    return result


def plot(record: dict[str, Any], path: Path) -> None:
    """A line per seed from one codec to the other, for each figure."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        for found in record["seeds"]:
            axes.plot(CODECS, [found[name][codec] for codec in CODECS], "o-", color="grey")
        axes.plot(CODECS, [record["comparison"][name]["mean"][codec] for codec in CODECS], color="black", linewidth=3)
        axes.set_title(title, fontsize=10)
        axes.set_xlim(-0.3, 1.3)
    save_figure(figure, path, dpi=110)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="shards of synthetic motion clips")
    parser.add_argument("--blocks", type=Path, required=True, help="the same clips packed with codec blocks")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; a plot is written beside it")
    parser.add_argument("--seeds", type=Range(2).parser(int), default=4, help="pairs of runs: an interval takes two or more")
    parser.add_argument("--epochs", type=Range(1).parser(int), default=12, help="of pretraining")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--jobs", type=Range(1, 1000).parser(int), default=2, help="runs at a time, each on a core of its own")
    return parser


def main() -> int:
    options = make_parser().parse_args()
    read = [options.shards, options.blocks]
    return reported(lambda: measured(options), options.out, beside(options.out, ".png"), reads=read)


def measured(options: argparse.Namespace) -> str:
    """All seeds, their record and its plot; returns the comparison as text."""
    seeds = run_all([partial(run_seed, options, seed) for seed in range(options.seeds)], options.jobs)
    compared = compare(seeds)
    record = {
        **machine(pick_device("auto")), "epochs": options.epochs, "precision": options.precision, "comparison": compared,
        "seeds": seeds,
    }
    save(record, options.out)
    plot(record, beside(options.out, ".png"))
    return json.dumps(compared, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
