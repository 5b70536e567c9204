"""Reads PKU-MMD: long videos cut into clips by their label files, Kinect-25 skeletons, both protocols.

`0002-L.avi` (L, M, R: the view) has the labels 0002-L.txt, lines `class,start,end,confidence` (class from 1, frames),
and the skeleton 0002-L.txt, one line of 150 numbers per frame: x, y, z in metres of 25 joints of two persons.
M persons, T frames, V joints.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, PoseFile, Skipped, safe_key
from svdata2vec.shards.errors import UserError, require_file
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.media import VideoFolder, files_by_name
from svdata2vec.shards.readers.tables import lines
from svdata2vec.shards.readers.text import read_text, stamp
from svdata2vec.shards.shown import some_of

VIDEO_NAME = re.compile(r"(?:[AB]?\d+|A\d+N\d+)-[LMR]")
COLOR_WIDTH, COLOR_HEIGHT = 1920, 1080

# The colour camera of a Kinect v2 relative to the skeleton's origin (the depth camera): nominal focal length and
# horizontal centre in pixels of 1920x1080. The distance of the lenses and the vertical centre (the cameras are tilted
# against each other) were fitted to the joints of NTU RGB+D, whose files have both metres and colour pixels, to within 2
# pixels. PKU-MMD's files have no calibration: expect sensors to differ by some pixels.
FOCAL_PX = 1081.37
CENTER_PX = (959.5, 569.0)
LENS_OFFSET_M = 0.0507

VIEWS = {"L": 1, "M": 2, "R": 3}

log = logging.getLogger(__name__)


def read_pku_mmd(videos: str | Path, labels: str | Path, skeletons: str | Path, splits: Mapping[str, str | Path],
                 *, name: str = "pku-mmd") -> DataSet:
    """Long videos, the label files that cut them into clips, and the owner's skeletons: 25 Kinect joints of two persons.

    The skeletons are metres and are projected into the colour picture by a Kinect's nominal camera, so they may be some
    pixels off. Actions whose video or skeleton is not there, videos without labels, and lines with the frames of an earlier
    line are listed in skipped.jsonl.

    Args:
        videos: Folder of the videos (0002-L.avi), or its URL; sub-folders are searched.
        labels: Folder of the label files (0002-L.txt), searched with its sub-folders: a line class,start,end,confidence per
            action; classes from 1, frames from 0, the end excluded.
        skeletons: Folder of the skeleton files (0002-L.txt), searched with its sub-folders: a line of 150 numbers per frame.
        splits: Name of a protocol and its split file, for each protocol: xsub cross-subject.txt xview cross-view.txt.
            A name gives two splits, xsub_train and xsub_val, of the videos that the file lists for training and for
            validation; of all others, if it lists none for validation.
        name: Name of the data set.

    Raises:
        UserError: a folder or file does not exist, or is not of this format; a split file lists none of the videos.
    """
    folder = VideoFolder(videos)
    skipped = list(folder.left_out)
    lists = {protocol: _read_lists(Path(file)) for protocol, file in splits.items()}
    label_files = files_by_name(labels, "label files", ".txt", skipped)
    files = files_by_name(skeletons, "skeletons", ".txt", skipped)
    absent = sorted(stem for stem in {*label_files, *files} - set(folder.stems()) if VIDEO_NAME.fullmatch(stem))
    recordings = [*folder.videos(), *((stem, None) for stem in absent)]
    actions = [action for stem, video in recordings
               for action in _actions(stem, video, label_files.get(stem), files, skipped)]

    taken: dict[tuple[str, int, int], str] = {}

    def make(item: _Action) -> ClipAnnotation:
        label, start, end = _read_label(item)
        if item.video is None:
            raise UserError(f"no video '{item.stem}.avi' below {videos}")
        if item.stem not in files:
            raise UserError(f"no skeleton '{item.stem}.txt' below {skeletons}")
        first = taken.setdefault((item.video, start, end), item.where)
        if first != item.where:
            raise UserError(f"{item.where}: has the frames of '{first}', which is taken; found {item.line!r}")
        return ClipAnnotation(
            key=item.key, label=label, video=item.video, camera=VIEWS[item.stem[-1]], start_frame=start, end_frame=end,
            pose_file=PoseFile(read_pku_skeleton, str(files[item.stem]), (start, end)))

    clips = clips_of(actions, make, lambda item: (item.key, item.video or item.file), skipped)
    stem_of = {action.key: action.stem for action in actions}
    unread = {stem for stem, _ in recordings if VIDEO_NAME.fullmatch(stem)} - set(stem_of.values())
    stem_of |= {stem: stem for stem in sorted(unread)}  # in `skipped` under their names
    parts: dict[str, list[str]] = {}
    for protocol, listed in lists.items():
        listed.check(folder.stems())
        parts |= {f"{protocol}_{part}": [key for key, stem in stem_of.items() if stem in stems]
                  for part, stems in (("train", listed.training), ("val", listed.validation(stem_of.values())))}
    return DataSet(name, layout("kinect25"), lines("pku_classes.txt"), parts, clips, skipped)


@dataclass(frozen=True)
class _Lists:
    """The videos that a protocol's file lists, for training and not for training."""

    path: Path
    training: frozenset[str]
    others: frozenset[str]

    def check(self, stems: Iterable[str]) -> None:
        """Log which of the listed videos are missing, and which videos are in neither list. UserError if all are missing."""
        found = set(stems)
        listed = self.training | self.others
        if not found & listed:
            raise UserError(f"{self.path}: lists {min(listed)} and the like, none of the videos there are, such as "
                            f"{min(found)}; is it the split file of the other phase?")
        absent, unlisted = sorted(listed - found), sorted(found - listed)
        if absent:
            log.warning("%s lists videos that are not there: %s", self.path, some_of(absent))
        if unlisted and self.others:
            log.warning("%s: videos in neither list, and so in neither split: %s", self.path, some_of(unlisted))

    def validation(self, stems: Iterable[str]) -> frozenset[str]:
        """The videos that are listed, but not for training; if there are none, those of `stems` that are not for training."""
        return self.others or frozenset(stems) - self.training


