"""Checks a packed folder completely: hashes, tars against the index, every frame, joints, labels, splits.

Nothing is changed, and faults do not raise: every fault is a `Finding`.
"""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np

from svdata2vec.shards.atomic import read_json_lines
from svdata2vec.shards.boxes import OUTSIDE_LIMIT
from svdata2vec.shards.errors import AGAIN, LOOK, MachineError, UserError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.reading.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    SKIPPED_NAME,
    SUMMARY_NAME,
    SUMS_NAME,
    Manifest,
    access_problem,
    file_problem,
    index_problem,
    load_index,
)
from svdata2vec.shards.reading.overlap import overlaps
from svdata2vec.shards.reading.sample import Sample
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.sums import CHANGED, Sums, clip_sums, load_sums, save_head
from svdata2vec.shards.reading.verify_video import video_faults
from svdata2vec.shards.video import silence_decoder


@dataclass(frozen=True)
class Finding:
    """One fault.

    `kind`: hash, size, missing, tar, index, sum, clip, video, joints, label, split, leftover. `where`: file or clip.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"


def verify(root: str | Path, *, decode: bool = True, workers: int = 1,
           progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """All faults of the folder, an empty list if there is none.

    `decode` False leaves out the frames (hashes still cover them). `workers`: processes; a script that uses several must
    call this under `if __name__ == "__main__":`. `progress` is called with the shards done and in total. Raises UserError
    only if manifest or index cannot be read at all.
    """
    root = Path(root)
    shards, head = _open(root)
    findings = [*_folder_faults(root, shards.manifest), *_index_faults(shards, head.rows_of), *_split_faults(shards)]
    total = len(shards.manifest.shards)
    by_shard: dict[int, list[Finding]] = {}
    sources: dict[str, str] = {}
    check, advice = partial(_verify_shard, root, decode), "run again with fewer --workers"
    with closing(run_tasks(check, range(total), workers, after_death=advice)) as results:
        for number, found, pictures in results:
            by_shard[number] = found
            sources |= pictures
            if progress is not None:
                progress(len(by_shard), total)
    findings += [Finding("split", f"{overlap.first}, {overlap.second}", str(overlap))
                 for overlap in overlaps(shards.manifest.splits, sources)]
    return findings + [finding for number in sorted(by_shard) for finding in by_shard[number]]


def add_sums(root: str | Path) -> None:
    """Add checksums of the present bytes to a folder that was packed without; `verify` must have found no fault."""
    root = Path(root)
    shards, _ = _open(root)
    names = shards.manifest.components
    sums = [np.array(clip_sums(shards.read(row, names), names), np.uint32) for row in range(len(shards))]
    save_head(root, Manifest.load(root), np.array(shards.index), sums)


@dataclass(frozen=True)
class _Head:
    """The files beside the tars, read once per process. `rows_of`: number of a tar -> its rows in the index."""

    manifest: Manifest
    index: np.ndarray
    sums: Sums | None
    no_sums: str | None
    rows_of: list[np.ndarray]


def _open(root: Path) -> tuple[ShardSet, _Head]:
    """The set without the checks of ShardSet.open: here they become findings."""
    beside = (root / name for name in (MANIFEST_NAME, INDEX_NAME, SUMS_NAME))
    head = _load(root, tuple(path.stat().st_mtime_ns for path in beside if path.is_file()))
    return ShardSet(root, head.manifest, head.index), head


@lru_cache(maxsize=1)
def _load(root: Path, _stamps: tuple[int, ...]) -> _Head:
    manifest = Manifest.load(root)
    shards = ShardSet(root, manifest, load_index(root, manifest))
    sums, problem = None, None
    try:
        sums = load_sums(root, manifest, shards.index)
    except MachineError:
        raise
    except UserError as error:
        problem = str(error)
    shard_N = shards.index["shard"]
    order_N = np.argsort(shard_N, kind="stable")
    starts = np.searchsorted(shard_N[order_N], np.arange(len(manifest.shards) + 1))
    return _Head(shards.manifest, shards.index, sums, problem, np.split(order_N, starts)[1:-1])


def _folder_faults(root: Path, manifest: Manifest) -> Iterator[Finding]:
    tars = (shard.name for shard in manifest.shards)
    expected = {MANIFEST_NAME, INDEX_NAME, SKIPPED_NAME, SUMMARY_NAME, *manifest.crc32, *tars}
    for name in sorted(manifest.crc32):
        problem = file_problem(root / name, manifest) if (root / name).is_file() else "no such file"
        if problem is not None:
            yield Finding("hash", name, problem)
    for path in sorted(root.iterdir()):
        if path.name not in expected:
            yield Finding("leftover", path.name, "does not belong to the data set; remove it")
    if not (root / SKIPPED_NAME).is_file():
        yield Finding("missing", SKIPPED_NAME, "no such file")
        return
    if (problem := access_problem(root / SKIPPED_NAME)) is not None:
        yield Finding("missing", SKIPPED_NAME, problem)
        return
    try:
        skipped = {str(entry["key"]) for entry in read_json_lines(root / SKIPPED_NAME)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield Finding("missing", SKIPPED_NAME, f"not readable ({error})")
        return
    packed = {key for keys in manifest.splits.values() for key in keys}
    for key in packed.intersection(skipped):
        yield Finding("split", key, f"listed in {SKIPPED_NAME} and in a split")


def _index_faults(shards: ShardSet, rows_of: list[np.ndarray]) -> Iterator[Finding]:
    manifest, index = shards.manifest, shards.index
    problem = index_problem(index, manifest)
    if problem is not None:
        yield Finding("index", INDEX_NAME, problem)
    for key, count in Counter(index["key"].tolist()).items():
        if count > 1:
            yield Finding("index", _text(key), f"{count} clips with this key")
    for shard, rows in zip(manifest.shards, rows_of, strict=True):
        if len(rows) != shard.count:
            yield Finding("index", shard.name, f"{len(rows)} clips in the index, {shard.count} in the manifest")
    for row in np.flatnonzero(index["shard"] >= len(manifest.shards)):
        yield Finding("index", key_at(shards, row), f"shard {index['shard'][row]} does not exist")
    for row in np.flatnonzero((index["label"] < 0) | (index["label"] >= len(manifest.classes))):
        yield Finding("label", key_at(shards, row),
                      f"label {index['label'][row]}, expected 0..{len(manifest.classes) - 1}")


def _split_faults(shards: ShardSet) -> Iterator[Finding]:
    known = {_text(key) for key in shards.index["key"]}
    splits = shards.manifest.splits
    for name, keys in splits.items():
        for key in sorted(set(keys) - known):
            yield Finding("split", name, f"clip {key} is not in the index")
        for key, count in Counter(keys).items():
            if count > 1:
                yield Finding("split", name, f"clip {key} is listed {count} times")
        present = [key for key in keys if key in known]
        labels = shards.index["label"][shards.find(present)]
        names = set(shards.split_classes(name))
        for label in sorted({int(label) for label in labels if 0 <= label < len(shards.manifest.classes)}):
            if shards.manifest.classes[label] not in names:
                yield Finding("split", name, f"has clips of {shards.manifest.classes[label]}, not one of its classes")


def _verify_shard(root: Path, decode: bool, number: int) -> tuple[int, list[Finding], dict[str, str]]:
    """The shard's number, its faults, and clip -> `ClipMeta.pictures`."""
    silence_decoder()
    shards, head = _open(root)
    entry = shards.manifest.shards[number]
    path = root / entry.name
    if not path.is_file():
        return number, [Finding("missing", entry.name, "no such file")], {}
    if (problem := access_problem(path)) is not None:
        return number, [Finding("missing", entry.name, problem)], {}
    problems = {"size": entry.size_problem(path.stat().st_size), "hash": entry.hash_problem(path)}
    findings = [Finding(kind, entry.name, problem) for kind, problem in problems.items() if problem is not None]
    rows = head.rows_of[number]
    findings += _tar_faults(path, shards, rows)
    if head.no_sums is not None:
        findings.append(Finding("sum", entry.name, head.no_sums))
    pictures: dict[str, str] = {}
    ends = shards.index["offset"][rows] + shards.index["size"][rows].astype(np.uint64)
    outside = (ends > entry.bytes) | (ends < shards.index["offset"][rows])
    for place, row in enumerate(rows.tolist()):
        if outside[place].any():
            findings.append(Finding("index", key_at(shards, row), f"lies beyond the {entry.bytes} bytes of {entry.name}"))
            continue
        findings += _sum_faults(shards, head.sums, row)
        findings += _clip_faults(shards, row, decode, pictures)
    return number, findings, pictures


