"""NumPy's readers of .npy and .npz files, safe beside other threads."""

from collections.abc import Callable
from typing import TypeVar

Read = TypeVar("Read")

_TRIES = 8


def read_npy(read: Callable[[], Read]) -> Read:
    """The result of `read()`, which calls NumPy and may be called again; its error if there is one.

    NumPy parses headers with `ast`. In CPython before 3.11.8 and 3.12.2, threads that parse at the same time disturb each
    other's count of depth, and a sound header raises SystemError or RecursionError (python/cpython#106905).
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except (SystemError, RecursionError):
            continue
    return read()
