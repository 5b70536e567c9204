"""Shards behind URLs, the bounded cache, and reading them with plain webdataset."""

import errno
import fcntl
import functools
import http.server
import os
import pickle
import shlex
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import fsspec
import numpy as np
import psutil
import pytest
import torch
from loader_child import keys_in_child
from pipeline_factory import shard_set
from waiting import wait_for
from web_server import Ranged, serving

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards import atomic
from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.media import VideoFolder
from svdata2vec.shards.reading.rangecache import RangeCache
from svdata2vec.shards.reading.remote import RemoteShardSet, open_shards
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.urls import StoreError
from svdata2vec.shards.video import VideoReader

PLAN = PlanConfig(num_frames=4, size=32)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> ShardSet:
    return shard_set(tmp_path_factory.mktemp("local"), 12)


@pytest.fixture
def url(local) -> str:
    """The same folder in fsspec's memory store."""
    store = fsspec.filesystem("memory")
    for path in Path(local.root).iterdir():
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def batches(shards: ShardSet, **options) -> list:
    with ClipLoader(shards, "all", PLAN, batch_size=4, train=True, **options) as loader:
        return list(loader)


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_a_full_disk_under_the_cache_does_not_count_as_damage(url, tmp_path, monkeypatch, fetch):
    """It ends the run and names the cache's path: no clip is replaced, and no request is repeated."""
    remote = RemoteShardSet(url, cache=tmp_path, fetch=fetch)
    name_of = atomic.temporary_name

    def on_a_full_disk(path: Path) -> Path:
        link = name_of(path)
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(atomic, "temporary_name", on_a_full_disk)
    monkeypatch.setattr("svdata2vec.shards.reading.remote.RETRY_SECONDS", ())
    with pytest.raises(WriteFailedError, match=rf"^{tmp_path}/.*shard-.* could not be written: No space left on device$"):
        batches(remote, max_bad_rate=1.0)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_remote_batches_equal_local_ones(local, url, tmp_path, fetch):
    remote = RemoteShardSet(url, cache=tmp_path, fetch=fetch)
    for first, second in zip(batches(local), batches(remote), strict=True):
        assert first.keys == second.keys and torch.equal(first.video_BTHWC, second.video_BTHWC)
    assert remote.cache.misses > 0
    missed = remote.cache.misses
    list(batches(pickle.loads(pickle.dumps(remote))))  # a new object, the same folder: nothing is fetched again
    again = RemoteShardSet(url, cache=tmp_path, fetch=fetch)
    batches(again)
    assert again.cache.misses == 0 and again.cache.hits > 0 and remote.cache.misses == missed


def test_cache_stays_within_its_bound(local, url, tmp_path):
    remote = RemoteShardSet(url, cache=tmp_path, cache_bytes=300_000)
    assert len(batches(remote)) == 3
    stored = sum(path.stat().st_size for path in remote.cache.folder.iterdir())
    assert stored == remote.cache.num_bytes <= 300_000


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_a_set_that_is_packed_again_shares_the_bound_of_its_cache(local, url, tmp_path, fetch):
    """Each version of a set used to have its own cache, as large as the whole bound, and old ones stayed forever."""
    store, bound = fsspec.filesystem("memory"), max(shard.bytes for shard in local.manifest.shards)
    old = RemoteShardSet(url, cache=tmp_path / "cache", cache_bytes=bound, fetch=fetch)
    batches(old, last_batch="partial")
    for path in Path(shard_set(tmp_path / "new", 12, size=64).root).iterdir():
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    new = RemoteShardSet(url, cache=tmp_path / "cache", cache_bytes=bound, fetch=fetch)
    for row in range(12):
        assert new.sample(row).meta.packed_width == 64
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("svdata2vec-tar")])
    copies = [path.stat().st_size for path in (tmp_path / "cache").rglob("*shard*") if path.suffix != ".lock"]
    assert 0 < sum(copies) <= bound and new.manifest.shards[0].name == old.manifest.shards[0].name


def test_index_and_checksums_that_others_have_mapped_are_not_replaced(url, tmp_path, monkeypatch):
    """On NFS another machine would lose the bytes that it has not read yet: a bus error ended its run."""
    written, write = [], atomic.write_atomically
    monkeypatch.setattr("svdata2vec.shards.reading.remote.write_atomically",
                        lambda path, content: (written.append(path.name), write(path, content)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: RemoteShardSet(url, cache=tmp_path), range(8)))
    assert sorted(written) == ["index.npy", "manifest.json", "sums.npy"]
    (index,) = tmp_path.rglob("index.npy")
    index.write_bytes(bytes(index.stat().st_size))
    RemoteShardSet(url, cache=tmp_path)
    assert written[3:] == ["index.npy"], "a damaged one is"


