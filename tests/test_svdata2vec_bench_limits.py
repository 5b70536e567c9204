"""Limits of `bench run`: correct bytes and ceilings, and the bound of each stage."""

import itertools
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdata2vec.bench import limits
from svdata2vec.bench.limits import Rates, roofline
from svdata2vec.bench.machine import peak_gpu_bytes
from svdata2vec.config.schema import DataConfig, PretrainConfig
from svdata2vec.shards.reading.shardset import ShardSet


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_readers_read_every_byte_of_the_tars_once(
    tiny_shard_folder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, seen = ShardSet.open(tiny_shard_folder), []
    real = limits._read_part

    def noted(tars: Sequence[Path], sizes: Sequence[int], start: int, length: int) -> int:
        seen.append((start, done := real(tars, sizes, start, length)))
        return done

    monkeypatch.setattr(limits, "_read_part", noted)
    assert (limits.storage_bytes_per_second(shards, at_once) or 0) > 0
    whole = sum(tar.stat().st_size for tar in shards.tars)
    parts = sorted(seen)
    assert len(parts) == at_once and sum(done for _, done in parts) == whole
    assert [start for start, _ in parts] == [0, *itertools.accumulate(done for _, done in parts[:-1])]
    assert real(shards.tars, [tar.stat().st_size for tar in shards.tars], whole - 5, 100) == 5


@pytest.mark.parametrize("weights", [(), (1.0, 1.0), (1.0, 0.25), (2.0, 6.0)])
def test_only_the_pictures_that_are_seen_are_read(weights: tuple[float, ...]) -> None:
    """Two clips of 10 and 3 frames, of which 5 are seen: half of one, all of the other, each once; of videos all.

    They are sets of their own, of which an epoch takes more or less.
    """
    first, second = weights or (1, 1)
    config = PretrainConfig(encode="all_frames", data=DataConfig(num_frames=5))
    index = np.array([([600, 400], 10), ([90, 0], 3)], dtype=[("size", "i8", 2), ("frames", "i8")])
    shares = [(np.array([place]), weight) for place, weight in enumerate(weights)]
    pictures_alone, video = ((500, 90), (5, 3)), ((1000, 90), (10, 3))
    for codec, found in (("jpeg", pictures_alone), ("blocks", pictures_alone), ("vp9", video)):
        manifest = types.SimpleNamespace(codec=codec)
        shards: Any = types.SimpleNamespace(index=index, manifest=manifest, shares=lambda _: shares)
        expected = [(first * one + second * other) / (first + second) for one, other in found]
        works = (limits.read_bytes, limits.coded_pictures)
        assert [work(shards, np.arange(2), config) for work in works] == pytest.approx(expected)


def test_limits_come_from_counts_and_ceilings() -> None:
    counts = {"flops_per_clip": 100.0, "step_bytes_per_clip": 10.0, "read_bytes_per_clip": 5.0, "decoded_bytes_per_clip": 2}
    ceilings = {"matmul_flops_per_s": 1000.0, "copy_bytes_per_s": 200.0, "storage_bytes_per_s": 500.0}
    found = roofline(Rates(read=50, decode=25, data=20, model=5, train=4), counts, ceilings)
    limits = {name: (row["limit_clips_per_s"], row["limited_by"], row["efficiency"]) for name, row in found.items()}
    assert limits == {
        "read": (100, "tars read in order", 0.5), "decode": (50, "frames copied once", 0.5), "data": (25, "decode alone", 0.8),
        "model": (10, "matrix products", 0.5), "train": (5, "model alone", 0.8),
    }
    blocks = {**counts, "uploaded_bytes_per_clip": 4.0}
    uploaded = roofline(Rates(50, 25, 20, 5, 4), blocks, {**ceilings, "upload_bytes_per_s": 400.0})["decode"]
    assert (uploaded["limit_clips_per_s"], uploaded["limited_by"]) == (100, "bytes uploaded")
    assert roofline(Rates(50, 25, 20, 5, 4), blocks, {**ceilings, "upload_bytes_per_s": None})["decode"] == found["decode"]
    slow_memory = roofline(Rates(50, 25, 20, 5, 4), counts, {**ceilings, "copy_bytes_per_s": 80.0, "storage_bytes_per_s": None})
    assert slow_memory["model"]["limited_by"] == "memory traffic" and slow_memory["model"]["limit_clips_per_s"] == 8
    assert slow_memory["read"]["limit_clips_per_s"] is None and slow_memory["read"]["efficiency"] is None


@pytest.mark.parametrize(("rate", "taken"), [(1e9, [128, 256]), (6e10, [128, 256, 512, 1024]), (1e15, [128, 256, 512, 1024])])
def test_a_product_is_as_large_as_the_device_is_fast(rate: float, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 that a CPU emulates is a hundred times slower than what it has instructions for."""
    sides = []

    def timed(product: Any, device: torch.device) -> float:
        rows, columns = product().shape
        assert rows == columns
        sides.append(rows)
        return float(2 * rows**3 / rate)

    monkeypatch.setattr(limits, "median_seconds", timed)
    assert limits.matmul_flops_per_second(torch.device("cpu"), torch.float32) == pytest.approx(rate)
    assert sides == taken


@pytest.mark.parametrize(("place", "precision"), [("cpu", "highest"), ("cuda", "high")])
def test_float32_has_the_precision_of_convolutions(place: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have TF32 on a GPU unless somebody forbids it, products of matrices have not."""
    found = []

    def timed(product: Any, device: torch.device) -> float:
        found.append(torch.get_float32_matmul_precision())
        return 1.0

    monkeypatch.setattr(limits, "median_seconds", timed)
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device: randn(*shape))
    limits.matmul_flops_per_second(torch.device(place), torch.float32)
    assert found == [precision] and torch.get_float32_matmul_precision() == "highest"


def test_a_graph_s_memory_counts_though_the_allocator_calls_it_free(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [
        {"segment_pool_id": (0, 1), "total_size": 100, "allocated_size": 30},
        {"segment_pool_id": (0, 0), "total_size": 900, "allocated_size": 1},
        {"segment_pool_id": (0, 1), "total_size": 50, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 31)
    graph: Any = types.SimpleNamespace(pool=lambda: (0, 1))
    assert [peak_gpu_bytes(torch.device("cuda"), one) for one in (None, graph)] == [31, 31 + 70 + 50]