def _sum_faults(shards: ShardSet, sums: Sums | None, row: int) -> Iterator[Finding]:
    """Components and frames whose bytes are not those that were packed."""
    if sums is None:
        return
    names = shards.manifest.components
    try:
        found = clip_sums(shards.read(row, names), names)
    except (UserError, OSError):
        return  # `_clip_faults` reports it
    wanted = [*sums.components(row), *sums.frames(row).tolist()]
    places = [*names, *(f"frame {frame}" for frame in range(len(found) - len(names)))]
    wrong = [place for place, a, b in zip(places, found, wanted, strict=False) if a != b]
    if wrong or len(found) != len(wanted):
        yield Finding("sum", key_at(shards, row), f"{', '.join(wrong[:3]) or 'the number of frames'}: {CHANGED}")


def _tar_faults(path: Path, shards: ShardSet, rows: np.ndarray) -> Iterator[Finding]:
    """The tar's members must be what the index says: names, places, sizes, order, nothing else."""
    expected = [(f"{_text(entry['key'])}.{name}", int(entry["offset"][i]), int(entry["size"][i]))
                for entry in shards.index[rows] for i, name in enumerate(shards.manifest.components)
                if entry["size"][i]]
    try:
        with tarfile.open(path, "r:") as tar:  # strictly uncompressed, as other programs read them
            members = [(member.name, member.offset_data, member.size) for member in tar]
            pax = next((member.name for member in tar.getmembers() if member.pax_headers), None)
    except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError) as error:
        yield Finding("tar", path.name, f"not a readable tar ({error})")
        return
    if pax is not None:
        yield Finding("tar", path.name, f"{pax} has PAX headers, which DALI cannot read")
    differing = ((have, want) for have, want in zip(members, expected, strict=False) if have != want)
    for have, want in islice(differing, 1):  # after the first difference all others follow from it
        yield Finding("tar", path.name, f"member {have[0]} (offset {have[1]}, {have[2]} bytes), the index expects "
                      f"{want[0]} (offset {want[1]}, {want[2]} bytes)")
    if len(members) != len(expected):
        yield Finding("tar", path.name, f"{len(members)} members, the index expects {len(expected)}")


