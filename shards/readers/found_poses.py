"""What the parsers of pose files return: the persons of each frame. N detections in a frame, V joints."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.tracking import Detections

SEEN_SCORE = 0.1  # least score of a joint that counts for a detection's box, if the program writes no box
RELATIVE_SCALE = 1000.0  # coordinates of 0..1 are tracked as pixels of a picture of this size


@dataclass(frozen=True)
class Person:
    """One detection: `joints_V3` x, y, score (x and y both 0: missing), `box_4` x1, y1, x2, y2, `score` of the whole person."""

    joints_V3: np.ndarray
    box_4: np.ndarray | None = None
    score: float | None = None


@dataclass(frozen=True)
class FoundPoses:
    """`frames`: the persons of each frame. `complete`: the list ends with the video's last frame, not the last with persons.

    `relative`: coordinates are parts of the picture. `size`: (width, height) of the picture, None = the video's own.
    `first_number`: as in `Pose`.
    """

    frames: list[list[Person]]
    complete: bool
    relative: bool = False
    size: tuple[int, int] | None = None
    first_number: int = 0

    def detections(self, num_joints: int, where: object) -> list[Detections]:
        """Detections per frame; UserError if a person has another number of joints."""
        scale = RELATIVE_SCALE if self.relative else 1.0
        return [_detections(people, num_joints, scale, f"{where}, frame {t}") for t, people in enumerate(self.frames)]

    @property
    def has_boxes(self) -> bool:
        return any(person.box_4 is not None for people in self.frames for person in people)


def _detections(people: Sequence[Person], num_joints: int, scale: float, where: str) -> Detections:
    boxes, scores, joints, joint_scores = [], [], [], []
    for person in people:
        if person.joints_V3.shape != (num_joints, 3):
            raise UserError(f"{where}: a person of {len(person.joints_V3)} joints, expected {num_joints}")
        finite_V1 = np.isfinite(person.joints_V3).all(axis=1, keepdims=True)
        x_y_score_V3 = np.where(finite_V1, person.joints_V3, 0)
        there_V = (x_y_score_V3[:, :2] != 0).any(axis=1)
        if not there_V.any():
            continue
        score_V = np.where(there_V, x_y_score_V3[:, 2], 0)
        seen_V = there_V & (score_V >= SEEN_SCORE) if (score_V >= SEEN_SCORE).any() else there_V
        low_2, high_2 = x_y_score_V3[seen_V, :2].min(axis=0), x_y_score_V3[seen_V, :2].max(axis=0)
        boxes.append((np.concatenate([low_2, high_2]) if person.box_4 is None else person.box_4) * scale)
        scores.append(score_V[there_V].mean() if person.score is None else person.score)
        joints.append(x_y_score_V3[:, :2] * scale)
        joint_scores.append(score_V)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
                      np.array(joints, np.float32).reshape(-1, num_joints, 2),
                      np.array(joint_scores, np.float32).reshape(-1, num_joints))
