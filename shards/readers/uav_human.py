"""Reads UAV-Human: videos and text skeletons named P070S01G10B00H10UC102000LC092000A031R0_09131758, 17 COCO joints.

The skeleton files have the lines of NTU's; a joint line begins with x and y in pixels of the video.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, PoseFile, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.labels import class_names
from svdata2vec.shards.readers.media import VideoFolder, files_by_name, without_video
from svdata2vec.shards.readers.skeleton_text import FIRST_COLUMNS, read_text_skeleton
from svdata2vec.shards.readers.tables import numbers, train_and_rest

NAME = re.compile(r"P(\d+)S(\d+)G\d+B\d+H\d+UC\d+LC\d+A(\d+)R\d+_\d+")
NUM_CLASSES = 155

# Training subjects of the two protocols; everyone else is test.
CSV1_TRAIN = numbers(
    "0,2,5-8,10-21,25-30,32-40,42-53,55-57,59,61-65,67-71,73,76-90,98,100,102,103,105,106,110-112,114-118")
CSV2_TRAIN = numbers(
    "0,3-6,8,10-12,14,16,18-22,24,26,29-32,35-40,43-47,49,52,54,56,57,59-64,66,67,69-75,77-81,83,84,86-89,91-97,"
    "99-104,106-115,117,118")


def read_uav_human(videos: str | Path, skeletons: str | Path, *,
                   classes: str | Path | Sequence[str] | None = None) -> DataSet:
    """Videos, and their text skeletons: 17 COCO joints per person.

    Both official protocols become splits: csv1 and csv2, each train and test. Videos without a skeleton file, and
    skeletons without a video, are listed in skipped.jsonl.

    Args:
        videos: Folder of the videos (P070S01G10B00H10UC102000LC092000A031R0_09131758.avi), or its URL; sub-folders are
            searched.
        skeletons: Folder of the skeletons, the video's name with .txt; sub-folders are searched.
        classes: The 155 class names in order, or a file with one per line; by default A000 to A154.

    Raises:
        UserError: a folder does not exist or has no such files, or a video has another name.
    """
    folder = VideoFolder(videos)
    skipped = list(folder.left_out)
    files = files_by_name(skeletons, "skeletons", ".txt", skipped)
    skipped += without_video(files, folder, NAME)
    names = tuple(f"A{label:03d}" for label in range(NUM_CLASSES)) if classes is None else class_names(classes)

    def make(item: tuple[str, str]) -> ClipAnnotation:
        stem, video = item
        match = NAME.fullmatch(stem)
        if match is None:
            raise UserError(f"{video}: expected a UAV-Human name like P070S01G10B00H10UC102000LC092000A031R0_09131758")
        if stem not in files:
            raise UserError(f"no skeleton '{stem}.txt'")
        if int(match[3]) >= len(names):
            raise UserError(f"{video}: action {int(match[3])}, expected 0..{len(names) - 1}")
        return ClipAnnotation(
            key=stem, label=int(match[3]), video=video, subject=int(match[1]), setup=int(match[2]),
            pose_file=PoseFile(read_text_skeleton, str(files[stem]), (FIRST_COLUMNS, 17, None, None)))

    clips = clips_of(folder.videos(), make, lambda item: (safe_key(item[0]), item[1]), skipped)
    subject = {stem: int(match[1]) for stem in sorted({*folder.stems(), *files}) if (match := NAME.fullmatch(stem))}
    training = {name: {stem for stem, number in subject.items() if number in subjects}
                for name, subjects in (("csv1", CSV1_TRAIN), ("csv2", CSV2_TRAIN))}
    splits = train_and_rest(subject, training, "test")  # including samples that were left out
    return DataSet("uav-human", layout("coco17"), names, splits, clips, skipped)
