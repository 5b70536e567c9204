"""Whole tars fetched from a store ahead of their use, into the bounded cache, by threads in the background."""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.lock import in_turn
from svdata2vec.shards.reading.manifest import ShardEntry, file_bytes
from svdata2vec.shards.reading.rangecache import RangeCache
from svdata2vec.shards.urls import StoreError

log = logging.getLogger(__name__)

FETCHES = 4  # concurrent downloads


def copy_name(tar: ShardEntry) -> str:
    """Name of a tar's copy in the cache of its URL; it depends on the content of the tar too."""
    return f"{hashlib.sha256(tar.sha256.encode()).hexdigest()[:16]}-{tar.name}"


class TarError(UserError):
    """A tar cannot be fetched, so none of its clips can be read."""


class TarFetcher:
    """Makes tars of a store local. `download(name, path)` writes one to a path and raises OSError or UserError.

    Threads and processes that need the same tar share one download: a lock file per tar in the cache's folder.
    """

    def __init__(
        self, url: str, shards: tuple[ShardEntry, ...], cache: RangeCache, download: Callable[[str, Path], None]
    ) -> None:
        self._url, self._shards, self._cache, self._download = url, shards, cache, download
        self._lock = threading.Lock()
        self._on_the_way: dict[int, Future[None]] = {}
        total = sum(shard.bytes for shard in shards)
        if total > cache.max_bytes:
            log.warning("%s: %d bytes of shards, the cache holds %d: in a global shuffle tars will be fetched again and "
                        "again; give it more room, or fetch single clips", url, total, cache.max_bytes)

    def will_need(self, shards: Iterable[int]) -> None:
        """Start fetching these tars, the first needed first, as many as the cache holds at once."""
        budget, wanted = self._cache.max_bytes, []
        for shard in dict.fromkeys(shards):
            budget -= self._shards[shard].bytes
            if budget < 0:
                break
            wanted.append(shard)
        present = [shard for shard in reversed(wanted) if self._is_here(shard)]  # the first one needed is evicted last
        for shard in wanted:
            if len(self._on_the_way) >= FETCHES:
                return
            if shard not in present:
                self._start(shard)

    def path(self, shard: int) -> Path:
        """The local file of a tar, after waiting for it if necessary.

        Raises TarError, StoreError, or WriteFailedError if the cache cannot be written.
        """
        while not self._is_here(shard):
            error = self._start(shard).exception()  # waits
            if isinstance(error, (StoreError, WriteFailedError)):
                raise error
            if error is not None:
                raise TarError(str(error)) from error
        self._cache.hits += 1
        return self._cache.folder / copy_name(self._shards[shard])

    def _is_here(self, shard: int) -> bool:
        entry = self._shards[shard]
        return self._cache.has(copy_name(entry), entry.bytes)

    def _start(self, shard: int) -> "Future[None]":
        """The download of a tar, which is started if it is not running already."""
        with self._lock:
            fetch = self._on_the_way.get(shard)
            if fetch is None:
                fetch = self._on_the_way[shard] = Future()
                name = f"svdata2vec-tar-{self._shards[shard].name}"
                # A daemon: a stalled store does not keep the program alive.
                threading.Thread(target=self._fetch, args=(shard, fetch), name=name, daemon=True).start()
        return fetch

    def _fetch(self, shard: int, fetch: "Future[None]") -> None:
        entry, failure = self._shards[shard], None
        copy = copy_name(entry)
        try:
            with in_turn(self._cache.folder / f"{copy}.lock"):  # without locks two may fetch it, which still appears complete
                if not self._is_here(shard):  # another process may have fetched it meanwhile
                    self._cache.add(copy, lambda path: self._checked_download(entry, path))
                    log.info("fetched %s/%s (%d bytes)", self._url, entry.name, entry.bytes)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that needs the tar
            failure = error
        with self._lock:
            del self._on_the_way[shard]
        fetch.set_exception(failure) if failure else fetch.set_result(None)

    def _checked_download(self, entry: ShardEntry, path: Path) -> None:
        self._download(entry.name, path)
        problem = entry.size_problem(file_bytes(path)) or entry.hash_problem(path)
        if problem:
            raise UserError(f"{self._url}/{entry.name}: {problem}")
