"""Random access to packed shards: reads within tars, the index, parsed samples. Nothing is scanned.

A clip's pictures are mapped (`mapped.py`); everything else is small and read by `pread`.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np

from svdata2vec.shards.blocks import HEADER_BYTES, BlockFormat, parse_clip
from svdata2vec.shards.errors import LOOK, MachineError, UserError
from svdata2vec.shards.layouts import JointLayout
from svdata2vec.shards.reading.keylist import KeyList
from svdata2vec.shards.reading.manifest import (
    INDEX_NAME,
    Manifest,
    access_problem,
    file_bytes,
    file_problem,
    index_problem,
    load_index,
)
from svdata2vec.shards.reading.mapped import MappedTar
from svdata2vec.shards.reading.parts import in_part, split_and_part
from svdata2vec.shards.reading.sample import (
    OFFSETS,
    SIDE_COMPONENTS,
    VIDEO_COMPONENTS,
    Sample,
    cut_out,
    parse_sample,
)
from svdata2vec.shards.reading.sums import CHANGED, ChangedError, Sums, crc32, load_sums

log = logging.getLogger(__name__)
_WITHOUT_SUMS: set[str] = set()  # folders that were reported
NOTHING = memoryview(b"")
MAX_OPEN_TARS = 128  # far below the usual limit of 1,024 open files; opening one again costs microseconds


class _Tar:
    """An open tar, closed with its last reference: threads may still read it when the set no longer keeps it."""

    def __init__(self, path: Path) -> None:
        self.mapped: MappedTar | None = None
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Cut(NamedTuple):
    """D frames of a clip, not copied. video: uint8, all of its bytes. sums: those that were packed, empty without checksums."""

    video: np.ndarray
    frames_D: np.ndarray
    pictures: list[memoryview]
    sums: list[int]
    tar: MappedTar | None
    start: int


class ShardSet:
    """A folder of shards. Cheap to open and to pickle; tars are opened when first read. Safe to read from threads."""

    reads_frames = True  # reading single frames costs less than reading the clip's whole video
    read_threads = 1  # clips that are read at once

    def __init__(self, root: Path, manifest: Manifest, index: np.ndarray, sums: Sums | None = None) -> None:
        self.root, self.sums = root, sums
        if not all(isinstance(keys, KeyList) for keys in manifest.splits.values()):
            manifest = replace(manifest, splits=cast(Any, {name: KeyList(keys) for name, keys in manifest.splits.items()}))
        self.manifest = manifest
        self.index = index.view(np.ndarray)  # every access to a field of a memmap creates a memmap
        self._offset_NC, self._size_NC = self.index["offset"], self.index["size"]
        self._tars: dict[int, _Tar] = {}
        self._maps: WeakKeyDictionary[MappedTar, int] = WeakKeyDictionary()
        self._column = {name: i for i, name in enumerate(manifest.components)}
        self._by_frame = [name for name in ("jpegs", "blocks") if name in self._column]
        self._beside = [name for name in manifest.components if name in SIDE_COMPONENTS]  # the pictures
        self._beside_table = [name for name in manifest.components if name in (*SIDE_COMPONENTS, OFFSETS)]
        self._order: np.ndarray | None = None

    @classmethod
    def open(cls, root: str | Path) -> "ShardSet":
        """Open a packed folder. UserError names what is missing or damaged."""
        root = Path(root).absolute()  # still valid after a change of the working directory
        shards = cls(root, *load_head(root, str(root)))
        for number in range(len(shards.manifest.shards)):
            shards.check_shard(number)
        if shards.sums is None and str(root) not in _WITHOUT_SUMS:
            _WITHOUT_SUMS.add(str(root))
            log.warning("%s: packed without checksums, so that damage is found only where it cannot be decoded, and may end "
                        "the run; `svdata2vec verify %s --add-sums` adds them", root, root)
        return shards

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet.open, (self.root,)

    def rows(self, split: str) -> np.ndarray:
        """int64 row numbers of a split's clips, in the split's order; also of a part of it, such as `train[:80%]`.

        UserError lists the splits that exist.
        """
        split, part = split_and_part(split)
        names = self.manifest.split_names
        if split not in names:
            part_of = "; a part is written as in train[:80%]" if "[" in split else ""
            raise UserError(f"{self.where}: no split {split!r}; it has {', '.join(names) or 'none'}{part_of}")
        found = [self.find(self.manifest.splits[name]) for name in self.manifest.packed_splits(split)]
        rows = np.concatenate(found)
        rows = rows if len(found) == 1 else rows[np.sort(np.unique(rows, return_index=True)[1])]
        return rows if part is None else rows[in_part(self.index["label"][rows], self.index["key"][rows].tolist(), part)]

    def own_validation(self, train_split: str, test_split: str) -> str | None:
        """PROTOCOL_val if the two splits are PROTOCOL_train and PROTOCOL_test and the data set has it; else None.

        Own videos may call it valid or validation.
        """
        stem = train_split.removesuffix("train")
        if (train_split, test_split) != (f"{stem}train", f"{stem}test"):
            return None
        names = (stem + ending for ending in ("val", "valid", "validation"))
        return next((name for name in names if name in self.manifest.splits), None)

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """int64 row numbers of these clips; UserError names the first that is not there."""
        keys_N = np.ascontiguousarray(self.index["key"])  # searching the mapped rows is several times slower
        if self._order is None:
            self._order = np.argsort(keys_N, kind="stable")
        wanted = (keys if isinstance(keys, KeyList) else KeyList(keys)).names_N
        by_name = np.argsort(wanted, kind="stable")  # in sorted order the search stays in the cache
        place = np.empty(len(wanted), np.int64)
        place[by_name] = np.searchsorted(keys_N[self._order], wanted[by_name])
        rows = self._order[np.minimum(place, len(self._order) - 1)]
        wrong = np.flatnonzero(keys_N[rows] != wanted)
        if len(wrong):
            raise UserError(f"{self.where}: no clip {keys[wrong[0]]!r} in the index")
        return rows.astype(np.int64)

    def label_map(self, split: str) -> np.ndarray:
        """int64 (classes,): stored label -> label among the split's own classes, -1 for classes that it lacks."""
        names = self.split_classes(split)
        number = {name: i for i, name in enumerate(names)}
        return np.array([number.get(name, -1) for name in self.manifest.classes], np.int64)

    def split_classes(self, split: str) -> tuple[str, ...]:
        """Class names of a split: all, unless the data set defines fewer for it."""
        packed, *_ = self.manifest.packed_splits(split_and_part(split)[0])
        return self.manifest.split_classes.get(packed, self.manifest.classes)

    def one_class_list(self, split: str) -> tuple[str, ...]:
        """`split_classes`; with several sets UserError unless all have the same ones in the same order."""
        return self.split_classes(split)

    def names(self, rows_n: np.ndarray) -> list[str]:
        """Unique names of clips (`name`)."""
        return [self.name(row, key.decode())
                for row, key in zip(rows_n.tolist(), self.index["key"][rows_n].tolist(), strict=True)]

    def name(self, row: int, key: str) -> str:
        """A clip's unique name in batches, lists and messages: its key, or with several sets `SET/KEY`."""
        return key

    def shares(self, rows_n: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Places in `rows_n` and weight of each set, if sets are weighted; else empty, and every clip counts once."""
        return []

    def describe(self, split: str) -> list[dict[str, Any]]:
        """Facts about each set that is read, with the number of its clips in the split."""
        manifest = self.manifest
        return [{"dataset": manifest.dataset, "fingerprint": manifest.fingerprint, "layout": manifest.layout.name,
                 "split": split, "clips": len(self.rows(split))}]

    def stored_layout(self, row: int) -> JointLayout:
        """The joints that a clip is stored with."""
        return self.manifest.layout

    def in_layout(self, row: int, joints_MTVC: np.ndarray) -> np.ndarray:
        """Joints of a clip, in its `stored_layout`, in the order of `manifest.layout`."""
        return joints_MTVC

    @property
    def where(self) -> str:
        """The folder or URL, for messages."""
        return str(self.root)

    @property
    def tars(self) -> list[Path]:
        """The tars on this machine, in order; empty for a set behind a URL."""
        return [self._path(shard) for shard in range(len(self.manifest.shards))]

    def tar_name(self, shard: int) -> str:
        """Where a tar is, for messages."""
        return str(self._path(shard))

    def check_shard(self, shard: int) -> None:
        """UserError if a tar is missing, unreadable or not of the manifest's size: none of its clips can be trusted."""
        path = self._path(shard)
        problem = self.manifest.shards[shard].size_problem(file_bytes(path)) or access_problem(path)
        if problem is not None:
            raise UserError(f"{self.tar_name(shard)}: {problem}")

    def check_hash(self, shard: int) -> None:
        """Read a whole tar; UserError if its sha256 is not the manifest's."""
        problem = self.manifest.shards[shard].hash_problem(self._path(shard))
        if problem is not None:
            raise UserError(f"{self.tar_name(shard)}: {problem}, or find the clips with `svdata2vec verify`")

    def will_need(self, rows: np.ndarray) -> None:
        """Announce the rows that will be read next, in their order, so that a set that fetches tars can start with these."""

    def read(self, row: int, components: Sequence[str]) -> dict[str, memoryview]:
        """The raw components of one clip; empty where the clip has none. UserError if the tar ends before them."""
        spans = self._spans(row, components)
        origin, stop = extent(spans)
        if stop == origin:
            return dict.fromkeys(components, NOTHING)
        content = memoryview(self._pread(self.index[row], origin, stop - origin))
        parts = {
            name: content[offset - origin : offset - origin + size] if size else NOTHING
            for name, (offset, size) in zip(components, spans, strict=True)
        }
        self._compare(row, parts)
        return parts

    def frames(
        self, row: int, offsets: np.ndarray, frames: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[memoryview]]:
        """uint8, the whole video of a clip of codec jpeg or blocks, and these frames in it, compared with their sums.

        Mapped if possible: then nothing else is read, and `check_used` must be called after the bytes were used. UserError
        names clip and shard.

        Args:
            offsets: int64 (F + 1,).
            out: uint8; only these frames, copied there one after the other, are returned. The sums are computed from the copy,
                while it is in the CPU's cache.
        """
        frames_D = np.array(frames, np.int64)
        cut = self.cut(row, frames_D, offsets[frames_D].tolist(), offsets[frames_D + 1].tolist())
        if out is None:
            self.check_cut(row, cut, list(map(crc32, cut.pictures)) if cut.sums else [])
            return cut.video, cut.pictures
        copied, found = _copied(cut.pictures, out, with_sums=bool(cut.sums))
        self.check_cut(row, cut, found)
        return copied, cut.pictures

    def cut(self, row: int, frames_D: np.ndarray, starts: Sequence[int], stops: Sequence[int]) -> Cut:
        """Frames of these numbers, not read yet; `check_cut` must be called after reading them.

        starts, stops: where each begins and ends in the clip's video.
        """
        ((start, size),) = self._spans(row, self._by_frame)
        video, tar = self._mapped(self.index[row], start, size)
        pictures = cut_out(video, starts, stops)
        sums = [] if self.sums is None else self.sums.frames(row).take(frames_D).tolist()
        return Cut(video, frames_D, pictures, sums, tar, start)

    def check_cut(self, row: int, cut: Cut, found: list[int]) -> None:
        """UserError unless frames that were cut out have the sums that were packed. found: their sums now (`crc32`)."""
        if cut.tar is not None:
            cut.tar.check(cut.start, cut.start + len(cut.video))
        if len(cut.frames_D) and self.manifest.blocks is not None:
            self._check_header(self.index[row], cut.video, self.manifest.blocks)
        if found != cut.sums:
            wrong = next(frame for frame, a, b in zip(cut.frames_D, found, cut.sums, strict=True) if a != b)
            raise UserError(f"{self._clip_name(self.index[row])}, frame {wrong}: {CHANGED}")

    def _check_header(self, entry: np.void, video: np.ndarray, form: BlockFormat) -> None:
        """UserError unless the header of a clip in blocks agrees with manifest and index; its frames alone do not show it."""
        frames = int(entry["frames"])
        if video[:HEADER_BYTES].tobytes() == form.header(frames):
            return
        try:
            found, stored = parse_clip(video)
            reason = f"blocks: {len(stored)} frames {found}, the set has {frames} {form}; pack again"
        except ValueError as error:
            reason = str(error)
        raise UserError(f"{self._clip_name(entry)}: {reason}")

    def _clip_name(self, entry: np.void) -> str:
        """A clip and its tar, as the beginning of a message."""
        return f"{self.tar_name(entry['shard'])}: clip {entry['key'].decode()}"

    def check_used(self) -> None:
        """UserError if mapped bytes were missing when they were used."""
        for reference in self._maps.keyrefs():  # a copy: another thread may map a tar meanwhile
            tar = reference()
            missing = None if tar is None else tar.missing()
            if tar is not None and missing is not None:
                shard = self._maps[tar]
                self.check_shard(shard)
                raise UserError(f"{self.tar_name(shard)}: byte {missing} could not be read; {LOOK}")

    def _mapped(self, entry: np.void, start: int, size: int) -> tuple[np.ndarray, MappedTar | None]:
        """uint8 (size,) of a clip's tar, and the map that contains them (None: a copy). UserError if the tar is shorter."""
        tar = self._map(int(entry["shard"]), start + size)
        if tar is None:
            return np.frombuffer(self._pread(entry, start, size), np.uint8), None
        return np.frombuffer(tar, np.uint8, size, start), tar

    def _map(self, shard: int, stop: int) -> MappedTar | None:
        """A map of a tar up to this byte; None if the tar has fewer bytes or its file system cannot map files."""
        tar = self._open(shard)
        try:
            if tar.mapped is None or len(tar.mapped) < stop:
                tar.mapped = MappedTar(self._path(shard))
                self._maps[tar.mapped] = shard
            return tar.mapped if tar.mapped.size() >= stop <= len(tar.mapped) else None
        except (OSError, ValueError):  # an empty file is a value error
            return None

    def _compare(self, row: int, parts: dict[str, memoryview]) -> None:
        """ChangedError if the bytes of a component are not those that were packed."""
        if self.sums is None:
            return
        wanted = self.sums.components(row)
        for name, content in parts.items():
            if content and crc32(content) != wanted[self._column[name]]:
                raise ChangedError(f"{self._clip_name(self.index[row])}, {name}: {CHANGED}")

    def _spans(self, row: int, components: Sequence[str]) -> list[tuple[int, int]]:
        """(offset in the tar, bytes) of each component."""
        offsets, sizes = self._offset_NC[row].tolist(), self._size_NC[row].tolist()
        try:
            columns = [self._column[name] for name in components]
        except KeyError as error:
            raise UserError(f"{self.where}: no component {error}; it has {', '.join(self.manifest.components)}") from None
        return [(offsets[column], sizes[column]) for column in columns]

    def sample(self, row: int, *, video: bool = True, table: bool = False) -> Sample:
        """One clip, parsed and checked; UserError names clip and shard.

        `video=False` does not read the pixels; with `table` the sample still has `offsets` if frames are stored one by one.
        """
        entry = self.index[row]
        key, names = entry["key"].decode(), self._beside_table if table else self._beside
        parts = self.read(row, self.manifest.components if video else names)
        stored = [name for name in VIDEO_COMPONENTS if parts.get(name)] if video else []
        frames_in = (self.manifest.blocks or int(self._size_NC[row, self._column["jpegs"]])) if table else None
        try:
            if video and not stored:
                raise UserError(f"clip {key}: no video component")
            found = parse_sample(key, parts, stored[0] if video else None, len(self.manifest.layout.joints), frames_in)
            if video and found.blocks != self.manifest.blocks:
                raise UserError(f"clip {found.key}: {found.blocks}, the manifest says {self.manifest.blocks}; pack again")
            return found
        except UserError as error:
            kind = MachineError if isinstance(error, MachineError) else UserError
            raise kind(f"{self.tar_name(entry['shard'])}: {error}") from error

    def _pread(self, entry: np.void, offset: int, size: int) -> bytes | memoryview:
        """Bytes of the clip's tar; UserError if it has fewer than the index says."""
        parts, missing = [], size
        tar = self._open(int(entry["shard"]))
        while missing:  # the kernel gives at most 2 GiB at once
            part = os.pread(tar.descriptor, missing, offset + size - missing)
            if not part:
                raise UserError(f"{self.tar_name(entry['shard'])}: ends before byte {offset + size}, where clip "
                                f"{entry['key'].decode()} should end; {LOOK}")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _path(self, shard: int) -> Path:
        return self.root / self.manifest.shards[shard].name

    def _open(self, shard: int) -> _Tar:
        # No lock: a child forked while another thread holds it would wait forever.
        tar = self._tars.pop(shard, None) or _Tar(self._path(shard))
        self._tars[shard] = tar
        if len(self._tars) > MAX_OPEN_TARS:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread was here in between
                self._tars.pop(next(iter(self._tars)), None)
        return tar


def extent(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Start of the first and end of the last of some spans (offset, bytes); (0, 0) if all are empty."""
    used = [span for span in spans if span[1]]
    return (min(used)[0], sum(max(used))) if used else (0, 0)


def _copied(pictures: Sequence[memoryview], out: np.ndarray, *, with_sums: bool) -> tuple[np.ndarray, list[int]]:
    """Copy pictures one after the other into `out`; returns the part used, and the sums, taken while the copies are cached."""
    found, end = [], 0
    for picture in pictures:
        copy = out[end : end + len(picture)]
        copy[:] = picture  # NumPy releases the GIL
        end += len(picture)
        if with_sums:
            found.append(crc32(copy.data))
    return out[:end], found


def load_head(folder: Path, where: str) -> tuple[Manifest, np.ndarray, Sums | None]:
    """Manifest, index and checksums of a folder, checked against each other; UserError names the set as `where`."""
    manifest = Manifest.load(folder)
    index = load_index(folder, manifest)
    damage = file_problem(folder / INDEX_NAME, manifest)
    if damage is not None:
        raise UserError(f"{where}/{INDEX_NAME}: {damage}")
    problem = index_problem(index, manifest)
    if problem is not None:
        raise UserError(f"{where}: {problem}; pack or copy it again")
    return manifest, index, load_sums(folder, manifest, index)
