"""Cores of a process of a launch, and how a loader shares them out: found on the machine, not guessed."""

import os
import platform
from dataclasses import replace
from pathlib import Path

from svdata2vec.config.schema import DataConfig
from svdata2vec.runs.tuned import Tuned
from svdata2vec.shards.cores import granted_cores

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls them, the last one on ARM
MOST_THREADS = 16  # of one loader: more have not been measured
MOST_READERS = 4  # at 0.3 ms per clip (tools/results/bench_host.json) ahead of any decoder


def usable_cores() -> int:
    """Cores of this process: those that it may use, shared with the others of a launch here."""
    return max(1, int(granted_cores() / max(announced("LOCAL_WORLD_SIZE", 1), 1)))


def cpu_name() -> str:
    """The processor as its maker calls it."""
    return _cpu_info("model name") or platform.processor()


def cpu_lacks_bfloat16() -> bool:
    """Whether this processor is known to have no instructions for bfloat16 (AVX-512 BF16, AMX, ARM's BF16)."""
    features = _cpu_info("flags") or _cpu_info("Features")
    return bool(features) and not BFLOAT16 & {*features.split()}


def _cpu_info(name: str) -> str:
    """What the kernel says of the first processor; empty where it says nothing."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name), "")


def announced(name: str, default: int) -> int:
    """A number that a launcher sets in the environment, of a list the first one; the default where there is none."""
    text = os.environ.get(name, "").partition(",")[0].strip()
    return int(text) if text.isdecimal() else default


def fit_loader(data: DataConfig, device: str, cores: int, tuned: Tuned | None = None) -> DataConfig:
    """The settings with `threads`, `readers`, `engine_share` and `run_pictures` filled in where they are None.

    tuned: what was measured on this device; without it `run_pictures` stays None, the decoder's own. On a CPU reading costs a
    fiftieth of decoding, and a thread does it; beside a GPU it would take the interpreter from training, so a quarter of the
    cores reads.
    """
    readers = (min(MOST_READERS, cores // 4) if device == "cuda" else 0) if data.readers is None else data.readers
    most = max(cores - readers, 1)
    found = tuned or Tuned(0)
    chosen = replace(found, threads=min(found.threads or MOST_THREADS, most))
    given = {name: value for name in ("threads", "engine_share", "run_pictures") if (value := getattr(data, name)) is not None}
    return replace(data, **{**vars(chosen), **given}, readers=readers)
