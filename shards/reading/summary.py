"""Summary of a packing: the table at the end of `svdata2vec shard`, and `summary.json` in the folder."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from svdata2vec.shards.atomic import read_json_lines, write_atomically
from svdata2vec.shards.boxes import View
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.manifest import SKIPPED_NAME, SUMMARY_NAME
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.stats import SplitStatistics, corner_report, set_statistics
from svdata2vec.shards.shown import shown, some_of
from svdata2vec.shards.split_names import meant

MOST_CLASSES = 20  # listed by name in the table; the file has all


@dataclass(frozen=True)
class LeftOut:
    """Clips that were left out for one kind of reason, and the file (or name) of one of them."""

    reason: str
    clips: int
    example: str


@dataclass(frozen=True)
class Summary:
    """Figures of a packed set. Shares are 0..1.

    Attributes:
        read: clips of the source, packed or left out.
        persons_per_clip: persons with any joint -> clips.
        missing_joints: share among the persons that a model reads; None for videos without skeletons.
        bad_joints: impossible joints, which were stored as missing.
        without_joints: clips that have persons, but no joint.
        reach: as in `SetStatistics`.
    """

    dataset: str
    view: View
    read: int
    packed: int
    frames: int
    bytes: int
    left_out: list[LeftOut]
    persons_per_clip: dict[int, int]
    missing_joints: float | None
    bad_joints: int
    without_joints: int
    reach: tuple[float, float]
    splits: dict[str, SplitStatistics]


def summarise(root: Path) -> Summary:
    """The figures of a finished folder; reads every clip's joints, but no pixel."""
    shards, skipped = ShardSet.open(root), _skipped(root)
    figures, manifest = set_statistics(shards), shards.manifest
    joints = list(figures.missing_joints.values())
    return Summary(
        dataset=manifest.dataset, view=manifest.view, read=figures.clips + len(skipped), packed=figures.clips,
        frames=figures.frames, bytes=figures.bytes, left_out=_by_reason(skipped), persons_per_clip=figures.persons_per_clip,
        missing_joints=None if manifest.view == "picture" else round(sum(joints) / len(joints), 6),
        bad_joints=figures.bad_joints, without_joints=len(manifest.without_joints or ()), reach=figures.reach,
        splits=figures.splits,
    )


def write_summary(root: Path) -> Summary:
    """The figures of a finished folder, which are also written there as `summary.json`."""
    summary = summarise(root)
    write_atomically(root / SUMMARY_NAME, json.dumps(asdict(summary), indent=1, ensure_ascii=False).encode() + b"\n")
    return summary


def _skipped(root: Path) -> list[dict[str, str]]:
    path = root / SKIPPED_NAME
    try:
        entries = read_json_lines(path) if path.is_file() else []
        return [{name: str(entry[name]) for name in ("key", "reason", "source")} for entry in entries]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); expected a JSON object with key, reason, source per line") from error


def _by_reason(skipped: list[dict[str, str]]) -> list[LeftOut]:
    """Kinds of reasons, the most frequent first."""
    kinds = [kind_of(entry["reason"], entry["key"], entry["source"]) for entry in skipped]
    first = {kind: entry["source"] or entry["key"] for kind, entry in reversed([*zip(kinds, skipped, strict=True)])}
    counts = sorted(Counter(kinds).items(), key=lambda each: (-each[1], each[0]))
    return [LeftOut(kind, clips, first[kind]) for kind, clips in counts]


def kind_of(reason: str, key: str, source: str) -> str:
    """A reason without the details of its clip: file and clip names, numbers, quoted text, the advice at its end."""
    line = re.fullmatch(r"line \d+", key)  # of a table: only its number is a detail
    for name in sorted(filter(None, {source, Path(source).name, "" if line else key}), key=len, reverse=True):
        reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "", reason)
    reason = re.sub(r"^(clip\s*)?[:,]\s*", "", reason.strip())
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "...", re.split(r"[;\n]", reason)[0])
    reason = re.sub(r"(?<!\S)/\S+", "...", reason)  # another file's path
    return " ".join(re.sub(r"(?<!mp)\d+(\.\d+)?", "N", reason).split()) or "no reason given"


def table(root: Path, summary: Summary) -> str:
    """The figures for the terminal."""
    rows = [
        ("read", f"{summary.read:,} clips"),
        ("packed", f"{summary.packed:,} clips, {summary.frames:,} frames, {summary.bytes / 2**20:,.1f} MiB"),
        ("left out", f"{summary.read - summary.packed:,} clips" + (f", see {SKIPPED_NAME}" if summary.left_out else "")),
        *(("", f"{kind.clips:,} x {kind.reason}, e.g. {kind.example}") for kind in summary.left_out),
        *_persons(summary),
        *((f"split {name}", _split(split) + _doubt(name)) for name, split in summary.splits.items()),
    ]
    lines = [f"{root}: {summary.dataset}", *(f"  {name:<15} {text}".rstrip() for name, text in rows)]
    return "\n".join(map(shown, lines)) + "\n"


def _persons(summary: Summary) -> list[tuple[str, str]]:
    if summary.view == "picture":
        return [("shows", "whole pictures: videos without skeletons")]
    persons = ", ".join(f"{persons}: {clips:,} clips" for persons, clips in summary.persons_per_clip.items())
    more = [f"{summary.bad_joints:,} could not be true"] if summary.bad_joints else []
    more += [f"{summary.without_joints:,} clips have none"] if summary.without_joints else []
    corner = corner_report(summary.reach)
    return [("persons", persons), ("joints missing", "; ".join([f"{100 * (summary.missing_joints or 0):.2f} %", *more])),
            *([] if corner is None else [("but look", corner)])]


def _doubt(name: str) -> str:
    near = meant(name)
    return "" if near is None else f"; did you mean {near}?"


def _split(split: SplitStatistics) -> str:
    """A split's clips and classes; of many classes only the smallest and the largest. Classes without a clip are named."""
    present = {label: clips for label, clips in split.clips_per_class.items() if clips}
    absent = [label for label, clips in split.clips_per_class.items() if not clips]
    published = f" (published: {split.published:,})" if split.published is not None else ""
    without = f" (without {some_of(absent)})" if present and absent else ""
    head = f"{split.clips:,} clips{published}, {len(present)} of {len(split.clips_per_class)} classes{without}"
    if len(present) <= MOST_CLASSES:
        return ": ".join(filter(None, [head, ", ".join(f"{label} {clips:,}" for label, clips in present.items())]))
    few, most = (choose(present, key=lambda label: present[label]) for choose in (min, max))
    return f"{head}: from {few} {present[few]:,} to {most} {present[most]:,}"
