"""Verification finds every planted fault and nothing in a good folder; statistics count right."""

import gzip
import io
import itertools
import json
import math
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_data import edit_manifest, without_sums, write_motion_set

from svdata2vec.cli.main import main
from svdata2vec.shards.atomic import npy_bytes
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.packing.tarwriter import TarWriter
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.manifest import Manifest
from svdata2vec.shards.reading.sample import ClipMeta, parse_array
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.stats import set_statistics
from svdata2vec.shards.reading.verify import verify

OPTIONS = PackOptions(workers=1, size=96, clips_per_shard=3)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> content of the files of a good set in two shards."""
    root = tmp_path_factory.mktemp("good")
    pickle_path, videos = write_motion_set(root)
    pack(read_pyskl(pickle_path, videos), root / "set", OPTIONS)
    return {path.name: path.read_bytes() for path in (root / "set").iterdir()}


@pytest.fixture
def folder(good: dict[str, bytes], tmp_path: Path) -> Path:
    """A fresh copy to break."""
    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_good_folder_has_no_fault(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(folder, progress=lambda done, total: seen.append((done, total))) == []
    assert seen == [(1, 2), (2, 2)]
    assert verify(folder, workers=2) == []


def test_a_worker_that_dies_is_answered_with_options_that_verify_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdata2vec.shards.reading.verify.run_tasks",
                        lambda _, *given, **words: run_tasks(os._exit, *given, **words))
    with pytest.raises(UserError, match=r"a worker process died \(killed, or out of memory\); run again with fewer --workers$"):
        verify(folder, workers=2)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_names_of_what_was_left_out_may_hold_any_character(folder: Path, character: str) -> None:
    entry = {"key": "a", "reason": f"a{character}.mp4: the file is empty", "source": f"a{character}.mp4", "splits": []}
    (folder / "skipped.jsonl").write_text(json.dumps(entry, ensure_ascii=False) + "\n", encoding="utf-8")
    assert verify(folder, decode=False) == []


def test_the_command_says_how_many(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "skipped.jsonl").unlink()
    assert main(["verify", str(folder)]) == 2
    assert f"{folder}: 1 fault; copy the damaged files again, or else pack again into another folder" in capsys.readouterr().err


def test_a_cut_tar_comes_with_advice_wherever_it_is_found(folder: Path) -> None:
    """`verify` does not advise to run `verify`; the message for reading a single clip does."""
    shards = ShardSet.open(folder)
    cut_tar(folder)
    broken = [finding.message for finding in verify(folder) if finding.kind == "clip"]
    assert broken and all(message.endswith("; copy the shard again, or pack again") for message in broken)
    assert not any("svdata2vec verify" in finding.message for finding in verify(folder))
    with pytest.raises(UserError, match=r"tar: ends before byte \d+, where clip .* should end; find all that is damaged with "
                                        r"`svdata2vec verify`, then copy the shard again, or pack again$"):
        shards.read(len(shards) - 1, shards.manifest.components)


def flip_byte(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


def flip_pixel(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 0x01  # in the first JPEGs
    path.write_bytes(content)


def cut_tar(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-30000])


def empty_tar(folder: Path) -> None:
    (folder / "shard-000001.tar").write_bytes(b"")


def compress_tar(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))


def remove_tar(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()


def swap_tars(folder: Path) -> None:
    first, second = folder / "shard-000000.tar", folder / "shard-000001.tar"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def shift_index(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["offset"][2] += 512
    np.save(folder / "index.npy", index)


def wrong_label(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["label"][1] = (index["label"][1] + 1) % 3
    np.save(folder / "index.npy", index)


def impossible_label(folder: Path, label: int) -> None:
    index = np.load(folder / "index.npy")
    index["label"][1] = label
    np.save(folder / "index.npy", index)


def wrong_frames(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["frames"][0] += 1
    np.save(folder / "index.npy", index)


def double_key(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["key"][1] = index["key"][0]
    np.save(folder / "index.npy", index)


def short_index(folder: Path) -> None:
    np.save(folder / "index.npy", np.load(folder / "index.npy")[:-1])


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    change(fields)
    edit_manifest(folder, **fields)


def unknown_in_split(folder: Path) -> None:
    change_manifest(folder, lambda fields: fields["splits"]["train"].append("nobody"))


def twice_in_split(folder: Path) -> None:
    change_manifest(folder, lambda fields: fields["splits"]["half_val"].append(fields["splits"]["half_val"][0]))


def leaking_splits(folder: Path) -> None:
    change_manifest(folder, lambda fields: fields.update(splits={
        "xsub_train": fields["splits"]["train"], "xsub_val": fields["splits"]["half_val"]}))


def class_outside_split(folder: Path) -> None:
    change_manifest(folder, lambda fields: fields["split_classes"].update(half_val=["stand", "walk"]))


def skipped_and_packed(folder: Path) -> None:
    line = {"key": "S001C001P001R001A002", "reason": "r", "source": "s", "splits": []}
    (folder / "skipped.jsonl").write_text(json.dumps(line) + "\n")


def leftover(folder: Path) -> None:
    (folder / "shard-000002.tar.tmp").write_bytes(b"half")


@pytest.mark.parametrize(("fault", "kind", "message"), [
    (flip_byte, "hash", r"shard-000000\.tar: sha256 .*, expected"),
    (flip_pixel, "sum", r"sum: S\w+: jpegs, frame \d+: its bytes are not those that were packed"),
    (cut_tar, "size", r"shard-000001\.tar: \d+ bytes, expected \d+"),
    (cut_tar, "hash", r"shard-000001\.tar"),
    (cut_tar, "clip", "ends before byte|not a readable|damaged"),
    (empty_tar, "tar", r"^tar: shard-000001\.tar: not a readable tar \(empty file\)$"),
    (compress_tar, "tar", r"^tar: shard-000001\.tar: not a readable tar \([^\n]*\)$"),
    (remove_tar, "missing", r"shard-000001\.tar: no such file"),
    (swap_tars, "hash", r"shard-000000\.tar"),
    (swap_tars, "tar", r"member S001.*, the index expects S001"),
    (shift_index, "tar", r"offset \d+, \d+ bytes\), the index expects"),
    (shift_index, "clip", "damaged|not a readable|does not divide"),
    (wrong_label, "label", r"label \d in the tar, \d in the index"),
    *((partial(impossible_label, label=label), kind, message) for label in (-1, 3) for kind, message in (
        ("label", rf"label {label}, expected 0\.\.2"), ("index", r"labels from (-1 to 2|0 to 3), expected 0\.\.2"))),
    (wrong_frames, "clip", r"\d+ frames in the tar, \d+ in the index"),
    (double_key, "index", "2 clips with this key"),
    (wrong_label, "hash", r"index\.npy: was changed after packing \(CRC-32\); copy it again or pack again"),
    (short_index, "index", "the index has 5 clips, the manifest 6"),
    (short_index, "tar", r"18 members, the index expects 12"),
    (unknown_in_split, "split", "train: clip nobody is not in the index"),
    (twice_in_split, "split", "val: clip S001C001P001R001A001 is listed 2 times"),
    (leaking_splits, "split", "xsub_train, xsub_val: 3 clips in both: S001C001P001R001A001"),
    (class_outside_split, "split", "half_val: has clips of run, not one of its classes"),
    (skipped_and_packed, "split", r"listed in skipped\.jsonl and in a split"),
    (leftover, "leftover", r"shard-000002\.tar\.tmp: does not belong to the data set"),
])
def test_every_planted_fault_is_found(folder: Path, fault: Callable[[Path], None], kind: str, message: str) -> None:
    import re
    fault(folder)
    found = [str(finding) for finding in verify(folder) if finding.kind == kind]
    assert any(re.search(message, text) for text in found), found


def repack(folder: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Rewrite the first clip with changed components, and index and manifest so that hashes and places are right."""
    shards = without_sums(folder)
    components = shards.manifest.components
    clips = [(key.decode(), {name: bytes(part) for name, part in shards.read(row, components).items()})
             for row, key in enumerate(shards.index["key"]) if shards.index["shard"][row] == 0]
    change(clips[0][1])
    index = np.load(folder / "index.npy")
    with TarWriter(folder / "shard-000000.tar") as tar:
        for row, (key, parts) in enumerate(clips):
            index["offset"][row], index["size"][row] = tar.add(key, parts, components)
        sha256, size = tar.commit()
    np.save(folder / "index.npy", index)
    manifest = Manifest.load(folder)
    entry = replace(manifest.shards[0], sha256=sha256, bytes=size)
    replace(manifest, shards=(entry, *manifest.shards[1:])).save(folder)


