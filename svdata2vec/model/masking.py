"""Which frames the student sees: a pure function of (seed, epoch, clip key).

Convention, everywhere: `keep_BK` holds the numbers of the kept frames in rising order; `skeleton_hidden_BK` is True where a
kept frame shows its video only; `scored_BT` is True where the skeleton is hidden from the student, and the loss is taken.

B clips, T frames, K kept frames
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from svdata2vec.pipeline.keyed import keyed_generator


@dataclass(frozen=True)
class Masks:
    """What is kept, hidden and scored (svdata2vec/README.md, "Masks").

    Attributes:
        keep_BK: int64, frames whose video token the student sees, in rising order.
        skeleton_hidden_BK: bool, True = this kept frame shows its video only.
        scored_BT: bool, True = skeleton hidden from the student, scored by the loss.
    """

    keep_BK: Tensor
    skeleton_hidden_BK: Tensor
    scored_BT: Tensor

    def __post_init__(self) -> None:
        if self.keep_BK.shape != self.skeleton_hidden_BK.shape or self.keep_BK.dtype != torch.int64:
            raise ValueError(
                f"keep_BK {tuple(self.keep_BK.shape)} {self.keep_BK.dtype} and skeleton_hidden_BK "
                f"{tuple(self.skeleton_hidden_BK.shape)}: expected one shape, int64 and bool"
            )
        if self.scored_BT.dtype != torch.bool or self.skeleton_hidden_BK.dtype != torch.bool:
            raise ValueError("skeleton_hidden_BK and scored_BT must be bool (True = hidden, True = scored)")

    @classmethod
    def given(cls, keep_BK: Tensor, skeleton_hidden_BK: Tensor, num_frames: int) -> "Masks":
        """Masks from chosen frames in any order; what is scored follows from them.

        Args:
            keep_BK: (B, K) int64, frames whose video token the student sees, each once.
            skeleton_hidden_BK: (B, K) bool, True = the frame at this place of `keep_BK` shows its video only.
            num_frames: T.
        """
        keep_BK, order_BK = keep_BK.sort(dim=1)
        hidden_BK = skeleton_hidden_BK.gather(1, order_BK)
        return cls(keep_BK, hidden_BK, scored_frames(keep_BK, hidden_BK, num_frames))

    def to(self, device: torch.device) -> "Masks":
        return Masks(*(x.to(device, non_blocking=True) for x in (self.keep_BK, self.skeleton_hidden_BK, self.scored_BT)))


def mask_counts(num_frames: int, video_mask_ratio: float, skeleton_mask_ratio: float) -> tuple[int, int]:
    """Number of kept frames K, and of those that show their skeleton too (paper: 13 and 3 of 40)."""
    kept = int(num_frames * (1 - video_mask_ratio))
    paired = int(kept * (1 - skeleton_mask_ratio))
    if kept < 1:
        raise ValueError(
            f"video_mask_ratio {video_mask_ratio} keeps none of {num_frames} frames; lower the ratio or take more frames"
        )
    return kept, paired


def draw_masks(
    keys: Sequence[str], num_frames: int, video_mask_ratio: float, skeleton_mask_ratio: float, seed: int, epoch: int
) -> Masks:
    """Draw the masks of a batch on the CPU.

    Each clip has a generator of its own, keyed by (seed, epoch, key): the masks of a clip depend neither on its batch
    nor on its rank.
    """
    kept, paired = mask_counts(num_frames, video_mask_ratio, skeleton_mask_ratio)
    keep_BK = np.empty((len(keys), kept), np.int64)
    hidden_BK = np.ones((len(keys), kept), np.bool_)
    for row, key in enumerate(keys):
        rng = keyed_generator("mask", seed, epoch, key)
        keep_BK[row] = np.sort(rng.permutation(num_frames)[:kept])
        hidden_BK[row, rng.permutation(kept)[:paired]] = False
    return Masks.given(torch.from_numpy(keep_BK), torch.from_numpy(hidden_BK), num_frames)


def scored_frames(keep_BK: Tensor, skeleton_hidden_BK: Tensor, num_frames: int) -> Tensor:
    """(B, T) bool: every frame but those whose skeleton the student sees."""
    scored_BT = torch.ones(keep_BK.shape[0], num_frames, dtype=torch.bool, device=keep_BK.device)
    return scored_BT.scatter(1, keep_BK, skeleton_hidden_BK)
