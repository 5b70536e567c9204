"""Starting a Triton kernel: `launch`, which every launch goes through, and the arithmetic of tiles.

Launch constants in this folder are reasoned from the sizes named beside them (an SM of an H100/H200 has 64 Ki
registers and 227 KiB of shared memory; a warp should read whole 128-byte lines), not tuned;
others can be tried with `tools/bench/bench_kernels.py`.

Integer arguments of the kernels are annotated `tl.tensor`, which they are inside the kernel. Triton would treat the
annotation `int` as a 32-bit type, and would no longer turn a size of 1 into a constant. The strides of a tensor are passed
as one argument, a tuple, whose values Triton treats in the same way.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

# Rows of channels that one program holds: 2048 values are 16 per thread in four warps, which leaves registers for
# several operands in float32, and 256 channels of bfloat16 are four 128-byte lines.
TILE_VALUES = 2048
TILE_CHANNELS = 256
NUM_STAGES = 1
MOST_PROGRAMS = 65_535  # along every axis of a grid but the first


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Start `kernel` on the device of the first argument; an empty grid does nothing.

    Raises:
        ValueError: a tensor is float64, whose precision the float32 arithmetic of the kernels would silently lose; or the
            grid is larger than a GPU allows.
    """
    for argument in arguments:
        for value in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                raise ValueError("the Triton kernels compute in float32; pass impl='torch' for float64 tensors")
    if 0 in grid:
        return
    if max(grid[1:], default=0) > MOST_PROGRAMS:
        name = getattr(kernel, "__name__", "a kernel").strip("_")
        raise ValueError(f"{name}: a grid of {grid} programs, a GPU takes {MOST_PROGRAMS} along the later axes; pass smaller "
                         "pictures or maps, or impl='torch'")
    device = arguments[0].device
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        start(kernel, grid, arguments, num_warps, constants)


def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], num_warps: int, constants: Any) -> None:
    """The launch itself; a separate function so that tests can record every launch without a GPU."""
    # One stage: the loops are short, and the registers that prefetching takes are worth more as occupancy.
    kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=NUM_STAGES)


def strides(*tensors: Tensor) -> tuple[tuple[int, ...], ...]:
    """The strides of each tensor, as the kernels take them."""
    return tuple(tensor.stride() for tensor in tensors)


# Triton's functions of these names also work inside kernels, and cost the host several microseconds a call.
def cdiv(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that isn't below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def channel_tile(width: int) -> tuple[int, int]:
    """(rows, channels) of a tile of `TILE_VALUES` over rows of `width` channels; both powers of two."""
    channels = min(next_power_of_2(width), TILE_CHANNELS)
    return TILE_VALUES // channels, channels


# Kernels that look up which token shows a frame compare all kept frames with those of a tile: 2**14 numbers are 128 per thread
# in four warps. Triton allows at most 2**20 at once, which many frames of few channels would exceed.
MOST_COMPARED = 2**14


def frame_tile(width: int, num_kept: int) -> dict[str, int]:
    """Launch constants of such kernels: kept frames, frames of a tile, channels; all powers of two."""
    frames, channels = channel_tile(width)
    kept = next_power_of_2(max(num_kept, 1))
    return {"BLOCK_K": kept, "BLOCK_T": max(min(frames, MOST_COMPARED // kept), 1), "BLOCK_D": channels}


# A gradient summed over the batch is summed within chunks of clips first, each by its own program, then over chunks: a
# fixed order without atomics. 32 chunks keep the partial sums small enough for L2 and, times the blocks of frames and
# channels, give every SM something to do.
MAX_CLIP_CHUNKS = 32


def row_chunks(num_rows: int, tile_rows: int, max_chunks: int) -> tuple[int, int]:
    """(chunks, rows per chunk) for sums over rows, or clips, that are read in tiles: each chunk but the last is whole tiles."""
    tiles_per_chunk = max(cdiv(cdiv(num_rows, tile_rows), max_chunks), 1)
    rows_per_chunk = tiles_per_chunk * tile_rows
    return cdiv(num_rows, rows_per_chunk), rows_per_chunk
