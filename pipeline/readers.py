"""Reads, checks and plans clips in separate processes, as the training process needs its interpreter for the GPU; or in
threads of this process.
"""

import contextlib
import pickle
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

from svdata2vec.pipeline.fetch import ClipFetcher, Outcome
from svdata2vec.pipeline.readworker import Answer, Request
from svdata2vec.pipeline.slabs import Slabs
from svdata2vec.pipeline.workers import GoneError, WorkerProcess, not_started
from svdata2vec.shards.blocks import Bytes
from svdata2vec.shards.errors import WorkerDiedError

Places = Iterable[Bytes | None]  # where each clip's frames are written


@dataclass(frozen=True)
class Step:
    """The index rows and views that a rank reads for one batch, and the run's position after it."""

    epoch: int
    position: int
    rows: list[int]
    views: list[int]


@dataclass(frozen=True)
class Fetched:
    """A step and the outcome of each of its clips."""

    step: Step
    outcomes: list[Outcome]


class ThreadReaders:
    """Reads in the calling thread, or in several threads if reading waits for a network. slabs: as in `ProcessReaders`."""

    def __init__(self, fetcher: ClipFetcher, threads: int, slabs: Slabs | None) -> None:
        self._fetcher, self._slabs = fetcher, slabs
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="svdata2vec-fetch") if threads > 1 else None

    def over(self, steps: Iterable[Step]) -> Generator[Fetched]:
        """The steps' clips, in order."""
        for step in steps:
            if self._pool is None:
                _, places = _taken(self._slabs)
                yield Fetched(step, self._fetcher.fetch_step(step.rows, step.epoch, step.views, places))
            else:
                singles = ([[row] for row in step.rows], repeat(step.epoch), [[view] for view in step.views])
                yield Fetched(step, [outcome for (outcome,) in self._pool.map(self._fetcher.fetch_step, *singles)])

    def close(self) -> None:
        """End the threads; may be called twice."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._slabs is not None:
            self._slabs.close()


class ProcessReaders:
    """Reads in processes that take turns, a step each; started at first use.

    Frames that are stored one by one are checked there and mapped here again, so they reach this process without a copy. With
    `slabs` a reader copies them into a slab, from which they are uploaded; the clips keep it in use.

    `over` raises WorkerDiedError when a process dies, MachineError if one cannot be started. Any error ends all of them.
    """

    def __init__(self, fetcher: ClipFetcher, processes: int, slabs: Slabs | None) -> None:
        self._fetcher, self._count, self._slabs = fetcher, processes, slabs
        self._processes: list[WorkerProcess] = []

    def over(self, steps: Iterable[Step]) -> Generator[Fetched]:
        """The steps' clips, in order."""
        pending: deque[tuple[Step, Places, WorkerProcess]] = deque()
        try:
            if not self._processes:
                self._start()
            for number, step in enumerate(steps):
                process = self._processes[number % self._count]
                slab, places = _taken(self._slabs)
                process.send(Request(step.rows, step.epoch, step.views, slab))
                pending.append((step, places, process))
                if len(pending) == self._count:
                    yield self._received(*pending.popleft())
            while pending:
                yield self._received(*pending.popleft())
        except GoneError as error:
            raise WorkerDiedError(
                f"a process that reads clips has ended (exit statuses {self._end()}, negative: by that signal); if memory ran "
                "out, set a smaller --data.readers or --run.batch-size, else start the run again"
            ) from error
        except Exception:
            self._end()
            raise
        finally:
            for _, _, process in pending:
                if process in self._processes:  # otherwise all have been closed already
                    with contextlib.suppress(GoneError):
                        process.receive()

    def close(self) -> None:
        """End the processes; may be called twice."""
        self._end()
        if self._slabs is not None:
            self._slabs.close()

    def _end(self) -> list[int]:
        """End the processes; returns their exit statuses."""
        statuses = [process.close() for process in self._processes]
        self._processes = []
        return statuses

    def _start(self) -> None:
        file = None if self._slabs is None else self._slabs.file
        for _ in range(self._count):
            descriptors = () if file is None else (file.descriptor,)
            try:
                self._processes.append(WorkerProcess("svdata2vec.pipeline.readworker", descriptors))
            except OSError as error:
                raise not_started(error, "reads clips", "--data.readers") from error
            self._processes[-1].send(pickle.dumps((self._fetcher, file)))
        for process in self._processes:
            _answer(process)

    def _received(self, step: Step, places: Places, process: WorkerProcess) -> Fetched:
        outcomes = map(self._fetcher.received, _answer(process).outcomes, places)
        return Fetched(step, list(outcomes))


def _taken(slabs: Slabs | None) -> tuple[int | None, Places]:
    """Number and rows of a slab for the next step; without slabs None, and frames stay where they are."""
    return (None, repeat(None)) if slabs is None else slabs.take()


def _answer(process: WorkerProcess) -> Answer:
    answer: Answer = process.receive()
    if answer.error is not None:
        raise answer.error
    return answer
