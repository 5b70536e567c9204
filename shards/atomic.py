"""Files that are whole or absent: written under another name, flushed to the disk, renamed."""

import errno
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from svdata2vec.shards.errors import UserError

DEVICES = Path("/dev")


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, not even one that outlived a killed run."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


class WriteFailedError(OSError):
    """A file could not be written; the message is one line with its path and the reason."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[Path, OSError]]:
        return type(self), (self.path, OSError(self.errno, self.strerror))  # out of a worker process

    def __str__(self) -> str:
        return f"{self.path} could not be written: {self.strerror}"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the file system in the block name `path`: on a full disk its own errors name no file."""
    try:
        yield
    except WriteFailedError:
        raise
    except OSError as error:
        raise WriteFailedError(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if it is not there. Raises WriteFailedError, which names a file in its place."""
    with naming(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            file = next(place for place in (path, *path.parents) if os.path.lexists(place))
            raise NotADirectoryError(errno.ENOTDIR, f"{file} is no folder") from None


def beside(path: Path, ending: str) -> Path:
    """The file with this ending that belongs to `path`: in place of .json, behind another name, as of NAME.v1 and NAME.v2."""
    return path.with_suffix(ending) if path.suffix == ".json" else path.with_name(path.name + ending)


def require_writable(path: Path | None, *endings: str) -> None:
    """Raises WriteFailedError where no file could appear as `path`: before the work, not after it. Its folder is made.

    None: no file is asked for. endings: of files that are written `beside` it, such as ".png"; UserError if it has one itself.
    """
    if path is not None and path.suffix in endings:
        raise UserError(f"{path}: a file that ends in {path.suffix} is written beside it; give it the ending .json")
    for place in () if path is None else (path, *(beside(path, ending) for ending in endings)):
        make_folder(place.parent)
        with naming(place):
            _refuse_place(place)
            tempfile.TemporaryFile(dir=place.parent).close()


def _refuse_place(path: Path) -> None:
    """OSError where something else than a file is called `path`."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder has this name")
    if path.absolute().parent == DEVICES or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "a device or pipe, which a file would replace")


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Where to write a file that appears as `path` when the block ends. If it fails, nothing is left behind.

    Raises:
        WriteFailedError: the file system refused.
    """
    temporary = temporary_name(path)
    try:
        with naming(path):
            _refuse_place(path)
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what matters is raised already
            temporary.unlink()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; when the block ends, readers see it whole under `path`. If it fails, nothing is left behind."""
    with renamed(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content`: readers see the old file or the whole new one."""
    with atomic_file(path) as file:
        file.write(content)


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which is made if it is not there. Raises WriteFailedError."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file or it holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_json_lines(path: Path) -> list[Any]:
    """The JSON values in a file, one a line; ValueError where a line holds none.

    Lines end as bytes do: a text may hold U+2028, U+0085 and others at which `str.splitlines` divides.
    """
    return [json.loads(line) for line in path.read_bytes().splitlines()]
