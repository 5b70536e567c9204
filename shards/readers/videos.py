"""Reads your own videos without skeletons: a folder class/video.mp4 (or split/class/video.mp4), or a CSV (path,label,split).

The whole picture is every clip's box, and there are no persons: for training on RGB alone, or until
tools/pose/extract_poses.py has made a pickle.
"""

import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Skipped, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.labels import class_names, read_labels
from svdata2vec.shards.readers.media import identity, video_files, without_extension
from svdata2vec.shards.readers.splits import split_by as made_splits
from svdata2vec.shards.readers.text import existing_spelling, read_table, spelled
from svdata2vec.shards.readers.walk import Walk
from svdata2vec.shards.shown import some_of
from svdata2vec.shards.split_names import meant

COLUMNS = ("path", "label", "split")  # of a table
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")

log = logging.getLogger(__name__)


def read_video_folder(root: str | Path, *, name: str | None = None, joints: str = "coco17",
                      split_by: str | None = None) -> DataSet:
    """Videos in a folder per class, without skeletons: for training on RGB alone.

    With folders train, val, test above those of the classes, these are the splits; else all clips are in train, as are those
    of class folders beside them, which a warning names. A video elsewhere is listed in skipped.jsonl. A folder without videos
    is no class; a warning names it.

    Args:
        root: Folder (or its URL) with class/video.mp4, or split/class/video.mp4.
        name: Name of the data set; by default that of the folder.
        joints: Joint layout for the manifest (there are no joints), as of `shard pyskl`.
        split_by: Make splits train and val instead: random, or random:0.2 with the share of clips for val.

    Raises:
        UserError: there is no such folder, or no video in it.
    """
    found = video_files(root)
    empty = _without_video(found)
    if empty:
        log.warning("%s: folders without a video, which make no class: %s", root, some_of(empty, 20))
    skipped = list(found.left_out)
    places: dict[str, tuple[str, str]] = {}
    for path in found.files:
        try:
            places[path] = _place(found.relative(path))
        except UserError as error:
            skipped.append(Skipped(found.relative(path), str(error), path))
    alone = {label for path, (_, label) in places.items() if found.relative(path).count("/") == 1}  # in no split's folder
    if alone and any(found.relative(path).count("/") == 2 for path in places):
        log.warning("%s: folders beside those of the splits, whose videos are in train: %s", root, some_of(sorted(alone), 20))
    classes = tuple(sorted({label for _, label in places.values()}))
    number = {label: place for place, label in enumerate(classes)}

    def make(path: str) -> ClipAnnotation:
        return ClipAnnotation(safe_key(without_extension(found.relative(path))), number[places[path][1]], path)

    clips = clips_of(places, make, lambda path: (found.relative(path), path), skipped)
    splits = _splits(clips, {path: split for path, (split, _) in places.items()}, split_by)
    return DataSet(name or _as_path(found.root).name, layout(joints), classes, splits, clips, skipped)


def _splits(clips: Sequence[ClipAnnotation], split_of: Mapping[str, str], split_by: str | None) -> dict[str, list[str]]:
    """Split -> keys: the splits of the videos, or made by `split_by`."""
    if split_by is not None:
        return made_splits(split_by, clips)
    splits: dict[str, list[str]] = {}
    for clip in clips:
        splits.setdefault(split_of[str(clip.video)], []).append(clip.key)
    return splits


def _without_video(found: Walk) -> list[str]:
    """The folders where classes or splits are expected that hold no video, with a file that they hold instead."""
    with_video = {folder for path in found.files for folder in PurePosixPath(found.relative(path)).parents}
    held: dict[PurePosixPath, str] = {}
    for path in map(PurePosixPath, map(found.relative, found.others)):
        for folder in path.parents:
            held.setdefault(folder, path.name)
    empty = {*map(PurePosixPath, map(found.relative, found.folders)), *held} - with_video
    return [f"{folder} (found {held.get(folder, 'nothing')})" for folder in sorted(empty)
            if len(folder.parts) == 1 or (len(folder.parts) == 2 and folder.parts[0] in SPLIT_FOLDERS)]


def _place(relative: str) -> tuple[str, str]:
    """(split, class) of a video by its folders."""
    folders = [folder.strip() for folder in spelled(relative).split("/")[:-1]]  # as labels in tables and lists of classes are
    if len(folders) == 2 and folders[0] in SPLIT_FOLDERS:
        return folders[0], folders[1]
    if len(folders) == 1 and folders[0] not in SPLIT_FOLDERS:
        return "train", folders[0]
    near = meant(folders[0]) or folders[0].lower() if len(folders) == 2 else ""
    hint = f"; did you mean {near}?" if near in SPLIT_FOLDERS else ""
    raise UserError(
        f"{relative}: expected class/video.mp4, or one of {', '.join(SPLIT_FOLDERS)} above the class folders{hint}"
    )


