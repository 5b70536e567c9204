"""Parts of a split by name, such as `train[:80%]` and `train[80%:]`, for sets that have no split to test on.

n clips of the split.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from svdata2vec.shards.errors import UserError

_PART = re.compile(r"(?P<split>.+)\[(?P<low>\d+%)?:(?P<high>\d+%)?\]")


def split_and_part(name: str) -> tuple[str, tuple[int, int] | None]:
    """The packed split that a name refers to, and the part of it in per cent (low, high); None = all of it.

    Raises UserError for a part that is empty or ends beyond 100 %.
    """
    found = _PART.fullmatch(name)
    if found is None:
        return name, None
    low, high = int((found["low"] or "0%")[:-1]), int((found["high"] or "100%")[:-1])
    if not low < high <= 100:
        raise UserError(f"split {name!r}: expected a part like {found['split']}[:80%] or {found['split']}[80%:]")
    return found["split"], (low, high)


def in_part(labels_n: np.ndarray, keys: Sequence[bytes], part: tuple[int, int]) -> np.ndarray:
    """bool (n,): which clips are in a part (low, high) in per cent.

    A part has the same share of every class, in an order that depends on the clips' names alone; a class of two or more clips
    has clips on both sides of a cut. Parts that begin where others end share no clip and together have all.
    """
    places = np.array([hashlib.sha256(key).digest() for key in keys], dtype="S32")
    chosen_n = np.zeros(len(labels_n), bool)
    for label in np.unique(labels_n):
        members = np.flatnonzero(labels_n == label)
        members = members[np.argsort(places[members], kind="stable")]
        low, high = (_cut(percent, len(members)) for percent in part)
        chosen_n[members[low:high]] = True
    return chosen_n


def _cut(percent: int, count: int) -> int:
    """How many of a class's clips are before a cut."""
    if percent in (0, 100) or count < 2:
        return count if percent else 0
    return min(max((percent * count + 50) // 100, 1), count - 1)
