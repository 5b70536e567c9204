"""Files of pose extraction: one small file of detections per finished video, and the annotation pickle at the end.

Pure NumPy. The work folder makes a run resumable: a file is complete or does not exist, and it identifies its video.
Tracking happens when the pickle is written, so its options can be changed without another pass over the videos.
M persons, T frames, N detections (of all frames in a row), V joints.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pose_inputs import GivenBoxes, Video, VideoList, work_name

from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.tracking import Detections, Persons

CLASSES = "classes.txt"  # where the readers look for the names of the classes
FLOAT16_LIMIT = 60000.0


@dataclass(frozen=True)
class VideoPoses:
    """Detections of every frame of a video, and its upright size in pixels."""

    frames: list[Detections]
    width: int
    height: int


class WorkFolder:
    """The folder with the detections of finished videos."""

    def __init__(self, folder: Path, settings: dict[str, Any], boxes: GivenBoxes | None = None) -> None:
        """Open it; it is created with the first result. UserError if it was made with other settings (e.g. another model)."""
        self.folder, self._settings, self._file, self._boxes = folder, settings, folder / "settings.json", boxes
        self._check()

    def _check(self) -> None:
        if self._file.is_file():
            before, settings = json.loads(self._file.read_text()), self._settings
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed:
                name = changed[0]
                raise UserError(f"{self.folder}: holds results made with {name}={before.get(name)}, now {name}="
                                f"{settings[name]}; choose another folder with --work, or delete this one")

    def path(self, video: Video) -> Path:
        """File of a video's detections."""
        return self.folder / work_name(video.name)

    def is_finished(self, video: Video) -> bool:
        """Whether exactly this video (by size and time of change), with these boxes, is finished."""
        try:
            with np.load(self.path(video)) as content:
                return content["source"].tolist() == self._source(video)
        except (UserError, FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False

    def _source(self, video: Video) -> list[int]:
        """Data by which changes of a video and its given boxes are noticed."""
        boxes = [] if self._boxes is None else _fingerprint(str(self._boxes.file(video.name)))
        return _fingerprint(video.path) + boxes

    def save(self, video: Video, poses: VideoPoses) -> None:
        """Store the detections of a finished video, behind the settings; UserError as when the folder is opened."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check()
        if not self._file.is_file():
            write_atomically(self._file, json.dumps(self._settings, indent=1).encode())
        buffer = io.BytesIO()
        found: dict[str, Any] = {
            name: np.concatenate([getattr(frame, name) for frame in poses.frames]).astype(np.float32)
            for name in Detections.ARRAYS
        }
        np.savez_compressed(
            buffer, source=np.array(self._source(video), np.int64), size=np.array([poses.width, poses.height], np.int32),
            count_T=np.array([len(frame) for frame in poses.frames], np.int32), **found,
        )
        write_atomically(self.path(video), buffer.getvalue())

    def load(self, video: Video) -> VideoPoses:
        """The detections of a finished video."""
        with np.load(self.path(video)) as content:
            cuts = np.cumsum(content["count_T"])[:-1]
            parts = [np.split(content[name], cuts) for name in Detections.ARRAYS]
            width, height = content["size"].tolist()
        return VideoPoses([Detections(*frame) for frame in zip(*parts, strict=True)], width, height)

    def write_skipped(self, reasons: dict[str, str]) -> Path:
        """List the videos that could not be used: one JSON object per line with `video` and `reason`."""
        path = self.folder / "skipped.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"video": video, "reason": reason}, ensure_ascii=False) for video, reason in reasons.items()]
        write_atomically(path, "".join(line + "\n" for line in lines).encode())
        return path


def _fingerprint(path: str) -> list[int]:
    """Size in bytes and time of change in ns; zeros for a URL."""
    if "://" in path:
        return [0, 0]
    facts = Path(path).stat()
    return [facts.st_size, facts.st_mtime_ns]


def annotation(video: Video, poses: VideoPoses, persons: Persons) -> dict[str, Any]:
    """One entry of the pickle, in the format of pyskl, with `bboxes` (T, 5) in pixels of the decoded video beside it."""
    shape = (poses.height, poses.width)
    return {
        "frame_dir": video.name, "label": video.label, "img_shape": shape, "original_shape": shape,
        "total_frames": len(poses.frames),
        "keypoint": np.clip(persons.joints_MTV2, -FLOAT16_LIMIT, FLOAT16_LIMIT).astype(np.float16),
        "keypoint_score": persons.joint_score_MTV.astype(np.float16),
        "bboxes": persons.box_T5.astype(np.float32),
    }


def write_pickle(path: Path, videos: VideoList, annotations: Sequence[dict[str, Any]], made_with: dict[str, Any]) -> None:
    """The annotation pickle of these videos, and classes.txt beside it, both atomically.

    The splits name the videos that have an annotation, in the order of the list.
    """
    known = {entry["frame_dir"] for entry in annotations}
    splits: dict[str, list[str]] = {}
    for video in videos.videos:
        if video.name in known:
            splits.setdefault(video.split, []).append(video.name)
    content = {"split": splits, "classes": list(videos.classes), "annotations": list(annotations), "made_with": made_with}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_name(CLASSES), "".join(f"{name}\n" for name in videos.classes).encode())
    write_atomically(path, pickle.dumps(content, protocol=4))


def check_output(path: Path, classes: Sequence[str]) -> None:
    """UserError, before the work starts, if the pickle or classes.txt could not be written correctly."""
    if path.suffix != ".pkl":
        raise UserError(f"--out {path}: expected a file name that ends in .pkl")
    names = path.with_name(CLASSES)
    if names.is_file() and names.read_text(encoding="utf-8").split("\n") != [*classes, ""]:
        raise UserError(f"{names}: names other classes than these videos have; choose another folder for --out")
