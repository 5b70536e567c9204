"""Mean and variance of every channel of a channels-last map, for `batch_norm_prelu` and `batch_norm_prelu_pool` in
training.

Welford's recurrence within a program, then Chan's merge of programs, in a fixed order: variances are sums of squared
distances from a mean, never differences of large sums.

F maps (frames), C channels, H W picture; M = F*H*W rows of C channels, the memory of a channels-last map; G chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdata2vec.kernels.launch import cdiv, channel_tile, launch, row_chunks
from svdata2vec.kernels.tiles import divide


@triton.jit
def _statistics_kernel(
    x_ptr: tl.tensor,  # (M, C)
    mean_ptr: tl.tensor,  # (G, C) float32: mean of each chunk of rows
    spread_ptr: tl.tensor,  # (G, C) float32: sum of squared distances from that mean
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    rows_per_chunk: tl.tensor,  # a multiple of BLOCK_R
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Welford's recurrence in every lane, then one merge of the lanes; large sums are never subtracted."""
    chunk = tl.program_id(0).to(tl.int64)
    c_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    count_R = tl.zeros((BLOCK_R,), dtype=tl.float32)
    mean_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    spread_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    first = chunk * rows_per_chunk
    for row in range(first, tl.minimum(first + rows_per_chunk, num_rows), BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R).to(tl.int64)
        valid_RC = (row_R < num_rows)[:, None] & (c_C < num_channels)[None, :]
        x_RC = tl.load(x_ptr + row_R[:, None] * num_channels + c_C[None, :], mask=valid_RC, other=0).to(tl.float32)
        count_R += (row_R < num_rows).to(tl.float32)
        from_old_RC = tl.where(valid_RC, x_RC - mean_RC, 0.0)
        mean_RC += from_old_RC * (1.0 / tl.maximum(count_R, 1.0))[:, None]
        spread_RC += from_old_RC * (x_RC - mean_RC)  # zero where the mask skipped the load

    count = tl.maximum(tl.sum(count_R, axis=0), 1.0)
    mean_C = divide(tl.sum(mean_RC * count_R[:, None], axis=0), count)
    apart_RC = mean_RC - mean_C[None, :]
    spread_C = tl.sum(spread_RC + count_R[:, None] * apart_RC * apart_RC, axis=0)
    at_C = chunk * num_channels + c_C
    tl.store(mean_ptr + at_C, mean_C, mask=c_C < num_channels)
    tl.store(spread_ptr + at_C, spread_C, mask=c_C < num_channels)


@triton.jit
def _merge_statistics_kernel(
    chunk_mean_ptr: tl.tensor,  # (G, C) float32
    chunk_spread_ptr: tl.tensor,  # (G, C) float32
    mean_ptr: tl.tensor,  # (C,) float32
    variance_ptr: tl.tensor,  # (C,) float32, biased
    num_chunks: tl.tensor,
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    rows_per_chunk: tl.tensor,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program merges all chunks of BLOCK_C channels in a fixed order: the mean first, then distances from it."""
    c_C = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total_GC = tl.zeros((BLOCK_G, BLOCK_C), dtype=tl.float32)
    for first in range(0, num_chunks, BLOCK_G):
        g_G = (first + tl.arange(0, BLOCK_G)).to(tl.int64)
        count_G = tl.minimum(num_rows - g_G * rows_per_chunk, rows_per_chunk).to(tl.float32)
        read_GC = (g_G < num_chunks)[:, None] & (c_C < num_channels)[None, :]
        at_GC = g_G[:, None] * num_channels + c_C[None, :]
        total_GC += count_G[:, None] * tl.load(chunk_mean_ptr + at_GC, mask=read_GC, other=0)
    mean_C = divide(tl.sum(total_GC, axis=0), num_rows)
    spread_GC = tl.zeros((BLOCK_G, BLOCK_C), dtype=tl.float32)
    for first in range(0, num_chunks, BLOCK_G):
        g_G = (first + tl.arange(0, BLOCK_G)).to(tl.int64)
        count_G = tl.minimum(num_rows - g_G * rows_per_chunk, rows_per_chunk).to(tl.float32)
        read_GC = (g_G < num_chunks)[:, None] & (c_C < num_channels)[None, :]
        at_GC = g_G[:, None] * num_channels + c_C[None, :]
        apart_GC = tl.load(chunk_mean_ptr + at_GC, mask=read_GC, other=0) - mean_C[None, :]
        here_GC = tl.load(chunk_spread_ptr + at_GC, mask=read_GC, other=0) + count_G[:, None] * apart_GC * apart_GC
        spread_GC += tl.where(read_GC, here_GC, 0.0)
    tl.store(mean_ptr + c_C, mean_C, mask=c_C < num_channels)
    tl.store(variance_ptr + c_C, divide(tl.sum(spread_GC, axis=0), num_rows), mask=c_C < num_channels)


# Programs that sum over rows: eight for each SM of an H100 (132), which together keep 32 KiB of a bfloat16 map in flight per
# SM; their partial sums (1024 * 64 * 4 bytes each where C is 64) stay in L2.
MAX_SUMMING_PROGRAMS = 1024
MERGED_CHUNKS, MERGED_CHANNELS = 64, 16


def channel_chunks(num_rows: int, num_channels: int) -> tuple[int, int, int, int]:
    """(chunks, rows per chunk, rows of a tile, channels of a tile) for a sum over all rows of a map."""
    rows, channels = channel_tile(num_channels)
    return *row_chunks(num_rows, rows, summing_programs(num_channels)), rows, channels


def summing_programs(num_channels: int) -> int:
    """How many programs share the rows of a sum, for each tile of channels."""
    return max(MAX_SUMMING_PROGRAMS // cdiv(num_channels, channel_tile(num_channels)[1]), 1)


def launch_batch_statistics(x_FCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Start the Triton kernels: mean and biased variance (C,) of each channel, in float32."""
    num_channels = x_FCHW.shape[1]
    num_rows = x_FCHW.numel() // max(num_channels, 1)
    chunks, rows_per_chunk, rows, channels = channel_chunks(num_rows, num_channels)
    chunk_mean_GC, chunk_spread_GC = (x_FCHW.new_empty((chunks, num_channels), dtype=torch.float32) for _ in range(2))
    mean_C, variance_C = (x_FCHW.new_empty((num_channels,), dtype=torch.float32) for _ in range(2))
    launch(
        _statistics_kernel,
        (chunks, cdiv(num_channels, channels)),
        *(x_FCHW, chunk_mean_GC, chunk_spread_GC, num_rows, num_channels, rows_per_chunk),
        BLOCK_R=rows,
        BLOCK_C=channels,
    )
    launch(
        _merge_statistics_kernel,
        (cdiv(num_channels, MERGED_CHANNELS),),
        *(chunk_mean_GC, chunk_spread_GC, mean_C, variance_C, chunks, num_rows, num_channels, rows_per_chunk),
        BLOCK_G=MERGED_CHUNKS,
        BLOCK_C=MERGED_CHANNELS,
    )
    return mean_C, variance_C
