"""Checks of a kernel's arguments: every failure is one ValueError that says what was found and what was expected.

They check only shapes, dtypes and devices, so that they cost no synchronisation and `torch.compile` can trace them.
`require_kept_frames` and `require_numbers` read values, and therefore only check tensors in main memory.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_shapes(sizes: Mapping[str, int], /, **tensors: Tensor | None) -> dict[str, int]:
    """Require the shapes that the tensors' names promise: `x_BTD` has three axes, and a letter has one size in all tensors.

    Args:
        sizes: sizes of letters that are known beforehand.
        tensors: in the order in which their axes become known; all must be on the device of the first. None = absent.

    Returns:
        The size of every letter.
    """
    known = dict(sizes)
    first_name, first = next((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        axes = name.rpartition("_")[2]
        if tensor.ndim != len(axes) or any(known.get(axis, got) != got for axis, got in zip(axes, tensor.shape, strict=True)):
            expected = ", ".join(f"{axis}={known[axis]}" if axis in known else axis for axis in axes)
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected ({expected})")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device} but {first_name} is on {first.device}; move one of them")
        known.update(zip(axes, tensor.shape, strict=True))
    return known


def require_dtypes(allowed: Sequence[torch.dtype], /, **tensors: Tensor | None) -> None:
    """Require that each tensor has one of the allowed dtypes; None = absent."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(str(dtype) for dtype in allowed)}")


def require_kept_frames(keep_BK: Tensor, num_frames: int) -> None:
    """Require int64 frame numbers in [0, num_frames), strictly increasing in each row.

    A tensor on a GPU isn't read, since the host would have to wait for the GPU. There, the kernels treat a frame outside the
    clip as missing and access no memory outside their tensors. The gradient of the token of such a frame is undefined: each
    frame writes the gradient of its own token (of the last one, if it has several), and the others are not cleared first, which
    would cost time in every step. All other gradients are as they would be without that token.
    """
    require_dtypes((torch.int64,), keep_BK=keep_BK)
    if keep_BK.device.type != "cpu" or torch.compiler.is_compiling() or keep_BK.numel() == 0:
        return
    low, high = int(keep_BK.min()), int(keep_BK.max())
    if low < 0 or high >= num_frames:
        raise ValueError(f"keep_BK holds frames {low} to {high}; the clip has frames 0 to {num_frames - 1}")
    if keep_BK.shape[1] > 1 and not bool((keep_BK[:, 1:] > keep_BK[:, :-1]).all()):
        raise ValueError("keep_BK must be strictly increasing along each row; sort it and drop repeated frames")


def require_numbers(frame_BT: Tensor, num_stored: int) -> None:
    """Require numbers of stored frames; like kept frames, they are only checked in main memory."""
    if frame_BT.device.type != "cpu" or torch.compiler.is_compiling() or frame_BT.numel() == 0:
        return
    low, high = int(frame_BT.min()), int(frame_BT.max())
    if low < 0 or high >= num_stored:
        raise ValueError(f"frame_BT holds {low} to {high}; a clip has stored frames 0 to {num_stored - 1}")
