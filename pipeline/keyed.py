"""The one random generator: counter-based, keyed by (purpose, seed, epoch, key, ...) and without state.

So a clip's draws do not depend on batch, thread, rank or number of ranks (pipeline/README.md, "Purity and resume").
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ZERO = np.zeros(4, np.uint64)


class _NoSeed(np.random.bit_generator.ISeedSequence):
    """Philox asks the system for a seed, which takes twenty microseconds, before it is given its key."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.zeros(n_words, dtype)


class KeyedDraws:
    """Makes generators, each for one purpose; equal arguments give equal draws on every machine.

    The 128-bit Philox key is the BLAKE2b hash of the parts; their types and lengths are hashed too, so that
    ("a", "bc") and ("ab", "c"), or 1 and "1", are different keys. A generator lasts until the next one is asked for, which
    takes its place: making one anew takes longer than most draws.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(_NoSeed())  # type: ignore[arg-type]
        self._generator = np.random.Generator(self._philox)

    def __call__(self, purpose: str, *parts: int | str) -> np.random.Generator:
        digest = hashlib.blake2b(digest_size=16)
        for part in (purpose, *parts):
            kind = b"i" if isinstance(part, int) else b"s"
            text = str(part).encode()
            digest.update(kind + len(text).to_bytes(4, "little") + text)
        self._philox.state = {  # as `Philox(key=...)` leaves it
            "bit_generator": "Philox", "state": {"counter": _ZERO, "key": np.frombuffer(digest.digest(), "<u8")},
            "buffer": _ZERO, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0,
        }
        return self._generator


def keyed_generator(purpose: str, *parts: int | str) -> np.random.Generator:
    """A generator of its own (`KeyedDraws`)."""
    return KeyedDraws()(purpose, *parts)
