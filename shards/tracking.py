"""From the detections of single frames to the one or two main persons of a clip. Pure NumPy, deterministic. Both the
scripts that find skeletons (tools/pose/) and the readers use it, the readers also through `tracks.py`.

N detections in a frame, M persons, T frames, V joints. Boxes are (x1, y1, x2, y2) in pixels of the decoded video.
Steps: drop unusable and duplicate detections, link boxes from frame to frame, join the pieces of a person who was lost for
a while, keep the persons who are largest for longest.
"""

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from svdata2vec.shards.boxes import present_joints


@dataclass(frozen=True)
class Detections:
    """What a pose model finds in one frame: `box_N4`, `score_N`, `joints_NV2` (pixels), `joint_score_NV`."""

    box_N4: np.ndarray
    score_N: np.ndarray
    joints_NV2: np.ndarray
    joint_score_NV: np.ndarray

    ARRAYS = ("box_N4", "score_N", "joints_NV2", "joint_score_NV")

    def __post_init__(self) -> None:
        count, num_joints = self.joint_score_NV.shape
        found = (self.box_N4.shape, self.score_N.shape, self.joints_NV2.shape)
        if found != ((count, 4), (count,), (count, num_joints, 2)):
            raise ValueError(f"detections have shapes {found}, expected {count} boxes and {count}x{num_joints} joints")

    def __len__(self) -> int:
        return len(self.score_N)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Detections":
        """These rows, in this order."""
        rows = np.asarray(rows, np.int64)
        return Detections(*(getattr(self, name)[rows] for name in self.ARRAYS))


@dataclass(frozen=True)
class TrackingOptions:
    """`min_score`: of a detection. `max_gap`, `join_gap`: frames without a detection that a track may bridge where the
    boxes still overlap, or where only place and size fit. `min_share`: the second person's part of the first one's weight
    (size times time on screen), below which nobody but the first is kept."""

    min_score: float = 0.3
    persons: int = 2
    min_iou: float = 0.3
    max_gap: int = 15
    join_gap: int = 90
    min_share: float = 0.2
    min_side_px: float = 2.0


SAME_BOX = 0.9  # boxes of one person, if their IoU is at least so large
SAME_POSE = 0.1  # poses of one person, if joints lie apart by less than this share of a person's size
FEWEST_JOINTS = 4  # that two poses must have in common to be compared: hands that touch share up to three

# One person: frame and row of the detection of each sighting, frames ascending.
Track = list[tuple[int, int]]


@dataclass(frozen=True)
class Persons:
    """The main persons of a clip, largest and longest seen first; zeros where a person is not seen. M is 1 if there is nobody.

    `joints_MTV2` and `joint_score_MTV` float32; `box_T5` float32: box around all of them and the best score, per frame.
    """

    joints_MTV2: np.ndarray
    joint_score_MTV: np.ndarray
    box_T5: np.ndarray


def track_persons(frames: Sequence[Detections], options: TrackingOptions = TrackingOptions()) -> Persons:
    """The main persons of a clip from its frames' detections: at least one entry, one per decoded frame, also without any."""
    cleaned = [without_duplicates(usable(detections, options)) for detections in frames]
    tracks = join_pieces(link_boxes(cleaned, options), cleaned, options)
    return _arrays(main_tracks(tracks, cleaned, options), cleaned)


def inside(detections: Detections, width: int, height: int) -> Detections:
    """The same with boxes cut off at the picture's border; joints stay where they are."""
    return replace(detections, box_N4=np.clip(detections.box_N4, 0, np.array([width, height, width, height], np.float32)))


def usable(detections: Detections, options: TrackingOptions) -> Detections:
    """Detections with finite numbers, a score of at least `min_score` and a box that is not degenerate, best first."""
    sides_N2 = detections.box_N4[:, 2:] - detections.box_N4[:, :2]
    finite_N = np.isfinite(detections.box_N4).all(axis=1) & np.isfinite(detections.score_N)
    finite_N &= np.isfinite(detections.joints_NV2).all(axis=(1, 2)) & np.isfinite(detections.joint_score_NV).all(axis=1)
    with np.errstate(invalid="ignore"):
        good_N = finite_N & (detections.score_N >= options.min_score) & (sides_N2 >= options.min_side_px).all(axis=1)
    rows = np.flatnonzero(good_N)
    return detections.take(rows[np.argsort(-detections.score_N[rows], kind="stable")])


