"""Runs MediaPipe's full pose model, whose weights are part of its package on PyPI: no downloads, one person per frame.
Runs in .venv-mediapipe (bash tools/pose/pose_env.sh mediapipe); nothing else imports mediapipe.

Every frame is processed independently, so that a frame's joints do not depend on those before it. V joints.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17, MEDIAPIPE33, to_coco17
from svdata2vec.shards.tracking import Detections

FULL_MODEL = 1  # model_complexity; the light and the heavy one would be downloaded
SEEN = 0.3  # minimum visibility of joints that the box is drawn around


class MediaPipeModel:
    """Same interface as mmpose's models: `prepare` a frame, `predict` some."""

    def __init__(self, batch: int) -> None:
        """UserError if mediapipe is not installed."""
        self.batch = batch
        os.environ.setdefault("GLOG_minloglevel", "3")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        try:
            import mediapipe
        except ImportError as error:
            raise UserError(f"mediapipe cannot be imported ({error}); run `bash tools/pose/pose_env.sh mediapipe` and then "
                            ".venv-mediapipe/bin/python tools/pose/extract_poses.py") from error
        with _quiet():
            self._pose = mediapipe.solutions.pose.Pose(static_image_mode=True, model_complexity=FULL_MODEL)

    def prepare(self, frame_bgr: np.ndarray, box_N4: np.ndarray | None = None) -> np.ndarray:
        """The frame as RGB; boxes are not used."""
        return np.ascontiguousarray(frame_bgr[..., ::-1])

    def predict(self, prepared: Sequence[np.ndarray]) -> list[Detections]:
        """The person of each frame, if there is one, as COCO-17 in pixels."""
        return [detection_of(self._landmarks(frame_rgb), *frame_rgb.shape[1::-1]) for frame_rgb in prepared]

    def _landmarks(self, frame_rgb: np.ndarray) -> np.ndarray | None:
        with _quiet():
            found: Any = self._pose.process(frame_rgb).pose_landmarks
        return None if found is None else np.array([(mark.x, mark.y, mark.visibility) for mark in found.landmark])


def detection_of(landmarks_V3: np.ndarray | None, width: int, height: int) -> Detections:
    """Detections of a frame from MediaPipe's 33 landmarks: x, y as parts of the picture, and visibility, which is the score.

    The box is around the joints that are seen, the person's score the mean of the joints in the picture.
    """
    if landmarks_V3 is None:
        count = len(COCO17.joints)
        return Detections(*(np.zeros((0, *rest), np.float32) for rest in ((4,), (), (count, 2), (count,))))
    x_y_score_V3 = to_coco17(landmarks_V3 * (width, height, 1), MEDIAPIPE33, 0).astype(np.float32)
    joints_V2, score_V = x_y_score_V3[:, :2], x_y_score_V3[:, 2]
    inside_V = ((joints_V2 >= 0) & (joints_V2 <= (width, height))).all(axis=1)
    seen_V = score_V >= SEEN if (score_V >= SEEN).any() else np.ones(len(score_V), bool)
    box_4 = np.concatenate([joints_V2[seen_V].min(axis=0), joints_V2[seen_V].max(axis=0)])
    score = score_V[inside_V].mean() if inside_V.any() else 0.0
    return Detections(box_4[None], np.array([score], np.float32), joints_V2[None], score_V[None])


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress the library's own output to standard error, which bypasses Python."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
