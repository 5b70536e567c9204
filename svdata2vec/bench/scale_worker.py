"""One process of `svdata2vec bench scale`: real data-parallel training steps, what they cost, and what they did.

    torchrun --nproc-per-node 2 -m svdata2vec.bench.scale_worker JOB.json OUT.json

JOB.json is a `ScaleConfig`. Every process runs the trainer as it is.
"""

import contextlib
import hashlib
import math
import os
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from svdata2vec.bench.config import ScaleConfig
from svdata2vec.bench.machine import synchronise
from svdata2vec.bench.stages import new_training
from svdata2vec.bench.start import answer_job, setting
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.order import OrderConfig, entries_per_epoch, taken_name
from svdata2vec.runs.data import build_loader, open_data
from svdata2vec.runs.metrics_log import Ticks
from svdata2vec.runs.provenance import hardware
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.loop import epoch_batches
from svdata2vec.training.pretrain import Pretraining


def epoch_rows(shards: ShardSet, config: ScaleConfig, world_size: int) -> np.ndarray:
    """Rows of the clips to train on: the split, or as much of it as all steps need, so that an epoch comes to its end.

    They are spread evenly over the split, and over weighted sets, of which an epoch takes as large shares as of all clips.
    """
    wanted = (config.warm_up + config.steps) * config.run.batch_size * world_size
    rows = shards.rows(config.data.train_split)
    sets = shards.shares(rows) or [(np.arange(len(rows)), 1.0)]
    entries = [entries_per_epoch(len(places), weight) for places, weight in sets]
    if wanted >= sum(entries):
        return rows
    counts = [math.ceil(-(-wanted * count // sum(entries)) / weight) for count, (_, weight) in zip(entries, sets, strict=True)]
    return rows[np.concatenate([spread(places, count) for count, (places, _) in zip(counts, sets, strict=True)])]


def spread(places: np.ndarray, count: int) -> np.ndarray:
    """`count` of the places, evenly spaced; all if there are no more."""
    return places[np.arange(count) * len(places) // count] if count < len(places) else places


def expected_keys(shards: ShardSet, config: ScaleConfig, world_size: int, epoch: int) -> list[str]:
    """The clips that all processes together must see in an epoch, each once: the order's whole steps, from the order alone."""
    rows = epoch_rows(shards, config, world_size)
    order = OrderConfig(rows=rows, views=1, batch_size=config.run.batch_size, seed=config.run.seed, train=True, drop_last=True,
                        rank=0, world_size=world_size, shares=shards.shares(rows))
    seen, times = order.clips(epoch).between(0, order.end(0))
    return [taken_name(name, time) for name, time in zip(shards.names(seen), times.tolist(), strict=True)]


def digest(module: nn.Module) -> str:
    """Digest of all parameters. Buffers are left out: BatchNorm's averages are each process's own until the next broadcast."""
    state = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        state.update(name.encode())
        state.update(parameter.detach().cpu().numpy().tobytes())
    return state.hexdigest()


def train_epochs(training: Pretraining, config: ScaleConfig) -> tuple[ClipBatch, dict[str, Any]]:
    """Warm up, then train for `steps` steps or more, to the end of an epoch; returns the last batch and what was seen."""
    device, loader = training.runtime.device, training.loader
    ticks, steps, seen = Ticks(device), 0, []
    with contextlib.closing(epoch_batches(loader)) as stream:
        while steps < config.warm_up + config.steps or steps % loader.batches_per_epoch:
            if steps == config.warm_up:
                synchronise(device)
                training.runtime.barrier()
                training.stepper.take_record()
                started = time.perf_counter()
                ticks.tick()
            epoch, batch = next(stream)
            training.step([(epoch, batch)])
            steps += 1
            seen += [(epoch, key) for key in batch.keys]
            if steps > config.warm_up:
                ticks.tick()
        synchronise(device)
        wall = time.perf_counter() - started
        waited = training.stepper.take_record().get("seconds_data", 0.0)
    return batch, {
        "steps": steps, "seen": seen, "step_seconds": ticks.seconds(), "wall_seconds": wall, "data_wait_seconds": waited,
    }


def time_exchange(training: Pretraining, batch: ClipBatch, config: ScaleConfig) -> dict[str, list[float]]:
    """Steps on a batch in memory, with and without the exchange of gradients, in turn.

    After the steps without exchange the processes' weights differ: call it after everything that looks at weights.
    The first step of each turn is not timed: whether buffers are broadcast depends on the step before.
    """
    steps = max(2, config.steps // config.rounds)
    found: dict[str, list[float]] = {"synced_seconds": [], "synced_cpu": [], "alone_seconds": [], "alone_cpu": []}
    for _ in range(config.rounds):
        for name, turn in (("synced", contextlib.nullcontext), ("alone", no_exchange(training.network))):
            training.runtime.barrier()
            ticks = Ticks(training.runtime.device)
            with turn():
                training.step([(0, batch)])
                ticks.tick()
                started = time.process_time()
                for _ in range(steps):
                    training.step([(0, batch)])
                    ticks.tick()
            found[f"{name}_seconds"] += ticks.seconds()
            found[f"{name}_cpu"].append((time.process_time() - started) / steps)
            training.stepper.take_record()
    return found


def no_exchange(student: nn.Module) -> Any:
    """Makes the context in which a student's gradients stay with their process."""
    return student.no_sync if isinstance(student, DistributedDataParallel) else contextlib.nullcontext


def count_exchange(training: Pretraining, batch: ClipBatch) -> dict[str, Any]:
    """Bytes of one step's exchange, counted bucket by bucket while it happens. The last step of all: the hook stays."""
    student = training.network
    gradients = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    buckets: list[int] = []
    buffers = 0
    if isinstance(student, DistributedDataParallel):
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in student.modules_buffers)
        student.register_comm_hook(buckets, counted_allreduce)
        training.step([(0, batch)])
    return {"gradient_bytes": gradients, "broadcast_bytes": buffers, "allreduce_bytes": buckets}


def counted_allreduce(sizes: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The exchange as without a hook (sum over all processes, divided by their number); notes the bucket's bytes."""
    sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


def measure_rank(config: ScaleConfig, runtime: Runtime, shards: ShardSet) -> dict[str, Any]:
    """What this process saw; all processes call it together.

    steps: optimizer steps of training. seen: (epoch, key) of every clip that it trained on. skipped: clips that could not be
    read. step_seconds: of each timed step, loader included; wall_seconds: of all of them; data_wait_seconds: the part of it
    in which it waited for clips. student, teacher: digests of the weights after training. synced_seconds, alone_seconds: of
    each step on a batch in memory, with and without the exchange of gradients; synced_cpu, alone_cpu: CPU seconds per step of
    each round, of all threads (they hold where others use the machine, too). allreduce_bytes: size of each bucket of
    gradients that one step exchanged. broadcast_bytes: buffers that a step sends from process 0.
    """
    rows = epoch_rows(shards, config, runtime.world_size)
    with build_loader(shards, config, runtime, train=True, rows=rows) as loader:
        training = new_training(config, runtime, loader)
        batch, trained = train_epochs(training, config)
        skipped = loader.stats.clips_skipped
    batch = batch.to(runtime.device)
    return {
        "backend": dist.get_backend() if runtime.world_size > 1 else "none", "clips_per_step": config.run.batch_size,
        **trained, "skipped": skipped, "student": digest(training.model), "teacher": digest(training.teacher),
        **time_exchange(training, batch, config), **count_exchange(training, batch),
    }


def measure_world(config: ScaleConfig) -> dict[str, Any] | None:
    """What all processes report, with the machine and the setting; None on all but the first one."""
    with running(config.run) as runtime:
        shards = open_data(config.data)
        reports = runtime.gather(measure_rank(config, runtime, shards))
        if not runtime.is_main:
            return None
        return {"reports": reports, "machine": hardware(runtime.device), "setting": setting(config, runtime, shards)}


if __name__ == "__main__":
    answer_job(ScaleConfig, measure_world)
    os._exit(0)  # everything is written; a gloo thread that releases the hook during interpreter shutdown would abort it
