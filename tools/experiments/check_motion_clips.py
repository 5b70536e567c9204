"""Which part of the synthetic action clips reveals the class: one frame and the background little, the whole clip most.

    python tools/experiments/check_motion_clips.py OUT --json tools/results/motion_clips_check.json

trains the same small classifier, split by subject, on one random frame of each clip (cropped to the persons in that
frame, and with the clip's crop), on a patch of background over the whole clip, and on the whole clip; for pixels and for
joints. The comparison favours the inputs that must fail: one frame and background count with their best epoch on the
evaluation subjects, the whole clip with its last.

Letters: N clips, T sampled frames, C channels, H and W pixels, F features, M persons, V joints.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import av
import cv2
import numpy as np
import torch
from ending import reported
from motion_crops import STORED, Clips, read_clips
from numpy.typing import NDArray
from small_cnn import FEATURES, ClipNet, FrameNet
from torch import Tensor, nn

from svdata2vec.runs.provenance import machine, save, versions
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.ranges import LARGEST_SEED, Range

SHOWN = 44  # pixels of the network's input
FRAMES_PER_EPOCH = 4  # random frames of each clip that a one-frame classifier sees in an epoch


class JointNet(nn.Sequential):
    """Joints of one frame and their change since the sample before -> features."""

    def __init__(self, features: int, inputs: int) -> None:
        super().__init__(nn.Linear(2 * inputs, 2 * features), nn.ReLU(), nn.Linear(2 * features, features))


def show_pixels(crops: NDArray[np.uint8], rng: np.random.Generator | None) -> Tensor:
    """(N, T, H, W, 3) uint8 -> (N, T, 3, SHOWN, SHOWN); with `rng`: shifted, flipped, colours swapped and dimmed."""
    out = np.empty((*crops.shape[:2], 3, SHOWN, SHOWN), np.float32)
    for i, clip in enumerate(crops):
        y, x = ((STORED - SHOWN) // 2,) * 2 if rng is None else rng.integers(0, STORED - SHOWN + 1, 2)
        view = clip[:, y:y + SHOWN, x:x + SHOWN]
        if rng is not None:
            view = view[..., rng.permutation(3)]
            view = view[:, :, ::-1] if rng.uniform() < 0.5 else view
        gain = 1.0 if rng is None else rng.uniform(0.8, 1.2)
        out[i] = view.transpose(0, 3, 1, 2) * np.float32(gain / 64) - 2
    return torch.from_numpy(out)


def show_joints(joints: NDArray[np.float32], rng: np.random.Generator | None) -> Tensor:
    """(N, T, 2*V*3) as it is; with `rng`: mirrored, persons exchanged, a little noise."""
    if rng is None:
        return torch.from_numpy(joints)
    clips = joints.reshape(*joints.shape[:2], 2, -1, 3).copy()
    for i in range(len(clips)):
        if rng.uniform() < 0.5:
            clips[i] = clips[i][:, :, COCO17.flip_V] * np.array([-1, 1, 1], np.float32)
        if rng.uniform() < 0.5:
            clips[i] = clips[i][:, ::-1]
    clips[..., :2] += clips[..., 2:] * rng.normal(0, 0.02, (*clips.shape[:-1], 2))
    return torch.from_numpy(clips.reshape(joints.shape))


@dataclass(frozen=True)
class Trial:
    """One classifier to train: its input, its length, and which epoch counts."""

    name: str
    data: NDArray[Any]
    one_frame: bool
    epochs: int
    best_epoch: bool
    show: Callable[[Any, np.random.Generator | None], Tensor]
    frame_net: Callable[[], nn.Module]

    def batch(self, samples: int) -> int:
        """Batch size for `samples` samples."""
        return min(64 if self.one_frame else 24, samples)


def frames_apart(data: NDArray[Any], label_N: NDArray[np.int64], rng: np.random.Generator) -> tuple[Any, Any]:
    """Some random frames of every clip, each a clip of length one with the clip's label."""
    picks = np.stack([rng.permutation(data.shape[1])[:FRAMES_PER_EPOCH] for _ in data])
    chosen = data[np.arange(len(data))[:, None], picks]
    return chosen.reshape(-1, 1, *data.shape[2:]), np.repeat(label_N, FRAMES_PER_EPOCH)


def train_epoch(
    net: nn.Module, trial: Trial, data: NDArray[Any], label_N: NDArray[np.int64], rng: np.random.Generator,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    net.train()
    order, batch = rng.permutation(len(data)), trial.batch(len(data))
    for rows in order[:len(order) - len(order) % batch].reshape(-1, batch):
        logits = net(trial.show(data[rows], rng))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(label_N[rows]), label_smoothing=0.1)
        scheduler.optimizer.zero_grad()
        loss.backward()
        scheduler.optimizer.step()
        scheduler.step()


@torch.inference_mode()
def predictions(net: nn.Module, trial: Trial, data: NDArray[Any]) -> NDArray[np.int64]:
    net.eval()
    parts = [net(trial.show(data[i:i + 64], None)).argmax(dim=1) for i in range(0, len(data), 64)]
    return torch.cat(parts).numpy()


