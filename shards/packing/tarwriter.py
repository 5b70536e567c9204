"""Writes one tar of clips: plain GNU headers, reproducible bytes; computes its hash and every member's offset on the way.

(`README.md` explains why this is not `webdataset.TarWriter`.)
"""

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from svdata2vec.shards.atomic import temporary_name
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.manifest import MAX_COMPONENT_BYTES


class _HashingFile:
    """The part of a file that tarfile needs (write, tell); hashes all that is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._file.write(content)
        self.sha256.update(content)
        return len(content)

    def tell(self) -> int:
        return self._file.tell()


class TarWriter:
    """Context manager: writes under a temporary name, renamed to `path` by `commit`; leaving without `commit` removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_name(path)
        self._file = self._temporary.open("wb")
        self._hashing = _HashingFile(self._file)
        # DALI cannot read PAX headers; with times and owners of zero, equal clips give equal bytes.
        self._tar = tarfile.TarFile(fileobj=self._hashing, mode="w", format=tarfile.GNU_FORMAT)  # type: ignore[arg-type]

    def add(self, key: str, parts: Mapping[str, bytes], order: Sequence[str]) -> tuple[list[int], list[int]]:
        """Append one clip's components in this order; returns their offsets and sizes (0, 0 for an absent one).

        UserError, before anything is written, if one is too large for the index.
        """
        for name in order:
            if (size := len(parts.get(name, b""))) > MAX_COMPONENT_BYTES:
                raise UserError(f"clip {key}: component {name} has {size} bytes, expected at most {MAX_COMPONENT_BYTES}; "
                                "divide the video, or take a codec or a quality that needs fewer bytes")
        offsets, sizes = [], []
        for name in order:
            content = parts.get(name, b"")
            offsets.append(self._hashing.tell() + tarfile.BLOCKSIZE if content else 0)
            sizes.append(len(content))
            if content:
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size, member.mode = len(content), 0o444
                self._tar.addfile(member, BytesIO(content))
        return offsets, sizes

    def commit(self) -> tuple[str, int]:
        """Finish, flush to the disk, rename. Returns sha256 and size in bytes."""
        self._tar.close()
        size = self._file.tell()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        return self._hashing.sha256.hexdigest(), size

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk also fails the last flush; the error that matters is already raised
            self._file.close()
        self._temporary.unlink(missing_ok=True)
