"""Memory into which readers, also in other processes, write clips' bytes for an upload: a slab has a row per clip of a step.

Imports no torch, so that reader processes start quickly. R rows, N bytes per row.
"""

import logging
import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from svdata2vec.shards.blocks import Bytes

log = logging.getLogger(__name__)


class PageLock(Protocol):
    """Page-locks memory, so that a device reads it without the host."""

    def lock(self, whole: Bytes) -> str | None:
        """Lock the memory; returns None, or the reason if it cannot be locked."""

    def unlock(self, whole: Bytes) -> None:
        """Unlock memory that `lock` locked."""


@dataclass(frozen=True)
class SlabFile:
    """The unnamed file that holds the slabs. Every process that has it open can map them."""

    descriptor: int
    rows: int
    row_bytes: int

    @property
    def slab_bytes(self) -> int:
        """Size of a slab in bytes, a multiple of the page size."""
        return -(-self.rows * self.row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    def map(self, number: int) -> Bytes:
        """All bytes of a slab, mapped for reading and writing."""
        return np.frombuffer(mmap.mmap(self.descriptor, self.slab_bytes, offset=number * self.slab_bytes), np.uint8)

    def rows_of(self, whole: Bytes) -> Bytes:
        """(R, N) view of a slab's bytes."""
        return whole[: self.rows * self.row_bytes].reshape(self.rows, self.row_bytes)


class Slabs:
    """Slabs of one size, as many as are in use at once. One thread takes them, any may release them.

    A slab is reused once nothing refers to its rows: code that starts an upload keeps a reference until it is complete.

    Args:
        rows, row_bytes: size of a slab.
        lock: page-locks each slab, in the thread that takes it. If it refuses, the driver copies the bytes once more.
    """

    def __init__(self, rows: int, row_bytes: int, lock: PageLock | None) -> None:
        self.file = SlabFile(os.memfd_create("svdata2vec-slabs"), rows, row_bytes)
        self._lock, self._refused, self._closed = lock, False, False
        self._slabs: list[Bytes] = []
        self._locked: list[Bytes] = []
        self._held: list[weakref.ref[Bytes]] = []

    def take(self) -> tuple[int, Bytes]:
        """Number and rows (R, N) of a slab that is no longer in use, or of a new one."""
        number = next((number for number, held in enumerate(self._held) if held() is None), len(self._slabs))
        if number == len(self._slabs):
            self._add(number)
        whole = np.frombuffer(self._slabs[number].data, np.uint8)  # base of all views of it, itself based on no array
        self._held[number] = weakref.ref(whole)
        return number, self.file.rows_of(whole)

    def close(self) -> None:
        """Unlock all slabs and close the file; may be called twice. No upload may be running; rows stay readable."""
        while self._locked and self._lock is not None:
            self._lock.unlock(self._locked.pop())
        if not self._closed:
            os.close(self.file.descriptor)
            self._closed = True

    def _add(self, number: int) -> None:
        os.ftruncate(self.file.descriptor, (number + 1) * self.file.slab_bytes)
        slab = self.file.map(number)
        self._slabs.append(slab)
        self._held.append(weakref.ref(slab))
        if self._lock is None or self._refused:
            return
        reason = self._lock.lock(slab)
        if reason is None:
            self._locked.append(slab)
        else:
            self._refused = True
            log.warning("no page-locked memory for clips in blocks (%s): the driver copies them once more", reason)
