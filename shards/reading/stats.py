"""Figures of a packed data set: lengths, sizes, persons, missing joints, classes per split."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from svdata2vec.shards.boxes import present_joints
from svdata2vec.shards.reading.shardset import ShardSet

# If persons stay in this part of width and height in 95 % of at least CLIPS_IN_IT clips, their joints seem to be pixels of
# smaller copies. (People in the middle of the picture have their feet further down, or their hands further right.)
CORNER, CLIPS_IN_IT = 0.7, 10


@dataclass(frozen=True)
class Spread:
    """Smallest value, quartiles, largest value, mean."""

    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float
    mean: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Spread of at least one number."""
        low, quarter, median, three_quarters, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return cls(low, quarter, median, three_quarters, high, float(np.mean(values)))


@dataclass(frozen=True)
class SplitStatistics:
    """Clips of a split, the published number (None = unknown), and clips per class name (of the split's own classes)."""

    clips: int
    published: int | None
    clips_per_class: dict[str, int]


@dataclass(frozen=True)
class SetStatistics:
    """Figures of a whole set. Shares are 0..1.

    Attributes:
        enlargement: source pixels per packed pixel.
        reach: how far right and down the persons of 95 % of the clips extend, as parts of width and height; (1, 1) for fewer
            than CLIPS_IN_IT clips with persons.
        persons_per_clip: persons with any joint -> clips.
        persons_seen: persons that a model reads, the first ones of a clip.
        missing_joints: joint name -> share missing, among the slots of the persons seen in the frames that have a joint.
        empty_frames: share of frames without a joint of the persons seen.
        frames_of_others: share of frames that show only other persons than those seen.
        short_clips: clips of fewer than 40 frames.
    """

    clips: int
    frames: int
    bytes: int
    frames_per_clip: Spread
    bytes_per_clip: Spread
    enlargement: Spread
    box_height_px: Spread
    reach: tuple[float, float]
    picture_sizes: dict[str, int]
    frame_rates: dict[str, int]
    persons_per_clip: dict[int, int]
    persons_seen: int
    missing_joints: dict[str, float]
    empty_frames: float
    frames_of_others: float
    bad_joints: int
    clips_with_other_pose_count: int
    short_clips: int
    splits: dict[str, SplitStatistics]


def set_statistics(shards: ShardSet, persons: int = 2) -> SetStatistics:
    """Figures of all clips for a model that reads `persons`; reads every clip's joints and description but no pixel."""
    index, names = shards.index, shards.manifest.layout.joints
    sums = _Sums(len(names), persons)
    for row in range(len(shards)):
        sums.add(shards, row)
    frames = int(index["frames"].sum())
    right, down = np.quantile(sums.reach, 0.95, axis=0).tolist() if len(sums.reach) >= CLIPS_IN_IT else (1.0, 1.0)
    return SetStatistics(
        clips=len(shards), frames=frames, bytes=sum(s.bytes for s in shards.manifest.shards),
        frames_per_clip=Spread.of(index["frames"]), bytes_per_clip=Spread.of(index["size"].sum(axis=1, dtype=np.int64)),
        enlargement=Spread.of(np.array(sums.enlargements)), box_height_px=Spread.of(np.array(sums.heights or [0.0])),
        reach=(right, down),
        picture_sizes=dict(sums.pictures.most_common()), frame_rates=dict(sums.rates.most_common()),
        persons_per_clip=dict(sorted(sums.persons.items())), persons_seen=persons,
        frames_of_others=sums.frames_of_others / max(frames, 1),
        missing_joints={name: float(1 - sums.seen_V[v] / max(sums.slots, 1)) for v, name in enumerate(names)},
        empty_frames=sums.empty_frames / max(frames, 1), bad_joints=sums.bad_joints,
        clips_with_other_pose_count=sums.other_pose_count, short_clips=int((index["frames"] < 40).sum()),
        splits={name: _split_statistics(shards, name) for name in shards.manifest.splits},
    )


def persons_report(figures: SetStatistics) -> str | None:
    """One line about the persons of a set that a model does not see; None if it sees all of them in every frame.

    Also None for sets of videos without skeletons.
    """
    more = sum(clips for persons, clips in figures.persons_per_clip.items() if persons > figures.persons_seen)
    if set(figures.persons_per_clip) <= {0} or not (more or figures.empty_frames):
        return None
    return (f"a model of {figures.persons_seen} persons sees nobody in {100 * figures.empty_frames:.2f} % of the frames, "
            f"and in {100 * figures.frames_of_others:.2f} % only others are there; {more:,} of {figures.clips:,} clips have "
            "more persons than it reads")


def corner_report(reach: tuple[float, float]) -> str | None:
    """A warning that all persons are in one corner of their pictures, as if joints belonged to smaller ones; None if not."""
    if max(reach) >= CORNER:
        return None
    right, down = (f"{100 * part:.0f} %" for part in reach)
    return (f"of 95 % of the clips, persons are in the left {right} and the upper {down} of the picture: if their joints were "
            "found in smaller copies of the videos, pack these, or state the copies' size (img_shape)")


def _split_statistics(shards: ShardSet, split: str) -> SplitStatistics:
    labels = shards.label_map(split)[shards.index["label"][shards.rows(split)]]
    counts = Counter(labels.tolist())
    per_class = {name: counts[label] for label, name in enumerate(shards.split_classes(split))}
    return SplitStatistics(len(labels), shards.manifest.published.get(split), per_class)


class _Sums:
    """Running sums over clips."""

    def __init__(self, num_joints: int, persons_seen: int) -> None:
        self.persons_seen = persons_seen
        self.seen_V = np.zeros(num_joints, np.int64)
        self.slots = self.frames_of_others = self.empty_frames = self.bad_joints = self.other_pose_count = 0
        self.enlargements: list[float] = []
        self.heights: list[float] = []
        self.reach: list[np.ndarray] = []
        self.pictures: Counter[str] = Counter()
        self.rates: Counter[str] = Counter()
        self.persons: Counter[int] = Counter()

    def add(self, shards: ShardSet, row: int) -> None:
        """Add one clip."""
        sample = shards.sample(row, video=False)
        meta = sample.meta
        present_MTV = present_joints(sample.pose_MTVC)
        someone_MT = np.any(present_MTV, axis=2)
        self.seen_V += present_MTV[: self.persons_seen].sum(axis=(0, 1))
        self.slots += int(someone_MT[: self.persons_seen].sum())
        nobody_T = ~np.any(someone_MT[: self.persons_seen], axis=0)
        self.empty_frames += int(nobody_T.sum())
        self.frames_of_others += int((nobody_T & np.any(someone_MT, axis=0)).sum())
        self.persons[int(np.any(someone_MT, axis=1).sum())] += 1
        heights_T = sample.box_T4[:, 3] - sample.box_T4[:, 1]
        if (heights_T > 0).any():
            self.heights.append(float(np.median(heights_T[heights_T > 0])))
            self.reach.append(sample.box_T4[:, 2:].max(axis=0) / (meta.width, meta.height))
        self.enlargements.append(float(meta.packed_to_source[0, 0]))
        self.pictures[f"{meta.width}x{meta.height}"] += 1
        self.rates[f"{meta.fps:g}"] += 1
        self.bad_joints += meta.bad_joints
        self.other_pose_count += meta.pose_frames is not None
