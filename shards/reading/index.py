"""`index.npy`: where every component of every clip lies, one fixed-width row per clip, memory-mapped.

Columns: key (ASCII bytes), shard u4 (number in the manifest), label i4, frames i4, and per component of the manifest
`offset` u8 and `size` u4 (bytes within the tar; size 0 = the clip has no such component).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svdata2vec.shards.errors import UserError

INDEX_NAME = "index.npy"
MAX_COMPONENT_BYTES = 2**32 - 1


def index_dtype(key_bytes: int, num_components: int) -> np.dtype:
    """The structured type of a row."""
    return np.dtype([
        ("key", f"S{key_bytes}"), ("shard", "<u4"), ("label", "<i4"), ("frames", "<i4"),
        ("offset", "<u8", (num_components,)), ("size", "<u4", (num_components,)),
    ])


def build_index(rows: Sequence[tuple], num_components: int) -> np.ndarray:
    """Index from tuples (key, shard, label, frames, offsets, sizes) in packed order."""
    key_bytes = max((len(row[0]) for row in rows), default=1)
    index = np.empty(len(rows), index_dtype(key_bytes, num_components))
    for i, (key, shard, label, frames, offsets, sizes) in enumerate(rows):
        index[i] = key.encode(), shard, label, frames, tuple(offsets), tuple(sizes)
    return index


def load_index(root: Path, num_components: int) -> np.ndarray:
    """The memory-mapped index of a folder; UserError if it is missing or of another shape."""
    path = root / INDEX_NAME
    if not path.is_file():
        raise UserError(f"{path}: does not exist although the manifest does; pack again with --resume")
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable index ({error}); pack again") from error
    names = index.dtype.names or ()
    if names != ("key", "shard", "label", "frames", "offset", "size") or index["size"].shape[1:] != (num_components,):
        raise UserError(f"{path}: columns {index.dtype}, expected those of {num_components} components; pack again")
    return index
