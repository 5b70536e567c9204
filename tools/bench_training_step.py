"""Time one pretraining step: ours (kept frames only) against all frames as the authors' code encodes them.

    python tools/bench_training_step.py --out tools/results/training_step_cpu.json

Both sides run in one process on the same batch and the same masks, in turn, round after round: forward, loss, backward,
AdamW step and the teacher's update. "all frames" is the same network without our optimisations: Conv3d over every frame,
float32, the loss read by the host after each step. Before timing, the losses of the two are compared in evaluation mode,
where they must be equal. Defaults are the paper's sizes, with a batch that a CPU can bear.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from summary import machine
from torch import Tensor

from svdata2vec.config import PretrainConfig
from svdata2vec.masking import Masks, draw_masks
from svdata2vec.model import SVData2Vec
from svdata2vec.optim import build_optimizer
from svdata2vec.pretrain import forward
from svdata2vec.runtime import pick_device, use_channels_last
from svdata2vec.teacher import Teacher

NUM_JOINTS = 17
Batch = tuple[Tensor, Tensor, Masks]


class Side:
    """One of the two ways of training, with its own weights (equal at the start)."""

    def __init__(self, config: PretrainConfig, device: torch.device, *, all_frames: bool) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.all_frames = config, device, all_frames
        self.model = SVData2Vec(config.model, config.data.num_frames, NUM_JOINTS, all_frames=all_frames).to(device)
        self.teacher = Teacher(self.model.encoder.blocks).to(device)
        if not all_frames and device.type == "cuda":
            use_channels_last(self.model)
        self.optimizer = build_optimizer(self.model.named_parameters(), config.optim)

    def loss(self, batch: Batch) -> Tensor:
        bf16 = self.device.type == "cuda" and not self.all_frames
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return forward(self.model, self.teacher, *batch, self.config).loss

    def step(self, batch: Batch) -> None:
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.update(self.model.encoder.blocks, 0.999)
        if self.all_frames:
            loss.item()


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
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check_equal(ours: Side, original: Side, batch: Batch) -> float:
    """Relative difference of the two losses in evaluation mode; more than rounding ends the benchmark."""
    losses = []
    for side in (ours, original):
        side.model.eval()
        with torch.no_grad():
            losses.append(side.loss(batch).item())
        side.model.train()
    difference = abs(losses[0] - losses[1]) / abs(losses[1])
    if difference > (0.02 if ours.device.type == "cuda" else 1e-4):
        raise SystemExit(f"the two sides disagree before timing: losses {losses[0]} and {losses[1]}")
    return difference


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
    ours, original = Side(config, device, all_frames=False), Side(config, device, all_frames=True)
    difference = check_equal(ours, original, batch)
    times: dict[str, list[float]] = {"kept_frames": [], "all_frames": []}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, side in (("kept_frames", ours), ("all_frames", original)):
            spent = seconds(lambda side=side: side.step(batch), device)
            if number:
                times[name].append(spent)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["all_frames"] / medians["kept_frames"]
    record = {
        **machine(), "threads": torch.get_num_threads(), "batch": options.batch, "size": options.size,
        "rounds": options.rounds, "loss_difference": difference, "seconds_per_step": times, "median_seconds": medians,
        "speedup": ratio,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"per step: kept frames {medians['kept_frames']:.3f} s, all frames {medians['all_frames']:.3f} s: {ratio:.2f}x")


if __name__ == "__main__":
    main()
