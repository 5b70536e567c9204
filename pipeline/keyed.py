"""The one random generator: counter-based, keyed by (purpose, seed, epoch, key, ...) and without state.

So a clip's draws do not depend on batch, thread, rank or number of ranks (pipeline/README.md, "Purity and resume").
"""

import hashlib

import numpy as np


def keyed_generator(purpose: str, *parts: int | str) -> np.random.Generator:
    """A fresh generator for one purpose; equal arguments give equal draws on every machine.

    The 128-bit Philox key is the BLAKE2b hash of the parts; their types and lengths are hashed too, so that
    ("a", "bc") and ("ab", "c"), or 1 and "1", are different keys.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (purpose, *parts):
        kind = b"i" if isinstance(part, int) else b"s"
        text = str(part).encode()
        digest.update(kind + len(text).to_bytes(4, "little") + text)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
