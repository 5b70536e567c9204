"""Pictures of what the model sees: sampled frames after crop, flip and resize, with the joints it gets."""

import cv2
import numpy as np

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.video import frames_of
from svdata2vec.shards.layouts import JointLayout

PERSON_COLOURS = ((255, 214, 0), (0, 229, 255))  # RGB, first and second person
LABEL_HEIGHT = 18
MIN_TILE = 96
FRAMES = 8


def contact_sheet(batch: ClipBatch, layout: JointLayout, classes: tuple[str, ...], clips: int = 8) -> np.ndarray:
    """One row per clip, evenly spaced frames of the clip from left to right; of a clip that occurs twice one.

    Args:
        batch: clips with video and joints.
        layout: names the joints and their connections.
        classes: names of the labels.
        clips: at most so many rows; there are FRAMES columns at most.

    Returns:
        (H, W, 3) uint8 RGB picture.
    """
    if batch.video_BTHWC is None or batch.joints_BMTVC is None:
        raise ValueError("a contact sheet needs video and joints; make the loader with both")
    video = frames_of(batch.video_BTHWC).cpu().numpy()
    joints = batch.joints_BMTVC.cpu().numpy()
    columns = np.linspace(0, video.shape[1] - 1, min(FRAMES, video.shape[1])).round().astype(int)
    scale = max(1, -(-MIN_TILE // video.shape[2]))
    rows = []
    for clip in [place for place, key in enumerate(batch.keys) if key not in batch.keys[:place]][:clips]:
        tiles = [draw_frame(video[clip, t], joints[clip, :, t], layout, scale) for t in columns]
        strip = np.concatenate(tiles, axis=1)
        persons = int(joints[clip].any(axis=(1, 2, 3)).sum())
        text = f"{batch.keys[clip]}  {classes[int(batch.label_B[clip])]}  persons: {persons}"
        rows += [_caption(text, strip.shape[1]), strip]
    return np.concatenate(rows)


def draw_frame(frame_HWC: np.ndarray, joints_MVC: np.ndarray, layout: JointLayout, scale: int) -> np.ndarray:
    """The frame enlarged by `scale`, with every person's box and skeleton; missing joints (zeros) are left out."""
    picture = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    for person, joints_VC in enumerate(joints_MVC):
        colour = PERSON_COLOURS[person % len(PERSON_COLOURS)]
        present = joints_VC.any(axis=1)
        points = np.round(joints_VC * scale - 0.5).astype(int)
        if present.any():
            corners = points[present].min(axis=0), points[present].max(axis=0)
            cv2.rectangle(picture, corners[0].tolist(), corners[1].tolist(), colour, 1)
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
