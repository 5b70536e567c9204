"""Reads NTU RGB+D 60 and 120: from the 2-D pickles of mmaction2 and pyskl, or from the raw `.skeleton` files.

Names are S001C002P003R002A013: setup, camera, performer, replication, action. The label is the action minus one.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, PoseFile, Skipped, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.media import VideoFolder, files_by_name
from svdata2vec.shards.readers.pyskl import read_annotations
from svdata2vec.shards.readers.skeleton_npy import read_npy_skeleton
from svdata2vec.shards.readers.skeleton_text import COLOR_COLUMNS, read_text_skeleton
from svdata2vec.shards.readers.tables import lines, name_groups, numbers, train_and_rest
from svdata2vec.shards.shown import some_of

log = logging.getLogger(__name__)

NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R\d{3}A(\d{3})")
COLOR_WIDTH, COLOR_HEIGHT = 1920, 1080  # the picture that all published 2-D joints of this data set refer to

XSUB60_TRAIN = numbers("1,2,4,5,8,9,13-19,25,27,28,31,34,35,38")
XSUB120_TRAIN = XSUB60_TRAIN | numbers("45-47,49,50,52-59,70,74,78,80-86,89,91-95,97,98,100,103")
XVIEW_TRAIN = numbers("2,3")
MISSING_FILES = {60: ("ntu60_missing.txt",), 120: ("ntu60_missing.txt", "ntu120_missing.txt")}

# Clips with skeleton per split, as published (all videos less the official missing list).
PUBLISHED = {
    60: {"xsub_train": 40091, "xsub_val": 16487, "xview_train": 37646, "xview_val": 18932},
    120: {"xsub_train": 63026, "xsub_val": 50919, "xset_train": 54468, "xset_val": 59477},
}
PUBLISHED_VIDEOS = {
    60: {"xsub_train": 40320, "xsub_val": 16560, "xview_train": 37920, "xview_val": 18960},
    120: {"xsub_train": 63360, "xsub_val": 51120, "xset_train": 54720, "xset_val": 59760},
}


class NtuName(NamedTuple):
    """The numbers in a sample's name."""

    setup: int
    camera: int
    subject: int
    action: int

    @classmethod
    def parse(cls, name: str) -> "NtuName":
        """From S001C002P003R002A013; UserError for any other name."""
        match = NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{name!r}: expected an NTU RGB+D name like S001C002P003R002A013")
        return cls(*map(int, match.groups()))


def missing_names(classes: int) -> frozenset[str]:
    """The official samples with missing or incomplete skeletons: 302 of NTU-60, 535 of NTU-120."""
    return frozenset().union(*(name_groups(file) for file in MISSING_FILES[classes]))


def ntu_splits(names: Iterable[str], classes: int) -> dict[str, list[str]]:
    """Both official protocols (`val` = the official test set; there is no validation set)."""
    parsed = {name: NtuName.parse(name) for name in sorted(names)}
    subjects = XSUB60_TRAIN if classes == 60 else XSUB120_TRAIN
    training = {"xsub": {text for text, name in parsed.items() if name.subject in subjects}}
    if classes == 60:
        training["xview"] = {text for text, name in parsed.items() if name.camera in XVIEW_TRAIN}
    else:
        training["xset"] = {text for text, name in parsed.items() if name.setup % 2 == 0}
    return train_and_rest(parsed, training, "val")


def read_ntu_pickle(pickle_path: str | Path, videos: str | Path, *, classes: Literal[60, 120]) -> DataSet:
    """Videos, and the pickle of 2-D skeletons by pyskl or mmaction2 (ntu60_2d.pkl, ntu60_hrnet.pkl, ...): 17 COCO joints.

    The videos may be the originals or copies of any size: the joints, pixels of 1920x1080, are scaled to them. The
    pickle's splits are kept: xsub and xview (60) or xset (120), each train and val; a pickle without splits (a list of
    annotations) gets them by the names. A warning says where a split does not have the published number of clips.
    `svdata2vec shard pyskl --help` explains the pickle's format.

    Args:
        pickle_path: The pickle, a path or URL; one holds all splits.
        videos: Folder of the videos, or its URL; sub-folders are searched for S001C001P001R001A001_rgb.avi or
            S001C001P001R001A001.mp4.
        classes: 60 or 120.

    Raises:
        UserError: the pickle is of another format or data set, or there is no video.
    """
    found = read_annotations(pickle_path, videos, name=f"ntu{classes}", joints="coco17",
                             classes=lines("ntu_classes.txt")[:classes])
    skipped = list(found.skipped)

    def make(clip: ClipAnnotation) -> ClipAnnotation:
        name = NtuName.parse(clip.key)
        if clip.label != name.action - 1:
            raise UserError(f"{pickle_path}: clip {clip.key} has label {clip.label}, its name says {name.action - 1}")
        # Annotations made by older tools lack img_shape; their joints are in the same pixels.
        return replace(clip, subject=name.subject, camera=name.camera, setup=name.setup,
                       width=clip.width or COLOR_WIDTH, height=clip.height or COLOR_HEIGHT)

    clips = clips_of(found.clips, make, lambda clip: (clip.key, str(pickle_path)), skipped)
    splits = found.splits or ntu_splits(_samples(clips, skipped), classes)
    return replace(found, clips=clips, skipped=skipped, splits=splits, published=PUBLISHED[classes])


