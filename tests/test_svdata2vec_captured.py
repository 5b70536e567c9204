"""The code around a CUDA graph, with a stand-in for the graph on the CPU: its inputs and outputs, and the eager parts."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import pretrain_config
from torch import Tensor, nn

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training import loop
from svdata2vec.training.graph import WARM_UP, CapturedPass
from svdata2vec.training.pretrain import Pretraining

SHAPE_BD = (4, 3)
CPU = Runtime(torch.device("cpu"), 0, 1, False)


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph: a capture computes nothing, a replay writes to the captured addresses alone."""

    made: ClassVar[list["FakeGraph"]] = []

    def __init__(self) -> None:
        self.replays = 0
        self.captured: CapturedPass | None = None
        FakeGraph.made.append(self)

    def replay(self) -> None:
        assert self.captured is not None
        self.replays += 1
        mine = self.captured
        with torch.enable_grad():
            figures = mine.compute(*mine._inputs)
            gradients = torch.autograd.grad(figures["loss"], mine.parameters, allow_unused=True)
        for static, value in zip((*mine._figures.values(), *mine._gradients), (*figures.values(), *gradients), strict=True):
            assert (static is None) == (value is None)
            if static is not None and value is not None:
                static.copy_(value.detach())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """The stand-in in place of CUDA's graphs and streams."""
    modes: list[str] = []
    run = CapturedPass._pass

    @contextlib.contextmanager
    def capture(graph: FakeGraph, capture_error_mode: str) -> Iterator[None]:
        modes.append(capture_error_mode)
        yield
        assert modes == ["thread_local"]  # once; other threads of the loader allocate meanwhile
        modes.clear()

    def captured_pass(self: CapturedPass) -> dict[str, Tensor]:
        if not modes:
            return run(self)
        before = [buffer.clone() for buffer in self.network.buffers()]
        figures = run(self)
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)
        for tensor in (*figures.values(), *(parameter.grad for parameter in self.parameters)):
            if tensor is not None:
                tensor.fill_(float("nan"))  # a capture computes nothing
        FakeGraph.made[-1].captured = self
        return figures

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    FakeGraph.made = []
    monkeypatch.setattr(CapturedPass, "_pass", captured_pass)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return FakeGraph


class Small(nn.Module):
    """A norm with statistics, a layer that the loss does not reach, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.used, self.unused, self.frozen = nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.calls = 0

    def compute(self, x_BD: Tensor, scale: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        y_BD = self.frozen(self.used(self.norm(x_BD)))
        return {"loss": scale * y_BD.square().mean(), "spread": y_BD.std()}


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE_BD, generator=generator), torch.rand((), generator=generator)


def eager(network: Small, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    network.zero_grad(set_to_none=True)
    figures = network.compute(*inputs)
    figures["loss"].backward()
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in network.parameters()]
    return {name: value.detach() for name, value in figures.items()}, gradients


def test_every_batch_has_its_own_figures_and_gradients(fake: type[FakeGraph]) -> None:
    """As eager passes give them, statistics included; the optimizer may drop the gradients between two calls, or keep them."""
    torch.manual_seed(0)
    captured_network, network = Small(), Small()
    network.load_state_dict(captured_network.state_dict())
    captured = CapturedPass(captured_network.compute, captured_network)
    for seed in range(4):
        figures = captured(*batch(seed))
        want, gradients = eager(network, batch(seed))
        torch.testing.assert_close(figures, want)
        for parameter, gradient in zip(captured_network.parameters(), gradients, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient)
        torch.testing.assert_close(captured_network.state_dict(), network.state_dict())
        if seed % 2:
            captured_network.zero_grad(set_to_none=True)
    assert len(fake.made) == 1 and fake.made[0].replays == 4


def test_inputs_are_copied_to_the_same_places(fake: type[FakeGraph]) -> None:
    network = Small()
    captured = CapturedPass(network.compute, network)
    first = batch(0)
    captured(*first)
    places = [tensor.data_ptr() for tensor in captured._inputs]
    assert not set(places) & {tensor.data_ptr() for tensor in first}  # the loader reuses its own
    gradients = [parameter.grad for parameter in captured.parameters]
    captured(*batch(1))
    assert [tensor.data_ptr() for tensor in captured._inputs] == places
    torch.testing.assert_close(captured._inputs, list(batch(1)))
    assert all(parameter.grad is kept for parameter, kept in zip(captured.parameters, gradients, strict=True))


def test_a_batch_of_another_shape_or_type_is_refused_before_a_replay(fake: type[FakeGraph]) -> None:
    network = Small()
    captured = CapturedPass(network.compute, network)
    x_BD, scale = batch(0)
    captured(x_BD, scale)
    for other in (x_BD[:3], x_BD.double()):
        with pytest.raises(ValueError, match=r"^the pass was captured for torch.float32 \(4, 3\), called with torch\."):
            captured(other, scale)
    assert fake.made[0].replays == 1 and network.calls == WARM_UP + 2  # warm-up, capture, one replay


def test_a_short_batch_goes_the_eager_way(
    fake: type[FakeGraph], tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of an epoch; whole ones go through the graph, and all give the losses and weights of an eager run."""
    monkeypatch.setattr(loop, "require_launch", lambda config, runtime: None)
    ways: list[Any] = []
    for launch in ("graph", "eager"):
        config = pretrain_config(tiny_shard_folder, tmp_path, launch=launch)
        with build_loader(ShardSet.open(tiny_shard_folder), config, CPU, train=True) as loader:
            run = Pretraining(config, CPU, loader)
        generator, losses = torch.Generator().manual_seed(0), []
        for step, clips in enumerate((4, 4, 3, 4)):
            video = torch.randint(0, 256, (clips, 6, 32, 32, 3), dtype=torch.uint8, generator=generator)
            joints = 32 * torch.rand(clips, 2, 6, 17, 2, generator=generator)
            keys = tuple(f"clip {step} {i}" for i in range(clips))
            run.step([(step, ClipBatch(video, joints, torch.zeros(clips, dtype=torch.int64), keys))])
            losses.append(run.stepper.averages.take()["loss"])
        ways.append((losses, run.model.state_dict(), run.teacher.state_dict()))
    torch.testing.assert_close(*ways)
    assert [graph.replays for graph in fake.made] == [3]
