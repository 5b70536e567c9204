"""Reads the annotation pickle of pyskl and mmaction2; `read_pyskl` explains its format. M persons, T frames, V joints."""

import io
import logging
import os
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, Skipped, safe_key
from svdata2vec.shards.boxes import Box, union_box
from svdata2vec.shards.errors import ItemError, UserError, require_file
from svdata2vec.shards.layouts import COCO17, JointLayout, to_coco17
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.joint_order import choose_layout
from svdata2vec.shards.readers.labels import classes_beside, read_labels
from svdata2vec.shards.readers.media import VideoFolder, folders_of, plain_name, strange_folder
from svdata2vec.shards.readers.plain_pickle import load_plain
from svdata2vec.shards.readers.splits import split_by as made_splits
from svdata2vec.shards.readers.text import spelled
from svdata2vec.shards.video import open_bytes

MOST_METRES = 50  # largest coordinate from a depth camera; larger ones are pixels
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)  # for a frame without persons

log = logging.getLogger(__name__)


def load_pickle(path: str | Path) -> dict[str, Any]:
    """The pickle's dictionary; UserError if it is not one of this format."""
    require_file(path, "the annotation pickle")
    with open_bytes(path) as file:
        content = load_plain(io.BytesIO(file.read()) if "://" in str(path) else file, str(path))
    if isinstance(content, list):  # the format of older tools of mmaction, one pickle per split
        content = {"annotations": content}
    if not isinstance(content, dict) or "annotations" not in content:
        raise UserError(f"{path}: expected a dictionary with 'split' and 'annotations', or a list of annotations")
    entries = _plain(content["annotations"])
    if isinstance(entries, Mapping):  # {name: annotation}
        entries = [{"frame_dir": name, **entry} if isinstance(entry, Mapping) else entry for name, entry in entries.items()]
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise UserError(f"{path}: 'annotations' is of type {type(entries).__name__}, expected a list of dictionaries")
    if not entries:
        raise UserError(f"{path}: 'annotations' is empty")
    splits = content.get("split") or {}
    if not isinstance(splits, Mapping) or not all(isinstance(names, Collection) for names in splits.values()):
        raise UserError(f"{path}: 'split' is of type {type(splits).__name__}, expected {{name of a split: [frame_dir, ...]}}")
    classes = _plain(content.get("classes"))
    if classes is not None and not isinstance(classes, list | tuple | np.ndarray):
        raise UserError(f"{path}: 'classes' is of type {type(classes).__name__}, expected a list of the names in the order of "
                        "the labels")
    plain = [{name: _plain(value) for name, value in entry.items()} if isinstance(entry, Mapping) else entry
             for entry in entries]
    listed = {str(name): sorted(names, key=str) if isinstance(names, Set) else list(names) for name, names in splits.items()}
    return {**content, "annotations": plain, "split": listed, "classes": classes}


