"""A folder of cached byte ranges, bounded in size, least recently used out first. Safe for threads and processes."""

import contextlib
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

_STALE_SECONDS = 3600


class RangeCache:
    """Keeps at most `max_bytes` in `folder` (but always the newest entry). Entries survive the process.

    Several processes may share a folder: files appear whole by renaming, and a reader of a file that another process
    evicts keeps its mapping. Each process counts what it knows of, so the bound holds per process.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"cache of {max_bytes} bytes: expected 1 or more")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.max_bytes = folder, max_bytes
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self.num_bytes = 0  # on disk, as far as this process knows
        found = [(path, path.stat()) for path in folder.iterdir()]
        for path, stat in sorted(found, key=lambda entry: entry[1].st_mtime_ns):
            if path.suffix != ".tmp":
                self._add(path.name, stat.st_size)
            elif time.time() - stat.st_mtime > _STALE_SECONDS:  # left by a process that was killed
                path.unlink(missing_ok=True)
        self._evict()

    def get(self, name: str, size: int, fetch: Callable[[], bytes]) -> memoryview:
        """The `size` bytes called `name`, fetched if they are not there. Whatever `fetch` raises is passed on."""
        path = self.folder / name
        with contextlib.suppress(FileNotFoundError, ValueError):
            if path.stat().st_size == size:
                content = _map(path)
                self._touch(name, size)
                self.hits += 1
                return content
        content = memoryview(fetch())
        self.misses += 1
        temporary = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
        self._touch(name, size)
        return content

    def _touch(self, name: str, size: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / name)
        with self._lock:
            self._add(name, size)
            self._evict()

    def _add(self, name: str, size: int) -> None:
        self.num_bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self._sizes.move_to_end(name)

    def _evict(self) -> None:
        while self.num_bytes > self.max_bytes and len(self._sizes) > 1:
            name, size = self._sizes.popitem(last=False)
            (self.folder / name).unlink(missing_ok=True)
            self.num_bytes -= size


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
