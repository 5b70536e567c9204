"""The threads of a loader: how they pass on items, and how they end, no matter how the program ends."""

import atexit
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from svdata2vec.pipeline.producer import Producer, Read, Ready

T = TypeVar("T")


class _End:
    """End of the source, with the exception that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@dataclass
class _Channel(Generic[T]):
    """The state that a consumer and its thread share.

    `queue.Queue` and `threading.Event` hold a lock in Python code: a Ctrl+C there leaves it locked, and the thread waits
    forever. `SimpleQueue` takes and releases its lock in C. Their `get` is never called with a timeout: Python 3.11 and 3.12
    lose it if a signal wakes a thread that gets to run only after that time.

    Attributes:
        room: permissions of the thread: one to start, one for each item that it may pass on, one to stop.
        waits: the thread has an item ready and waits for room.
    """

    items: "SimpleQueue[T | _End]" = field(default_factory=SimpleQueue)
    room: "SimpleQueue[None]" = field(default_factory=SimpleQueue)
    stopped: bool = False
    waits: bool = False


class Prefetch(Generic[T]):
    """Iterates over `source` on a daemon thread, at most `depth` items ahead. Exceptions reach the consumer.

    The thread starts at the first `next` and holds no reference to this object; `close` ends it.
    """

    def __init__(self, source: Iterator[T], depth: int, name: str) -> None:
        self._channel: _Channel[T] = _Channel()
        self._depth, self._begun = depth, False
        self._thread = threading.Thread(target=_run, args=(source, self._channel), name=name, daemon=True)

    def __iter__(self) -> "Prefetch[T]":
        return self

    def __next__(self) -> T:
        channel = self._channel
        if channel.stopped:
            raise StopIteration
        if not self._begun:
            self._begin()
        item = channel.items.get()
        if not isinstance(item, _End):
            channel.room.put(None)
            return item
        channel.items.put(item)  # every further call ends in the same way
        if item.error is not None:
            raise item.error
        raise StopIteration

    def _begin(self) -> None:
        """Start the thread. An interrupt in here may leave one that `close` cannot join yet: it has no permission to start."""
        self._thread.start()
        for _ in range(1 + self._depth):
            self._channel.room.put(None)
        self._begun = True

    @property
    def idle(self) -> bool:
        """Whether the thread is as far ahead of the consumer as it may be, or is not running."""
        full = self._channel.waits and self._channel.items.qsize() == self._depth
        return full or not self._thread.is_alive()

    @property
    def stopped(self) -> bool:
        """Whether the thread was asked to end."""
        return self._channel.stopped

    def request_stop(self) -> None:
        """Ask the thread to end after the item it is working on."""
        self._channel.stopped = True
        self._channel.room.put(None)  # it may wait for room

    def close(self) -> None:
        """Stop the thread, wait for it and drop what was prefetched; may be called twice."""
        self.request_stop()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(Empty):
            while True:
                self._channel.items.get_nowait()


def _run(source: Iterator[T], channel: _Channel[T]) -> None:
    end = _End(None)
    try:
        with ExitStack() as stack:
            if hasattr(source, "close"):
                stack.callback(source.close)
            if not _has_room(channel):
                return
            for item in source:
                if not _has_room(channel):
                    break
                channel.items.put(item)
    except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
        end = _End(error)
    channel.items.put(end)


def _has_room(channel: _Channel[T]) -> bool:
    """Wait for permission to start, or to pass on an item; False once the consumer has stopped."""
    channel.waits = True
    channel.room.get()
    channel.waits = False
    return not channel.stopped


class Background:
    """Threads and decoder of a loader (`owner`), which it does not keep alive: it ends when the owner is collected.

    Belongs to the process that made it. A forked child has no such threads and must not destroy what the parent's threads
    work on: there it is kept and never freed.
    """

    def __init__(self, producer: Producer, owner: object) -> None:
        self._producer = producer
        self._pid = os.getpid()
        self._reader: Prefetch[Read] | None = None
        self._stream: Prefetch[Ready] | None = None
        self._finalizer = weakref.finalize(owner, self._shut_down)
        self._finalizer.atexit = False  # _close_all runs earlier
        _ALL.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # last registered, first called: before DALI's handler destroys its pipelines

    @property
    def is_mine(self) -> bool:
        """False in a forked child of the process that made this."""
        return self._pid == os.getpid()

    def next_ready(self, epoch: int, position: int, depth: int) -> Ready:
        """The next batch; the first call starts the threads at this position. An exception in a thread is raised here."""
        try:
            if self._stream is not None and self._stream.stopped:  # a second interrupt prevented joining the threads
                self.stop()
            if self._stream is None:
                self._reader = Prefetch(self._producer.read(epoch, position), depth, "svdata2vec-read")
                self._stream = Prefetch(self._producer.decode(self._reader), depth, "svdata2vec-decode")
            return next(self._stream)
        except BaseException:
            self.stop()
            raise

    @property
    def idle(self) -> bool:
        """Whether the threads are as far ahead of the consumer as they may be, or are not running."""
        return all(stage is None or stage.idle for stage in (self._stream, self._reader))

    def stop(self) -> None:
        """End the threads, drop what was prefetched, keep the decoder."""
        stages = [stage for stage in (self._stream, self._reader) if stage is not None]
        for stage in stages:
            stage.request_stop()
        for stage in stages:
            stage.close()
        self._reader = self._stream = None

    def close(self) -> None:
        """End threads and decoder; may be called twice."""
        self._finalizer()

    def _shut_down(self) -> None:
        if not self.is_mine:
            _LEFT_TO_PARENT.append(self)
        elif threading.current_thread().name.startswith("svdata2vec"):  # collected on one of its own threads
            for stage in (self._stream, self._reader):
                if stage is not None:
                    stage.request_stop()
        else:
            self.stop()
            self._producer.close()


_ALL: "weakref.WeakSet[Background]" = weakref.WeakSet()
_LEFT_TO_PARENT: list[Background] = []


def _close_all() -> None:
    for background in list(_ALL):
        background.close()
