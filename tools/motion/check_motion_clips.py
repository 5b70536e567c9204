"""Show that the synthetic action data set asks for motion: neither one frame nor the background tells the class.

    python tools/motion/check_motion_clips.py OUT --json tools/results/motion_clips_check.json

trains the same small classifier, split by subject, on: one random frame of each clip (cropped to the persons in that
frame, and as it lies in the clip's crop), on a patch of background over the whole clip, and on the whole clip; for
pixels and for joints. Errors are in favour of what must fail: one frame and background count with their best epoch on
the evaluation subjects, the whole clip with its last.

Letters: N clips, T sampled frames, C channels, H and W pixels, F features, M persons, V joints.
"""

import argparse
import datetime
import json
import pickle
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from svdata2vec import __version__
from svdata2vec.shards.errors import UserError

STORED, SHOWN = 50, 44  # pixels: crops are stored a little larger than the network's input, for random shifts
FRAMES_PER_EPOCH = 4  # random frames of each clip that a one-frame classifier sees in an epoch


@dataclass(frozen=True)
class Clips:
    """What the classifiers read: crops (N, T, H, W, 3) uint8, joints (N, T, features), labels and the split."""

    frame_crops: NDArray[np.uint8]
    clip_crops: NDArray[np.uint8]
    background: NDArray[np.uint8]
    frame_joints: NDArray[np.float32]
    clip_joints: NDArray[np.float32]
    label_N: NDArray[np.int64]
    train_N: NDArray[np.bool_]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_annotations(folder: Path) -> tuple[list[dict[str, Any]], list[str], set[str]]:
    """Annotations, class names and the names of the training clips (xsub)."""
    missing = [name for name in ("motion.pkl", "classes.txt", "videos") if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} not found; make the data set first: "
                        f"python tools/motion/make_motion_clips.py {folder}")
    content = pickle.loads((folder / "motion.pkl").read_bytes())
    classes = (folder / "classes.txt").read_text().splitlines()
    return content["annotations"], classes, set(content["split"]["xsub_train"])