def run_trial(trial: Trial, clips: Clips, num_classes: int, seed: int) -> dict[str, Any]:
    """Train on the training subjects; accuracy on the others (share of clips, or of frames)."""
    start = time.monotonic()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    train, train_label = trial.data[clips.train_N], clips.label_N[clips.train_N]
    test, test_label = trial.data[~clips.train_N], clips.label_N[~clips.train_N]
    if trial.one_frame:
        test, test_label = frames_apart(test, test_label, rng)
    net = ClipNet(trial.frame_net(), FEATURES, num_classes)
    samples = len(train) * (FRAMES_PER_EPOCH if trial.one_frame else 1)
    steps = trial.epochs * (samples // trial.batch(samples))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    history = []
    for epoch in range(trial.epochs):
        data, label = frames_apart(train, train_label, rng) if trial.one_frame else (train, train_label)
        train_epoch(net, trial, data, label, rng, scheduler)
        if epoch == trial.epochs - 1 or (trial.best_epoch and epoch % 2):
            guess = predictions(net, trial, test)
            history.append((float((guess == test_label).mean()), guess))
    accuracy, guess = max(history, key=lambda item: item[0]) if trial.best_epoch else history[-1]
    recall = [round(float((guess[test_label == k] == k).mean()), 3) for k in range(num_classes)]
    return {"name": trial.name, "accuracy": round(accuracy, 4), "last_epoch": round(history[-1][0], 4),
            "recall": recall, "epochs": trial.epochs, "epoch_that_counts": "best" if trial.best_epoch else "last",
            "evaluated": len(test_label), "seconds": round(time.monotonic() - start, 1)}


def make_trials(clips: Clips, epochs: int) -> list[Trial]:
    pixels, joints = (lambda: FrameNet(FEATURES)), (lambda: JointNet(FEATURES, clips.clip_joints.shape[-1]))
    few = max(1, epochs // 2)
    return [
        Trial("one frame, pixels, crop of the frame", clips.frame_crops, True, epochs, True, show_pixels, pixels),
        Trial("one frame, pixels, crop of the clip", clips.clip_crops, True, epochs, True, show_pixels, pixels),
        Trial("one frame, joints", clips.frame_joints, True, 2 * epochs, True, show_joints, joints),
        Trial("background, whole clip, pixels", clips.background, False, few, True, show_pixels, pixels),
        Trial("whole clip, pixels", clips.clip_crops, False, epochs, False, show_pixels, pixels),
        Trial("whole clip, joints", clips.clip_joints, False, 2 * epochs, False, show_joints, joints),
    ]


def check(folder: Path, num_frames: int, epochs: int, seed: int, threads: int) -> dict[str, Any]:
    """Run all trials and return the record; prints a line for each when it is finished."""
    torch.set_num_threads(threads)
    start = time.monotonic()
    clips, classes = read_clips(folder, num_frames, threads)
    chance = max(np.bincount(clips.label_N[~clips.train_N])) / (~clips.train_N).sum()
    print(f"{len(clips.label_N)} clips read in {time.monotonic() - start:.0f} s: {clips.train_N.sum()} for training, "
          f"{(~clips.train_N).sum()} of other subjects for evaluation; {len(classes)} classes")
    print(f"{100 * chance:5.1f} %  chance (the most frequent class)", flush=True)
    trials = []
    for trial in make_trials(clips, epochs):
        trials.append(run_trial(trial, clips, len(classes), seed))
        last = f"best epoch; last {100 * trials[-1]['last_epoch']:.1f} %" if trial.best_epoch else "last epoch"
        print(f"{100 * trials[-1]['accuracy']:5.1f} %  {trial.name} ({last}; {trials[-1]['seconds']:.0f} s)", flush=True)
    made_with = json.loads((folder / "motion.json").read_text()) if (folder / "motion.json").exists() else {}
    return {
        **machine(), "versions": {**versions(), "numpy": np.__version__, "opencv": cv2.__version__, "av": av.__version__},
        "data": {"version": made_with.get("version"), "options": made_with.get("options")},
        "options": {"frames": num_frames, "epochs": epochs, "seed": seed, "threads": threads, "crop": SHOWN},
        "split": "xsub", "training_clips": int(clips.train_N.sum()), "evaluation_clips": int((~clips.train_N).sum()),
        "classes": classes, "chance": round(float(chance), 4), "trials": trials,
        "seconds": round(time.monotonic() - start, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder made by make_motion_clips.py")
    parser.add_argument("--frames", type=Range(FRAMES_PER_EPOCH).parser(int), default=12,
                        help="frames sampled from each clip (default 12)")
    parser.add_argument("--epochs", type=Range(1).parser(int), default=24, help="epochs of the clip classifier (default 24)")
    parser.add_argument("--seed", type=Range(0, LARGEST_SEED).parser(int), default=0)
    parser.add_argument("--threads", type=Range(1, 1000).parser(int), default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    read = [given.folder / name for name in ("motion.pkl", "motion.json", "classes.txt", "videos")]
    return reported(lambda: measured(given), given.json, reads=read)


def measured(given: argparse.Namespace) -> str:
    """Run the check, printing its findings as they come, and write its record."""
    result = check(given.folder, given.frames, given.epochs, given.seed, given.threads)
    if given.json:
        save(result, given.json)
    return ""


if __name__ == "__main__":
    sys.exit(main())
