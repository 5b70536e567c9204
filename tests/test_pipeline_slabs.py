"""Slabs: clips in blocks are written directly to upload memory, and never over data that an upload still reads."""

import contextlib
import ctypes
import itertools
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import shard_set

from svdata2vec.pipeline import loader
from svdata2vec.pipeline.blockupload import BlockUploader, CudaPageLock
from svdata2vec.pipeline.handover import Lane, Turns
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.order import OrderConfig
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.slabs import SlabFile, Slabs
from svdata2vec.pipeline.video import BlockClips, frames_of
from svdata2vec.shards.blocks import BlockFormat, Bytes
from svdata2vec.shards.reading.shardset import ShardSet

T, SIZE, BATCH = 6, 32, 2
CUDA, FORM = torch.device("cuda"), BlockFormat(32)


class FakeLock:
    """Records its calls; refuses to lock more than some number of slabs."""

    def __init__(self, most: int = 99) -> None:
        self.most, self.asked = most, 0
        self.locked: list[tuple[int, int]] = []

    def lock(self, whole: Bytes) -> str | None:
        self.asked += 1
        if len(self.locked) >= self.most:
            return "no more"
        self.locked.append((whole.ctypes.data, whole.nbytes))
        return None

    def unlock(self, whole: Bytes) -> None:
        self.locked.remove((whole.ctypes.data, whole.nbytes))


def test_a_slab_is_taken_again_when_nothing_is_left_of_its_rows() -> None:
    slabs = Slabs(3, 1000, None)
    number, rows = slabs.take()
    assert number == 0 and rows.shape == (3, 1000)
    piece = torch.from_numpy(rows[1][:10]).view(2, 5)
    rows[1] = 7
    del rows
    second, other = slabs.take()
    assert second == 1 and (piece == 7).all()
    del piece
    assert slabs.take()[0] == 0 and slabs.take()[0] == 0  # neither was kept
    other[:] = 3
    slabs.close()
    slabs.close()
    assert (other == 3).all()


def test_every_process_that_maps_the_file_sees_the_same_bytes() -> None:
    slabs = Slabs(2, 5000, None)
    held = [slabs.take() for _ in range(3)]
    for number, rows in held:
        rows[1] = number + 1
        again = slabs.file.rows_of(slabs.file.map(number))
        assert (again[1] == number + 1).all() and not again[0].any()
    assert SlabFile(0, 2, 5000).slab_bytes % 4096 == 0
    slabs.close()


def test_each_slab_is_locked_once_and_unlocked_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    lock = FakeLock()
    slabs = Slabs(2, 5000, lock)
    held = [slabs.take()[1] for _ in range(3)]
    del held
    for _ in range(5):
        slabs.take()
    assert lock.asked == 3 and {size for _, size in lock.locked} == {slabs.file.slab_bytes}
    slabs.close()
    assert not lock.locked and not caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(slabs.file.descriptor)
    slabs.close()


def test_a_file_system_without_locks_is_reported_once_and_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    lock = FakeLock(most=1)
    slabs = Slabs(2, 5000, lock)
    with caplog.at_level(logging.WARNING):
        held = [slabs.take() for _ in range(4)]
    assert [number for number, _ in held] == [0, 1, 2, 3] and lock.asked == 2
    assert caplog.text.count("no page-locked memory for clips in blocks (no more)") == 1
    slabs.close()
    assert not lock.locked