def edited_json(**changes: object) -> Callable[[dict[str, bytes]], None]:
    """Change fields of the json component."""
    def change(parts: dict[str, bytes]) -> None:
        parts["json"] = json.dumps(json.loads(parts["json"]) | changes).encode()
    return change


def edited_array(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, bytes]], None]:
    """Change an .npy component."""
    def change(parts: dict[str, bytes]) -> None:
        parts[name] = npy_bytes(edit(np.load(io.BytesIO(parts[name]))))
    return change


def edited_jpeg(edit: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    """Change the second frame, keeping the table of offsets right."""
    def change(parts: dict[str, bytes]) -> None:
        offsets = np.load(io.BytesIO(parts["offsets.npy"]))
        frames = [parts["jpegs"][a:b] for a, b in itertools.pairwise(offsets)]
        frames[1] = edit(frames[1])
        parts["jpegs"] = b"".join(frames)
        parts["offsets.npy"] = npy_bytes(np.cumsum([0, *map(len, frames)], dtype=np.int64))
    return change


def other_size(content: bytes) -> bytes:
    import cv2
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", picture[:64])[1].tobytes()


def progressive(content: bytes) -> bytes:
    import cv2
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def with_value(place: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array
    return change


@pytest.mark.parametrize(("change", "kind", "message"), [
    (edited_json(key="other"), "clip", "the stored clip calls itself other"),
    (edited_json(label=2), "label", r"label 2 in the tar, \d in the index"),
    (edited_json(num_frames=5), "clip", r"expected float32 \(\d, 5, 17, 2\)"),
    (edited_json(packed_width=64), "clip", "packed size 64x96, expected 96x96"),
    *((edited_json(packed_to_source=matrix), "clip", "is not a plain enlargement") for matrix in (
        [[1, 0.5, 0], [0, 1, 0]], [[1, 0, 0], [0, 2, 0]], [[0.5, 0, 0], [0, 0.5, 0]])),
    (edited_json(packed_to_source=[[1, 0], [0, 1]]), "clip", "wrong packed_to_source"),
    (edited_array("score.npy", np.float32), "clip", r"score\.npy is float32 .* expected float16"),
    (edited_array("box.npy", lambda box: box.astype("S9")), "clip", r"box\.npy is \|S9 .* expected float32"),
    (edited_array("box.npy", lambda box: box.astype(object).astype(str)), "clip", r"box\.npy is <U"),
    (lambda parts: parts.update(json=b"{"), "clip", "the json component is damaged"),
    (lambda parts: parts.update(json=b"[" * 100_000), "clip", "the json component is damaged"),
    (edited_json(num_frames="6"), "clip", "the json component has a wrong num_frames; copy the shard again"),
    (edited_json(label=[], fps=None), "clip", "the json component has a wrong label and fps; copy the shard again"),
    (lambda parts: parts.update({"box.npy": parts["box.npy"].replace(b"}", b"(")}), "clip", r"box\.npy: not a readable array"),
    (edited_array("pose.npy", with_value((0, 0, 0), 9000)), "joints", ": 1 joints far outside the 192x128 picture"),
    (edited_array("pose.npy", with_value((0, 0, 0), -9000)), "joints", ": 1 joints far outside the 192x128 picture"),
    (edited_array("pose.npy", lambda pose: pose * np.nan), "clip", "joints or boxes are not finite"),
    (edited_array("box.npy", with_value((0, 0), np.nan)), "clip", "joints or boxes are not finite"),
    (edited_array("pose.npy", lambda pose: pose[:, :-1]), "clip", r"pose\.npy is float32"),
    (edited_array("box.npy", lambda box: box[:, ::-1].copy()), "joints", "right or lower edge before"),
    (edited_array("box.npy", lambda box: box[:-1]), "clip", r"box\.npy is float32 .* expected float32 \(\d+, 4\)"),
    (edited_array("score.npy", lambda score: score[:, :, :3]), "clip", r"score\.npy is float16 .* float16 \(\d, \d+, 17\)"),
    (edited_array("offsets.npy", lambda offsets: offsets[:-1]), "clip", r"offsets\.npy is int64"),
    (edited_array("offsets.npy", with_value(0, 1)), "clip", r"offsets\.npy does not divide"),
    (edited_array("offsets.npy", lambda offsets: offsets - (offsets == offsets[-1])), "clip", r"offsets\.npy does not divide"),
    (edited_array("offsets.npy", lambda offsets: offsets[[0, 1, 1, *range(3, len(offsets))]]), "clip", "does not divide"),
    (edited_jpeg(lambda content: content[:-20]), "video", "frame 1: not a complete JPEG"),
    (edited_jpeg(lambda content: b"\xff\xd8\xff\xc0" + bytes(50) + b"\xff\xd9"), "video", "frame 1: cannot be decoded"),
    (edited_jpeg(other_size), "video", "frame 1: 96x64 pixels, expected 96x96"),
    (edited_jpeg(progressive), "video", "frame 1: not a baseline JPEG"),
    (lambda parts: parts.pop("jpegs"), "clip", "no video component"),
])
def test_faults_inside_a_clip_are_found(folder: Path, change: Callable[[dict[str, bytes]], None], kind: str,
                                        message: str) -> None:
    import re
    repack(folder, change)
    found = verify(folder)
    assert any(finding.kind == kind and re.search(message, str(finding)) for finding in found), found
    assert not any(finding.kind in ("hash", "size", "tar") for finding in found), "the rest of the folder is right"


META = ClipMeta("a", 1, 8, 30.0, 192, 128, 96, 96, np.eye(2, 3), "a.mp4", 1, 2, 3, 9, 0)


@pytest.mark.parametrize(("name", "value"), [
    *((field.name, value) for field in fields(ClipMeta) for value in ([], {}, [[1]], 6 if field.type is str else "6")),
    *((name, None) for name in ("key", "label", "num_frames", "fps", "width", "source", "bad_joints")),
    *((name, value) for name in ("num_frames", "width", "height", "packed_width", "packed_height") for value in (0, -1, 1.5)),
    *((name, value) for name in ("num_frames", "fps", "label") for value in (10**400, math.nan, math.inf, -1)),
])
def test_every_field_of_the_json_component_is_checked(name: str, value: object) -> None:
    assert ClipMeta.from_bytes(META.to_bytes(), "clip a").to_bytes() == META.to_bytes()
    content = json.dumps(json.loads(META.to_bytes()) | {name: value}).encode()
    with pytest.raises(UserError, match=f"^clip a: the json component (has a wrong {name}|is damaged)"):
        ClipMeta.from_bytes(content, "clip a")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning", "ignore:invalid escape:SyntaxWarning")
def test_every_damaged_header_of_an_array_is_refused_or_read() -> None:
    """For any exception of NumPy's parser; a UserError only replaces the clip, others would end a training run."""
    whole, refused = npy_bytes(np.ones((2, 3), np.float32)), 0
    for place in range(whole.index(b"\n")):
        for byte in b"\x00 '(5[{\\,\xff":
            try:
                parse_array(whole[:place] + bytes([byte]) + whole[place + 1 :], "a")
            except UserError:
                refused += 1
    assert refused > 300


def test_pax_headers_are_found(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        with tarfile.open(folder / "new", "w", format=tarfile.PAX_FORMAT) as new:
            for member, content in members:
                member.pax_headers = {"comment": "x"}
                new.addfile(member, content)
    (folder / "new").rename(path)
    assert any(finding.kind == "tar" and "PAX headers, which DALI cannot read" in finding.message
               for finding in verify(folder))


def test_unreadable_folders_raise(folder: Path) -> None:
    (folder / "index.npy").write_bytes((folder / "index.npy").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"index\.npy: not a readable array \(.*\); copy it again or pack again$"):
        verify(folder)
    (folder / "manifest.json").write_text('{"format": ')
    with pytest.raises(UserError, match=r"manifest\.json: not valid JSON \(.*\); copy it again or pack again$"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: does not exist"):
        verify(folder)


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_video_streams_are_decoded(tmp_path: Path, codec: str) -> None:
    pickle_path, videos = write_motion_set(tmp_path, 2)
    pack(read_pyskl(pickle_path, videos), tmp_path / "set", replace(OPTIONS, codec=codec, size=128))
    assert verify(tmp_path / "set") == []
    shards = ShardSet.open(tmp_path / "set")
    other = bytes(shards.read(1, ["mp4"])["mp4"])
    repack(tmp_path / "set", lambda parts: parts.update(mp4=other))
    assert [finding.kind for finding in verify(tmp_path / "set")] == ["video"]
    assert verify(tmp_path / "set", decode=False) == []
    repack(tmp_path / "set", lambda parts: parts.update(mp4=b"nothing"))
    assert "cannot be decoded after frame 0" in verify(tmp_path / "set")[0].message


def test_statistics_count(folder: Path) -> None:
    figures = set_statistics(ShardSet.open(folder))
    assert (figures.clips, figures.frames, figures.short_clips) == (6, 63, 6)
    assert (figures.frames_per_clip.low, figures.frames_per_clip.high, figures.frames_per_clip.mean) == (8, 13, 10.5)
    assert figures.picture_sizes == {"192x128": 6} and figures.frame_rates == {"30": 6}
    assert figures.persons_per_clip == {1: 6}
    assert set(figures.missing_joints.values()) == {0.0} and figures.empty_frames == 0
    assert figures.splits["train"].clips_per_class == {"stand": 2, "walk": 2, "run": 2}
    assert figures.splits["half_val"].clips == 3 and figures.splits["half_val"].published is None
    json.dumps(asdict(figures))


def test_an_older_folder_gets_checksums(folder: Path, good: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    without_sums(folder)
    assert verify(folder) == []
    assert main(["verify", str(folder), "--workers", "1", "--add-sums"]) == 0
    assert "checksums added" in capsys.readouterr().out
    assert (folder / "sums.npy").read_bytes() == good["sums.npy"]
    assert Manifest.load(folder) == replace(Manifest.load(folder), crc32={
        name: zlib.crc32(good[name]) for name in ("index.npy", "sums.npy")})
    flip_pixel(folder)
    assert main(["verify", str(folder), "--workers", "1", "--add-sums"]) == 2  # and keeps its sums
    assert "its bytes are not those that were packed" in capsys.readouterr().out
    assert (folder / "sums.npy").read_bytes() == good["sums.npy"]


def test_several_folders_are_verified_one_after_the_other(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path_factory.mktemp("copy") / "other"
    shutil.copytree(folder, other)
    both = f"{folder}, {other}"
    assert main(["verify", both, "--workers", "1", "--no-decode"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("no fault, but note")]
    assert said == [f"{each}: no fault found" for each in (folder, other)]
    (folder / "left.txt").touch()
    assert main(["verify", both, "--workers", "1", "--no-decode"]) == 2
    shown = capsys.readouterr()
    assert f"{other}: no fault found" in shown.out and f"svdata2vec verify: {folder}: 1 fault; copy the damaged" in shown.err


@pytest.mark.parametrize(("words", "message"), [
    (["verify", "SET,s3://bucket/b"], "s3://bucket/b: expected a folder on this machine; copy the shards here"),
    (["verify", "SET,"], "name an empty set"),
    (["inspect", "SET,SET", "--split", "train"], "SET,SET: several sets, where one is expected; name one"),
])
def test_commands_that_do_not_take_a_list_of_sets(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("SET", str(folder)) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.replace("SET", str(folder)) in line
