"""Resident memory of the loader over many clips: it must not grow.

    python tools/bench/bench_memory.py --out tools/results/loader_memory.json        # under three minutes of CPU

Runs training's loader on clips of 320 px that it makes (with few frames each, so that ten thousand take a minute) and measures
memory after every 250: with the default heap, then with one that keeps freed memory, as the commands use it, and then with a
reader process too, whose memory counts.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import numpy as np
import torch
from file_options import file_to_write

from svdata2vec.bench.config import DataBenchOptions
from svdata2vec.bench.data_sources import make_sources, packed
from svdata2vec.bench.machine import tree_usage
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.provenance import hardware, head, save
from svdata2vec.runs.runtime import keep_freed_memory
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.reading.shardset import ShardSet

FORMAT, VERSION = "svdata2vec-loader-memory", 1
PLAN = PlanConfig(num_frames=8, size=64)
BATCH, EVERY = 10, 250
SETTLED = 0.2  # share of the clips after which memory should not change any more


def memory_over(shards: ShardSet, clips: int, readers: int) -> dict[str, Any]:
    """Resident MB of this process and its children after every 250 clips, and the summary of them."""
    seen, looks = 0, []
    cpu, started = tree_usage()[0], time.perf_counter()
    rows = np.resize(shards.rows("all"), 10 * BATCH)
    with ClipLoader(shards, "all", PLAN, batch_size=BATCH, train=True, num_readers=readers, limit=rows) as loader:
        while seen < clips:
            for batch in loader:
                seen += len(batch)
                if seen % EVERY == 0:
                    looks.append([seen, tree_usage()[1] / 2**20])
        seconds = tree_usage()[0] - cpu
    return {"readers": readers, "clips": seen, "cpu_seconds": seconds, "seconds": time.perf_counter() - started,
            "looks": looks, **growth(looks)}


def growth(looks: list[list[float]]) -> dict[str, float]:
    """MB at the first looks after the start and at the last ones (medians of a tenth), and MB per 1,000 clips between."""
    settled = np.array(looks[int(SETTLED * len(looks)):])
    tenth = max(len(settled) // 10, 1)
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) if len(settled) > 1 else 0.0
    return {"first_mb": float(np.median(settled[:tenth, 1])), "last_mb": float(np.median(settled[-tenth:, 1])),
            "mb_per_1000_clips": 1e3 * slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=file_to_write, help="JSON file to write")
    parser.add_argument("--clips", type=Range(1000).parser(int), default=10_000, help="clips per row")
    parser.add_argument("--folder", type=Path, default=DataBenchOptions.folder, help="where clips are made, and found again")
    parser.add_argument("--sources", type=Range(4).parser(int), default=12, help="clips to make, taken in turns")
    options = parser.parse_args()
    shards = packed(options.folder, make_sources(options.folder / "source", options.sources), "jpeg")
    rows = []
    for keeps, readers in ((False, 0), (True, 0), (True, 1)):
        if keeps:
            keep_freed_memory()
        row = {"keeps_freed": keeps, **memory_over(shards, options.clips, readers)}
        print(f"kept {keeps}, readers {readers}: {row['clips']:,} clips, {row['first_mb']:.0f} to {row['last_mb']:.0f} MB, "
              f"{row['mb_per_1000_clips']:+.2f} MB per 1,000, {row['cpu_seconds']:.0f} CPU s")
        rows.append(row)
    if options.out is not None:
        save({**head(FORMAT, VERSION), "machine": hardware(torch.device("cpu")), "rows": rows}, options.out)


if __name__ == "__main__":
    main()
