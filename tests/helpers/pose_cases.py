"""People for the tests of pose extraction: scenes of detections, and a pose model that finds the block of the test videos.

N detections in a frame, T frames, V joints.
"""

from collections.abc import Sequence

import numpy as np

from svdata2vec.shards.tracking import Detections

V = 17
SPREAD_V2 = np.stack([np.linspace(0.05, 0.95, V), np.tile([0.2, 0.8, 0.5], 6)[:V]], axis=1)


def person(x: float, y: float, width: float = 40, height: float = 100, score: float = 0.9) -> Detections:
    """One detection: a box with its upper left corner at (x, y) and joints all over it."""
    box_N4 = np.array([[x, y, x + width, y + height]], np.float32)
    joints_NV2 = (np.array([x, y]) + SPREAD_V2 * [width, height])[None].astype(np.float32)
    return Detections(box_N4, np.array([score], np.float32), joints_NV2, np.full((1, V), score, np.float32))


def together(people: Sequence[Detections]) -> Detections:
    """All in one frame."""
    if not people:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, V, 2), np.float32),
                          np.zeros((0, V), np.float32))
    return Detections(*(np.concatenate([getattr(entry, name) for entry in people])
                        for name in ("box_N4", "score_N", "joints_NV2", "joint_score_NV")))


class BlockModel:
    """In place of a pose model: finds the bright block of `shards_data.write_video` by its brightness. Real pixels in, so a
    frame that is lost, doubled or out of order shows."""

    batch = 3

    def prepare(self, frame_bgr: np.ndarray, box_N4: np.ndarray | None = None) -> list[np.ndarray]:
        """The frame itself, or the given boxes beside it."""
        return [frame_bgr] if box_N4 is None else [box_N4]

    def predict(self, prepared: Sequence[list[np.ndarray]]) -> list[Detections]:
        """One detection per frame where the block is; where boxes are given, one in each box."""
        return [self._find(frame[0]) for frame in prepared]

    def _find(self, content: np.ndarray) -> Detections:
        if content.ndim == 2:
            return together([person(*box[:2], *(box[2:] - box[:2])) for box in content])
        rows, columns = np.nonzero(content.mean(axis=2) > 220)
        if rows.size < 100:
            return together([])
        x1, y1, x2, y2 = (np.percentile(columns, 1), np.percentile(rows, 1), np.percentile(columns, 99) + 1,
                          np.percentile(rows, 99) + 1)
        return person(x1, y1, x2 - x1, y2 - y1)
