"""One process of `svdata2vec bench scale`: real data-parallel training steps, what they cost, and what they did.

    torchrun --nproc-per-node 2 -m svdata2vec.bench.scale_worker JOB.json OUT.json

JOB.json is a `ScaleConfig`. Every process runs the trainer as it is.
"""

import contextlib
import hashlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from svdata2vec.bench.config import ScaleConfig
from svdata2vec.bench.machine import hardware, synchronise
from svdata2vec.bench.stages import NEVER_ENDING
from svdata2vec.bench.start import answer_job, setting
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.order import epoch_order
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.metrics_log import Ticks
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.loop import epoch_batches
from svdata2vec.training.pretrain import Pretraining


@dataclass
class RankReport:
    """What one process saw.

    steps: optimizer steps of training. seen: (epoch, key) of every clip that it trained on. step_seconds: of each timed
    step, loader included; wall_seconds: of all of them; data_wait_seconds: the part of it in which it waited for clips.
    student, teacher: digests of the weights after training. synced_seconds, alone_seconds: of each step on a batch in
    memory, with and without the exchange of gradients; synced_cpu, alone_cpu: CPU seconds per step of each round, of all
    threads (they hold where others use the machine, too). allreduce_bytes: size of each bucket of gradients that one step
    exchanged. broadcast_bytes: buffers that a step sends from process 0.
    """

    backend: str
    clips_per_step: int
    steps: int = 0
    seen: list[tuple[int, str]] = field(default_factory=list)
    skipped: int = 0
    step_seconds: list[float] = field(default_factory=list)
    wall_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    student: str = ""
    teacher: str = ""
    synced_seconds: list[float] = field(default_factory=list)
    alone_seconds: list[float] = field(default_factory=list)
    synced_cpu: list[float] = field(default_factory=list)
    alone_cpu: list[float] = field(default_factory=list)
    allreduce_bytes: list[int] = field(default_factory=list)
    broadcast_bytes: int = 0
    gradient_bytes: int = 0


def epoch_rows(shards: ShardSet, config: ScaleConfig, world_size: int) -> np.ndarray:
    """Rows of the clips to train on: the split, or as much of it as all steps need, so that an epoch comes to its end."""
    wanted = (config.warm_up + config.steps) * config.run.batch_size * world_size
    return shards.rows(config.data.train_split)[:wanted]


def expected_keys(shards: ShardSet, config: ScaleConfig, world_size: int, epoch: int) -> list[str]:
    """The clips that all processes together must see in an epoch, each once: the order's whole steps, from the order alone."""
    rows = epoch_rows(shards, config, world_size)
    together = config.run.batch_size * world_size
    order = epoch_order(len(rows), config.run.seed, epoch, shuffle=True)[: len(rows) // together * together]
    return [key.decode() for key in shards.index["key"][rows[order]]]


def digest(module: nn.Module) -> str:
    """Digest of all parameters. Buffers are left out: BatchNorm's averages are each process's own until the next broadcast."""
    state = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        state.update(name.encode())
        state.update(parameter.detach().cpu().numpy().tobytes())
    return state.hexdigest()


def train_epochs(training: Pretraining, config: ScaleConfig, report: RankReport) -> ClipBatch:
    """Warm up, then train for `steps` steps or more, to the end of an epoch; returns the last batch."""
    device, loader = training.runtime.device, training.loader
    ticks = Ticks(device)
    with contextlib.closing(epoch_batches(loader)) as stream:
        while report.steps < config.warm_up + config.steps or report.steps % loader.batches_per_epoch:
            if report.steps == config.warm_up:
                synchronise(device)
                training.runtime.barrier()
                training.stepper.take_record()
                started = time.perf_counter()
                ticks.tick()
            epoch, batch = next(stream)
            training.step([(epoch, batch)])
            report.steps += 1
            report.seen += [(epoch, key) for key in batch.keys]
            if report.steps > config.warm_up:
                ticks.tick()
        synchronise(device)
        report.wall_seconds = time.perf_counter() - started
        report.data_wait_seconds = training.stepper.take_record().get("seconds_data", 0.0)
    report.step_seconds = ticks.seconds()
    return batch


def time_exchange(training: Pretraining, batch: ClipBatch, config: ScaleConfig, report: RankReport) -> None:
    """Steps on a batch in memory, with and without the exchange of gradients, in turn.

    After the steps without exchange the processes' weights differ: call it after everything that looks at weights.
    The first step of each turn is not timed: whether buffers are broadcast depends on the step before.
    """
    steps = max(2, config.steps // config.rounds)
    turns = (
        (report.synced_seconds, report.synced_cpu, contextlib.nullcontext),
        (report.alone_seconds, report.alone_cpu, no_exchange(training.network)),
    )
    for _ in range(config.rounds):
        for seconds, cpu_seconds, turn in turns:
            training.runtime.barrier()
            ticks = Ticks(training.runtime.device)
            with turn():
                training.step([(0, batch)])
                ticks.tick()
                started = time.process_time()
                for _ in range(steps):
                    training.step([(0, batch)])
                    ticks.tick()
            seconds += ticks.seconds()
            cpu_seconds.append((time.process_time() - started) / steps)
            training.stepper.take_record()


def no_exchange(student: nn.Module) -> Any:
    """Makes the context in which a student's gradients stay with their process."""
    return student.no_sync if isinstance(student, DistributedDataParallel) else contextlib.nullcontext


def count_exchange(training: Pretraining, batch: ClipBatch, report: RankReport) -> None:
    """Bytes of one step's exchange, counted bucket by bucket while it happens. The last step of all: the hook stays."""
    student = training.network
    report.gradient_bytes = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    if not isinstance(student, DistributedDataParallel):
        return
    report.broadcast_bytes = sum(buffer.numel() * buffer.element_size() for buffer in student.modules_buffers)
    student.register_comm_hook(report.allreduce_bytes, counted_allreduce)
    training.step([(0, batch)])


def counted_allreduce(sizes: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The exchange as without a hook (sum over all processes, divided by their number); notes the bucket's bytes."""
    sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


def measure_rank(config: ScaleConfig, runtime: Runtime, shards: ShardSet) -> RankReport:
    """Everything that this process measures; all processes call it together."""
    config = replace(config, run=replace(config.run, epochs=NEVER_ENDING))
    backend = dist.get_backend() if runtime.world_size > 1 else "none"
    report = RankReport(backend, config.run.batch_size)
    rows = epoch_rows(shards, config, runtime.world_size)
    with build_loader(shards, config, runtime, train=True, rows=rows) as loader:
        training = Pretraining(config, runtime, loader)
        batch = train_epochs(training, config, report).to(runtime.device)
        report.skipped = loader.stats.clips_skipped
    report.student, report.teacher = digest(training.model), digest(training.teacher)
    time_exchange(training, batch, config, report)
    count_exchange(training, batch, report)
    return report


def measure_world(config: ScaleConfig) -> dict[str, Any] | None:
    """What all processes report, with the machine and the setting; None on all but the first one."""
    with running(config.run) as runtime:
        shards = open_shards(config.data.shards)
        reports = runtime.gather(asdict(measure_rank(config, runtime, shards)))
        if not runtime.is_main:
            return None
        return {"reports": reports, "machine": hardware(runtime.device), "setting": setting(config, runtime, shards)}


if __name__ == "__main__":
    answer_job(ScaleConfig, measure_world)
