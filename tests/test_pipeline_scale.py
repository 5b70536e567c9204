"""Large and long: a million clips in the index, ten thousand clips through the loader, random clips of every shape."""

import tempfile
from pathlib import Path

import bench_index
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_factory import clip_parts, shard_set, write_shards

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import psnr


@pytest.mark.slow
def test_a_million_clips_start_in_seconds_and_stay_small(tmp_path):
    bench_index.write_folder(tmp_path, 1_000_000)
    figures = bench_index.probe(tmp_path)
    assert figures["batches"] == 700_000 // 128 and figures["distinct_keys"] == 20_000
    assert figures["start_seconds"] < 5 and figures["private_mb"] < 200
    assert figures["private_mb_walked"] < figures["private_mb"] + 30  # the order of one epoch is alive meanwhile


def test_ten_thousand_clips_leave_memory_flat(tmp_path):
    shards = shard_set(tmp_path, 500, size=32, num_frames=lambda i: 3 + i % 3, clips_per_shard=50)
    seen, memory = 0, []
    with ClipLoader(shards, "all", PlanConfig(num_frames=2, size=16), batch_size=20, train=True) as loader:
        for _ in range(20):
            for batch in loader:
                seen += len(batch)
            memory.append(psutil.Process().memory_info().rss / 2**20)
    assert seen == 10_000
    assert memory[-1] - memory[4] < 10


@settings(max_examples=40, deadline=None)
@given(
    num_frames=st.integers(1, 400), size=st.sampled_from([32, 33, 45, 64]), persons=st.integers(0, 3),
    seed=st.integers(0, 2**31), reach=st.sampled_from([0.0, 3.0, 40.0, 500.0]), train=st.booleans(),
    centre=st.sampled_from([(110.0, 80.0), (-30.0, 20.0), (260.0, 200.0)]),
)
def test_random_clips_match_the_reference_decoder(num_frames, size, persons, seed, reach, train, centre):
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
        for decoder in ("dali", "reference"):
            options = {"batch_size": 1, "train": train, "seed": seed, "decoder": decoder, "num_threads": 1}
            with ClipLoader(shards, "all", plan, max_bad_rate=0.0, **options) as loader:
                batches.append(next(iter(loader)))
    fast, slow = batches
    assert torch.equal(fast.joints_BMTVC, slow.joints_BMTVC)
    assert psnr(fast.video_BTHWC, slow.video_BTHWC) >= 45


@pytest.mark.parametrize("codec", ["jpeg", "blocks", "vp9", "h264"])
def test_every_encoding_through_the_loader(tmp_path, codec):
    shards = shard_set(tmp_path, 6, codec=codec, size=64)
    plan = PlanConfig(num_frames=5, size=48)
    batches = []
    for decoder in ("dali", "reference"):
        with ClipLoader(shards, "all", plan, batch_size=6, train=True, decoder=decoder) as loader:
            batches += list(loader)
    fast, slow = batches
    assert fast.keys == slow.keys and torch.equal(fast.joints_BMTVC, slow.joints_BMTVC)
    assert min(map(psnr, fast.video_BTHWC, slow.video_BTHWC)) >= 35
