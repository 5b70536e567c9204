"""Packs a data set into a folder of shards: plan, work, finish. If it is interrupted at any moment, `resume` completes it.

The folder holds shard-*.tar, index.npy, skipped.jsonl and, written last, manifest.json. While packing there are also
`.lock` (one packer per folder) and `.parts` (the plan, the videos' sizes and one record per finished shard).
"""

import json
import logging
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from svdata2vec.shards.annotations import DataSet, Skipped
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.errors import UserError, WorkerDiedError, readable
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.lock import folder_lock
from svdata2vec.shards.packing.crashes import find_crashing_clips, load_refused
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.packing.plan import components_of, fingerprint, make_plan, remove_leftovers, shard_tasks, start_or_resume
from svdata2vec.shards.packing.shard import PARTS, ShardRecord, ShardTask, pack_shard, shard_name, write_error
from svdata2vec.shards.reading.manifest import (
    MANIFEST_NAME,
    PROGRAM,
    SKIPPED_NAME,
    Manifest,
    ShardEntry,
    build_index,
    load_index,
)
from svdata2vec.shards.reading.overlap import doubles, overlaps
from svdata2vec.shards.reading.sums import save_head
from svdata2vec.shards.shown import public, shown, some_of
from svdata2vec.shards.split_names import alike_names, unusual_names
from svdata2vec.shards.times import Times

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Progress of a packing, for display. `step_seconds` are summed over workers.

    Counts that end in `_done` include clips of earlier runs, which `resumed_*` counts alone; times and rates are of this run.
    """

    clips_total: int
    clips_done: int = 0
    clips_skipped: int = 0
    frames_done: int = 0
    bytes_done: int = 0
    resumed_clips: int = 0
    resumed_frames: int = 0
    elapsed_seconds: float = 0.0
    step_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, record: ShardRecord, times: Times | None) -> None:
        """Count one finished shard; `times` None = it was finished by an earlier run."""
        frames = sum(row[2] for row in record.rows)
        self.clips_done += len(record.rows)
        self.clips_skipped += len(record.skipped)
        self.frames_done += frames
        self.bytes_done += record.bytes
        if times is None:
            self.resumed_clips += len(record.rows) + len(record.skipped)
            self.resumed_frames += frames
        for name, seconds in (times.seconds if times else {}).items():
            self.step_seconds[name] += seconds

    @property
    def clips_read(self) -> int:
        """Clips that were packed or left out."""
        return self.clips_done + self.clips_skipped

    @property
    def frames_per_second(self) -> float:
        """Frames that this run packed per second of it."""
        return (self.frames_done - self.resumed_frames) / max(self.elapsed_seconds, 1e-9)

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate at this run's pace; None before its first clips."""
        left, here = self.clips_total - self.clips_read, self.clips_read - self.resumed_clips
        if not left:
            return 0.0
        return self.elapsed_seconds * left / here if here else None


def pack(dataset: DataSet, out: str | Path, options: PackOptions | None = None,
         progress: Callable[[Progress], None] | None = None) -> Manifest:
    """Pack `dataset` into the folder `out` and return its manifest; `progress` is called after every shard.

    Clips that cannot be packed are listed with their reason in `out/skipped.jsonl`. A script that uses several
    `options.workers` must call this under `if __name__ == "__main__":`, as workers import the script.

    Raises UserError for a bad data set, for a folder that is in use or was packed from other input, and if no clip could be
    packed; MachineError if the disk is full, WriteFailedError if the folder cannot be created.
    """
    options = options or PackOptions()
    dataset.check()
    labels = Counter(clip.label for clip in dataset.clips)
    classes = {name: labels[label] for label, name in enumerate(dataset.classes)}
    for remark in [*unusual_names(dataset.splits), *alike_names("classes", classes)]:
        log.warning("%s", remark)
    root = Path(out)
    make_folder(root)
    try:
        with folder_lock(root, "packing into"):
            plan = make_plan(dataset, options)
            if (root / MANIFEST_NAME).exists():
                return _already_packed(root, dataset, plan, options)
            components_of(dataset, options.codec)  # refuses a codec before a plan with it is written to the folder
            start_or_resume(root, dataset, plan, options)
            records = _pack_shards(root, dataset, options, progress)
            return _finish(root, dataset, options, plan, records)
    except OSError as error:
        raise write_error(root, error) from error


def _already_packed(root: Path, dataset: DataSet, plan: dict[str, object], options: PackOptions) -> Manifest:
    """The finished set, if it was packed from this input; otherwise UserError, with advice."""
    manifest = Manifest.load(root)
    if not options.resume:
        raise UserError(f"{root}: holds a finished data set ({manifest.dataset}); choose another folder or delete it")
    if manifest.created_with != PROGRAM:
        raise UserError(f"{root}: holds a data set packed by {manifest.created_with}, which {PROGRAM} reads but does not "
                        "compare with its own input; keep it, or pack into another folder")
    packed = {key.decode("ascii", "replace") for key in load_index(root, manifest)["key"].tolist()}
    lacking = [clip for clip in dataset.clips if clip.key not in packed]
    lacks = f"{len(lacking)} clips of this input, e.g. {lacking[0].key}, are not in it (see {SKIPPED_NAME})" if lacking else ""
    if manifest.fingerprint != fingerprint(plan):
        why = _coded_otherwise(manifest, options)
        why = f"with other options: {why}" if why else (
            f"from other annotations or with other options, or videos have changed since{lacks and '; ' + lacks}")
        raise UserError(f"{root}: holds a data set packed {why}; nothing is added to a finished set: pack into another folder, "
                        "or delete this one")
    kept = f"; {lacks}: to try them again, pack into another folder" if lacks else ""
    log.info("%s: finished already, kept%s", root, kept)
    shutil.rmtree(root / PARTS, ignore_errors=True)  # left by a run that was killed right after writing the manifest
    return manifest


