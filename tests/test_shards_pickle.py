"""Annotation pickles: the usual ones load, regardless of the writing program; all else is refused before it runs anything."""

import io
import pickle
import pickletools
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
from shards_data import annotation, write_video

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.plain_pickle import load_plain
from svdata2vec.shards.readers.pyskl import load_pickle, pose_of, read_pyskl

STACKED = {module: pickle.SHORT_BINUNICODE + bytes([len(module)]) + module.encode() for module in (
    "numpy", "ndarray", "dtype", "numpy._core.multiarray", "_reconstruct", "O", "O8", "f8", "builtins", "set", "os", "system")}


def named(module: str, name: str) -> bytes:
    return STACKED[module] + STACKED[name] + pickle.STACK_GLOBAL


def equal(found: object, wanted: object) -> bool:
    if isinstance(wanted, np.ndarray):
        assert isinstance(found, np.ndarray) and found.dtype.str[1:] == wanted.dtype.str[1:] and found.shape == wanted.shape
        return bool((found == wanted).all())
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and list(found) == list(wanted)
        return all(equal(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted)
        return all(map(equal, found, wanted))
    return bool(found == wanted) and type(found) is type(wanted)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core."])
def test_pickles_of_the_field_load(protocol: int, module: bytes) -> None:
    values = [
        annotation("S001C001P001R001A001", 3, 9), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4, dtype=">i2"),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2), np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((0, 3), np.float32), np.ones((2, 2), bool), np.float32(1.5), np.int64(-7), np.str_("name"), 2**70, None, 1.5,
        {1, 2}, b"bytes", "\u00e9", (1, (2, 3)), np.zeros(300_000, np.uint8),
    ]
    content = without_frames(pickle.dumps(values, protocol))
    if module == b"numpy.core.":  # as NumPy 1 names it
        for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            old = name.replace(b"_core", b"core")
            content = content.replace(b"c" + name + b"\n", b"c" + old + b"\n")
            content = content.replace(bytes([0x8c, len(name)]) + name, bytes([0x8c, len(old)]) + old)
    assert all(map(equal, load_plain(io.BytesIO(content), "x.pkl"), values))


def without_frames(content: bytes) -> bytes:
    """The same pickle without the lengths of its parts, which would be wrong for another name."""
    starts = [(place, operation.name) for operation, _, place in pickletools.genops(content)]
    ends = [place for place, _ in starts[1:]] + [len(content)]
    return b"".join(content[start:end] for (start, name), end in zip(starts, ends, strict=True) if name != "FRAME")


def test_dictionaries_with_defaults_and_many_memo_places() -> None:
    groups = defaultdict(list, {"a": [1]})
    names = [f"name-{number}" for number in range(70_000)]
    values = [groups, OrderedDict(b=2), names]
    for protocol in (2, 4):
        assert load_plain(io.BytesIO(pickle.dumps(values, protocol)), "x.pkl") == [{"a": [1]}, {"b": 2}, names]


def test_arrays_of_values_hold_them() -> None:
    """NumPy makes them of rows of unequal lengths."""
    ragged = np.array([[1.0, 2.0], [], [3]], object)
    square = np.array([[None, "a"], [2, [3]]], object)
    values = [ragged, square, np.asfortranarray(square), np.array({"a": 1}, object), np.zeros(0, object)]
    found = load_plain(io.BytesIO(pickle.dumps(values, 4)), "x.pkl")
    assert [array.tolist() for array in found] == [[[1.0, 2.0], [], [3]], *[[[None, "a"], [2, [3]]]] * 2, {"a": 1}, []]


def test_arrays_of_names_as_pandas_has_them_are_splits_and_boxes_in_them_are_boxes(tmp_path: Path) -> None:
    """Such splits were read as empty, and such boxes as without persons, silently."""
    entries = [annotation("a", 0, 2) | {"bboxes": [np.array([1, 2, 30, 40], object)] * 2}, annotation("b", 0, 2)]
    content = {"annotations": np.array(entries, object), "split": {"train": np.array(["a"], object), "val": ["b"]}}
    (tmp_path / "set.pkl").write_bytes(pickle.dumps(content))
    found = load_pickle(tmp_path / "set.pkl")
    assert found["split"] == {"train": ["a"], "val": ["b"]}
    box_T4 = pose_of(found["annotations"][0]).box_T4
    assert box_T4 is not None and box_T4.tolist() == [[1, 2, 30, 40]] * 2


