"""`ClipBatch`, which the pipeline delivers. It checks its own shapes.

B clips, T frames, H W picture, M persons, V joints, C coordinates (x, y).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svdata2vec.pipeline.video import Video

# name, data type, dimensions
_TENSORS = (
    ("label_B", torch.int64, 1), ("view_B", torch.int64, 1),
    ("video_BTHWC", torch.uint8, 5), ("joints_BMTVC", torch.float32, 5),
)


@dataclass(frozen=True)
class ClipBatch:
    """A batch of clips.

    Attributes:
        video_BTHWC: uint8 RGB, decoded or not (video.py), or None in skeleton-only mode.
        joints_BMTVC: float32 pixels of the same pictures (pixel centres at integer + 0.5), (0, 0) = missing, or None.
        label_B: int64.
        keys: B clip names.
        view_B: int64 number of each entry's evaluation view; None if every clip has one view.
    """

    video_BTHWC: Video | None
    joints_BMTVC: Tensor | None
    label_B: Tensor
    keys: tuple[str, ...]
    view_B: Tensor | None = None

    def __post_init__(self) -> None:
        for name, dtype, ndim in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None and (tensor.dtype, tensor.ndim, *tensor.shape[:1]) != (dtype, ndim, len(self.keys)):
                raise ValueError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}: "
                    f"expected {dtype} with {ndim} dimensions and {len(self.keys)} clips"
                )
        if self.video_BTHWC is not None and self.video_BTHWC.shape[-1] != 3:
            raise ValueError(f"video_BTHWC has shape {tuple(self.video_BTHWC.shape)}: expected 3 colours last")
        if self.video_BTHWC is not None and self.joints_BMTVC is not None:
            video_frames, joint_frames = self.video_BTHWC.shape[1], self.joints_BMTVC.shape[2]
            if video_frames != joint_frames:
                raise ValueError(f"video_BTHWC has {video_frames} frames but joints_BMTVC {joint_frames}")

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: str | torch.device) -> "ClipBatch":
        """The same batch with every tensor on a device."""
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Video]:
        """The tensors of the batch by name, without those that are None; the video may be `BlockClips`."""
        return {name: tensor for name, _, _ in _TENSORS if (tensor := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        tensors = {"video_BTHWC": self.video_BTHWC, "joints_BMTVC": self.joints_BMTVC}
        shapes = ", ".join(f"{name}={None if value is None else tuple(value.shape)}" for name, value in tensors.items())
        return f"ClipBatch({shapes}, clips={len(self)})"
