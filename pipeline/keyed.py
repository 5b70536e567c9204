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
    """Saves Philox asking the system for a seed, twenty microseconds or more, before its key is set."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.zeros(n_words, dtype)


class KeyedDraws:
    """Makes generators, each for one purpose; equal arguments give equal draws on every machine.

    The 128-bit Philox key is the BLAKE2b hash of the parts; their types and lengths are hashed too, so that ("a", "bc") and
    ("ab", "c"), or 1 and "1", are different keys. A whole number gives the same key as Python's int and as any NumPy type.
    A generator is valid until the next call, which reuses it: constructing one takes longer than most draws.

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
        """A generator keyed by its purpose, a word, and by the values that distinguish it from others."""
        digest = hashlib.blake2b(b"".join(map(_bytes_of, parts)), digest_size=16).digest()
        self._key["key"] = _two_words(digest)
        self._philox.state = self._state
        return self._generator


@functools.lru_cache(maxsize=256, typed=True)  # all parts but the clip's name are the same for a batch
def _bytes_of(part: int | np.integer | str) -> bytes:
    kind, word = (b"s", part) if isinstance(part, str) else (b"i", str(operator.index(part)))
    text = word.encode()
    return kind + len(text).to_bytes(4, "little") + text


def keyed_generator(*parts: int | np.integer | str) -> np.random.Generator:
    """A new generator (`KeyedDraws`) that no other call replaces."""
    return KeyedDraws()(*parts)
