"""Pictures of what the model sees: sampled frames after crop, flip and resize, with the joints it gets."""

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.remote import open_shards
from svdata2vec.shards.layouts import JointLayout
from svdata2vec.shards.stats import set_statistics

PERSON_COLOURS = ((255, 214, 0), (0, 229, 255))  # RGB, first and second person
LABEL_HEIGHT = 18
MIN_TILE = 96


def contact_sheet(
    batch: ClipBatch, layout: JointLayout, classes: tuple[str, ...], clips: int = 8, frames: int = 8
) -> np.ndarray:
    """One row per clip, evenly spaced frames of the clip from left to right.

    Args:
        batch: clips with video and joints.
        layout: names the joints and their connections.
        classes: names of the labels.
        clips, frames: rows and columns at the most.

    Returns:
        (H, W, 3) uint8 RGB picture.
    """
    if batch.video_BTHWC is None or batch.joints_BMTVC is None:
        raise ValueError("a contact sheet needs video and joints; make the loader with both")
    video = batch.video_BTHWC.cpu().numpy()
    joints = batch.joints_BMTVC.cpu().numpy()
    columns = np.linspace(0, video.shape[1] - 1, min(frames, video.shape[1])).round().astype(int)
    scale = max(1, -(-MIN_TILE // video.shape[2]))
    rows = []
    for clip in range(min(clips, video.shape[0])):
        tiles = [draw_frame(video[clip, t], joints[clip, :, t], layout, scale) for t in columns]
        strip = np.concatenate(tiles, axis=1)
        text = f"{batch.keys[clip]}  {classes[int(batch.label_B[clip])]}"
        rows += [_caption(text, strip.shape[1]), strip]
    return np.concatenate(rows)


def draw_frame(frame_HWC: np.ndarray, joints_MVC: np.ndarray, layout: JointLayout, scale: int) -> np.ndarray:
    """The frame enlarged by `scale`, with every person's skeleton; missing joints (zeros) are left out."""
    picture = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    for person, joints_VC in enumerate(joints_MVC):
        colour = PERSON_COLOURS[person % len(PERSON_COLOURS)]
        present = joints_VC.any(axis=1)
        points = np.round(joints_VC * scale - 0.5).astype(int)
        for a, b in layout.edges:
            if present[a] and present[b]:
                cv2.line(picture, points[a].tolist(), points[b].tolist(), colour, 1, cv2.LINE_AA)
        for x, y in points[present].tolist():
            cv2.circle(picture, (x, y), 2, (255, 64, 64), -1, cv2.LINE_AA)
    return picture


def _caption(text: str, width: int) -> np.ndarray:
    strip = np.full((LABEL_HEIGHT, width, 3), 32, np.uint8)
    cv2.putText(strip, text, (4, LABEL_HEIGHT - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
    return strip


def to_png(picture: np.ndarray) -> bytes:
    """PNG file content of an RGB picture."""
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def write_contact_sheets(
    root: Path, split: str, out: Path, *, train: bool, num_frames: int, size: int, clips: int
) -> int:
    """One PNG per class of a split into `out`, and the data set's figures in `statistics.json`.

    Args:
        root: folder of shards.
        split: which clips.
        out: folder to write to; made if needed.
        train: training crops (random crop and flip) instead of evaluation crops.
        num_frames: frames sampled from a clip.
        size: side of the crop in pixels.
        clips: clips per class.

    Returns:
        The number of pictures.
    """
    shards = open_shards(root)
    rows = shards.rows(split)
    labels = shards.label_map(split)[shards.index["label"][rows]]
    classes = shards.split_classes(split)
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for label, name in enumerate(classes):
        chosen = rows[labels == label][:clips]
        if not len(chosen):
            continue
        plan = PlanConfig(num_frames=num_frames, size=size)
        with ClipLoader(shards, split, plan, batch_size=len(chosen), train=train, limit=chosen) as loader:
            picture = contact_sheet(next(iter(loader)), shards.manifest.layout, classes, clips)
        file_name = "".join(letter if letter.isalnum() else "-" for letter in name)
        (out / f"{label:03d}-{file_name}.png").write_bytes(to_png(picture))
        count += 1
    statistics = json.dumps(asdict(set_statistics(shards)), indent=2)
    (out / "statistics.json").write_text(statistics)
    return count
