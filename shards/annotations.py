"""What every reader produces and the packer takes: one `ClipAnnotation` per clip, one `DataSet` with all splits.

M persons, T annotated frames, V joints, C = 2 (x, y in pixels of the annotation's picture, zero = missing).
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from svdata2vec.shards.boxes import View
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import JointLayout
from svdata2vec.shards.tracks import join_slots

MAX_KEY_BYTES = 80  # with the longest component name still below the 100 bytes of a plain tar header
KEY = r"[A-Za-z0-9_%+=~-]+"


@dataclass(frozen=True)
class Pose:
    """Skeletons of one clip. `pose_MTVC` (M,T,V,2); `score_MTV` or None; `box_T4` (x1,y1,x2,y2) or None.

    `width`, `height`: picture in whose pixels the joints are; None = the video's own; both 1 = coordinates are parts of it.
    `video_box`: the boxes are in the video's pixels although the joints are not. `joined`: slots that were joined to
    others (`tracks.join_slots`). `open_end`: in frames after the last there is nobody; else they lack a pose. `video_frames`:
    of a part of a video, how many frames of the whole one the annotation has. `first_number`: of the first frame, where a file
    numbers its frames; if it is above 1 it may be the first with anybody, or the first of a longer video.
    """

    pose_MTVC: np.ndarray
    score_MTV: np.ndarray | None = None
    box_T4: np.ndarray | None = None
    width: int | None = None
    height: int | None = None
    video_box: bool = False
    joined: int = 0
    open_end: bool = False
    video_frames: int | None = None
    first_number: int = 0

    def until(self, num_frames: int) -> "Pose":
        """With nobody in the frames that a file leaves out, so that there are `num_frames`; else as it is.

        These are the last ones if the end is open, and those before `first_number`, counted from 0 or from 1, if the video has
        just so many more.
        """
        missing = num_frames - self.pose_MTVC.shape[1]
        at_start = self.first_number > 1 and missing in (self.first_number, self.first_number - 1)
        if missing <= 0 or not (at_start or self.open_end):
            return self
        padding = (missing, 0) if at_start else (0, missing)
        score_MTV, box_T4 = self.score_MTV, self.box_T4
        return replace(
            self, pose_MTVC=np.pad(self.pose_MTVC, ((0, 0), padding, (0, 0), (0, 0))),
            score_MTV=None if score_MTV is None else np.pad(score_MTV, ((0, 0), padding, (0, 0))),
            box_T4=None if box_T4 is None else np.pad(box_T4, (padding, (0, 0))))

    def between(self, start: int, stop: int) -> "Pose":
        """The poses of the frames from `start` up to `stop`, which is excluded."""
        score_MTV, box_T4 = self.score_MTV, self.box_T4
        return replace(
            self, pose_MTVC=self.pose_MTVC[:, start:stop], score_MTV=None if score_MTV is None else score_MTV[:, start:stop],
            box_T4=None if box_T4 is None else box_T4[start:stop])


@dataclass(frozen=True)
class PoseFile:
    """Skeletons that a worker reads when it packs the clip: `read(path, *arguments)`, a module-level function."""

    read: Callable[..., Pose]
    path: str
    arguments: tuple = ()


@dataclass(frozen=True)
class ClipAnnotation:
    """One clip: where its video is, what it shows, where its people are.

    `video` is a path or an fsspec URL. `num_frames` is the annotation's count (None = not annotated); the packer
    compares it with the decoded frames. `start_frame`, `end_frame` cut the clip out of a longer video (end excluded).
    Exactly one of `pose_MTVC`, `pose_file` is given where there are skeletons, neither for video alone.
    """

    key: str
    label: int
    video: str | Path
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    pose_MTVC: np.ndarray | None = None
    score_MTV: np.ndarray | None = None
    box_T4: np.ndarray | None = None
    subject: int | None = None
    camera: int | None = None
    setup: int | None = None
    pose_file: PoseFile | None = None
    video_box: bool = False
    start_frame: int = 0
    end_frame: int | None = None

    def load_pose(self) -> Pose | None:
        """The clip's skeletons, read from `pose_file` if need be, one slot per person; None for video alone."""
        if self.pose_file is not None:
            pose = self.pose_file.read(self.pose_file.path, *self.pose_file.arguments)
        elif self.pose_MTVC is not None:
            pose = Pose(self.pose_MTVC, self.score_MTV, self.box_T4, self.width, self.height, self.video_box)
        else:
            return None
        pose_MTVC, score_MTV, joined = join_slots(pose.pose_MTVC, pose.score_MTV)
        return replace(pose, pose_MTVC=pose_MTVC, score_MTV=score_MTV, joined=pose.joined + joined)


