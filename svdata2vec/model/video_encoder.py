"""The video encoder: one token per frame from a window of five frames and a ResNet-18 trunk.

The stem is the Conv3d of the paper. For kept frames it runs, with the same weight, as a Conv2d over their gathered
five-frame windows, which is the same sum: nothing but the wanted frames is encoded
(svdata2vec/README.md, "Kept-frame encoding"). So it does for all frames of a clip, except on a CPU.

B clips, T frames, K kept frames, H W picture, C channels, D token width, F = B*T or B*K frames
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdata2vec.config.schema import ModelConfig
from svdata2vec.kernels.functional import IMAGENET_MEAN, IMAGENET_STD
from svdata2vec.model.block_ops import BlockOps, block_ops
from svdata2vec.model.checkpointing import run_part
from svdata2vec.model.prelu import PReLU
from svdata2vec.pipeline.video import Video, normalised, windows_of

STEM_KERNEL = (5, 7, 7)
WINDOW_CHANNELS_GPU = 16  # one more than 3 * 5: whole 16-byte vectors for the gathering kernel and the tensor cores


def folds_windows(device: torch.device) -> bool:
    """Whether 2x2 neighbouring pixels of the windows become channels: the stem's convolution of 7x7 taps, stride 2, is then
    one of 4x4 taps over 64 channels, which cuDNN has faster kernels for. On a CPU it gains nothing."""
    return device.type != "cpu"


def gathers_all_frames(device: torch.device) -> bool:
    """Whether all frames of a clip are encoded as its kept frames are, or by the Conv3d.

    On a CPU the Conv3d is 1.3 times faster (once, 2 cores, 2026-11-26, no record). On a GPU cuDNN's for three channels in
    bfloat16 is reported to be slow, and to have been wrong; not measured here.
    """
    return device.type != "cpu"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; PReLU after the first and after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, ops: BlockOps) -> None:
        super().__init__()
        self.ops = ops
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = PReLU(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x_FCHW: Tensor) -> Tensor:
        hidden = self.ops.norm_prelu(self.bn1, self.relu1, self.conv1(x_FCHW))
        return self.ops.norm_prelu(self.bn2, self.relu2, self.conv2(hidden), self.downsample(x_FCHW))


class Stem(nn.Module):
    """Conv3d 3 -> C (5, 7, 7), stride (1, 2, 2); BatchNorm; PReLU; 3x3 max pool, stride 2; frame by frame."""

    def __init__(self, channels: int, ops: BlockOps) -> None:
        super().__init__()
        self.ops = ops
        self.conv = nn.Conv3d(3, channels, STEM_KERNEL, (1, 2, 2), (2, 3, 3), bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = PReLU(channels)
        self.pool = nn.MaxPool2d(3, 2, 1)

    @torch.no_grad()
    def remove_temporal_mean(self) -> None:
        """Subtract from every weight its mean over time, so that the output is zero where nothing moves in a window."""
        self.conv.weight -= self.conv.weight.mean(dim=2, keepdim=True)

    def forward_all(self, video_BCTHW: Tensor) -> Tensor:
        """Normalised video -> features (B*T, C, H/4, W/4) of every frame."""
        x_BCTHW = self.conv(video_BCTHW)
        return self._finish(x_BCTHW.transpose(1, 2).flatten(0, 1))

    def forward_windows(self, windows_FCHW: Tensor, *, folded: bool = False) -> Tensor:
        """Normalised five-frame windows (F, 15 or more, H, W), channel = colour * 5 + frame -> (F, C, H/4, W/4).

        Channels beyond 15 are filling (see `WINDOW_CHANNELS_GPU`) and meet zero weights; `folded` windows have four times as
        many, as `kernels.functional.gather_frames` describes them.
        """
        channels = windows_FCHW.shape[1] // 4 if folded else windows_FCHW.shape[1]
        weight_2d = self.conv.weight.flatten(1, 2)  # (C, 3, 5, 7, 7) -> (C, 15, 7, 7)
        weight_2d = F.pad(weight_2d, (0, 0, 0, 0, 0, channels - weight_2d.shape[1]))
        stride, padding = (1, 0) if folded else (2, 3)
        if folded:  # taps -3 .. 3 of every second pixel: with a tap -4 of weight zero those of four folded pixels
            taps = F.pad(weight_2d, (1, 0, 1, 0)).unflatten(3, (4, 2)).unflatten(2, (4, 2))  # (C, S, 4, 2, 4, 2)
            weight_2d = taps.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        weight_2d = weight_2d.contiguous(memory_format=torch.channels_last)
        return self._finish(F.conv2d(windows_FCHW, weight_2d, stride=stride, padding=padding))

    def _finish(self, x_FCHW: Tensor) -> Tensor:
        return self.ops.norm_prelu_pool(self.bn, self.relu, self.pool, x_FCHW)


class VideoEncoder(nn.Module):
    """uint8 video -> one token per (kept) frame.

    The stages' convolutions start as He's, the stem's as PyTorch's, or without their mean over time (`model.stem_init`).

    Attributes:
        by_conv3d: all frames go through the Conv3d on every device, as in the authors' code: what benchmarks compare with.
    """

    by_conv3d = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        ops = block_ops(config.fused_blocks, config.impl)
        self.impl, self.checkpoint = config.impl, config.checkpoint_activations
        channels = config.stem_width
        self.stem = Stem(channels, ops)
        self.stages = nn.ModuleList()
        for stage in range(4):
            wide, stride = config.stem_width * 2**stage, 1 if stage == 0 else 2
            self.stages.append(nn.Sequential(BasicBlock(channels, wide, stride, ops), BasicBlock(wide, wide, 1, ops)))
            channels = wide
        self.proj = nn.Linear(channels, config.width)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)
        if config.stem_init == "change":
            self.stem.remove_temporal_mean()
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, video_BTHWC: Video, keep_BK: Tensor | None = None) -> Tensor:
        """Tokens of the kept frames (of all frames if `keep_BK` is None).

        Args:
            video_BTHWC: (B, T, H, W, 3) uint8 RGB, decoded or not; on a GPU of even height and width.
            keep_BK: (B, K) int64 frame numbers, or None.

        Returns:
            (B, K, D) or (B, T, D).
        """
        dtype = self._compute_dtype(video_BTHWC)
        if keep_BK is None and not self.by_conv3d and gathers_all_frames(video_BTHWC.device):
            batch, frames = video_BTHWC.shape[:2]
            keep_BK = torch.arange(frames, device=video_BTHWC.device).expand(batch, -1)
        if keep_BK is None:
            x_FCHW = self.stem.forward_all(normalised(video_BTHWC, self.mean, self.std, dtype=dtype, impl=self.impl))
        else:
            folded = folds_windows(video_BTHWC.device)
            channels = WINDOW_CHANNELS_GPU if folded else None
            windows_FCHW = windows_of(video_BTHWC, keep_BK, dtype=dtype, channels=channels, folded=folded, impl=self.impl)
            x_FCHW = self.stem.forward_windows(windows_FCHW, folded=folded)
        for stage in self.stages:
            x_FCHW = run_part(stage, x_FCHW, checkpoint=self.checkpoint)
        features_FC = x_FCHW.mean(dim=(2, 3))
        return self.proj(features_FC).unflatten(0, (video_BTHWC.shape[0], -1))

    def _compute_dtype(self, video: Video) -> torch.dtype:
        if torch.is_autocast_enabled(video.device.type):
            return torch.get_autocast_dtype(video.device.type)
        return self.proj.weight.dtype
