"""Mixup in fine-tuning: each clip blended with another one of its batch, and the loss shared between their labels.

B clips, classes C
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from svdata2vec.pipeline.video import Video, frames_of


@dataclass(frozen=True)
class Mixture:
    """How a batch is blended.

    Attributes:
        share: of each clip itself, 0 to 1; 1 leaves the batch as it is.
        partner_B: int64, the clip that is blended in.
    """

    share: float
    partner_B: Tensor

    def blend(self, x: Video | None) -> Video | None:
        """share * x + (1 - share) * x of the partners, in the dtype of x (uint8 is rounded).

        Joints are blended as coordinates: their embedding is linear (without `model.joint_motion`), so that is the blend of
        their tokens.
        """
        if x is None or self.share == 1:
            return x
        x = frames_of(x)
        mixed = torch.lerp(x[self.partner_B].float(), x.float(), self.share)
        return mixed.to(x.dtype) if x.is_floating_point() else mixed.round_().to(x.dtype)

    def loss(self, logits_BC: Tensor, label_B: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy with both labels, weighted by their shares."""
        own = F.cross_entropy(logits_BC, label_B, label_smoothing=label_smoothing)
        if self.share == 1:
            return own
        other = F.cross_entropy(logits_BC, label_B[self.partner_B], label_smoothing=label_smoothing)
        return self.share * own + (1 - self.share) * other


def draw_mixture(alpha: float, batch_size: int, device: torch.device) -> Mixture:
    """One share for the batch from Beta(alpha, alpha), partners at random; alpha 0 leaves the batch as it is.

    Draws from PyTorch's own random state, which the training step seeds.
    """
    if alpha == 0:
        return Mixture(1.0, torch.arange(batch_size, device=device))
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return Mixture(share, torch.randperm(batch_size, device=device))
