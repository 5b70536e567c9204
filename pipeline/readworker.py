"""A reader process: takes rows of the index, reads and plans their clips, puts their encoded video into shared memory.

`readers.py` starts it. The first request is the pickled `ClipFetcher`.
"""

import mmap
import os
import pickle
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.fetch import BadClipError, ClipFetcher, Outcome

NOTHING = np.empty(0, np.uint8)


class Request(NamedTuple):
    """Clips of one step, and which slab takes their video."""

    rows: list[int]
    epoch: int
    views: list[int]
    slab: int


@dataclass(frozen=True)
class Answer:
    """What became of each clip, without its video; where that lies in the slab: `bounds` (clips + 1), in bytes.

    error: the one that ends the run instead.
    """

    outcomes: list[Outcome]
    bounds: list[int]
    error: Exception | None = None


class Reader:
    """The process's side: a fetcher, and the slabs by their descriptors."""

    def __init__(self, descriptors: list[int]) -> None:
        self._slabs = [Slab(descriptor) for descriptor in descriptors]
        self._fetcher: ClipFetcher | None = None

    def __call__(self, request: bytes | Request) -> Answer:
        try:
            return self._open(request) if isinstance(request, bytes) else self._read(request)
        except Exception as error:  # noqa: BLE001 - raised in the parent
            return Answer([], [0], error)

    def _open(self, pickled: bytes) -> Answer:
        self._fetcher = pickle.loads(pickled)
        return Answer([], [0])

    def _read(self, request: Request) -> Answer:
        assert self._fetcher is not None
        pairs = zip(request.rows, request.views, strict=True)
        outcomes = [self._fetcher.attempt(row, request.epoch, view) for row, view in pairs]
        videos = [_video(outcome) for outcome in outcomes]
        bounds = np.cumsum([0, *map(len, videos)]).tolist()
        place = self._slabs[request.slab].bytes(bounds[-1])
        for video, start in zip(videos, bounds[:-1], strict=True):
            place[start : start + len(video)] = video
        return Answer([_without_video(outcome) for outcome in outcomes], bounds)


def _video(outcome: Outcome) -> NDArray[np.uint8]:
    return NOTHING if isinstance(outcome, BadClipError) or outcome.encoded is None else outcome.encoded.video


def _without_video(outcome: Outcome) -> Outcome:
    if isinstance(outcome, BadClipError) or outcome.encoded is None:
        return outcome
    return replace(outcome, encoded=replace(outcome.encoded, video=NOTHING))


def answering(descriptors: list[int]) -> Reader:
    """Reads into slabs behind these descriptors."""
    return Reader(descriptors)


class Slab:
    """Shared memory behind a descriptor, which grows as needed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = NOTHING

    def bytes(self, size: int) -> NDArray[np.uint8]:
        """(size,), what lies there now. Arrays that were given out before stay valid."""
        if size > len(self._bytes):
            if size > os.fstat(self._descriptor).st_size:
                os.truncate(self._descriptor, size + size // 4)
            self._bytes = np.frombuffer(mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size), np.uint8)
        return self._bytes[:size]

