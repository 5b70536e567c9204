"""The files that describe a folder of shards: `manifest.json`, and `index.npy` with the place of every clip's components.

The manifest is written last and atomically, so a folder with one is complete. The index is memory-mapped, one fixed-width
row per clip: key (ASCII bytes), shard u4 (number in the manifest), label i4, frames i4, and per component of the manifest
`offset` u8 and `size` u4 (bytes within the tar; size 0 = the clip has no such component).

Both are treated as untrusted: all names and counts in them are checked before they are used.
"""

import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from svdata2vec import __version__
from svdata2vec.shards.annotations import KEY, MAX_KEY_BYTES
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.boxes import View
from svdata2vec.shards.errors import UserError, require_folder, require_memory
from svdata2vec.shards.layouts import JointLayout
from svdata2vec.shards.npy import read_npy
from svdata2vec.shards.reading.sample import BY_FRAME, PICTURES

MAX_COMPONENT_BYTES = 2**32 - 1
FORMAT = "svdata2vec-shards"
VERSION = 2
READABLE = (1, 2)  # format 1: a clip's json has null instead of -1, and lacks source_sha256 and first_frame
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"
SUMS_NAME = "sums.npy"
SKIPPED_NAME = "skipped.jsonl"  # clips that were not packed, and why
SUMMARY_NAME = "summary.json"  # figures of the packing (`summary.py`)
PROGRAM = f"svdata2vec {__version__}"
_SELF = "manifest_crc32"  # the manifest's last field: CRC-32 of all bytes before its line
_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_KEYS = re.compile(rf"{KEY}(?:\n{KEY})*")
_CHECKED_TOGETHER = 2**16  # keys
_COMPONENT = re.compile(r"[a-z0-9]{1,12}(\.npy)?")


