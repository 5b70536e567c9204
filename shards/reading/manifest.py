"""What a folder of shards holds: `manifest.json`, and `index.npy` with the place of every component of every clip.

The manifest is written last and atomically, so a folder with one is complete. The index is memory-mapped, one fixed-width
row per clip: key (ASCII bytes), shard u4 (number in the manifest), label i4, frames i4, and per component of the manifest
`offset` u8 and `size` u4 (bytes within the tar; size 0 = the clip has no such component).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from svdata2vec import __version__
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.boxes import View
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import JointLayout

MAX_COMPONENT_BYTES = 2**32 - 1
FORMAT = "svdata2vec-shards"
VERSION = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"
SKIPPED_NAME = "skipped.jsonl"  # clips that were not packed, and why
PROGRAM = f"svdata2vec {__version__}"


@dataclass(frozen=True)
class ShardEntry:
    """One tar of the data set: file name, sha256 of the file, its size in bytes, number of clips."""

    name: str
    sha256: str
    bytes: int
    count: int

    def size_problem(self, found: int | None) -> str | None:
        """What is wrong with a copy of this tar that has `found` bytes (None = there is none); None if nothing is."""
        if found == self.bytes:
            return None
        size = "missing" if found is None else f"{found} bytes"
        return f"{size}, expected {self.bytes} bytes; copy it again or pack again"

    def hash_problem(self, path: Path) -> str | None:
        """What is wrong with the content of the copy at `path`; None if its sha256 is the manifest's."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == self.sha256:
            return None
        return f"sha256 {found[:12]}..., expected {self.sha256[:12]}...: it was changed; copy it again or pack again"


def file_bytes(path: Path) -> int | None:
    """Size of a file, None if there is none."""
    return path.stat().st_size if path.is_file() else None


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    `codec_options`: quality, gop. `packed_size`: side of the packed square in pixels, 0 for codec `copy`.
    `components`: tar members of a clip, in the order of the index's columns. `splits`: name -> keys that are packed.
    `split_classes`: splits whose classes are a part of `classes`. `published`: split -> clips according to the source's
    publication. `view`: what the clips show, "picture" for videos without skeletons. `without_joints`: rows of the index whose
    clips have persons and yet not a single joint; None in a set packed before this was noted. `fingerprint`: sha256 of the
    packing's plan (`packing/plan.py`).
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

    @property
    def num_clips(self) -> int:
        """Clips in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def split_names(self) -> list[str]:
        """The splits that can be read: those that are packed, and P_trainval of a protocol P with train, val and test."""
        stems = [name.removesuffix("test") for name in self.splits if name.endswith("test")]
        both = [f"{stem}trainval" for stem in stems if {f"{stem}train", f"{stem}val"} <= self.splits.keys()]
        return list(dict.fromkeys([*self.splits, *both]))

    def packed_splits(self, split: str) -> list[str]:
        """The packed splits that make up a split of `split_names`: itself, or two."""
        stem = split.removesuffix("trainval")
        return [split] if split in self.splits else [f"{stem}train", f"{stem}val"]

    def unlike_published(self) -> list[str]:
        """A sentence about every split that has not as many clips as its data set's publication says."""
        found = {name: len(self.splits.get(name, ())) for name in self.published}
        return [
            f"split {name}: {found[name]} clips, published are {count} ({found[name] - count:+d})"
            for name, count in self.published.items() if found[name] != count
        ]

    def save(self, root: Path) -> None:
        """Write `root/manifest.json` atomically."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        write_atomically(root / MANIFEST_NAME, text.encode() + b"\n")

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Read `root/manifest.json`. UserError: missing, not JSON, of another format, or fields missing."""
        path = root / MANIFEST_NAME
        if not path.is_file():
            hint = "the packing is not finished: run it again with --resume" if (root / ".parts").is_dir() else (
                "expected a folder made by `svdata2vec shard`")
            raise UserError(f"{path}: does not exist; {hint}")
        try:
            fields = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error}); pack again") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise UserError(f"{path}: not a manifest of {FORMAT}")
        if fields.get("version") != VERSION:
            raise UserError(f"{path}: format version {fields.get('version')}, this program reads {VERSION}; "
                            "pack again or use the program that made it")
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: field missing or wrong: {error}; pack again") from error


def _view(word: Any) -> View:
    """Sets packed by 0.2.0 do not say; their clips are seen as they were."""
    if word not in get_args(View):
        raise ValueError(f"view is {word!r}, expected one of {', '.join(get_args(View))}")
    return cast(View, word)


def _rows(numbers: Any) -> tuple[int, ...] | None:
    if numbers is None:
        return None
    if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("without_joints is not a list of row numbers")
    return tuple(numbers)


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
    """Index from tuples (key, shard, label, frames, offsets, sizes) in packed order."""
    key_bytes = max((len(row[0]) for row in rows), default=1)
    index = np.empty(len(rows), index_dtype(key_bytes, num_components))
    for i, (key, shard, label, frames, offsets, sizes) in enumerate(rows):
        index[i] = key.encode(), shard, label, frames, tuple(offsets), tuple(sizes)
    return index


def load_index(root: Path, num_components: int) -> np.ndarray:
    """The memory-mapped index of a folder; UserError if it is missing or of another shape."""
    path = root / INDEX_NAME
    if not path.is_file():
        raise UserError(f"{path}: does not exist although the manifest does; pack again with --resume")
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable index ({error}); pack again") from error
    names = index.dtype.names or ()
    if names != ("key", "shard", "label", "frames", "offset", "size") or index["size"].shape[1:] != (num_components,):
        raise UserError(f"{path}: columns {index.dtype}, expected those of {num_components} components; pack again")
    return index
