"""Mapped tars: access to data that is gone is noted, in any thread, and never kills the process."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from pipeline_factory import shard_set

from svdata2vec.shards.reading import shardset
from svdata2vec.shards.reading.mapped import MappedTar, _raise_file_limit
from svdata2vec.shards.reading.shardset import Cut
from svdata2vec.shards.reading.sums import crc32

SIZE = 1_000_000
FOREIGN = """
import mmap, os, sys
from pathlib import Path
from svdata2vec.shards.reading.mapped import MappedTar
path = Path(sys.argv[1])
tar = MappedTar(path)
with path.open("rb") as file:
    other = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
os.truncate(path, 0)
print(tar.bytes.sum(), flush=True)
other[0]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    path.write_bytes(np.random.default_rng(0).integers(1, 255, SIZE, dtype=np.uint8).tobytes())
    return path


def test_a_cut_tar_reads_as_zeros_and_raises(path: Path) -> None:
    whole = path.read_bytes()
    tar = MappedTar(path)
    assert tar.bytes.tobytes() == whole and tar.missing() is None
    os.truncate(path, 300_001)
    assert tar.missing() == 300_001  # seen before a byte is touched
    assert tar.bytes.tobytes() == whole[:300_001].ljust(SIZE, b"\0")
    tar.check(0, 300_000)
    with pytest.raises(OSError, match=rf"{path}: cannot be read at byte 303104"):
        tar.check(290_000, 310_000)


def test_a_page_is_lost_for_good(path: Path) -> None:
    """Even if the file is complete again: code that used the bytes meanwhile saw zeros."""
    content = path.read_bytes()
    tar = MappedTar(path)
    os.truncate(path, 0)
    assert tar.bytes[5000] == 0
    path.write_bytes(content)
    assert tar.missing() == 4096 and tar.bytes[5000] == 0 and tar.bytes[9000] == content[9000]
    with pytest.raises(OSError, match="cannot be read at byte 4096"):
        tar.check(0, SIZE)
    assert tar.missing() is None  # whoever read it was told


def test_other_threads_may_touch_it_without_the_lock(path: Path) -> None:
    tar = MappedTar(path)
    os.truncate(path, 0)
    sums: list[int] = []
    threads = [threading.Thread(target=lambda: sums.append(crc32(tar.bytes))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [crc32(bytes(SIZE))] * 4 and tar.missing() == 0


def test_foreign_bus_errors_are_passed_on(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN, str(path)], capture_output=True, text=True)
    assert done.stdout == "0\n" and done.returncode == -signal.SIGBUS


def test_arrays_keep_the_tar_open(path: Path) -> None:
    part = MappedTar(path).bytes[1000:2000]
    path.unlink()
    assert part.any()


def test_more_files_may_be_open_than_a_shell_allows(path: Path) -> None:
    """Each map keeps its file open: the limit is raised as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 20, hard))
    _raise_file_limit.cache_clear()
    try:
        assert len([MappedTar(path) for _ in range(40)]) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tars_are_mapped_while_another_thread_looks_at_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a loader's threads do: the set of maps changes at any moment."""
    monkeypatch.setattr(shardset, "MAX_OPEN_TARS", 2)
    shards = shard_set(tmp_path, 8, clips_per_shard=1, num_frames=lambda _: 2, size=32)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        end = time.monotonic() + 0.8
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(lambda: [shards.check_used() for _ in iter(lambda: time.monotonic() < end, False)])
            held: deque[Cut] = deque(maxlen=4)
            for row in itertools.cycle(range(8)):
                held.append(shards.cut(row, np.array([0]), [0], [1]))
                if looking.done():
                    break
            looking.result()
    finally:
        sys.setswitchinterval(before)
