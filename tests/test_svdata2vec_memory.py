"""Missing memory and a failing disk do not count as damage: nothing is left out, skipped or discarded for them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_factory import shard_set
from shards_data import write_tree

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs import torch_file
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.shards import errors
from svdata2vec.shards.errors import MachineError, UserError, require_memory
from svdata2vec.shards.packing.clip import ClipPacker
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pose_files import read_poses
from svdata2vec.shards.readers.pyskl import load_pickle
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.manifest import load_plain_array
from svdata2vec.shards.reading.sample import parse_array
from svdata2vec.shards.reading.verify import verify

MIB = 1 << 20
OPTIONS = PackOptions(workers=1, size=32)
# Without memory, libraries fail in many ways.
FAILURES = [
    MemoryError(), MemoryError(errno.ENOMEM, "Cannot allocate memory"), ValueError("Invalid data found"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that lets no more than so many MiB be mapped."""
    def leave(mebibytes: int) -> None:
        def mapped(_: int, size: int, flags: int) -> Any:
            if size > mebibytes * MIB:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return SimpleNamespace(close=lambda: None)

        monkeypatch.setattr(errors, "mmap", SimpleNamespace(mmap=mapped, MAP_PRIVATE=2))

    return leave


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


@pytest.mark.parametrize("error", FAILURES)
def test_what_must_be_free_depends_on_the_error(error: Exception, leave: Callable[[int], None]) -> None:
    require_memory(error, "x")
    leave(100)
    with pytest.raises(MachineError, match=r"^x: memory is running out \(.+\); free some, raise the limit \(`ulimit -v`\), or"):
        require_memory(error, "x")
    leave(1000)
    if "allocate" in str(error) or isinstance(error, MemoryError):
        with pytest.raises(MachineError):
            require_memory(error, "x")
    else:
        require_memory(error, "x")
    leave(4000)
    require_memory(error, "x")


@pytest.mark.parametrize("error", FAILURES)
def test_no_clip_is_left_out(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             leave: Callable[[int], None]) -> None:
    dataset = open_dataset("folder", root=write_tree(tmp_path / "videos", "c/a.mp4", "c/b.mp4"))
    real = ClipPacker.pack
    monkeypatch.setattr(ClipPacker, "pack", lambda self, clip: fail(error)() if clip.key.endswith("a") else real(self, clip))
    assert pack(dataset, tmp_path / "with", OPTIONS).num_clips == 1, "with memory, the clip is to blame"
    leave(100)
    with pytest.raises(MachineError, match=r"c/a\.mp4: memory is running out"):
        pack(dataset, tmp_path / "without", OPTIONS)
    monkeypatch.undo()
    assert pack(dataset, tmp_path / "without", PackOptions(workers=1, size=32, resume=True)).num_clips == 2


def test_no_clip_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Callable[[int], None]) -> None:
    shards = shard_set(tmp_path, 4)
    monkeypatch.setattr("svdata2vec.shards.reading.sample._plain_header", fail(MemoryError()))
    plan = PlanConfig(num_frames=4, size=32)
    with ClipLoader(shards, "all", plan, batch_size=4, max_bad_rate=1.0) as loader:
        leave(100)
        with pytest.raises(MachineError, match="memory is running out"):
            list(loader)
    assert loader.stats.clips_skipped == 0
    with pytest.raises(MachineError, match="memory is running out"):
        verify(tmp_path)


def component(folder: Path) -> object:
    return parse_array(b"\x93NUMPY\1\0", "box.npy")


def index(folder: Path) -> object:
    (folder / "index.npy").write_bytes(b"\x93NUMPY\1\0")
    return load_plain_array(folder / "index.npy")


def annotations(folder: Path) -> object:
    (folder / "set.pkl").write_bytes(b"\x80\4.")
    return load_pickle(folder / "set.pkl")


def poses(folder: Path) -> object:
    (folder / "a.npz").write_bytes(b"PK\3\4")
    return read_poses(str(folder / "a.npz"), "npz", "", 17, None, 1, 0.3)


def weights(folder: Path) -> object:
    (folder / "w.pt").write_bytes(b"PK\3\4")
    return torch_file.read_torch_file(folder / "w.pt")


@pytest.mark.parametrize(("read", "name"), [
    (component, "box.npy"), (index, "index.npy"), (annotations, "set.pkl"), (poses, "a.npz"), (weights, "w.pt"),
])
def test_no_file_is_called_damaged(read: Callable[[Path], object], name: str, tmp_path: Path,
                                   leave: Callable[[int], None]) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert not isinstance(caught.value, MachineError) and "readable" in str(caught.value)
    leave(100)
    with pytest.raises(MachineError, match=rf"{name}: memory is running out"):
        read(tmp_path)


@pytest.mark.parametrize(("error", "message"), [
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory is running out"),
    (OSError(errno.EIO, "Input/output error"), "its disk or server fails: run again"),
    (OSError(errno.ESTALE, "Stale file handle"), "its disk or server fails: run again"),
])
def test_no_older_checkpoint_is_continued_from(error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               leave: Callable[[int], None]) -> None:
    """The run would do hours of work again, and remove the newer one."""
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (5, 10):
        checkpoints.save(step, {"step": step, "model": {"weight": torch.zeros(3)}})
    leave(100)
    monkeypatch.setattr(torch_file, "_Archive", fail(error))
    with pytest.raises(MachineError, match=rf"step-000000010\.pt: .*{message}"):
        checkpoints.load_newest()
    monkeypatch.undo()
    found = checkpoints.load_newest()
    assert found is not None and found["step"] == 10
