"""Waits during the hand-over of frames: lanes in turn, and streams replaced by stand-ins that record every wait."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from pipeline_factory import shard_set

from svdata2vec.pipeline import loader as loader_module
from svdata2vec.pipeline import producer as producer_module
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.handover import Lane, Turns, take
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig

CPU = torch.device("cpu")


class Closed:
    def __init__(self):
        self.times = 0

    def close(self):
        self.times += 1


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_results_come_in_order_and_no_lane_has_two_users(lanes):
    busy, together = [threading.Lock() for _ in range(lanes)], []
    turns = Turns([Lane(None, CPU) for _ in range(lanes)])
    at_work = 0

    def job(lane, item):
        nonlocal at_work
        with busy[turns.lanes.index(lane)]:
            at_work += 1
            together.append(at_work)
            time.sleep(0.02 if item % 2 == 0 else 0.001)  # the later item would be ready first
            at_work -= 1
        return item * item

    for item, lane, result in turns.over(range(9), job):
        assert result == item * item
        lock = busy[turns.lanes.index(lane)]
        assert lock.acquire(blocking=False), "the lane of a result is at work"
        lock.release()
    assert max(together) == lanes
    turns.close()


def test_a_failure_comes_in_its_place_and_leaves_no_lane_at_work():
    done = []

    def job(lane, item):
        time.sleep(0.01)
        done.append(item)
        if item == 3:
            raise RuntimeError("item 3")
        return item

    turns, seen = Turns([Lane(None, CPU), Lane(None, CPU)]), []
    with pytest.raises(RuntimeError, match="item 3"):
        for item, _, _ in turns.over(range(10), job):
            seen.append(item)
    assert seen == [0, 1, 2] and sorted(done) == [0, 1, 2, 3, 4]
    assert [item for item, _, _ in turns.over(range(3), lambda lane, item: item)] == [0, 1, 2]
    turns.close()


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_an_error_of_the_source_comes_behind_what_it_gave(lanes):
    def source():
        yield from range(4)
        raise RuntimeError("no more")

    turns, seen = Turns([Lane(None, CPU) for _ in range(lanes)]), []
    with pytest.raises(RuntimeError, match="no more"):
        for item, _, _ in turns.over(source(), lambda lane, item: item):
            seen.append(item)
    assert seen == [0, 1, 2, 3]
    turns.close()


def test_an_iteration_that_is_left_early_waits_for_its_lanes():
    done, turns = [], Turns([Lane(None, CPU), Lane(None, CPU)])
    walk = turns.over(range(10), lambda lane, item: (time.sleep(0.02), done.append(item)))
    next(walk)
    walk.close()
    assert sorted(done) == [0, 1]
    turns.close()


def test_closing_closes_every_decoder():
    decoders = [Closed(), Closed()]
    turns = Turns([Lane(decoder, CPU) for decoder in decoders])
    turns.close()
    assert [decoder.times for decoder in decoders] == [1, 1]


@pytest.fixture
def events(monkeypatch):
    """Records the calls to CUDA, in order; waiting for the whole device is forbidden."""
    written = []

    class Stream:
        def __init__(self, device):
            self.device = device
            self.name = f"stream {sum(event.startswith('new') for event in written)}"
            written.append(f"new {self.name}")

        def synchronize(self):
            written.append(f"wait for {self.name}")

    here = [torch.device("cuda:0")]

    @contextlib.contextmanager
    def current(stream):
        assert here[-1] == stream.device, "it would make a context on the GPU that this thread has by itself"
        written.append(f"on {stream.name}")
        try:
            yield
        finally:
            written.append(f"off {stream.name}")

    @contextlib.contextmanager
    def at_home(device):
        """On exit, `torch.cuda.stream` restores the stream of the device that was current before."""
        here.append(device)
        try:
            yield
        finally:
            here.pop()

    def forbidden(*_):
        raise AssertionError("the hand-over waits for everything on the device")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "device", at_home)
    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(name="training"))
    return written


def test_a_lane_has_its_own_stream_and_waits_for_no_other(events):
    one, two = (Lane(None, torch.device("cuda:1")) for _ in range(2))
    for lane in (one, two):
        with lane.work():
            events.append("decode")
    assert events == [
        "new stream 0", "new stream 1",
        "on stream 0", "decode", "wait for stream 0", "off stream 0",
        "on stream 1", "decode", "wait for stream 1", "off stream 1",
    ]


@pytest.mark.parametrize("broken", [False, True])
def test_a_lane_that_fails_waits_for_its_stream_too(events, monkeypatch, broken):
    """Then its memory is free. The first error is raised, even if the stream itself is broken."""
    lane = Lane(None, torch.device("cuda"))
    if broken:
        def fail(stream):
            events.append(f"wait for {stream.name}")
            raise RuntimeError("an illegal memory access")

        monkeypatch.setattr(torch.cuda.Stream, "synchronize", fail)
    with pytest.raises(ValueError, match="damaged"), lane.work():
        raise ValueError("damaged")
    assert events == ["new stream 0", "on stream 0", "wait for stream 0", "off stream 0"]


def test_a_loader_on_a_gpu_has_two_lanes(events, tmp_path, monkeypatch):
    """Each has its own decoder and stream: the GPU decodes for one while the host feeds the other."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(ClipLoader, "new_decoder", lambda loader: Closed())
    shards = shard_set(tmp_path, 4, num_frames=lambda i: 10, size=64)
    with ClipLoader(shards, "all", PlanConfig(num_frames=6, size=32), batch_size=2, device="cuda") as loader:
        producer = loader.make_producer()
        producer.close()
    decoders = [lane.decoder for lane in producer.turns.lanes]
    assert len({*decoders}) == len(decoders) == 2 and [decoder.times for decoder in decoders] == [1, 1]
    assert events == ["new stream 0", "new stream 1"]


