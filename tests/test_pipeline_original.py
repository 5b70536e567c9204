"""Evaluation end to end (H.264 file -> packing -> loader) against the authors' chain, written out from its definition.

Their chain decodes the whole source picture, cuts the square (black outside), resizes with OpenCV, and moves the joints
along. Packing resamples once more and compresses, so frames are held to 33 dB and joints to 0.05 px of the 224-px crop.
"""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import psnr
from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.reading.shardset import ShardSet

WIDTH, HEIGHT = 480, 270

# name -> frames, persons, centre of the first person, size of a person in pixels
CASES = {
    "long": (100, 1, (240, 135), 60),
    "short": (23, 1, (200, 140), 60),      # fewer frames than are sampled
    "middle": (53, 1, (240, 135), 50),     # between T and 2T frames
    "two": (90, 2, (180, 130), 60),
    "half-outside": (85, 1, (450, 240), 70),
    "left-outside": (70, 1, (5, 135), 60),
    "clipped": (81, 1, (0, 135), 60),      # joints moved onto the picture's edge: x is zero, y is not
    "three": (80, 3, (120, 120), 40),
}


def textured(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Structure at several scales, like a photograph."""
    total = np.zeros((height, width, 3))
    for cell, weight in ((64, 60), (16, 35), (5, 18)):
        coarse = generator.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total + 120, 0, 255).astype(np.uint8)


def joints_of(name: str) -> np.ndarray:
    """float32 (M, F, 17, 2): persons that walk slowly, some joints missing."""
    num_frames, persons, centre, reach = CASES[name]
    generator = np.random.default_rng(len(name))
    still = generator.uniform(-1, 1, (persons, 1, 17, 2)) * (reach / 2, reach)
    walk = np.linspace(0, 30, num_frames)[None, :, None, None] * (1, 0.1)
    pose = np.array(centre) + np.arange(persons)[:, None, None, None] * (70, 10) + still + walk
    if name == "clipped":
        pose = np.clip(pose, 0, (WIDTH, HEIGHT))
    pose[generator.random(pose.shape[:-1]) < 0.1] = 0
    return pose.astype(np.float32)


def boxes_of(pose: np.ndarray) -> np.ndarray:
    """float32 (F, 4) around the first person, nobody in every tenth frame; they leave the picture where the joints do."""
    seen = np.where(pose[0] == 0, np.nan, pose[0])
    boxes = np.concatenate([np.nanmin(seen, axis=1), np.nanmax(seen, axis=1)], axis=1)
    boxes[::10] = 0
    return boxes.astype(np.float32)


def write_source(path: Path, pose: np.ndarray, num_frames: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    background, figure = textured(generator, HEIGHT, WIDTH), textured(generator, 80, 40)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for t in range(num_frames):
            picture = background.copy()
            x, y = np.clip(pose[0, t].mean(0).astype(int) - (20, 40), 0, (WIDTH - 41, HEIGHT - 81))
            picture[y : y + 80, x : x + 40] = figure
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[Path, ShardSet]:
    folder = tmp_path_factory.mktemp("original")
    clips = []
    for seed, name in enumerate(CASES):
        pose = joints_of(name)
        write_source(folder / f"{name}.mp4", pose, CASES[name][0], seed)
        video, boxes = folder / f"{name}.mp4", boxes_of(pose)
        clips.append(ClipAnnotation(name, 0, video, CASES[name][0], WIDTH, HEIGHT, pose, box_T4=boxes))
    dataset = DataSet("original", COCO17, ("one",), {"val": list(CASES)}, clips)
    pack(dataset, folder / "packed", PackOptions(workers=1))
    return folder, ShardSet.open(folder / "packed")


def original_frames(num_frames: int) -> np.ndarray:
    """Sampling of the released evaluation: a fresh legacy generator per clip, two draws thrown away."""
    state = np.random.RandomState(255)
    state.rand()
    state.randint(1)
    if num_frames < 40:
        return np.arange(40) % num_frames
    if num_frames < 80:
        offset = np.zeros(41, int)
        offset[state.choice(41, num_frames - 40, replace=False)] = 1
        return np.arange(40) + np.cumsum(offset)[:-1]
    bounds = np.array([i * num_frames // 40 for i in range(41)])
    return bounds[:40] + state.randint(np.diff(bounds))


def original_crop(low_x, low_y, high_x, high_y) -> tuple[int, int, int, int]:
    """Padded by a tenth, squared, truncated; each argument holds all values of one edge, of which zeros do not count."""
    edges = [f(v[v != 0]) for f, v in ((np.min, low_x), (np.min, low_y), (np.max, high_x), (np.max, high_y))]
    left, top, right, bottom = edges
    half_x, half_y = (right - left) / 2 * 1.1, (bottom - top) / 2 * 1.1
    half = max(half_x, half_y)
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    return int(centre_x - half), int(centre_y - half), int(centre_x + half), int(centre_y + half)


def original_chain(path: Path, pose: np.ndarray, boxes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(40, 224, 224, 3) frames and (M, 40, 17, 2) joints, step by step; `boxes`: crop around them, not the joints."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = original_frames(min(pose.shape[1], len(pictures)))
    joints = pose[:, frames].copy()
    x, y = joints[..., 0], joints[..., 1]
    x1, y1, x2, y2 = original_crop(x, y, x, y) if boxes is None else original_crop(*boxes.T)
    out = np.empty((40, 224, 224, 3), np.uint8)
    for t, number in enumerate(frames):
        square = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
        low_x, low_y, high_x, high_y = max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT)
        square[low_y - y1 : high_y - y1, low_x - x1 : high_x - x1] = pictures[number][low_y:high_y, low_x:high_x]
        out[t] = cv2.resize(square, (224, 224), interpolation=cv2.INTER_LINEAR)
    missing = joints == 0
    joints = (joints - (x1, y1)) * (224 / (x2 - x1), 224 / (y2 - y1))
    joints[missing] = 0
    return out, joints


@pytest.mark.parametrize("crop", ["joints", "boxes"])
@pytest.mark.parametrize("name", CASES)
def test_evaluation_shows_what_the_original_shows(sources, name, crop):
    folder, shards = sources
    rows = shards.find([name])
    plan = PlanConfig(frame_draw="original", crop=crop)
    with ClipLoader(shards, "val", plan, batch_size=1, train=False, limit=rows) as loader:
        batch = next(iter(loader))
    pose = joints_of(name)
    frames, joints = original_chain(folder / f"{name}.mp4", pose, boxes_of(pose) if crop == "boxes" else None)
    expected = np.zeros((2, 40, 17, 2))
    expected[: len(joints)] = joints[:2]
    np.testing.assert_array_equal(batch.joints_BMTVC[0].numpy() == 0, expected == 0)
    assert np.abs(batch.joints_BMTVC[0].numpy() - expected).max() <= 0.05
    assert psnr(batch.video_BTHWC[0], frames) >= 33


def test_fewer_poses_than_frames_draw_like_the_original(tmp_path):
    """Its number of frames is the annotation's, also where the video has one or two more."""
    pose = joints_of("long")[:, :99]
    write_source(tmp_path / "a.mp4", joints_of("long"), 100, 0)
    clip = ClipAnnotation("a", 0, tmp_path / "a.mp4", 99, WIDTH, HEIGHT, pose)
    pack(DataSet("short", COCO17, ("one",), {"val": ["a"]}, [clip]), tmp_path / "packed", PackOptions(workers=1))
    with ClipLoader(
        ShardSet.open(tmp_path / "packed"), "val", PlanConfig(frame_draw="original"), batch_size=1, train=False
    ) as loader:
        batch = next(iter(loader))
    frames, joints = original_chain(tmp_path / "a.mp4", pose, None)
    assert np.abs(batch.joints_BMTVC[0, 0].numpy() - joints[0]).max() <= 0.05
    assert min(map(psnr, batch.video_BTHWC[0], frames)) >= 33
