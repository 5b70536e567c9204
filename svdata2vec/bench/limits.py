"""Ceilings, measured on the very device and disk: bytes copied, matrix products, files read; per second."""

import statistics
import time
from collections.abc import Callable

import torch

from svdata2vec.shards.reading.shardset import ShardSet

READ_AT_MOST = 2**28  # bytes of shards
_CHUNK = 2**20


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, repetitions: int = 5) -> float:
    """Median time of a call, the device's work included; one call warms up."""
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read plus bytes written by a large copy within the device's memory."""
    size = 2**30 if device.type == "cuda" else 2**26
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device)


def storage_bytes_per_second(shards: ShardSet) -> float | None:
    """Bytes of the shards' tars read in order, up to 256 MiB; None where they are behind a network.

    What the system has in memory already comes from there: on a training machine with less memory than data, drop its
    caches first (or read a larger set).
    """
    if not shards.tars:
        return None
    buffer = bytearray(_CHUNK)
    done, started = 0, time.perf_counter()
    for tar in shards.tars:
        with tar.open("rb", buffering=0) as file:
            while done < READ_AT_MOST and (count := file.readinto(buffer)):
                done += count
    return done / (time.perf_counter() - started)
