"""Checksums of every component and every frame of every clip, compared before a byte is parsed or decoded.

`sums.npy` is one uint32 array of CRC-32 (that of zip, gzip and PNG). It has, for clip after clip in the order of the index, the
sums of its components in the order of the manifest's (0 = the clip has no such component), then, for codecs `jpeg` and
`blocks`, one sum per frame.
C components, F frames, N clips.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from svdata2vec.shards.atomic import npy_bytes, write_atomically
from svdata2vec.shards.blocks import parse_clip
from svdata2vec.shards.errors import AGAIN, UserError
from svdata2vec.shards.reading.manifest import INDEX_NAME, SUMS_NAME, Manifest, load_plain_array
from svdata2vec.shards.reading.sample import OFFSETS, Buffer, block_offsets, parse_array

try:  # the same numbers several times as fast
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this machine
    from zlib import crc32

CHANGED = f"its bytes are not those that were packed (CRC-32); {AGAIN}"


class ChangedError(UserError):
    """Bytes of a clip are not those that were packed."""


class Sums:
    """The sums of a packed folder. Cheap to open: the file is mapped."""

    def __init__(self, sums_N: np.ndarray, frames_N: np.ndarray, num_components: int, by_frame: bool) -> None:
        self._sums, self._num_components = sums_N.view(np.ndarray), num_components
        per_clip_N = num_components + (frames_N.astype(np.int64) if by_frame else np.zeros(len(frames_N), np.int64))
        self._starts = np.concatenate([[0], np.cumsum(per_clip_N)])
        if len(sums_N) != self._starts[-1]:
            raise UserError(f"{len(sums_N)} sums, the index has clips for {self._starts[-1]}; copy it again or pack again")

    def components(self, row: int) -> list[int]:
        """The C sums of a clip's components."""
        start = self._starts[row]
        return self._sums[start : start + self._num_components].tolist()

    def frames(self, row: int) -> np.ndarray:
        """uint32 (F,) sums of a clip's frames."""
        return self._sums[self._starts[row] + self._num_components : self._starts[row + 1]]


def load_sums(folder: Path, manifest: Manifest, index: np.ndarray) -> Sums | None:
    """The sums of a folder; None if it was packed without them. UserError if the file is missing or of another length."""
    if SUMS_NAME not in manifest.crc32:
        return None
    path = folder / SUMS_NAME
    sums_N = load_plain_array(path)
    if sums_N.dtype != np.uint32 or sums_N.ndim != 1:
        raise UserError(f"{path}: {sums_N.dtype} {sums_N.shape}, expected uint32 of one dimension; copy it again or pack again")
    try:
        return Sums(sums_N, index["frames"], len(manifest.components), manifest.by_frame)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def save_head(root: Path, manifest: Manifest, index: np.ndarray, sums: Sequence[ArrayLike]) -> Manifest:
    """Write index, sums and, last, the manifest, which is returned with the CRC-32 of both.

    `sums`: arrays as `clip_sums` returns them, each of one clip or of several one after the other.
    """
    flat = np.concatenate([np.asarray(found, np.uint32) for found in sums])
    contents = {INDEX_NAME: npy_bytes(index), SUMS_NAME: npy_bytes(flat)}
    for name, content in contents.items():
        write_atomically(root / name, content)
    manifest = replace(manifest, crc32={name: crc32(content) for name, content in contents.items()})
    manifest.save(root)
    return manifest


def clip_sums(parts: Mapping[str, Buffer], components: Sequence[str]) -> list[int]:
    """The sums of one clip, as `sums.npy` holds them. UserError if its table of JPEGs or header of blocks is damaged."""
    found = [crc32(parts[name]) if parts.get(name) else 0 for name in components]
    if parts.get("blocks"):
        try:
            layout, frames = parse_clip(np.frombuffer(parts["blocks"], np.uint8))
        except ValueError as error:
            raise UserError(str(error)) from error
        return found + frame_sums(memoryview(parts["blocks"]), block_offsets(layout, len(frames)))
    if not parts.get(OFFSETS):
        return found
    offsets = parse_array(parts[OFFSETS], OFFSETS)
    if offsets.dtype != np.int64 or offsets.ndim != 1:
        raise UserError(f"{OFFSETS} is {offsets.dtype} {offsets.shape}, expected int64 of one dimension")
    return found + frame_sums(memoryview(parts.get("jpegs", b"")), offsets)


def frame_sums(content: memoryview, offsets: np.ndarray) -> list[int]:
    """CRC-32 of every part of `content` between two neighbouring offsets."""
    return [crc32(content[low:high]) for low, high in itertools.pairwise(offsets.tolist())]
