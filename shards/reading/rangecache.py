"""A folder of cached bytes, bounded in size; the least recently used are dropped first. Safe for threads and processes."""

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from svdata2vec.shards.atomic import make_folder, renamed
from svdata2vec.shards.errors import UserError

EVICTED = (errno.ENOENT, errno.ESTALE)  # errors of an entry that another process has just evicted; on NFS, of one that is open
_STALE_SECONDS = 3600
_UNSEEN_SHARE = 1 / 64  # of the bound: bytes that a process may add before it rescans the folder for those of others


class RangeCache:
    """Keeps at most `max_bytes` in `folder` (but always the newest entry). Entries survive the process.

    Several processes may share a folder and its bound: complete files appear by renaming, and each process rescans the folder
    whenever it has added a 64th of the bound.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise UserError(f"cache of {max_bytes} bytes: expected 1 or more")
        make_folder(folder)
        self.folder, self.max_bytes = folder, max_bytes
        self.hits = self.misses = 0
        self.num_bytes = 0  # in the folder, as far as this process knows
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._unseen_bytes = 0
        self._rescan()
        self._evict()

    def get(self, name: str, size: int, fetch: Callable[[], bytes]) -> memoryview:
        """The `size` bytes called `name`, fetched if they are not there. Exceptions of `fetch` are passed on."""
        try:
            if self.has(name, size):
                content = memoryview((self.folder / name).read_bytes())  # mapping it would keep a file open for each clip
                self.hits += 1
                return content
        except OSError as error:
            if error.errno not in EVICTED:
                raise
        content = memoryview(fetch())
        self.add(name, lambda path: path.write_bytes(content))
        return content

    def has(self, name: str, size: int) -> bool:
        """Whether the complete entry is there; it then counts as just used."""
        try:
            there = (self.folder / name).stat().st_size == size
        except FileNotFoundError:
            return False
        if there:
            with self._lock, contextlib.suppress(FileNotFoundError):
                os.utime(self.folder / name)
                self._note(name, size)
        return there

    def add(self, name: str, write: Callable[[Path], object]) -> None:
        """Add an entry, whose file `write` creates at the given path. If it raises, nothing is kept."""
        with renamed(self.folder / name) as temporary:
            write(temporary)
            size = temporary.stat().st_size
        with self._lock:
            self.misses += 1
            self._note(name, size)
            self._unseen_bytes += size
            if self._unseen_bytes > self.max_bytes * _UNSEEN_SHARE:
                self._rescan()
            self._evict()

    def drop(self, name: str) -> None:
        """Forget an entry, so that it is fetched again."""
        with self._lock:
            self.num_bytes -= self._sizes.pop(name, 0)
            (self.folder / name).unlink(missing_ok=True)

    def _note(self, name: str, size: int) -> None:
        self.num_bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self._sizes.move_to_end(name)

    def _rescan(self) -> None:
        """List the folder's entries, whichever process wrote them, the least recently used first."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                if not entry.name.endswith((".tmp", ".lock")):
                    found.append((stat.st_mtime_ns, entry.name, stat.st_size))
                elif entry.name.endswith(".tmp") and time.time() - stat.st_mtime > _STALE_SECONDS:
                    Path(entry.path).unlink()  # left by a process that was killed
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
        self.num_bytes, self._unseen_bytes = sum(self._sizes.values()), 0

    def _evict(self) -> None:
        while self.num_bytes > self.max_bytes and len(self._sizes) > 1:
            name, size = self._sizes.popitem(last=False)
            (self.folder / name).unlink(missing_ok=True)
            self.num_bytes -= size
