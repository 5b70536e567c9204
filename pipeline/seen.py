"""Which frames of a training clip the student's video encoder sees; the others need not be decoded. Imports no torch.

Masks hide most frames, but each encoded frame is seen with its neighbours in time: with masks that keep 13 of 40 frames, 34.6
are seen on average. B clips, T sampled frames, E encoded frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.keyed import KeyedDraws
from svdata2vec.shards.reading.joined import own_key


def frame_order(
    keyed: KeyedDraws, seed: int, epoch: int, key: str, num_frames: int
) -> tuple[NDArray[np.int64], np.random.Generator]:
    """(T,) the order in which a clip's masks take its frames, and the generator, from which its first mask draws next.

    key: as batches name the clip; with several sets this is `SET/KEY`, of which only KEY decides the draws.
    """
    generator = keyed("mask", seed, epoch, own_key(key))
    return generator.permutation(num_frames), generator


@dataclass(frozen=True)
class FramesSeen:
    """The frames that the masks of a run let its video encoder see: a pure function of (seed, epoch, key), as masks are.

    num_frames: T. encoded: E, the frames that a clip's masks choose from. reach: neighbours seen on either side of each.
    """

    num_frames: int
    encoded: int
    reach: int
    seed: int

    def __call__(self, keys: Sequence[str], epoch: int) -> NDArray[np.bool_]:
        """(B, T), True = seen. keys: as batches name the clips."""
        keyed = KeyedDraws()
        encoded = [frame_order(keyed, self.seed, epoch, key, self.num_frames)[0][: self.encoded] for key in keys]
        around_BEW = np.stack(encoded)[..., None] + np.arange(2 * self.reach + 1)  # W: a frame and its neighbours
        seen_BT = np.zeros((len(keys), self.num_frames + 2 * self.reach), np.bool_)
        seen_BT[np.arange(len(keys))[:, None, None], around_BEW] = True
        return seen_BT[:, self.reach : self.reach + self.num_frames]

    @property
    def mean(self) -> float:
        """Number of a clip's frames that are seen, averaged over all masks."""
        frames, all_choices = range(self.num_frames), math.comb(self.num_frames, self.encoded)
        around = [min(t + self.reach + 1, self.num_frames) - max(t - self.reach, 0) for t in frames]
        return sum(1 - math.comb(self.num_frames - near, self.encoded) / all_choices for near in around)


def only_seen(frames_BT: NDArray[np.int64], seen_BT: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Frame numbers with each unseen frame replaced by the seen one before it (or, at the start, the one after it).

    A decoder decodes a repeated number only once.
    """
    last_BT = np.maximum.accumulate(np.where(seen_BT, np.arange(seen_BT.shape[1]), -1), axis=1)
    place_BT = np.where(last_BT < 0, seen_BT.argmax(axis=1)[:, None], last_BT)
    return np.take_along_axis(frames_BT, place_BT, axis=1)
