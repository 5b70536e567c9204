"""Clips are read, checked and planned in processes of their own, beside a training process that needs its interpreter for the
GPU; or in threads of this one.
"""

import contextlib
import os
import pickle
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise, repeat

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.fetch import BadClipError, ClipFetcher, Outcome
from svdata2vec.pipeline.readworker import Answer, Request, Slab
from svdata2vec.pipeline.workers import GONE, WorkerProcess
from svdata2vec.shards.errors import UserError


@dataclass(frozen=True)
class Step:
    """What a rank reads for one batch: index rows and their views; and the run's place after it."""

    epoch: int
    position: int
    rows: list[int]
    views: list[int]


@dataclass(frozen=True)
class Fetched:
    """What became of a step's clips. `slab`: where their video lies until it is given back; None: in memory of their own."""

    step: Step
    outcomes: list[Outcome]
    slab: int | None = None


class ThreadReaders:
    """Reads in the calling thread, or in several where reading means waiting for a network."""

    def __init__(self, fetcher: ClipFetcher, threads: int) -> None:
        self._fetcher = fetcher
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="svdata2vec-fetch") if threads > 1 else None

    def over(self, steps: Iterable[Step]) -> Generator[Fetched]:
        """The steps' clips, in order."""
        run = map if self._pool is None else self._pool.map
        for step in steps:
            yield Fetched(step, list(run(self._fetcher.attempt, step.rows, repeat(step.epoch), step.views)))

    def give_back(self, slab: int | None) -> None:
        """Nothing was lent."""

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class ProcessReaders:
    """Reads in processes that take turns, a step each; started at first use.

    Args:
        slabs: steps whose video may be in use at the same time, beside one per process. They are anonymous shared memory:
            nothing is left behind, whatever ends the program.

    Raises UserError from `over` when a process dies.
    """

    def __init__(self, fetcher: ClipFetcher, processes: int, slabs: int) -> None:
        self._fetcher, self._count = fetcher, processes
        self._descriptors = [os.memfd_create("svdata2vec-clips") for _ in range(slabs + processes)]
        self._slabs = [Slab(descriptor) for descriptor in self._descriptors]
        self._processes: list[WorkerProcess] = []
        self._free: deque[int] = deque()

    def over(self, steps: Iterable[Step]) -> Generator[Fetched]:
        """The steps' clips, in order; their video is valid until `give_back`, or until this is called again."""
        self._free = deque(range(len(self._slabs)))
        pending: deque[tuple[Step, int, WorkerProcess]] = deque()
        try:
            if not self._processes:
                self._start()
            for number, step in enumerate(steps):
                # The slab that was given back last: no more memory is touched than is in use, and it may still be in a cache.
                process, slab = self._processes[number % self._count], self._free.pop()
                process.send(Request(step.rows, step.epoch, step.views, slab))
                pending.append((step, slab, process))
                if len(pending) == self._count:
                    yield self._received(*pending.popleft())
            while pending:
                yield self._received(*pending.popleft())
        except GONE as error:
            statuses = [process.close() for process in self._processes]
            pending.clear()
            self._processes = []
            raise UserError(
                f"a process that reads clips has ended (exit statuses {statuses}, negative: by that signal); if memory ran "
                "out, set a smaller --data.readers or --run.batch-size, else start the run again"
            ) from error
        finally:
            for _, _, process in pending:
                with contextlib.suppress(*GONE):
                    process.receive()

    def give_back(self, slab: int | None) -> None:
        """The video of a step is not needed any more."""
        if slab is not None:
            self._free.append(slab)

    def close(self) -> None:
        """End the processes; may be called twice."""
        for process in self._processes:
            process.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._processes, self._descriptors = [], []

    def _start(self) -> None:
        for _ in range(self._count):
            self._processes.append(WorkerProcess("svdata2vec.pipeline.readworker", self._descriptors))
            self._processes[-1].send(pickle.dumps(self._fetcher))
        for process in self._processes:
            _answer(process)

    def _received(self, step: Step, slab: int, process: WorkerProcess) -> Fetched:
        answer = _answer(process)
        video = self._slabs[slab].bytes(answer.bounds[-1])
        parts = [video[start:stop] for start, stop in pairwise(answer.bounds)]
        return Fetched(step, [_with_video(*pair) for pair in zip(answer.outcomes, parts, strict=True)], slab)


def _answer(process: WorkerProcess) -> Answer:
    answer: Answer = process.receive()
    if answer.error is not None:
        raise answer.error
    return answer


def _with_video(outcome: Outcome, video: NDArray[np.uint8]) -> Outcome:
    if isinstance(outcome, BadClipError) or outcome.encoded is None:
        return outcome
    return replace(outcome, encoded=replace(outcome.encoded, video=video))
