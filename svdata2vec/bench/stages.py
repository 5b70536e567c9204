"""The stages of a pretraining run, each as something that can be timed alone: read, decode, data, model, train.

A stage's `run` does one batch and returns its clips. All stages take the same shards, batch size, plan and seed; the
ones that train share a student. Stages take turns, round after round, so that a slow minute of the machine hits all.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from svdata2vec.bench.machine import quantiles, synchronise
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.producer import Producer
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.loop import epoch_batches
from svdata2vec.training.pretrain import Pretraining

NEVER_ENDING = 1_000_000  # epochs: the schedules of a benchmark do not reach their end
MODEL_DIFFERENCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative, of the loss of the same weights encoded in two ways


class Stage(Protocol):
    """Something that is timed batch by batch."""

    def run(self) -> int:
        """Do one batch; returns its number of clips."""
        ...


@dataclass
class ReadStage:
    """Storage, parsing and plans; every byte of a clip is touched, nothing is decoded."""

    producer: Producer

    def __post_init__(self) -> None:
        self._source = self.producer.read(0, 0)

    def run(self) -> int:
        clips = next(self._source).clips
        for clip in clips:
            if clip.encoded is not None:
                clip.encoded.video.sum()
        return len(clips)


@dataclass
class DecodeStage:
    """Decoding and geometry of clips that are in memory."""

    producer: Producer
    config: PretrainConfig
    device: torch.device
    batches: int = 4

    def __post_init__(self) -> None:
        reads = itertools.islice(self.producer.read(0, 0), self.batches)
        self._clips: Iterator[list[EncodedClip]] = itertools.cycle(
            [[clip.encoded for clip in read.clips if clip.encoded is not None] for read in reads]
        )
        data = self.config.data
        shape = (self.config.run.batch_size, data.num_frames, data.size, data.size, 3)
        self._frames = torch.empty(shape, dtype=torch.uint8, device=self.device)

    def run(self) -> int:
        assert self.producer.decoder is not None
        clips = next(self._clips)
        self.producer.decoder.decode(clips, self._frames)
        return len(clips)


@dataclass
class DataStage:
    """The loader as training has it, without a training step beside it."""

    stream: Generator[tuple[int, ClipBatch]]

    def run(self) -> int:
        return len(next(self.stream)[1])


@dataclass
class ModelStage:
    """The training step on one batch that is on the device already."""

    training: Pretraining
    batch: ClipBatch
    host_waits: bool = False

    def run(self) -> int:
        self.training.step([(0, self.batch)])
        wait_for_loss(self.training, self.host_waits)
        return len(self.batch)


@dataclass
class TrainStage:
    """Everything: loader and training step."""

    training: Pretraining
    stream: Generator[tuple[int, ClipBatch]]
    host_waits: bool = False

    def run(self) -> int:
        epoch, batch = next(self.stream)
        self.training.step([(epoch, batch)])
        wait_for_loss(self.training, self.host_waits)
        return len(batch)


def wait_for_loss(training: Pretraining, host_waits: bool) -> None:
    """Read the step's averages on the host, as a loop with `loss.item()` in each step does."""
    if host_waits:
        training.stepper.averages.take()


@dataclass
class Timing:
    """Rounds of one stage.

    clips_per_s: one rate per round. parts: seconds per part of the training step and `total`, summed over rounds.
    peak_bytes: largest memory of the GPU that tensors held, 0 on a CPU.
    """

    clips_per_s: list[float] = field(default_factory=list)
    clips: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.clips_per_s)

    def as_dict(self) -> dict[str, float | list[float]]:
        """Median, 20 % and 80 % quantiles and every round."""
        median, low, high = quantiles(self.clips_per_s)
        return {"clips_per_s": median, "q20": low, "q80": high, "rounds": self.clips_per_s}


