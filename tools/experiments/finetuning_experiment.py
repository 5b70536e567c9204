"""Ways to fine-tune with few labels, compared over paired seeds on validation clips.

    python tools/experiments/finetuning_experiment.py --shards demo/claim/shards --from demo/claim/controls/pretrained-{seed} \\
        --work demo/claim/finetuning --finetune "--run.precision bf16 --run.epochs 30 --optim.lr 0.003"

Every side starts from the same pretraining runs and has the same labels; {seed} stands for the seed. The sides are compared on
clips of performers that are neither trained nor tested on (--test-split), so that choosing one uses no test clips.
The experiment can be interrupted and started again; finished runs in --work are reused.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
from ending import reported
from pretraining_sides import RESULTS, read_options, require_sides

from svdata2vec.config.files import to_values
from svdata2vec.config.presets import COLOURS, FINETUNE
from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.runs.card import read_card
from svdata2vec.runs.folder import changed_settings
from svdata2vec.runs.metrics_log import cost
from svdata2vec.runs.provenance import UNKNOWN, commit, hardware, head, save
from svdata2vec.runs.runtime import pick_device
from svdata2vec.shards.ranges import Range
from svdata2vec.studies.jobs import run_all
from svdata2vec.studies.rows import start_of
from svdata2vec.studies.study import over_seeds
from svdata2vec.training.finetune import finetune

LONGER = 3  # times as many epochs

Side = Callable[[FinetuneConfig], FinetuneConfig]


def with_colours(augment: AugmentConfig, config: FinetuneConfig) -> FinetuneConfig:
    return replace(config, data=replace(config.data, augment=augment))


def longer(config: FinetuneConfig) -> FinetuneConfig:
    return replace(config, run=replace(config.run, epochs=LONGER * config.run.epochs))


def with_head(config: FinetuneConfig, **changes: float) -> FinetuneConfig:
    return replace(config, head=replace(config.head, **changes))  # type: ignore[arg-type]


SIDES: dict[str, Side] = {  # the first is what the others are compared with
    "plain": partial(with_colours, AugmentConfig()),
    "colours": partial(with_colours, COLOURS),
    "colours_longer": lambda config: longer(with_colours(COLOURS, config)),
    "drop_path": lambda config: with_head(with_colours(AugmentConfig(), config), drop_path=0.2),
    "mixup": lambda config: with_head(with_colours(AugmentConfig(), config), mixup=0.2),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="shards of synthetic motion clips, or any others")
    parser.add_argument("--from", dest="start", required=True, metavar="RUN",
                        help="pretraining runs; {seed} stands for the seed")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "finetuning.json", help="JSON file to write")
    parser.add_argument("--preset", choices=[*FINETUNE], default="demo")
    parser.add_argument("--test-split", default="xsub_val", help="clips that decide (default xsub_val)")
    parser.add_argument("--seeds", type=Range(2).parser(int), default=3, help="runs per side, from seed 0 on (default 3)")
    parser.add_argument("--jobs", type=Range(1, 1000).parser(int), default=2, help="runs at a time, each on a core of its own")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES], default=[*SIDES], help="these alone")
    parser.add_argument("--finetune", default="", metavar="OPTIONS", help="further options of `svdata2vec finetune`, one text")
    return parser


def runs_of(options: argparse.Namespace) -> dict[tuple[str, int], FinetuneConfig]:
    """Fine-tunings by side and seed."""
    words = ["--data.shards", options.shards, "--data.threads", "1", "--data.test-split", options.test_split]
    base: FinetuneConfig = read_options("finetune", options.preset, [*words, *shlex.split(options.finetune)])
    sides = {name: side(base) for name, side in SIDES.items() if name in options.sides}
    plain: FinetuneConfig = read_options("finetune", options.preset, words)
    require_sides(sides, base, plain, "--finetune", "run.out", "run.seed", "pretrained")
    return {
        (name, seed): replace(
            config, pretrained=start_of(options.start, seed),
            run=replace(config.run, out=options.work / f"{name}-{seed}", seed=seed),
        )
        for name, config in sides.items() for seed in range(options.seeds)
    }


def run_experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune on all sides and write the record; finished runs are reused."""
    runs, seeds = runs_of(options), range(options.seeds)
    names = list(dict.fromkeys(name for name, _ in runs))
    first = runs[names[0], 0]
    outcomes = run_all([partial(finetune, config) for config in runs.values()], options.jobs, first.run.device)
    results = dict(zip(runs, outcomes, strict=True))
    some = results[names[0], 0]
    scores = {name: [results[name, seed][first.data.metric] for seed in seeds] for name in names}
    record = {
        **head("svdata2vec-finetuning", 1), "machine": hardware(pick_device(first.run.device)), "commit": commit(),
        "metric": first.data.metric, "seeds": [*seeds],
        "data": {"name": some["dataset"], "split": some["split"], "clips": some["clips"], "labels": some["labels"]},
        "pretraining": _pretraining(first),
        "commits": sorted({made for config in runs.values() for made in read_card(config.run.out).get("commits", [UNKNOWN])}),
        "settings": to_values(replace(first, pretrained=None, run=replace(first.run, out=Path(first.run.out.name)))),
        "sides": {name: {
            "changes": changed_settings(to_values(first), to_values(runs[name, 0]), ("run.out", "run.seed", "pretrained")),
            "scores": scores[name], **over_seeds(scores[name]),
            "difference": over_seeds([mine - its for mine, its in zip(scores[name], scores[names[0]], strict=True)]),
            "costs": [cost(runs[name, seed].run.out) for seed in seeds],
        } for name in names},
    }
    save(record, options.out)
    return record


def _pretraining(config: FinetuneConfig) -> dict[str, Any]:
    """The pretraining that the runs started from."""
    assert config.pretrained is not None
    card = read_card(config.pretrained)
    return {"epochs": card["config"]["run"]["epochs"], "commits": card.get("commits", [UNKNOWN])}


def summary(record: dict[str, Any]) -> str:
    """A line for each side: its mean, and how far it is from the first one's."""
    rows = []
    for name, side in record["sides"].items():
        ends = " to ".join(f"{100 * end:+.1f}" for end in side["difference"]["interval"])
        rows.append(f"{name:16} {100 * side['mean']:5.1f} %  {100 * side['difference']['mean']:+5.1f} ({ends})\n")
    return "".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    return reported(lambda: summary(run_experiment(options)), options.out)


if __name__ == "__main__":
    sys.exit(main())
