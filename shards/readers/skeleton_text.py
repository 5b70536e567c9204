"""Reads the text skeletons of NTU RGB+D (`.skeleton`, Kinect-25) and UAV-Human (the same lines, 17 joints).

Lines: number of frames; per frame the number of bodies; per body one line that begins with its id, one line with the
number of joints, then one line per joint. M persons, T frames, V joints.
"""

from collections import Counter

import numpy as np

from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.text import read_text
from svdata2vec.shards.tracks import link_slots

# Columns of a joint line with the pixel position: NTU's have metres, depth pixels, then x and y in the colour picture.
COLOR_COLUMNS = (5, 6)
FIRST_COLUMNS = (0, 1)


def read_text_skeleton(path: str, columns: tuple[int, int], num_joints: int, width: int | None,
                       height: int | None) -> Pose:
    """Pose (M,T,V,2) with one slot per body id, the longest on screen first; a body that is not seen is zero.

    If bodies of one frame share an id, ids do not identify bodies: then all are linked again (`tracks.link_slots`).

    `columns`: the columns of x and y in a joint line. Raises UserError naming the file and the line.
    """
    lines = _Lines(path)
    num_frames = lines.integer()
    found: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for frame in range(num_frames):
        bodies_of_id: Counter[str] = Counter()
        for _ in range(lines.integer()):
            body = lines.words()[0]
            if lines.integer() != num_joints:
                raise lines.error(f"expected {num_joints} joints")
            found.setdefault((body, bodies_of_id[body]), {})[frame] = lines.joints(num_joints, columns)
            bodies_of_id[body] += 1
    bodies = sorted(found.values(), key=len, reverse=True)
    pose_MTVC = np.zeros((max(len(bodies), 1), num_frames, num_joints, 2), np.float32)
    for m, track in enumerate(bodies):
        for frame, joints_VC in track.items():
            pose_MTVC[m, frame] = joints_VC
    pose_MTVC, joined = link_slots(pose_MTVC) if any(again for _, again in found) else (pose_MTVC, 0)
    return Pose(pose_MTVC, width=width, height=height, joined=joined)


class _Lines:
    """The lines of a text file, with errors that name the line."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines = read_text(path).splitlines()
        self._next = 0

    def words(self) -> list[str]:
        """The next line's words; UserError at the end of the file or on an empty line."""
        if self._next >= len(self._lines):
            raise UserError(f"{self.path}: ends after line {self._next}; the file is cut short, unpack it again")
        words = self._lines[self._next].split()
        self._next += 1
        if not words:
            raise self.error("the line is empty")
        return words

    def integer(self) -> int:
        """The next line as one count."""
        words = self.words()
        if len(words) != 1 or not words[0].isdigit():
            raise self.error(f"expected a count, found {' '.join(words)[:40]!r}")
        return int(words[0])

    def joints(self, count: int, columns: tuple[int, int]) -> np.ndarray:
        """float32 (count, 2) from the next `count` lines."""
        joints_VC = np.empty((count, 2), np.float32)
        for v in range(count):
            words = self.words()
            try:
                joints_VC[v] = float(words[columns[0]]), float(words[columns[1]])
            except (IndexError, ValueError):
                raise self.error(f"expected the numbers of a joint, found {' '.join(words)[:40]!r}") from None
        return joints_VC

    def error(self, message: str) -> UserError:
        """A UserError about the line read last."""
        return UserError(f"{self.path}, line {self._next}: {message}")