def time_round(stage: Stage, timing: Timing, device: torch.device, seconds: float, warm_up: int) -> None:
    """One round: `warm_up` batches untimed, then batches for `seconds` (at least one), the device's work included."""
    for _ in range(warm_up):
        stage.run()
    synchronise(device)
    training = getattr(stage, "training", None)
    if training is not None:
        training.stepper.take_record()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clips, started = 0, time.perf_counter()
    while not clips or time.perf_counter() - started < seconds:
        clips += stage.run()
    synchronise(device)
    spent = time.perf_counter() - started
    timing.clips_per_s.append(clips / spent)
    timing.clips += clips
    if training is not None:
        for part, value in training.stepper.take_record().items():
            if part.startswith("seconds_"):
                timing.parts[part[8:]] = timing.parts.get(part[8:], 0.0) + value
    if device.type == "cuda":
        timing.peak_bytes = max(timing.peak_bytes, torch.cuda.max_memory_allocated(device))


def time_stages(
    stages: dict[str, Stage], device: torch.device, rounds: int, seconds: float, warm_up: Callable[[str], int]
) -> dict[str, Timing]:
    """Rounds of all stages, in turn."""
    timings = {name: Timing() for name in stages}
    for _ in range(rounds):
        for name, stage in stages.items():
            time_round(stage, timings[name], device, seconds, warm_up(name))
    return timings


def original_style(config: PretrainConfig) -> PretrainConfig:
    """All frames encoded, float32, plain PyTorch: what the authors' code does (with a loss read in each step)."""
    return replace(
        config, encode="all_frames", model=replace(config.model, impl="torch"),
        run=replace(config.run, precision="fp32", compile=False),
    )


@contextlib.contextmanager
def open_stages(
    config: PretrainConfig, runtime: Runtime, shards: ShardSet, *, baseline: bool
) -> Generator[tuple[dict[str, Stage], float | None]]:
    """All stages, ready to run, and the relative difference of the two ways' losses (None without `baseline`).

    Raises UserError if the same weights give another loss when all frames are encoded.
    """
    config = replace(config, run=replace(config.run, epochs=NEVER_ENDING))
    joints = len(shards.manifest.layout.joints)
    with contextlib.ExitStack() as stack:

        def stream(place: Runtime) -> Generator[tuple[int, ClipBatch]]:
            loader = stack.enter_context(build_loader(shards, config, place, train=True))
            return stack.enter_context(contextlib.closing(epoch_batches(loader)))

        loader = build_loader(shards, config, runtime, train=True)
        producer = loader.make_producer()
        stack.callback(producer.close)
        training = Pretraining(config, runtime, loader, joints)
        _, batch = next(stream(runtime))
        stages: dict[str, Stage] = {
            "read": ReadStage(producer),
            "decode": DecodeStage(producer, config, runtime.device),
            "data": DataStage(stream(runtime)),
            "model": ModelStage(training, batch),
            "train": TrainStage(training, stream(runtime)),
        }
        difference = None
        if baseline:
            plain = replace(runtime, bf16=False)
            original = Pretraining(original_style(config), plain, loader, joints)
            difference = check_same_loss(training, original, batch)
            stages["original model"] = ModelStage(original, batch, host_waits=True)
            on_cpu = replace(runtime, device=torch.device("cpu"))  # decodes on the CPU
            stages["original train"] = TrainStage(original, stream(on_cpu), host_waits=True)
        yield stages, difference


def check_same_loss(ours: Pretraining, original: Pretraining, batch: ClipBatch) -> float:
    """Relative difference of the two losses in evaluation mode, where they must be equal; UserError if they are not."""
    losses = []
    original.model.load_state_dict(ours.model.state_dict())
    for training in (ours, original):
        training.model.eval()
        with torch.no_grad():
            losses.append(float(training.forward(batch, 0).loss))
        training.model.train()
    difference = abs(losses[0] - losses[1]) / abs(losses[1])
    allowed = MODEL_DIFFERENCE["bf16" if ours.runtime.bf16 else "fp32"]
    if difference > allowed and ours.config.encode == "kept_frames":
        raise UserError(
            f"bench: the same weights give the loss {losses[0]:.5g} with kept frames and {losses[1]:.5g} with all frames; "
            f"expected a relative difference of {allowed:g} or less; nothing was timed"
        )
    return difference