def read_video_csv(table: str | Path, *, name: str | None = None, joints: str = "coco17",
                   classes: str | Path | Sequence[str] | None = None, split_by: str | None = None) -> DataSet:
    """Videos listed in a table, without skeletons: for training on RGB alone.

    Args:
        table: CSV file, or its URL, with the header path,label,split, divided by commas, semicolons, tabs or |. Paths are
            absolute, relative to the table's folder, or URLs; labels are class names, or numbers from 0 (from 1 where no 0,
            but every other number occurs). Splits are called train, val (or valid, validation) and test, perhaps with a
            protocol in front (xsub_train); other names are kept and logged, but no preset looks for them (Train and train
            are two, which is logged, too). Without a split a clip is in train. Rows without a label (empty, -1) are listed in
            skipped.jsonl. Further columns are not read, as the log says; text in one that the header does not name is an
            error.
        name: Name of the data set; by default that of the table.
        joints: Joint layout for the manifest (there are no joints), as of `shard pyskl`.
        classes: Class names in the order of the labels, or a file with one per line; by default those that occur, sorted.
        split_by: Make splits train and val instead: random, or random:0.2 with the share of clips for val.

    Raises:
        UserError: the table has another header, or no row.
    """
    rows = read_table(table, ("path", "label"))
    _log_unread(table, dict.fromkeys(column for _, row in rows for column in row))
    labels = read_labels([row.get("label") for _, row in rows], None if classes is None else class_names(classes))
    log.info("%s: %s", table, labels.said)
    videos = [_resolved(row["path"], table) if row.get("path") else "" for _, row in rows]
    keys = _keys([video for video in videos if video], str(table))
    seen: dict[str, int] = {}
    split_of: dict[str, str] = {}
    split_of_line = {f"line {line}": row.get("split") or "train" for line, row in rows}
    skipped: list[Skipped] = []

    def make(place: int) -> ClipAnnotation:
        (line, _), label, video = rows[place], labels.of[place], videos[place]
        if not video:
            raise UserError(f"{table}, line {line}: the path is empty")
        if isinstance(label, str):
            raise UserError(f"{table}, line {line}: {label}")
        first = seen.setdefault(identity(video), line)
        if first != line:
            raise UserError(f"{table}, line {line}: '{rows[place][1]['path']}' is the file of line {first}, which is taken")
        split_of.setdefault(video, split_of_line[f"line {line}"])
        return ClipAnnotation(keys[video], label, video)

    clips = clips_of(range(len(rows)), make, lambda place: (f"line {rows[place][0]}", videos[place] or str(table)), skipped)
    splits = _splits(clips, split_of, split_by)
    for entry in skipped if split_by is None else ():
        if entry.key in split_of_line:
            splits.setdefault(split_of_line[entry.key], []).append(entry.key)
    return DataSet(name or Path(str(table)).stem, layout(joints), labels.classes, splits, clips, skipped)


def _log_unread(table: str | Path, columns: Iterable[str]) -> None:
    """Log the columns of a table that are not read; with a warning if one of them seems to be that of the splits."""
    unread = [column for column in columns if column not in COLUMNS]
    near = difflib.get_close_matches("split", unread, n=1)
    if near and "split" not in columns:
        log.warning("%s: no column split, all clips are in train; did you mean %r?", table, near[0])
    if unread:
        log.info("%s: columns that are not read: %s", table, ", ".join(unread))


def _resolved(path: str, table: str | Path) -> str:
    """A video's path or URL, from its spelling in a table's row."""
    path = path.removeprefix("file://")
    if "://" in path:
        return path
    if "://" in str(table):
        return f"{str(table).rpartition('/')[0]}/{path}"
    folder = Path(str(table)).parent
    return os.path.normpath(folder / existing_spelling(path, folder))


def _keys(videos: Sequence[str], table: str) -> dict[str, str]:
    """Keys by video: its path below the table's folder; for videos elsewhere, below the common folder of these."""
    home = _as_path(table).parent
    places = {video: _as_path(video) for video in videos}
    elsewhere = [str(place.parent) for place in places.values() if not place.is_relative_to(home)]
    common = os.path.commonpath(elsewhere) if elsewhere else ""
    return {video: safe_key(without_extension(str(place.relative_to(home if place.is_relative_to(home) else common))))
            for video, place in places.items()}


def _as_path(place: str) -> Path:
    """An absolute path; for a URL one that starts with its scheme, which no file has."""
    scheme, colon, rest = place.partition("://")
    return Path(f"/{scheme}:/", rest.lstrip("/")) if colon else Path(os.path.normpath(Path.cwd() / place))
