"""Checks of what a caller hands to a kernel: every failure is one ValueError with what came and what was expected.

All of them look at shapes, dtypes and devices alone, so that they cost no synchronisation and `torch.compile` can trace
them; the single exception, `require_kept_frames`, reads values and therefore only looks at tensors in main memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_shape(name: str, tensor: Tensor, **axes: int | None) -> None:
    """Demand one axis per keyword, of the given size unless None: `require_shape("x_BTD", x, B=2, T=None, D=8)`."""
    sizes = tuple(axes.values())
    fits = tensor.ndim == len(sizes) and all(
        want is None or want == got for want, got in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(axis if want is None else f"{axis}={want}" for axis, want in axes.items())
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected ({expected})")


def require_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Demand one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise ValueError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(str(dtype) for dtype in allowed)}")


def require_same_device(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Demand that all tensors lie on the device of the first one; None stands for an optional tensor that is absent."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device} but {first_name} is on {first.device}; move one of them")


def require_kept_frames(keep_BK: Tensor, num_frames: int) -> None:
    """Demand strictly increasing frame numbers in [0, num_frames) in each row.

    A tensor on a GPU isn't read, since that would stop the host until the GPU has caught up. There the kernels treat a
    frame outside the clip as missing and touch no memory outside their tensors.
    """
    if keep_BK.device.type != "cpu" or torch.compiler.is_compiling() or keep_BK.numel() == 0:
        return
    low, high = int(keep_BK.min()), int(keep_BK.max())
    if low < 0 or high >= num_frames:
        raise ValueError(f"keep_BK holds frames {low} to {high}; the clip has frames 0 to {num_frames - 1}")
    if keep_BK.shape[1] > 1 and not bool((keep_BK[:, 1:] > keep_BK[:, :-1]).all()):
        raise ValueError("keep_BK must be strictly increasing along each row; sort it and drop repeated frames")
