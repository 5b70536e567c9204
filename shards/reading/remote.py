"""Shards behind a URL (s3://, gs://, https://, ... all that fsspec supports), read clip by clip through a bounded cache.

Manifest and index are copied once; then every clip is one ranged read of its own bytes, which suits the global shuffle:
nothing is read that is not used. With fetch="shards" whole tars are fetched ahead of their use instead: for stores that do
not support ranges or respond slowly, and if the cache can hold the whole data set.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.cache_folder import cache_folder
from svdata2vec.shards.errors import TOO_MANY_FILES, UserError
from svdata2vec.shards.lock import LOCK_NAME, in_turn
from svdata2vec.shards.ranges import check_known
from svdata2vec.shards.reading.manifest import INDEX_NAME, MANIFEST_NAME, SUMS_NAME, Manifest
from svdata2vec.shards.reading.rangecache import EVICTED, RangeCache
from svdata2vec.shards.reading.shardset import ShardSet, extent, load_head
from svdata2vec.shards.reading.sums import ChangedError
from svdata2vec.shards.reading.tarfetch import TarFetcher, copy_name
from svdata2vec.shards.shown import public
from svdata2vec.shards.urls import HTTP, RETRY_SECONDS, StoreError, cause_of, filesystem_of, may_pass

log = logging.getLogger(__name__)
_WARNED: set[str] = set()  # stores without ranges that were reported

CACHE_BYTES = 32 << 30
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # these errors are of the cache, not of the store
READ_THREADS = 16  # ranged reads in flight: a store answers in tens of milliseconds
Fetch = Literal["clips", "shards"]


def open_shards(
    root: str | Path, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES, fetch: Fetch = "clips"
) -> ShardSet:
    """Open a packed data set.

    Args:
        root: its folder, or its URL (with `://` in it).
        cache: folder for bytes fetched from a URL; None = `cache_folder()`.
        cache_bytes: largest size of the cache.
        fetch: "clips" reads each clip by itself, "shards" fetches whole tars ahead of their use.

    Raises:
        UserError: names what is missing, damaged or wrong.
    """
    if "," in str(root) and not Path(root).is_dir():
        raise UserError(f"{public(str(root))}: several sets, where one is expected; name one (a run takes several)")
    check_known("fetch", fetch, get_args(Fetch))
    if "://" in str(root):
        cache = cache or cache_folder()
        if cache is None:
            raise UserError(f"{public(str(root))}: you have no home folder for its cache; set XDG_CACHE_HOME to a folder")
        return RemoteShardSet(str(root), cache=cache, cache_bytes=cache_bytes, fetch=fetch)
    return ShardSet.open(root)


class RemoteShardSet(ShardSet):
    """A `ShardSet` behind a URL. Pickles as its URL and cache; safe to read from threads and in forked children."""

    read_threads = READ_THREADS
    reads_frames = False  # one request for the whole clip is faster than several

    def __init__(self, url: str, *, cache: Path, cache_bytes: int = CACHE_BYTES, fetch: Fetch = "clips") -> None:
        """Copy manifest and index, and check them. Raises UserError if the URL cannot be read or has no shards."""
        self.url, cache = url, Path(cache).absolute()
        filesystem, base = filesystem_of(url)
        query = base.partition("?")[2] if url.startswith(HTTP) else ""  # such as a signature, which is appended to every file
        self._query = f"?{query}" if query else ""
        self._base = base.removesuffix(self._query).rstrip("/")
        folder = _folder(cache, self.where, "head")
        make_folder(folder)
        names = [INDEX_NAME, MANIFEST_NAME]
        with _called(folder, self.where):
            for name in names:  # and the third if the manifest has its sum
                _keep(folder / name, _fetch(filesystem, self._place(name), f"{self.where}/{name}"))
                if name == MANIFEST_NAME and SUMS_NAME in Manifest.load(folder).crc32:
                    names.append(SUMS_NAME)
            super().__init__(Path(self.where), *load_head(folder, self.where))
        self._options: dict[str, Any] = {"cache": cache, "cache_bytes": cache_bytes, "fetch": fetch}
        self._connect(filesystem)

    def _connect(self, filesystem: Any) -> None:
        """Everything that belongs to this process: connections, locks, threads."""
        self._pid, self._filesystem = os.getpid(), filesystem
        # One for all sets that were ever packed there: copies of an older set are evicted first.
        self.cache = RangeCache(_folder(self._options["cache"], self.where, "tars"), self._options["cache_bytes"])
        self._tar_fetcher = None
        if self._options["fetch"] == "shards":
            self._tar_fetcher = TarFetcher(self.where, self.manifest.shards, self.cache, self._download)

    def _here(self) -> "RemoteShardSet":
        """This object, reconnected in a forked child: connections and locks do not survive a fork."""
        if self._pid != os.getpid():
            self._connect(filesystem_of(self.url)[0])
        return self

    @property
    def tars(self) -> list[Path]:
        """Empty: reading them means fetching them."""
        return []

    @property
    def where(self) -> str:
        return public(self.url.removesuffix(self._query).rstrip("/"))

    def _place(self, name: str) -> str:
        """Path of a file of the set in its store."""
        return f"{self._base}/{name}{self._query}"

    def tar_name(self, shard: int) -> str:
        """URL of a tar."""
        return f"{self.where}/{self.manifest.shards[shard].name}"

    def check_shard(self, shard: int) -> None:
        """UserError if a tar cannot be read or has another size, if the store reports one."""
        entry = self.manifest.shards[shard]
        store = self._here()._filesystem
        found = _try(lambda: store.size(self._place(entry.name)), self.tar_name(shard))
        problem = None if found is None else entry.size_problem(found)
        if problem is not None:
            raise UserError(f"{self.tar_name(shard)}: {problem}")

    def check_hash(self, shard: int) -> None:
        """Does nothing: it would fetch everything, and a tar that is fetched whole is checked on arrival."""

    def read(self, row: int, components: Sequence[str]) -> dict[str, memoryview]:
        """As for a folder. Bytes that differ from those packed are fetched once more, as the cached copy may be damaged."""
        try:
            return super().read(row, components)
        except ChangedError:
            self.cache.drop(self._copy_name(int(self.index[row]["shard"]), *extent(self._spans(row, components))))
            return super().read(row, components)

    def _copy_name(self, shard: int, offset: int, stop: int) -> str:
        """Name of these bytes of a tar in the cache."""
        name = copy_name(self.manifest.shards[shard])
        return f"{name}-{offset}-{stop}" if self._tar_fetcher is None else name

    def _pread(self, entry: np.void, offset: int, size: int) -> bytes | memoryview:
        """Bytes of the clip's tar, from the cache or the store. Raises UserError when the store fails."""
        self._here()
        shard, stop = int(entry["shard"]), offset + size
        if self._tar_fetcher is None:
            place = self._place(self.manifest.shards[shard].name)
            fetch = functools.partial(_fetch, self._filesystem, place, self.tar_name(shard), offset, stop)
            return self.cache.get(self._copy_name(shard, offset, stop), size, fetch)
        while True:
            try:
                with self._tar_fetcher.path(shard).open("rb") as file:
                    file.seek(offset)
                    return file.read(size)
            except OSError as error:
                if error.errno not in EVICTED:
                    raise

    def will_need(self, rows: np.ndarray) -> None:
        """Rows that will be read next, in their order: with fetch="shards" their tars are fetched in the background."""
        fetcher = self._here()._tar_fetcher
        if fetcher is not None:
            fetcher.will_need(self.index["shard"][rows].tolist())

    def _download(self, name: str, path: Path) -> None:
        _try(lambda: self._filesystem.get_file(self._place(name), str(path)), f"{self.where}/{name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(RemoteShardSet, self.url, **self._options), ()


def _folder(cache: Path, url: str, what: str) -> Path:
    return cache / hashlib.sha256(f"{url} {what}".encode()).hexdigest()[:24]


def _keep(path: Path, content: bytes) -> None:
    """Write a file unless it has this content already.

    If the cache is on NFS, other machines may have mapped it, and lose the bytes of a file that is replaced: a bus error.
    """
    with in_turn(path.with_name(LOCK_NAME)):
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)


