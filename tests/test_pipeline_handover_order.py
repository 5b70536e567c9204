"""The hand-over checked against a model of streams and of PyTorch's allocator: no buffer is read early or reused too soon.

The model's GPU runs an operation only when something waits for it, which is the worst case: an operation is ordered after
another only if it is later on the same stream, or if a host thread has waited for the other one before starting it.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from svdata2vec.pipeline import handover
from svdata2vec.pipeline.handover import Lane, Turns

BATCHES, STEPS_PER_RECORD = 24, 6
CUDA = torch.device("cuda")


class FakeStream:
    """Counts its operations; `waited` is how many of them the host knows to have run."""

    def __init__(self, gpu: "FakeGpu") -> None:
        self.gpu, self.queued, self.waited = gpu, 0, 0

    def synchronize(self) -> None:
        with self.gpu.lock:
            self.waited = self.queued


@dataclass
class Block:
    """A block of memory; its last uses are stream -> number of the operation there."""

    home: FakeStream
    uses: dict[FakeStream, int] = field(default_factory=dict)
    marked: set[FakeStream] = field(default_factory=set)


class Buffer:
    """A tensor on the fake GPU, as far as the hand-over needs one."""

    is_cuda, device = True, CUDA

    def __init__(self, block: Block) -> None:
        self.block = block

    def record_stream(self, stream: FakeStream) -> None:
        self.block.marked.add(stream)


class Batch:
    def __init__(self, *buffers: Buffer) -> None:
        self.buffers = buffers

    def tensors(self) -> dict[str, Buffer]:
        return {str(number): buffer for number, buffer in enumerate(self.buffers)}


class FakeGpu:
    """Streams, memory that is taken and released as PyTorch's caching allocator does, and the races that were found."""

    def __init__(self) -> None:
        self.lock, self.local = threading.RLock(), threading.local()
        self.default = FakeStream(self)  # the training stream
        self.blocks: list[Block] = []
        self.free: list[Block] = []
        self.pending: list[tuple[Block, dict[FakeStream, int]]] = []  # released, with events that must have passed
        self.races: list[str] = []
        self.reused = 0

    def current(self, device: torch.device | None = None) -> FakeStream:
        return getattr(self.local, "stream", self.default)

    @contextlib.contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.local.stream = self.current(), stream
        try:
            yield
        finally:
            self.local.stream = before

    def empty(self) -> Buffer:
        """A block for the current stream: a free one, if there is any."""
        with self.lock:
            for block, events in list(self.pending):
                if all(stream.waited >= number for stream, number in events.items()):
                    self.pending.remove((block, events))
                    self.free.append(block)
            block = next((block for block in self.free if block.home is self.current()), None)
            if block is None:
                self.blocks.append(block := Block(self.current()))
            else:
                self.free.remove(block)
                self.reused += 1
            return Buffer(block)

    def use(self, buffer: Buffer, what: str) -> None:
        """A kernel on the current stream; a race if an earlier use of the block may run at the same time."""
        with self.lock:
            stream, block = self.current(), buffer.block
            stream.queued += 1
            if any(other is not stream and other.waited < number for other, number in block.uses.items()):
                self.races.append(what)
            block.uses[stream] = stream.queued

    def release(self, buffer: Buffer) -> None:
        """Free a block after its last reference: at once for its own stream, else after an event on each recorded stream."""
        with self.lock:
            block = buffer.block
            events = {stream: stream.queued for stream in block.marked if stream is not block.home}
            block.marked = set()
            self.pending.append((block, events))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: FakeStream(fake))
    monkeypatch.setattr(torch.cuda, "stream", fake.on)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", fake.current)
    return fake


def play(gpu: FakeGpu, lanes: int) -> list[int]:
    """A loader and a training run: decode in the lanes, jitter and upload, take, compute; returns how far training lagged."""
    turns = Turns([Lane(None, CUDA) for _ in range(lanes)])

    def decode(lane: Lane, step: int) -> Buffer:
        with lane.work():
            frames = gpu.empty()
            gpu.use(frames, "decode")
        return frames

    behind = []
    for step, lane, frames in turns.over(range(BATCHES), decode):
        with lane.work():
            gpu.use(frames, "jitter")
            joints = gpu.empty()
            gpu.use(joints, "upload")
        batch = handover.take(Batch(frames, joints))  # type: ignore[arg-type]
        for buffer in batch.tensors().values():
            gpu.use(buffer, "train")  # type: ignore[arg-type]
            gpu.release(buffer)  # type: ignore[arg-type]
        behind.append(gpu.default.queued - gpu.default.waited)
        if step % STEPS_PER_RECORD == STEPS_PER_RECORD - 1:
            gpu.default.synchronize()  # the figures of a record are read
    turns.close()
    return behind


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_no_buffer_is_read_early_or_reused_before_its_consumer_is_done(lanes: int, gpu: FakeGpu) -> None:
    """Memory is freed after a record, and nothing waits for training between two of them."""
    behind = play(gpu, lanes)
    assert not gpu.races
    assert gpu.reused >= BATCHES // 2 and len(gpu.blocks) <= 2 * (2 * STEPS_PER_RECORD + lanes)
    assert max(behind) == 2 * STEPS_PER_RECORD


def no_mark(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "take", lambda batch: batch)


def mark_of_the_wrong_stream(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream(gpu))


def no_wait(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = FakeStream.synchronize
    monkeypatch.setattr(FakeStream, "synchronize", lambda self: wait(self) if self is gpu.default else None)


def no_stream(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding on a stream that nobody waits for, as the lane waits for its own."""
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: gpu.on(FakeStream(gpu)))


@pytest.mark.parametrize(
    ("fault", "race"), [(no_mark, "decode"), (mark_of_the_wrong_stream, "decode"), (no_wait, "train"), (no_stream, "train")]
)
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_fault_of_the_hand_over_is_found(
    fault: Callable[[FakeGpu, pytest.MonkeyPatch], None], race: str, lanes: int, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(gpu, monkeypatch)
    play(gpu, lanes)
    assert Counter(gpu.races)[race] > BATCHES // 4
