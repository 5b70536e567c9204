"""What happens to unusable clips: counted, logged with shard and key, replaced in training, too many end the run."""

import logging

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)

GRACE_CLIPS = 1000  # rates of fewer clips than this say nothing: the allowance is counted as if so many had been read


class BadClips:
    """Counts unusable clips and ends the run when they are more than `max_rate` of what was read.

    max_rate 0 ends the run at the first one.
    """

    def __init__(self, shards: ShardSet, max_rate: float) -> None:
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_bad_rate is {max_rate}: expected a share from 0 to 1")
        self._shards, self._max_rate = shards, max_rate
        self.count = 0

    def record(self, row: int, reason: str, clips_read: int) -> None:
        """Log and count one clip. Raises UserError above the rate."""
        self.count += 1
        entry = self._shards.index[row]
        key, shard = entry["key"].decode(), self._shards.manifest.shards[int(entry["shard"])].name
        log.warning("skipping clip %s of %s: %s", key, shard, reason)
        if self.count > self._max_rate * max(clips_read, GRACE_CLIPS):
            raise UserError(
                f"{self.count} of {clips_read} clips are unusable, more than the allowed {self._max_rate:.2%}; "
                f"the last is {key} of {shard}: {reason}; run `svdata2vec verify`, or raise max_bad_rate"
            )


def replacement_row(rows: NDArray[np.int64], seed: int, epoch: int, key: str, attempt: int) -> int:
    """Another row in the place of a bad clip: keyed like every draw, so each rank and each resumed run agrees."""
    return int(rows[keyed_generator("replacement", seed, epoch, key, attempt).integers(len(rows))])
