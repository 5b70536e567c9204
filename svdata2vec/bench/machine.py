"""Memory and CPU time of processes on this machine, waiting for a device, and quantiles of what was timed."""

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from svdata2vec.shards.cores import control_groups

# Files of a control group's memory limit and use, and the line of memory.stat with what Linux gives back of that use, pages
# of files that were not read lately; version 2 and version 1.
GROUP_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


# ---- memory ---------------------------------------------------------------------------------------------------------


def available_bytes() -> int:
    """Memory that may be taken without swapping: the machine's, or what a control group of this process leaves if less."""
    available = psutil.virtual_memory().available
    for group, (limit, usage, cached) in itertools.product(control_groups(), GROUP_MEMORY):
        if (group / limit).is_file() and (group / usage).is_file():
            text = (group / limit).read_text().strip()
            if text != "max":
                used = max(int((group / usage).read_text()) - _group_statistic(group, cached), 0)
                available = min(available, max(int(text) - used, 0))
    return available


def _group_statistic(group: Path, name: str) -> int:
    """A number of a control group's memory.stat; 0 where it has none."""
    path = group / "memory.stat"
    words = path.read_text().split() if path.is_file() else []
    return int(dict(zip(words[::2], words[1::2], strict=True)).get(name, 0))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 once it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def peak_bytes() -> int:
    """Most memory of this process that lay in RAM so far (psutil has no peak; getrusage's includes the parent's, on Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def tree_usage() -> tuple[float, int]:
    """(CPU seconds, resident bytes) of this process and all its descendants, the finished ones' CPU time included.

    Of living processes to the microsecond; of those that have ended to a hundredth of a second, as Linux counts them.
    """
    this, seconds, resident = psutil.Process(), 0.0, 0
    for process in (this, *this.children(recursive=True)):
        try:
            with process.oneshot():
                ended = process.cpu_times()
                seconds += cpu_seconds(process.pid) + ended.children_user + ended.children_system
                resident += process.memory_info().rss
        except (psutil.NoSuchProcess, OSError):
            continue
    return seconds, resident


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, to the nanosecond; OSError once it has ended. The clock's number is Linux's."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid has it


def peak_gpu_bytes(device: torch.device, graph: torch.cuda.CUDAGraph | None) -> int:
    """Most memory that tensors held since `torch.cuda.reset_peak_memory_stats`; of a graph that was replayed all that it keeps.

    What a graph's tensors take while it runs lies in a pool of its own, which the allocator counts as free after the capture.
    """
    spare = 0
    if graph is not None:
        pool = tuple(graph.pool())
        segments = [one for one in torch.cuda.memory_snapshot() if tuple(one["segment_pool_id"]) == pool]
        assert segments, "a captured graph has memory"
        spare = sum(one["total_size"] - one["allocated_size"] for one in segments)
    return torch.cuda.max_memory_allocated(device) + spare


# ---- time -----------------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    return statistics.median(values), fifths[0], fifths[3]
