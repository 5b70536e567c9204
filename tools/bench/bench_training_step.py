"""Time one pretraining step: ours (kept frames only) against all frames as the authors' code encodes them.

    python tools/bench/bench_training_step.py --out tools/results/training_step_cpu.json

All sides run in one process on the same batch and the same masks, in turn, round after round: forward, loss, backward,
AdamW step and the teacher's update; before each timed step the side does one untimed. "all frames" is the same network
without our optimisations: Conv3d over every frame, float32, the loss read by the host after each step, on a CPU freed
memory going back to the system as glibc does by itself. "kept frames, bf16" adds bfloat16 products (`--run.precision bf16`; on
a CPU worth it only where it has them in hardware). Before timing, the losses are compared in evaluation mode, where they
must be equal. Defaults are the paper's sizes, with a batch that a CPU can bear.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from svdata2vec.bench.machine import machine, synchronise
from svdata2vec.bench.record import save
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.execution import use_channels_last
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
from svdata2vec.runs.runtime import keep_freed_memory, pick_device
from svdata2vec.training.optim import build_optimizer
from svdata2vec.training.pretrain import forward

NUM_JOINTS = 17
BASELINE = "all frames"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h
Batch = tuple[Tensor, Tensor, Masks]


class Side:
    """One of the ways of training, with its own weights (equal at the start)."""

    def __init__(self, config: PretrainConfig, device: torch.device, *, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.all_frames, self.bf16 = config, device, config.encode == "all_frames", bf16
        self.model = SVData2Vec(config, NUM_JOINTS).to(device)
        self.teacher = Teacher(self.model.encoder.blocks).to(device)
        if not self.all_frames:
            use_channels_last(self.model)
        self.optimizer = build_optimizer(self.model.named_parameters(), config.optim)

    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return forward(self.model, self.teacher, *batch, self.config).loss

    def step(self, batch: Batch) -> None:
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.update(self.model.encoder.blocks, 0.999)
        if self.all_frames:
            loss.item()

    def settle(self, batch: Batch) -> None:
        """Set the memory allocator as this side has it, and take one step with it."""
        if self.device.type == "cpu":
            if self.all_frames:
                return_freed_memory()
            else:
                keep_freed_memory()
        self.step(batch)


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`: glibc's defaults, at the largest values that it comes to by itself."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def make_batch(config: PretrainConfig, size: int, device: torch.device) -> Batch:
    data = config.data
    generator = torch.Generator().manual_seed(0)
    shape = (size, data.num_frames, data.size, data.size, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    joints = data.size * torch.rand(size, config.model.persons, data.num_frames, NUM_JOINTS, 2, generator=generator)
    keys = [f"clip{number}" for number in range(size)]
    masks = draw_masks(keys, data.num_frames, config.mask.video_ratio, config.mask.skeleton_ratio, seed=0, epoch=0)
    return video.to(device), joints.to(device), masks.to(device)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def check_equal(sides: dict[str, Side], batch: Batch) -> dict[str, float]:
    """Losses in evaluation mode; a difference from "all frames" beyond rounding ends the benchmark."""
    losses = {}
    for name, side in sides.items():
        side.model.eval()
        with torch.no_grad():
            losses[name] = side.loss(batch).item()
        side.model.train()
    for name, loss in losses.items():
        if abs(loss / losses[BASELINE] - 1) > (0.02 if sides[name].bf16 else 1e-4):
            raise SystemExit(f"{name} and {BASELINE} disagree before timing: losses {loss} and {losses[BASELINE]}")
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="clips per step")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side, in turn")
    parser.add_argument("--size", type=int, default=224, help="side of the crop, in pixels")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    device = pick_device("auto")
    base = PretrainConfig()
    config = replace(base, data=replace(base.data, size=options.size))
    batch = make_batch(config, options.batch, device)
    sides = {
        "kept frames": Side(config, device),
        "kept frames, bf16": Side(config, device, bf16=True),
        BASELINE: Side(replace(config, encode="all_frames"), device),
    }
    losses = check_equal(sides, batch)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            side.settle(batch)
            times[name].append(seconds(partial(side.step, batch), device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    speedups = {name: medians[BASELINE] / median for name, median in medians.items()}
    record = {
        **machine(), "threads": torch.get_num_threads(), "batch": options.batch, "size": options.size,
        "rounds": options.rounds, "losses_before": losses, "seconds_per_step": times, "median_seconds": medians,
        "speedups": speedups,
    }
    save(record, options.out)
    for name, median in medians.items():
        print(f"{name}: {median:.3f} s per step, {speedups[name]:.2f}x")


if __name__ == "__main__":
    main()