def _samples(clips: Sequence[ClipAnnotation], skipped: Sequence[Skipped]) -> set[str]:
    """The names of all samples, including those that were left out: splits list them too."""
    return set(filter(NAME.fullmatch, (*(clip.key for clip in clips), *(entry.key for entry in skipped))))


def _is_of_another_set(name: str, classes: int) -> bool:
    """Whether a sample belongs to NTU RGB+D 120 while 60 is being read."""
    match = NAME.fullmatch(name)
    return match is not None and (int(match[4]) > classes or (classes == 60 and int(match[1]) > 17))


def read_ntu_skeletons(skeletons: str | Path, videos: str | Path, *, classes: Literal[60, 120],
                       keep_missing: bool = False) -> DataSet:
    """Videos, and the owner's raw .skeleton files: 25 Kinect joints per person, where they lie in the colour picture.

    Both official protocols become splits: xsub and xview (60) or xset (120), each train and val. Videos without a
    .skeleton file are listed in skipped.jsonl.

    Args:
        skeletons: Folder of the unpacked .skeleton files, or of the .skeleton.npy that the owner's txt2npy.py makes of them;
            sub-folders are searched.
        videos: Folder of the videos, or its URL; sub-folders are searched for S001C001P001R001A001_rgb.avi or
            S001C001P001R001A001.mp4.
        classes: 60 or 120.
        keep_missing: Keep the samples of the official lists of missing or incomplete skeletons (302 of 60, 535 of 120).

    Raises:
        UserError: a folder does not exist or has no such files.
    """
    folder = VideoFolder(videos)
    skipped = list(folder.left_out)
    files = files_by_name(skeletons, "skeletons", ".skeleton", skipped, ".skeleton.npy")
    missing = frozenset() if keep_missing else missing_names(classes)
    of_video = {stem.removesuffix("_rgb"): path for stem, path in folder.videos()}
    names = {*files, *of_video}
    others = {name for name in names if _is_of_another_set(name, classes)}
    if others:
        log.info("samples that are not of NTU RGB+D %d: %s", classes, some_of(sorted(others)))

    def make(text: str) -> ClipAnnotation:
        name = NtuName.parse(text)
        if text in missing:
            raise UserError("in the official list of samples with missing or incomplete skeletons")
        video = folder.find(text + "_rgb", text)
        if video is None:
            raise UserError(f"no video {text}_rgb.avi or {text}.mp4")
        if text not in files:
            raise UserError(f"no file {text}.skeleton")
        pose_file = PoseFile(read_text_skeleton, str(files[text]), (COLOR_COLUMNS, 25, COLOR_WIDTH, COLOR_HEIGHT))
        if files[text].suffix == ".npy":
            pose_file = PoseFile(read_npy_skeleton, str(files[text]), (COLOR_WIDTH, COLOR_HEIGHT))
        return ClipAnnotation(
            key=text, label=name.action - 1, video=video, subject=name.subject, camera=name.camera, setup=name.setup,
            pose_file=pose_file)

    clips = clips_of(sorted(names - others), make,
                     lambda text: (safe_key(text), str(files.get(text) or of_video[text])), skipped)
    splits = ntu_splits(_samples(clips, skipped), classes)
    return DataSet(f"ntu{classes}", layout("kinect25"), lines("ntu_classes.txt")[:classes], splits, clips, skipped,
                   PUBLISHED_VIDEOS[classes] if keep_missing else PUBLISHED[classes])
