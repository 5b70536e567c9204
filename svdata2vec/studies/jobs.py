"""Runs side by side, each in a process with a core or a GPU to itself."""

import ctypes
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

import torch

from svdata2vec.runs.runtime import announced_place
from svdata2vec.runs.stopping import REQUEUE_EXIT_CODE, stoppable
from svdata2vec.shards.errors import MachineError, UserError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASK_SECONDS = 1.0  # between two requests to stop

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def run_all(jobs: Sequence[Callable[[], Result]], at_once: int) -> list[Result]:
    """What the jobs give, in their order, so many at a time; more than one at a time in fresh processes.

    A job that fails lets those at work come to their end, no other begins, and its exception is raised. SIGTERM and Ctrl+C
    reach the jobs too: training saves. Raises MachineError where a job's process was killed.
    """
    if announced_place()[1] > 1:
        raise UserError("a study starts its runs itself; start it as one process, with --jobs as many as GPUs or cores")
    if at_once == 1 or len(jobs) < 2:
        with stoppable():
            return [job() for job in jobs]
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in shares(at_once):
        places.put(place)
    results: dict[int, Result] = {}
    with stoppable(), ProcessPoolExecutor(at_once, mp_context=context, initializer=_begin, initargs=(places,)) as pool:
        try:
            left = enumerate(jobs)  # handed out one by one: the pool would begin those that it has, come what may
            at_work: dict[Future[Result], int] = {}
            while len(results) < len(jobs):
                at_work |= {pool.submit(_work, job): number for number, job in islice(left, at_once - len(at_work))}
                for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                    results[at_work.pop(future)] = future.result()
                    log.info("%d of %d runs done", len(results), len(jobs))
        except BrokenProcessPool as error:
            _stop_processes()
            raise MachineError("the process of a run was killed (by hand, or for want of memory: take fewer --jobs); what is "
                               "finished is kept, start again to go on") from error
        except (KeyboardInterrupt, SystemExit):
            _stop_processes()
            raise
    return [results[number] for number in range(len(jobs))]


def _work(job: Callable[[], Result]) -> Result:
    """What a job gives. The process ends with it if nobody is left to take that, and to hand out the next one."""
    try:
        return job()
    finally:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(REQUEUE_EXIT_CODE)


def _stop_processes() -> None:
    """SIGTERM until none is left: one that trains saves first, and is ended by the next one."""
    while children := multiprocessing.active_children():
        for child in children:
            child.terminate()
        time.sleep(ASK_SECONDS)


def shares(at_once: int) -> Iterator[dict[str, Any]]:
    """Of each process its GPU (its number in CUDA_VISIBLE_DEVICES' terms), or its cores; shared in turn if there are fewer."""
    if gpus := visible_gpus():
        yield from ({"gpu": gpus[number % len(gpus)]} for number in range(at_once))
        return
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // at_once, 1)
    for number in range(at_once):
        first = number * each % len(cores)
        yield {"cores": cores[first : first + each]}


def visible_gpus() -> list[str]:
    """GPUs of this process, as the environment names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _begin(places: Any) -> None:
    """Take a share of the machine; stop as if asked to when the parent dies."""
    place = places.get()
    if "gpu" in place:
        os.environ["CUDA_VISIBLE_DEVICES"] = place["gpu"]
    else:
        os.sched_setaffinity(0, place["cores"])
        os.environ["OMP_NUM_THREADS"] = str(len(place["cores"]))
        torch.set_num_threads(len(place["cores"]))
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
