"""The sub-commands: options of each, and the function that runs it. Heavy imports happen when a command runs."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from svdata2vec.cli.options import parse, parse_preset
from svdata2vec.cli.progress import shown_progress
from svdata2vec.cli.run_commands import run_convert, run_embed, run_export, run_predict, run_probe
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.schema import Device
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.sources import SOURCES, open_dataset


def run_shard(words: list[str]) -> None:
    """Pack a data set: `KIND OUT` and the options of that kind of data set."""
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {kind:16s} {source.about}" for kind, source in SOURCES.items())
        sys.stdout.write(
            f"usage: svdata2vec shard KIND OUT [options]\n\nkinds of data sets:\n{rows}\n\n"
            "svdata2vec shard KIND --help explains the options of a kind.\n"
        )
        raise SystemExit(0)
    kind = words[0]
    if kind not in SOURCES:
        raise UserError(f"unknown kind of data set {kind!r}; choose one of: {', '.join(SOURCES)}")
    options: Any = parse(_shard_options(kind), words[1:], f"svdata2vec shard {kind}")
    given = {name: getattr(options, name) for name in SOURCES[kind].options}
    dataset = open_dataset(kind, **given)
    with shown_progress() as progress:
        pack(dataset, options.out, options.pack, progress=progress)


def _shard_options(kind: str) -> type:
    """Options of a kind of data set: where to write, what its reader takes, how to pack."""
    reader: list[Any] = [
        (name, parameter.annotation) if parameter.default is parameter.empty
        else (name, parameter.annotation, field(default=parameter.default))
        for name, parameter in SOURCES[kind].options.items()
    ]
    required = [entry for entry in reader if len(entry) == 2]
    place = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT", help="Folder to write the shards to.")]
    packing = ("pack", tyro.conf.OmitArgPrefixes[PackOptions], field(default_factory=PackOptions))
    optional = [entry for entry in reader if len(entry) == 3]
    made = make_dataclass("Shard", [("out", place), *required, *optional, packing])
    made.__doc__ = f"{SOURCES[kind].about}.\n\n{inspect.getdoc(SOURCES[kind].read)}"  # its Args explain the options
    return made


@dataclass(frozen=True)
class VerifyOptions:
    """Check packed shards: hashes, index against tars, every clip decodes, counts, joints, labels, splits."""

    shards: tyro.conf.Positional[Path]
    """Folder of the shards."""
    decode: bool = True
    """Decode every clip (the hashes cover its bytes either way)."""
    workers: int = os.cpu_count() or 1
    """Processes."""


def run_verify(words: list[str]) -> None:
    """Print every fault that is found; any is an error."""
    options = parse(VerifyOptions, words, "svdata2vec verify")
    from svdata2vec.shards.reading.verify import verify

    findings = verify(options.shards, decode=options.decode, workers=options.workers)
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    if findings:
        raise UserError(f"{options.shards}: {len(findings)} faults; pack again, or leave these clips out")
    sys.stdout.write(f"{options.shards}: no fault found\n")


@dataclass(frozen=True)
class InspectOptions:
    """Pictures of what the model sees, per class or clip: crops, boxes, joints, flips; and a page of figures."""

    shards: tyro.conf.Positional[str]
    """Folder of the shards, or its URL."""
    split: str
    """Split to look at."""
    out: Path = Path("inspect")
    """Folder for index.html, the pictures and statistics.json."""
    keys: tuple[str, ...] = ()
    """Show these clips instead of some of each class."""
    train: bool = True
    """Show training crops (random crop and flip) instead of evaluation crops."""
    num_frames: int = 40
    """Frames sampled from a clip."""
    size: int = 224
    """Side of the crop, in pixels."""
    clips: int = 4
    """Clips per class."""


def run_inspect(words: list[str]) -> None:
    """Write pictures, statistics and the page that shows both."""
    options = parse(InspectOptions, words, "svdata2vec inspect")
    from svdata2vec.pipeline.plan import PlanConfig
    from svdata2vec.reports.inspection import inspect_shards

    plan = PlanConfig(num_frames=options.num_frames, size=options.size)
    count = inspect_shards(
        options.shards, options.split, options.out, plan, train=options.train, clips=options.clips, keys=options.keys
    )
    sys.stdout.write(f"{options.out / 'index.html'}: {count} pictures and the data set's figures\n")


def run_pretrain(words: list[str]) -> None:
    config = parse_preset(PRETRAIN, words, "pretrain")
    from svdata2vec.training.pretrain import pretrain

    pretrain(config)


def run_finetune(words: list[str]) -> None:
    config = parse_preset(FINETUNE, words, "finetune")
    from svdata2vec.training.finetune import finetune

    finetune(config)


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a finished fine-tuning run; prints the metrics as JSON."""

    run: tyro.conf.Positional[Path]
    """Folder of the fine-tuning run."""
    shards: str | None = None
    """Folder of shards; default: the run's own."""
    split: str | None = None
    """Split to evaluate; default: the run's test split."""
    device: Device = "auto"
    """Where the model runs; auto = the GPU if there is one."""


