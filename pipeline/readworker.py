"""A reader process: takes rows of the index, reads, checks and plans their clips. `readers.py` starts it.

The first request is the pickled `ClipFetcher`.
"""

import pickle
from dataclasses import dataclass
from typing import NamedTuple

from svdata2vec.pipeline.fetch import ClipFetcher, Outcome


class Request(NamedTuple):
    """Clips of one step."""

    rows: list[int]
    epoch: int
    views: list[int]


@dataclass(frozen=True)
class Answer:
    """What became of each clip, without mapped bytes. error: the one that ends the run instead."""

    outcomes: list[Outcome]
    error: Exception | None = None


class Reader:
    """The process's side."""

    def __init__(self) -> None:
        self._fetcher: ClipFetcher | None = None

    def __call__(self, request: bytes | Request) -> Answer:
        try:
            return self._open(request) if isinstance(request, bytes) else self._read(request)
        except Exception as error:  # noqa: BLE001 - raised in the parent
            return Answer([], error)

    def _open(self, pickled: bytes) -> Answer:
        self._fetcher = pickle.loads(pickled)
        return Answer([])

    def _read(self, request: Request) -> Answer:
        assert self._fetcher is not None
        outcomes = self._fetcher.fetch_step(request.rows, request.epoch, request.views)
        return Answer(list(map(self._fetcher.unmapped, outcomes)))


def answering(descriptors: list[int]) -> Reader:
    """Answers the requests of `readers.py`, which opens no files for it."""
    return Reader()
