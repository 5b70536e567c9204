"""Reads PKU-MMD: long videos cut into clips by their label files, Kinect-25 skeletons, both protocols.

`0002-L.avi` (L, M, R: the view) has the labels 0002-L.txt, lines `class,start,end,confidence` (class from 1, frames),
and the skeleton 0002-L.txt, one line of 150 numbers per frame: x, y, z in metres of 25 joints of two persons.
M persons, T frames, V joints.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, PoseFile, Skipped, safe_key
from svdata2vec.shards.errors import UserError, require_file
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.media import VideoFolder
from svdata2vec.shards.readers.tables import lines, train_and_rest
from svdata2vec.shards.readers.text import read_text
from svdata2vec.shards.video import open_bytes

VIDEO_NAME = re.compile(r"(?:[AB]?\d+|A\d+N\d+)-[LMR]")
COLOR_WIDTH, COLOR_HEIGHT = 1920, 1080

# The colour camera of a Kinect v2 as seen from its skeleton's origin (the depth camera): nominal focal length and
# horizontal centre in pixels of 1920x1080; the distance of the lenses and the vertical centre (the cameras are tilted
# against each other) fit the joints of NTU RGB+D, whose files have both metres and colour pixels, to 2 pixels. These
# files have no calibration: expect some pixels from sensor to sensor.
FOCAL_PX = 1081.37
CENTER_PX = (959.5, 569.0)
LENS_OFFSET_M = 0.0507

VIEWS = {"L": 1, "M": 2, "R": 3}


def read_pku_mmd(videos: str | Path, labels: str | Path, skeletons: str | Path, splits: Mapping[str, str | Path],
                 *, name: str = "pku-mmd") -> DataSet:
    """Long videos, the label files that cut them into clips, and the owner's skeletons: 25 Kinect joints of two persons.

    The skeletons are metres and are projected into the colour picture by a Kinect's nominal camera, so they may be some
    pixels off. Videos without skeletons or labels are listed in skipped.jsonl.

    Args:
        videos: Folder of the videos (0002-L.avi), or its URL; sub-folders are searched.
        labels: Folder of the label files (0002-L.txt): a line class,start,end,confidence per action; classes from 1,
            frames from 0, the end excluded.
        skeletons: Folder of the skeleton files (0002-L.txt): a line of 150 numbers per frame.
        splits: Name of a protocol and its split file, for each protocol: xsub cross-subject.txt xview cross-view.txt.
            A name gives two splits, xsub_train and xsub_val; val has every video that the file does not list for training.
        name: Name of the data set.

    Raises:
        UserError: a folder or file does not exist, or is not of this format.
    """
    folder = VideoFolder(videos)
    training_videos = {protocol: _training_videos(Path(file)) for protocol, file in splits.items()}
    skipped = list(folder.left_out)

    def make(item: _Action) -> ClipAnnotation:
        label, start, end = _read_label(item)
        return ClipAnnotation(
            key=item.key, label=label, video=item.video, camera=VIEWS[Path(item.video).stem[-1]], start_frame=start,
            end_frame=end, pose_file=PoseFile(read_pku_skeleton, item.skeleton, (start, end)))

    actions = (action for stem, video in folder.videos()
               for action in _actions(stem, video, Path(labels), Path(skeletons), skipped))
    clips = clips_of(actions, make, lambda item: (item.key, item.where), skipped)
    training = {protocol: {clip.key for clip in clips if Path(clip.video).stem in names}
                for protocol, names in training_videos.items()}
    parts = train_and_rest([clip.key for clip in clips], training, "val")
    return DataSet(name, layout("kinect25"), lines("pku_classes.txt"), parts, clips, skipped)


def _training_videos(path: Path) -> frozenset[str]:
    require_file(path, "the split file of a protocol")
    names: set[str] = set()
    training = False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = VIDEO_NAME.findall(line)
        if found and training:
            names.update(found)
        elif not found and line.strip():
            training = line.strip().lower().startswith("train")
    if not names:
        raise UserError(f"{path}: expected a line 'Training videos:' and one with names like 0002-L, 0003-M")
    return frozenset(names)


@dataclass(frozen=True)
class _Action:
    """A line of a label file, `where` it stands, and the files of its clip."""

    key: str
    where: str
    line: str
    video: str
    skeleton: str


def _actions(stem: str, video: str, labels: Path, skeletons: Path, skipped: list[Skipped]) -> list[_Action]:
    """The lines of a video's label file. A video that lacks a file, or has another name, is added to `skipped`."""
    skeleton, label_file = Path(skeletons, stem + ".txt"), Path(labels, stem + ".txt")
    absent = next((path for path in (skeleton, label_file) if not path.is_file()), None)
    if VIDEO_NAME.fullmatch(stem) is None:
        skipped.append(Skipped(safe_key(stem), f"{video}: expected a PKU-MMD name like 0002-L.avi or A01N01-L.avi", video))
    elif absent is not None:
        skipped.append(Skipped(stem, f"{absent}: no such file", video))
    else:
        rows = [(number, line) for number, line in enumerate(read_text(label_file).splitlines(), start=1) if line.strip()]
        return [_Action(f"{stem}_{count:03d}", f"{label_file}, line {number}", line, video, str(skeleton))
                for count, (number, line) in enumerate(rows)]
    return []


