"""Runs side by side, each in a process with a core or a GPU to itself."""

import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import torch

from svdata2vec.runs.runtime import announced_place
from svdata2vec.shards.errors import UserError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def run_all(jobs: Sequence[Callable[[], Result]], at_once: int) -> list[Result]:
    """What the jobs give, in their order, so many at a time; more than one at a time in fresh processes.

    The first job that fails ends the others after those at work, and its exception is raised.
    """
    if announced_place()[1] > 1:
        raise UserError("a study starts its runs itself; start it as one process, with --jobs as many as GPUs or cores")
    if at_once == 1 or len(jobs) < 2:
        return [job() for job in jobs]
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in shares(at_once):
        places.put(place)
    with ProcessPoolExecutor(at_once, mp_context=context, initializer=_begin, initargs=(places,)) as pool:
        futures = [pool.submit(job) for job in jobs]
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                log.info("%d of %d runs done", len(futures) - len(waiting), len(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


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