def _clip_faults(shards: ShardSet, row: int, decode: bool, pictures: dict[str, str]) -> Iterator[Finding]:
    """Faults of a clip; adds its `ClipMeta.pictures` to `pictures`."""
    key = key_at(shards, row)
    try:
        sample = shards.sample(row)
    except MachineError:
        raise
    except (UserError, ValueError, OSError, OverflowError) as error:
        yield Finding("clip", key, str(error).replace(LOOK, AGAIN))  # this is `verify`
        return
    if sample.meta.pictures:
        pictures[key] = sample.meta.pictures
    entry = shards.index[row]
    if sample.label != entry["label"]:
        yield Finding("label", key, f"label {sample.label} in the tar, {entry['label']} in the index")
    if sample.meta.num_frames != entry["frames"]:
        yield Finding("clip", key, f"{sample.meta.num_frames} frames in the tar, {entry['frames']} in the index")
    yield from _place_faults(key, sample, shards.manifest)
    if decode:
        for message in video_faults(sample):
            yield Finding("video", key, message)


def key_at(shards: ShardSet, row: int | np.integer) -> str:
    """The name of a clip, even if the index has bytes that are not ASCII."""
    return _text(shards.index["key"][row])


def _text(key: bytes) -> str:
    return key.decode("ascii", "backslashreplace")


def _place_faults(key: str, sample: Sample, manifest: Manifest) -> Iterator[Finding]:
    """Joints and boxes must be in or near the picture, and the map must only enlarge the packed square."""
    meta = sample.meta
    limit = OUTSIDE_LIMIT * max(meta.width, meta.height) + 1
    low, high = -limit, np.array([meta.width, meta.height]) + limit
    outside = int(((sample.pose_MTVC < low) | (sample.pose_MTVC > high)).any(axis=-1).sum())
    if outside:
        yield Finding("joints", key, f"{outside} joints far outside the {meta.width}x{meta.height} picture, not marked "
                      "as missing")
    box_T4 = sample.box_T4
    if (box_T4[:, 2:] < box_T4[:, :2]).any():
        yield Finding("joints", key, "a box has its right or lower edge before the left or upper one")
    packed = (manifest.packed_size,) * 2 if manifest.packed_size else (meta.width, meta.height)
    if (meta.packed_width, meta.packed_height) != packed:
        yield Finding("clip", key, f"packed size {meta.packed_width}x{meta.packed_height}, expected "
                      f"{packed[0]}x{packed[1]}")
    scale = meta.packed_to_source
    if not (scale[0, 0] >= 1 and scale[0, 0] == scale[1, 1] and scale[0, 1] == scale[1, 0] == 0):
        yield Finding("clip", key, f"packed_to_source {scale.tolist()} is not a plain enlargement")
