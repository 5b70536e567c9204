"""Large and long: a million clips in the index, ten thousand clips through the loader, random clips of every shape."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_factory import clip_parts, shard_set, write_shards

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.index import INDEX_NAME, index_dtype
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.manifest import Manifest, ShardEntry

NUM_CLIPS = 1_000_000

# Run in a fresh process: start-up of one rank, then walking through an epoch's order.
PROBE = """
import json, sys, time
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.order import epoch_order
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.shardset import ShardSet

def private_mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

before, started = private_mb(), time.process_time()
loader = ClipLoader(ShardSet.open(sys.argv[1]), "train", PlanConfig(), batch_size=32, train=True, rank=1, world_size=4)
seconds, opened = time.process_time() - started, private_mb()
for epoch in range(3):
    order = epoch_order(loader.order.num_entries, 0, epoch, True)
    rows = [int(loader.order.rows[i]) for i in order[:20000]]
    keys = [loader.shards.index[row]["key"].decode() for row in rows]
print(json.dumps({"seconds": seconds, "mb": opened - before, "walked_mb": private_mb() - before,
                  "batches": loader.batches_per_epoch, "distinct": len(set(keys))}))
"""


def million_clips(root: Path) -> None:
    """Manifest and index of a million clips in two pairs of splits; the tars are empty files."""
    keys = [f"S{i // 10000:03d}C001P{i % 97:03d}A{i % 60:03d}n{i:07d}" for i in range(NUM_CLIPS)]
    components = ("jpegs", "offsets.npy", "pose.npy", "score.npy", "box.npy", "json")
    index = np.zeros(NUM_CLIPS, index_dtype(len(keys[0]), len(components)))
    index["key"], index["shard"], index["frames"] = keys, np.arange(NUM_CLIPS) // 4096, 100
    np.save(root / INDEX_NAME, index)
    shuffled = [keys[i] for i in np.random.default_rng(0).permutation(NUM_CLIPS)]
    splits = {"train": shuffled[:700_000], "val": shuffled[700_000:], "x": keys[:500_000], "y": keys[500_000:]}
    shards = [
        ShardEntry(f"shard-{i:06d}.tar", "0" * 64, 0, min(4096, NUM_CLIPS - 4096 * i)) for i in range(-(-NUM_CLIPS // 4096))
    ]
    for shard in shards:
        (root / shard.name).touch()
    Manifest(
        dataset="million", codec="jpeg", packed_size=320, layout=COCO17, classes=("a",), components=components,
        splits=splits, shards=tuple(shards), fingerprint="million",
    ).save(root)


def test_a_million_clips_start_in_seconds_and_stay_small(tmp_path):
    million_clips(tmp_path)
    result = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout)
    assert figures["batches"] == 700_000 // 128 and figures["distinct"] == 20_000
    assert figures["seconds"] < 5 and figures["mb"] < 200
    assert figures["walked_mb"] < figures["mb"] + 30  # the order of one epoch is alive while it is walked


def rss_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_ten_thousand_clips_leave_memory_flat(tmp_path):
    shards = shard_set(tmp_path, 500, size=32, num_frames=lambda i: 3 + i % 3, clips_per_shard=50)
    seen, memory = 0, []
    with ClipLoader(shards, "all", PlanConfig(num_frames=2, size=16), batch_size=20, train=True) as loader:
        for _ in range(20):
            for batch in loader:
                seen += len(batch)
            memory.append(rss_mb())
    assert seen == 10_000
    assert memory[-1] - memory[4] < 10


@settings(max_examples=40, deadline=None)
@given(
    num_frames=st.integers(1, 400), size=st.sampled_from([32, 33, 45, 64]), persons=st.integers(0, 3),
    seed=st.integers(0, 2**31), reach=st.sampled_from([0.0, 3.0, 40.0, 500.0]), train=st.booleans(),
    centre=st.sampled_from([(110.0, 80.0), (-30.0, 20.0), (260.0, 200.0)]),
)
def test_random_clips_match_the_oracle(num_frames, size, persons, seed, reach, train, centre):
    """reach 0: all joints missing; 3: too small a box; 500 or an outer centre: boxes outside the picture."""
    generator = np.random.default_rng(seed)
    pose = (np.array(centre) + generator.uniform(-reach, reach, (persons, num_frames, 17, 2))).astype(np.float32)
    if reach == 0:
        pose[:] = 0
    plan = PlanConfig(num_frames=7, size=40)
    with tempfile.TemporaryDirectory() as folder:
        parts = clip_parts("clip", num_frames, size=size, seed=seed, pose=pose)
        shards = write_shards(Path(folder), [("clip", num_frames, parts)], size=size)
        batches = []
        for decoder in ("dali", "oracle"):
            options = {"batch_size": 1, "train": train, "seed": seed, "decoder": decoder, "num_threads": 1}
            with ClipLoader(shards, "all", plan, max_bad_rate=0.0, **options) as loader:
                batches.append(next(iter(loader)))
    fast, slow = batches
    assert torch.equal(fast.joints_BMTVC, slow.joints_BMTVC)
    error = (fast.video_BTHWC.double() - slow.video_BTHWC.double()).square().mean().item()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45


@pytest.mark.parametrize("codec", ["jpeg", "vp9", "h264"])
def test_every_encoding_through_the_loader(tmp_path, codec):
    shards = shard_set(tmp_path, 6, codec=codec, size=64)
    plan = PlanConfig(num_frames=5, size=48)
    batches = []
    for decoder in ("dali", "oracle"):
        with ClipLoader(shards, "all", plan, batch_size=6, train=True, decoder=decoder) as loader:
            batches += list(loader)
    fast, slow = batches
    assert fast.keys == slow.keys and torch.equal(fast.joints_BMTVC, slow.joints_BMTVC)
    error = (fast.video_BTHWC.double() - slow.video_BTHWC.double()).square().mean(dim=(1, 2, 3, 4))
    assert (10 * torch.log10(255**2 / error.clamp(min=1e-9))).min() >= 35