def without_duplicates(detections: Detections) -> Detections:
    """Leaves out detections that repeat a better one. `detections` are sorted, best first.

    Two are the same person if their boxes coincide (IoU >= SAME_BOX), or if their joints lie on top of each other: mean
    distance, over the joints that neither lacks, below SAME_POSE times the square root of the larger box's area. Boxes that
    merely overlap much are not enough: people hug. With fewer than FEWEST_JOINTS in common the boxes alone decide.
    """
    iou_NN = box_iou(detections.box_N4, detections.box_N4)
    size_N = np.sqrt(box_area(detections.box_N4))
    present_NV = present_joints(detections.joints_NV2)
    kept: list[int] = []
    for row in range(len(detections)):
        both_KV = present_NV[kept] & present_NV[row]
        enough_K = both_KV.sum(axis=-1) >= FEWEST_JOINTS
        apart_KV = np.linalg.norm(detections.joints_NV2[kept] - detections.joints_NV2[row], axis=-1)
        distance_K = apart_KV.mean(axis=-1, where=both_KV | ~enough_K[:, None])
        near_K = enough_K & (distance_K < SAME_POSE * np.maximum(size_N[kept], size_N[row]))
        if not (near_K | (iou_NN[row, kept] >= SAME_BOX)).any():
            kept.append(row)
    return detections.take(kept)


def box_area(box_N4: np.ndarray) -> np.ndarray:
    """(N,) areas, or that of one box."""
    return (box_N4[..., 2] - box_N4[..., 0]) * (box_N4[..., 3] - box_N4[..., 1])


def box_iou(a_N4: np.ndarray, b_K4: np.ndarray) -> np.ndarray:
    """(N, K) intersection over union of boxes; 0 where both are empty."""
    low_NK2 = np.maximum(a_N4[:, None, :2], b_K4[None, :, :2])
    high_NK2 = np.minimum(a_N4[:, None, 2:], b_K4[None, :, 2:])
    common_NK = np.clip(high_NK2 - low_NK2, 0, None).prod(axis=-1)
    union_NK = box_area(a_N4)[:, None] + box_area(b_K4)[None] - common_NK
    return np.divide(common_NK, union_NK, out=np.zeros_like(common_NK), where=union_NK > 0)


def link_boxes(frames: Sequence[Detections], options: TrackingOptions) -> list[Track]:
    """Tracks: in each frame the pairs (track, detection) of highest IoU first, each used once; a track that found nothing
    for more than `max_gap` frames ends, a detection without track starts one."""
    tracks: list[Track] = []
    alive: list[Track] = []
    for number, detections in enumerate(frames):
        alive = [track for track in alive if number - track[-1][0] <= options.max_gap + 1]
        last_A4 = np.array([frames[t].box_N4[row] for t, row in (track[-1] for track in alive)], np.float64).reshape(-1, 4)
        iou_AN = box_iou(last_A4, detections.box_N4.astype(np.float64))
        free = set(range(len(detections)))
        waiting = set(range(len(alive)))
        for flat in np.argsort(-iou_AN, axis=None, kind="stable"):
            index, row = divmod(int(flat), len(detections))
            if iou_AN[index, row] < options.min_iou:
                break
            if index in waiting and row in free:
                alive[index].append((number, row))
                waiting.remove(index)
                free.remove(row)
        begun = [[(number, row)] for row in sorted(free)]
        tracks += begun
        alive += begun
    return tracks


def join_pieces(tracks: Sequence[Track], frames: Sequence[Detections], options: TrackingOptions) -> list[Track]:
    """Joins tracks of one person, nearest pairs first: never seen in one frame, and wherever one continues the other, it does
    so within `join_gap` frames, no farther away than a body's longer side, and at a similar size (half to double)."""
    pieces = _Pieces([_piece(track, frames) for track in tracks], options.join_gap + 1)
    for number in range(len(tracks)):
        pieces.compare(number, [other for other in pieces.near(number) if other > number])
    while (pair := pieces.nearest_pair()) is not None:
        pieces.join(*pair)
    return pieces.tracks()


# Of a detection: frame and row, centre and longer side of its box. A piece is a track, or several joined, frames ascending.
Sighting = tuple[int, int, float, float, float]
Piece = list[Sighting]


