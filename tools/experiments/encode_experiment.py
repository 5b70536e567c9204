"""Does encoding the kept frames only change what is learnt? Pretraining both ways, fine-tuning on RGB, several seeds.

    python tools/experiments/encode_experiment.py --shards demo/shards \\
        --work demo/experiment --out tools/results/encode_experiment.json

For every seed: pretraining with `encode=kept_frames` and with `encode=all_frames` (the authors' way, whose BatchNorm sees
all frames), each fine-tuned on RGB with the same few labels and probed with all labels, and RGB from scratch. Writes the
loss curves, the accuracies and the seed-to-seed spread as JSON, and a plot beside it. Finished runs in `--work` are reused.
"""

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch

from svdata2vec.bench.machine import machine
from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.config.probe import PROBE
from svdata2vec.evaluation.probe import probe
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

matplotlib.use("Agg")
from matplotlib.figure import Figure

WAYS = ("kept_frames", "all_frames")


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All runs of one seed: accuracy per start, loss curve and clips/s per way of encoding."""
    found: dict[str, Any] = {"seed": seed, "top1": {}, "probe_top1": {}, "loss": {}, "clips_per_second": {}}
    starts: dict[str, Path | None] = {"scratch": None}
    for way in WAYS:
        base = demo_pretrain()
        out = options.work / f"{way}-{seed}"
        config = replace(
            base, encode=way, data=replace(base.data, shards=str(options.shards), threads=1),
            run=replace(base.run, out=out, seed=seed, epochs=options.epochs, precision=options.precision),
        )
        pretrain(config)
        records = read_metrics(out / "metrics.jsonl")
        found["loss"][way] = [[record["epoch"], record["loss"]] for record in records]
        found["clips_per_second"][way] = statistics.median(record["clips_per_second"] for record in records)
        found["probe_top1"][way] = probe_all_labels(options, out, seed)
        starts[way] = out
    for start, source in starts.items():
        tuned = demo_finetune()
        config = replace(
            tuned, pretrained=source, data=replace(tuned.data, shards=str(options.shards), threads=1),
            run=replace(tuned.run, out=options.work / f"rgb-{start}-{seed}", seed=seed, precision=options.precision),
        )
        found["top1"][start] = finetune(config)["top1"]
    return found


def probe_all_labels(options: argparse.Namespace, run: Path, seed: int) -> float:
    """Top-1 of a linear map of the run's frozen RGB features."""
    base = PROBE["demo"]()
    config = replace(
        base, data=replace(base.data, shards=str(options.shards), threads=1), label_fraction=1.0, seed=seed, pretrained=run,
        out=run.with_name(f"probe-{run.name}"),
    )
    return probe(config)["top1"]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="the demo's shards")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; a plot is written beside it")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, one thread each")
    parser.add_argument("--epochs", type=int, default=16, help="of pretraining")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        seeds = list(pool.map(partial(run_seed, options), range(options.seeds)))
    settings = {"epochs": options.epochs, "precision": options.precision}
    record = {**machine(), **settings, **compare(seeds), "seeds": seeds}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    plot(record, options.out.with_suffix(".png"))
    print(json.dumps({name: value for name, value in record.items() if name != "seeds"}, indent=1))


if __name__ == "__main__":
    main()