@dataclass(frozen=True)
class ShardEntry:
    """One tar of the data set: file name, sha256 of the file, its size in bytes, number of clips."""

    name: str
    sha256: str
    bytes: int
    count: int

    def size_problem(self, found: int | None) -> str | None:
        """The problem with a copy of this tar that has `found` bytes (None = there is no copy); None if the size is right."""
        if found == self.bytes:
            return None
        size = "missing" if found is None else f"{found} bytes"
        return f"{size}, expected {self.bytes} bytes; copy it again or pack again"

    def hash_problem(self, path: Path) -> str | None:
        """The problem with the content of the copy at `path`; None if its sha256 is the manifest's."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == self.sha256:
            return None
        return f"sha256 {found[:12]}..., expected {self.sha256[:12]}...: it was changed; copy it again or pack again"


def access_problem(path: Path) -> str | None:
    """Why this user cannot read an existing file; None if they can."""
    return None if os.access(path, os.R_OK) else "this user may not read it; change its permissions"


def file_bytes(path: Path) -> int | None:
    """Size of a file, None if there is none."""
    return path.stat().st_size if path.is_file() else None


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        packed_size: side of the packed square in pixels, 0 for codec `copy`.
        components: tar members of a clip, in the order of the index's columns.
        splits: name -> keys that are packed.
        fingerprint: sha256 of the packing's plan (`packing/plan.py`).
        codec_options: quality and gop, for JPEGs also chroma; for codec `blocks` luma_bits and chroma_bits.
        split_classes: split -> its classes, for splits that have only a part of `classes`.
        published: split -> number of clips according to the source's publication.
        view: what the clips show, "picture" for videos without skeletons.
        without_joints: rows of the index whose clips have persons but not a single joint; None in a set packed before this was
            recorded.
    """

    dataset: str
    codec: str
    packed_size: int
    layout: JointLayout
    classes: tuple[str, ...]
    components: tuple[str, ...]
    splits: dict[str, list[str]]
    shards: tuple[ShardEntry, ...]
    fingerprint: str
    codec_options: dict[str, int] = field(default_factory=dict)
    split_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    view: View = "persons"
    without_joints: tuple[int, ...] | None = None
    created_with: str = PROGRAM
    crc32: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)
        _ = self.blocks  # ValueError for bits or a size that the format does not have

    @property
    def by_frame(self) -> bool:
        """Whether frames are stored one by one in the video component, each with its own checksum."""
        return self.codec in BY_FRAME

    @cached_property
    def blocks(self) -> BlockFormat | None:
        """Layout of pictures in blocks, codec `blocks` only. ValueError if there is no such format."""
        if self.codec != "blocks":
            return None
        return BlockFormat(self.packed_size, *(self.codec_options.get(name, 0) for name in ("luma_bits", "chroma_bits")))

    @property
    def num_clips(self) -> int:
        """Clips in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def split_names(self) -> list[str]:
        """The splits that can be read: the packed ones, and P_trainval for each protocol P with train, val and test."""
        stems = [name.removesuffix("test") for name in self.splits if name.endswith("test")]
        both = [f"{stem}trainval" for stem in stems if {f"{stem}train", f"{stem}val"} <= self.splits.keys()]
        return list(dict.fromkeys([*self.splits, *both]))

    def packed_splits(self, split: str) -> list[str]:
        """The packed splits that make up a split of `split_names`: itself, or two."""
        stem = split.removesuffix("trainval")
        return [split] if split in self.splits else [f"{stem}train", f"{stem}val"]

    def unlike_published(self) -> list[str]:
        """A sentence about every split whose number of clips is not the published one."""
        found = {name: len(self.splits.get(name, ())) for name in self.published}
        return [
            f"split {name}: {found[name]} clips, published are {count} ({found[name] - count:+d})"
            for name, count in self.published.items() if found[name] != count
        ]

    def save(self, root: Path) -> None:
        """Write `root/manifest.json` atomically."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        content = text.removesuffix("\n}").encode(errors="surrogatepass") + b",\n"  # file names may be arbitrary bytes
        write_atomically(root / MANIFEST_NAME, content + f' "{_SELF}": {zlib.crc32(content)}\n}}\n'.encode())

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Read `root/manifest.json`. UserError: missing, damaged, of another format, or with a field of a wrong value."""
        require_folder(root, "one made by `svdata2vec shard`")
        path = root / MANIFEST_NAME
        if not path.is_file():
            hint = "the packing is not finished: run it again with --resume" if (root / ".parts").is_dir() else (
                "expected a folder made by `svdata2vec shard`")
            raise UserError(f"{path}: does not exist; {hint}")
        if (problem := access_problem(path)) is not None:
            raise UserError(f"{path}: {problem}")
        content = path.read_bytes()
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error}); copy it again or pack again") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise UserError(f"{path}: not a manifest of {FORMAT}")
        if fields.get("version") not in READABLE:
            raise UserError(f"{path}: format version {fields.get('version')!r:.20}, this program reads {VERSION} and older; "
                            "pack again or use the program that made it")
        if _SELF in fields and fields[_SELF] != zlib.crc32(content[: content.rfind(f' "{_SELF}"'.encode())]):
            raise UserError(f"{path}: was changed after packing (CRC-32); copy it again, or, if you changed it on purpose, "
                            f"remove its field {_SELF}")
        try:
            return cls(
                dataset=fields["dataset"], codec=fields["codec"], packed_size=fields["packed_size"],
                layout=_layout_from_json(fields["layout"]), classes=tuple(fields["classes"]),
                components=tuple(fields["components"]), splits=fields["splits"],
                shards=tuple(ShardEntry(**entry) for entry in fields["shards"]),
                fingerprint=fields["fingerprint"], codec_options=fields["codec_options"],
                split_classes={name: tuple(names) for name, names in fields["split_classes"].items()},
                published=fields["published"], view=_view(fields.get("view", "persons")),
                without_joints=_rows(fields.get("without_joints")), created_with=fields["created_with"],
                crc32=fields.get("crc32", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: field missing or wrong: {error}; pack again") from error


def _check(manifest: Manifest) -> None:
    """UserError for a field with a value that the rest of the program does not expect."""
    wrong = [name for name, good in {
        "dataset": _is_text(manifest.dataset), "codec": _is_text(manifest.codec), "fingerprint": _is_text(manifest.fingerprint),
        "created_with": _is_text(manifest.created_with), "packed_size": _is_count(manifest.packed_size, 2**16),
        "classes": _are_names(manifest.classes), "codec_options": _are_counts(manifest.codec_options),
        "components": all(_is_text(name) and _COMPONENT.fullmatch(name) for name in manifest.components)
        and len(set(manifest.components)) == len(manifest.components) > 0,
        "layout": _is_text(manifest.layout.name) and _are_names(manifest.layout.joints)
        and all(type(joint) is int
                for joint in itertools.chain(*manifest.layout.edges, manifest.layout.left, manifest.layout.right)),
        "splits": all(_is_text(name) and isinstance(keys, Sequence) and not isinstance(keys, str)
                      for name, keys in manifest.splits.items())
        and all(_is_text(key) and len(key) <= MAX_KEY_BYTES
                for keys in manifest.splits.values() if isinstance(keys, list) for key in keys),
        "split_classes": all(map(_is_text, manifest.split_classes)) and all(map(_are_names, manifest.split_classes.values())),
        "published": _are_counts(manifest.published), "crc32": _are_counts(manifest.crc32),
    }.items() if not good]
    if wrong:
        raise UserError(f"{wrong[0]} is {getattr(manifest, wrong[0])!r:.60}")
    if manifest.codec not in PICTURES:
        raise UserError(f"codec is {manifest.codec!r:.60}, expected one of {', '.join(PICTURES)}")
    enough, link = (any, " or ") if manifest.codec == "copy" else (all, " and ")
    if not enough(name in manifest.components for name in PICTURES[manifest.codec]):
        raise UserError(f"components are {', '.join(manifest.components)}; codec {manifest.codec} has "
                        f"{link.join(PICTURES[manifest.codec])}")
    if manifest.without_joints and not 0 <= min(manifest.without_joints) <= max(manifest.without_joints) < manifest.num_clips:
        raise UserError(f"without_joints names rows up to {max(manifest.without_joints)} of {manifest.num_clips}")
    for shard in manifest.shards:
        if not _is_text(shard.name) or not _SHARD.fullmatch(shard.name):
            raise UserError(f"shards: the name {shard.name!r:.60} is not that of a file in the folder")
        if not (_is_count(shard.bytes) and _is_count(shard.count, 2**31) and _is_text(shard.sha256)):
            raise UserError(f"shards: {shard.name} has bytes {shard.bytes!r:.30}, count {shard.count!r:.30}")
    if len({shard.name for shard in manifest.shards}) != len(manifest.shards):
        raise UserError("shards: a name occurs twice")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object, limit: int = 2**63) -> bool:
    return type(value) is int and 0 <= value < limit


def _are_counts(values: Mapping[str, object]) -> bool:
    return all(_is_text(name) and _is_count(value) for name, value in values.items())


def _are_names(names: Sequence[object]) -> bool:
    return all(map(_is_text, names)) and len(set(names)) == len(names)


def _rows(numbers: Any) -> tuple[int, ...] | None:
    if numbers is None:
        return None
    if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("without_joints is not a list of row numbers")
    return tuple(numbers)


def _view(word: Any) -> View:
    """The checked value of the field `view`; sets of release 0.2.0 lack it and count as "persons"."""
    if word not in get_args(View):
        raise ValueError(f"view is {word!r}, expected one of {', '.join(get_args(View))}")
    return cast(View, word)


def _layout_from_json(fields: Mapping[str, Any]) -> JointLayout:
    return JointLayout(fields["name"], tuple(fields["joints"]), tuple((a, b) for a, b in fields["edges"]),
                       tuple(fields["left"]), tuple(fields["right"]))


def index_dtype(key_bytes: int, num_components: int) -> np.dtype:
    """The structured type of a row."""
    return np.dtype([
        ("key", f"S{key_bytes}"), ("shard", "<u4"), ("label", "<i4"), ("frames", "<i4"),
        ("offset", "<u8", (num_components,)), ("size", "<u4", (num_components,)),
    ])


def build_index(rows: Sequence[tuple], num_components: int) -> np.ndarray:
    """Index from tuples (key, shard, label, frames, offsets, sizes, ...) in packed order."""
    key_bytes = max((len(row[0]) for row in rows), default=1)
    index = np.empty(len(rows), index_dtype(key_bytes, num_components))
    for i, (key, shard, label, frames, offsets, sizes, *_) in enumerate(rows):
        index[i] = key.encode(), shard, label, frames, tuple(offsets), tuple(sizes)
    return index


def load_index(root: Path, manifest: Manifest) -> np.ndarray:
    """The memory-mapped index of a folder; UserError if it is missing, damaged or of another shape."""
    path = root / INDEX_NAME
    if not path.is_file():
        raise UserError(f"{path}: does not exist although the manifest does; copy it again, or pack into another folder")
    index = load_plain_array(path)
    num_components, names = len(manifest.components), index.dtype.names or ()
    if index.ndim != 1 or not names or index.dtype != index_dtype(index.dtype["key"].itemsize, num_components):
        raise UserError(f"{path}: columns {index.dtype}, expected those of {num_components} components; pack again")
    return index


def load_plain_array(path: Path) -> np.ndarray:
    """A memory-mapped .npy file; UserError if it cannot be read."""
    if path.is_file() and (problem := access_problem(path)) is not None:
        raise UserError(f"{path}: {problem}")
    try:
        return read_npy(lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:
        require_memory(error, path)
        raise UserError(f"{path}: not a readable array ({error}); copy it again or pack again") from error


def file_problem(path: Path, manifest: Manifest) -> str | None:
    """The problem with a file beside the manifest, by its CRC-32; None if it is right, or the manifest has no CRC-32 of it."""
    if path.name in manifest.crc32 and (problem := access_problem(path)) is not None:
        return problem
    if path.name not in manifest.crc32 or zlib.crc32(path.read_bytes()) == manifest.crc32[path.name]:
        return None
    return "was changed after packing (CRC-32); copy it again or pack again"


def index_problem(index: np.ndarray, manifest: Manifest) -> str | None:
    """What makes an index unusable with its manifest; None if nothing does."""
    if len(index) != manifest.num_clips:
        return f"the index has {len(index)} clips, the manifest {manifest.num_clips}"
    if not len(index):
        return "it has no clip"
    for start in range(0, len(index), _CHECKED_TOGETHER):
        keys = index["key"][start : start + _CHECKED_TOGETHER].tolist()
        names = b"\n".join(keys).decode("latin-1")
        if not _KEYS.fullmatch(names) or names.count("\n") >= len(keys):
            wrong = next(name for name in (key.decode("latin-1") for key in keys) if not re.fullmatch(KEY, name))
            return f"the key {wrong!r:.100} cannot be that of a clip"
    if index["key"].dtype.itemsize > MAX_KEY_BYTES:
        return f"keys of {index['key'].dtype.itemsize} bytes, at most {MAX_KEY_BYTES} are possible"
    bytes_N = np.array([shard.bytes for shard in manifest.shards], np.uint64)
    if (index["shard"] >= len(bytes_N)).any():
        return f"a clip is in shard {index['shard'].max()} of {len(bytes_N)}"
    if ((index["label"] < 0) | (index["label"] >= len(manifest.classes))).any():
        return f"labels from {index['label'].min()} to {index['label'].max()}, expected 0..{len(manifest.classes) - 1}"
    if (index["frames"] < 1).any():
        return "a clip has no frame"
    if manifest.blocks is not None:
        found_N = index["size"][:, manifest.components.index("blocks")].astype(np.int64)
        wrong_N = np.flatnonzero(found_N != manifest.blocks.clip_bytes(index["frames"].astype(np.int64)))
        if len(wrong_N):
            row = wrong_N[0]
            return f"blocks of {index['frames'][row]} frames have {found_N[row]} bytes, expected " \
                   f"{manifest.blocks.clip_bytes(int(index['frames'][row]))}"
    ends = index["offset"] + index["size"]
    if (ends < index["offset"]).any() or (ends > bytes_N[index["shard"]][:, None]).any():
        return "a clip lies beyond the end of its shard"
    return None
