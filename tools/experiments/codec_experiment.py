"""Is less learnt from pictures in blocks than from JPEGs? The demo on the same clips packed both ways, paired seeds.

    svdata2vec shard pyskl demo/blocks --pickle-path demo/clips/motion.pkl --videos demo/clips/videos --size 96 --codec blocks
    python tools/experiments/codec_experiment.py --shards demo/shards --blocks demo/blocks \\
        --work demo/experiment --out tools/results/codec_experiment.json

For every seed and codec: pretraining, fine-tuning on RGB with few labels, and the probe with all labels. Everything drawn at
random is the same for both, so that a difference is the codec's or the rounding's. Writes the accuracies, the differences
with their intervals over seeds, and a plot beside them. Finished runs in `--work` are reused.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiment import make_parser, on_shards, probe_all_labels, process_pool, write_record
from matplotlib.figure import Figure

from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.reports.html_page import save_figure
from svdata2vec.runs.intervals import mean_over_seeds
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.shards.errors import UserError
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

CODECS = ("jpeg", "blocks")
FIGURES = {"top1": "RGB top-1", "probe_top1": "linear probe top-1", "loss": "pretraining loss at the end"}


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All runs of one seed: each figure by codec."""
    found: dict[str, Any] = {"seed": seed, **{name: {} for name in FIGURES}}
    for codec in CODECS:
        on = argparse.Namespace(**vars(options) | {"shards": options.shards if codec == "jpeg" else options.blocks})
        config = on_shards(demo_pretrain(), on, f"{codec}-{seed}", seed)
        pretrain(replace(config, run=replace(config.run, epochs=on.epochs)))
        found["loss"][codec] = read_metrics(config.run.out / "metrics.jsonl")[-1]["loss"]
        found["probe_top1"][codec] = probe_all_labels(on, f"{codec}-{seed}", seed)["top1"]
        tuned = on_shards(demo_finetune(), on, f"rgb-{codec}-{seed}", seed)
        found["top1"][codec] = finetune(replace(tuned, pretrained=config.run.out))["top1"]
    return found


def compare(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """For each figure the means of both codecs, and of blocks minus jpeg the mean with its interval over seeds."""
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


def main() -> int:
    parser = make_parser(__doc__, seeds=4, epochs=12)
    parser.add_argument("--blocks", type=Path, required=True, help="the same clips packed with codec blocks")
    options = parser.parse_args()
    try:
        with process_pool(options.jobs) as pool:
            seeds = list(pool.map(partial(run_seed, options), range(options.seeds)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    compared = compare(seeds)
    figures = {"epochs": options.epochs, "precision": options.precision, "comparison": compared, "seeds": seeds}
    write_record(options.out, figures, plot, compared)
    return 0


if __name__ == "__main__":
    sys.exit(main())
