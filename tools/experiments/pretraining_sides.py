"""Runs of the pretraining experiments: every side on given shards, and a study of their accuracies with labels."""

import argparse
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.options import parse, read
from svdata2vec.config.files import to_values
from svdata2vec.config.label_efficiency import LabelEfficiencyConfig, Way
from svdata2vec.config.presets import PRETRAIN
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.model.step_cost import step_flops, step_layers
from svdata2vec.reports.html_page import save_figure
from svdata2vec.reports.label_curve import label_curve
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import open_data
from svdata2vec.runs.folder import changed_settings
from svdata2vec.runs.provenance import save
from svdata2vec.runs.published import published_config
from svdata2vec.shards.atomic import beside, require_writable
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range
from svdata2vec.studies.jobs import run_all
from svdata2vec.studies.label_efficiency import about, fit_after, require_fit, rows_of, write_study
from svdata2vec.studies.rows import Row, start_of
from svdata2vec.training.pretrain import pretrain

RESULTS = Path(__file__).parents[1] / "results"

Side = Callable[[PretrainConfig], PretrainConfig]
Config = PretrainConfig | FinetuneConfig


@dataclass(frozen=True)
class Experiment:
    """Ways to pretrain, by the names of their rows, and the study of them.

    Attributes:
        sides: each maps the preset's settings to those of a side; the others are compared with the first.
        ways, fractions, seeds: settings of the study after pretraining.
        record: name of its file in tools/results; a chart is written beside it.
    """

    sides: dict[str, Side]
    ways: tuple[Way, ...]
    fractions: tuple[float, ...]
    seeds: int
    record: str


def make_parser(description: str | None, names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=names)
    parser.add_argument("--shards", required=True, help="shards of synthetic motion clips, or any others")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; finished ones in it are taken")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: the experiment's record in tools/results")
    parser.add_argument("--preset", choices=[*PRETRAIN], default="demo")
    parser.add_argument("--seeds", type=Range(1).parser(int), help="instead of the experiment's own number")
    parser.add_argument("--jobs", type=Range(1, 1000).parser(int), default=2, help="runs at a time, each on a core of its own")
    parser.add_argument("--sides", nargs="*", help="these alone; none named: nothing is pretrained, only rivals are trained")
    parser.add_argument("--pretrain", default="", metavar="OPTIONS", help="further options of `svdata2vec pretrain`, one text")
    parser.add_argument("--study", default="", metavar="OPTIONS", help="further options of `svdata2vec label-efficiency`")
    return parser


def read_options(command: str, preset: str, words: list[str]) -> Any:
    """Settings as the command line reads them, including those that preset `own` derives from the shards."""
    return read([command, preset, *words], COMMANDS, "svdata2vec", fit=True)[1]


def pretrainings(experiment: Experiment, options: argparse.Namespace) -> dict[tuple[str, int], PretrainConfig]:
    """The pretraining runs of all sides and seeds."""
    words, more = ["--data.shards", options.shards, "--data.threads", "1"], shlex.split(options.pretrain)
    base: PretrainConfig = read_options("pretrain", options.preset, [*words, *more])
    sides, first = {name: side(base) for name, side in experiment.sides.items()}, base.run.seed
    if sides:
        require_sides(sides, base, read_options("pretrain", options.preset, words), "--pretrain", "run.out")
    return {
        (name, seed): replace(config, run=replace(config.run, out=options.work / f"{name}-{seed}", seed=seed))
        for name, config in sides.items()
        for seed in range(first, first + (options.seeds or experiment.seeds))
    }


def require_sides(sides: Mapping[str, Config], base: Config, plain: Config, option: str, *own: str) -> None:
    """UserError if `option` (from `plain` to `base`) sets something that the script (`own`) or its reference overrides, or
    makes two sides the same."""
    reference = next(iter(sides.values()))
    if taken := sorted(_changed(plain, base) & {*_changed(base, reference), *own}):
        raise UserError(f"{option} sets {', '.join(taken)}, which the experiment sets itself; leave it out")
    names = [*sides]
    for number, name in enumerate(names):
        for other in names[:number]:
            if sides[name] == sides[other]:
                raise UserError(f"with these settings the sides {other} and {name} are the same; leave one out by --sides, or "
                                f"change {option}")


