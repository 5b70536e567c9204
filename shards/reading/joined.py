"""Several shard sets read as one: rows of the second follow those of the first, and so on.

Each set keeps its own files, its clips' own names and, in `sample`, its own joint layout; `in_layout` converts joints to
the common layout. Columns of the sets' indices are copied only when they are used.

n requested clips, N clips of all sets.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import JointLayout, joint_numbers, layout, to_layout
from svdata2vec.shards.reading.manifest import Manifest
from svdata2vec.shards.reading.sample import Sample
from svdata2vec.shards.reading.shardset import NOTHING, Cut, ShardSet

KEPT = ("label", "frames", "shard")  # columns of 4 bytes; the others would be large at ten million clips

log = logging.getLogger(__name__)


def set_names(shards: str) -> list[str]:
    """Folders and URLs of a setting, separated by commas unless all of it is one folder. UserError if one is empty."""
    names = [shards] if Path(shards).is_dir() else [name.strip() for name in shards.split(",")]
    if not all(names):
        raise UserError(f"the shards {shards!r} name an empty set; expected folders or URLs with commas between them")
    return names


def own_key(name: str) -> str:
    """The key of a clip in its own set, from its name among several; keys have no slash."""
    return name.rpartition("/")[2]


class JoinedShards(ShardSet):
    """Shard sets one after the other, optionally converted to one joint layout, optionally weighted.

    Args:
        sets: of one codec and one view.
        to: name of the joint layout to convert them to; None = they have one layout.
        weights: how often a training epoch takes a clip of each set (pipeline/README.md, "Purity and resume"); () = once.

    Raises UserError, in one line, for sets that cannot be read as one.
    """

    def __init__(self, sets: Sequence[ShardSet], to: str | None = None, weights: Sequence[float] = ()) -> None:
        self.sets, self._to, self._weights = tuple(sets), to, tuple(weights)
        if weights and len(weights) != len(sets):
            raise UserError(f"--data.weights has {len(weights)} numbers, --data.shards {len(sets)} sets; give one for each set")
        self._require_different()
        self._require_one("codec", "pack them again with one codec")
        self._require_one("blocks", "pack them again with one block format")
        self._require_one("view", "train on videos with skeletons and on whole pictures apart")
        self._require_no_copy()
        self._starts = np.cumsum([0, *map(len, sets)])
        self._first_tar = np.cumsum([0, *(len(each.manifest.shards) for each in sets)])
        self.manifest = self._joined_manifest()
        self.index = cast("np.ndarray", _JoinedIndex(self))
        self.root, self.sums = sets[0].root, None
        self.reads_frames = all(each.reads_frames for each in sets)
        self.read_threads = max(each.read_threads for each in sets)
        self._prefixes = _prefixes([each.root.name for each in sets])

    def _require_different(self) -> None:
        places = [each.where for each in self.sets]
        for place in places:
            if places.count(place) > 1:
                raise UserError(f"{place} is named twice; name it once, --data.weights takes its clips more often")

    def _require_no_copy(self) -> None:
        owner: dict[str, str] = {}  # of each tar, by its hash
        for each in self.sets:
            for tar in each.manifest.shards:
                if owner.setdefault(tar.sha256, each.where) != each.where:
                    both = f"{owner[tar.sha256]} and {each.where} hold the same clips ({tar.name} is in both)"
                    raise UserError(f"{both}; name one of them, --data.weights takes its clips more often")

    def _require_one(self, field: str, advice: str) -> None:
        first, *others = self.sets
        for other in others:
            values = getattr(first.manifest, field), getattr(other.manifest, field)
            if values[0] != values[1]:
                raise UserError(f"{first.where} has {field} {values[0]}, {other.where} {values[1]}; {advice}")

    def _joined_manifest(self) -> Manifest:
        sets = [each.manifest for each in self.sets]
        digest = hashlib.sha256("\n".join(each.fingerprint for each in sets).encode())
        classes = tuple(dict.fromkeys(name for each in sets for name in each.classes))
        number = {name: i for i, name in enumerate(classes)}
        self._labels = [np.array([number[name] for name in each.classes], np.int32) for each in sets]
        noted = [each.without_joints for each in sets]
        places = tuple(
            row + start for rows, start in zip(noted, self._starts.tolist(), strict=False) for row in rows or ()
        )
        tars = [
            replace(tar, name=f"{i}-{tar.name}"[:100]) if len(sets) > 1 else tar
            for i, each in enumerate(sets, 1) for tar in each.shards
        ]
        common = [name for name in self.sets[0].manifest.splits if all(name in each.splits for each in sets)]
        return replace(
            sets[0],
            dataset=" + ".join(each.dataset for each in sets),
            packed_size=max(each.packed_size for each in sets),
            codec_options=dict(set.intersection(*(set(each.codec_options.items()) for each in sets))),
            layout=self._common_layout(),
            classes=classes,
            components=tuple(dict.fromkeys(name for each in sets for name in each.components)),
            # Names and sizes only: `rows` asks the sets.
            splits=cast("dict[str, list[str]]", {name: range(sum(len(each.splits[name]) for each in sets)) for name in common}),
            shards=tuple(tars),
            fingerprint=sets[0].fingerprint if len(sets) == 1 else digest.hexdigest(),
            split_classes={}, published={}, crc32={},
            without_joints=None if None in noted else places,
        )

    def _common_layout(self) -> JointLayout:
        found = [each.manifest.layout for each in self.sets]
        if self._to is None:
            if any(each.joints != found[0].joints for each in found):
                names = ", ".join(f"{each.where}: {own.name}" for each, own in zip(self.sets, found, strict=True))
                raise UserError(f"the sets have several joint layouts ({names}); name the one to bring them to, as in "
                                "--data.layout coco17")
            return found[0]
        target = layout(self._to)
        for each, own in zip(self.sets, found, strict=True):
            numbers = joint_numbers(own, target)
            absent = [name for name, number in zip(target.joints, numbers, strict=True) if number is None]
            if len(absent) == len(target.joints):
                raise UserError(f"{each.where}: its layout {own.name} has no joint of {target.name}; "
                                "take another --data.layout")
            if absent and own.joints != target.joints:
                log.info("%s: %s brought to %s; missing throughout: %s", each.where, own.name, target.name, ", ".join(absent))
        return target

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedShards, (self.sets, self._to, self._weights)

    def _place(self, row: int) -> tuple[int, int]:
        """Number of a row's set, and its row there."""
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return number, int(row - self._starts[number])

    def per_set(self, rows_n: np.ndarray) -> list[np.ndarray]:
        """For each set, the places in `rows_n` of its rows."""
        number_n = np.searchsorted(self._starts, rows_n, "right") - 1
        return [np.flatnonzero(number_n == number) for number in range(len(self.sets))]

    def _of_splits(self, split: str) -> list[str]:
        """The split to read from each set: one name for all, or one for each, separated by commas."""
        names = split.split(",") if len(self.sets) > 1 else [split]
        if len(names) not in (1, len(self.sets)):
            raise UserError(f"split {split!r} has {len(names)} names for {len(self.sets)} sets; give one, or one for each set")
        return [name.strip() for name in names] * (len(self.sets) if len(names) == 1 else 1)

    def rows(self, split: str) -> np.ndarray:
        """int64 rows of a split, set after set. `part`: that split of every set; `a,b`: a of the first set, b of the second."""
        pairs = zip(self.sets, self._of_splits(split), self._starts.tolist(), strict=False)
        return np.concatenate([each.rows(name) + start for each, name, start in pairs])

    def name(self, row: int, key: str) -> str:
        return f"{self._prefixes[self._place(row)[0]]}/{key}" if len(self.sets) > 1 else key

    def shares(self, rows_n: np.ndarray) -> list[tuple[np.ndarray, float]]:
        if all(weight == 1 for weight in self._weights):
            return []
        return list(zip(self.per_set(rows_n), self._weights, strict=True))

    def own_validation(self, train_split: str, test_split: str) -> str | None:
        pairs = zip(self.sets, self._of_splits(train_split), self._of_splits(test_split), strict=True)
        found = [each.own_validation(train, test) for each, train, test in pairs]
        return None if None in found else ",".join(cast("list[str]", found))

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """Raises UserError, as a clip's own name may be in several sets."""
        raise UserError(f"{self.where}: clips are looked up by name in one set")

    def split_classes(self, split: str) -> tuple[str, ...]:
        """Class names of a split, those of the first set first."""
        lists = self._class_lists(split)
        return tuple(dict.fromkeys(name for names in lists for name in names))

    def one_class_list(self, split: str) -> tuple[str, ...]:
        first, *others = self._class_lists(split)
        for each, names in zip(self.sets[1:], others, strict=True):
            if names != first:
                raise UserError(f"{self.sets[0].where} and {each.where} have other classes than each other in split {split!r}: "
                                "their labels cannot be learned together; pretrain on them together, fine-tune on one")
        return first

    def _class_lists(self, split: str) -> list[tuple[str, ...]]:
        return [each.split_classes(name) for each, name in zip(self.sets, self._of_splits(split), strict=True)]

    def describe(self, split: str) -> list[dict[str, Any]]:
        facts = [fact for each, name in zip(self.sets, self._of_splits(split), strict=True) for fact in each.describe(name)]
        weights = self._weights or (1,) * len(facts)
        return [{**fact, "weight": weight} for fact, weight in zip(facts, weights, strict=True)]

    @property
    def where(self) -> str:
        return ", ".join(each.where for each in self.sets)

    @property
    def tars(self) -> list[Path]:
        """Empty if one of the sets is behind a URL."""
        found = [each.tars for each in self.sets]
        return [tar for tars in found for tar in tars] if all(found) else []

    def _tar(self, shard: int) -> tuple[ShardSet, int]:
        number = int(np.searchsorted(self._first_tar, shard, "right")) - 1
        return self.sets[number], int(shard - self._first_tar[number])

    def tar_name(self, shard: int) -> str:
        each, own = self._tar(shard)
        return each.tar_name(own)

    def check_shard(self, shard: int) -> None:
        each, own = self._tar(shard)
        each.check_shard(own)

    def check_hash(self, shard: int) -> None:
        each, own = self._tar(shard)
        each.check_hash(own)

    def will_need(self, rows: np.ndarray) -> None:
        for each, places, start in zip(self.sets, self.per_set(rows), self._starts.tolist(), strict=False):
            if len(places):
                each.will_need(rows[places] - start)

    def read(self, row: int, components: Sequence[str]) -> dict[str, memoryview]:
        number, own = self._place(row)
        each = self.sets[number]
        return dict.fromkeys(components, NOTHING) | each.read(
            own, [name for name in components if name in each.manifest.components or name not in self.manifest.components]
        )

    def frames(
        self, row: int, offsets: np.ndarray, frames: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[memoryview]]:
        number, own = self._place(row)
        return self.sets[number].frames(own, offsets, frames, out)

    def cut(self, row: int, frames_D: np.ndarray, starts: Sequence[int], stops: Sequence[int]) -> Cut:
        number, own = self._place(row)
        return self.sets[number].cut(own, frames_D, starts, stops)

    def check_cut(self, row: int, cut: Cut, found: list[int]) -> None:
        number, own = self._place(row)
        self.sets[number].check_cut(own, cut, found)

    def check_used(self) -> None:
        for each in self.sets:
            each.check_used()

    def sample(self, row: int, *, video: bool = True, table: bool = False) -> Sample:
        """One clip, with joints in its own set's layout and its label among the classes of all sets."""
        number, own = self._place(row)
        sample, labels = self.sets[number].sample(own, video=video, table=table), self._labels[number]
        return replace(sample, label=int(labels[sample.label]) if sample.label < len(labels) else -1)

    def stored_layout(self, row: int) -> JointLayout:
        return self.sets[self._place(row)[0]].manifest.layout

    def in_layout(self, row: int, joints_MTVC: np.ndarray) -> np.ndarray:
        stored, common = self.stored_layout(row), self.manifest.layout
        return joints_MTVC if stored.joints == common.joints else to_layout(joints_MTVC, stored, common, -2)