def run_evaluate(words: list[str]) -> None:
    options = parse(EvaluateOptions, words, "svdata2vec evaluate")
    from svdata2vec.evaluation.evaluate import evaluate_run

    result = evaluate_run(options.run, options.shards, options.split, options.device)
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(result, indent=2) + "\n")


@dataclass(frozen=True)
class CompareOptions:
    """Two records of `svdata2vec bench run --out`, side by side."""

    first: tyro.conf.Positional[Path]
    """The one that the other is set against."""
    second: tyro.conf.Positional[Path]
    """The other."""
    out: Path | None = None
    """HTML page to write: both, with their pictures."""


def run_bench(words: list[str]) -> None:
    """Benchmarks: `run PRESET`, `compare A B`, `scale PRESET`, `batch PRESET`, `data`."""
    kinds = {
        "run": _bench_run, "compare": _bench_compare, "scale": _bench_scale, "batch": _bench_batch, "data": _bench_data,
    }
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(
            "usage: svdata2vec bench run PRESET [overrides]   every stage of a pretraining run, and what bounds it\n"
            "       svdata2vec bench compare A.json B.json    two records of `bench run --out`\n"
            "       svdata2vec bench scale PRESET [overrides] more and more processes on this machine, the same batch each\n"
            "       svdata2vec bench batch PRESET [overrides] the batch size that is fast enough, and the largest that fits\n"
            "       svdata2vec bench data                     the loader against other ways of loading\n"
        )
        raise SystemExit(0)
    if not words or words[0] not in kinds:
        found = f"unknown benchmark {words[0]!r}" if words else "no benchmark named"
        raise UserError(
            f"{found}; choose one of: run PRESET (every stage of a pretraining run), compare A.json B.json, scale PRESET (more "
            "and more processes), batch PRESET (which batch size), data (the loader against other ways of loading)"
        )
    kinds[words[0]](words[1:])


def _bench_run(words: list[str]) -> None:
    from svdata2vec.bench.run import bench_config, bench_run

    table = {name: (lambda make=make: bench_config(make())) for name, make in PRETRAIN.items()}
    bench_run(parse_preset(table, words, "bench run"))


def _bench_compare(words: list[str]) -> None:
    from svdata2vec.bench.page import write_comparison
    from svdata2vec.bench.record import compare, load_record

    options = parse(CompareOptions, words, "svdata2vec bench compare")
    first, second = load_record(options.first), load_record(options.second)
    sys.stdout.write(compare(first, second))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(first, second, options.out)


def _bench_scale(words: list[str]) -> None:
    from svdata2vec.bench.scale import bench_scale, scale_config

    table = {name: (lambda make=make: scale_config(make())) for name, make in PRETRAIN.items()}
    bench_scale(parse_preset(table, words, "bench scale"))


def _bench_batch(words: list[str]) -> None:
    from svdata2vec.bench.batch import batch_config, bench_batch

    table = {name: (lambda make=make: batch_config(make())) for name, make in PRETRAIN.items()}
    bench_batch(parse_preset(table, words, "bench batch"))


def _bench_data(words: list[str]) -> None:
    from svdata2vec.bench.data import BenchDataOptions, bench_data

    bench_data(parse(BenchDataOptions, words, "svdata2vec bench data"))


@dataclass(frozen=True)
class ReportOptions:
    """One HTML file about one or several runs; opens without a network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of the runs."""
    out: Path = Path("report.html")
    """File to write."""


def run_report(words: list[str]) -> None:
    options = parse(ReportOptions, words, "svdata2vec report")
    from svdata2vec.reports.report import write_report

    write_report(options.runs, options.out)
    sys.stdout.write(f"{options.out}\n")


@dataclass(frozen=True)
class Command:
    """A sub-command: its line in the overview, and the function that takes its words."""

    summary: str
    run: Callable[[list[str]], None]


COMMANDS = {
    "shard": Command("pack a data set into shards, once", run_shard),
    "verify": Command("check packed shards", run_verify),
    "inspect": Command("pictures of what the model sees", run_inspect),
    "pretrain": Command("self-supervised pretraining on video + skeletons", run_pretrain),
    "finetune": Command("train a classifier, from a pretraining run or from scratch", run_finetune),
    "evaluate": Command("accuracy and confusion matrix of a classifier", run_evaluate),
    "probe": Command("linear probe and nearest neighbours on a pretraining run's features", run_probe),
    "embed": Command("features of a split, to a file", run_embed),
    "predict": Command("top classes of a video file", run_predict),
    "convert": Command("a checkpoint of the authors' code -> a finished run", run_convert),
    "export": Command("the RGB classifier for other programs (torch.export, ONNX)", run_export),
    "bench": Command("how fast a run's stages are, and what bounds it", run_bench),
    "report": Command("one HTML page about runs", run_report),
}
