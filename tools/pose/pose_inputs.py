"""Which videos to extract poses from, with their labels and splits; and boxes that are given for them. Pure NumPy."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svdata2vec.shards.annotations import DataSet
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.media import VIDEO_EXTENSIONS
from svdata2vec.shards.readers.videos import SPLIT_FOLDERS, read_video_csv, read_video_folder

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Video:
    """One video. `name`: its file name without extension, by which the packer finds it again."""

    name: str
    path: str
    label: int
    split: str


@dataclass(frozen=True)
class VideoList:
    """All videos in a fixed order, and the names of the classes in the order of the labels."""

    videos: list[Video]
    classes: tuple[str, ...]


def find_videos(sources: Sequence[str]) -> VideoList:
    """Videos of a folder (class/video.mp4, split/class/video.mp4, or videos alone), of a CSV (path,label,split), or files.

    Without labels, all are of one class `unlabelled`. UserError if there is none, or if two have the same name.
    """
    if len(sources) == 1 and Path(sources[0]).suffix.lower() == ".csv":
        found = _from_dataset(read_video_csv(sources[0]))
    elif len(sources) == 1 and Path(sources[0]).is_dir():
        found = _from_folder(Path(sources[0]))
    else:
        found = _unlabelled([_checked_file(source) for source in sources])
    paths: dict[str, str] = {}
    for video in found.videos:
        if video.name in paths:
            raise UserError(f"{paths[video.name]} and {video.path} have the same name; rename one: "
                            "the packer finds videos by name")
        paths[video.name] = video.path
    return found


def _from_folder(folder: Path) -> VideoList:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)
    if paths and all(path.parent == folder for path in paths):
        return _unlabelled(paths)
    mixed = next((path for path in paths if path.parent == folder), None)
    if mixed is not None:
        raise UserError(f"{mixed}: lies beside folders with videos; expected all videos in class folders "
                        f"(perhaps below {', '.join(SPLIT_FOLDERS)}), or none")
    return _from_dataset(read_video_folder(folder))


def _from_dataset(dataset: DataSet) -> VideoList:
    split_of = {key: split for split, keys in dataset.splits.items() for key in keys}
    videos = [Video(Path(str(clip.video)).stem, str(clip.video), clip.label, split_of[clip.key]) for clip in dataset.clips]
    return VideoList(videos, dataset.classes)


def _unlabelled(paths: Sequence[Path]) -> VideoList:
    return VideoList([Video(path.stem, str(path), 0, "train") for path in paths], (UNLABELLED,))


def _checked_file(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected videos, one folder of videos, or one CSV")
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        raise UserError(f"{path}: expected a video ({', '.join(VIDEO_EXTENSIONS)}); a folder or a CSV is given alone")
    return path


class GivenBoxes:
    """Boxes for top-down models: a folder with, per video, NAME.npz of an earlier run's work folder or NAME.csv with the
    header frame,x1,y1,x2,y2,score (frames from 0, pixels of the decoded video, score optional)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; expected one with NAME.csv or NAME.npz per video")

    def read(self, name: str) -> dict[int, np.ndarray]:
        """Frame number -> (N, 4) float32 boxes. UserError if there is no file, or naming the line that is wrong."""
        archive, table = self.folder / f"{name}.npz", self.folder / f"{name}.csv"
        if archive.is_file():
            with np.load(archive) as content:
                ends = np.cumsum(content["count_T"])
                rows = np.split(content["box_N4"], ends[:-1])
            return {number: boxes for number, boxes in enumerate(rows) if len(boxes)}
        if not table.is_file():
            raise UserError(f"no boxes for this video: neither {archive} nor {table.name} is there")
        boxes: dict[int, list[list[float]]] = {}
        with table.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    box = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
                    boxes.setdefault(int(row["frame"]), []).append(box)
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{table}, line {line}: expected frame,x1,y1,x2,y2 as numbers") from error
        return {number: np.array(rows, np.float32) for number, rows in boxes.items()}
