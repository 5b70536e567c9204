"""A background thread between a generator and its consumer: bounded, stoppable, and honest about exceptions."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1  # how long a stop may go unnoticed; a waiting item wakes its consumer at once


class _End:
    """End of the source, with the exception that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch(Generic[T]):
    """Iterates over `source` on a daemon thread, at most `depth` items ahead. Exceptions reach the consumer.

    The thread holds no reference to this object, so an abandoned one can be collected; `close` ends the thread.
    """

    def __init__(self, source: Iterator[T], depth: int, name: str) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_run, args=(source, self._queue, self._stop), name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetch[T]":
        return self

    def __next__(self) -> T:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                return item
            self._queue.put(item)  # every further call ends in the same way
            if item.error is not None:
                raise item.error
            raise StopIteration
        raise StopIteration

    def request_stop(self) -> None:
        """Ask the thread to end after the item it is working on."""
        self._stop.set()

    def close(self) -> None:
        """Stop the thread, wait for it and drop what was prefetched; may be called twice."""
        self._stop.set()
        self._thread.join()
        while not self._queue.empty():
            self._queue.get_nowait()


def _run(source: Iterator[T], items: "queue.Queue[T | _End]", stop: threading.Event) -> None:
    end = _End(None)
    try:
        for item in source:
            if not _put(items, item, stop):
                break
    except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
        end = _End(error)
    close = getattr(source, "close", None)
    if close is not None:
        close()
    _put(items, end, stop)


def _put(items: "queue.Queue[T | _End]", item: T | _End, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            items.put(item, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False
