"""Shards behind URLs, the bounded cache, and reading them with plain webdataset."""

import functools
import http.server
import pickle
import shlex
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from pipeline_factory import shard_set

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.rangecache import RangeCache
from svdata2vec.pipeline.remote import RemoteShardSet, open_shards
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.shardset import ShardSet

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


@pytest.mark.parametrize("whole_shards", [False, True])
def test_remote_batches_equal_local_ones(local, url, tmp_path, whole_shards):
    remote = RemoteShardSet.open_url(url, cache=tmp_path, whole_shards=whole_shards)
    for first, second in zip(batches(local), batches(remote), strict=True):
        assert first.keys == second.keys and torch.equal(first.video_BTHWC, second.video_BTHWC)
    assert remote.cache.misses > 0
    missed = remote.cache.misses
    list(batches(pickle.loads(pickle.dumps(remote))))  # a new object, the same folder: nothing is fetched again
    again = RemoteShardSet.open_url(url, cache=tmp_path, whole_shards=whole_shards)
    batches(again)
    assert again.cache.misses == 0 and again.cache.hits > 0 and remote.cache.misses == missed


def test_cache_stays_within_its_bound(local, url, tmp_path):
    remote = RemoteShardSet.open_url(url, cache=tmp_path, cache_bytes=300_000)
    assert len(batches(remote)) == 3
    stored = sum(path.stat().st_size for path in remote.cache.folder.iterdir())
    assert stored == remote.cache.num_bytes <= 300_000


def test_skeleton_only_does_not_fetch_pixels(local, url, tmp_path):
    remote = RemoteShardSet.open_url(url, cache=tmp_path)
    batches(remote, video=False)
    column = local.manifest.components.index("jpegs")
    assert remote.cache.num_bytes < 0.5 * local.index["size"][:, column].sum()


def test_missing_and_short_tars_name_the_url(url, tmp_path):
    store = fsspec.filesystem("memory")
    remote = RemoteShardSet.open_url(url, cache=tmp_path)
    content = store.cat_file("/bucket/shard-000001.tar")
    store.pipe_file("/bucket/shard-000001.tar", content[: len(content) // 3])
    with pytest.raises(UserError, match=r"memory://bucket/shard-000001.tar: \d+ bytes, expected \d+"):
        batches(remote)
    store.rm("/bucket/shard-000001.tar")
    with pytest.raises(UserError, match=r"memory://bucket/shard-000001.tar: cannot be read"):
        batches(RemoteShardSet.open_url(url, cache=tmp_path / "other"))
    with pytest.raises(UserError, match=r"memory://nowhere/index.npy: cannot be read"):
        open_shards("memory://nowhere", cache=tmp_path)
    with pytest.raises(UserError, match="nosuchstore://x"):
        open_shards("nosuchstore://x", cache=tmp_path)


def test_changed_whole_shard_is_refused(url, tmp_path):
    store = fsspec.filesystem("memory")
    content = bytearray(store.cat_file("/bucket/shard-000000.tar"))
    content[5000] ^= 255
    store.pipe_file("/bucket/shard-000000.tar", bytes(content))
    with pytest.raises(ValueError, match="sha256 differs"):
        batches(RemoteShardSet.open_url(url, cache=tmp_path, whole_shards=True), max_bad_rate=0.0)


def test_open_shards_takes_folders_too(local):
    assert type(open_shards(local.root)) is ShardSet


def test_transient_failures_are_tried_again(url, tmp_path, monkeypatch):
    monkeypatch.setattr("svdata2vec.pipeline.remote.RETRY_SECONDS", (0.0, 0.0))
    store = fsspec.filesystem("memory")
    whole, calls = store.cat_file, []

    def sometimes(path, **options):
        calls.append(path)
        if len(calls) % 3:
            raise TimeoutError("the store is busy")
        return whole(path, **options)

    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **options: sometimes(path, **options))
    remote = RemoteShardSet.open_url(url, cache=tmp_path)
    assert len(batches(remote, video=False)) == 3


def test_a_server_without_ranges_is_understood(local, url, tmp_path, monkeypatch, caplog):
    store = fsspec.filesystem("memory")
    whole = store.cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, start=None, end=None: whole(path))
    remote = RemoteShardSet.open_url(url, cache=tmp_path)
    for first, second in zip(batches(local), batches(remote), strict=True):
        assert first.keys == second.keys and torch.equal(first.video_BTHWC, second.video_BTHWC)
    assert "sends whole files for ranges" in caplog.text


def test_range_cache_is_least_recently_used(tmp_path):
    cache = RangeCache(tmp_path, 250)
    for name in "ab":
        cache.get(name, 100, lambda: b"x" * 100)
    cache.get("a", 100, lambda: pytest.fail("must be cached"))
    cache.get("c", 100, lambda: b"y" * 100)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c"}
    assert bytes(cache.get("c", 100, lambda: b"")) == b"y" * 100
    assert RangeCache(tmp_path, 150).num_bytes == 100  # shrinks at the next start
    with pytest.raises(ValueError, match="expected 1 or more"):
        RangeCache(tmp_path, 0)


def test_plain_webdataset_reads_our_tars(local):
    """Nothing of ours is needed: keys, components and contents by webdataset alone, over HTTP as well."""
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
