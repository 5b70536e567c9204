"""The videos to extract poses from, with their labels and splits, and given boxes for them. Pure NumPy."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from svdata2vec.shards.annotations import DataSet
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.media import VIDEO_EXTENSIONS, is_video, plain_name, video_files
from svdata2vec.shards.readers.videos import SPLIT_FOLDERS, read_video_csv, read_video_folder
from svdata2vec.shards.shown import some_of

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Video:
    """One video. `name`: its file name without extension, perhaps with folders in front: the packer finds it by that."""

    name: str
    path: str
    label: int
    split: str


@dataclass(frozen=True)
class VideoList:
    """All videos in a fixed order; class names in the order of the labels; path -> reason for what was left out."""

    videos: list[Video]
    classes: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def find_videos(sources: Sequence[str]) -> VideoList:
    """Videos of a folder (class/video.mp4, split/class/video.mp4, or videos alone), of a CSV (path,label,split), or files.

    Without labels, all are of one class `unlabelled`. Unusable videos are in `left_out`. UserError if there is no video.
    """
    if len(sources) == 1 and Path(sources[0]).suffix.lower() == ".csv":
        found = _from_dataset(read_video_csv(sources[0]))
    elif len(sources) == 1 and Path(sources[0]).is_dir():
        found = _from_folder(Path(sources[0]))
    else:
        found = _unlabelled([_checked_file(source) for source in sources])
    if not found.videos:
        raise UserError(f"no video to look at; the first that was left out: {next(iter(found.left_out.values()))}")
    return _named(found)


def _named(found: VideoList) -> VideoList:
    """Names by which the packer finds the videos: their own, or, for repeated names, with the folders in front (walk/001).

    UserError if two have the same folders, too.
    """
    tails = {video.path: _tails(video.path) for video in found.videos}
    counts = Counter(tail for names in tails.values() for tail in names)
    videos: list[Video] = []
    taken: dict[str, str] = {}
    for video in found.videos:
        name = next((tail for tail in tails[video.path] if counts[tail] == 1), tails[video.path][-1])
        if name in taken:
            raise UserError(f"{taken[name]} and {video.path} have the same name; rename one: the packer finds videos by name")
        taken[name] = video.path
        videos.append(replace(video, name=name))
    return replace(found, videos=videos)


def _tails(path: str) -> list[str]:
    """The name without extension, then with one folder in front, then with two."""
    place = PurePosixPath(plain_name(path))
    return ["/".join(place.parts[-count:]) for count in (1, 2, 3)]


def _from_folder(folder: Path) -> VideoList:
    found = video_files(folder)
    loose = [path for path in found.files if "/" not in found.relative(path)]
    if loose and len(loose) < len(found.files):
        raise UserError(f"{loose[0]}: lies beside folders with videos; expected all videos in class folders "
                        f"(perhaps below {', '.join(SPLIT_FOLDERS)}), or none")
    if loose:
        return replace(_unlabelled(loose), left_out={entry.source: entry.reason for entry in found.left_out})
    return _from_dataset(read_video_folder(folder))


def _from_dataset(dataset: DataSet) -> VideoList:
    split_of = {key: split for split, keys in dataset.splits.items() for key in keys}
    videos = [Video("", str(clip.video), clip.label, split_of[clip.key]) for clip in dataset.clips]
    return VideoList(videos, dataset.classes, {entry.source or entry.key: entry.reason for entry in dataset.skipped})


def _unlabelled(paths: Sequence[str]) -> VideoList:
    return VideoList([Video("", path, 0, "train") for path in paths], (UNLABELLED,))


def _checked_file(source: str) -> str:
    if not Path(source).exists():
        raise UserError(f"{source}: no such file or folder; expected videos, one folder of videos, or one CSV")
    if not is_video(source):
        raise UserError(f"{source}: expected a video ({', '.join(VIDEO_EXTENSIONS[:3])}...); a folder or a CSV is given alone")
    return source


def work_name(name: str) -> str:
    """File of a video's detections in the work folder."""
    return f"{name.replace('/', '%2F')}.npz"


class GivenBoxes:
    """Boxes for top-down models: a folder with, per video, NAME.npz of an earlier run's work folder or NAME.csv with the
    header frame,x1,y1,x2,y2,score (frames from 0, pixels of the decoded video, score optional)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; expected one with NAME.csv or NAME.npz per video")

    def file(self, name: str) -> Path:
        """The file with a video's boxes; UserError if there is none."""
        archive, table = self.folder / work_name(name), self.folder / f"{name}.csv"
        if not archive.is_file() and not table.is_file():
            raise UserError(f"no boxes for this video: neither {archive} nor {table.name} is there")
        return archive if archive.is_file() else table

    def read(self, name: str) -> dict[int, np.ndarray]:
        """Frame number -> (N, 4) float32 boxes. UserError if there is no file, or naming the lines that are wrong."""
        table = self.file(name)
        if table.suffix == ".npz":
            with np.load(table) as content:
                ends = np.cumsum(content["count_T"])
                rows = np.split(content["box_N4"], ends[:-1])
            return {number: boxes for number, boxes in enumerate(rows) if len(boxes)}
        boxes: dict[int, list[list[float]]] = {}
        wrong: list[str] = []
        with table.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    x1, y1, x2, y2 = (float(row[key]) for key in ("x1", "y1", "x2", "y2"))
                    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):  # nor for NaN
                        raise ValueError
                    boxes.setdefault(int(row["frame"]), []).append([x1, y1, x2, y2])
                except (KeyError, TypeError, ValueError):
                    wrong.append(str(line))
        if wrong:
            raise UserError(f"{table}: wrong lines: {some_of(wrong)}; expected frame,x1,y1,x2,y2 as numbers, x1 < x2, y1 < y2")
        return {number: np.array(rows, np.float32) for number, rows in boxes.items()}
