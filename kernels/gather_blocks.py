"""gather_blocks: clips of fixed-rate blocks in, normalised windows of frames out; only sampled pixels are decoded.

The result of decoding, crop, mirror, resampling and `gather_frames`, in one pass and without a decoded frame in memory.
A frame is three planes, luma at full and chroma at half size: two end values for every 4x4 samples, and for every sample an
index of 2 or 3 bits between them (bit layout: "blocks" in shards/README.md). Up to the grey level all arithmetic is
integer arithmetic, so kernel and reference agree in every bit:

    sample         ((n - i) e0 + i e1 + n // 2) // n, index i of 0 .. n = 3 or 7
    colours        luma and the matrix of BT.601, factors in units of 2**-14, rounded, clipped to 0..255
    output pixel   bilinear between four packed pixels, black outside: weights in units of 2**-11, one rounding to a grey level

Read `decode` and `resample` first, which do this for whole pictures. The kernel does it pixel by pixel: it finds the pixel's
position in the packed picture, then decodes its four neighbours there in each frame of the window.

B clips, T frames of E bytes, K kept frames, P pixels and S channels of the result, C = 3 colours; N frames of any clips.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.gather_frames import folded_place, gather_frames_reference, window_shape
from svdata2vec.kernels.launch import cdiv, launch, next_power_of_2
from svdata2vec.kernels.register import register_op

PLACE_BITS = 32  # positions in the packed picture are in units of 2**-32 pixels
WEIGHT_BITS = 11


def plane_bytes(side: int, bits: int) -> int:
    """Bytes of a plane of side x side samples: end values, two bits of every index, then perhaps the third."""
    return side * side * (1 + bits) // 8


def gather_blocks_reference(
    blocks_BTE: Tensor,
    frame_BT: Tensor,
    map_B4: Tensor,
    keep_BK: Tensor,
    form: Sequence[int],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    folded: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Plain PyTorch: decode, resample to grey levels, gather as `gather_frames` does. form: side, bits of luma, of chroma."""
    packed_BTHWC = decode(blocks_BTE.flatten(0, 1), *form).unflatten(0, frame_BT.shape)
    pictures_BTSSC = resample(packed_BTHWC, frame_BT, map_B4, size)
    return gather_frames_reference(pictures_BTSSC, keep_BK, mean, std, window, channels, folded, dtype)


