"""The small CNN: a rival that is trained from scratch, on RGB alone, with the clips and labels that fine-tuning gets.

    python tools/experiments/small_cnn.py demo/shards --fraction 0.1 --steps 400 --json small_cnn.json

`run(config, lr=..., steps=..., weight_decay=..., validate=False)`, with the settings of a fine-tuning, gives
    score          figure `data.metric` (0..1) of the last network on the test split; with `validate` on validation clips
    labels         clips it was trained on: those of fine-tuning with this share and seed
    steps, clips_seen, cpu_seconds (training, all threads), cpu_seconds_test
A function of its arguments, on one machine with one number of threads.

Its input is that of fine-tuning, from the same loader, by the same options of `data` and `run`: clips of one or several sets,
frames, crops, shifted, scaled and mirrored; instead of `data.augment`, colours are exchanged and dimmed. It sees each frame and
its change since the one before, which suits clips that differ in motion. Training: on a CPU, AdamW, one cycle of the learning
rate, label smoothing.

Letters: N clips, T frames, C channels, H and W pixels, F features.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import torch
from ending import reported
from torch import Tensor, nn

from svdata2vec.config.presets import demo_finetune
from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.evaluation.evaluate import score
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.data import build_loader, open_data, taken_per_epoch
from svdata2vec.runs.provenance import machine, save
from svdata2vec.runs.runtime import running
from svdata2vec.runs.validation import choose_clips
from svdata2vec.shards.atomic import read_object
from svdata2vec.shards.ranges import ABOVE_0, LARGEST_SEED, Range
from svdata2vec.training.loop import epoch_batches

DEMO = demo_finetune()
FEATURES = 96
LR, WEIGHT_DECAY, STEPS, BATCH = 3e-3, 0.05, 400, 24

log = logging.getLogger(__name__)


class FrameNet(nn.Sequential):
    """Pixels of one frame and their change since the sample before (6 channels) -> features."""

    def __init__(self, features: int) -> None:
        widths = (6, 16, 32, 64, features)
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * features, features)]
        super().__init__(*layers)


class ClipNet(nn.Module):
    """Per-frame features, two convolutions over time, mean and maximum, linear. One frame is a clip of length one."""

    def __init__(self, frame_net: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.frame_net = frame_net
        self.time = nn.Sequential(
            nn.BatchNorm1d(features), nn.ReLU(),
            nn.Conv1d(features, features, 5, padding=2), nn.BatchNorm1d(features), nn.ReLU(),
            nn.Conv1d(features, features, 5, padding=2), nn.BatchNorm1d(features), nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * features, classes))

    def forward(self, clip: Tensor) -> Tensor:
        """(N, T, ...) -> (N, classes)."""
        change = torch.cat([torch.zeros_like(clip[:, :1]), clip[:, 1:] - clip[:, :-1]], dim=1)
        both = torch.cat([clip, change], dim=2).flatten(0, 1)
        features_NFT = self.frame_net(both).unflatten(0, clip.shape[:2]).transpose(1, 2)
        features_NFT = self.time(features_NFT)
        return self.head(torch.cat([features_NFT.mean(dim=2), features_NFT.amax(dim=2)], dim=1))


def show(video_BTHWC: Tensor, *, train: bool) -> Tensor:
    """Pictures as float32 (N, T, C, H, W), -2..2; in training each clip's colours exchanged and dimmed."""
    clip_NTCHW = video_BTHWC.permute(0, 1, 4, 2, 3).float() / 64
    if train:
        gain_N = torch.empty(len(clip_NTCHW)).uniform_(0.8, 1.2)
        clip_NTCHW = torch.stack([
            gain * clip[:, torch.randperm(3)] for clip, gain in zip(clip_NTCHW, gain_N, strict=True)
        ])
    return clip_NTCHW - 2


