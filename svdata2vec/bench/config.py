"""Options of the benchmarks: a pretraining preset and how to measure it. Nothing of the run itself is written."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from svdata2vec.config.schema import PretrainConfig, check
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Count, PositiveShare, Range, check_fields

Seconds = Annotated[float, Range(0.01)]
LEAST_ROUNDS = 3  # that tell a faster setting from noise


@dataclass(frozen=True)
class MeasuredConfig(PretrainConfig):
    """A pretraining preset whose training step is measured."""

    out: Path | None = None
    """JSON file to write; None = only the table is printed."""
    rounds: Count = 3
    """Rounds of measurement; medians over rounds are reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        accumulate = self.optim.accumulate
        check(accumulate == 1, f"optim.accumulate is {accumulate}; a benchmark's step takes one batch, leave it at 1")

    @classmethod
    def of(cls, preset: PretrainConfig) -> Self:
        """The preset with the benchmark's own settings, one batch per step."""
        return cls(**{**vars(preset), "optim": replace(preset.optim, accumulate=1)})


@dataclass(frozen=True)
class BenchConfig(MeasuredConfig):
    """Measure every stage of a pretraining run and what bounds it. Nothing of the run itself is written."""

    out: Path | None = None
    """JSON file to write, with a chart (.png) and a page (.html) beside it; None = only the table is printed."""
    rounds: Count = 5
    """Rounds, in which the stages take turns; medians over rounds are reported."""
    seconds: Seconds = 2.0
    """Seconds per stage and round, warm-up not counted."""
    baseline: Literal["none", "original-style"] = "none"
    """Also measure, in the same run, training as the authors' code does it: all frames encoded, fp32, a wait in each step."""


@dataclass(frozen=True)
class ScaleConfig(MeasuredConfig):
    """Measure more and more processes on this machine, each with the same batch. Nothing of the run itself is written."""

    processes: Annotated[tuple[int, ...], Range(1, 10_000)] = ()
    """Numbers of processes to measure; none = 1, 2, 4 ... up to the GPUs of this machine (1, 2 and 4 on a CPU)."""
    steps: Count = 20
    """Training steps timed per number of processes; an epoch that has begun is finished, so it may be more."""
    warm_up: Annotated[int, Range(0)] = 3
    """Training steps before them, not timed."""
    rounds: Count = 3
    """Rounds in which steps with and without the exchange of gradients take turns."""


@dataclass(frozen=True)
class BatchConfig(MeasuredConfig):
    """Find the batch size that is fast enough, and the largest that fits. Nothing of the run itself is written."""

    memory_share: PositiveShare | None = None
    """Share of the free memory that a training step may take, unless there is a limit in GiB; None = 0.9 of a GPU's; on a CPU
    half of the machine's, which other programs use, too."""
    memory_limit_gib: Annotated[float, Range(0)] = 0.0
    """Memory that a training step may take, in GiB, instead of a share of what is free; 0 = the share."""
    largest: Count = 4096
    """Largest batch size to try, in clips."""
    seconds: Seconds = 1.0
    """Seconds per size and round, at least one step; warm-up not counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not (self.memory_share and self.memory_limit_gib), f"memory_share is {self.memory_share} and memory_limit_gib "
              f"{self.memory_limit_gib}: either of them is the limit; leave one of them out")
        least = self.smallest()
        check(self.largest >= least, f"largest is {self.largest}, but these settings train on batches of {least} clips or more")

    def smallest(self) -> int:
        """The smallest batch size that the settings allow."""
        if self.run.batch_size > 1:
            try:
                replace(self, run=replace(self.run, batch_size=1))
            except UserError:
                return 2
        return 1

    def share(self, *, gpu: bool) -> float | None:
        """`memory_share`, or the device's own default; None where the limit is given in bytes."""
        return None if self.memory_limit_gib else self.memory_share or (0.9 if gpu else 0.5)

    def limit_bytes(self, free: int, *, gpu: bool) -> int:
        """Memory that a training step may take where so many bytes are free."""
        share = self.share(gpu=gpu)
        return int(self.memory_limit_gib * 2**30 if share is None else share * free)


@dataclass(frozen=True)
class HostConfig(MeasuredConfig):
    """Measure what a clip costs the host beside a GPU: reading, checks, plans, feeding. Nothing is decoded or trained,
    and no pixel is changed."""

    batches: Annotated[tuple[int, ...], Range(1, 10_000)] = (32, 128)
    """Batch sizes to measure."""
    readers: Annotated[tuple[int, ...], Range(0, 100)] = (0, 1)
    """Numbers of reader processes to measure; 0 = a thread reads."""
    rounds: Count = 30
    """Batches timed per row; the median is reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.batches), "batches has no values: expected one size or more, such as 32 128")
        check(bool(self.readers), "readers has no values: expected one number or more, such as 0 1")


@dataclass(frozen=True)
class DataBenchOptions:
    """Measure the loader in three steps, and other ways of loading: clips/s, CPU time, memory; on clips that it makes."""

    out: Path | None = None
    """JSON file to write, with a chart (.png) beside it; None = only the table is printed."""
    folder: Path = Path(tempfile.gettempdir()) / "svdata2vec-bench-data"
    """Folder where the source clips and shards are made, and found again."""
    sources: Annotated[int, Range(4)] = 12
    """Source clips to make, at least a batch of four."""
    clips: Count = 84
    """Clips timed per method and round, after the first 48: with 12 sources, each of them seven times."""
    rounds: Count = 3
    """Rounds, in which the methods (with tune: the settings, three rounds at least) take turns; medians are reported."""
    method: str | None = None
    """Time this method alone, in this process, and print JSON, without out; None = all of them. Names: "ours, jpeg: read only";
    "ours, jpeg: + decode"; "ours, jpeg"; "ours, jpeg, pretraining"; "ours, jpeg 4:4:4"; "ours, blocks"; "ours, vp9: + decode";
    "ours, vp9"; "ours, h264"; "original style, pyav"; "original style, pyav, uint8"; "plain webdataset + pyav"; "original
    style, decord"; "original style, torchcodec"; where there is a GPU also "ours, jpeg, GPU" and so on with each codec."""
    tune: bool = False
    """Instead, find the settings with which this machine decodes jpeg fastest (threads, engine share of a GPU, pictures at
    once), and store them for its runs; explicit options stand above them."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(not self.tune or self.clips == type(self).clips, f"clips is {self.clips} with tune, which times for a second per "
              "setting and round: leave one of them out")
        check(self.method is None or self.rounds == type(self).rounds, f"rounds is {self.rounds} with method {self.method!r}, "
              "which is timed once: leave one of them out")
        check(not (self.tune and self.method), f"tune and method {self.method!r} exclude each other: leave one of them out")
        check(not (self.out and self.method), f"out is {self.out} with method {self.method!r}, which prints its JSON and "
              "writes no file: leave one of them out")
        check(not self.tune or self.rounds >= LEAST_ROUNDS, f"rounds is {self.rounds} with tune, which then cannot tell a "
              f"faster setting from noise: expected {LEAST_ROUNDS} or more")