def array_state(shape: bytes, dtype: bytes, content: bytes) -> bytes:
    """`_reconstruct(ndarray, (0,), b"b")` with a state: version 1, shape, dtype, order, content."""
    start = named("numpy._core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    made = named("numpy", "dtype") + dtype + b"\x89\x88\x87R"
    return b"\x80\x04" + start + b"(K\x01" + shape + made + b"\x89" + content + b"tb."


BYTES_8 = b"C\x08" + bytes(8)
CRAFTED = {
    # numpy.ndarray((1,), dtype("O"), buffer): the eight bytes are taken for the address of an object
    "ndarray is called": (b"\x80\x04" + named("numpy", "ndarray") + b"K\x01\x85" + named("numpy", "dtype") + STACKED["O"]
                          + b"\x85R" + b"C\x08" + b"\x41" * 8 + b"\x87R.", "not a readable pickle"),
    "an array of objects": (array_state(b"K\x01\x85", STACKED["O"], BYTES_8), "dtype 'O'; expected numbers"),
    "more values than there are": (array_state(b"K\x02\x85", STACKED["O8"], b"]Na"), "(2,) of 1 values"),
    "more elements than bytes": (array_state(b"K\x02\x85", STACKED["f8"], BYTES_8), "16 bytes, it has 8"),
    "2^34 bytes": (array_state(b"\x8a\x05\x00\x00\x00\x00\x04\x85", STACKED["f8"], BYTES_8),
                   "137,438,953,472 bytes, it has 8"),
    "negative sides": (array_state(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", STACKED["f8"], BYTES_8), "unreadable number"),
    "a dtype is changed": (b"\x80\x04" + named("numpy", "dtype") + STACKED["f8"] + b"\x85R(K\x03X\x01\x00\x00\x00<K\x01K\x01"
                           b"K\x01K\x01K\x01K\x00tb.", "structures; expected plain numbers"),
    "a maker is changed": (b"\x80\x04" + named("builtins", "set") + b"}b.", "changes what it should only call"),
    "os.system": (b"\x80\x04" + named("os", "system") + b".", "wants os.system; expected NumPy arrays"),
    "a class is made": (b"\x80\x04" + named("numpy", "ndarray") + b")\x81.", "operation b'\\x81' at byte"),
    "16 GiB of bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**34) + b"ab.", "byte 2 asks for 17,179,869,184 bytes, the file"),
    "a frame of 16 GiB": (b"\x80\x04\x95" + struct.pack("<Q", 2**34) + b"N.", "asks for 17,179,869,184 bytes"),
    "a memo of 16 GiB": (b"\x80\x02Nr" + struct.pack("<I", 2**30) + b".", "operation b'r' at byte 3"),
    "a number of 2 GiB": (b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"\x01.", "asks for 2,147,483,647 bytes"),
    "protocol 0": (pickle.dumps({"split": [1.5]}, 0), "protocol 2 or newer"),
    "protocol 9": (b"\x80\x09N.", "not a readable pickle"),
    "nothing": (b"", "ends before its last operation"),
    "no end": (b"\x80\x04]", "ends before its last operation"),
    "an empty stack": (b"\x80\x04.", "not a readable pickle"),
    "the same bytes in many arrays": (
        b"\x80\x04(B" + struct.pack("<I", 10_000) + bytes(10_000) + b"q\x00" + b"0(" + 3 * (
            array_state(b"M\xe2\x04\x85", STACKED["f8"], b"h\x00")[2:-1]) + b"l.", "more arrays than its file has bytes for"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_pickles_of_anything_but_plain_data_are_refused(name: str) -> None:
    content, message = CRAFTED[name]
    code = (
        "import io, resource, sys; from svdata2vec.shards.readers.plain_pickle import load_plain\n"
        "from svdata2vec.shards.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try: load_plain(io.BytesIO(sys.stdin.buffer.read()), 'x.pkl')\n"
        "except UserError as error: sys.exit(str(error))"
    )
    if name in ("ndarray is called", "a memo of 16 GiB"):  # in a process of its own: it may end by a signal
        child = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=False)
        assert child.returncode == 1 and message in child.stderr.decode()
        return
    with pytest.raises(UserError, match="pickle") as caught:
        load_plain(io.BytesIO(content), "x.pkl")
    assert message in str(caught.value)


def test_every_cut_and_every_bit_is_refused_or_loads() -> None:
    content = pickle.dumps({"split": {"train": ["a"]}, "annotations": [annotation("a", 0, 2)]}, 4)
    for end in range(len(content)):
        with pytest.raises(UserError):
            load_plain(io.BytesIO(content[:end]), "x.pkl")
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        try:
            load_plain(io.BytesIO(bytes(damaged)), "x.pkl")
        except UserError:
            continue


def test_a_pickle_of_another_form_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    entry = annotation("a", 0)
    for content, message in (
        ({"split": ["a"], "annotations": [entry]}, "'split' is of type list, expected {name of a split"),
        ({"split": {"a": 3}, "annotations": [entry]}, "'split' is of type dict, expected {name of a split"),
        ({"split": {}, "annotations": "a"}, "'annotations' is of type str, expected a list of dictionaries"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=message):
            load_pickle(path)


def test_a_field_of_another_kind_is_one_clip_less(tmp_path: Path) -> None:
    wrong = [{"label": None}, {"label": "walk"}, {"label": float("inf")}, {"total_frames": []}, {"img_shape": 3},
             {"keypoint": "x"}, {"keypoint": [[1], [1, 2]]}, {"bboxes": 7}]
    entries = [annotation("a", 0), *(annotation(f"b{number}", 0) | changes for number, changes in enumerate(wrong))]
    (tmp_path / "videos").mkdir()
    for entry in entries:
        write_video(tmp_path / "videos" / f"{entry['frame_dir']}.mp4")
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"split": {"all": ["a"]}, "annotations": entries}))
    dataset = read_pyskl(path, tmp_path / "videos")
    assert [clip.key for clip in dataset.clips] == ["a"] and len(dataset.skipped) == len(wrong)


@pytest.mark.parametrize("labels", [(0, -1), (-1, 0)])
def test_an_annotation_that_is_left_out_is_not_the_clip_of_its_name(labels: tuple[int, int], tmp_path: Path) -> None:
    """`verify` found that clip in a split and in skipped.jsonl, as a fault of the packing."""
    write_video(tmp_path / "a.mp4", 6)
    content = {"annotations": [annotation("a", label, 6) for label in labels], "split": {"train": ["a"]}}
    (tmp_path / "set.pkl").write_bytes(pickle.dumps(content))
    dataset = read_pyskl(tmp_path / "set.pkl", tmp_path)
    assert [(clip.key, clip.label) for clip in dataset.clips] == [("a", 0)]
    assert [(entry.key, entry.reason) for entry in dataset.skipped] == [("a (again)", "label -1: unlabelled")]
