"""The order of an epoch and each rank's part of it, as pure functions: no state, no shuffle buffer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.keyed import keyed_generator


def epoch_order(num_clips: int, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """Positions 0..num_clips-1 in the order of this epoch: a permutation keyed by (seed, epoch), or the identity."""
    if num_clips < 0:
        raise ValueError(f"num_clips is {num_clips}: expected 0 or more")
    if not shuffle:
        return np.arange(num_clips, dtype=np.int64)
    return keyed_generator("order", seed, epoch).permutation(num_clips).astype(np.int64, copy=False)


def rank_slice(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of the positions [start, stop) that belongs to a rank: contiguous parts that differ by at most one."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of world size {world_size}: expected 0 <= rank < world size")
    count = stop - start
    return start + count * rank // world_size, start + count * (rank + 1) // world_size


def global_steps(num_clips: int, position: int, global_batch: int, drop_last: bool) -> list[tuple[int, int]]:
    """The ranges [start, stop) of positions that the steps left in an epoch consume, over all ranks together.

    Because a step consumes a contiguous range of the global order, a run may stop after any step and go on with another
    number of ranks or another batch size without losing or repeating a clip.
    """
    if global_batch < 1 or not 0 <= position <= num_clips:
        raise ValueError(
            f"position {position} of {num_clips} clips with {global_batch} clips per step: "
            "expected 0 <= position <= clips and at least one clip per step"
        )
    last = num_clips - global_batch + 1 if drop_last else num_clips
    return [(start, min(start + global_batch, num_clips)) for start in range(position, last, global_batch)]


@dataclass(frozen=True)
class OrderConfig:
    """Everything that decides which clips a rank sees, and when.

    rows: int64 index rows of the split. views: frame draws per clip (1 in training). batch_size: clips per rank and step.
    drop_last: leave out the clips that do not fill a step.
    """

    rows: NDArray[np.int64]
    views: int
    batch_size: int
    seed: int
    train: bool
    drop_last: bool
    rank: int
    world_size: int

    @property
    def num_entries(self) -> int:
        """Entries of an epoch over all ranks: clips, or clips times views in evaluation."""
        return len(self.rows) * self.views

    def steps(self, position: int) -> list[tuple[int, int]]:
        """Ranges of the global order that are left in an epoch, one per step of all ranks together."""
        return global_steps(self.num_entries, position, self.batch_size * self.world_size, self.drop_last)

    def part(self, step: tuple[int, int]) -> tuple[int, int]:
        """This rank's part of a step. In training a short last step gives every rank as many clips as the others."""
        start, stop = step
        if self.train:
            stop -= (stop - start) % self.world_size
        return rank_slice(start, stop, self.rank, self.world_size)
