"""Profile of the GPU during training: busy time of each CUDA stream, overlap of streams, and the most expensive kernels.

    python tools/bench/profile_training.py ntu60-xsub --data.shards SHARDS --data.train-split all --out profile.json

Takes a preset with its options, as `svdata2vec bench run` does, trains on the shards while decoding them, and profiles some
steps. Decoding engines (NVJPG, NVDEC) are not kernels and do not show; their conversions, resampling and copies do.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import torch
import tyro
from file_options import file_to_write
from torch.profiler import ProfilerActivity, profile

from svdata2vec.bench.config import BenchConfig
from svdata2vec.bench.stages import open_stages
from svdata2vec.bench.start import open_preset_shards, setting
from svdata2vec.config.presets import PRETRAIN
from svdata2vec.runs.data import fit_data
from svdata2vec.runs.provenance import hardware, head, save
from svdata2vec.runs.runtime import running
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range

FORMAT, VERSION = "svdata2vec-profile-training", 1
Span = tuple[int, int]  # nanoseconds: start, end


def union(spans: list[Span]) -> list[Span]:
    """Spans merged into disjoint ones that cover the same time."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def length(spans: list[Span]) -> int:
    return sum(end - start for start, end in spans)


def both(one: list[Span], other: list[Span]) -> int:
    """Overlap in nanoseconds of two lists of disjoint spans."""
    return length(one) + length(other) - length(union(one + other))


def summary(events: list[Any], steps: int, wall_ns: float) -> dict[str, Any]:
    """Milliseconds per step: of each stream, of the busiest one (training's) beside all others, of the costliest kernels."""
    streams: dict[int, list[Span]] = defaultdict(list)
    kernels: dict[str, int] = defaultdict(int)
    for event in events:
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns():
            streams[event.device_resource_id()].append((event.start_ns(), event.start_ns() + event.duration_ns()))
            kernels[event.name()] += event.duration_ns()
    busy = {stream: union(spans) for stream, spans in streams.items()}
    training = max(busy, key=lambda stream: length(busy[stream]))
    others = union([span for stream, spans in busy.items() if stream != training for span in spans])
    per_step = 1e-6 / steps
    return {
        "steps": steps, "wall_ms": wall_ns * per_step, "kernels_per_step": sum(map(len, streams.values())) / steps,
        "training_kernels_per_step": len(streams[training]) / steps, "training_stream_ms": length(busy[training]) * per_step,
        "training_stream_busy_share": length(busy[training]) / wall_ns,
        "other_streams_ms": length(others) * per_step, "both_at_once_ms": both(busy[training], others) * per_step,
        "streams_ms": {str(stream): length(spans) * per_step for stream, spans in busy.items()},
        "kernels_ms": {name[:120]: spent * per_step for name, spent in sorted(kernels.items(), key=lambda x: -x[1])[:40]},
    }


def profiled(config: BenchConfig, steps: int) -> dict[str, Any]:
    """The record of the given number of steps, after twice as many for warm-up, with the loader that `bench run` would make."""
    shards = open_preset_shards(config, "a profile is of one process")
    with running(config.run) as runtime:
        config = replace(config, data=fit_data(config.data, runtime, shards))
        with open_stages(config, runtime, shards, baseline=False) as (stages, _):
            events, wall_ns = _events(stages["train"].batches, steps)
        return {
            **head(FORMAT, VERSION), "machine": hardware(runtime.device), "setting": setting(config, runtime, shards),
            **summary(events, steps, wall_ns),
        }


def _events(step: Iterator[Any], steps: int) -> tuple[list[Any], int]:
    """The profiler's events, and the nanoseconds that the steps took."""
    for _ in range(2 * steps):
        next(step)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        started = time.perf_counter_ns()
        for _ in range(steps):
            next(step)
        torch.cuda.synchronize()
        wall_ns = time.perf_counter_ns() - started
    results = profiler.profiler.kineto_results if profiler.profiler else None
    return results.events() if results else [], wall_ns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=sorted(PRETRAIN), help="pretraining preset; options as of `svdata2vec bench run`")
    parser.add_argument("--out", type=file_to_write, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=Range(1).parser(int), default=10, help="training steps profiled, after twice as many")
    options, words = parser.parse_known_args()
    if not torch.cuda.is_available():
        parser.error("this profiles a GPU, and PyTorch finds none here")
    try:
        config = tyro.cli(BenchConfig, args=words, default=BenchConfig.of(PRETRAIN[options.preset]()))
        record = profiled(config, options.steps)
    except UserError as error:
        parser.error(str(error))
    save(record, options.out)
    shown = ("wall_ms", "training_stream_ms", "training_stream_busy_share", "other_streams_ms", "both_at_once_ms")
    print(", ".join(f"{name} {record[name]:.3g}" for name in shown))


if __name__ == "__main__":
    main()
