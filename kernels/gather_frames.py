"""gather_frames: uint8 clips and kept frame numbers in, normalised windows of frames out, in one pass over memory.

Frame-sparse encoding: for each kept frame the stem sees the `window` frames around it, written as channels, so that its
Conv3d becomes a Conv2d whose weight (O, 3, window, 7, 7) is merely reshaped to (O, 3 * window, 7, 7).

Folded, 2x2 neighbouring pixels become one with four times the channels, framed by the padding of that Conv2d (stride 2,
padding 3), which becomes one of 4x4 taps without stride or padding and with 64 channels instead of 16, as suits tensor cores.

B clips, T frames, K kept frames, H height, W width, C = 3 colours, S channels of the result before it is folded.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import cdiv, launch, next_power_of_2
from svdata2vec.kernels.register import register_op

COLOURS = 3
FOLD_BEFORE, FOLD_AFTER = 2, 1  # folded pixels of padding before and after a row: taps -4 .. 3 of every other pixel


def gather_frames_reference(
    video_BTHWC: Tensor,
    keep_BK: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    folded: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Plain PyTorch: gather, move colours before time, normalise in float32, zero frames outside the clip."""
    B, T, H, W, _ = video_BTHWC.shape
    K = keep_BK.shape[1]
    device = video_BTHWC.device
    frame_BKF = keep_BK[:, :, None] + torch.arange(window, device=device) - window // 2
    inside_BKF = (frame_BKF >= 0) & (frame_BKF < T)
    clip_B = torch.arange(B, device=device)[:, None, None]
    frames_BKFHWC = video_BTHWC[clip_B, frame_BKF.clamp(0, T - 1)]
    windows_RHWS = frames_BKFHWC.permute(0, 1, 3, 4, 5, 2).reshape(B * K, H, W, COLOURS * window)
    mean_S, factor_S = (  # filled on the device: an upload would block
        torch.cat([torch.full((window,), value, dtype=torch.float32, device=device) for value in values])
        for values in (mean, [1.0 / value for value in std])
    )
    factor_RS = factor_S * inside_BKF.repeat(1, 1, COLOURS).flatten(0, 1)  # 0 outside the clip
    windows_RHWS = windows_RHWS.float().sub_(mean_S).mul_(factor_RS[:, None, None]).to(dtype)
    if channels > COLOURS * window:
        windows_RHWS = torch.nn.functional.pad(windows_RHWS, (0, channels - COLOURS * window))
    return (fold(windows_RHWS) if folded else windows_RHWS).permute(0, 3, 1, 2)


