"""One batch size of `svdata2vec bench batch`, in a process of its own: its peak memory is this size's and no other's.

    python -m svdata2vec.bench.batch_worker JOB.json OUT.json SIZE CLIPS.pt

JOB.json is a `BatchConfig`, CLIPS.pt a batch (`batch.save_clips`) that is repeated up to SIZE clips.
"""

import itertools
import os
from dataclasses import replace
from typing import Any

import torch

from svdata2vec.bench.config import BatchConfig
from svdata2vec.bench.machine import peak_bytes, resident_bytes
from svdata2vec.bench.stages import new_training, training_stage
from svdata2vec.bench.start import answer_job, setting
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.runs.data import build_loader, open_data
from svdata2vec.runs.failures import is_out_of_memory
from svdata2vec.runs.provenance import hardware
from svdata2vec.runs.runtime import running

WARM_UP = 2  # the optimizer's averages are made by the first step: the second one reaches the peak


def repeated(clips: dict[str, Any], size: int, device: torch.device) -> ClipBatch:
    """`size` clips on the device: those of the file, over and over."""
    index = [number % len(clips["keys"]) for number in range(size)]
    video, joints, label = (clips[name].to(device)[index] for name in ("video", "joints", "label"))
    return ClipBatch(video, joints, label, tuple(clips["keys"][number] for number in index))


def limit_gpu(config: BatchConfig, device: torch.device) -> int:
    """Let PyTorch have no more of the GPU than the limit; returns it in bytes."""
    free, total = torch.cuda.mem_get_info(device)
    limit = config.limit_bytes(free, gpu=True)
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
    return limit


def memory_bytes(device: torch.device, *, peak: bool) -> int:
    """What PyTorch holds of the GPU, or this process of the machine: now, or at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) if peak else torch.cuda.memory_reserved(device)
    return peak_bytes() if peak else resident_bytes(os.getpid())


def measure_size(config: BatchConfig, size: str, clips: str) -> dict[str, Any]:
    """Rate and peak memory of the training step at one batch size; says so where memory ends."""
    # The trainer as it is; its loader only tells it how long an epoch is, which does not matter here: any clip fills a batch.
    trained, loaded = (replace(config, run=replace(config.run, batch_size=clips)) for clips in (int(size), config.smallest()))
    with running(config.run) as runtime:
        limit = limit_gpu(config, runtime.device) if runtime.device.type == "cuda" else None
        shards, timing, base = open_data(config.data), None, 0
        try:
            training = new_training(trained, runtime, build_loader(shards, loaded, runtime, train=True))
            base = memory_bytes(runtime.device, peak=False)
            batch = repeated(torch.load(clips, weights_only=False), int(size), runtime.device)
            stage = training_stage(training, itertools.repeat((0, batch)))
            for number in range(config.rounds):
                stage.time_round(runtime.device, config.seconds, 0 if number else WARM_UP)
            timing = stage.as_dict()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        return {
            "fits": timing is not None, "base_bytes": base, "peak_bytes": memory_bytes(runtime.device, peak=True),
            "timing": timing, "limit_bytes": limit,
            "machine": hardware(runtime.device), "setting": setting(config, runtime, shards),
        }


if __name__ == "__main__":
    answer_job(BatchConfig, measure_size)
