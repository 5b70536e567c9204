"""One packer per folder: an advisory lock that the system releases however the process ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svdata2vec.shards.errors import UserError

LOCK_NAME = ".lock"


@contextmanager
def folder_lock(root: Path) -> Iterator[None]:
    """Hold `root/.lock` for the time of the block; UserError at once if another process holds it."""
    path = root / LOCK_NAME
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(f"{path.parent}: {owner} is packing into this folder; wait for it or choose another "
                            "folder") from error
        except OSError:  # a file system without locks: say so rather than work without
            os.close(descriptor)
            raise
        # The holder before us may have removed the file between our open and our lock: then lock the new one.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)
