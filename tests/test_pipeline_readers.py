"""Reader processes give the same batches as a thread, no matter what is damaged, stopped or killed on the way."""

import errno
import itertools
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import torch
from pipeline_factory import shard_set
from waiting import wait_for

from svdata2vec.pipeline import readers as reader_module
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.producer import Producer
from svdata2vec.pipeline.readers import Step
from svdata2vec.pipeline.workers import WorkerProcess
from svdata2vec.shards.errors import MachineError, UserError, WorkerDiedError
from svdata2vec.shards.reading.shardset import ShardSet

PLAN = PlanConfig(num_frames=6, size=32)


@pytest.fixture
def shards(tmp_path) -> ShardSet:
    return shard_set(tmp_path / "shards", 23)


def loader_of(shards: ShardSet, readers: int = 2, **more) -> ClipLoader:
    options = {"batch_size": 4, "train": True, "decoder": "reference", **more}
    return ClipLoader(shards, "all", PLAN, num_readers=readers, **options)


def batches_of(shards: ShardSet, readers: int, epochs: int = 2, **more) -> list[ClipBatch]:
    with loader_of(shards, readers, **more) as loader:
        return [batch for _ in range(epochs) for batch in loader]


def assert_same(first: list[ClipBatch], second: list[ClipBatch]) -> None:
    assert [batch.keys for batch in first] == [batch.keys for batch in second]
    for one, two in zip(first, second, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, two.tensors()[name]), name


def reader_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "readworker" in " ".join(child.cmdline())]


@pytest.mark.parametrize("options", [
    {}, {"train": False}, {"train": False, "joints": False}, {"video": False}, {"decoder": "dali", "prefetch": 1},
])
@pytest.mark.parametrize("readers", [1, 3])
def test_batches_are_those_of_a_thread(shards, readers, options):
    """Two epochs, the second from the same processes."""
    assert_same(batches_of(shards, 0, **options), batches_of(shards, readers, **options))
    assert not reader_processes()


@pytest.mark.parametrize(("prefetch", "readers", "lanes"), [(1, 0, 1), (2, 1, 1), (1, 3, 1), (2, 0, 2), (1, 2, 3)])
def test_so_many_batches_are_made_ahead(shards, monkeypatch, prefetch, readers, lanes):
    """Ahead of a consumer that pauses: a benchmark must not count these as read in its own time."""
    begun, steps_of = [], Producer._steps

    def noted(producer: Producer, epoch: int, position: int) -> Iterator[Step]:
        for step in steps_of(producer, epoch, position):
            begun.append(step)
            yield step

    monkeypatch.setattr(Producer, "_steps", noted)
    monkeypatch.setattr(ClipLoader, "num_lanes", lanes)
    with loader_of(shards, readers, prefetch=prefetch) as loader:
        batches, taken = iter(loader), 2
        for _ in range(taken):
            next(batches)
        wait_for(lambda: len(begun) >= taken + loader.most_ahead)
        time.sleep(0.3)  # no more come
        assert len(begun) == taken + loader.most_ahead


def test_an_abandoned_iterator_may_be_closed_before_it_is_dropped(shards):
    """As a benchmark does, whose iterator is freed last: an error would be a traceback that cannot be caught."""
    producer = loader_of(shards, 3).make_producer()
    reads = producer.read(0, 0)
    next(reads)
    producer.close()
    reads.close()
    assert not reader_processes()


def test_video_codecs_go_the_same_way(tmp_path):
    shards = shard_set(tmp_path / "vp9", 9, codec="vp9", size=64)
    assert_same(batches_of(shards, 0, decoder="dali"), batches_of(shards, 2, decoder="dali"))


def test_larger_clips_follow_smaller_ones(tmp_path):
    """Batches that were read before are still in use."""
    shards = shard_set(tmp_path / "shards", 12)
    order = shards.index["size"].sum(axis=1).argsort()
    options = {"train": False, "limit": order, "batch_size": 1, "prefetch": 3}
    assert_same(batches_of(shards, 0, 1, **options), batches_of(shards, 1, 1, **options))


