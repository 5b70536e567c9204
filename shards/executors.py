"""Where packing and verification run: in this process, in worker processes of this machine, or on a dask cluster."""

import concurrent.futures as cf
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.synchronize
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from svdata2vec.shards.errors import MachineError, UserError, WorkerDiedError

CONNECT_SECONDS = 15.0
LOOK_SECONDS = 120.0  # without a result, before looking whether there are workers at all
NOT_BEGUN = ("worker processes ended as they began. They import the program that calls this: a script must be a file, not "
             "standard input, and do its work under `if __name__ == \"__main__\":`, or take workers=1. If it does "
             "so, the machine is short of memory")

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, cluster: str | None = None,
              after_death: str = "finished shards are kept: run again with --resume and fewer --workers",
              ) -> Generator[Result, None, None]:
    """Results as they come, in any order; closing the iterator ends the work.

    At most 2 tasks per worker are handed out, so memory stays flat. After an error, running tasks are waited for; after
    Ctrl+C, or if the iterator is closed early, worker processes end at once.

    Args:
        function, tasks: the work.
        workers: 1 or less = in this process, else in processes that import the main program again (UserError if that ends
            them).
        cluster: address of a dask scheduler, e.g. tcp://host:8786; its workers need this package and must see sources and
            output under the same paths.
        after_death: advice for the error if a worker process has died.
    """
    if cluster is None and workers <= 1:
        yield from map(function, tasks)
        return
    waiting: set[cf.Future[Result]] = set()
    with _processes(workers) if cluster is None else _cluster(cluster) as (executor, slots, look):
        try:
            for task in tasks:
                with _interrupts_blocked():
                    waiting.add(executor.submit(function, task))
                if len(waiting) >= 2 * slots:
                    done, waiting = _first_done(waiting, look)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = _first_done(waiting, look)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise WorkerDiedError(f"a worker process died (killed, or out of memory); {after_death}") from error
        except BaseException as error:
            if cluster is not None or isinstance(error, Exception):  # (a cancelled future confuses a pool that is killed)
                for future in waiting:
                    future.cancel()
            raise


def _first_done(waiting: set[cf.Future[Result]], look: Callable[[], None]
                ) -> tuple[set[cf.Future[Result]], set[cf.Future[Result]]]:
    """Those that are done, at least one, and the others."""
    while True:
        done, others = cf.wait(waiting, LOOK_SECONDS, return_when=cf.FIRST_COMPLETED)
        if done:
            return done, others
        look()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside never receive Ctrl+C, which a terminal sends to all: the parent handles it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _processes(workers: int) -> Iterator[tuple[cf.Executor, int, Callable[[], None]]]:
    # spawn: threads of OpenCV and FFmpeg do not survive a fork
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    begun = context.Event()
    with cf.ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(begun,)) as pool:
        try:
            yield pool, workers, lambda: None  # a process that dies breaks the pool
        except WorkerDiedError as error:
            if begun.is_set():
                raise
            raise UserError(NOT_BEGUN) from error
        except (KeyboardInterrupt, GeneratorExit):
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _begin(begun: multiprocessing.synchronize.Event) -> None:
    """Report that a worker has started, and end it with its parent: after kill -9 of that, it would wait forever."""
    begun.set()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _cluster(address: str) -> Iterator[tuple[cf.Executor, int, Callable[[], None]]]:
    try:
        import distributed
    except ImportError as error:
        raise UserError("--cluster needs dask: pip install 'svdata2vec[cluster]'") from error
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UserError(f"--cluster {address}: no dask scheduler answers there ({error})") from error

    def look() -> None:
        if not client.nthreads():
            log.warning("--cluster %s: no worker is left, and packing waits for some; start them, or stop and go on with "
                        "--resume: dask worker %s", address, address)

    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise UserError(f"--cluster {address}: the scheduler has no workers; start some: dask worker {address}") from error
        try:
            yield client.get_executor(pure=False), sum(client.nthreads().values()), look
        except distributed.KilledWorker as error:
            raise WorkerDiedError(f"--cluster {address}: workers died ({error}); finished shards are kept: run again with "
                                  "--resume") from error
        except (distributed.comm.CommClosedError, cf.CancelledError) as error:
            raise MachineError(f"--cluster {address}: the scheduler died, or cannot be reached any more; finished shards are "
                               "kept: run again with --resume") from error