def _changed(one: Config, other: Config) -> set[str]:
    """Dotted names of the settings in which two configurations differ."""
    return {change.split()[0] for change in changed_settings(to_values(one), to_values(other))}


def study_of(experiment: Experiment, options: argparse.Namespace, first: PretrainConfig | None) -> LabelEfficiencyConfig:
    """The study of all sides, whose runs need not exist yet: the preset `own` fits the settings of the `first`."""
    starts = [f"{name}={options.work}/{name}-{{seed}}" for name in experiment.sides]
    words = [
        "--data.shards", options.shards, "--data.threads", "1", "--run.out", str(options.work / "study"), "--from", *starts,
        "--ways", *experiment.ways, "--fractions", *map(str, experiment.fractions), "--jobs", str(options.jobs),
        "--seeds", str(options.seeds or experiment.seeds), *shlex.split(options.study),
    ]
    name = f"label-efficiency {options.preset}"
    command, config = read([*name.split(), *words], COMMANDS, "svdata2vec")
    if command.fit is not None:
        config = parse(partial(fit_after, config, first), words, f"svdata2vec {name}")
    assert isinstance(config, LabelEfficiencyConfig)
    return config


def run_experiment(
    experiment: Experiment, options: argparse.Namespace, more_rows: Callable[[LabelEfficiencyConfig], list[Row]] = lambda _: []
) -> dict[str, Any]:
    """Pretrain all sides, study them together with further rows, and write the record; finished runs are reused."""
    if unknown := sorted({*(options.sides or ())} - {*experiment.sides}):
        raise UserError(f"--sides {' '.join(unknown)}: expected some of {', '.join(experiment.sides)}")
    if options.sides is not None:
        experiment = replace(experiment, sides={name: experiment.sides[name] for name in options.sides})
    out = options.out or RESULTS / f"{experiment.record}.json"
    require_writable(out, ".png")
    runs = pretrainings(experiment, options)
    first = next(iter(runs.values()), None)
    study = study_of(experiment, options, first)
    if first is not None and not study.collect:
        require_study(study, runs)
        run_all([partial(pretrain, config) for config in runs.values()], options.jobs, first.run.device)
    record = write_study(study, [*more_rows(study), *rows_of(study)])
    record["experiment"] = options.experiment
    if first is not None:
        record["sides"] = {
            name: changed_settings(to_values(first), to_values(config), ("run.out", "run.seed"))
            for (name, _), config in runs.items()
        }
        record["pretraining"] = to_values(replace(first, run=replace(first.run, out=Path(first.run.out.name))))
    save(record, out)
    save_figure(label_curve(record), beside(out, ".png"), dpi=110)
    return record


def require_study(study: LabelEfficiencyConfig, runs: dict[tuple[str, int], PretrainConfig]) -> None:
    """UserError, before anything is trained, if the study cannot start from the pretraining runs."""
    to_come = {config.run.out: config for config in runs.values()}
    seeds = {seed for _, seed in runs}
    wanted = {*range(study.run.seed, study.run.seed + study.seeds)}
    if not wanted <= seeds:
        found, given = (", ".join(map(str, sorted(each))) for each in (wanted, seeds))
        raise UserError(f"the study has the seeds {found}, pretraining {given}; give --pretrain and --study one --run.seed")
    about(study, open_data(study.data))
    starts = [start_of(start.partition("=")[2], seed) for start in study.pretrained for seed in wanted]
    require_fit({run: to_come.get(run) or published_config(read_card(run), run) for run in starts}, study)


def equal_work(config: PretrainConfig, reference: PretrainConfig) -> PretrainConfig:
    """Number of whole epochs that the reference's multiply-adds allow, at least one."""
    joints = len(open_data(config.data).manifest.layout.joints)
    epochs = reference.run.epochs * step_flops(step_layers(reference, joints)) / step_flops(step_layers(config, joints))
    return replace(config, run=replace(config.run, epochs=max(round(epochs), 1)))
