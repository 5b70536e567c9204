"""Input of the check of the synthetic action data set: crops and joints of sampled frames, around the persons or beside them.

Letters: N clips, T sampled frames, H and W pixels, M persons, V joints.
"""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.errors import UserError

STORED = 50  # pixels: crops are stored a little larger than the network's input, for random shifts


@dataclass(frozen=True)
class Clips:
    """Input of the classifiers from `read_clip`: crops (N, T, H, W, 3), joints (N, T, features); labels, split."""

    frame_crops: NDArray[np.uint8]
    clip_crops: NDArray[np.uint8]
    background: NDArray[np.uint8]
    frame_joints: NDArray[np.float32]
    clip_joints: NDArray[np.float32]
    label_N: NDArray[np.int64]
    train_N: NDArray[np.bool_]


def load_annotations(folder: Path) -> tuple[list[dict[str, Any]], list[str], set[str]]:
    """Annotations of training and test clips (xsub), class names, and which of the clips are for training."""
    missing = [name for name in ("motion.pkl", "classes.txt", "videos") if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} not found; make the data set first: "
                        f"python tools/motion/make_motion_clips.py {folder}")
    content = pickle.loads((folder / "motion.pkl").read_bytes())
    classes = (folder / "classes.txt").read_text().splitlines()
    train, test = (set(content["split"][f"xsub_{part}"]) for part in ("train", "test"))
    return [entry for entry in content["annotations"] if entry["frame_dir"] in train | test], classes, train


def seen_joints(joints: NDArray[np.float32]) -> NDArray[np.float32]:
    """(joints, 2): all joints that are not zero."""
    every = joints.reshape(-1, 2)
    return every[(every != 0).all(axis=1)]


def square(joints: NDArray[np.float32], width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of a square around all joints that are there, with a margin; the whole picture if there are none."""
    seen = seen_joints(joints)
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
    side, margin, seen = height // 3, 0.04 * height, seen_joints(joints_MTV2)

    def entered(corner: tuple[int, int]) -> bool:
        near = (seen > np.array(corner) - margin) & (seen < np.array(corner) + side + margin)
        return bool(near.all(axis=1).any())

    corners = [(x, y) for x in (0, width - side) for y in (0, height // 3, height - side)]
    free = [corner for corner in corners if not entered(corner)]
    choices = free or corners[:1]
    return choices[rng.integers(len(choices))]


def read_clip(folder: Path, num_frames: int, index: int, entry: dict[str, Any]) -> tuple[Any, ...]:
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
        read = pool.map(partial(read_clip, folder, num_frames), count(), annotations)
        parts = [np.stack(part) for part in zip(*read, strict=True)]
    parts.append(np.array([entry["label"] for entry in annotations]))
    parts.append(np.array([entry["frame_dir"] in train for entry in annotations]))
    return Clips(*parts), classes
