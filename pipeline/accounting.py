"""What a loader did, where its time went, and what happens to unusable clips (pipeline/README.md, "Unusable clips")."""

import logging
from dataclasses import dataclass

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)

GRACE_CLIPS = 1000  # the rate is taken of at least so many clips: early on, one bad clip of ten says nothing


@dataclass
class LoaderStats:
    """Counts since the loader was made; they include what is prefetched, in training also of the next epoch.

    wait_seconds: the consumer waited for a batch, the only time that costs training. The others run in the background.
    """

    clips_read: int = 0
    clips_decoded: int = 0
    clips_skipped: int = 0
    batches: int = 0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0    # read, parse, plan
    decode_seconds: float = 0.0  # decode, geometry, pixel augmentation


class BadClips:
    """Counts and logs unusable clips, and ends the run when they are more than `max_rate` of what was read.

    max_rate 0 ends the run at the first one.
    """

    def __init__(self, shards: ShardSet, max_rate: float, stats: LoaderStats) -> None:
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_bad_rate is {max_rate}: expected a share from 0 to 1")
        self._shards, self._max_rate, self._stats = shards, max_rate, stats

    def record(self, row: int, reason: str) -> None:
        """Log and count one clip. Raises UserError above the rate."""
        self._stats.clips_skipped += 1
        skipped, read = self._stats.clips_skipped, self._stats.clips_read
        entry = self._shards.index[row]
        key, shard = entry["key"].decode(), self._shards.manifest.shards[int(entry["shard"])].name
        log.warning("skipping clip %s of %s: %s", key, shard, reason)
        if skipped > self._max_rate * max(read, GRACE_CLIPS):
            raise UserError(
                f"{skipped} of {read} clips are unusable, more than the allowed {self._max_rate:.2%}; "
                f"the last is {key} of {shard}: {reason}; run `svdata2vec verify`, or raise max_bad_rate"
            )
