"""A reader process: takes rows of the index, reads, checks and plans their clips. `readers.py` starts it.

The first request is a pickled `ClipFetcher` and the file of slabs into which clips in blocks are written.
"""

import pickle
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from svdata2vec.pipeline.fetch import ClipFetcher, Outcome
from svdata2vec.pipeline.slabs import SlabFile
from svdata2vec.shards.blocks import Bytes


class Request(NamedTuple):
    """Clips of one step. slab: number of the slab that their frames are written to; None: they stay in their tars."""

    rows: list[int]
    epoch: int
    views: list[int]
    slab: int | None = None


@dataclass(frozen=True)
class Answer:
    """Outcome of each clip, without mapped bytes. error: an exception that ends the run instead."""

    outcomes: list[Outcome]
    error: Exception | None = None


class Reader:
    """Answers requests, in the reader process."""

    def __init__(self) -> None:
        self._fetcher: ClipFetcher | None = None
        self._file: SlabFile | None = None
        self._slabs: dict[int, Bytes] = {}

    def __call__(self, request: bytes | Request) -> Answer:
        try:
            return self._open(request) if isinstance(request, bytes) else self._read(request)
        except Exception as error:  # noqa: BLE001 - raised in the parent
            return Answer([], error)

    def _open(self, pickled: bytes) -> Answer:
        self._fetcher, self._file = pickle.loads(pickled)
        return Answer([])

    def _read(self, request: Request) -> Answer:
        assert self._fetcher is not None
        places = repeat(None) if request.slab is None else self._rows(request.slab)
        outcomes = self._fetcher.fetch_step(request.rows, request.epoch, request.views, places)
        return Answer(list(map(self._fetcher.unmapped, outcomes)))

    def _rows(self, slab: int) -> Bytes:
        """The rows of a slab, which is mapped at first use."""
        assert self._file is not None
        if slab not in self._slabs:
            self._slabs[slab] = self._file.map(slab)
        return self._file.rows_of(self._slabs[slab])


def answering(descriptors: list[int]) -> Reader:
    """What answers the requests of `readers.py`. The file of slabs, if there is one, is open in this process."""
    return Reader()
