"""Advisory locks, which the system releases however a process ends: one process per folder, or one after the other.

Held by `flock`: it works between the processes of a machine, and across machines on file systems that pass such locks on
(NFS does; with Lustre it depends on the mount options). On a file system without such locks there is none, of which
`folder_lock` warns.
"""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svdata2vec.shards.errors import UserError

LOCK_NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)

log = logging.getLogger(__name__)


@contextmanager
def folder_lock(root: Path, work: str) -> Iterator[None]:
    """Hold `root/.lock` while the block runs.

    Args:
        root: a folder that exists.
        work: what is done there, as in "packing into", for the message to the process that comes second.

    Raises:
        UserError: at once, if another process holds the lock; if the lock is a link.
    """
    path = root / LOCK_NAME
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} is {work}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if needed, while the block runs; waits for other processes that hold it.

    On a file system without locks nobody waits.
    """
    with path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


def _acquire(path: Path) -> int:
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning("%s: this file system has no locks; make sure that one process at a time works there", path.parent)
                return descriptor
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process is at work in"
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise UserError(f"{path.parent}: {owner} this folder; wait for it or choose another folder") from error
        # The holder before us may have removed the file between our open and our lock: then lock the new one.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link, which no lock is; remove it") from None
