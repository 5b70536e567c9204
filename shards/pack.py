"""Packs a data set into a folder of shards: plan, work, finish. Interrupted at any moment, `resume` completes it.

The folder holds shard-*.tar, index.npy, skipped.jsonl and, written last, manifest.json. While packing there are also
`.lock` (one packer per folder) and `.parts` (the plan and one record per finished shard).
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Skipped
from svdata2vec.shards.encode import CODEC_QUALITY, JPEG_CHROMA, OFFSETS
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.executors import open_executor, run_tasks
from svdata2vec.shards.index import INDEX_NAME, build_index
from svdata2vec.shards.lock import folder_lock
from svdata2vec.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, program_version, write_atomically
from svdata2vec.shards.packclip import ClipOptions, Times, container_component
from svdata2vec.shards.packshard import PARTS, ShardRecord, ShardTask, pack_shard, shard_name, write_error
from svdata2vec.shards.shardset import VIDEO_COMPONENTS

SKIPPED_NAME = "skipped.jsonl"
PLAN_NAME = "plan.json"
SIDE_COMPONENTS = ("pose.npy", "score.npy", "box.npy", "json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackOptions:
    """How to pack. `quality` None = the codec's own default: JPEG quality, CRF, or qscale (mjpeg).

    `chroma`: "444", or "420" for smaller JPEGs with halved colour resolution (video codecs always have that).
    `gop`: frames between key frames of a video codec, 0 = one key frame per clip. `size`: side of the stored square.
    `seed` orders the clips. `pose_slack`: poses that may be missing or too many at a clip's end. `workers`: processes
    on this machine; `cluster`: address of a dask scheduler instead. `resume`: go on with an unfinished folder.
    """

    codec: str = "jpeg"
    quality: int | None = None
    chroma: str = "444"
    gop: int = 0
    size: int = 320
    clips_per_shard: int = 128
    seed: int = 0
    pose_slack: int = 2
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    cluster: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.codec not in CODEC_QUALITY:
            raise UserError(f"unknown codec {self.codec!r}: expected one of {', '.join(CODEC_QUALITY)}")
        if self.size % 32 or not 32 <= self.size <= 4096:
            raise UserError(f"size {self.size}: expected a multiple of 32 between 32 and 4096")
        if self.chroma not in JPEG_CHROMA:
            raise UserError(f"chroma {self.chroma!r}: expected one of {', '.join(JPEG_CHROMA)}")
        low, high = (1, 100) if self.codec == "jpeg" else (0, 63)
        if self.quality is not None and not low <= self.quality <= high:
            raise UserError(f"quality {self.quality}: expected {low}..{high} for codec {self.codec}")
        for name in ("gop", "pose_slack", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 or more")
        if self.clips_per_shard < 1:
            raise UserError(f"clips_per_shard {self.clips_per_shard}: expected 1 or more")

    def clip_options(self) -> ClipOptions:
        """The part of the options that decides on bytes."""
        quality = CODEC_QUALITY[self.codec] if self.quality is None else self.quality
        return ClipOptions(self.codec, quality, self.chroma, self.gop, self.size, self.pose_slack)


@dataclass
class Progress:
    """How far a packing is, for whoever shows it. `seconds` per step are summed over workers."""

    shards_total: int
    clips_total: int
    shards_done: int = 0
    clips_done: int = 0
    clips_skipped: int = 0
    frames_done: int = 0
    bytes_done: int = 0
    resumed_shards: int = 0
    elapsed_seconds: float = 0.0
    step_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, record: ShardRecord, times: Times | None) -> None:
        """Count one finished shard; `times` None = it was finished by an earlier run."""
        self.shards_done += 1
        self.resumed_shards += times is None
        self.clips_done += len(record.rows)
        self.clips_skipped += len(record.skipped)
        self.frames_done += sum(row[2] for row in record.rows)
        self.bytes_done += record.bytes
        for name, seconds in (times.seconds if times else {}).items():
            self.step_seconds[name] = self.step_seconds.get(name, 0.0) + seconds


def pack(dataset: DataSet, out: str | Path, options: PackOptions | None = None,
         progress: Callable[[Progress], None] | None = None) -> Manifest:
    """Pack `dataset` into the folder `out` and return its manifest; `progress` is called after every shard.

    Clips that cannot be packed are listed with their reason in `out/skipped.jsonl`. Raises UserError on a bad data set,
    on a folder in use or packed otherwise, on a full disk, and if no clip could be packed.
    """
    options = options or PackOptions()
    dataset.check()
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with folder_lock(root):
            return _pack_locked(dataset, root, options, progress)
    except OSError as error:
        raise write_error(root, error) from error


def _pack_locked(dataset: DataSet, root: Path, options: PackOptions,
                 progress: Callable[[Progress], None] | None) -> Manifest:
    plan = _plan(dataset, options)
    if (root / MANIFEST_NAME).exists():
        return _already_packed(root, plan, options)
    _start_or_resume(root, plan, options)
    records = _pack_shards(root, dataset, options, progress)
    return _finish(root, dataset, options, plan, records)


def _plan(dataset: DataSet, options: PackOptions) -> dict[str, object]:
    """What must be equal for two runs to give the same bytes."""
    clip_options = asdict(options.clip_options())
    digest = hashlib.sha256(json.dumps([dataset.name, dataset.classes, dataset.splits, clip_options]).encode())
    for clip in sorted(dataset.clips, key=lambda clip: clip.key):
        facts = (clip.key, clip.label, Path(str(clip.video)).name, clip.num_frames, clip.start_frame, clip.end_frame,
                 clip.width, clip.height, clip.subject, clip.camera, clip.setup)
        digest.update(repr(facts).encode())
        for array in (clip.pose_MTVC, clip.score_MTV, clip.box_T4):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    return {"dataset": dataset.name, "clips": len(dataset.clips), **clip_options, "seed": options.seed,
            "clips_per_shard": options.clips_per_shard, "version": program_version(), "annotations": digest.hexdigest()}


def _fingerprint(plan: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _already_packed(root: Path, plan: dict[str, object], options: PackOptions) -> Manifest:
    manifest = Manifest.load(root)
    if not options.resume:
        raise UserError(f"{root}: holds a finished data set ({manifest.dataset}); choose another folder or delete it")
    if manifest.fingerprint != _fingerprint(plan):
        raise UserError(f"{root}: holds a data set packed from other annotations or with other options; choose another "
                        "folder or delete it")
    shutil.rmtree(root / PARTS, ignore_errors=True)  # a run killed right after the manifest leaves its records
    return manifest


def _start_or_resume(root: Path, plan: dict[str, object], options: PackOptions) -> None:
    parts = root / PARTS
    stored = parts / PLAN_NAME
    if not stored.is_file():
        others = sorted(path.name for path in root.iterdir() if path.name not in (PARTS, ".lock", PLAN_NAME))
        if others:
            raise UserError(f"{root}: the folder is not empty ({others[0]}); choose another one")
        parts.mkdir(exist_ok=True)
        write_atomically(stored, json.dumps(plan).encode())
        return
    if not options.resume:
        raise UserError(f"{root}: holds an unfinished packing; go on with --resume, or delete the folder")
    before = json.loads(stored.read_bytes())
    changed = [f"{name} was {before.get(name)!r}, now {value!r}" for name, value in plan.items()
               if before.get(name) != value]
    if changed:
        raise UserError(f"{root}: cannot resume with other input: {'; '.join(changed)}")
    for leftover in [*root.glob("*.tmp"), *parts.glob("*.tmp")]:
        leftover.unlink()


def _packed_order(clips: list[ClipAnnotation], seed: int) -> list[ClipAnnotation]:
    """All clips in a random order that depends on their names and the seed alone.

    Clips cut out of one video stay together, in the video's order, so that it is decoded once and not once per clip.
    """
    groups: dict[str, list[ClipAnnotation]] = {}
    for clip in sorted(clips, key=lambda clip: (clip.start_frame, clip.key)):
        groups.setdefault(clip.key if clip.end_frame is None else str(clip.video), []).append(clip)
    by_name = sorted(groups.values(), key=lambda group: group[0].key)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(by_name))
    return [clip for i in order for clip in by_name[i]]


def components_of(dataset: DataSet, codec: str) -> tuple[str, ...]:
    """Tar members of a clip. Codec `copy` keeps the containers that occur; UserError for one that cannot be kept."""
    if codec == "jpeg":
        return ("jpegs", OFFSETS, *SIDE_COMPONENTS)
    if codec != "copy":
        return ("mp4", *SIDE_COMPONENTS)
    containers = sorted({container_component(str(clip.video)) for clip in dataset.clips})
    unknown = [name for name in containers if name not in VIDEO_COMPONENTS[1:]]
    if unknown:
        raise UserError(f"codec copy keeps {', '.join(VIDEO_COMPONENTS[1:])} files, found .{unknown[0]}; "
                        "use another codec")
    return (*containers, *SIDE_COMPONENTS)


def _tasks(root: Path, dataset: DataSet, options: PackOptions) -> Iterator[ShardTask]:
    clips = _packed_order(dataset.clips, options.seed)
    components = components_of(dataset, options.codec)
    for number, start in enumerate(range(0, len(clips), options.clips_per_shard)):
        part = tuple(clips[start : start + options.clips_per_shard])
        yield ShardTask(number, str(root.resolve()), part, len(dataset.layout.joints), components,
                        options.clip_options())


def _pack_shards(root: Path, dataset: DataSet, options: PackOptions,
                 progress: Callable[[Progress], None] | None) -> list[ShardRecord]:
    start = time.monotonic()
    total = -(-len(dataset.clips) // options.clips_per_shard)
    state = Progress(total, len(dataset.clips))
    records: list[ShardRecord] = []

    def note(record: ShardRecord, times: Times | None) -> None:
        records.append(record)
        state.add(record, times)
        state.elapsed_seconds = time.monotonic() - start
        if progress is not None:
            progress(state)

    def missing() -> Iterator[ShardTask]:
        for task in _tasks(root, dataset, options):
            record = ShardRecord.load(root, task.number) if options.resume else None
            if record is None:
                yield task
            else:
                note(record, None)

    with open_executor(options.workers, options.cluster) as (executor, slots):
        for record, times in run_tasks(executor, slots, pack_shard, missing()):
            note(record, times)
    return sorted(records, key=lambda record: record.number)


def _finish(root: Path, dataset: DataSet, options: PackOptions, plan: dict[str, object],
            records: list[ShardRecord]) -> Manifest:
    """Write skipped.jsonl, the index and at last the manifest; then remove what only resuming needs."""
    skipped = [*dataset.skipped, *(entry for record in records for entry in record.skipped)]
    _write_skipped(root, dataset, skipped)
    full = [record for record in records if record.rows]
    if not full:
        raise UserError(f"{root}: none of {len(dataset.clips)} clips could be packed, see {SKIPPED_NAME}; the first: "
                        f"{skipped[0].reason}")
    components = components_of(dataset, options.codec)
    rows = [(key, shard, label, frames, offsets, sizes) for shard, record in enumerate(full)
            for key, label, frames, offsets, sizes in record.rows]
    buffer = BytesIO()
    np.save(buffer, build_index(rows, len(components)), allow_pickle=False)
    write_atomically(root / INDEX_NAME, buffer.getvalue())
    packed = {row[0] for row in rows}
    manifest = Manifest(
        dataset=dataset.name, codec=options.codec, packed_size=0 if options.codec == "copy" else options.size,
        layout=dataset.layout, classes=dataset.classes, components=components,
        splits={name: [key for key in keys if key in packed] for name, keys in dataset.splits.items()},
        shards=tuple(ShardEntry(shard_name(r.number), r.sha256, r.bytes, len(r.rows)) for r in full),
        fingerprint=_fingerprint(plan),
        codec_options={"quality": options.clip_options().quality, "gop": options.gop},
        split_classes=dataset.split_classes, published=dataset.published, created_with=program_version(),
    )
    _report(manifest, skipped)
    manifest.save(root)
    shutil.rmtree(root / PARTS)
    return manifest


def _write_skipped(root: Path, dataset: DataSet, skipped: list[Skipped]) -> None:
    """One JSON line per clip that is not packed: key, reason, source, and the splits that lack it."""
    splits_of: dict[str, list[str]] = {}
    for name, keys in dataset.splits.items():
        for key in keys:
            splits_of.setdefault(key, []).append(name)
    lines = [json.dumps({**asdict(entry), "splits": splits_of.get(entry.key, [])}, ensure_ascii=False) + "\n"
             for entry in sorted(skipped, key=lambda entry: (entry.key, entry.reason))]
    write_atomically(root / SKIPPED_NAME, "".join(lines).encode())


def _report(manifest: Manifest, skipped: list[Skipped]) -> None:
    if skipped:
        logger.warning("%d clips were left out, see %s; the first, %s: %s", len(skipped), SKIPPED_NAME, skipped[0].key,
                       skipped[0].reason)
    for name, published in manifest.published.items():
        found = len(manifest.splits.get(name, ()))
        if found != published:
            logger.warning("split %s: %d clips, published are %d (%+d)", name, found, published, found - published)