def _coded_otherwise(manifest: Manifest, options: PackOptions) -> str:
    """The encoding options of a finished set that differ from `options`; empty if none does."""
    was = {"codec": manifest.codec, "size": manifest.packed_size, **manifest.codec_options}
    if manifest.codec == "jpeg" and "chroma" not in was:
        was["chroma"] = "not noted (444, but for `--chroma 420`)"
    now = {"codec": options.codec, "size": options.packed_size, **options.coding}
    return ", ".join(f"{name} was {was[name]}, now {now[name]}" for name in was if was[name] != now.get(name, was[name]))


def _pack_shards(root: Path, dataset: DataSet, options: PackOptions,
                 progress: Callable[[Progress], None] | None) -> list[ShardRecord]:
    start = time.monotonic()
    state = Progress(len(dataset.clips))
    records: dict[int, ShardRecord] = {}

    def note(record: ShardRecord, times: Times | None) -> None:
        records[record.number] = record
        state.add(record, times)
        state.elapsed_seconds = time.monotonic() - start
        if progress is not None:
            progress(state)

    def missing() -> Iterator[ShardTask]:
        for task in shard_tasks(root, dataset, options, refused):
            if task.number in records:
                continue
            record = ShardRecord.load(root, task.number)
            if record is None:
                yield task
            else:
                note(record, None)

    refused = load_refused(root / PARTS)
    if options.workers == 1 and options.cluster is None:  # it would crash here, as it may have before
        find_crashing_clips(root / PARTS, dataset, options, refused)
    while True:
        try:
            with closing(run_tasks(pack_shard, missing(), options.workers, options.cluster)) as packed:
                for record, times in packed:
                    note(record, times)
            return [records[number] for number in sorted(records)]
        except WorkerDiedError:
            if not find_crashing_clips(root / PARTS, dataset, options, refused):
                raise
            remove_leftovers(root)


def _finish(root: Path, dataset: DataSet, options: PackOptions, plan: dict[str, object],
            records: list[ShardRecord]) -> Manifest:
    """Write skipped.jsonl, the index and, last, the manifest; then remove the files that only resuming needs."""
    refused = [entry for record in records for entry in record.skipped]
    skipped = [*dataset.skipped, *refused]
    _write_skipped(root, dataset, skipped)
    full = [record for record in records if record.rows]
    if not full:
        raise UserError(f"{root}: none of {len(dataset.clips)} clips could be packed, see {SKIPPED_NAME}; the first: "
                        f"{refused[0].reason}")
    components = components_of(dataset, options.codec)
    rows = [(key, shard, *facts) for shard, record in enumerate(full) for key, *facts in record.rows]
    packed = {row[0] for row in rows}
    without_joints = {key for record in full for key in record.without_joints}
    manifest = Manifest(
        dataset=readable(dataset.name), codec=options.codec, packed_size=options.packed_size,
        layout=dataset.layout, classes=dataset.classes, components=components,
        splits={name: [key for key in keys if key in packed] for name, keys in dataset.splits.items()},
        without_joints=tuple(number for number, row in enumerate(rows) if row[0] in without_joints),
        shards=tuple(ShardEntry(shard_name(r.number), r.sha256, r.bytes, len(r.rows)) for r in full),
        fingerprint=fingerprint(plan),
        codec_options=options.coding,
        split_classes=dataset.split_classes, published=dataset.published, view=dataset.view,
    )
    pictures = {key: same for record in full for key, same in record.pictures.items() if same}
    _report(manifest, skipped, full)
    for overlap in overlaps(manifest.splits, pictures):
        log.warning("splits %s and %s: %s", overlap.first, overlap.second, overlap)
    if alike := [f"{other} = {first}" for first, other in doubles(manifest.splits, pictures)]:
        log.warning("clips of the same pictures as another one of their split: %s", some_of(alike))
    manifest = save_head(root, manifest, build_index(rows, len(components)), [record.sums for record in full])
    shutil.rmtree(root / PARTS, ignore_errors=True)  # an abandoned worker may still write into it
    return manifest


def _write_skipped(root: Path, dataset: DataSet, skipped: list[Skipped]) -> None:
    """One JSON line per clip that is not packed: key, reason, source, and the splits that lack it."""
    splits_of: dict[str, list[str]] = {}
    for name, keys in dataset.splits.items():
        for key in keys:
            splits_of.setdefault(key, []).append(name)
    lines = [json.dumps({**asdict(entry), "splits": splits_of.get(entry.key, [])}, ensure_ascii=False) + "\n"
             for entry in sorted(skipped, key=lambda entry: (entry.key, entry.reason))]
    write_atomically(root / SKIPPED_NAME, readable(public("".join(lines))).encode())


def _report(manifest: Manifest, skipped: list[Skipped], records: Sequence[ShardRecord]) -> None:
    joined = {key: count for record in records for key, count in record.joined.items()}
    early = {key: frames for record in records for key, frames in record.early.items()}
    if early:
        first = min(early)
        log.warning("in %d clips nobody is found in the last quarter or more, e.g. in %s after %d of %d frames: if the program "
                    "that found the poses was stopped, or skipped frames, find them again", len(early), first, *early[first])
    if joined:
        some = ", ".join(sorted(joined)[:3])
        log.info("in %d clips %d pieces of a person's track were joined to others, e.g. in %s", len(joined),
                 sum(joined.values()), some)
    if skipped:
        log.warning("%d clips were left out, see %s; the first, %s: %s", len(skipped), SKIPPED_NAME, skipped[0].key,
                    shown(skipped[0].reason))
    for difference in manifest.unlike_published():
        log.warning("%s", difference)
