"""Controls: the same student with other targets, to find out what of the method helps (svdata2vec/README.md, "Controls").

B clips, N masks, M persons, T frames, V joints, C coordinates, H W picture, D width, O = M * C * V
"""

import copy

import torch
from torch import Tensor, nn

from svdata2vec.model.execution import use_channels_last
from svdata2vec.model.masking import Masks
from svdata2vec.model.student import Encoder
from svdata2vec.model.teacher import Teacher
from svdata2vec.pipeline.video import Video

EMBEDDINGS = {"rgb": ("video_encoder",), "skeleton": ("skeleton_embed",), "both": ("video_encoder", "skeleton_embed")}


class EncoderTeacher(Teacher):
    """A float32 copy of the whole encoder but its last norm: it embeds video and joints itself, all frames, without gradient.

    Statistics of BatchNorm are averaged as weights are. With a decay of 1 it stays the random network that it begins as.

    Args:
        encoder: the student's.
        reads: "skeleton", "rgb", or "both", whose tokens are averaged.
    """

    def __init__(self, encoder: Encoder, reads: str) -> None:
        super().__init__(encoder.blocks)
        copied = {name: copy.deepcopy(getattr(encoder, name)).float() for name in EMBEDDINGS[reads]}
        self.embeddings = nn.ModuleDict(copied).requires_grad_(False).eval()
        self.temporal_embed = nn.Parameter(encoder.temporal_embed.detach().clone(), requires_grad=False)
        use_channels_last(self)

    @torch.no_grad()
    def tokens(self, student_tokens_BTD: Tensor, video_BTHWC: Video, joints_BMTVC: Tensor) -> Tensor:
        inputs = {"video_encoder": video_BTHWC, "skeleton_embed": joints_BMTVC}
        embedded = [embed(inputs[name]).float() for name, embed in self.embeddings.items()]
        return sum(embedded[1:], embedded[0]) / len(embedded) + self.temporal_embed

    @torch.no_grad()
    def follow(self, encoder: Encoder, decay: float) -> None:
        super().follow(encoder, decay)
        mine, theirs = [self.temporal_embed.data], [encoder.temporal_embed.detach()]
        for name, embed in self.embeddings.items():
            mine += _values(embed)
            theirs += _values(getattr(encoder, name))
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)


def _values(module: nn.Module) -> list[Tensor]:
    """Weights and statistics; what counts batches is left out."""
    return [value.detach() for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]


def joint_targets(joints_BMTVC: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Joints as targets (B, T, O), and where they are present (bool): from the crop's centre, in quarters of its side.

    The order is that of the skeleton embedding: person, coordinate, joint.
    """
    present_BMTVC = (joints_BMTVC != 0).any(-1, keepdim=True).expand_as(joints_BMTVC)
    scaled_BMTVC = torch.where(present_BMTVC, (joints_BMTVC - size / 2) / (size / 4), 0.0)
    target_BTO, present_BTO = (x.permute(0, 2, 1, 4, 3).flatten(2) for x in (scaled_BMTVC, present_BMTVC))
    return target_BTO, present_BTO


def joint_loss(prediction_NTO: Tensor, target_BTO: Tensor, present_BTO: Tensor, scored_NT: Tensor, masks: Masks) -> Tensor:
    """Squared error, mean over the coordinates that are present in the scored frames; 0 where there is none."""
    counted_NTO = masks.of_clips(present_BTO) & scored_NT[..., None]
    error_NTO = (prediction_NTO - masks.of_clips(target_BTO)).square()
    return torch.where(counted_NTO, error_NTO, 0.0).sum() / counted_NTO.sum().clamp_min(1)