def test_the_consumer_does_not_wait_and_keeps_the_memory_until_it_is_done(events):
    tensors = {
        name: SimpleNamespace(
            is_cuda=place == "cuda", device=place, record_stream=lambda stream, name=name: events.append((name, stream.name))
        )
        for name, place in (("video_BTHWC", "cuda"), ("joints_BMTVC", "cuda"), ("label_B", "cpu"))
    }
    batch = SimpleNamespace(tensors=lambda: tensors)
    assert take(batch) is batch
    assert events == [("video_BTHWC", "training"), ("joints_BMTVC", "training")]


def test_all_that_makes_a_batch_is_started_on_the_lanes_stream(events, tmp_path, monkeypatch):
    """Decoding, colour jitter and the upload of joints and labels; a wait for the stream closes each of the two parts."""
    shards = shard_set(tmp_path, 4, num_frames=lambda i: 10, size=64)
    plan = PlanConfig(num_frames=6, size=32, augment=AugmentConfig(brightness=0.5))
    decoder = SimpleNamespace(decode=lambda clips, out: events.append("decode") or {}, close=lambda: None)
    moved, move = [], ClipBatch.to
    monkeypatch.setattr(producer_module, "apply_pixel_augment", lambda video, augment: events.append("jitter"))

    def upload(batch, device):
        events.append("upload")
        moved.append(device)
        return move(batch, device)

    monkeypatch.setattr(ClipBatch, "to", upload)
    with ClipLoader(shards, "all", plan, batch_size=2, train=True, decoder="reference") as loader:
        producer = loader.make_producer()
    lane = Lane(decoder, torch.device("cuda"))
    producer.turns, producer.device = Turns([lane]), torch.device("meta")  # in place of a GPU's memory
    del events[:]
    batches = producer.decode(producer.read(0, 0))
    next(batches)
    del batches
    producer.close()
    assert moved == [torch.device("meta")]
    begin, end = "on stream 0", ["wait for stream 0", "off stream 0"]
    assert events == [begin, "decode", *end, begin, "jitter", "jitter", "upload", *end]


def test_a_loader_hands_out_what_was_taken(tmp_path, monkeypatch):
    """Each batch passes `take` on the consumer's thread, so that its memory is not reused under the consumer's kernels."""
    taken = []
    monkeypatch.setattr(loader_module, "take", lambda batch: taken.append(threading.current_thread()) or batch)
    shards = shard_set(tmp_path, 4, num_frames=lambda i: 10, size=64)
    with ClipLoader(shards, "all", PlanConfig(num_frames=6, size=32), batch_size=2, decoder="reference") as loader:
        assert len(list(loader)) == 2
    assert taken == 2 * [threading.current_thread()]
