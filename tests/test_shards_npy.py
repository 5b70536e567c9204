""".npy and .npz files are read right while other threads parse, too (python/cpython#106905)."""

import ast
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.npy import read_npy
from svdata2vec.shards.readers.pose_files import read_poses
from svdata2vec.shards.readers.skeleton_npy import NUM_JOINTS, read_npy_skeleton
from svdata2vec.shards.reading.manifest import load_plain_array
from svdata2vec.shards.reading.sample import parse_array

MIXED_UP = "AST constructor recursion depth mismatch (before=48, after=46)"
FRAMES = 3


def component(folder: Path) -> np.ndarray:
    """A component whose header is not the one that NumPy writes for plain arrays."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asfortranarray(np.ones((FRAMES, 4), np.float32)), version=(2, 0))
    return parse_array(buffer.getvalue(), "box.npy")


def index(folder: Path) -> np.ndarray:
    np.save(folder / "index.npy", np.ones(FRAMES, [("key", "S4"), ("offset", "u8", (2,))]))
    return load_plain_array(folder / "index.npy")["offset"]


def skeleton(folder: Path) -> np.ndarray:
    path = folder / "S001C001P001R001A001.skeleton.npy"
    np.save(path, np.array({"rgb_body0": np.ones((FRAMES, NUM_JOINTS, 2))}, dtype=object), allow_pickle=True)
    return read_npy_skeleton(str(path), 192, 128).pose_MTVC[0]


def poses(folder: Path) -> np.ndarray:
    np.savez(folder / "a.npz", keypoint=np.ones((1, FRAMES, 17, 2), np.float32), img_shape=np.array([128, 192]))
    return read_poses(str(folder / "a.npz"), "npz", "", 17, None, 1, 0.3).pose_MTVC[0]


@pytest.mark.parametrize("error", [SystemError(MIXED_UP), RecursionError("maximum recursion depth exceeded")])
@pytest.mark.parametrize("read", [component, index, skeleton, poses])
def test_a_parse_that_another_thread_disturbed_is_repeated(
    read: Callable[[Path], np.ndarray], error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse, calls = ast.literal_eval, 0

    def disturbed(text: str) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise error
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", disturbed)
    array = read(tmp_path)
    assert calls and not calls % 2 and len(array) == FRAMES and (array == 1).all()


def test_a_fault_of_the_header_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "index.npy").write_bytes(b"\x93NUMPY\1\0" + bytes([118, 0]) + b"(" * 118)
    with pytest.raises(UserError, match=r"index\.npy: not a readable array \(.*\); copy it again or pack again$"):
        load_plain_array(tmp_path / "index.npy")


def test_an_error_that_stays_is_raised() -> None:
    def read() -> None:
        raise SystemError(MIXED_UP)

    with pytest.raises(SystemError, match="AST constructor"):
        read_npy(read)


@pytest.mark.parametrize(("header", "fault"), [
    ("(" * 50, "EOF in multi-line statement|was never closed"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000000000,)}", "too large"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000,)}", "Unable to allocate"),
    ("{1: 2, 'a': 3}", "not supported"),
])
def test_poses_with_a_damaged_header_are_named(header: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keypoint.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(64))
    with pytest.raises(UserError, match=rf"a\.npz: not a readable \.npz \(.*({fault})"):
        read_poses(str(path), "npz", "", 17, None, 1, 0.3)