def _plain(value: Any) -> Any:
    """An array as one of NumPy's own class, or as the Python values that it holds; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return value.tolist() if value.dtype == object else np.asarray(value)


def read_pyskl(pickle_path: str | Path, videos: str | Path, *, name: str | None = None,
               joints: str | None = None, as_coco17: bool = False,
               classes: str | Path | Sequence[str] | None = None, split_by: str | None = None) -> DataSet:
    """Videos, and a pickle with the skeletons of their persons.

    The pickle holds a dictionary of plain values and NumPy arrays:
      - split: {name of a split: [frame_dir of each of its clips]}; may be absent with --split-by
      - annotations: a list with one dictionary per clip

    Or it holds that list alone.

    A clip of M persons, T frames and V joints has the keys:
      - frame_dir: file name of its video without extension (or filename, with one); where names repeat in sub-folders,
        with the folder in front: walk/001, which never finds run/001.mp4 where both names and videos are in folders
      - label: number of its class, from 0 (or its name)
      - total_frames: T, as many as its video has
      - keypoint: array (M, T, V, 2), x and y of every joint in pixels of img_shape, both 0 where it is missing
      - img_shape, or original_shape: (height, width) of the picture in whose pixels the joints are; without it, the
        video's own size. The video may be a scaled copy; one of another shape, or turned, is left out
      - keypoint_score: array (M, T, V), confidence of every joint; may be absent
      - bboxes: array (T, 4), x1, y1, x2, y2 of a box around all persons in pixels of the video, or (T, 5) with a score; or
        (T, M, 4), (T, M, 5) with a box for each; without it, the box around the joints
      - subject, camera, setup: numbers; may be absent

    Clips that cannot be used, have no video, or have the video of another clip are listed in skipped.jsonl with the reason.

    Args:
        pickle_path: The pickle, a path or URL.
        videos: Folder of the videos, or its URL; sub-folders are searched.
        name: Name of the data set; by default what the pickle says (its key name), or else the file's.
        joints: Joint layout: coco17, kinect25, smarthome15, openpose18 (COCO-18), body25, h36m17, halpe26 or mediapipe33. By
            default coco17 for 17 joints, as the format says, and the only one with as many otherwise; 25 must be named.
        as_coco17: Keep only the 17 joints of COCO, by name; those that the layout lacks are missing.
        classes: Class names in the order of the labels, or a file with one per line; by default those in the pickle
            (its key classes), else classes.txt beside it where that has as many names as there are labels, else
            class_0, class_1 and so on.
        split_by: Make splits train and val instead of the pickle's: by subject, camera, setup or random; random:0.2 names
            the share of clips for val. The clips of one subject, camera or set-up stay together.

    Raises:
        UserError: the pickle is not of this format, or there is no video.
    """
    found = read_annotations(pickle_path, videos, name=name, joints=joints, classes=classes)
    if as_coco17:
        found = replace(found, clips=[_as_coco17(clip, found.layout) for clip in found.clips], layout=COCO17)
    if split_by is not None:
        found = replace(found, splits=made_splits(split_by, found.clips))
    _require_splits(found, pickle_path)
    return found


def _require_splits(found: DataSet, path: str | Path) -> None:
    """UserError if there are clips but none is in a split: there would be nothing to train on."""
    listed = [(key, split) for split, keys in found.splits.items() for key in keys]
    clips = {clip.key for clip in found.clips}
    if clips and clips.isdisjoint(key for key, _ in listed):
        why = "names no splits"
        if listed:
            why = f"no clip is in a split, {listed[0][1]} begins with {listed[0][0]}, a clip is called {found.clips[0].key}"
        raise UserError(f"{path}: {why}; make them with --split-by subject (or camera, setup, random:0.2)")


def read_annotations(pickle_path: str | Path, videos: str | Path, *, name: str | None, joints: str | None,
                     classes: str | Path | Sequence[str] | None) -> DataSet:
    """`read_pyskl`, but the result may have no splits."""
    content = load_pickle(pickle_path)
    folder = VideoFolder(videos)
    annotations = content["annotations"]
    usable = [entry for entry in annotations if isinstance(entry, Mapping)]
    field = "filename" if usable and "filename" in usable[0] else "frame_dir"
    base = _common_folder([entry.get(field) for entry in usable])

    def plain(name: Any) -> Any:
        return folder.name_of(name.removeprefix(f"{base}/") if base else name) if isinstance(name, str) else name

    annotations = [{**entry, field: plain(entry[field])} if isinstance(entry, Mapping) and field in entry else entry
                   for entry in annotations]
    values = [entry.get("label") if isinstance(entry, Mapping) else None for entry in annotations]
    labels = read_labels(values, classes_beside(classes, content.get("classes"), values, pickle_path))
    log.info("%s: %s", pickle_path, labels.said)
    skipped = list(folder.left_out)
    names = {str(entry.get(field)) for entry in annotations if isinstance(entry, Mapping)}

    def make(item: tuple[Any, int | str]) -> ClipAnnotation:
        entry, label = item
        clip = clip_of(entry, field, folder, names)
        if isinstance(label, str):
            raise UserError(label)
        return replace(clip, label=label)

    clips = clips_of(zip(annotations, labels.of, strict=True), make,
                     lambda item: (_key_of(item[0], field), str(pickle_path)), skipped)
    clips = _one_per_video(clips, skipped)
    clips = _in_their_folders(clips, {safe_key(name): spelled(name) for name in names}, folder, skipped)
    poses = [clip.pose_MTVC for clip in clips if clip.pose_MTVC is not None]
    joint_layout = choose_layout(poses, joints, "coco17", pickle_path)
    listed = {split: [plain(name) for name in names] for split, names in content["split"].items()}
    splits = _splits(listed, {_key_of(entry, field) for entry in annotations}, pickle_path, skipped)
    says = content.get("name")
    name = name or (says if isinstance(says, str) and says else PurePosixPath(str(pickle_path)).stem)
    return DataSet(name, joint_layout, labels.classes, splits, clips, skipped)


def _one_per_video(clips: Sequence[ClipAnnotation], skipped: list[Skipped]) -> list[ClipAnnotation]:
    """Of several clips whose names lead to one video, the one whose folders fit, else the first; the others are `skipped`."""
    of_video: dict[str, list[ClipAnnotation]] = {}
    for clip in clips:
        of_video.setdefault(str(clip.video), []).append(clip)
    taken = {video: max(alike, key=_fits_with_folders) for video, alike in of_video.items()}
    skipped += [Skipped(clip.key, f"{video} is the video of '{taken[video].key}', which is taken", video)
                for video, alike in of_video.items() for clip in alike if clip is not taken[video]]
    return [clip for clip in clips if clip is taken[str(clip.video)]]


def _in_their_folders(clips: Sequence[ClipAnnotation], name_of: Mapping[str, str], folder: VideoFolder,
                      skipped: list[Skipped]) -> list[ClipAnnotation]:
    """The clips without those whose video belongs to another clip of the same name; these are `skipped`. `name_of`: by key."""
    shared = folder.folders() & folders_of(name_of.values())
    kept = []
    for clip in clips:
        video, name = str(clip.video), name_of[clip.key]
        other = strange_folder(name, [spelled(folder.relative(video))], shared)
        if other is None:
            kept.append(clip)
        else:
            reason = f"{video}, which has the same name, is of folder {other!r}; put videos into folders as the annotations are"
            skipped.append(Skipped(clip.key, f"no video '{name}' below {folder.root}: {reason}", video))
    return kept


def _fits_with_folders(clip: ClipAnnotation) -> bool:
    """Whether the clip's name is the end of its video's path, with all its folders."""
    parts = PurePosixPath(spelled(plain_name(clip.video))).parts
    return safe_key("/".join(parts[-(1 + clip.key.count("%2F")) :])) == clip.key


def _common_folder(names: Sequence[Any]) -> str:
    """The common folder of the names that are absolute paths; empty if none is. Keys are relative to it."""
    parents = [str(PurePosixPath(name).parent) for name in names if isinstance(name, str) and name.startswith("/")]
    return os.path.commonpath(parents) if parents else ""


def _splits(splits: Mapping[str, Sequence[Any]], known: set[str], path: str | Path,
            skipped: list[Skipped]) -> dict[str, list[str]]:
    """Split -> keys, each once. Names without annotation are added to `skipped`, each once."""
    keys: dict[str, list[str]] = {}
    absent: dict[str, list[str]] = {}
    for split, names in splits.items():
        listed = list(dict.fromkeys(safe_key(str(name)) for name in names))
        if len(listed) < len(names):
            log.info("%s: split %s lists %d names twice", path, split, len(names) - len(listed))
        for key in listed:
            if key not in known:
                absent.setdefault(key, []).append(split)
        keys[split] = listed
    skipped += [Skipped(key, f"in split{'s' * (len(names) > 1)} {', '.join(names)}, but without annotation", str(path))
                for key, names in absent.items()]
    return keys


def clip_of(entry: Any, field: str, folder: VideoFolder, names: Collection[str]) -> ClipAnnotation:
    """One annotation as ClipAnnotation with label 0; UserError describes its fault. `names`: those of all annotations."""
    if not isinstance(entry, Mapping):
        raise UserError(f"the annotation is of type {type(entry).__name__}, expected a dictionary")
    missing = [name for name in (field, "label", "total_frames", "keypoint") if name not in entry]
    if missing:
        apart = "; its joints are in the file that raw_file names: put them here as keypoint (M, T, V, 2)"
        found = f"the annotation has no {missing[0]!r}; it has {', '.join(map(str, entry))}"
        raise UserError(found + apart * ("raw_file" in entry))
    if not isinstance(entry[field], str):
        raise UserError(f"{field} is of type {type(entry[field]).__name__}, expected the video's name")
    name = entry[field]
    pose = pose_of(entry)
    video = (name + "_rgb" in names and folder.find(name)) or folder.find(name, name + "_rgb")
    if video is None:
        raise ItemError(f"no video {name}.mp4 (or .avi, ...) below {folder.root}", name)
    subject, camera, setup = (_whole(entry, number) if entry.get(number) is not None else None
                              for number in ("subject", "camera", "setup"))
    return ClipAnnotation(
        key=safe_key(name), label=0, video=video, num_frames=_whole(entry, "total_frames"),
        width=pose.width, height=pose.height, pose_MTVC=pose.pose_MTVC, score_MTV=pose.score_MTV, box_T4=pose.box_T4,
        video_box=pose.video_box, subject=subject, camera=camera, setup=setup,
    )


def pose_of(entry: Mapping[str, Any]) -> Pose:
    """The skeletons of one annotation; UserError describes their fault."""
    keypoint = _array(entry, "keypoint")
    if keypoint.ndim != 4 or keypoint.shape[-1] not in (2, 3):
        raise UserError(f"keypoint has shape {keypoint.shape}, expected (persons, frames, joints, 2)")
    if keypoint.shape[-1] == 3:
        in_metres, scored = bool((np.abs(keypoint[..., :2]) <= MOST_METRES).all()), entry.get("keypoint_score") is not None
        if in_metres and (keypoint.any() or not scored):
            raise UserError("keypoint has 3 coordinates: these are metres, not pixels; take the data set's 2-D pickle")
        if not scored:
            raise UserError(f"keypoint has shape {keypoint.shape}, expected (persons, frames, joints, 2); if the third number "
                            "is a score, it belongs in keypoint_score, (persons, frames, joints)")
    height, width = _picture(entry)
    boxes = entry.get("bboxes")
    score_MTV = None if entry.get("keypoint_score") is None else _array(entry, "keypoint_score")
    return Pose(keypoint[..., :2], score_MTV, None if boxes is None else _boxes(boxes), width, height, video_box=True)


def _array(entry: Mapping[str, Any], name: str) -> np.ndarray:
    """An array of numbers; UserError if it is something else."""
    try:
        array = np.asarray(entry[name])
        return array if array.dtype.kind in "fiu" else array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is of type {type(entry[name]).__name__}, expected an array of numbers ({error})") from error


def _whole(entry: Mapping[str, Any], name: str) -> int:
    """A whole number, 0 or more; UserError if it is something else."""
    value = entry[name]
    try:
        if not isinstance(value, str | bytes) and int(value) == value >= 0:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{name} is {str(value)[:40]!r}, expected a whole number")


def _picture(entry: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(height, width) of the picture that the joints refer to; None, None if the annotation does not have it."""
    for name in ("img_shape", "original_shape"):
        shape = entry.get(name)
        if shape is None or np.size(shape) == 0:
            continue
        if np.shape(shape) not in ((2,), (3,)) or not all(np.isfinite(float(side)) and float(side) >= 1 for side in shape[:2]):
            raise UserError(f"{name} is {str(shape)[:40]}, expected (height, width)")
        return int(shape[0]), int(shape[1])
    return None, None