def fold(windows_RHWS: Tensor) -> Tensor:
    """(R, H/2 + 3, W/2 + 3, 4*S): 2x2 neighbours as channels, upper left, upper right, lower left, lower right; framed."""
    before, after = 2 * FOLD_BEFORE, 2 * FOLD_AFTER
    windows_RHWS = torch.nn.functional.pad(windows_RHWS, (0, 0, before, after, before, after))
    R, H, W, S = windows_RHWS.shape
    return windows_RHWS.view(R, H // 2, 2, W // 2, 2, S).transpose(2, 3).reshape(R, H // 2, W // 2, 4 * S)


@triton.jit
def folded_place(pixel_P: tl.tensor, width: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Row and column in a picture of the given width, for pixels numbered in the order of folded windows."""
    block_P, across = pixel_P // 4, width // 2 + 3  # FOLD_BEFORE + FOLD_AFTER more
    return 2 * (block_P // across - 2) + pixel_P % 4 // 2, 2 * (block_P % across - 2) + pixel_P % 2


def window_shape(windows: int, height: int, width: int, channels: int, folded: bool) -> tuple[int, int, int, int]:
    """Shape of the result: (R, H, W, S), or that of `fold`'s result."""
    if not folded:
        return windows, height, width, channels
    frame = FOLD_BEFORE + FOLD_AFTER
    return windows, height // 2 + frame, width // 2 + frame, 4 * channels


@triton.jit
def _gather_frames_kernel(
    video_ptr: tl.tensor,  # (B, T, H*W*3) uint8
    keep_ptr: tl.tensor,  # (B, K) int64
    out_ptr: tl.tensor,  # (B*K, pixels, CHANNELS)
    num_frames: tl.tensor,
    num_kept: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    num_pixels: tl.tensor,  # of a window
    video_strides: tl.tuple,  # of B and T
    keep_strides: tl.tuple,
    mean: tl.tuple,  # of each colour
    factor: tl.tuple,  # of each colour: 1 / deviation
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_S: tl.constexpr,  # CHANNELS rounded up to a power of two
    BLOCK_P: tl.constexpr,
) -> None:
    """One program writes BLOCK_P pixels of one window; values that depend only on the channel are computed once."""
    row = tl.program_id(0).to(tl.int64)
    clip, kept = row // num_kept, row % num_kept
    keep = tl.load(keep_ptr + clip * keep_strides[0] + kept * keep_strides[1])

    channel_S = tl.arange(0, BLOCK_S)
    colour_S = channel_S // WINDOW
    frame_S = keep + channel_S % WINDOW - WINDOW // 2
    inside_S = (colour_S < 3) & (frame_S >= 0) & (frame_S < num_frames)
    mean_S = tl.where(colour_S == 0, mean[0], tl.where(colour_S == 1, mean[1], mean[2]))
    factor_S = tl.where(colour_S == 0, factor[0], tl.where(colour_S == 1, factor[1], factor[2]))
    source_S = clip * video_strides[0] + frame_S * video_strides[1] + colour_S

    pixel_P = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_window_P = pixel_P < num_pixels
    if FOLDED:
        y_P, x_P = folded_place(pixel_P, width)
        source_P = y_P * width + x_P
        inside_PS = (in_window_P & (y_P >= 0) & (y_P < height) & (x_P >= 0) & (x_P < width))[:, None] & inside_S[None, :]
    else:
        source_P = pixel_P
        inside_PS = in_window_P[:, None] & inside_S[None, :]
    value_PS = tl.load(video_ptr + source_S[None, :] + source_P[:, None] * 3, mask=inside_PS, other=0).to(tl.float32)
    value_PS = tl.where(inside_PS, (value_PS - mean_S[None, :]) * factor_S[None, :], 0.0)
    target_PS = row * num_pixels * CHANNELS + pixel_P[:, None] * CHANNELS + channel_S[None, :]
    written_PS = in_window_P[:, None] & (channel_S < CHANNELS)[None, :]
    tl.store(out_ptr + target_PS, value_PS.to(out_ptr.dtype.element_ty), mask=written_PS)


# Values per program: 32 per thread in four warps. The written side is ten times the read side (each byte of a frame
# serves up to five windows and becomes two bytes or four), so the tile follows the output: with 16 channels a thread
# stores eight neighbouring bfloat16 at once, and the bytes of its pixels come from the same few lines of L1.
GATHER_TILE_VALUES = 4096


def launch_gather_frames(
    video_BTHWC: Tensor,
    keep_BK: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    folded: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    B, T, H, W, _ = video_BTHWC.shape
    K = keep_BK.shape[1]
    windows_RHWS = video_BTHWC.new_empty(window_shape(B * K, H, W, channels, folded), dtype=dtype)
    num_pixels = math.prod(windows_RHWS.shape[1:]) // channels
    block_s = next_power_of_2(channels)
    block_p = max(GATHER_TILE_VALUES // block_s, 1)
    launch(
        _gather_frames_kernel,
        (B * K, cdiv(num_pixels, block_p)),
        *(video_BTHWC, keep_BK, windows_RHWS),
        *(T, K, H, W, num_pixels),
        *(video_BTHWC.stride()[:2], keep_BK.stride()),
        *(tuple(mean), tuple(1.0 / value for value in std)),
        WINDOW=window,
        CHANNELS=channels,
        FOLDED=folded,
        BLOCK_S=block_s,
        BLOCK_P=block_p,
    )
    return windows_RHWS.permute(0, 3, 1, 2)


# No gradient: pixels are integers.
gather_frames_op = register_op("gather_frames", gather_frames_reference, launch_gather_frames)