def decode(blocks_NE: Tensor, side: int, luma_bits: int, chroma_bits: int) -> Tensor:
    """All pixels of stored frames: (N, side, side, 3) uint8 RGB."""
    planes, start = [], 0
    for plane_side, bits in ((side, luma_bits), (side // 2, chroma_bits), (side // 2, chroma_bits)):
        stop = start + plane_bytes(plane_side, bits)
        planes.append(_decode_plane(blocks_NE[:, start:stop], plane_side, bits))
        start = stop
    luma_NHW = planes[0]
    cb_NHW, cr_NHW = (plane.repeat_interleave(2, 1).repeat_interleave(2, 2) - 128 for plane in planes[1:])
    turned = (22987 * cr_NHW, -5636 * cb_NHW - 11698 * cr_NHW, 29049 * cb_NHW)
    colours = [luma_NHW + ((product_NHW + 8192) >> 14) for product_NHW in turned]
    return torch.stack(colours, dim=-1).clamp(0, 255).to(torch.uint8)


def _decode_plane(plane_NE: Tensor, side: int, bits: int) -> Tensor:
    """int32 (N, side, side)."""
    N, blocks, top = len(plane_NE), side // 4, 2**bits - 1
    low, high = 2 * blocks**2, 2 * blocks**2 + side * blocks  # first bytes of the indices' two low bits, and of the third
    number_8 = torch.arange(8, dtype=torch.int32, device=plane_NE.device)
    index_NHW = ((plane_NE[:, low:high, None].int() >> 2 * number_8[:4]) & 3).view(N, side, side)
    if bits == 3:
        index_NHW = index_NHW + 4 * ((plane_NE[:, high:, None].int() >> number_8) & 1).view(N, side, side)
    ends_NRC2 = plane_NE[:, :low].int().view(N, blocks, blocks, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return ((top - index_NHW) * ends_NRC2[..., 0] + index_NHW * ends_NRC2[..., 1] + top // 2) // top


def resample(packed_BTHWC: Tensor, frame_BT: Tensor, map_B4: Tensor, size: int) -> Tensor:
    """uint8 (B, T, size, size, 3): the numbered frames of each clip through its map."""
    video_BTHWC = packed_BTHWC[torch.arange(len(frame_BT), device=frame_BT.device)[:, None], frame_BT].int()
    for axis, (scale_B, shift_B) in ((3, map_B4[:, :2].unbind(1)), (2, map_B4[:, 2:].unbind(1))):
        video_BTHWC = _resample_axis(video_BTHWC, axis, scale_B, shift_B, size)
    return ((video_BTHWC + 2 ** (2 * WEIGHT_BITS - 1)) >> 2 * WEIGHT_BITS).to(torch.uint8)


def _resample_axis(video_BTHWC: Tensor, axis: int, scale_B: Tensor, shift_B: Tensor, size: int) -> Tensor:
    """Columns (axis 3) or rows (axis 2), times 2**WEIGHT_BITS."""
    shape, view = list(video_BTHWC.shape), [len(scale_B), 1, 1, 1, 1]
    length, shape[axis], view[axis] = shape[axis], size, size
    place_BS = scale_B[:, None] * (2 * torch.arange(size, device=scale_B.device) + 1) + shift_B[:, None]
    first_BS, second_BS = place_BS >> PLACE_BITS, (place_BS >> PLACE_BITS - WEIGHT_BITS).int() & 2**WEIGHT_BITS - 1
    total = torch.zeros((), dtype=torch.int32, device=scale_B.device)
    for tap_BS, weight_BS in ((first_BS, 2**WEIGHT_BITS - second_BS), (first_BS + 1, second_BS)):
        inside_BS = (tap_BS >= 0) & (tap_BS < length)
        taken = video_BTHWC.gather(axis, tap_BS.clamp(0, length - 1).view(view).expand(shape))
        total = total + taken * (weight_BS * inside_BS).view(view)
    return total


@triton.jit
def _sample(
    plane_ptr: tl.tensor, side: tl.tensor, x_P: tl.tensor, y_P: tl.tensor, there_P: tl.tensor, BITS: tl.constexpr
) -> tl.tensor:
    """Samples of a plane, 0 to 255, at columns x and rows y; `there` marks those that are inside."""
    # A plane's sections: ends of each block, side * side / 8 bytes; two bits of each index, twice as many; their third bits.
    ends_ptr = plane_ptr.to(tl.pointer_type(tl.int16))  # both ends at once
    ends_P = tl.load(ends_ptr + (y_P >> 2) * (side >> 2) + (x_P >> 2), mask=there_P, other=0).to(tl.int32)
    byte_P = y_P * (side >> 2) + (x_P >> 2)
    low_P = tl.load(plane_ptr + (side * side >> 3) + byte_P, mask=there_P, other=0).to(tl.int32)
    index_P = (low_P >> 2 * (x_P & 3)) & 3
    if BITS == 3:
        byte_P = y_P * (side >> 3) + (x_P >> 3)
        high_P = tl.load(plane_ptr + 3 * (side * side >> 3) + byte_P, mask=there_P, other=0).to(tl.int32)
        index_P += ((high_P >> (x_P & 7)) & 1) * 4
    TOP: tl.constexpr = 2**BITS - 1
    first_P, second_P = ends_P & 255, (ends_P >> 8) & 255
    return ((TOP - index_P) * first_P + index_P * second_P + TOP // 2) // TOP


@triton.jit
def _cut(value_P: tl.tensor) -> tl.tensor:
    return tl.minimum(tl.maximum(value_P, 0), 255)


@triton.jit
def _gather_blocks_kernel(
    blocks_ptr: tl.tensor,  # (B, T, E) uint8
    frame_ptr: tl.tensor,  # (B, T) int64: which of the clip's stored frames
    map_ptr: tl.tensor,  # (B, 4) int64: scale and shift of columns, then of rows
    keep_ptr: tl.tensor,  # (B, K) int64
    out_ptr: tl.tensor,  # (B*K, pixels, CHANNELS)
    num_frames: tl.tensor,
    num_kept: tl.tensor,
    size: tl.tensor,
    side: tl.tensor,
    blocks_strides: tl.tuple,  # of B and T
    frame_strides: tl.tuple,
    map_strides: tl.tuple,
    keep_strides: tl.tuple,
    mean: tl.tuple,  # of each colour
    factor: tl.tuple,  # of each colour: 1 / deviation
    LUMA_BITS: tl.constexpr,
    CHROMA_BITS: tl.constexpr,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_S: tl.constexpr,  # CHANNELS rounded up to a power of two
    BLOCK_P: tl.constexpr,
) -> None:
    """One program writes BLOCK_P pixels of one window; their position in the packed picture is the same for all its frames."""
    row = tl.program_id(0).to(tl.int64)
    clip, kept = row // num_kept, row % num_kept
    keep = tl.load(keep_ptr + clip * keep_strides[0] + kept * keep_strides[1])
    blocks_ptr += clip * blocks_strides[0]
    frame_ptr += clip * frame_strides[0]
    map_ptr += clip * map_strides[0]

    # Where each output pixel's centre lies in the packed picture: scale * (2 j + 1) + shift (`functional.block_maps`).
    pixel_P = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    num_pixels = (size + 6) * (size + 6) if FOLDED else size * size
    in_window_P = pixel_P < num_pixels
    if FOLDED:
        row_P, column_P = folded_place(pixel_P, size)
        in_picture_P = in_window_P & (row_P >= 0) & (row_P < size) & (column_P >= 0) & (column_P < size)
    else:
        row_P, column_P = pixel_P // size, pixel_P % size
        in_picture_P = in_window_P
    x_P = tl.load(map_ptr) * (2 * column_P + 1) + tl.load(map_ptr + map_strides[1])
    y_P = tl.load(map_ptr + 2 * map_strides[1]) * (2 * row_P + 1) + tl.load(map_ptr + 3 * map_strides[1])
    # Places in 1 / 2**PLACE_BITS (32) pixel, weights in 1 / 2**WEIGHT_BITS (11): a sum of two weights' products has 22 bits.
    left_P, top_P = (x_P >> 32).to(tl.int32), (y_P >> 32).to(tl.int32)
    right_weight_P, low_weight_P = (x_P >> 21).to(tl.int32) & 2047, (y_P >> 21).to(tl.int32) & 2047

    channel_S = tl.arange(0, BLOCK_S)
    value_PS = tl.zeros((BLOCK_P, BLOCK_S), tl.float32)
    for step in tl.range(WINDOW, disable_licm=True):  # else the offsets of 36 loads would fill the registers
        # The window's frame, and where it is stored: short clips repeat frames. Missing frames are zero in the result.
        frame = keep + step - WINDOW // 2
        in_clip = (frame >= 0) & (frame < num_frames)
        stored = tl.load(frame_ptr + frame * frame_strides[1], mask=in_clip, other=-1)
        in_clip = (stored >= 0) & (stored < num_frames)
        # A plane of P x P: P * P / 8 bytes of ends, and as many for each bit of the indices.
        luma_ptr = blocks_ptr + stored * blocks_strides[1]
        blue_ptr = luma_ptr + (side * side >> 3) * (1 + LUMA_BITS)
        red_ptr = blue_ptr + (side * side >> 5) * (1 + CHROMA_BITS)
        red_P, green_P, blue_P = tl.zeros_like(left_P), tl.zeros_like(left_P), tl.zeros_like(left_P)
        for tap in tl.static_range(4):
            from_P, line_P = left_P + tap % 2, top_P + tap // 2
            across_P = right_weight_P if tap % 2 else 2048 - right_weight_P
            down_P = low_weight_P if tap // 2 else 2048 - low_weight_P
            inside_P = in_picture_P & in_clip & (from_P >= 0) & (from_P < side) & (line_P >= 0) & (line_P < side)
            weight_P = tl.where(inside_P, across_P * down_P, 0)
            luma_P = _sample(luma_ptr, side, from_P, line_P, inside_P, LUMA_BITS)
            cb_P = _sample(blue_ptr, side >> 1, from_P >> 1, line_P >> 1, inside_P, CHROMA_BITS) - 128
            cr_P = _sample(red_ptr, side >> 1, from_P >> 1, line_P >> 1, inside_P, CHROMA_BITS) - 128
            red_P += weight_P * _cut(luma_P + ((22987 * cr_P + 8192) >> 14))
            green_P += weight_P * _cut(luma_P + ((-5636 * cb_P - 11698 * cr_P + 8192) >> 14))
            blue_P += weight_P * _cut(luma_P + ((29049 * cb_P + 8192) >> 14))
        shown_P = in_picture_P & in_clip if FOLDED else in_clip  # pixels outside of a window are not written
        for colour in tl.static_range(3):  # channels: the window's frames of red, then of green, then of blue
            sum_P = red_P if colour == 0 else (green_P if colour == 1 else blue_P)
            level_P = ((sum_P + 2097152) >> 22).to(tl.float32)
            normal_P = tl.where(shown_P, (level_P - mean[colour]) * factor[colour], 0.0)
            value_PS = tl.where((channel_S == colour * WINDOW + step)[None, :], normal_P[:, None], value_PS)

    target_PS = row * num_pixels * CHANNELS + pixel_P[:, None] * CHANNELS + channel_S[None, :]
    written_PS = in_window_P[:, None] & (channel_S < CHANNELS)[None, :]
    tl.store(out_ptr + target_PS, value_PS.to(out_ptr.dtype.element_ty), mask=written_PS)


# One pixel per thread in four warps: a thread decodes the four neighbours of its pixel in one frame after the other. With two
# pixels it would take twice the registers; with less than one, Triton would decode repeatedly instead of exchanging values.
PIXELS_PER_PROGRAM = 4 * (64 if torch.version.hip else 32)


def launch_gather_blocks(
    blocks_BTE: Tensor,
    frame_BT: Tensor,
    map_B4: Tensor,
    keep_BK: Tensor,
    form: Sequence[int],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    window: int,
    channels: int,
    folded: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Start the Triton kernel; arguments as in the reference."""
    B, K = keep_BK.shape
    side, luma_bits, chroma_bits = form
    windows_RHWS = blocks_BTE.new_empty(window_shape(B * K, size, size, channels, folded), dtype=dtype)
    num_pixels = math.prod(windows_RHWS.shape[1:]) // channels
    launch(
        _gather_blocks_kernel,
        (B * K, cdiv(num_pixels, PIXELS_PER_PROGRAM)),
        *(blocks_BTE, frame_BT, map_B4, keep_BK, windows_RHWS),
        *(frame_BT.shape[1], K, size, side),
        *(blocks_BTE.stride()[:2], frame_BT.stride(), map_B4.stride(), keep_BK.stride()),
        *(tuple(mean), tuple(1.0 / value for value in std)),
        LUMA_BITS=luma_bits,
        CHROMA_BITS=chroma_bits,
        WINDOW=window,
        CHANNELS=channels,
        FOLDED=folded,
        BLOCK_S=next_power_of_2(channels),
        BLOCK_P=PIXELS_PER_PROGRAM,
    )
    return windows_RHWS.permute(0, 3, 1, 2)


# No gradient: pixels are integers.
gather_blocks_op = register_op("gather_blocks", gather_blocks_reference, launch_gather_blocks)
