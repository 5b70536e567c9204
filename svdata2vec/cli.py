"""The command `svdata2vec`: one function per sub-command, overrides typed by the configuration dataclasses.

Wrong input ends in one line on standard error and exit status 2.
"""

import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from svdata2vec import __version__
from svdata2vec.presets import FINETUNE, PRETRAIN, describe, preset
from svdata2vec.shards.errors import UserError

Options = TypeVar("Options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"svdata2vec {__version__}\n")
        return 0
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"unknown command {words[0]!r}; choose one of: {', '.join(COMMANDS)}")
        COMMANDS[words[0]].run(words[1:])
    except UserError as error:
        sys.stderr.write(f"svdata2vec {words[0]}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def usage() -> str:
    lines = ["usage: svdata2vec COMMAND ...\n", "Self-supervised pretraining on video + skeletons.\n"]
    lines += [f"  {name:10s} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "svdata2vec COMMAND --help explains every option with its unit and default.", ""])


def parse(kind: type[Options], words: list[str], prog: str, default: Options | None = None) -> Options:
    """Read options into the dataclass `kind`; an unknown option is an error that names the nearest known one."""
    settings: dict[str, Any] = {} if default is None else {"default": default}
    options, unknown = tyro.cli(kind, args=words, prog=prog, return_unknown_args=True, **settings)
    if unknown:
        known = option_names(options)
        near = difflib.get_close_matches(unknown[0].lstrip("-").replace("-", "_"), known, n=1, cutoff=0.5)
        hint = f"did you mean --{near[0].replace('_', '-')}? " if near else ""
        raise UserError(f"unknown option {unknown[0]!r}; {hint}`{prog} --help` lists the options")
    return options


def option_names(options: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields of nested dataclasses."""
    names: list[str] = []
    for name, value in vars(options).items():
        nested = hasattr(value, "__dataclass_fields__")
        names += option_names(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return names


def parse_preset(table: Any, words: list[str], command: str) -> Any:
    """`PRESET [overrides]` -> configuration."""
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:14s} {describe(name)}" for name in table)
        sys.stdout.write(
            f"usage: svdata2vec {command} PRESET [overrides]\n\npresets:\n{rows}\n\n"
            f"svdata2vec {command} PRESET --help lists every setting of a preset.\n"
        )
        raise SystemExit(0)
    config = preset(table, words[0])
    return parse(type(config), words[1:], f"svdata2vec {command} {words[0]}", config)


@dataclass(frozen=True)
class ShardOptions:
    """Pack a data set into shards, once."""

    source: tyro.conf.Positional[Path]
    """What the data set's owner gave out: an annotation pickle (pyskl, mmaction2), or a folder."""
    out: tyro.conf.Positional[Path]
    """Folder of the shards."""
    videos: Path | None = None
    """Folder of the video files; default: `videos` beside the pickle."""
    name: str | None = None
    """Name of the data set; default: the source's name."""
    size: int = 320
    """Side of the packed square picture, in pixels (a multiple of 32)."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    workers: int = os.cpu_count() or 1
    """Processes that decode and encode."""
    seed: int = 0
    """Seed of the global shuffle."""


def run_shard(words: list[str]) -> None:
    options = parse(ShardOptions, words, "svdata2vec shard")
    from svdata2vec.shards.pack import PackOptions, pack
    from svdata2vec.shards.read_pyskl import read_pyskl

    dataset = read_pyskl(options.source, options.videos or options.source.parent / "videos", name=options.name)
    settings = PackOptions(size=options.size, quality=options.quality, workers=options.workers, seed=options.seed)
    pack(dataset, options.out, settings)


def run_pretrain(words: list[str]) -> None:
    config = parse_preset(PRETRAIN, words, "pretrain")
    from svdata2vec.pretrain import pretrain

    pretrain(config)


def run_finetune(words: list[str]) -> None:
    config = parse_preset(FINETUNE, words, "finetune")
    from svdata2vec.finetune import finetune

    finetune(config)


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a finished fine-tuning run; prints the metrics as JSON."""

    run: tyro.conf.Positional[Path]
    """Folder of the fine-tuning run."""
    shards: Path | None = None
    """Folder of shards; default: the run's own."""
    split: str | None = None
    """Split to evaluate; default: the run's test split."""
    device: str = "auto"
    """auto, cpu or cuda."""


def run_evaluate(words: list[str]) -> None:
    options = parse(EvaluateOptions, words, "svdata2vec evaluate")
    from svdata2vec.evaluate import evaluate_run

    result = evaluate_run(options.run, options.shards, options.split, options.device)
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(result, indent=2) + "\n")


@dataclass(frozen=True)
class ReportOptions:
    """One HTML file about one or several runs; opens without a network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of the runs."""
    out: Path = Path("report.html")
    """File to write."""


def run_report(words: list[str]) -> None:
    options = parse(ReportOptions, words, "svdata2vec report")
    from svdata2vec.report import write_report

    write_report(list(options.runs), options.out)
    sys.stdout.write(f"{options.out}\n")


@dataclass(frozen=True)
class Command:
    """A sub-command: its line in the overview, and the function that takes its words."""

    summary: str
    run: Callable[[list[str]], None]


COMMANDS = {
    "shard": Command("pack a data set into shards", run_shard),
    "pretrain": Command("self-supervised pretraining on video + skeletons", run_pretrain),
    "finetune": Command("train a recogniser, from a pretraining run or from scratch", run_finetune),
    "evaluate": Command("accuracy and confusion matrix of a recogniser", run_evaluate),
    "report": Command("one HTML page about runs", run_report),
}
