"""Controls: the same student with other targets, to find out which parts of the method help (svdata2vec/README.md, "Controls").

B clips, N masks, M persons, T frames, V joints, C coordinates, H W picture, D width, O values of a frame
"""

import copy

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.execution import use_channels_last
from svdata2vec.model.masking import Masks
from svdata2vec.model.student import Encoder, motion_of, neighbours, of_frames
from svdata2vec.model.teacher import Teacher
from svdata2vec.pipeline.video import Video

LEAST_SPREAD = 1 / 200  # of the crop's side: so that noise of a clip without movement is not scaled up to the size of one

EMBEDDINGS = {"rgb": ("video_encoder",), "skeleton": ("skeleton_embed",), "both": ("video_encoder", "skeleton_embed")}


class EncoderTeacher(Teacher):
    """A float32 copy of the whole encoder but its last norm: it embeds video and joints itself, all frames, without gradient.

    Statistics of BatchNorm are averaged as weights are. With a decay of 1 it stays the random network that it starts as.

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
    def update(self, encoder: Encoder, decay: float) -> None:
        super().update(encoder, decay)
        mine, theirs = [self.temporal_embed.data], [encoder.temporal_embed.detach()]
        for name, embed in self.embeddings.items():
            mine += _values(embed)
            theirs += _values(getattr(encoder, name))
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)


def _values(module: nn.Module) -> list[Tensor]:
    """Weights and running statistics, without the counters of batches."""
    return [value.detach() for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]


def joint_targets(joints_BMTVC: Tensor, config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Targets made of the joints (B, T, O), and where they are present (bool), by `config.target.kind`.

    "joints": coordinates from the crop's centre, in quarters of its side. "standardised_joints": `standardised` coordinates
    from their means over the clip, after them with `model.joint_motion` also how far each joint goes. The order is that of
    the skeleton embedding: person, coordinate, joint.
    """
    size, present_BMTVC = config.data.size, (joints_BMTVC != 0).any(-1, keepdim=True).expand_as(joints_BMTVC)
    if config.target.kind == "joints":
        found = [(torch.where(present_BMTVC, (joints_BMTVC - size / 2) / (size / 4), 0.0), present_BMTVC)]
    else:
        mean_BM1VC = joints_BMTVC.sum(2, keepdim=True) / present_BMTVC.sum(2, keepdim=True).clamp_min(1)
        found = [(standardised(joints_BMTVC - mean_BM1VC, present_BMTVC, size), present_BMTVC)]
        if config.model.joint_motion:
            before, after = neighbours(present_BMTVC)
            found.append((standardised(motion_of(joints_BMTVC), before & after, size), before & after))
    target_BTO, present_BTO = (torch.cat([of_frames(x) for x in parts], dim=-1) for parts in zip(*found, strict=True))
    return target_BTO, present_BTO


def standardised(x_BMTVC: Tensor, present_BMTVC: Tensor, size: int) -> Tensor:
    """Values in units of their root mean square over the clip (1/200 of the crop's side at least), 0 where none is present."""
    x_BMTVC = torch.where(present_BMTVC, x_BMTVC, 0.0)
    of_clip = (1, 2, 3, 4)
    count_B1111 = present_BMTVC.sum(of_clip, keepdim=True).clamp_min(1)
    spread_B1111 = (x_BMTVC.square().sum(of_clip, keepdim=True) / count_B1111).sqrt()
    return x_BMTVC / spread_B1111.clamp_min(LEAST_SPREAD * size)


def joint_loss(prediction_NTO: Tensor, target_BTO: Tensor, present_BTO: Tensor, scored_NT: Tensor, masks: Masks) -> Tensor:
    """Squared error, mean over the coordinates that are present in the scored frames; 0 where there is none."""
    counted_NTO = masks.of_clips(present_BTO) & scored_NT[..., None]
    error_NTO = (prediction_NTO - masks.of_clips(target_BTO)).square()
    return torch.where(counted_NTO, error_NTO, 0.0).sum() / counted_NTO.sum().clamp_min(1)
