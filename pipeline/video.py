"""The video of a batch's clips: decoded frames, or frames in blocks that are decoded when they are sampled.

`BlockClips` take the place of the frames that they decode to everywhere: on a device, in a batch, a model, a captured CUDA
graph. Only the functions of this file tell the two apart. B clips, T frames, K kept frames, E bytes of a stored frame, S side
of the output, H W picture, C colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.functional import gather_blocks, gather_frames
from svdata2vec.shards.blocks import BlockFormat


@dataclass(frozen=True)
class BlockClips:
    """uint8 frames (B, T, S, S, 3) that have not been decoded.

    Attributes:
        blocks_BTE: uint8, the stored frames of each clip; those after the last frame in use are not read.
        frame_BT: int64, the stored frame that is frame t; short clips repeat some.
        map_B4: int64, from output to packed pictures (`functional.block_maps`).
    """

    blocks_BTE: Tensor
    frame_BT: Tensor
    map_B4: Tensor
    form: BlockFormat
    size: int

    @classmethod
    def empty(
        cls, num_clips: int, num_frames: int, size: int, form: BlockFormat, device: str | torch.device
    ) -> "BlockClips":
        """Uninitialised memory for `num_clips` clips."""
        blocks = torch.empty((num_clips, num_frames, form.frame_bytes), dtype=torch.uint8, device=device)
        frames, maps = (torch.zeros((num_clips, count), dtype=torch.int64, device=device) for count in (num_frames, 4))
        return cls(blocks, frames, maps, form, size)

    @property
    def shape(self) -> torch.Size:
        """Shape of the decoded frames."""
        return torch.Size((*self.frame_BT.shape, self.size, self.size, 3))

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def ndim(self) -> int:
        return 5

    @property
    def device(self) -> torch.device:
        return self.blocks_BTE.device

    @property
    def nbytes(self) -> int:
        """Bytes of the clips as they are stored here, not decoded."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def is_cuda(self) -> bool:
        return self.blocks_BTE.is_cuda

    def __len__(self) -> int:
        return len(self.frame_BT)

    def __getitem__(self, clips: slice | list[int]) -> "BlockClips":
        """Some of the clips; a slice shares the memory."""
        return self._with([tensor[clips] for tensor in self._tensors()])

    def to(self, device: str | torch.device, non_blocking: bool = False) -> "BlockClips":
        return self._with([tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()])

    def clone(self) -> "BlockClips":
        return self._with([tensor.clone() for tensor in self._tensors()])

    def copy_(self, other: "BlockClips") -> None:
        """Copy other clips of this shape into these. Raises ValueError if their format or size differs."""
        if (self.form, self.size) != (other.form, other.size):
            raise ValueError(f"clips of {other.form} and size {other.size}, expected {self.form} and {self.size}")
        for mine, given in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(given)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for tensor in self._tensors():
            tensor.record_stream(stream)

    def gather(self, keep_BK: Tensor, **options: Any) -> Tensor:
        """`gather_blocks` of these clips."""
        form = (self.form.side, self.form.luma_bits, self.form.chroma_bits)
        return gather_blocks(self.blocks_BTE, self.frame_BT, self.map_B4, keep_BK, form, self.size, **options)

    def every_frame(self, **options: Any) -> Tensor:
        """(B, T, C, S, S), each frame in channels-last memory: `gather_blocks` of all frames with windows of one."""
        B, T = self.frame_BT.shape
        keep_BK = torch.arange(T, device=self.device).expand(B, T)
        return self.gather(keep_BK, window=1, **options).unflatten(0, (B, T))

    def _tensors(self) -> list[Tensor]:
        return [value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)]

    def _with(self, tensors: Sequence[Tensor]) -> "BlockClips":
        return replace(self, blocks_BTE=tensors[0], frame_BT=tensors[1], map_B4=tensors[2])


Video: TypeAlias = Tensor | BlockClips  # uint8 RGB (B, T, H, W, C), decoded or not


def frames_of(video_BTHWC: Video) -> Tensor:
    """The decoded frames, (B, T, H, W, C)."""
    if isinstance(video_BTHWC, Tensor):
        return video_BTHWC
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "dtype": torch.uint8}
    return video_BTHWC.every_frame(**levels).permute(0, 1, 3, 4, 2)


def windows_of(
    video_BTHWC: Video, keep_BK: Tensor, *, dtype: torch.dtype, channels: int | None, folded: bool, impl: Impl
) -> Tensor:
    """Normalised windows (B*K, channels, H, W) around the kept frames, as `functional.gather_frames` describes them."""
    gather = gather_frames if isinstance(video_BTHWC, Tensor) else BlockClips.gather
    options = {"dtype": dtype, "channels": channels, "folded": folded, "impl": impl}
    return gather(video_BTHWC, keep_BK, **options)  # type: ignore[arg-type]


def normalised(video_BTHWC: Video, mean_C: Tensor, std_C: Tensor, *, dtype: torch.dtype, impl: Impl) -> Tensor:
    """All frames, (B, C, T, H, W): (value - mean) / std."""
    if isinstance(video_BTHWC, Tensor):
        return ((video_BTHWC - mean_C) / std_C).to(dtype).permute(0, 4, 1, 2, 3)
    return video_BTHWC.every_frame(dtype=dtype, impl=impl).transpose(1, 2)
