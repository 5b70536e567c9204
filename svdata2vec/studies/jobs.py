"""Runs in parallel processes, each with its own cores or GPU."""

import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from svdata2vec.config.schema import Device
from svdata2vec.runs.runtime import announced_place, end_with_parent
from svdata2vec.runs.stopping import stoppable
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import MachineError, UserError

ASK_SECONDS = 1.0  # between two requests to stop
GONE = (EOFError, OSError)  # raised by a pipe whose other end is closed

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    """What became of a job: its result, or the exception that ended it."""

    result: Result | None = None
    error: BaseException | None = None


def run_all(jobs: Sequence[Callable[[], Result]], at_once: int, device: Device = "auto") -> list[Result]:
    """Results of the jobs, in their order.

    If a job fails, those that are running finish, no other starts, and its exception is raised. SIGTERM and Ctrl+C reach the
    jobs, too: training saves. Raises MachineError if the process of a job was killed.

    Args:
        jobs: to run.
        at_once: how many run at a time; if more than one, in fresh processes.
        device: that they run on; with "cpu" no GPU is assigned to them.
    """
    if announced_place()[1] > 1:
        raise UserError("a study starts its runs itself; start it as one process, with --jobs as many as GPUs or cores")
    try:
        with stoppable():
            return [job() for job in jobs] if at_once == 1 or len(jobs) < 2 else _side_by_side(jobs, at_once, device)
    except (KeyboardInterrupt, SystemExit):
        log.warning("asked to stop: what is finished is kept, start again to go on")
        raise


class _Worker:
    """A process that runs one job after another: jobs go in through `pipe`, outcomes come back.

    Not `ProcessPoolExecutor`, which may not notice the death of the process that it started last until another one answers,
    and keeps a lock that it was taking when a signal came.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, place))
        self.process.start()
        theirs.close()

    def send(self, job: Callable[[], Any]) -> None:
        """Start a job. Raises MachineError if the process has died."""
        try:
            self.pipe.send(job)
        except GONE as error:
            raise self._death() from error

    def outcome(self) -> _Outcome[Any]:
        """Wait for the job's outcome. Raises MachineError if the process has died."""
        try:
            outcome: _Outcome[Any] = self.pipe.recv()
        except GONE as error:
            raise self._death() from error
        return outcome

    def _death(self) -> MachineError:
        self.process.join()
        how = "was killed (by hand, or because memory ran out: take fewer --jobs)"
        if (self.process.exitcode or 0) >= 0:
            how = f"ended unexpectedly (exit status {self.process.exitcode}; see its output above)"
        return MachineError(f"the process of a run {how}; what is finished is kept, start again to go on")


def _side_by_side(jobs: Sequence[Callable[[], Result]], at_once: int, device: Device) -> list[Result]:
    """`run_all` in fresh processes."""
    workers: list[_Worker] = []
    try:
        for _, place in zip(jobs, shares(at_once, device), strict=False):
            workers.append(_Worker(place))
        results = _hand_out(jobs, workers)
    except BaseException:
        _stop(workers)
        raise
    for worker in workers:
        worker.pipe.close()
        worker.process.join()
    return results


def _hand_out(jobs: Sequence[Callable[[], Result]], workers: Sequence[_Worker]) -> list[Result]:
    """The jobs' results. A failure is raised once the running jobs have finished, a request to stop at once."""
    left, idle = deque(enumerate(jobs)), deque(workers)
    at_work: dict[Connection, tuple[int, _Worker]] = {}
    results: dict[int, Any] = {}
    failures: list[BaseException] = []
    while at_work or (left and not failures):
        while left and idle and not failures:
            (number, job), worker = left.popleft(), idle.popleft()
            worker.send(job)
            at_work[worker.pipe] = number, worker
        for pipe in wait(list(at_work)):
            assert isinstance(pipe, Connection)
            number, worker = at_work.pop(pipe)
            outcome = worker.outcome()
            idle.append(worker)
            if outcome.error is None:
                results[number] = outcome.result
                log.info("%d of %d runs done", len(results), len(jobs))
            elif isinstance(outcome.error, Exception):
                failures.append(outcome.error)
                if at_work:
                    log.warning("a run has failed, others come to their end first: %s", outcome.error)
            else:
                raise outcome.error
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(jobs))]


def _stop(workers: Sequence[_Worker]) -> None:
    """Send SIGTERM until no process is left: at the first one training saves, the next one ends it."""
    for worker in workers:
        worker.pipe.close()
    while at_work := [worker.process for worker in workers if worker.process.is_alive()]:
        for process in at_work:
            process.terminate()
        time.sleep(ASK_SECONDS)


def shares(at_once: int, device: Device = "auto") -> Iterator[dict[str, Any]]:
    """GPU (as in CUDA_VISIBLE_DEVICES) or cores of each process; assigned in turn if there are fewer than processes.

    With cores go threads: fewer than cores where a quota of a control group grants less time.
    """
    if device != "cpu" and (gpus := visible_gpus()):
        yield from ({"gpu": gpus[number % len(gpus)]} for number in range(at_once))
        return
    cores = sorted(os.sched_getaffinity(0))
    each, threads = max(len(cores) // at_once, 1), max(job_cores() // at_once, 1)
    for number in range(at_once):
        first = number * each % len(cores)
        yield {"cores": cores[first : first + each], "threads": threads}


def visible_gpus() -> list[str]:
    """GPUs that this process sees, as the environment names them; other entries there, such as -1, are left out."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def _serve(jobs: Connection, place: dict[str, Any]) -> None:
    """Main loop of a worker's process: restrict it to its share of the machine, then run jobs until the pipe is closed.

    Stops as on SIGTERM when the parent dies, even if it died while this process was starting.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent too, which stops the others
    if "gpu" in place:
        os.environ["CUDA_VISIBLE_DEVICES"] = place["gpu"]
    else:
        os.sched_setaffinity(0, place["cores"])
        os.environ["OMP_NUM_THREADS"] = str(place["threads"])
        torch.set_num_threads(place["threads"])
    end_with_parent()
    parent = multiprocessing.parent_process()
    with suppress(*GONE):
        while True:
            job = jobs.recv()
            if parent is not None and not parent.is_alive():
                return
            jobs.send(_outcome(job))


def _outcome(job: Callable[[], Result]) -> _Outcome[Result]:
    try:
        return _Outcome(job())
    except BaseException as error:  # noqa: BLE001 - raised in the parent
        error.add_note(f"in the process of a run:\n{traceback.format_exc().rstrip()}")
        return _Outcome(error=error)
