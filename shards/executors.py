"""Where packing and verification run: in this process, in worker processes of this machine, or on a dask cluster."""

import concurrent.futures as cf
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

CONNECT_TIMEOUT = "15s"
NOT_BEGUN = ("worker processes ended as they began. They import the program that calls this: a script must be a file, not "
             "standard input, and do its work under `if __name__ == \"__main__\":`, or take workers=1. If it does "
             "so, the machine is short of memory")

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, cluster: str | None = None,
              after_death: str = "finished shards are kept: run again with --resume and fewer --workers",
              ) -> Generator[Result, None, None]:
    """Results as they come, in any order; closing the iterator ends the work.

    `workers` <= 1: in this process, else in processes that import the main program again (UserError where that ends them).
    `cluster`: address of a dask scheduler, e.g. tcp://host:8786; its workers need this
    package and must see sources and output under the same paths. `after_death`: what to do when a worker process has died.
    At most 2 tasks per worker are handed out, so memory stays flat. After an error the tasks at work are waited for; after
    Ctrl+C, or where the iterator is closed early, worker processes end at once.
    """
    if cluster is None and workers <= 1:
        yield from map(function, tasks)
        return
    waiting: set[cf.Future[Result]] = set()
    with _processes(workers) if cluster is None else _cluster(cluster) as (executor, slots):
        try:
            for task in tasks:
                with _unheard_interrupts():
                    waiting.add(executor.submit(function, task))
                if len(waiting) >= 2 * slots:
                    done, waiting = cf.wait(waiting, return_when=cf.FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = cf.wait(waiting, return_when=cf.FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise WorkerDiedError(f"a worker process died (killed, or out of memory); {after_death}") from error
        except BaseException as error:
            if cluster is not None or isinstance(error, Exception):  # (a cancelled future confuses a pool that is killed)
                for future in waiting:
                    future.cancel()
            raise


@contextmanager
def _unheard_interrupts() -> Iterator[None]:
    """Processes that begin here never get a Ctrl+C, which a terminal sends to all: the parent answers it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _processes(workers: int) -> Iterator[tuple[cf.Executor, int]]:
    # spawn: threads of OpenCV and FFmpeg do not survive a fork
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    begun = context.Event()
    with cf.ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(begun,)) as pool:
        try:
            yield pool, workers
        except WorkerDiedError as error:
            if begun.is_set():
                raise
            raise UserError(NOT_BEGUN) from error
        except (KeyboardInterrupt, GeneratorExit):
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _begin(begun: multiprocessing.synchronize.Event) -> None:
    """Say that a worker has begun, and let it die with its parent process: after kill -9 there, it would wait for ever."""
    begun.set()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _cluster(address: str) -> Iterator[tuple[cf.Executor, int]]:
    try:
        import distributed
    except ImportError as error:
        raise UserError("--cluster needs dask: pip install 'svdata2vec[cluster]'") from error
    try:
        client = distributed.Client(address, timeout=CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        raise UserError(f"--cluster {address}: no dask scheduler answers there ({error})") from error
    lost = (distributed.KilledWorker, distributed.comm.CommClosedError)
    with client:
        slots = sum(client.nthreads().values())
        if not slots:
            raise UserError(f"--cluster {address}: the scheduler has no workers; start some: dask worker {address}")
        try:
            yield client.get_executor(pure=False), slots
        except lost as error:
            raise MachineError(f"--cluster {address}: workers or the scheduler died ({error}); finished shards are kept: run "
                            "again with --resume") from error
