"""Where packing and verification run: in this process, in worker processes of this machine, or on a dask cluster."""

import concurrent.futures as cf
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from svdata2vec.shards.errors import UserError, WorkerDiedError

CONNECT_TIMEOUT = "15s"

Task = TypeVar("Task")
Result = TypeVar("Result")


class InlineExecutor(cf.Executor):
    """Runs every task at once in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "cf.Future[Any]":
        """A future that is done already."""
        future: cf.Future[Any] = cf.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        return future


@contextmanager
def open_executor(workers: int, cluster: str | None) -> Iterator[tuple[cf.Executor, int]]:
    """An executor and the number of tasks it works on at a time.

    `workers` <= 1: in this process. `cluster`: address of a dask scheduler, e.g. tcp://host:8786; its workers need this
    package and must see sources and output under the same paths.
    """
    if cluster is not None:
        with _cluster_executor(cluster) as opened:
            yield opened
    elif workers <= 1:
        yield InlineExecutor(), 1
    else:
        # spawn: threads of OpenCV and FFmpeg do not survive a fork
        context = multiprocessing.get_context("spawn")
        with cf.ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            try:
                yield pool, workers
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _end_with_parent() -> None:
    """Let a worker die with the process that started it: after kill -9 there, it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _cluster_executor(address: str) -> Iterator[tuple[cf.Executor, int]]:
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
            raise UserError(f"--cluster {address}: workers or the scheduler died ({error}); finished shards are kept: run "
                            "again with --resume") from error


def run_tasks(executor: cf.Executor, slots: int, function: Callable[[Task], Result],
              tasks: Iterable[Task]) -> Iterator[Result]:
    """Results as they come, in any order. At most 2 tasks per slot are handed out, so memory stays flat."""
    waiting: set[cf.Future[Result]] = set()
    source = iter(tasks)
    try:
        for task in source:
            waiting.add(executor.submit(function, task))
            if len(waiting) >= (2 * slots if slots > 1 else 1):
                done, waiting = cf.wait(waiting, return_when=cf.FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = cf.wait(waiting, return_when=cf.FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise WorkerDiedError("a worker process died (killed, or out of memory); finished shards are kept: run again "
                              "with --resume and fewer --workers") from error
    finally:
        for future in waiting:
            future.cancel()