@dataclass(frozen=True)
class Skipped:
    """A clip that is not packed, and why."""

    key: str
    reason: str
    source: str = ""


@dataclass(frozen=True)
class DataSet:
    """Everything a reader found. `splits`: name -> keys, in the order of the source.

    `skipped`: clips the reader had to leave out. `published`: split -> number of clips that the data set's publication
    states; differences are reported. `split_classes`: class names of splits that use a part of `classes` only.
    """

    name: str
    layout: JointLayout
    classes: tuple[str, ...]
    splits: dict[str, list[str]]
    clips: list[ClipAnnotation]
    skipped: list[Skipped] = field(default_factory=list)
    published: dict[str, int] = field(default_factory=dict)
    split_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def view(self) -> View:
        """What its clips show: "picture" (all that the camera saw) where none of them has skeletons."""
        with_skeletons = any(clip.pose_MTVC is not None or clip.pose_file is not None for clip in self.clips)
        return "persons" if with_skeletons else "picture"

    def check(self) -> None:
        """Raise UserError on what would make wrong shards: bad or duplicate keys, labels or splits out of range."""
        if not self.clips:
            first = self.skipped[0] if self.skipped else None
            why = f"; all {len(self.skipped)} were left out, the first, {first.key}, because: {first.reason}" if first else ""
            raise UserError(f"data set {self.name}: no clip to pack{why}")
        for clip in self.clips:
            check_key(clip.key)
            if not 0 <= clip.label < len(self.classes):
                raise UserError(f"clip {clip.key}: label {clip.label}, expected 0..{len(self.classes) - 1}")
        repeated = [key for key, count in Counter(clip.key for clip in self.clips).items() if count > 1]
        if repeated:
            raise UserError(f"data set {self.name}: {len(repeated)} names occur twice, e.g. {repeated[0]}; rename one")
        names = [name for name, count in Counter(self.classes).items() if count > 1]
        if names:
            raise UserError(f"data set {self.name}: two classes are called {names[0]!r}; rename one")
        known = {clip.key for clip in self.clips} | {entry.key for entry in self.skipped}
        for name, keys in self.splits.items():
            unknown = [key for key in keys if key not in known]
            if unknown:
                raise UserError(f"split {name}: {len(unknown)} clips without annotation, e.g. {unknown[0]}")
            if len(set(keys)) != len(keys):
                twice = next(key for key, count in Counter(keys).items() if count > 1)
                raise UserError(f"split {name}: clip {twice} is listed twice")


def check_key(key: str) -> None:
    """Raise UserError unless a key can name tar members: plain ASCII, no dot (readers cut there), short."""
    if not re.fullmatch(KEY, key):
        raise UserError(f"key {key!r}: a key has ASCII letters, digits and _ - only, no dot; use safe_key()")
    if len(key) > MAX_KEY_BYTES:
        raise UserError(f"key {key!r}: {len(key)} bytes, at most {MAX_KEY_BYTES} fit; use safe_key()")


def safe_key(name: str) -> str:
    """Any file name as a key: dots become `-`, other special characters %XX, an overlong end a hash of the name.

    What is not UTF-8 in a name is kept byte by byte (%XX).
    """
    key = quote(os.fsencode(name), safe="").replace(".", "-")
    if len(key) <= MAX_KEY_BYTES:
        return key
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{key[: MAX_KEY_BYTES - 17].rstrip('%')}-{digest}"
