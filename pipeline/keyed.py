"""The one random generator: counter-based, keyed by (purpose, seed, epoch, key, ...) and without state.

So a clip's draws do not depend on batch, thread, rank or number of ranks (pipeline/README.md, "Purity and resume").
"""

import functools
import hashlib
import operator
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ZERO = (0, 0, 0, 0)  # NumPy's state takes tuples faster than arrays
_two_words = struct.Struct("<2Q").unpack


class _NoSeed(np.random.bit_generator.ISeedSequence):
    """Philox asks the system for a seed, which takes twenty microseconds and more, before it is given its key."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.zeros(n_words, dtype)


class KeyedDraws:
    """Makes generators, each for one purpose; equal arguments give equal draws on every machine.

    The 128-bit Philox key is the BLAKE2b hash of the parts; what they are and their lengths are hashed too, so that
    ("a", "bc") and ("ab", "c"), or 1 and "1", are different keys; a whole number is the same key in every type, NumPy's too.
    A generator lasts until the next one is asked for, which replaces it: constructing one takes longer than most draws.

    Raises TypeError for a part that is neither a whole number nor text.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(_NoSeed())  # type: ignore[arg-type]
        self._generator = np.random.Generator(self._philox)
        self._key: dict[str, Any] = {"counter": _ZERO}
        self._state: Any = {  # as `Philox(key=...)` leaves it
            "bit_generator": "Philox", "state": self._key, "buffer": _ZERO, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0,
        }

    def __call__(self, *parts: int | np.integer | str) -> np.random.Generator:
        """A generator for its purpose, a word, and what else tells it from others."""
        digest = hashlib.blake2b(b"".join(map(_bytes_of, parts)), digest_size=16).digest()
        self._key["key"] = _two_words(digest)
        self._philox.state = self._state
        return self._generator


@functools.lru_cache(maxsize=256, typed=True)  # all but the clip's name is the same for a batch
def _bytes_of(part: int | np.integer | str) -> bytes:
    kind, word = (b"s", part) if isinstance(part, str) else (b"i", str(operator.index(part)))
    text = word.encode()
    return kind + len(text).to_bytes(4, "little") + text


def keyed_generator(*parts: int | np.integer | str) -> np.random.Generator:
    """A generator of its own (`KeyedDraws`)."""
    return KeyedDraws()(*parts)
