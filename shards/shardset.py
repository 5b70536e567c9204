"""Random access to packed shards: memory-mapped tars, the index, parsed samples. Nothing is scanned."""

import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.index import load_index
from svdata2vec.shards.keylist import KeyList
from svdata2vec.shards.manifest import Manifest
from svdata2vec.shards.sample import Sample, parse_sample

VIDEO_COMPONENTS = ("jpegs", "mp4", "mkv", "webm", "avi")
_SIDE_COMPONENTS = ("pose.npy", "score.npy", "box.npy", "json")


class ShardSet:
    """A folder of shards. Cheap to open and to pickle; tars are mapped when first read. Safe to read from threads."""

    def __init__(self, root: Path, manifest: Manifest, index: np.ndarray) -> None:
        self.root = root
        splits: dict[str, Any] = {name: KeyList(keys) for name, keys in manifest.splits.items()}
        self.manifest = replace(manifest, splits=splits)
        self.index = index
        self._maps: dict[int, memoryview] = {}
        self._column = {name: i for i, name in enumerate(manifest.components)}
        self._order: np.ndarray | None = None

    @classmethod
    def open(cls, root: str | Path) -> "ShardSet":
        """Open a packed folder. UserError names what is missing or damaged."""
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; expected one made by `svdata2vec shard`")
        manifest = Manifest.load(root)
        index = load_index(root, len(manifest.components))
        if len(index) != manifest.num_clips:
            raise UserError(f"{root}: the index has {len(index)} clips, the manifest {manifest.num_clips}; pack again")
        for shard in manifest.shards:
            path = root / shard.name
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                raise UserError(f"{path}: {'missing' if found is None else f'{found} bytes'}, "
                                f"expected {shard.bytes} bytes; copy it again or pack again")
        return cls(root, manifest, index)

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Path]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(ShardSet.open(state["root"]).__dict__)

    def rows(self, split: str) -> np.ndarray:
        """int64 row numbers of a split's clips, in the split's order. UserError lists the splits that exist."""
        if split not in self.manifest.splits:
            raise UserError(f"{self.root}: no split {split!r}; it has {', '.join(self.manifest.splits) or 'none'}")
        return self.find(self.manifest.splits[split])

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """int64 row numbers of these clips; UserError names the first that is not there."""
        keys_N = np.ascontiguousarray(self.index["key"])  # searching the mapped rows is four times slower
        if self._order is None:
            self._order = np.argsort(keys_N, kind="stable")
        wanted = (keys if isinstance(keys, KeyList) else KeyList(keys)).names_N
        if not len(wanted):
            return np.zeros(0, np.int64)
        by_name = np.argsort(wanted, kind="stable")  # in sorted order the search stays in the cache
        place = np.empty(len(wanted), np.int64)
        place[by_name] = np.searchsorted(keys_N[self._order], wanted[by_name])
        rows = self._order[np.minimum(place, len(self._order) - 1)]
        wrong = np.flatnonzero(keys_N[rows] != wanted)
        if len(wrong):
            raise UserError(f"{self.root}: no clip {keys[wrong[0]]!r} in the index")
        return rows.astype(np.int64)

    def label_map(self, split: str) -> np.ndarray:
        """int64 (classes,): stored label -> label among the split's own classes, -1 where it has no such class."""
        names = self.split_classes(split)
        number = {name: i for i, name in enumerate(names)}
        return np.array([number.get(name, -1) for name in self.manifest.classes], np.int64)

    def split_classes(self, split: str) -> tuple[str, ...]:
        """Class names of a split: all, except where the data set defines fewer for it."""
        return self.manifest.split_classes.get(split, self.manifest.classes)

    @property
    def video_component(self) -> str:
        """Name of the component with the pixels (codec `copy` may have several: then ask per clip)."""
        return next(name for name in self.manifest.components if name in VIDEO_COMPONENTS)

    def read(self, row: int, components: Sequence[str]) -> dict[str, memoryview]:
        """The raw components of one clip (views into the mapped tar); empty where the clip has none."""
        entry = self.index[row]
        tar = self._map(int(entry["shard"]))
        parts = {}
        for name in components:
            if name not in self._column:
                raise UserError(f"{self.root}: no component {name!r}; it has {', '.join(self.manifest.components)}")
            offset, size = int(entry["offset"][self._column[name]]), int(entry["size"][self._column[name]])
            if offset + size > len(tar):
                raise UserError(f"{self.root}: the index leads outside {self._shard_name(entry)}; run "
                                "`svdata2vec verify`")
            parts[name] = tar[offset : offset + size]
        return parts

    def sample(self, row: int, *, video: bool = True) -> Sample:
        """One clip, parsed and checked; UserError names clip and shard. `video=False` does not touch the pixels."""
        entry = self.index[row]
        names = [name for name in self.manifest.components if video or name in _SIDE_COMPONENTS]
        parts = self.read(row, names)
        stored = [name for name in VIDEO_COMPONENTS if parts.get(name)]
        try:
            if video and not stored:
                raise UserError(f"clip {entry['key'].decode()}: no video component")
            return parse_sample(entry["key"].decode(), parts, stored[0] if video else None,
                                len(self.manifest.layout.joints))
        except UserError as error:
            raise UserError(f"{self.root / self._shard_name(entry)}: {error}") from error

    def _shard_name(self, entry: np.void) -> str:
        return self.manifest.shards[int(entry["shard"])].name

    def _map(self, shard: int) -> memoryview:
        if shard not in self._maps:
            with (self.root / self.manifest.shards[shard].name).open("rb") as file:
                self._maps[shard] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._maps[shard]