@contextlib.contextmanager
def _called(folder: Path, where: str) -> Iterator[None]:
    """In messages of errors in the block, replace the folder of the copies with where they came from."""
    try:
        yield
    except UserError as error:
        error.args = (str(error).replace(str(folder), where),)
        raise


def _fetch(filesystem: Any, path: str, name: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a remote file; UserError names it if it is missing or too short."""
    content: bytes = _try(lambda: filesystem.cat_file(path, start=start, end=stop), name)
    if start and stop is not None and len(content) >= stop:
        url = name.rpartition("/")[0]
        if url not in _WARNED:
            log.warning("%s: the server sends whole files for ranges; copy the shards to this machine, or train with "
                        "--data.remote-fetch shards", url)
            _WARNED.add(url)
        return content[start:stop]
    if stop is not None and len(content) != stop - (start or 0):
        raise UserError(f"{name}: ends after byte {(start or 0) + len(content)}, {stop} expected; copy it again")
    return content


def _try(request: Callable[[], Any], name: str) -> Any:
    """The result of a request to a store, which is repeated if that may help.

    Raises UserError with the name of the file if the store refuses the request, StoreError if it fails; errors of this machine
    (disk full, too many open files) are passed on.
    """
    for wait_seconds in (*RETRY_SECONDS, None):
        try:
            return request()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (*DISK_FULL, *TOO_MANY_FILES):
                raise
            reason = cause_of(error)
            kind = StoreError if may_pass(reason) else UserError
            if wait_seconds is None or kind is UserError:
                raise kind(public(f"{name}: cannot be read ({type(reason).__name__}: {reason})")) from error
            log.warning("%s: %s; trying again in %.1f s", name, public(str(reason)), wait_seconds)
            time.sleep(wait_seconds)
    raise AssertionError("the last failure is raised")
