"""Commands that measure. Heavy imports happen when a command runs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from svdata2vec.bench.config import BatchConfig, BenchConfig, DataBenchOptions, HostConfig, ScaleConfig
from svdata2vec.cli.options import FITS, Command, Group, Later, preset_commands
from svdata2vec.config.presets import PRETRAIN
from svdata2vec.config.schema import check
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.ranges import check_fields
from svdata2vec.shards.shown import shown_lines


@dataclass(frozen=True)
class CompareOptions:
    """Compare two records of `svdata2vec bench run --out`, side by side."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A.json")]
    """Record that the other one is compared with."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B.json")]
    """The other record."""
    out: Path | None = None
    """HTML page to write, with the charts of both; None = only print the table."""

    def __post_init__(self) -> None:
        check_fields(self)
        records = {path.resolve() for path in (self.first, self.second)}
        check(self.out is None or self.out.resolve() not in records, f"out is {self.out}, a record that is compared and would "
              "be lost: give the page another name")


def _compare(options: CompareOptions) -> None:
    from svdata2vec.bench.page import write_comparison
    from svdata2vec.bench.record import compare, load_record

    require_writable(options.out)
    first, second = load_record(options.first), load_record(options.second)
    sys.stdout.write(shown_lines(compare(first, second)))
    if options.out is not None:
        write_comparison(first, second, options.out)


BENCH = Group(
    "how fast a run's stages are, and what bounds it", "benchmark",
    {
        "run": preset_commands(
            "every stage of a pretraining run, and what bounds it",
            Later("bench.run:bench_run"), PRETRAIN, BenchConfig.of, fits=FITS,
        ),
        "compare": Command("two records of `bench run --out`", _compare, CompareOptions),
        "scale": preset_commands(
            "more and more processes on this machine, one batch each",
            Later("bench.scale:bench_scale"), PRETRAIN, ScaleConfig.of, fits=FITS,
        ),
        "batch": preset_commands(
            "which batch size is fast enough, and which still fits",
            Later("bench.batch:bench_batch"), PRETRAIN, BatchConfig.of, fits=FITS,
        ),
        "host": preset_commands(
            "what a clip costs the host that feeds a GPU", Later("bench.host:bench_host"), PRETRAIN, HostConfig.of, fits=FITS,
        ),
        "data": Command("the loader against other ways of loading", Later("bench.data:bench_data"), DataBenchOptions),
    },
)
