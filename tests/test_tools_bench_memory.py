"""The measurement of the loader's memory tells flat from growing memory, and works with a real loader."""

from pathlib import Path

import bench_memory
import pytest
from bench_memory import growth, memory_over

from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.reading.shardset import ShardSet


def test_growth_is_distinguished_from_a_start_that_settles() -> None:
    clips = range(250, 10_001, 250)
    settled = growth([[count, 500 - 300 / count] for count in clips])
    assert abs(settled["mb_per_1000_clips"]) < 0.05 and settled["last_mb"] == pytest.approx(500, abs=0.1)
    leak = growth([[count, 500 + 0.01 * count] for count in clips])
    assert leak["mb_per_1000_clips"] == pytest.approx(10) and leak["last_mb"] - leak["first_mb"] > 60
    start = growth([[count, 100.0 if count < 1500 else 500.0] for count in clips])
    assert start["first_mb"] == start["last_mb"] == 500 and abs(start["mb_per_1000_clips"]) < 1e-9


@pytest.mark.parametrize("readers", [0, 1])
def test_a_loader_is_looked_at(tiny_shard_folder: Path, monkeypatch: pytest.MonkeyPatch, readers: int) -> None:
    monkeypatch.setattr(bench_memory, "PLAN", PlanConfig(num_frames=2, size=32))
    row = memory_over(ShardSet.open(tiny_shard_folder), 500, readers)
    assert [count for count, _ in row["looks"]] == [250, 500] and row["clips"] == 500
    assert row["first_mb"] > 50 and row["cpu_seconds"] > 0 and row["readers"] == readers