def _read_lists(path: Path) -> _Lists:
    require_file(path, "the split file of a protocol")
    names: dict[bool, set[str]] = {True: set(), False: set()}
    training = False
    for line in read_text(path).splitlines():
        heading = VIDEO_NAME.split(line, maxsplit=1)[0].strip().lower()
        training = heading.startswith("train") if heading[:1].isalpha() else training
        names[training].update(VIDEO_NAME.findall(line))
    if not names[True]:
        raise UserError(f"{path}: expected a line 'Training videos:' and one with names like 0002-L, 0003-M")
    if both := sorted(names[True] & names[False]):
        raise UserError(f"{path}: lists {some_of(both)} for training and for validation; remove one of the two")
    return _Lists(path, frozenset(names[True]), frozenset(names[False]))


@dataclass(frozen=True)
class _Action:
    """A line of a label file, its number there, and the video that it belongs to (None: missing)."""

    key: str
    file: str
    number: int
    line: str
    stem: str
    video: str | None

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.number}"


def _actions(stem: str, video: str | None, label_file: Path | None, files: Mapping[str, Path],
             skipped: list[Skipped]) -> list[_Action]:
    """The lines of a video's label file. A video without lines, or with a name of another form, is added to `skipped`."""
    if VIDEO_NAME.fullmatch(stem) is None:
        problem = f"{video}: expected a PKU-MMD name like 0002-L.avi or A01N01-L.avi"
    elif label_file is None:
        problem = f"no label file '{stem}.txt'"
    else:
        rows = [(number, line) for number, line in enumerate(read_text(label_file).splitlines(), start=1) if line.strip()]
        if rows:
            return [_Action(f"{stem}_{count:03d}", str(label_file), number, line, stem, video)
                    for count, (number, line) in enumerate(rows)]
        problem = f"{label_file}: no line; expected class,start,end,confidence per action"
    skipped.append(Skipped(safe_key(stem), problem, video or str(files.get(stem, label_file))))
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
def _read_rows(path: str, _changed: int) -> np.ndarray:
    """float32 (T, 2, 25, 3): the whole file; cached because a video gives some twenty clips."""
    rows = [line.split() for line in read_text(path).rstrip().split("\n")]
    wrong = next((number for number, row in enumerate(rows) if len(row) != 150), None)
    if wrong is not None:
        raise UserError(f"{path}, line {wrong + 1}: {len(rows[wrong])} numbers, expected 150 (x, y, z of 25 joints of two "
                        "persons)")
    try:
        return np.array(rows, np.float32).reshape(-1, 2, 25, 3)
    except ValueError as error:
        raise UserError(f"{path}: expected 150 numbers in every line ({error})") from error


def read_pku_skeleton(path: str, start: int, end: int) -> Pose:
    """Pose (2,T,25,2) of the frames start..end, projected into the colour picture of 1920x1080."""
    rows_TMV3 = _read_rows(path, stamp(path))
    if end > len(rows_TMV3):
        raise UserError(f"{path}: {len(rows_TMV3)} frames, the label ends at frame {end}")
    xyz_MTV3 = rows_TMV3[start:end].transpose(1, 0, 2, 3)
    present_MTV = xyz_MTV3[..., 2] > 0.1  # metres from the sensor; 0 if a joint is missing
    depth_MTV = np.where(present_MTV, xyz_MTV3[..., 2], 1.0)
    x_MTV = CENTER_PX[0] + FOCAL_PX * (xyz_MTV3[..., 0] + LENS_OFFSET_M) / depth_MTV
    y_MTV = CENTER_PX[1] - FOCAL_PX * xyz_MTV3[..., 1] / depth_MTV
    pose_MTVC = np.where(present_MTV[..., None], np.stack([x_MTV, y_MTV], axis=-1), 0.0)
    return Pose(pose_MTVC.astype(np.float32), width=COLOR_WIDTH, height=COLOR_HEIGHT, video_frames=len(rows_TMV3))
