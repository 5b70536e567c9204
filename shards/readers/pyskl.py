"""Reads the annotation pickle of pyskl and mmaction2; `read_pyskl` explains its format. M persons, T frames, V joints."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, Skipped, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17, JointLayout, to_coco17
from svdata2vec.shards.readers.joint_order import choose_layout
from svdata2vec.shards.readers.media import VideoFolder, without_extension
from svdata2vec.shards.readers.plain_pickle import load_plain
from svdata2vec.shards.video import open_bytes

logger = logging.getLogger(__name__)


def load_pickle(path: str | Path) -> dict[str, Any]:
    """The pickle's dictionary; UserError if it is not one of this format."""
    if "://" not in str(path) and not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected the annotation pickle")
    try:
        with open_bytes(path) as file:
            content = load_plain(io.BytesIO(file.read()) if "://" in str(path) else file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if isinstance(content, list):
        raise UserError(f"{path}: holds a list of annotations; expected {{'split': {{name: [frame_dir]}}, "
                        "'annotations': [...]}: add the splits")
    if not isinstance(content, dict) or not {"split", "annotations"} <= set(content):
        raise UserError(f"{path}: expected a dictionary with 'split' and 'annotations'")
    annotations, split = content["annotations"], content["split"]
    if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
        raise UserError(f"{path}: 'annotations' is not a list of dictionaries, one per clip")
    if not annotations:
        raise UserError(f"{path}: 'annotations' is empty")
    if not isinstance(split, dict) or not all(isinstance(names, list | tuple | set | np.ndarray) for names in split.values()):
        raise UserError(f"{path}: 'split' is not a dictionary of lists with the names of clips")
    plain = [{name: np.asarray(value) if isinstance(value, np.ndarray) else value for name, value in entry.items()}
             for entry in annotations]
    return content | {"annotations": plain}


def read_pyskl(pickle_path: str | Path, videos: str | Path, *, name: str | None = None,
               joints: str | None = None, as_coco17: bool = False,
               classes: str | Path | Sequence[str] | None = None) -> DataSet:
    """Videos, and a pickle with the skeletons of their persons.

    The pickle holds a dictionary of plain values and NumPy arrays:
      - split: {name of a split: [frame_dir of each of its clips]}
      - annotations: a list with one dictionary per clip

    A clip of M persons, T frames and V joints has the keys:
      - frame_dir: file name of its video without extension (or filename, with one); where names repeat in sub-folders,
        with the folder in front: walk/001
      - label: number of its class, from 0
      - total_frames: T, as many as its video has
      - keypoint: array (M, T, V, 2), x and y of every joint in pixels of img_shape, both 0 where it is missing
      - img_shape, or original_shape: (height, width) of the picture in whose pixels the joints are; without it, the
        video's own size
      - keypoint_score: array (M, T, V), confidence of every joint; may be absent
      - bboxes: array (T, 4), x1, y1, x2, y2 of a box around all persons in pixels of the video, or (T, 5) with a score;
        without it, the box around the joints
      - subject, camera, setup: numbers; may be absent

    Clips that cannot be used, or have no video, are listed in skipped.jsonl with the reason.

    Args:
        pickle_path: The pickle, a path or URL.
        videos: Folder of the videos, or its URL; sub-folders are searched.
        name: Name of the data set; by default that of the pickle.
        joints: Joint layout: coco17, kinect25, smarthome15, openpose18 (COCO-18), body25, h36m17, halpe26 or mediapipe33. By
            default coco17 for 17 joints, as the format says, and the only one with as many otherwise; 25 must be named.
        as_coco17: Keep the 17 joints of COCO alone, by name; those that the layout lacks are missing.
        classes: Class names in the order of the labels, or a file with one per line; by default classes.txt beside the
            pickle, else class_0, class_1 and so on.

    Raises:
        UserError: the pickle is not of this format, or there is no video.
    """
    content = load_pickle(pickle_path)
    folder = VideoFolder(videos)
    annotations = content["annotations"]
    field = "filename" if "filename" in annotations[0] else "frame_dir"
    clips: list[ClipAnnotation] = []
    skipped: list[Skipped] = []
    for entry in annotations:
        try:
            clips.append(clip_of(entry, field, folder))
        except (ValueError, TypeError, OverflowError) as error:  # UserError, or a field of another kind
            skipped.append(Skipped(_key_of(entry, field), str(error), str(pickle_path)))
    poses = [clip.pose_MTVC for clip in clips if clip.pose_MTVC is not None]
    joint_layout = choose_layout(poses, joints, "coco17", pickle_path)
    if as_coco17:
        clips, joint_layout = [_as_coco17(clip, joint_layout) for clip in clips], COCO17
    keys = {split: [_split_key(entry) for entry in names] for split, names in content["split"].items()}
    stem = name or PurePosixPath(str(pickle_path)).stem
    return DataSet(stem, joint_layout, class_names(classes, pickle_path, clips), keys, clips, skipped)


def clip_of(entry: Mapping[str, Any], field: str, folder: VideoFolder) -> ClipAnnotation:
    """One annotation as ClipAnnotation; UserError says what is wrong with it."""
    missing = [name for name in (field, "label", "total_frames", "keypoint") if name not in entry]
    if missing:
        raise UserError(f"the annotation has no {missing[0]!r}; it has {', '.join(map(str, entry))}")
    frame_dir = str(entry[field])
    pose = pose_of(entry)
    name = without_extension(frame_dir)
    video = folder.find(name, name + "_rgb")
    if video is None:
        raise UserError(f"no video {name}.mp4 (or .avi, ...) below {folder.root}")
    return ClipAnnotation(
        key=_split_key(frame_dir), label=int(entry["label"]), video=video, num_frames=int(entry["total_frames"]),
        width=pose.width, height=pose.height, pose_MTVC=pose.pose_MTVC, score_MTV=pose.score_MTV, box_T4=pose.box_T4,
        video_box=pose.video_box, subject=entry.get("subject"), camera=entry.get("camera"), setup=entry.get("setup"),
    )


def pose_of(entry: Mapping[str, Any]) -> Pose:
    """The skeletons of one annotation; UserError says what is wrong with them."""
    keypoint = np.asarray(entry["keypoint"])
    if keypoint.ndim != 4 or keypoint.shape[-1] not in (2, 3):
        raise UserError(f"keypoint has shape {keypoint.shape}, expected (persons, frames, joints, 2)")
    if keypoint.shape[-1] == 3 and "keypoint_score" not in entry:
        raise UserError("keypoint has 3 coordinates: these are metres, not pixels; take the data set's 2-D pickle")
    height, width = entry.get("img_shape") or entry.get("original_shape") or (None, None)
    boxes = entry.get("bboxes")
    return Pose(
        keypoint[..., :2], entry.get("keypoint_score"), None if boxes is None else _boxes(boxes),
        None if width is None else int(width), None if height is None else int(height), video_box=True,
    )


def _as_coco17(clip: ClipAnnotation, source: JointLayout) -> ClipAnnotation:
    """The clip with the joints of COCO-17; as it is, for the packer to refuse, if it has another number than `source`."""
    if clip.pose_MTVC is None or clip.pose_MTVC.shape[2] != len(source.joints):
        return clip
    score_MTV = None if clip.score_MTV is None else to_coco17(np.asarray(clip.score_MTV), source, 2)
    return replace(clip, pose_MTVC=to_coco17(clip.pose_MTVC, source, 2), score_MTV=score_MTV)


def _boxes(boxes: Any) -> np.ndarray:
    """float32 (T, 4) from (T, 4) or (T, 5) with scores, or a ragged list with empty entries where nobody was found."""
    rows = [np.asarray(row, np.float32).reshape(-1)[:4] for row in boxes]
    return np.array([row if row.size == 4 else np.zeros(4) for row in rows], np.float32).reshape(-1, 4)


def _key_of(entry: Any, field: str) -> str:
    return _split_key(entry[field]) if isinstance(entry, Mapping) and field in entry else "(annotation without name)"


def _split_key(name: Any) -> str:
    """The key of a clip that the pickle calls `name`, perhaps with folders and extension."""
    return safe_key(without_extension(str(name)))


def class_names(classes: str | Path | Sequence[str] | None, beside: str | Path,
                clips: Sequence[ClipAnnotation]) -> tuple[str, ...]:
    """Class names from a list, a file, `classes.txt` beside the annotations, or made up from the labels."""
    if classes is None:
        classes = Path(str(beside)).parent / "classes.txt"
        if "://" in str(beside) or not classes.is_file():
            return tuple(f"class_{label}" for label in range(max((clip.label for clip in clips), default=-1) + 1))
    if isinstance(classes, str | Path):
        if not Path(classes).is_file():
            raise UserError(f"{classes}: no such file; expected the names of the classes, one per line")
        return tuple(line.strip() for line in Path(classes).read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(classes)