def _read_label(action: _Action) -> tuple[int, int, int]:
    """(label from 0, first frame, end frame) of one action; UserError names its line."""
    words = action.line.split(",")
    try:
        label, start, end = int(words[0]), int(words[1]), int(words[2])
    except (ValueError, IndexError):
        raise UserError(f"{action.where}: expected class,start,end,confidence, found {action.line!r}") from None
    if not 1 <= label <= 51 or not 0 <= start < end:
        raise UserError(f"{action.where}: expected class 1..51 and start < end, found {action.line!r}")
    return label - 1, start, end


@lru_cache(maxsize=2)
def _read_rows(path: str) -> np.ndarray:
    """float32 (T, 2, 25, 3): the whole file; cached because a video gives some twenty clips."""
    with open_bytes(path) as file:
        text = file.read().decode("ascii", errors="replace")
    try:
        rows = np.array([line.split() for line in text.splitlines() if line.strip()], np.float32)
    except ValueError as error:
        raise UserError(f"{path}: expected 150 numbers per line ({error})") from error
    if rows.ndim != 2 or rows.shape[1] != 150:
        raise UserError(f"{path}: lines of {rows.shape[1:] or (0,)} numbers, expected 150")
    return rows.reshape(-1, 2, 25, 3)


def read_pku_skeleton(path: str, start: int, end: int) -> Pose:
    """Pose (2,T,25,2) of the frames start..end, projected into the colour picture of 1920x1080."""
    rows_TMV3 = _read_rows(path)
    if end > len(rows_TMV3):
        raise UserError(f"{path}: {len(rows_TMV3)} frames, the label ends at frame {end}")
    xyz_MTV3 = rows_TMV3[start:end].transpose(1, 0, 2, 3)
    present_MTV = (xyz_MTV3 != 0).any(axis=-1) & (xyz_MTV3[..., 2] > 0.1)
    depth_MTV = np.where(present_MTV, xyz_MTV3[..., 2], 1.0)
    x_MTV = CENTER_PX[0] + FOCAL_PX * (xyz_MTV3[..., 0] + LENS_OFFSET_M) / depth_MTV
    y_MTV = CENTER_PX[1] - FOCAL_PX * xyz_MTV3[..., 1] / depth_MTV
    pose_MTVC = np.where(present_MTV[..., None], np.stack([x_MTV, y_MTV], axis=-1), 0.0)
    return Pose(pose_MTVC.astype(np.float32), width=COLOR_WIDTH, height=COLOR_HEIGHT)
