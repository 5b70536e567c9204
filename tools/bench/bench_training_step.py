"""Time one pretraining step: ours (kept frames only) against all frames as the authors' code encodes them.

    python tools/bench/bench_training_step.py --out tools/results/training_step_cpu.json

All sides run in one process on the same batch and the same masks, in turn, round after round: forward, loss, backward,
AdamW step and the teacher's update; before each timed step the side does one untimed. "all frames" is the same network
without our optimisations: Conv3d over every frame, float32, the loss read by the host after each step, on a CPU freed
memory going back to the system as glibc does by itself. "kept frames, bf16" adds bfloat16 products (`--run.precision bf16`; on
a CPU worth it only where it has them in hardware). Before timing, the losses are compared in evaluation mode, where they
must be equal. On a GPU also with fused blocks (`--model.fused-blocks`) and these launched as one CUDA graph
(`--run.launch graph`). Defaults are the paper's sizes, with a batch that a CPU can bear.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import torch
from file_options import file_to_write
from pretraining_step import Step, make_batch

from svdata2vec.bench.machine import synchronise
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.runs.provenance import machine, save
from svdata2vec.runs.runtime import keep_freed_memory, pick_device
from svdata2vec.shards.ranges import Range

BASELINE = "all frames"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def settle(step: Step) -> None:
    """Set the memory allocator as this way of training uses it, and take one step."""
    if step.device.type == "cpu":
        if step.all_frames:
            return_freed_memory()
        else:
            keep_freed_memory()
    step.run()


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`: glibc's defaults, at the largest values that its dynamic thresholds reach."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def check_equal(sides: dict[str, Step]) -> dict[str, float]:
    """Losses in evaluation mode; a difference from "all frames" beyond rounding ends the benchmark."""
    losses = {}
    for name, side in sides.items():
        side.student.eval()
        with torch.no_grad():
            losses[name] = side.loss().item()
        side.student.train()
    for name, loss in losses.items():
        exact = 1e-4 if sides[name].device.type == "cpu" else 2e-3  # cuDNN takes TF32 for float32 convolutions
        if abs(loss / losses[BASELINE] - 1) > (0.02 if sides[name].bf16 else exact):
            raise SystemExit(f"{name} and {BASELINE} disagree before timing: losses {loss} and {losses[BASELINE]}")
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=Range(1).parser(int), default=2, help="clips per step")
    parser.add_argument("--rounds", type=Range(1).parser(int), default=5, help="timed steps of each side, in turn")
    parser.add_argument("--size", type=Range(32, 4096, multiple=32).parser(int), default=224, help="side of the crop, pixels")
    parser.add_argument("--out", type=file_to_write, required=True, help="JSON file to write")
    options = parser.parse_args()
    device = pick_device("auto")
    torch.backends.cudnn.benchmark = device.type == "cuda"  # as a run sets it
    base = PretrainConfig()
    config = replace(base, data=replace(base.data, size=options.size))
    batch = make_batch(config, options.batch, device)
    sides = {
        "kept frames": Step(config, batch),
        "kept frames, bf16": Step(config, batch, bf16=True),
        BASELINE: Step(replace(config, encode="all_frames"), batch),
    }
    if device.type == "cuda":
        fused = replace(config, model=replace(config.model, fused_blocks=True))
        sides["kept frames, bf16, fused blocks"] = Step(fused, batch, bf16=True)
        sides["kept frames, bf16, fused blocks, CUDA graph"] = Step(fused, batch, bf16=True, graph=True)
    losses = check_equal(sides)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            settle(side)
            times[name].append(seconds(side.run, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    speedups = {name: medians[BASELINE] / median for name, median in medians.items()}
    record = {
        **machine(device), "threads": torch.get_num_threads(), "batch": options.batch, "size": options.size,
        "rounds": options.rounds, "losses_before": losses, "seconds_per_step": times, "median_seconds": medians,
        "speedups": speedups,
    }
    save(record, options.out)
    for name, median in medians.items():
        print(f"{name}: {median:.3f} s per step, {speedups[name]:.2f}x")


if __name__ == "__main__":
    main()
