"""Which frames the student sees: a pure function of (seed, epoch, clip key, repeat).

Convention, everywhere: `keep_NK` holds the numbers of the kept frames in ascending order; `skeleton_hidden_NK` is True where a
kept frame shows its video only; `scored_NT` is True where the skeleton is hidden from the student, and the loss is taken.

B clips, R masks of each clip (repeats), N = B * R masks, those of a clip beside each other; T frames, E encoded frames of a
clip, K kept frames of a mask
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdata2vec.config.schema import MaskConfig, mask_counts
from svdata2vec.pipeline.keyed import KeyedDraws
from svdata2vec.pipeline.seen import frame_order
from svdata2vec.shards.reading.joined import own_key


@dataclass(frozen=True)
class Masks:
    """What is encoded, kept, hidden and scored (svdata2vec/README.md, "Masks").

    Attributes:
        keep_NK: int64, frames whose video token the student sees, in ascending order.
        skeleton_hidden_NK: bool, True = this kept frame shows its video only.
        scored_NT: bool, True = skeleton hidden from the student, scored by the loss.
        encoded_BE: int64, frames of a clip that the video encoder sees, in ascending order: all that its masks keep, or more.
    """

    keep_NK: Tensor
    skeleton_hidden_NK: Tensor
    scored_NT: Tensor
    encoded_BE: Tensor

    def __post_init__(self) -> None:
        if self.keep_NK.shape != self.skeleton_hidden_NK.shape or self.keep_NK.dtype != torch.int64:
            raise ValueError(
                f"keep_NK {tuple(self.keep_NK.shape)} {self.keep_NK.dtype} and skeleton_hidden_NK "
                f"{tuple(self.skeleton_hidden_NK.shape)}: expected one shape, int64 and bool"
            )
        if self.scored_NT.dtype != torch.bool or self.skeleton_hidden_NK.dtype != torch.bool:
            raise ValueError("skeleton_hidden_NK and scored_NT must be bool (True = hidden, True = scored)")
        (masks, kept), (clips, encoded) = self.keep_NK.shape, self.encoded_BE.shape
        if masks % clips or encoded < kept or self.encoded_BE.dtype != torch.int64:
            raise ValueError(
                f"encoded_BE {(clips, encoded)} {self.encoded_BE.dtype} and keep_NK {(masks, kept)}: expected int64, as many "
                "masks for every clip, and all frames that they keep"
            )

    @classmethod
    def given(
        cls, keep_NK: Tensor, skeleton_hidden_NK: Tensor, num_frames: int, encoded_BE: Tensor | None = None
    ) -> "Masks":
        """Masks from chosen frames in any order, on the CPU; what is scored follows from them.

        Args:
            keep_NK: (N, K) int64, frames whose video token the student sees, each once.
            skeleton_hidden_NK: (N, K) bool, True = the frame at this place of `keep_NK` shows its video only.
            num_frames: T.
            encoded_BE: (B, E) int64, frames that the video encoder sees, each once; None = one mask per clip, its kept ones.
        """
        keep_NK, order_NK = keep_NK.sort(dim=1)
        hidden_NK = skeleton_hidden_NK.gather(1, order_NK)
        encoded_BE = keep_NK if encoded_BE is None else encoded_BE.sort(dim=1).values
        scored_NT = torch.from_numpy(scored_frames(keep_NK.numpy(), hidden_NK.numpy(), num_frames))
        return cls(keep_NK, hidden_NK, scored_NT, encoded_BE)

    @property
    def repeats(self) -> int:
        """R, masks per clip."""
        return self.keep_NK.shape[0] // self.encoded_BE.shape[0]

    @property
    def frames_without_video(self) -> Tensor:
        """bool, True = the student does not see the frame's video, nor its skeleton."""
        return torch.ones_like(self.scored_NT).scatter(1, self.keep_NK, False)

    def to(self, device: torch.device) -> "Masks":
        """On a device, without waiting for it (which a GPU asks of memory that the system may not move: `pin_memory`)."""
        here = vars(self).values()
        pinned = [tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor for tensor in here]
        return Masks(*(tensor.to(device, non_blocking=True) for tensor in pinned))

    def of_clips(self, x_B: Tensor) -> Tensor:
        """(B, ...) -> (N, ...): what belongs to a clip, for each of its masks."""
        return self._beside(x_B).flatten(0, 1)

    def kept_tokens(self, tokens_BFD: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        """(B, F, D) tokens of some frames of a clip -> (N, K, D) those of the frames that each mask keeps.

        Args:
            tokens_BFD: a token per frame.
            frames_BF: the frames that these are, in ascending order; None = all of the clip.
        """
        if frames_BF is not None and frames_BF.shape == self.keep_NK.shape:
            return tokens_BFD  # one mask per clip, which keeps them all
        place_NK = self.keep_NK if frames_BF is None else torch.searchsorted(self.of_clips(frames_BF), self.keep_NK)
        place_BRKD = place_NK.unflatten(0, (-1, self.repeats))[..., None].expand(-1, -1, -1, tokens_BFD.shape[-1])
        # From a view per mask: no two masks add to one place of the gradient, so that its sum has one order.
        return self._beside(tokens_BFD).gather(2, place_BRKD).flatten(0, 1)

    def _beside(self, x_B: Tensor) -> Tensor:
        """(B, ...) -> (B, R, ...), a view."""
        return x_B[:, None].expand(-1, self.repeats, *x_B.shape[1:])


def draw_masks(keys: Sequence[str], num_frames: int, config: MaskConfig, seed: int, epoch: int) -> Masks:
    """Draw the masks of a batch on the CPU.

    A clip's first mask has a generator keyed by (seed, epoch, key), every further one its own, keyed by its number too: a
    mask depends neither on the batch nor on the rank, nor on how many masks are drawn.

    Args:
        keys: names of the clips; of several sets `SET/KEY`, which draw by KEY alone, as they do when their set is read alone.
        num_frames: T.
        config: ratios, masks per clip (R), and frames of a clip that its masks choose from (E).
        seed, epoch: of the run.
    """
    kept, paired = mask_counts(num_frames, config.video_ratio, config.skeleton_ratio)
    num_encoded = config.encoded_frames or kept
    encoded: list[NDArray[np.int64]] = []
    keep: list[NDArray[np.int64]] = []
    shown: list[NDArray[np.int64]] = []  # places among the kept frames in ascending order
    keyed = KeyedDraws()
    for key in keys:
        order, rng = frame_order(keyed, seed, epoch, key, num_frames)
        encoded.append(order[:num_encoded])
        for repeat in range(config.repeats):
            if repeat:
                rng = keyed("mask", seed, epoch, own_key(key), repeat)
                order = np.sort(encoded[-1])[rng.permutation(len(encoded[-1]))]
            keep.append(order[:kept])
            shown.append(rng.permutation(kept)[:paired])
    keep_NK, encoded_BE = np.sort(_rows(keep, kept)), np.sort(_rows(encoded, num_encoded))
    hidden_NK = np.ones(keep_NK.shape, np.bool_)
    hidden_NK[np.arange(len(keep))[:, None], _rows(shown, paired)] = False
    # NumPy's: PyTorch's operators, of so few numbers, take several times as long.
    drawn = keep_NK, hidden_NK, scored_frames(keep_NK, hidden_NK, num_frames), encoded_BE
    return Masks(*map(torch.from_numpy, drawn))


def _rows(numbers: Sequence[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """(rows, count), also without rows or numbers."""
    return np.concatenate([*numbers, np.empty(0, np.int64)]).reshape(len(numbers), count)


def scored_frames(
    keep_NK: NDArray[np.int64], skeleton_hidden_NK: NDArray[np.bool_], num_frames: int
) -> NDArray[np.bool_]:
    """(N, T): every frame but those whose skeleton the student sees."""
    scored_NT = np.ones((len(keep_NK), num_frames), np.bool_)
    scored_NT[np.arange(len(keep_NK))[:, None], keep_NK] = skeleton_hidden_NK
    return scored_NT
