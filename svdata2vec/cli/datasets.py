"""Commands on data sets: pack one into shards, check shards, view them. Heavy imports happen when a command runs."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro

from svdata2vec.cli.options import Command, Group
from svdata2vec.cli.progress import checked_shards, shown_progress
from svdata2vec.config.schema import LARGEST_SIZE, Frames
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.ranges import Count, Range, check_fields
from svdata2vec.shards.readers.sources import SOURCES, open_dataset
from svdata2vec.shards.reading.summary import table, write_summary
from svdata2vec.shards.shown import public, shown_lines


def run_shard(kind: str, options: Any) -> None:
    """Read a data set of this kind, pack it, and print a summary."""
    dataset = open_dataset(kind, **{name: getattr(options, name) for name in SOURCES[kind].options})
    with shown_progress() as progress:
        pack(dataset, options.out, options.pack, progress=progress)
    sys.stdout.write(table(options.out, write_summary(options.out)))


def _as_option(annotation: Any) -> Any:
    """A reader's parameter as an option; help and errors say which words are files and names."""
    if get_origin(annotation) is Mapping:
        words = "NAME FILE [NAME FILE ...]"
    elif Path in get_args(annotation):  # or text: a URL, or names
        words = "PATH" if annotation == str | Path else "FILE|NAME [NAME ...]"
    else:
        return annotation
    return Annotated[annotation, tyro.conf.arg(metavar=words)]


def _shard_options(kind: str) -> type:
    """Options of a kind of data set: the output folder, the reader's parameters, and how to pack."""
    reader: list[Any] = [
        (name, _as_option(parameter.annotation)) if parameter.default is parameter.empty
        else (name, _as_option(parameter.annotation), field(default=parameter.default))
        for name, parameter in SOURCES[kind].options.items()
    ]
    place = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT", help="Folder to write the shards to.")]
    packing = ("pack", tyro.conf.OmitArgPrefixes[PackOptions], field(default_factory=PackOptions))
    options = [("out", place), *sorted(reader, key=len), packing]  # those with a default come last
    made = make_dataclass("Shard", options, namespace={"__post_init__": check_fields})
    made.__doc__ = f"{SOURCES[kind].about}.\n\n{inspect.getdoc(SOURCES[kind].read)}"  # its Args explain the options
    return made


SHARD = Group(
    "pack a data set into shards, once", "kind of data set",
    {kind: Command(source.about, partial(run_shard, kind), partial(_shard_options, kind)) for kind, source in SOURCES.items()},
)


@dataclass(frozen=True)
class VerifyOptions:
    """Check packed shards: hashes, index against tars, every clip decodes, counts, joints, labels, splits."""

    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Folder of the shards; several, checked one after the other, with commas between them."""
    decode: bool = True
    """Decode every clip (the hashes cover its bytes either way)."""
    workers: Annotated[int, Range(1, 10_000)] = field(default_factory=job_cores)
    """Processes that check."""
    add_sums: bool = False
    """If no fault is found, add checksums to a folder without them (format 1, as release 0.2.0 packed it)."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_verify(options: VerifyOptions) -> None:
    """Print every fault that is found; any fault is an error."""
    from svdata2vec.shards.reading.joined import set_names

    names = set_names(options.shards)
    for name in names:
        if "://" in name:
            raise UserError(f"{public(name)}: expected a folder on this machine; copy the shards here to verify them")
    faults = {name: _verified(Path(name), options) for name in names}
    if any(faults.values()):
        found = ", ".join(f"{name}: {count} fault{'s' * (count > 1)}" for name, count in faults.items() if count)
        raise UserError(f"{found}; copy the damaged files again, or else pack again into another folder, if necessary without "
                        "these clips")


def _verified(root: Path, options: VerifyOptions) -> int:
    """Check one folder and print the findings; returns the number of faults."""
    from svdata2vec.shards.reading.shardset import ShardSet
    from svdata2vec.shards.reading.stats import corner_report, persons_report, set_statistics
    from svdata2vec.shards.reading.verify import add_sums, verify

    findings = verify(root, decode=options.decode, workers=options.workers, progress=checked_shards())
    for finding in findings:
        sys.stdout.write(shown_lines(f"{finding}\n"))
    if findings:
        return len(findings)
    if options.add_sums:
        add_sums(root)
        sys.stdout.write(shown_lines(f"{root}: checksums added\n"))
    shards = ShardSet.open(root)
    figures = set_statistics(shards)
    for remark in filter(None, [*shards.manifest.unlike_published(), persons_report(figures), corner_report(figures.reach)]):
        sys.stdout.write(shown_lines(f"no fault, but note: {remark}\n"))
    sys.stdout.write(shown_lines(f"{root}: no fault found\n"))
    return 0


@dataclass(frozen=True)
class InspectOptions:
    """Pictures of what the model sees, per class or clip (crops, boxes, joints, flips), and a page of figures."""

    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Folder of the shards, or its URL."""
    split: str
    """Split whose clips are shown (the figures are those of the whole set)."""
    out: Path = Path("inspect")
    """Folder for index.html, the pictures and statistics.json."""
    keys: tuple[str, ...] = ()
    """Names of clips to show instead of some of each class."""
    train: bool = True
    """Show training crops (random crop and flip) instead of evaluation crops."""
    num_frames: Frames = 40
    """Frames sampled from a clip."""
    size: Annotated[int, Range(1, LARGEST_SIZE)] = 224
    """Side of the crop, in pixels."""
    clips: Count = 4
    """Clips per class."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_inspect(options: InspectOptions) -> None:
    """Write pictures, statistics and the page that shows both."""
    from svdata2vec.pipeline.plan import PlanConfig
    from svdata2vec.reports.inspection import inspect_shards

    plan = PlanConfig(num_frames=options.num_frames, size=options.size)
    count = inspect_shards(
        options.shards, options.split, options.out, plan, train=options.train, clips=options.clips, keys=options.keys
    )
    sys.stdout.write(shown_lines(f"{options.out / 'index.html'}: {count} pictures and the data set's figures\n"))
