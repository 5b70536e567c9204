"""The stages of a pretraining run, each of which can be timed alone: read, decode, data, model, train.

All stages use the same shards, batch size, plan and seed; those that train share a student. Stages take turns, round after
round, so that a slow minute of the machine affects all of them.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch

from svdata2vec.bench.machine import peak_gpu_bytes, quantiles, synchronise
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.producer import Producer
from svdata2vec.pipeline.video import frames_of
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.loop import EpochBatch, epoch_batches
from svdata2vec.training.pretrain import Pretraining

IN_MEMORY = 4  # batches that are decoded again and again
LOOK_SECONDS = 0.01  # between two checks whether a loader is idle
NEVER_ENDING = 1_000_000  # epochs: the schedules of a benchmark do not reach their end
ONE_MASK = "model, one mask"  # the stage "model" with one mask per clip instead of several
MODEL_DIFFERENCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative, of the loss of the same weights encoded in two ways


@dataclass
class Stage:
    """Work that is timed batch by batch, and its rounds so far.

    Attributes:
        batches: each `next` does one batch and returns its number of clips.
        training: what takes the steps, if the stage trains.
        loader: source of the batches, if they come from one; the next stage is timed once it has stopped reading ahead.
        ahead: batches that may be ready when the stage's turn comes.
        clips_per_s: one rate per round.
        clips: timed so far, in all rounds.
        parts: seconds per part of the training step and `total`, summed over rounds.
        peak_bytes: most GPU memory that tensors held, those of a graph included; 0 on a CPU.
    """

    batches: Iterator[int]
    training: Pretraining | None = None
    loader: ClipLoader | None = None
    ahead: int = 0
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

    def time_round(self, device: torch.device, seconds: float, warm_up: int) -> None:
        """One round: `warm_up` untimed batches, then batches for `seconds` (at least one), the device's work included."""
        for _ in range(warm_up):
            next(self.batches)
        synchronise(device)
        if self.training is not None:
            self.training.stepper.take_record()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clips, started = 0, time.perf_counter()
        while not clips or time.perf_counter() - started < seconds:
            clips += next(self.batches)
        synchronise(device)
        self.clips_per_s.append(clips / (time.perf_counter() - started))
        self.clips += clips
        if self.training is not None:
            for part, value in self.training.stepper.take_record().items():
                if part.startswith("seconds_"):
                    self.parts[part[8:]] = self.parts.get(part[8:], 0.0) + value
        if device.type == "cuda":
            captured = self.training.captured if self.training is not None else None
            self.peak_bytes = max(self.peak_bytes, peak_gpu_bytes(device, None if captured is None else captured.graph))
        while self.loader is not None and not self.loader.idle:
            time.sleep(LOOK_SECONDS)


def new_training(config: PretrainConfig, runtime: Runtime, loader: ClipLoader) -> Pretraining:
    """A run for a benchmark: it never ends, and writes nothing into the run's folder, which need not exist."""
    training = Pretraining(replace(config, run=replace(config.run, epochs=NEVER_ENDING)), runtime, loader)
    training.stepper.guard.path = None
    return training


def reading(producer: Producer) -> Iterator[int]:
    """Storage, parsing, checks and plans; nothing is decoded."""
    for read in producer.read(0, 0):
        yield len(read.clips)


def decoding(producer: Producer) -> Generator[int]:
    """Decoding and geometry of clips that are in memory."""
    in_memory = list(itertools.islice(producer.read(0, 0), IN_MEMORY))
    for read, _, _ in producer.turns.over(itertools.cycle(in_memory), producer.decode_step):
        yield len(read.clips)


def training_stage(
    training: Pretraining, stream: Iterable[EpochBatch], *, loader: ClipLoader | None = None, host_waits: bool = False
) -> Stage:
    """Training steps on batches of a loader, or on one that is on the device already.

    Args:
        training: takes the steps.
        stream: the batches.
        loader: see `Stage`.
        host_waits: read the step's averages on the host, as a loop with `loss.item()` in each step does.
    """

    def steps() -> Iterator[int]:
        for epoch, batch in stream:
            training.step([(epoch, batch)])
            if host_waits:
                training.stepper.averages.take()
            yield len(batch)

    return Stage(steps(), training, loader, loader.most_ahead if loader else 0)


def original_style(config: PretrainConfig) -> PretrainConfig:
    """All frames encoded, float32, plain PyTorch: what the authors' code does (by a Conv3d, with a loss read in each step)."""
    return replace(
        config, encode="all_frames", model=replace(config.model, impl="torch", fused_blocks=False),
        run=replace(config.run, precision="fp32", launch="eager"),
    )


def original_training(config: PretrainConfig, runtime: Runtime, loader: ClipLoader) -> Pretraining:
    """A run as the authors' code would train it: in `original_style`, with the Conv3d on every device."""
    original = new_training(original_style(config), replace(runtime, bf16=False), loader)
    original.model.encoder.video_encoder.by_conv3d = True
    return original


@contextlib.contextmanager
def open_stream(
    shards: ShardSet, config: PretrainConfig, runtime: Runtime
) -> Generator[tuple[Generator[EpochBatch], ClipLoader]]:
    """Batches without end, and the loader that they come from."""
    with build_loader(shards, config, runtime, train=True) as loader, contextlib.closing(epoch_batches(loader)) as stream:
        yield stream, loader


@contextlib.contextmanager
def open_stages(
    config: PretrainConfig, runtime: Runtime, shards: ShardSet, *, baseline: bool
) -> Generator[tuple[dict[str, Stage], float | None]]:
    """All stages, ready to run, and the relative difference of the two ways' losses (None without `baseline`).

    config: with the loader's settings as the user gave them; each loader is fitted to the device that it decodes on.

    Raises UserError if the same weights give another loss when all frames are encoded.
    """
    with contextlib.ExitStack() as stack:
        with build_loader(shards, config, runtime, train=True) as loader:
            batch = next(iter(loader))
        loader = build_loader(shards, config, runtime, train=True)
        readers, decoders = loader.make_producer(), loader.make_producer()
        stack.callback(readers.close)
        stack.callback(decoders.close)
        training = new_training(config, runtime, loader)
        loaded, data_loader = stack.enter_context(open_stream(shards, config, runtime))
        trained, train_loader = stack.enter_context(open_stream(shards, config, runtime))
        stages: dict[str, Stage] = {
            "read": Stage(reading(readers), ahead=loader.num_processes),
            "decode": Stage(decoding(decoders)),
            "data": Stage((len(one) for _, one in loaded), loader=data_loader, ahead=data_loader.most_ahead),
            "model": training_stage(training, itertools.repeat((0, batch))),
            "train": training_stage(training, trained, loader=train_loader),
        }
        if config.mask.repeats > 1:
            once = replace(config, mask=replace(config.mask, repeats=1))
            stages[ONE_MASK] = training_stage(new_training(once, runtime, loader), itertools.repeat((0, batch)))
        difference = None
        if baseline:
            original = original_training(config, runtime, loader)
            decoded = replace(batch, video_BTHWC=None if batch.video_BTHWC is None else frames_of(batch.video_BTHWC))
            difference = check_same_loss(training, original, decoded)
            stages["original model"] = training_stage(original, itertools.repeat((0, decoded)), host_waits=True)
            on_cpu = replace(runtime, device=torch.device("cpu"))  # where their loader decodes all frames
            their_batches, their_loader = stack.enter_context(open_stream(shards, original.config, on_cpu))
            stages["original train"] = training_stage(original, their_batches, loader=their_loader, host_waits=True)
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
