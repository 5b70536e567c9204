"""SV-data2vec: the student, and the encoder that pretraining leaves to the classifier (the paper, section 3).

B clips, N masks, one or more per clip, M persons, T frames, E encoded frames, K kept frames, V joints, C coordinates,
H W picture, D width, L blocks
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import ModelConfig, PretrainConfig
from svdata2vec.kernels.functional import fuse_tokens, restore_tokens
from svdata2vec.model.checkpointing import run_part
from svdata2vec.model.masking import Masks
from svdata2vec.model.transformer import Block, initialise_transformer
from svdata2vec.model.video_encoder import STEM_KERNEL, VideoEncoder
from svdata2vec.pipeline.seen import FramesSeen
from svdata2vec.pipeline.video import Video


class SkeletonEmbedding(nn.Module):
    """One token per frame: a linear map of all coordinates of all persons (the paper's (1, V) convolution).

    With `motion`, beyond the paper, plus one of how far each joint goes from the frame before to the frame after, times
    `motion`: next to pixel coordinates the temporal embedding nearly vanishes, and little else tells which way a clip moves.
    """

    def __init__(self, persons: int, joints: int, coordinates: int, width: int, motion: float = 0.0) -> None:
        super().__init__()
        self.input_shape, self.motion = (persons, joints, coordinates), motion
        self.proj = nn.Linear(persons * coordinates * joints, width)  # features ordered person, coordinate, joint
        if motion:
            self.motion_proj = nn.Linear(persons * coordinates * joints, width, bias=False)

    def forward(self, joints_BMTVC: Tensor) -> Tensor:
        found = (joints_BMTVC.shape[1], *joints_BMTVC.shape[3:])
        if found != self.input_shape:
            raise ValueError(f"joints have (persons, joints, coordinates) {found}, the model expects {self.input_shape}")
        # Pixel coordinates need more than bfloat16's eight bits: these small products stay in float32.
        with torch.autocast(joints_BMTVC.device.type, enabled=False):
            tokens_BTD: Tensor = self.proj(of_frames(joints_BMTVC))
            if self.motion:
                tokens_BTD = tokens_BTD + self.motion_proj(of_frames(motion_of(joints_BMTVC) * self.motion))
            return tokens_BTD


def of_frames(joints_BMTVC: Tensor) -> Tensor:
    """-> (B, T, M*C*V)."""
    return joints_BMTVC.permute(0, 2, 1, 4, 3).flatten(2)


def motion_of(joints_BMTVC: Tensor) -> Tensor:
    """How far each joint goes from the frame before to the frame after, at the ends of a clip from or to the frame itself.

    0 where it is missing (0, 0) in either. Same shape.
    """
    before, after = neighbours(joints_BMTVC)
    there = (before != 0).any(-1, keepdim=True) & (after != 0).any(-1, keepdim=True)
    return torch.where(there, after - before, 0.0)


def neighbours(x_BMTVC: Tensor) -> tuple[Tensor, Tensor]:
    """What is in the frame before and in the frame after; at the ends of a clip, in the frame itself. Same shapes."""
    before = torch.cat([x_BMTVC[:, :, :1], x_BMTVC[:, :, :-1]], dim=2)
    after = torch.cat([x_BMTVC[:, :, 1:], x_BMTVC[:, :, -1:]], dim=2)
    return before, after


def _temporal_embedding(num_frames: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_frames, width), std=0.02))


class Encoder(nn.Module):
    """Everything that fine-tuning keeps: the embeddings, the temporal embedding, the blocks and the final norm.

    Args:
        config: widths and depths.
        num_frames: T.
        num_joints: V of the joint layout.
        modality: "both", or "rgb" or "skeleton" to leave the other modality's embedding out.
        drop_path: stochastic depth of the last block, linear in depth from 0.
    """

    def __init__(
        self, config: ModelConfig, num_frames: int, num_joints: int, *, modality: str = "both", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if modality != "skeleton":
            self.video_encoder = VideoEncoder(config)
            self.video_encoder.proj.apply(initialise_transformer)
        if modality != "rgb":
            self.skeleton_embed = SkeletonEmbedding(
                config.persons, num_joints, config.coordinates, config.width, config.joint_motion
            )
        self.checkpoint = config.checkpoint_activations
        self.temporal_embed = _temporal_embedding(num_frames, config.width)
        rates = [drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width)
        self.blocks.apply(initialise_transformer)

    def encode(self, tokens_BND: Tensor) -> Tensor:
        for block in self.blocks:
            tokens_BND = run_part(block, tokens_BND, checkpoint=self.checkpoint)
        return self.norm(tokens_BND)

    def forward(self, video_BTHWC: Video | None, joints_BMTVC: Tensor | None) -> Tensor:
        """Features (B, T, D) of unmasked input; with both modalities their tokens are averaged."""
        tokens = []
        if video_BTHWC is not None:
            tokens.append(self.video_encoder(video_BTHWC))
        if joints_BMTVC is not None:
            tokens.append(self.skeleton_embed(joints_BMTVC))
        if not tokens:
            raise ValueError("the encoder needs video, joints, or both; it was given neither")
        return self.encode(sum(tokens[1:], tokens[0]) / len(tokens) + self.temporal_embed)


class Decoder(nn.Module):
    """Puts mask tokens back in temporal order and predicts the targets of all frames."""

    def __init__(self, config: ModelConfig, num_frames: int, outputs: int | None = None) -> None:
        super().__init__()
        self.impl, self.checkpoint = config.impl, config.checkpoint_activations
        self.embed = nn.Linear(config.width, config.width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.width), std=0.02))
        self.temporal_embed = _temporal_embedding(num_frames, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(config.width)
        self.pred = nn.Linear(config.width, outputs or config.width)
        self.apply(initialise_transformer)

    def forward(self, encoded_NKD: Tensor, keep_NK: Tensor) -> Tensor:
        """(N, K, D) encoder output of the kept frames -> (N, T, D) prediction."""
        embedded_NKD = self.embed(encoded_NKD)
        tokens_NTD = restore_tokens(embedded_NKD, self.mask_token[0, 0], keep_NK, self.temporal_embed[0], impl=self.impl)
        for block in self.blocks:
            tokens_NTD = run_part(block, tokens_NTD, checkpoint=self.checkpoint)
        return self.pred(self.norm(tokens_NTD))


@dataclass(frozen=True)
class StudentOutput:
    """What one forward pass of the student leaves for the loss.

    Attributes:
        prediction_NTD: predicted targets of all frames from each mask, with gradient.
        teacher_tokens_BTD: the teacher's input: embedded tokens with their temporal embedding, without gradient.
    """

    prediction_NTD: Tensor
    teacher_tokens_BTD: Tensor


class SVData2Vec(nn.Module):
    """The student (paper section 3): masked video and skeleton tokens in, predicted teacher latents out.

    With `encode="all_frames"` it encodes every frame and selects tokens afterwards, as the original does, so that BatchNorm
    sees the statistics of all frames (svdata2vec/README.md, "Kept-frame encoding").

    Args:
        config: of the run.
        num_joints: V of the joint layout.
    """

    def __init__(self, config: PretrainConfig, num_joints: int) -> None:
        super().__init__()
        self.encoder = Encoder(config.model, config.data.num_frames, num_joints)
        joints = config.model.persons * config.model.coordinates * num_joints
        if config.target.kind == "standardised_joints" and config.model.joint_motion:
            joints *= 2  # with how far each goes
        self.decoder = Decoder(config.model, config.data.num_frames, joints if config.target.predicts_joints else None)
        self.all_frames = config.encode == "all_frames"
        self.student_tokens = config.target.student_tokens
        self.impl = config.model.impl

    def forward(self, video_BTHWC: Video, joints_BMTVC: Tensor, masks: Masks) -> StudentOutput:
        """Predict the teacher's latents of all frames from what the masks leave (paper, section 3).

        Args:
            video_BTHWC: (B, T, H, W, 3) uint8 RGB.
            joints_BMTVC: (B, M, T, V, C) float32, pixels of the same crop, zero = missing.
            masks: what the student sees. Those of a clip share its encoded frames and the teacher's tokens.
        """
        encoder = self.encoder
        skeleton_BTD = encoder.skeleton_embed(joints_BMTVC)
        if self.all_frames:
            video_BTD = encoder.video_encoder(video_BTHWC)
            video_NKD = masks.kept_tokens(video_BTD)
        else:
            video_NKD = masks.kept_tokens(encoder.video_encoder(video_BTHWC, masks.encoded_BE), masks.encoded_BE)
        tokens_NKD = fuse_tokens(
            video_NKD,
            masks.of_clips(skeleton_BTD.to(video_NKD.dtype)),
            masks.keep_NK,
            masks.skeleton_hidden_NK,
            encoder.temporal_embed[0],
            impl=self.impl,
        )
        prediction_NTD = self.decoder(encoder.encode(tokens_NKD), masks.keep_NK)
        teacher_tokens_BTD = skeleton_BTD.detach()
        if self.student_tokens == "rgb":
            teacher_tokens_BTD = video_BTD.detach().float()
        elif self.student_tokens == "both":
            teacher_tokens_BTD = (teacher_tokens_BTD + video_BTD.detach()) / 2
        return StudentOutput(prediction_NTD, teacher_tokens_BTD + encoder.temporal_embed.detach())


def frames_seen(config: PretrainConfig) -> FramesSeen | None:
    """The frames of a clip whose video a run needs: the windows around those that its masks let the student encode.

    None: all of them, where all are encoded, a teacher sees the video, or contrast changes around the mean grey of the clip.
    """
    if config.encode == "all_frames" or config.target.teacher_reads_video or config.data.augment.contrast:
        return None
    return FramesSeen(config.data.num_frames, config.num_encoded, STEM_KERNEL[0] // 2, config.run.seed)