def _as_coco17(clip: ClipAnnotation, source: JointLayout) -> ClipAnnotation:
    """The clip with the joints of COCO-17; unchanged if it does not have those of `source`: the packer will refuse it."""
    if clip.pose_MTVC is None or clip.pose_MTVC.shape[2] != len(source.joints):
        return clip
    score_MTV = None if clip.score_MTV is None else to_coco17(np.asarray(clip.score_MTV), source, 2)
    return replace(clip, pose_MTVC=to_coco17(clip.pose_MTVC, source, 2), score_MTV=score_MTV)


def _boxes(boxes: Any) -> np.ndarray:
    """float32 (T, 4) from (T, 4) or (T, 5) with scores, or a ragged list with empty entries for frames without persons.

    A frame may have a row per person, as detectors write them: (T, M, 4), (T, M, 5). Then the result is the box around these,
    which is what the format's single box means.
    """
    try:
        frames = [np.asarray(frame, np.float32) for frame in boxes]
    except (TypeError, ValueError) as error:
        raise UserError(f"bboxes is of type {type(boxes).__name__}, expected an array of numbers ({error})") from error
    odd = next((frame for frame in frames if frame.size and (frame.ndim not in (1, 2) or frame.shape[-1] not in (4, 5))), None)
    if odd is not None:
        size = odd.size if odd.ndim < 2 else " x ".join(map(str, odd.shape))
        raise UserError(f"bboxes has a row of {size} numbers, expected x1, y1, x2, y2 and perhaps a score, for all or each")
    return np.array([_around(frame.reshape(-1, frame.shape[-1])[:, :4]) if frame.size else NO_BOX for frame in frames],
                    np.float32).reshape(-1, 4)


def _around(box_M4: np.ndarray) -> np.ndarray | Box:
    """The box around all boxes; a single one unchanged."""
    return box_M4[0] if len(box_M4) == 1 else union_box(box_M4) or NO_BOX


def _key_of(entry: Any, field: str) -> str:
    return safe_key(str(entry[field])) if isinstance(entry, Mapping) and field in entry else "(annotation without name)"


