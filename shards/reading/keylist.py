"""A list of clip names in one array: 20 MB per million names of 20 letters; a list of strings would take 77 MB."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np


class KeyList(Sequence[str]):
    """Reads like a list of strings. `names_N`: the ASCII names as a fixed-width byte array."""

    def __init__(self, keys: Sequence[str]) -> None:
        # Names that are not ASCII cannot be in an index, but messages still have to name them.
        self.names_N = np.array([key.encode() for key in keys], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.names_N)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [name.decode() for name in self.names_N[place].tolist()]
        return self.names_N[place].decode()

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self.names_N.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"KeyList({list(self)!r})"