class _JoinedIndex:
    """Reads like the sets' indices one after the other: a column by its name, joined when it is used; a row by its number."""

    def __init__(self, joined: JoinedShards) -> None:
        self._joined = joined
        self._kept: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, what: str | int | np.integer) -> Any:
        if isinstance(what, str):
            if what in KEPT and what not in self._kept:
                self._kept[what] = self._column(what)
            return self._kept[what] if what in KEPT else self._column(what)
        number, own = self._joined._place(int(what))
        row = self._joined.sets[number].index[own].copy()
        row["shard"] += self._joined._first_tar[number]
        row["label"] = self._joined._labels[number][row["label"]]
        return row

    def _column(self, name: str) -> np.ndarray:
        joined, parts = self._joined, []
        for number, each in enumerate(joined.sets):
            column = each.index[name]
            match name:
                case "shard":
                    column = column + joined._first_tar[number].astype(column.dtype)
                case "label":
                    column = joined._labels[number][column]
                case "size" | "offset":
                    column = _with_columns(column, each.manifest.components, joined.manifest.components)
            parts.append(column)
        return np.concatenate(parts)


def _with_columns(column_NC: np.ndarray, own: Sequence[str], all_names: Sequence[str]) -> np.ndarray:
    """A per-component column of the index, for the components of all sets; 0 for those that this set lacks."""
    wider = np.zeros((len(column_NC), len(all_names)), column_NC.dtype)
    wider[:, [all_names.index(name) for name in own]] = column_NC
    return wider


def _prefixes(names: Sequence[str]) -> list[str]:
    """The folders' names, numbered if they are equal; all are numbered if a numbered name is the name of another folder."""
    numbered = [f"{name}-{i}" for i, name in enumerate(names, 1)]
    found = [name if names.count(name) == 1 else other for name, other in zip(names, numbered, strict=True)]
    return found if len(set(found)) == len(found) else numbered
