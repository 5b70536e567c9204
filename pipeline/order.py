"""The order of an epoch and each rank's part of it, as pure functions: no state, no shuffle buffer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.keyed import keyed_generator


def epoch_order(num_clips: int, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """Positions 0..num_clips-1 in the order of this epoch: a permutation keyed by (seed, epoch), or the identity."""
    if not shuffle:
        return np.arange(num_clips, dtype=np.int64)
    return keyed_generator("order", seed, epoch).permutation(num_clips).astype(np.int64, copy=False)


def entries_per_epoch(num_clips: int, weight: float) -> int:
    """Number of entries that an epoch takes from a set: `weight` times its clips, rounded, but at least one if it has clips."""
    return max(1, round(weight * num_clips)) if num_clips else 0


def taken(num_clips: int, weight: float, seed: int, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clips of a weighted set that an epoch takes: places 0..num_clips-1, and how often each came earlier in this epoch.

    A set is an endless sequence of passes over its clips, and every epoch takes the next `entries_per_epoch` of it: at any
    time each clip has come as often as any other, or once more. The order of a pass that is divided between epochs is a
    permutation keyed by (seed, pass, number of the set).
    """
    count = entries_per_epoch(num_clips, weight)
    start, stop = epoch * count, (epoch + 1) * count
    parts, times, taken_N = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], np.zeros(num_clips, np.int64)
    for turn in range(start // num_clips, -(-stop // num_clips)) if num_clips else ():
        low, high = max(start - turn * num_clips, 0), min(stop - turn * num_clips, num_clips)
        whole = high - low == num_clips
        pass_N = np.arange(num_clips) if whole else keyed_generator("pass", seed, turn, number).permutation(num_clips)
        parts.append(pass_N[low:high].astype(np.int64, copy=False))
        times.append(taken_N[parts[-1]])
        taken_N[parts[-1]] += 1
    return np.concatenate(parts), np.concatenate(times)


def taken_name(name: str, time: int) -> str:
    """The name of a clip in training batches: its own, with a number from the second time on that an epoch takes it."""
    return f"{name}#{time}" if time else name


@dataclass(frozen=True)
class EpochClips:
    """An epoch's entries in their order: index rows and views, for ranges of positions.

    Attributes:
        place_N, view_N: place in `rows` and view of each entry; None = entry i has place i // views and view i % views.
    """

    rows: NDArray[np.int64]
    views: int
    order_N: NDArray[np.int64]
    place_N: NDArray[np.int64] | None = None
    view_N: NDArray[np.int64] | None = None

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 index rows and views of the entries at positions start..stop-1."""
        entries = self.order_N[start:stop]
        if self.place_N is None or self.view_N is None:
            return self.rows[entries // self.views], entries % self.views
        return self.rows[self.place_N[entries]], self.view_N[entries]


@dataclass(frozen=True)
class OrderConfig:
    """Everything that decides which clips a rank sees, and when.

    Attributes:
        rows: int64 index rows of the split.
        views: frame draws per clip (1 in training).
        batch_size: clips per rank and step.
        drop_last: leave out the clips that do not fill a step, unless the epoch was started with other batch sizes.
        smallest_batch: clips that each rank needs for a step.
        shares: places in `rows` and weight of each weighted set (`taken`); () = every row once.
    """

    rows: NDArray[np.int64]
    views: int
    batch_size: int
    seed: int
    train: bool
    drop_last: bool
    rank: int
    world_size: int
    smallest_batch: int = 1
    shares: Sequence[tuple[NDArray[np.int64], float]] = ()

    @property
    def num_entries(self) -> int:
        """Entries of an epoch over all ranks: clips, times their weights, or times views in evaluation."""
        if self.shares:
            return sum(entries_per_epoch(len(places), weight) for places, weight in self.shares if len(places))
        return len(self.rows) * self.views

    def clips(self, epoch: int) -> EpochClips:
        """The entries of an epoch, for all ranks together: a pure function of these settings."""
        order_N = epoch_order(self.num_entries, self.seed, epoch, shuffle=self.train)
        if not self.shares:
            return EpochClips(self.rows, self.views, order_N)
        parts = [
            (places, *taken(len(places), weight, self.seed, epoch, number))
            for number, (places, weight) in enumerate(self.shares) if len(places)
        ]
        place_N = np.concatenate([places[chosen] for places, chosen, _ in parts])
        return EpochClips(self.rows, self.views, order_N, place_N, np.concatenate([times for _, _, times in parts]))

    @property
    def step_size(self) -> int:
        """Clips of a whole step of all ranks together."""
        return self.batch_size * self.world_size

    @property
    def largest_part(self) -> int:
        """The most clips that a rank has in one step: the last step takes in clips that are too few for one of their own."""
        return self.batch_size + (self.smallest_batch if self.drop_last else 0)

    def end(self, position: int) -> int:
        """The position at which an epoch that continues at `position` ends.

        A position that is not a multiple of the step size was reached with other batch sizes. Such an epoch leaves out no clip
        if possible: the clips that do not fill a step are one more step, or part of the last one if they are too few for all
        ranks.
        """
        size = self.step_size
        if size < 1 or not 0 <= position <= self.num_entries:
            raise ValueError(
                f"position {position} of {self.num_entries} clips with {size} clips per step: "
                "expected 0 <= position <= clips and at least one clip per step"
            )
        left = self.num_entries - position
        rest = left % size
        if not self.drop_last or not rest:
            return self.num_entries
        left_out = left == rest and rest < self.smallest_batch * self.world_size
        return self.num_entries - rest if left_out or position % size == 0 else self.num_entries

    def steps(self, position: int) -> list[tuple[int, int]]:
        """Ranges [start, stop) of the global order that are left in an epoch, one per step of all ranks together.

        Because a step consumes a contiguous range of the global order, a run may stop after any step and continue with another
        number of ranks or another batch size without losing or repeating a clip.
        """
        end = self.end(position)
        bounds = [*range(position, end, self.step_size), end]
        if self.drop_last and len(bounds) > 2 and end - bounds[-2] < self.smallest_batch * self.world_size:
            del bounds[-2]
        return list(pairwise(bounds))

    def parts_left(self, position: int) -> int:
        """How many of `steps(position)` have a part for this rank.

        Called in every training step, so only the last two are listed: those before them are all alike.
        """
        whole = max((self.end(position) - position) // self.step_size - 2, 0)
        return whole + sum(start < stop for start, stop in map(self.part, self.steps(position + whole * self.step_size)))

    def part(self, step: tuple[int, int]) -> tuple[int, int]:
        """This rank's part of a step: the ranks' parts are contiguous and differ by at most one clip.

        In training with `drop_last` false, a short last step gives every rank as many clips as the others.
        """
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of world size {self.world_size}: expected 0 <= rank < world size")
        start, stop = step
        if self.train and not self.drop_last:
            stop -= (stop - start) % self.world_size
        count = stop - start
        return start + count * self.rank // self.world_size, start + count * (self.rank + 1) // self.world_size
