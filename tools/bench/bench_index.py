"""Start-up time and memory of a loader over a large index, measured with a synthetic folder whose tars are empty files.

    python tools/bench/bench_index.py --out tools/results/bench_index.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from file_options import file_to_write

from svdata2vec.runs.provenance import machine, save
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.reading.manifest import INDEX_NAME, Manifest, ShardEntry, index_dtype

CLIPS_PER_SHARD = 4096
COMPONENTS = ("jpegs", "offsets.npy", "pose.npy", "score.npy", "box.npy", "json")

# One rank in a fresh process: start-up, then three epochs of order and keys. Private memory: the mapped index is shared.
PROBE = """
import json, sys, time
import psutil
from svdata2vec.bench.machine import peak_bytes
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.reading.shardset import ShardSet

def private_mb():
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20

before, started = private_mb(), time.process_time()
loader = ClipLoader(ShardSet.open(sys.argv[1]), "train", PlanConfig(), batch_size=32, train=True, rank=1, world_size=4)
seconds, opened = time.process_time() - started, private_mb()
ordered = 0.0
for epoch in range(3):
    started = time.process_time()
    rows = loader.order.clips(epoch).between(0, 20000)[0].tolist()
    ordered += time.process_time() - started
    keys = [loader.shards.index[row]["key"].decode() for row in rows]
print(json.dumps({"start_seconds": seconds, "order_seconds": ordered / 3, "private_mb": opened - before,
                  "private_mb_walked": private_mb() - before, "peak_resident_mb": peak_bytes() / 2**20,
                  "batches": loader.batches_per_epoch, "distinct_keys": len(set(keys))}))
"""


def write_folder(root: Path, num_clips: int) -> None:
    """Manifest and index of `num_clips` clips in two pairs of splits."""
    keys = [f"S{i // 10000:03d}C001P{i % 97:03d}A{i % 60:03d}n{i:07d}" for i in range(num_clips)]
    index = np.zeros(num_clips, index_dtype(len(keys[0]), len(COMPONENTS)))
    index["key"], index["shard"], index["frames"] = keys, np.arange(num_clips) // CLIPS_PER_SHARD, 100
    np.save(root / INDEX_NAME, index)
    shuffled = [keys[i] for i in np.random.default_rng(0).permutation(num_clips)]
    cut, half = int(0.7 * num_clips), num_clips // 2
    splits = {"train": shuffled[:cut], "val": shuffled[cut:], "train2": keys[:half], "val2": keys[half:]}
    shards = [
        ShardEntry(f"shard-{i:06d}.tar", "0" * 64, 0, min(CLIPS_PER_SHARD, num_clips - CLIPS_PER_SHARD * i))
        for i in range(-(-num_clips // CLIPS_PER_SHARD))
    ]
    for shard in shards:
        (root / shard.name).touch()
    Manifest(
        dataset="synthetic", codec="jpeg", packed_size=320, layout=COCO17, classes=("a",), components=COMPONENTS,
        splits=splits, shards=tuple(shards), fingerprint="synthetic",
    ).save(root)


def probe(root: Path) -> dict[str, float]:
    """Figures of one rank."""
    result = subprocess.run([sys.executable, "-c", PROBE, str(root)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=file_to_write)
    parser.add_argument("--clips", type=Range(1).parser(int), default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), options.clips)
        result = {"clips": options.clips, **probe(Path(folder))}
    result = {**machine(), **result}
    print(json.dumps(result, indent=1))
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