def test_cuda_is_asked_for_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the first GPU's context, which a process that uses another GPU must not create."""
    calls: list[tuple[Any, ...]] = []
    status = 0

    @contextlib.contextmanager
    def device(where: torch.device) -> Iterator[None]:
        calls.append(("on", where))
        yield
        calls.append(("off",))

    def register(*arguments: int) -> int:
        calls.append(("register", *arguments))
        return status

    cudart = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda at: calls.append(("unregister", at)))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    memory, lock = np.zeros(3 << 20, np.uint8), CudaPageLock(torch.device("cuda:3"))
    at = memory.ctypes.data
    assert lock.lock(memory) is None
    lock.unlock(memory)
    on, off = ("on", torch.device("cuda:3")), ("off",)
    assert calls == [on, ("register", at, 3 << 20, 1), off, on, ("unregister", at), off]
    calls.clear()
    slabs = BlockUploader(FORM, "cuda:3").slabs(2, T)  # what a loader has
    whole = slabs.take()[1].base
    slabs.close()
    at, size = whole.ctypes.data, -(-2 * T * FORM.frame_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    assert calls == [on, ("register", at, size, 1), off, on, ("unregister", at), off]
    status = 2
    assert lock.lock(memory) == "CUDA error 2 for 3 MiB"


def test_a_refusal_is_not_kept_for_threads_that_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA keeps an error for the thread that caused it; PyTorch raises it after the next kernel that this thread starts."""
    kept = threading.local()

    def register(*_: int) -> int:
        kept.error = 2
        return kept.error

    monkeypatch.setattr(torch.cuda, "device", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=register))
    assert CudaPageLock(CUDA).lock(np.zeros(1 << 20, np.uint8)) == "CUDA error 2 for 1 MiB"
    assert not hasattr(kept, "error")


def test_no_step_has_more_clips_than_a_slab_rows() -> None:
    for train, batch, world, smallest, start in itertools.product((True, False), (1, 3, 4), (1, 2, 3), (1, 2), range(8)):
        for rank in range(world):
            order = OrderConfig(np.arange(29), 1, batch, 0, train, train, rank, world, smallest)
            parts = [stop - start for start, stop in map(order.part, order.steps(start))]
            assert max(parts, default=0) <= order.largest_part <= batch + 2


# ---- a whole loader -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Eighteen clips, some shorter than what is sampled."""
    return shard_set(tmp_path_factory.mktemp("slabs"), 18, codec="blocks", num_frames=lambda i: 4 + i % 9)


class FakeStream:
    """Copies nothing until it is waited for, and then not at once."""

    current: "FakeStream | None" = None

    def __init__(self, device: object = None) -> None:
        self.queued: list[tuple[int, int, int]] = []  # to, from, bytes: a device keeps nothing alive

    def synchronize(self) -> None:
        time.sleep(0.02)  # readers go on meanwhile
        for copy in self.queued:
            ctypes.memmove(*copy)
        self.queued = []


@contextlib.contextmanager
def current(stream: FakeStream) -> Iterator[None]:
    FakeStream.current = stream
    try:
        yield
    finally:
        FakeStream.current = None


class LateUploader(BlockUploader):
    """Uploads from page-locked memory: bytes are read when the stream reaches the copy."""

    def decode(self, clips: Any, out: BlockClips) -> dict[int, str]:
        stream, copy = FakeStream.current, torch.Tensor.copy_

        def late(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            if source.dim() == 2 and source.dtype == torch.uint8 and non_blocking:
                assert stream is not None
                stream.queued.append((target.data_ptr(), source.data_ptr(), source.numel()))
                return target
            return copy(target, source)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "copy_", late)
            return super().decode(clips, out)


def batches(
    shards: ShardSet, readers: int, uploader: type[BlockUploader] | None, *, check_hashes: bool = True
) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    """Keys and frames of an epoch; with an uploader, through a lane with a stream."""
    form = shards.manifest.blocks
    assert form is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "make_decoder", lambda *_: (uploader or BlockUploader)(form, "cpu"))
        patch.setattr(torch.cuda, "Stream", FakeStream)
        patch.setattr(torch.cuda, "stream", current)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        plan = PlanConfig(num_frames=T, size=SIZE)
        with ClipLoader(
            shards, "all", plan, batch_size=BATCH, num_readers=readers, check_hashes=check_hashes
        ) as clips:
            producer = clips.make_producer()
            if uploader is not None:
                producer.turns = Turns([Lane(uploader(form, "cpu"), CUDA)])
            found = [(ready.batch.keys, frames_of(ready.batch.video_BTHWC)) for ready in producer.decode(producer.read(0, 0))]
            producer.close()
    return found


def assert_same(one: Any, two: Any) -> None:
    assert [keys for keys, _ in one] == [keys for keys, _ in two] and len(one) == 18 / BATCH
    for (_, first), (_, second) in zip(one, two, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("readers", [0, 2])
def test_an_upload_reads_what_was_laid_for_it(shards: ShardSet, readers: int) -> None:
    assert_same(batches(shards, 0, None), batches(shards, readers, LateUploader))


def one_slab_for_all(patch: pytest.MonkeyPatch) -> None:
    take = Slabs.take

    def again(self: Slabs) -> tuple[int, Bytes]:
        if not self._slabs:
            return take(self)
        return 0, self.file.rows_of(self._slabs[0])

    patch.setattr(Slabs, "take", again)


def no_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FakeStream, "synchronize", lambda self: None)


@pytest.mark.parametrize("fault", [one_slab_for_all, no_wait])
def test_a_fault_is_found(
    shards: ShardSet, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = batches(shards, 0, None)
    fault(monkeypatch)
    with pytest.raises(AssertionError):  # checksums, if compared, may fail first: in a slab that is overwritten meanwhile
        assert_same(plain, batches(shards, 2, LateUploader, check_hashes=False))


def test_a_lane_that_fails_has_no_upload_under_way_and_tells_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Broken:
        def synchronize(self) -> None:
            waited.append(1)
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Broken())
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda given: contextlib.nullcontext())
    lane = Lane(None, CUDA)
    with pytest.raises(ValueError, match="first"), lane.work():
        raise ValueError("first")
    assert waited == [1]
    with pytest.raises(RuntimeError, match="CUDA error"), lane.work():
        pass


def test_only_local_clips_that_are_uploaded_lie_in_slabs(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[int] = []

    def produce(one: ShardSet) -> None:
        with ClipLoader(one, "all", PlanConfig(num_frames=T, size=SIZE), batch_size=BATCH) as clips:
            producer = clips.make_producer()
            made.append(0 if (slabs := producer.readers._slabs) is None else slabs.file.rows * slabs.file.row_bytes)
            producer.close()

    produce(shards)  # a CPU decodes windows where they lie
    produce(shard_set(tmp_path / "jpeg", 4))
    form = shards.manifest.blocks
    assert form is not None
    monkeypatch.setattr(loader, "make_decoder", lambda *_: BlockUploader(form, "cpu"))
    produce(shards)
    monkeypatch.setattr(ShardSet, "reads_frames", False)  # as a set behind a URL
    produce(shards)
    assert made == [0, 0, BATCH * T * form.frame_bytes, 0]
