"""Does encoding the kept frames only change what is learnt? Pretraining both ways, fine-tuning on RGB, several seeds.

    python tools/experiments/encode_experiment.py --shards demo/shards \\
        --work demo/experiment --out tools/results/encode_experiment.json

For every seed: pretraining with `encode=kept_frames` and with `encode=all_frames` (the authors' way, whose BatchNorm sees
all frames), each fine-tuned on RGB with the same few labels and probed with all labels, and RGB from scratch. Writes the
loss curves, the accuracies and the seed-to-seed spread as JSON, and a plot beside it. Finished runs in `--work` are reused.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiment import make_parser, on_shards, probe_all_labels, process_pool, write_record
from matplotlib.figure import Figure

from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

WAYS: tuple[Literal["kept_frames", "all_frames"], ...] = ("kept_frames", "all_frames")


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All runs of one seed: accuracy per start, loss curve and clips/s per way of encoding."""
    found: dict[str, Any] = {"seed": seed, "top1": {}, "probe_top1": {}, "loss": {}, "clips_per_second": {}}
    starts: dict[str, Path | None] = {"scratch": None}
    for way in WAYS:
        config = on_shards(demo_pretrain(), options, f"{way}-{seed}", seed)
        pretrain(replace(config, encode=way, run=replace(config.run, epochs=options.epochs)))
        records = read_metrics(config.run.out / "metrics.jsonl")
        found["loss"][way] = [[record["epoch"], record["loss"]] for record in records]
        found["clips_per_second"][way] = statistics.median(record["clips_per_second"] for record in records)
        found["probe_top1"][way] = probe_all_labels(options, f"{way}-{seed}", seed)["top1"]
        starts[way] = config.run.out
    for start, source in starts.items():
        tuned = on_shards(demo_finetune(), options, f"rgb-{start}-{seed}", seed)
        found["top1"][start] = finetune(replace(tuned, pretrained=source))["top1"]
    return found


def compare(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and whether the two ways differ by less than seeds do."""
    top1 = {start: [found["top1"][start] for found in seeds] for start in ("scratch", *WAYS)}
    probed = {way: [found["probe_top1"][way] for found in seeds] for way in WAYS}
    final = {way: [found["loss"][way][-1][1] for found in seeds] for way in WAYS}
    result: dict[str, Any] = {
        "mean_top1": {start: statistics.mean(values) for start, values in top1.items()},
        "mean_probe_top1": {way: statistics.mean(values) for way, values in probed.items()},
        "mean_final_loss": {way: statistics.mean(values) for way, values in final.items()},
    }
    for name, values in (("top1", top1), ("probe_top1", probed), ("final_loss", final)):
        difference = abs(statistics.mean(values[WAYS[0]]) - statistics.mean(values[WAYS[1]]))
        spread = max(max(values[way]) - min(values[way]) for way in WAYS)
        result[f"{name}_difference"], result[f"{name}_seed_spread"] = difference, spread
        result[f"{name}_within_seed_spread"] = difference <= spread
    return result


def plot(record: dict[str, Any], path: Path) -> None:
    """Loss curves of both ways, and accuracies per seed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    for colour, way in enumerate(WAYS):
        for number, found in enumerate(record["seeds"]):
            epochs, losses = zip(*found["loss"][way], strict=True)
            curves.plot(epochs, losses, color=f"C{colour}", label=way if number == 0 else None, alpha=0.8)
    curves.set_ylim(0.85, 1.1)
    curves.set_xlabel("epoch")
    curves.set_title("pretraining loss, a line per seed", fontsize=10)
    curves.legend()
    for x, start in enumerate(("scratch", *WAYS)):
        values = [100 * found["top1"][start] for found in record["seeds"]]
        bars.bar(x, statistics.mean(values), color="lightgrey")
        bars.plot([x] * len(values), values, "o", color="black")
    bars.set_xticks(range(3), ["scratch", *WAYS])
    bars.set_title("RGB top-1 after fine-tuning (%), a dot per seed", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = make_parser(__doc__, seeds=4, epochs=16).parse_args()
    with process_pool(options.jobs) as pool:
        seeds = list(pool.map(partial(run_seed, options), range(options.seeds)))
    compared = compare(seeds)
    figures = {"epochs": options.epochs, "precision": options.precision, **compared, "seeds": seeds}
    write_record(options.out, figures, plot, compared)


if __name__ == "__main__":
    main()