class Classifier(nn.Module):
    """A ClipNet with the interface that evaluations call."""

    def __init__(self, net: ClipNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, video_BTHWC: Tensor, joints_BMTVC: None) -> Tensor:
        """-> (N, classes)."""
        return self.net(show(video_BTHWC, train=False))


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Run PyTorch on `count` threads inside the block; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    config: FinetuneConfig, *, lr: float = LR, steps: int = STEPS, weight_decay: float = WEIGHT_DECAY, validate: bool = False,
) -> dict[str, Any]:
    """Train on a share of the labels, test once; the module's docstring lists the result.

    Args:
        config: data, share of the labels, seed and batch; its augmentation, network, optimizer and device are not used.
        lr: highest rate of the cycle.
        validate: test on the clips that fine-tuning would validate on.

    Raises:
        UserError: the shards or splits do not exist.
    """
    data = replace(config.data, augment=AugmentConfig())
    threads = data.threads or 1
    torch.manual_seed(config.run.seed)
    shards = open_data(data)
    clips = choose_clips(shards, replace(config, data=data, eval_every=int(validate)))
    batch_size = min(config.run.batch_size, taken_per_epoch(shards, clips.train_rows))
    own = replace(config.run, batch_size=batch_size, device="cpu", precision="fp32")
    config = replace(config, data=replace(data, threads=threads), run=own, modality="rgb")
    net = ClipNet(FrameNet(FEATURES), FEATURES, len(shards.split_classes(data.train_split)))
    begun = time.process_time()
    with on_threads(threads), running(own) as runtime:
        with build_loader(shards, config, runtime, train=True, modality="rgb", rows=clips.train_rows) as loader:
            fit(net, loader, lr, steps, weight_decay)
        trained = time.process_time()
        split, rows = (clips.val_split, clips.val_rows) if validate else (None, None)
        tested = build_loader(shards, config, runtime, train=False, modality="rgb", split=split, rows=rows, views=data.views)
        with tested as loader:
            figures = score(Classifier(net), loader, runtime)
    return {
        "score": getattr(figures, data.metric), "labels": len(clips.train_rows), "steps": steps,
        "clips_seen": steps * batch_size, "cpu_seconds": round(trained - begun, 2),
        "cpu_seconds_test": round(time.process_time() - trained, 2),
    }


def fit(net: ClipNet, loader: ClipLoader, lr: float, steps: int, weight_decay: float) -> None:
    """Train for `steps` steps, with ten lines in the log."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    for step, (_, batch) in enumerate(islice(epoch_batches(loader), steps), 1):
        assert isinstance(batch.video_BTHWC, Tensor)  # on a CPU clips arrive decoded
        loss = nn.functional.cross_entropy(net(show(batch.video_BTHWC, train=True)), batch.label_B, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step * 10 // steps > (step - 1) * 10 // steps:
            log.info("small CNN: step %d/%d, loss %.3f", step, steps, loss.item())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder of packed shards, or its URL; several with commas between them")
    parser.add_argument("--train-split", default=DEMO.data.train_split)
    parser.add_argument("--test-split", default=DEMO.data.test_split)
    parser.add_argument("--layout", help="joint layout to bring several sets to, e.g. coco17")
    parser.add_argument("--fraction", type=Range(ABOVE_0, 1).parser(float), default=DEMO.label_fraction,
                        help=f"share of the labels (default {DEMO.label_fraction})")
    parser.add_argument("--seed", type=Range(0, LARGEST_SEED).parser(int), default=0)
    parser.add_argument("--lr", type=Range(ABOVE_0, 1).parser(float), default=LR, help=f"highest learning rate (default {LR})")
    parser.add_argument("--steps", type=Range(1).parser(int), default=STEPS, help=f"optimizer steps (default {STEPS})")
    parser.add_argument("--weight-decay", type=Range(0, 10).parser(float), default=WEIGHT_DECAY)
    parser.add_argument("--batch-size", type=Range(2).parser(int), default=BATCH, help=f"clips per step (default {BATCH})")
    parser.add_argument("--threads", type=Range(1, 1000).parser(int), default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--reuse", action="store_true", help="train none if that file holds a run of these options and clips")
    given = vars(parser.parse_args())
    out, reuse = given.pop("json"), given.pop("reuse")
    return reported(lambda: measured(given, out, reuse), out, reads=map(Path, given["shards"].split(",")))


def measured(given: dict[str, Any], out: Path | None, reuse: bool) -> str:
    """One run by options of the command line, and its record; returns a line about it. `reuse`: skip it if recorded already."""
    data = {name: given[name] for name in ("shards", "train_split", "test_split", "layout", "threads")}
    own = {name: given[name] for name in ("seed", "batch_size")}
    config = replace(
        DEMO, data=replace(DEMO.data, **data), run=replace(DEMO.run, **own), label_fraction=given["fraction"], eval_every=0
    )
    about = {"options": given, "fingerprint": open_data(config.data).manifest.fingerprint}
    earlier = read_object(out) if reuse and out is not None else None
    if earlier is not None and all(earlier.get(name) == value for name, value in about.items()):
        log.info("%s holds this run already", out)
        result = earlier
    else:
        result = run(config, **{name: given[name] for name in ("lr", "steps", "weight_decay")})
        if out is not None:
            save({**machine(), **about, **result}, out)
    return (f"small CNN: {100 * result['score']:.1f} % of {given['test_split']}, {result['labels']} labelled clips, "
            f"{result['steps']} steps, {result['clips_seen']} clips seen, {result['cpu_seconds']:.0f} CPU seconds\n")


if __name__ == "__main__":
    sys.exit(main())
