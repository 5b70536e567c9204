"""gather_frames: uint8 clips and kept frame numbers in, normalised windows of frames out, in one pass over memory.

Frame-sparse encoding: for each kept frame the stem sees the `window` frames around it, written as channels, so that its
Conv3d becomes a Conv2d whose weight (O, 3, window, 7, 7) is merely reshaped to (O, 3 * window, 7, 7).

B clips, T frames, K kept frames, H height, W width, C = 3 colours, S channels of the result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

COLOURS = 3


# --- reference ------------------------------------------------------------------------------------------------------


def gather_frames_reference(
    video_BTHWC: Tensor,
    keep_BK: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    dtype: torch.dtype,
) -> Tensor:
    """Plain PyTorch: gather, normalise in float32, blank what lies outside the clip, bring colours before time."""
    B, T, H, W, _ = video_BTHWC.shape
    K = keep_BK.shape[1]
    device = video_BTHWC.device
    frame_BKF = keep_BK[:, :, None] + torch.arange(window, device=device) - window // 2
    inside_BKF = (frame_BKF >= 0) & (frame_BKF < T)
    clip_B = torch.arange(B, device=device)[:, None, None]
    mean_C = torch.tensor(mean, dtype=torch.float32, device=device)
    factor_C = torch.tensor([1.0 / value for value in std], dtype=torch.float32, device=device)
    pixels_BKFHWC = (video_BTHWC[clip_B, frame_BKF.clamp(0, T - 1)].float() - mean_C) * factor_C
    pixels_BKFHWC = pixels_BKFHWC * inside_BKF[:, :, :, None, None, None]
    windows_RHWS = pixels_BKFHWC.permute(0, 1, 3, 4, 5, 2).reshape(B * K, H, W, COLOURS * window).to(dtype)
    if channels > COLOURS * window:
        windows_RHWS = torch.nn.functional.pad(windows_RHWS, (0, channels - COLOURS * window))
    return windows_RHWS.permute(0, 3, 1, 2)


# --- registration ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("svdata2vec::gather_frames", mutates_args=(), device_types="cpu")
def gather_frames_op(
    video_BTHWC: Tensor,
    keep_BK: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    dtype: torch.dtype,
) -> Tensor:
    """See `functional.gather_frames`. No gradient: pixels are integers."""
    return gather_frames_reference(video_BTHWC, keep_BK, mean, std, window, channels, dtype)


@gather_frames_op.register_fake
def _(
    video_BTHWC: Tensor,
    keep_BK: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    dtype: torch.dtype,
) -> Tensor:
    H, W = video_BTHWC.shape[2:4]
    rows = keep_BK.shape[0] * keep_BK.shape[1]
    return video_BTHWC.new_empty((rows, H, W, channels), dtype=dtype).permute(0, 3, 1, 2)