def test_an_interrupted_epoch_continues_and_restarts(shards):
    whole = batches_of(shards, 0, 1)
    with loader_of(shards) as loader:
        assert_same(whole[:2], list(itertools.islice(loader, 2)))
        state = loader.state_dict()
        loader.set_epoch(0)
        assert_same(whole[:1], list(itertools.islice(loader, 1)))
        loader.load_state_dict(state)
        assert_same(whole[2:], list(loader))


def test_damaged_clips_are_replaced_alike(shards, caplog):
    (tar,) = shards.tars[:1]
    entry = shards.index[1]
    column = shards.manifest.components.index("pose.npy")
    with tar.open("r+b") as file:
        file.seek(int(entry["offset"][column]))
        file.write(b"\xff" * 100)
    fresh = ShardSet.open(shards.root)
    thread, processes = (batches_of(fresh, readers, max_bad_rate=0.1) for readers in (0, 2))
    assert_same(thread, processes)
    assert not any("clip00001" in batch.keys for batch in thread)
    assert "skipping clip clip00001" in caplog.text


def test_a_tar_that_is_cut_ends_the_run_in_the_same_words(shards):
    tar = Path(shards.tars[0])
    os.truncate(tar, tar.stat().st_size // 2)
    messages = []
    for readers in (0, 2):
        with pytest.raises(UserError) as caught:
            batches_of(shards, readers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and str(tar) in messages[0]


def test_a_reader_that_is_killed_ends_the_run_in_one_line(shards):
    with loader_of(shards, prefetch=1) as loader:
        stream = itertools.chain.from_iterable(itertools.repeat(loader))
        next(stream)
        reader_processes()[0].send_signal(signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"process that reads clips has ended .*-9.*--data\.readers"):
            for _ in range(100):
                next(stream)
    assert not reader_processes()


def test_readers_that_cannot_open_the_set_are_ended_and_restarted_later(shards):
    hidden = shards.root.rename(shards.root.with_name("hidden"))
    with loader_of(shards) as loader:
        with pytest.raises(UserError, match="no such folder"):
            next(iter(loader))
        assert not reader_processes()
        hidden.rename(shards.root)
        assert len(next(iter(loader))) == 4


def test_a_reader_that_cannot_start_and_a_failing_disk_are_reported_as_such(shards, monkeypatch):
    """Neither is a process that has ended."""
    with loader_of(shards) as loader:
        with monkeypatch.context() as patched:
            patched.setattr(reader_module, "WorkerProcess", Mock(side_effect=OSError(errno.EAGAIN, "Try again")))
            with pytest.raises(MachineError, match=r"reads clips cannot be started \(Try again\): .*--data\.readers"):
                next(iter(loader))
        assert len(next(iter(loader))) == 4
        monkeypatch.setattr(ShardSet, "will_need", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
                assert len(batch) == 4
    assert not reader_processes()


def test_a_worker_imports_nothing_from_the_folder_where_the_run_was_started(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    worker = WorkerProcess("svdata2vec.pipeline.readworker", [])
    worker.send(b"no pickle")
    assert isinstance(worker.receive().error, pickle.UnpicklingError)
    assert worker.close() == 0


def test_signals_to_the_whole_group_leave_the_readers_alone(shards):
    """A scheduler's SIGTERM lets the program save its state, for which it must not lose its readers."""
    with loader_of(shards, prefetch=1) as loader:
        stream = itertools.chain.from_iterable(itertools.repeat(loader))
        next(stream)
        for process, number in itertools.product(reader_processes(), (signal.SIGTERM, signal.SIGINT)):
            process.send_signal(number)
        assert all(len(next(stream)) == 4 for _ in range(30))
        assert len(reader_processes()) == 2
