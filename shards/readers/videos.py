"""Reads own videos without skeletons: a folder class/video.mp4 (or split/class/video.mp4), or a CSV (path,label,split).

The whole picture is every clip's box, and there are no persons: for training on RGB alone, or until
tools/pose/extract_poses.py has made a pickle.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.media import VIDEO_EXTENSIONS
from svdata2vec.shards.video import open_bytes

SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


def read_video_folder(root: str | Path, *, name: str | None = None, joints: str = "coco17") -> DataSet:
    """Videos in a folder per class, without skeletons: for training on RGB alone.

    With folders train, val, test above those of the classes, these are the splits; else all clips are in train.

    Args:
        root: Folder with class/video.mp4, or split/class/video.mp4.
        name: Name of the data set; by default that of the folder.
        joints: Joint layout for the manifest (there are no joints), as of `shard pyskl`.

    Raises:
        UserError: there is no such folder, or a video lies elsewhere in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with a sub-folder of videos per class")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)
    if not paths:
        raise UserError(f"{root}: no video below this folder; expected class/video.mp4")
    found = [_place(path.relative_to(root)) for path in paths]
    classes = tuple(sorted({label for _, label in found}))
    clips = [ClipAnnotation(safe_key(str(path.relative_to(root).with_suffix(""))), classes.index(label), path)
             for path, (_, label) in zip(paths, found, strict=True)]
    splits: dict[str, list[str]] = {}
    for clip, (split, _) in zip(clips, found, strict=True):
        splits.setdefault(split, []).append(clip.key)
    return DataSet(name or root.name, layout(joints), classes, splits, clips)


def _place(path: Path) -> tuple[str, str]:
    """(split, class) of a video by its folders."""
    folders = path.parts[:-1]
    if len(folders) == 2 and folders[0] in SPLIT_FOLDERS:
        return folders[0], folders[1]
    if len(folders) == 1 and folders[0] not in SPLIT_FOLDERS:
        return "train", folders[0]
    raise UserError(f"{path}: expected class/video.mp4, or one of {', '.join(SPLIT_FOLDERS)} above the class folders")


def read_video_csv(table: str | Path, *, name: str | None = None, joints: str = "coco17",
                   classes: Sequence[str] | None = None) -> DataSet:
    """Videos listed in a table, without skeletons: for training on RGB alone.

    Args:
        table: CSV file, or its URL, with the header path,label,split. Paths are URLs, or relative to the table's folder;
            labels are class names, or numbers from 0 if all are numbers; without a split a clip is in train. Further
            columns are ignored.
        name: Name of the data set; by default that of the table.
        joints: Joint layout for the manifest (there are no joints), as of `shard pyskl`.
        classes: Class names in the order of the labels; by default those that occur, sorted.

    Raises:
        UserError: the table has another header, a line without path or label, or a label that is not among the classes.
    """
    with open_bytes(table) as file:
        rows = list(csv.DictReader(io.StringIO(file.read().decode("utf-8-sig"))))
    if not rows or not {"path", "label"} <= set(rows[0]):
        raise UserError(f"{table}: expected a header 'path,label,split' and at least one line")
    for line, row in enumerate(rows, start=2):
        if not row["path"] or not row["label"]:
            raise UserError(f"{table}, line {line}: path or label is empty")
    labels, names = _labels([row["label"].strip() for row in rows], classes, table)
    clips: list[ClipAnnotation] = []
    splits: dict[str, list[str]] = {}
    for row, label in zip(rows, labels, strict=True):
        path = row["path"].strip()
        video = path if "://" in path else str(Path(str(table)).parent / path)
        clips.append(ClipAnnotation(safe_key(str(Path(path).with_suffix(""))), label, video))
        splits.setdefault((row.get("split") or "train").strip(), []).append(clips[-1].key)
    return DataSet(name or Path(str(table)).stem, layout(joints), names, splits, clips)


def _labels(words: list[str], classes: Sequence[str] | None, table: str | Path) -> tuple[list[int], tuple[str, ...]]:
    if classes is not None:
        unknown = next((word for word in words if word not in classes), None)
        if unknown is not None:
            raise UserError(f"{table}: label {unknown!r} is not among the classes {', '.join(classes)}")
        return [list(classes).index(word) for word in words], tuple(classes)
    if all(word.isdigit() for word in words):
        labels = [int(word) for word in words]
        return labels, tuple(f"class_{label}" for label in range(max(labels) + 1))
    names = tuple(sorted(set(words)))
    return [names.index(word) for word in words], names