def square(joints: NDArray[np.float32], width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of a square around all joints that are not zero, with a margin; the whole picture if none."""
    seen = joints.reshape(-1, 2)
    seen = seen[(seen != 0).all(axis=1)]
    if len(seen) < 3:
        return (width - max(width, height)) // 2, (height - max(width, height)) // 2, max(width, height)
    low, high = seen.min(axis=0), seen.max(axis=0)
    side = float((high - low).max()) * 1.15 + 12
    corner = 0.5 * (low + high) - 0.5 * side
    return int(corner[0]), int(corner[1]), max(8, int(side))


def cut(picture: NDArray[np.uint8], left: int, top: int, side: int) -> NDArray[np.uint8]:
    """A square of the picture, black beyond its edges, resized to STORED pixels."""
    canvas = np.zeros((side, side, 3), np.uint8)
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    if x0 < x1 and y0 < y1:
        canvas[y0 - top:y1 - top, x0 - left:x1 - left] = picture[y0:y1, x0:x1]
    return np.asarray(cv2.resize(canvas, (STORED, STORED), interpolation=cv2.INTER_AREA), np.uint8)


def normalised(joints_MTV2: NDArray[np.float32], corner_T2: NDArray[np.float32], side_T: NDArray[np.float32]) -> Any:
    """(T, 2*V*3): coordinates in the square as -1..1 and whether the joint is there; two persons, zeros for none."""
    both = np.zeros((2, *joints_MTV2.shape[1:]), np.float32)
    both[:len(joints_MTV2[:2])] = joints_MTV2[:2]
    there = (both != 0).all(axis=-1, keepdims=True)
    inside = 2 * (both - corner_T2[:, None]) / side_T[:, None, None] - 1
    return np.concatenate([np.where(there, inside, 0), there], axis=-1).swapaxes(0, 1).reshape(both.shape[1], -1)


def free_patch(joints_MTV2: NDArray[np.float32], width: int, height: int, rng: np.random.Generator) -> tuple[int, int]:
    """Left and top of a patch of background that no person ever enters, if there is one."""
    side, margin = height // 3, 0.04 * height
    seen = joints_MTV2.reshape(-1, 2)
    seen = seen[(seen != 0).all(axis=1)]

    def entered(corner: tuple[int, int]) -> bool:
        near = (seen > np.array(corner) - margin) & (seen < np.array(corner) + side + margin)
        return bool(near.all(axis=1).any())

    corners = [(x, y) for x in (0, width - side) for y in (0, height // 3, height - side)]
    free = [corner for corner in corners if not entered(corner)]
    choices = free or corners[:1]
    return choices[rng.integers(len(choices))]


def read_clip(folder: Path, index: int, entry: dict[str, Any], num_frames: int) -> tuple[Any, ...]:
    """Sample `num_frames` frames evenly and cut the three kinds of crops; joints in the same squares."""
    path = folder / "videos" / f"{entry['frame_dir']}.mp4"
    total, (height, width) = entry["total_frames"], entry["img_shape"]
    wanted = np.linspace(0, total - 1, num_frames).round().astype(int)
    with av.open(str(path)) as container:
        decoded = [frame for _, frame in zip(range(total), container.decode(video=0), strict=False)]
    if len(decoded) != total:
        raise UserError(f"{path}: has {len(decoded)} frames, motion.pkl says {total}; make the data set again")
    pictures = [decoded[t].to_ndarray(format="rgb24") for t in wanted]
    joints_MTV2 = entry["keypoint"].astype(np.float32)
    sampled = joints_MTV2[:, wanted]
    squares = [square(sampled[:, t], width, height) for t in range(num_frames)]
    whole = square(joints_MTV2, width, height)
    x, y = free_patch(joints_MTV2, width, height, np.random.default_rng(index))
    places = np.array(squares, np.float32)
    wholes = np.tile(np.array(whole, np.float32), (num_frames, 1))
    return (
        np.stack([cut(p, *s) for p, s in zip(pictures, squares, strict=True)]),
        np.stack([cut(p, *whole) for p in pictures]),
        np.stack([cut(p, x, y, height // 3) for p in pictures]),
        normalised(sampled, places[:, :2], places[:, 2]),
        normalised(sampled, wholes[:, :2], wholes[:, 2]),
    )


def read_clips(folder: Path, num_frames: int, threads: int) -> tuple[Clips, list[str]]:
    annotations, classes, train = load_annotations(folder)
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(threads) as pool:
        read = pool.map(lambda pair: read_clip(folder, pair[0], pair[1], num_frames), enumerate(annotations))
        parts = [np.stack(part) for part in zip(*read, strict=True)]
    label_N = np.array([entry["label"] for entry in annotations])
    train_N = np.array([entry["frame_dir"] in train for entry in annotations])
    frames, wholes, background, frame_joints, clip_joints = parts
    return Clips(frames, wholes, background, frame_joints, clip_joints, label_N, train_N), classes


# ---------------------------------------------------------------------------------------------------------------------
# The classifiers


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


class JointNet(nn.Sequential):
    """Joints of one frame and their change since the sample before -> features."""

    def __init__(self, features: int, inputs: int) -> None:
        super().__init__(nn.Linear(2 * inputs, 2 * features), nn.ReLU(), nn.Linear(2 * features, features))


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
    order = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
    for i in range(len(clips)):
        if rng.uniform() < 0.5:
            clips[i] = clips[i][:, :, order] * np.array([-1, 1, 1], np.float32)
        if rng.uniform() < 0.5:
            clips[i] = clips[i][:, ::-1]
    clips[..., :2] += clips[..., 2:] * rng.normal(0, 0.02, (*clips.shape[:-1], 2))
    return torch.from_numpy(clips.reshape(joints.shape))


@dataclass(frozen=True)
class Trial:
    """One classifier to train: what it sees, how long, and which epoch counts."""

    name: str
    data: NDArray[Any]
    one_frame: bool
    epochs: int
    best_epoch: bool
    show: Callable[[Any, np.random.Generator | None], Tensor]
    frame_net: Callable[[], nn.Module]


def frames_apart(data: NDArray[Any], label_N: NDArray[np.int64], rng: np.random.Generator) -> tuple[Any, Any]:
    """Some random frames of every clip, each a clip of length one with the clip's label."""
    picks = np.stack([rng.permutation(data.shape[1])[:FRAMES_PER_EPOCH] for _ in data])
    chosen = data[np.arange(len(data))[:, None], picks]
    return chosen.reshape(-1, 1, *data.shape[2:]), np.repeat(label_N, FRAMES_PER_EPOCH)


def train_epoch(
    net: nn.Module, trial: Trial, data: NDArray[Any], label_N: NDArray[np.int64], rng: np.random.Generator,
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    net.train()
    batch = 64 if trial.one_frame else 24
    order = rng.permutation(len(data))
    for start in range(0, len(order) - len(order) % batch, batch):
        rows = order[start:start + batch]
        logits = net(trial.show(data[rows], rng))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(label_N[rows]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
    net = ClipNet(trial.frame_net(), 96, num_classes)
    samples = len(train) * (FRAMES_PER_EPOCH if trial.one_frame else 1)
    steps = trial.epochs * max(1, samples // (64 if trial.one_frame else 24))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    history = []
    for epoch in range(trial.epochs):
        data, label = frames_apart(train, train_label, rng) if trial.one_frame else (train, train_label)
        train_epoch(net, trial, data, label, rng, optimizer, scheduler)
        if epoch == trial.epochs - 1 or (trial.best_epoch and epoch % 2):
            guess = predictions(net, trial, test)
            history.append((float((guess == test_label).mean()), guess))
    accuracy, guess = max(history, key=lambda item: item[0]) if trial.best_epoch else history[-1]
    recall = [round(float((guess[test_label == k] == k).mean()), 3) for k in range(num_classes)]
    return {"name": trial.name, "accuracy": round(accuracy, 4), "last_epoch": round(history[-1][0], 4),
            "recall": recall, "epochs": trial.epochs, "epoch_that_counts": "best" if trial.best_epoch else "last",
            "evaluated": len(test_label), "seconds": round(time.monotonic() - start, 1)}


def make_trials(clips: Clips, epochs: int) -> list[Trial]:
    pixels, joints = (lambda: FrameNet(96)), (lambda: JointNet(96, clips.clip_joints.shape[-1]))
    few = max(1, epochs // 2)
    return [
        Trial("one frame, pixels, crop of the frame", clips.frame_crops, True, epochs, True, show_pixels, pixels),
        Trial("one frame, pixels, crop of the clip", clips.clip_crops, True, epochs, True, show_pixels, pixels),
        Trial("one frame, joints", clips.frame_joints, True, 2 * epochs, True, show_joints, joints),
        Trial("background, whole clip, pixels", clips.background, False, few, True, show_pixels, pixels),
        Trial("whole clip, pixels", clips.clip_crops, False, epochs, False, show_pixels, pixels),
        Trial("whole clip, joints", clips.clip_joints, False, 2 * epochs, False, show_joints, joints),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def check(folder: Path, num_frames: int, epochs: int, seed: int, threads: int) -> dict[str, Any]:
    """Run all trials and describe them; prints a line for each as it ends."""
    torch.set_num_threads(threads)
    start = time.monotonic()
    clips, classes = read_clips(folder, num_frames, threads)
    chance = max(np.bincount(clips.label_N[~clips.train_N])) / (~clips.train_N).sum()
    print(f"{len(clips.label_N)} clips read in {time.monotonic() - start:.0f} s: {clips.train_N.sum()} for training, "
          f"{(~clips.train_N).sum()} of other subjects for evaluation; {len(classes)} classes")
    print(f"{100 * chance:5.1f} %  chance (the commonest class)", flush=True)
    trials = []
    for trial in make_trials(clips, epochs):
        trials.append(run_trial(trial, clips, len(classes), seed))
        last = f"best epoch; last {100 * trials[-1]['last_epoch']:.1f} %" if trial.best_epoch else "last epoch"
        print(f"{100 * trials[-1]['accuracy']:5.1f} %  {trial.name} ({last}; {trials[-1]['seconds']:.0f} s)", flush=True)
    made_with = json.loads((folder / "motion.json").read_text()) if (folder / "motion.json").exists() else {}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {"svdata2vec": __version__, "python": platform.python_version(), "torch": torch.__version__,
                     "numpy": np.__version__, "opencv": cv2.__version__, "av": av.__version__},
        "data": {"version": made_with.get("version"), "options": made_with.get("options")},
        "options": {"frames": num_frames, "epochs": epochs, "seed": seed, "threads": threads, "crop": SHOWN},
        "split": "xsub", "training_clips": int(clips.train_N.sum()), "evaluation_clips": int((~clips.train_N).sum()),
        "classes": classes, "chance": round(float(chance), 4), "trials": trials,
        "seconds": round(time.monotonic() - start, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder made by make_motion_clips.py")
    parser.add_argument("--frames", type=int, default=12, help="frames sampled from each clip (default 12)")
    parser.add_argument("--epochs", type=int, default=24, help="epochs of the clip classifier (default 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    try:
        result = check(given.folder, given.frames, given.epochs, given.seed, given.threads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
