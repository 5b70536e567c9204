"""Tars mapped into memory: their bytes are neither copied nor requested by system calls.

If bytes of a mapped file are gone, because it was truncated or its disk fails, the thread that touches them gets a bus error,
which ends the process. Here the missing page is replaced by zeros and noted instead, and code that has used the bytes calls
`check`, or after decoding `missing`, before it trusts them. (MADV_POPULATE_READ before each use costs as much as the checksums,
and does not help a clip whose tar is truncated while it waits to be decoded.)
"""

import ctypes
import functools
import mmap
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

MOST_MAPS = 2**16  # about as many as Linux allows a process
_SA_SIGINFO = 4
_FIXED = 0x10  # MAP_FIXED
_LIBC = ctypes.PyDLL(None)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class _SigInfo(ctypes.Structure):
    """The beginning of Linux's siginfo_t on 64 bits."""

    _fields_ = (("number", ctypes.c_int), ("errno", ctypes.c_int), ("code", ctypes.c_int), ("address", ctypes.c_void_p))


class _SigAction(ctypes.Structure):
    """struct sigaction of the C library."""

    _fields_ = (("handler", ctypes.c_void_p), ("mask", ctypes.c_char * 128), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p))


class MappedTar(mmap.mmap):
    """A tar mapped read-only at its present length. Arrays over its bytes keep it open."""

    path: Path
    _address: int
    _lost: set[int]  # pages, in bytes from the start
    _told: set[int]  # those that `check` has reported to a reader

    def __new__(cls, path: Path) -> "MappedTar":
        """Raises OSError if the file is missing or cannot be mapped, ValueError for an empty one."""
        _raise_file_limit()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            tar = super().__new__(cls, descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        tar.path, tar._address, tar._lost, tar._told = path, tar.bytes.ctypes.data, set(), set()
        _ALL[tar._address] = tar
        _install()
        return tar

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All bytes of the tar."""
        return np.frombuffer(self, np.uint8)

    def check(self, start: int, stop: int) -> None:
        """Raises OSError if some of these bytes could not be read."""
        here = [page for page in list(self._lost) if start < page + mmap.PAGESIZE and page < stop]
        if here:
            self._told.update(here)
            raise OSError(f"{self.path}: cannot be read at byte {max(min(here), start)}")

    def missing(self) -> int | None:
        """Position of a byte that was missing when it was used, after it had been checked, or is gone now; None if none is."""
        missing = list(self._lost - self._told)
        return min([*missing, self.size()]) if missing or self.size() < len(self) else None

    def _lose(self, page: int) -> bool:
        """Replace a page by zeros; returns whether that succeeded."""
        self._lost.add(page)
        flags, address = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED, self._address + page
        return bool(_LIBC.mmap(address, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0) == address)


@functools.cache
def _raise_file_limit() -> None:
    """Allow as many open files as the system permits.

    Each map keeps its file open, and the clips of a large batch may be in more tars than the usual limit of 1,024 files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_MAPS if hard == resource.RLIM_INFINITY else min(hard, MOST_MAPS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


_ALL: "WeakValueDictionary[int, MappedTar]" = WeakValueDictionary()  # by address


def _on_bus_error(number: int, info: Any, context: int | None) -> None:
    """Runs in the thread that touched a missing page."""
    address = info.contents.address or 0
    for reference in _ALL.valuerefs():  # a copy: another thread may map a tar meanwhile
        tar = reference()
        if tar is None or not tar._address <= address < tar._address + len(tar):
            continue
        if tar._lose((address - tar._address) // mmap.PAGESIZE * mmap.PAGESIZE):
            return
    _LIBC.sigaction(int(signal.SIGBUS), ctypes.byref(_previous), None)  # not ours: it recurs under the previous handler


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_SigInfo), ctypes.c_void_p)(_on_bus_error)
_previous = _SigAction()


def _install() -> None:
    """Make this the process's handler of bus errors, if it is not."""
    global _previous
    mine = _SigAction(ctypes.cast(_HANDLER, ctypes.c_void_p), b"", _SA_SIGINFO, None)
    found = _SigAction()
    _LIBC.sigaction(int(signal.SIGBUS), None, ctypes.byref(found))
    if found.handler != mine.handler:
        _previous = found
        _LIBC.sigaction(int(signal.SIGBUS), ctypes.byref(mine), None)