def test_skeleton_only_does_not_fetch_pixels(local, url, tmp_path):
    remote = RemoteShardSet(url, cache=tmp_path)
    batches(remote, video=False)
    column = local.manifest.components.index("jpegs")
    assert remote.cache.num_bytes < 0.5 * local.index["size"][:, column].sum()


def test_missing_and_short_tars_name_the_url(url, tmp_path):
    store = fsspec.filesystem("memory")
    remote = RemoteShardSet(url, cache=tmp_path)
    content = store.cat_file("/bucket/shard-000001.tar")
    store.pipe_file("/bucket/shard-000001.tar", content[: len(content) // 3])
    with pytest.raises(UserError, match=r"memory://bucket/shard-000001.tar: \d+ bytes, expected \d+"):
        batches(remote)
    store.rm("/bucket/shard-000001.tar")
    with pytest.raises(UserError, match=r"memory://bucket/shard-000001.tar: cannot be read"):
        batches(RemoteShardSet(url, cache=tmp_path / "other"))
    with pytest.raises(UserError, match=r"memory://nowhere/index.npy: cannot be read"):
        open_shards("memory://nowhere", cache=tmp_path)
    with pytest.raises(UserError, match="nosuchstore://x"):
        open_shards("nosuchstore://x", cache=tmp_path)


@pytest.mark.parametrize("reader", [open_shards, VideoFolder, VideoReader])
def test_a_missing_library_of_a_store_names_the_extra(reader, monkeypatch):
    def url_to_fs(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(UserError, match=r"^s3://bucket/x.mp4: Install s3fs to access S3; s3://, gs:// and https:// need: "
                                        r"pip install 'svdata2vec\[remote\]'$"):
        reader("s3://bucket/x.mp4")


def test_changed_whole_shard_is_refused(url, tmp_path):
    store = fsspec.filesystem("memory")
    content = bytearray(store.cat_file("/bucket/shard-000000.tar"))
    content[5000] ^= 255
    store.pipe_file("/bucket/shard-000000.tar", bytes(content))
    with pytest.raises(UserError, match=r"memory://bucket/shard-000000.tar: sha256 [0-9a-f]{12}..., expected .*copy it again"):
        batches(RemoteShardSet(url, cache=tmp_path, fetch="shards"))
    assert not list(tmp_path.rglob("*000000.tar")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_a_copy_damaged_in_the_cache_is_fetched_again(local, url, tmp_path, fetch):
    """The shard, which is intact, was reported as damaged forever after."""
    remote = RemoteShardSet(url, cache=tmp_path, fetch=fetch)
    remote.sample(0)
    (copy,) = (path for path in remote.cache.folder.iterdir() if path.suffix != ".lock")
    copy.write_bytes(bytes(copy.stat().st_size))
    assert bytes(remote.sample(0).video) == bytes(local.sample(0).video)
    assert remote.cache.misses == 2 and remote.cache.num_bytes == copy.stat().st_size


def test_a_clip_is_read_whole_from_a_fetched_tar_though_the_system_gives_it_in_parts(local, url, tmp_path, monkeypatch):
    """Linux gives at most 2 GiB at once: a larger clip counted as damaged."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 1000), offset))
    assert bytes(RemoteShardSet(url, cache=tmp_path, fetch="shards").sample(0).video) == bytes(local.sample(0).video)


def test_tars_are_fetched_where_the_cache_has_no_locks(local, url, tmp_path, monkeypatch):
    """As on a Lustre file system that is mounted without locks: the run ended."""
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert bytes(RemoteShardSet(url, cache=tmp_path, fetch="shards").sample(0).video) == bytes(local.sample(0).video)


def test_tars_are_fetched_once_and_ahead_of_their_use(local, url, tmp_path, monkeypatch):
    """A step waits for its own tars; those of later steps come in the background, one download for all readers."""
    store = type(fsspec.filesystem("memory"))
    fetched, whole = [], store.get_file

    def slow(self, path, target, **options):
        fetched.append(path.rsplit("/", 1)[-1])
        time.sleep(0.1)
        return whole(self, path, target, **options)

    monkeypatch.setattr(store, "get_file", slow)
    remote = RemoteShardSet(url, cache=tmp_path, fetch="shards")
    remote.will_need(np.arange(12))
    wait_for(lambda: remote.cache.misses >= 3)
    assert sorted(fetched) == [shard.name for shard in local.manifest.shards]
    assert len(batches(remote)) == 3 and len(fetched) == 3
    remote = RemoteShardSet(url, cache=tmp_path / "other", fetch="shards")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: remote.sample(row), [0, 1, 2, 3] * 4))
    assert len(fetched) == 4


def test_the_bound_holds_for_whole_tars(local, url, tmp_path):
    largest = max(shard.bytes for shard in local.manifest.shards)
    remote = RemoteShardSet(url, cache=tmp_path, fetch="shards", cache_bytes=2 * largest)
    for first, second in zip(batches(local), batches(remote), strict=True):
        assert first.keys == second.keys and torch.equal(first.video_BTHWC, second.video_BTHWC)
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("svdata2vec-tar")])
    assert sum(path.stat().st_size for path in remote.cache.folder.glob("*.tar")) <= 2 * largest


def test_two_caches_in_one_folder_keep_one_bound(tmp_path):
    """Processes that share a folder see what the others add."""
    one, two = RangeCache(tmp_path, 1000), RangeCache(tmp_path, 1000)
    for i in range(20):
        for cache, name in ((one, "a"), (two, "b")):
            cache.get(f"{name}{i}", 100, lambda: b"x" * 100)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    with pytest.raises(OSError, match="no space"):
        one.add("c", lambda path: (path.write_bytes(b"half"), exec("raise OSError('no space')")))
    assert not (tmp_path / "c").exists() and not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def http_url(local, monkeypatch):
    monkeypatch.setattr("svdata2vec.shards.reading.remote.RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(Ranged, "cut", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Path(local.root)) as url:
        yield url


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_a_web_server_serves_shards(local, http_url, tmp_path, monkeypatch, fetch):
    remote = RemoteShardSet(http_url, cache=tmp_path / "good", fetch=fetch)
    for first, second in zip(batches(local), batches(remote), strict=True):
        assert first.keys == second.keys and torch.equal(first.video_BTHWC, second.video_BTHWC)
    broken = RemoteShardSet(http_url, cache=tmp_path / "broken", fetch=fetch)
    monkeypatch.setattr(Ranged, "cut", True)
    with pytest.raises(ValueError, match=r"shard-00000\d.tar: (cannot be read|\d+ bytes, expected|ends after)"):
        batches(broken, max_bad_rate=0.0)
    assert not [path for path in (tmp_path / "broken").rglob("*shard*") if path.suffix != ".lock"]


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_the_query_of_a_url_is_sent_with_every_file(local, http_url, tmp_path, monkeypatch, fetch):
    """Such as a store's signature. It is not part of a name, so the cache is found again under another signature."""
    monkeypatch.setattr(Ranged, "query", "sv=2&sig=a/b%2Bc%3D")
    remote = RemoteShardSet(f"{http_url.replace('://', '://me:pass-word@')}/?{Ranged.query}", cache=tmp_path, fetch=fetch)
    assert remote.where == http_url and remote.root.name == http_url.removeprefix("http://")
    assert bytes(remote.sample(0).video) == bytes(local.sample(0).video)
    remote.check_shard(0)
    monkeypatch.setattr(Ranged, "query", "sig=d")
    again = RemoteShardSet(f"{http_url}?sig=d", cache=tmp_path, fetch=fetch)
    assert bytes(again.sample(0).video) == bytes(local.sample(0).video) and again.cache.misses == 0
    assert len(list(tmp_path.iterdir())) == 2, "index and bytes, however often a signature is renewed"


@pytest.mark.parametrize(("name", "message"), [
    ("manifest.json", "not valid JSON"), ("index.npy", "not a readable array"), ("sums.npy", "not a readable array"),
])
def test_errors_beside_the_tars_name_the_url(url, tmp_path, name, message):
    """Messages named the file in the cache, which the user cannot repair."""
    fsspec.filesystem("memory").pipe_file(f"/bucket/{name}", b"<html>Please log in</html>")
    with pytest.raises(UserError, match=rf"^memory://bucket/{name}: {message}"):
        RemoteShardSet(url, cache=tmp_path)


def test_proxies_of_the_environment_are_used(local, http_url, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", http_url)
    remote = RemoteShardSet("http://shards.invalid/set", cache=tmp_path)
    assert bytes(remote.sample(0).video) == bytes(local.sample(0).video)


def test_a_server_may_be_slow_as_long_as_it_sends(local, http_url, tmp_path, monkeypatch):
    """aiohttp bounds the whole answer: a tar that took five minutes was restarted three times, and then ended the run."""
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    monkeypatch.setattr("svdata2vec.shards.urls.STALL_SECONDS", 1.0)
    monkeypatch.setattr("svdata2vec.shards.reading.remote.RETRY_SECONDS", ())
    remote = RemoteShardSet(http_url, cache=tmp_path, fetch="shards")
    monkeypatch.setattr(Ranged, "pause", 0.1)
    assert bytes(remote.sample(0).video) == bytes(local.sample(0).video)
    monkeypatch.setattr(Ranged, "pause", 9.0)
    said = rf"^{http_url}/shard-000001.tar: cannot be read \(SocketTimeoutError: Timeout on reading"
    with pytest.raises(StoreError, match=said):
        remote.sample(4)


@pytest.mark.parametrize(("method", "fetch"), [("fork", "clips"), ("fork", "shards")])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_remote_loader_works_in_a_child_process(http_url, tmp_path, method, fetch):
    """The child must not use connections, locks and threads of the parent."""
    remote = RemoteShardSet(http_url, cache=tmp_path, fetch=fetch)
    with ClipLoader(remote, "all", PLAN, batch_size=4, train=True) as loader:
        expected = [batch.keys for batch in loader]
        loader.set_epoch(0)
        remote.cache.folder.rename(tmp_path / "away")  # the child must fetch, too
        remote.cache.folder.mkdir()
        assert keys_in_child(loader, method) == expected


def test_folders_and_urls_have_one_interface(local, url, tmp_path):
    """Code that reads shards does not check the set's class: folder and URL differ only in methods of `ShardSet`."""
    folder, remote = open_shards(local.root), open_shards(url, cache=tmp_path)
    assert type(folder) is ShardSet and isinstance(remote, RemoteShardSet)
    assert [path.name for path in folder.tars] == [shard.name for shard in remote.manifest.shards] and remote.tars == []
    assert folder.read_threads == 1 < remote.read_threads
    for shards in (folder, remote):
        shards.will_need(np.arange(len(shards)))
        shards.check_hash(0)
        shards.check_shard(0)
        assert shards.tar_name(0).endswith("/shard-000000.tar")
        assert bytes(shards.read(3, ["json"])["json"]) == bytes(local.read(3, ["json"])["json"])
        assert bytes(shards.sample(2).video) == bytes(local.sample(2).video)
        assert shards.where == (str(local.root) if shards is folder else url)
        with pytest.raises(UserError, match="no component 'depth'; it has jpegs, "):
            shards.read(0, ["depth"])


def test_transient_failures_are_tried_again(url, tmp_path, monkeypatch):
    monkeypatch.setattr("svdata2vec.shards.reading.remote.RETRY_SECONDS", (0.0, 0.0))
    store = fsspec.filesystem("memory")
    whole, calls = store.cat_file, Counter()

    def sometimes(path, **options):
        calls[path, options["start"]] += 1
        if calls[path, options["start"]] < 3:
            raise TimeoutError("the store is busy")
        return whole(path, **options)

    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **options: sometimes(path, **options))
    remote = RemoteShardSet(url, cache=tmp_path)
    assert sum(len(batch.keys) for batch in batches(remote, video=False)) == 12


@pytest.mark.parametrize(("fetch", "request_of"), [("clips", "cat_file"), ("shards", "get_file")])
def test_a_store_that_keeps_failing_does_not_count_as_damage(url, tmp_path, monkeypatch, fetch, request_of):
    """If a store stayed busy for all repeated requests, the run lost clips: the store still reported the tar's size."""
    monkeypatch.setattr("svdata2vec.shards.reading.remote.RETRY_SECONDS", (0.0,))
    remote = RemoteShardSet(url, cache=tmp_path, fetch=fetch)

    def busy(*_, **__):
        raise TimeoutError("busy")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), request_of, busy)
    with pytest.raises(StoreError, match=r"^memory://bucket/shard-00000\d.tar: cannot be read \(TimeoutError: busy\)$"):
        batches(remote, max_bad_rate=1.0)


def test_a_request_that_a_server_refuses_is_sent_once_and_its_answer_shown(http_url, tmp_path, monkeypatch, caplog):
    remote = RemoteShardSet(http_url.replace("://", "://me:pass-word@"), cache=tmp_path)
    monkeypatch.setattr(Ranged, "status", 403)
    said = rf"^{http_url}/shard-000000.tar: cannot be read \(ClientResponseError: 403"
    for request in (remote.sample, remote.check_shard):
        with pytest.raises(UserError, match=said) as refused:
            request(0)
        assert not isinstance(refused.value, StoreError) and "pass-word" not in str(refused.value)
    assert "trying again" not in caplog.text


def test_a_server_without_ranges_is_understood(local, url, tmp_path, monkeypatch, caplog):
    store = fsspec.filesystem("memory")
    whole = store.cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, start=None, end=None: whole(path))
    remote = RemoteShardSet(url, cache=tmp_path)
    for first, second in zip(batches(local), batches(remote), strict=True):
        assert first.keys == second.keys and torch.equal(first.video_BTHWC, second.video_BTHWC)
    assert "sends whole files for ranges" in caplog.text


def test_cached_clips_keep_no_file_open(tmp_path):
    """Clips of large batches were in more tars than the files that a process may have open."""
    cache = RangeCache(tmp_path, 250)
    cache.get("a", 100, lambda: b"x" * 100)
    before = psutil.Process().num_fds()
    held = [cache.get("a", 100, lambda: pytest.fail("must be cached")) for _ in range(20)]
    assert psutil.Process().num_fds() < before + len(held)


@pytest.mark.parametrize("fetch", ["clips", "shards"])
def test_a_clip_that_another_machine_evicts_while_it_is_read_is_fetched_again(local, url, tmp_path, monkeypatch, fetch):
    """NFS calls its open file stale; the clip counted as damaged, and was replaced."""
    remote, open_file, stale = RemoteShardSet(url, cache=tmp_path, fetch=fetch), Path.open, []

    def opened(path, mode="r", *rest, **options):
        if path.parent == remote.cache.folder and mode == "rb" and not stale:
            stale.append(path)
            path.unlink()
            raise OSError(errno.ESTALE, "Stale file handle")
        return open_file(path, mode, *rest, **options)

    remote.sample(0)
    monkeypatch.setattr(Path, "open", opened)
    assert bytes(remote.sample(0).video) == bytes(local.sample(0).video)
    assert len(stale) == 1 and remote.cache.misses == 2


def test_range_cache_is_least_recently_used(tmp_path):
    cache = RangeCache(tmp_path, 250)
    for name in "ab":
        cache.get(name, 100, lambda: b"x" * 100)
    cache.get("a", 100, lambda: pytest.fail("must be cached"))
    cache.get("c", 100, lambda: b"y" * 100)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c"}
    assert bytes(cache.get("c", 100, lambda: b"")) == b"y" * 100
    assert RangeCache(tmp_path, 150).num_bytes == 100  # shrinks at the next start
    with pytest.raises(UserError, match="cache of 0 bytes: expected 1 or more"):
        RangeCache(tmp_path, 0)


def test_another_way_to_fetch_is_refused(local, tmp_path):
    for root in (local.root, f"file://{local.root}"):
        with pytest.raises(UserError, match=r"^fetch is 'tars': expected 'clips' or 'shards'$"):
            open_shards(root, cache=tmp_path, fetch="tars")


def test_a_relative_cache_is_found_from_another_folder(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = open_shards(f"file://{local.root}", cache=Path("cache"))
    monkeypatch.chdir("/")
    assert remote.sample(0).key == pickle.loads(pickle.dumps(remote)).sample(0).key == local.sample(0).key


def test_plain_webdataset_reads_our_tars(local):
    """None of our code is needed: webdataset alone reads keys, components and contents, also over HTTP."""
    import webdataset

    handler = functools.partial(_Quiet, directory=str(local.root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = [shard.name for shard in local.manifest.shards]
        program = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())"
        fetch = f"{shlex.quote(sys.executable)} -c '{program}'"
        for urls in (
            [str(Path(local.root) / name) for name in names],
            [f"pipe:{fetch} http://127.0.0.1:{server.server_port}/{name}" for name in names],
        ):
            samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
            assert [sample["__key__"] for sample in samples] == [key.decode() for key in local.index["key"]]
            for row, sample in enumerate(samples):
                ours = local.sample(row)
                np.testing.assert_array_equal(sample["pose.npy"], ours.pose_MTVC)
                np.testing.assert_array_equal(sample["offsets.npy"], ours.offsets)
                assert sample["jpegs"] == bytes(ours.video) and sample["json"]["num_frames"] == ours.meta.num_frames
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No lines among the test's output."""
