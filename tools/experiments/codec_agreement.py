"""Does a network see the same in clips that are packed differently? One network's predictions on both, clip by clip.

    svdata2vec shard pyskl demo/blocks --pickle-path demo/clips/motion.pkl --videos demo/clips/videos --size 96 --codec blocks
    python tools/experiments/codec_agreement.py demo/pretrained --others blocks=demo/blocks \\
        --out tools/results/codec_agreement.json

A finished run of `svdata2vec finetune` is evaluated on its own shards and on others of the same clips, in float32, without
training or randomness. For each other set: the share of clips that get the same class, how far the scores move, and how many
are right on one side only; for the difference of the accuracies a 95 % interval for paired clips (A. Agresti and Y. Min,
Statistics in Medicine 24, 2005), and McNemar's exact test. Takes a minute or two.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import numpy as np
import torch
from ending import reported

from svdata2vec.evaluation.evaluate import Predictions, predict_split
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import build_loader, open_data, require_classes
from svdata2vec.runs.intervals import NORMAL, wilson
from svdata2vec.runs.provenance import machine, save
from svdata2vec.runs.published import load_classifier, published_config
from svdata2vec.runs.runtime import pick_device, running
from svdata2vec.shards.errors import UserError


def predictions(run: Path, shards: str | None, split: str | None) -> Predictions:
    """Scores of a run's network over a split of some shards (None: its own), in the order of the clips' names."""
    model, config, card = load_classifier(run)
    data = replace(config.data, shards=shards or config.data.shards, test_split=split or config.data.test_split, threads=1)
    config = replace(config, data=data, run=replace(config.run, precision="fp32"))
    packed = open_data(data)
    require_classes(packed, data.test_split, card["classes"], f"{run} was trained on")
    with (
        running(config.run) as runtime,
        build_loader(packed, config, runtime, train=False, modality=config.modality, views=data.views) as loader,
    ):
        found = predict_split(model.to(runtime.device), loader, runtime)
    order = np.argsort(found.keys)
    return Predictions([found.keys[i] for i in order], found.scores_nc[order], found.labels_n[order])


def compare(base: Predictions, other: Predictions) -> dict[str, Any]:
    """Changes from one way of packing to another. UserError if these are not the same clips."""
    if base.keys != other.keys or not np.array_equal(base.labels_n, other.labels_n):
        raise UserError("the sets do not hold the same clips under the same names and classes; pack both from one source")
    labels_n = base.labels_n
    classes = [side.scores_nc.argmax(1) for side in (base, other)]
    right = [class_n == labels_n for class_n in classes]
    same = int((classes[0] == classes[1]).sum())
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    return {
        "clips": len(labels_n), "same_class": same / len(labels_n), "same_class_interval": list(wilson(same, len(labels_n))),
        "score_change": float(np.abs(other.scores_nc - base.scores_nc).sum(1).mean() / 2),
        "top1": [float(right_n.mean()) for right_n in right], "right_on_other_alone": gained, "right_on_base_alone": lost,
        "difference": (gained - lost) / len(labels_n), "interval": list(paired_interval(gained, lost, len(labels_n))),
        "mcnemar_p": mcnemar(gained, lost),
    }


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same clips: Wald's with half a clip more in each cell."""
    count += 2
    middle = (gained - lost) / count
    half = NORMAL * math.sqrt(max(gained + lost + 1 - count * middle**2, 0)) / count
    return max(middle - half, -1.0), min(middle + half, 1.0)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided probability of a split at least as uneven if both sides were equally good (exact, binomial)."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


def named_set(word: str) -> tuple[str, str]:
    """NAME=FOLDER."""
    name, sign, folder = word.partition("=")
    if not (name and sign and folder):
        raise argparse.ArgumentTypeError(f"{word!r}: expected NAME=FOLDER, such as blocks=demo/blocks")
    return name, folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished fine-tuning run")
    parser.add_argument("--shards", help="the clips as the run was trained on them (left out: the run's own)")
    parser.add_argument("--others", type=named_set, nargs="+", required=True, metavar="NAME=FOLDER",
                        help="the same clips, packed otherwise")
    parser.add_argument("--split", help="the run's test split if left out")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    read = [options.run, *(Path(folder) for _, folder in options.others), *([Path(options.shards)] if options.shards else [])]
    return reported(lambda: measured(options), options.out, reads=read)


def measured(options: argparse.Namespace) -> str:
    """Evaluate the run on all sets and write the record; returns a line for each set."""
    names = [name for name, _ in options.others]
    if len({*names}) < len(names):
        raise UserError(f"--others names {', '.join(names)}: expected every name once")
    base = predictions(options.run, options.shards, options.split)
    found = {name: compare(base, predictions(options.run, folder, options.split)) for name, folder in options.others}
    device = pick_device(published_config(read_card(options.run), options.run).run.device)
    save({**machine(device), "others": found}, options.out)
    return "".join(
        f"{name}: {row['same_class']:.1%} of {row['clips']} predictions are of one class; top-1 {row['top1'][0]:.1%} and "
        f"{row['top1'][1]:.1%}, difference {row['difference']:+.1%} ({row['interval'][0]:+.1%} to {row['interval'][1]:+.1%})\n"
        for name, row in found.items()
    )


if __name__ == "__main__":
    sys.exit(main())
