"""The profile of training: time of overlapping streams, and which streams count as training's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from profile_training import both, length, summary, union

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def event(name: str, stream: int, start: int, duration: int, device: Any = CUDA) -> SimpleNamespace:
    return SimpleNamespace(
        name=lambda: name, device_type=lambda: device, device_resource_id=lambda: stream, start_ns=lambda: start,
        duration_ns=lambda: duration,
    )


def test_time_is_counted_once() -> None:
    assert union([(5, 7), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 7)]
    assert length(union([(0, 10), (2, 3)])) == 10
    assert both([(0, 4), (6, 9)], [(3, 7)]) == 2


def test_streams_and_their_overlap_per_step() -> None:
    million = 1_000_000  # nanoseconds in a millisecond
    events = [
        event("gemm", 7, 0, 6 * million), event("gemm", 7, 8 * million, 4 * million),
        event("warp", 20, 5 * million, 2 * million), event("copy", 21, 11 * million, 3 * million),
        event("launch", 0, 0, 90 * million, CPU), event("nothing", 7, 0, 0),
    ]
    found = summary(events, steps=2, wall_ns=20 * million)
    assert found["wall_ms"] == 10 and found["kernels_per_step"] == 2
    assert found["training_kernels_per_step"] == 1  # two in two steps; what took no time is none
    assert found["training_stream_ms"] == 5 and found["training_stream_busy_share"] == pytest.approx(0.5)
    assert found["other_streams_ms"] == 2.5 and found["both_at_once_ms"] == 1
    assert found["streams_ms"] == {"7": 5, "20": 1, "21": 1.5}
    assert list(found["kernels_ms"].items()) == [("gemm", 5), ("copy", 1.5), ("warp", 1)]