class _Pieces:
    """Pieces by number, and how far apart those are that may be joined. `longest`: most frames from one to the other."""

    def __init__(self, pieces: Sequence[Piece], longest: int) -> None:
        self._pieces, self._longest = dict(enumerate(pieces)), longest
        self._first_N = np.array([piece[0][0] for piece in pieces])
        self._last_N = np.array([piece[-1][0] for piece in pieces])
        self._distances: dict[tuple[int, int], float] = {}
        self._heap: list[tuple[float, tuple[int, int]]] = []  # also of distances that are no longer true

    def near(self, number: int) -> set[int]:
        """Others that begin before this one has ended for so long, and the other way round."""
        near_N = self._first_N <= self._last_N[number] + self._longest
        near_N &= self._last_N >= self._first_N[number] - self._longest
        return (self._pieces.keys() & np.flatnonzero(near_N).tolist()) - {number}

    def compare(self, number: int, others: Iterable[int]) -> None:
        """Measure the distances of a piece to others."""
        for other in others:
            first, second = min(number, other), max(number, other)
            self._set((first, second), _distance(self._pieces[first], self._pieces[second], self._longest))

    def nearest_pair(self) -> tuple[int, int] | None:
        """The nearest two that may be joined, of equals those of the lowest numbers."""
        while self._heap:
            distance, pair = heapq.heappop(self._heap)
            if self._distances.get(pair) == distance:
                return pair
        return None

    def join(self, first: int, second: int) -> None:
        """Make two pieces one, of the first one's number.

        Only what is near both in time is measured anew. What is near one of them follows the joined piece as it does that one:
        the other one's sightings are farther from it than those.
        """
        near_first, near_second = self.near(first), self.near(second)
        self._pieces[first] = sorted(self._pieces[first] + self._pieces.pop(second))
        self._first_N[first] = min(self._first_N[first], self._first_N[second])
        self._last_N[first] = max(self._last_N[first], self._last_N[second])
        for other in near_second:
            distance = self._distances.pop((min(second, other), max(second, other)), float("inf"))
            if other != first and other not in near_first:
                self._set((min(first, other), max(first, other)), distance)
        self.compare(first, (near_first & near_second) - {first, second})

    def tracks(self) -> list[Track]:
        """All pieces, in order of their numbers."""
        return [[(frame, row) for frame, row, *_ in self._pieces[number]] for number in sorted(self._pieces)]

    def _set(self, pair: tuple[int, int], distance: float) -> None:
        self._distances.pop(pair, None)
        if distance <= 1:
            self._distances[pair] = distance
            heapq.heappush(self._heap, (distance, pair))


def _piece(track: Track, frames: Sequence[Detections]) -> Piece:
    found = []
    for frame, row in track:
        left, top, right, bottom = frames[frame].box_N4[row].tolist()
        found.append((frame, row, (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)))
    return found


def _distance(a: Piece, b: Piece, longest: int) -> float:
    """The largest distance of centres at which one of two pieces continues the other, in longer sides of the larger box;
    infinite above 1, and if they cannot be one person's."""
    largest = 0.0
    both = sorted([(sighting, 0) for sighting in _around(a, b)] + [(sighting, 1) for sighting in _around(b, a)])
    for (before, whose), (after, then) in pairwise(both):
        if before[0] == after[0]:
            return float("inf")
        if whose != then:
            side, larger = sorted((before[4], after[4]))
            if after[0] - before[0] > longest or larger > 2 * side or not larger:
                return float("inf")
            largest = max(largest, math.hypot(before[2] - after[2], before[3] - after[3]) / larger)
            if largest > 1:
                return float("inf")
    return largest


def _around(piece: Piece, other: Piece) -> Piece:
    """What may lie next to a sighting of the other: those in its time, the last before and the first behind it."""
    before = max(bisect_left(piece, other[0][0], key=_frame) - 1, 0)
    return piece[before : bisect_right(piece, other[-1][0], key=_frame) + 1]


def _frame(sighting: Sighting) -> int:
    return sighting[0]


def main_tracks(tracks: Sequence[Track], frames: Sequence[Detections], options: TrackingOptions) -> list[Track]:
    """Up to `persons` tracks of the largest weight = sum over frames of score times the square root of the box's area."""
    weights = []
    for number, track in enumerate(tracks):
        weight = sum(float(frames[t].score_N[row]) * float(np.sqrt(box_area(frames[t].box_N4[row]))) for t, row in track)
        weights.append((-weight, track[0][0], number))
    weights.sort()
    return [tracks[number] for weight, _, number in weights[: options.persons]
            if -weight >= options.min_share * -weights[0][0]]


def _arrays(tracks: Sequence[Track], frames: Sequence[Detections]) -> Persons:
    joints_MTV2 = np.zeros((max(len(tracks), 1), len(frames), *frames[0].joints_NV2.shape[1:]), np.float32)
    joint_score_MTV = np.zeros(joints_MTV2.shape[:3], np.float32)
    box_T5 = np.zeros((len(frames), 5), np.float32)
    for person, track in enumerate(tracks):
        for t, row in track:
            joints_MTV2[person, t] = frames[t].joints_NV2[row]
            joint_score_MTV[person, t] = frames[t].joint_score_NV[row]
            box, score = frames[t].box_N4[row], frames[t].score_N[row]
            if box_T5[t].any():
                box = np.concatenate([np.minimum(box_T5[t, :2], box[:2]), np.maximum(box_T5[t, 2:4], box[2:])])
                score = max(box_T5[t, 4], score)
            box_T5[t] = (*box, score)
    return Persons(joints_MTV2, joint_score_MTV, box_T5)
