"""Reads Toyota Smarthome (trimmed) from its videos and JSON skeletons, v1.1 or v1.2.

A video is Cook.Cleandishes_p02_r00_v02_c03.mp4: activity, person, recording, video, camera. Its skeleton is
{stem}.json (v1.1) or {stem}_pose3d.json (v1.2): {"frames": [[{"pose2d": 26 numbers, ...}, ...], ...]}, coordinate-major
(x of 13 joints, then y), pixels of 640x480, -1 = missing. M persons, T frames, V = 15 joints.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, PoseFile, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.readers.items import clips_of
from svdata2vec.shards.readers.media import VideoFolder, files_by_name, without_video
from svdata2vec.shards.readers.tables import lines, numbers
from svdata2vec.shards.tracks import link_slots
from svdata2vec.shards.video import open_bytes

NAME = re.compile(r"([A-Za-z.]+)_p(\d{2})_r\d{2}_v\d{2}_c(\d{2})")  # activity, person, camera
WIDTH, HEIGHT = 640, 480
V12_SUFFIX = "_pose3d"  # ends the names of skeletons of v1.2
DROPPED_CLASS = "Pour.Fromcup"  # 14 clips of the published lists; the authors say to ignore them

CLASSES = lines("smarthome_classes.txt")
VIEW_CLASSES = lines("smarthome_view_classes.txt")

# Subjects and cameras of each split; the published lists hold out 19 and 25 for validation.
SUBJECTS = {"cs_train": numbers("3,4,6,7,9,12,13,15,17"), "cs_val": numbers("19,25"),
            "cs_test": numbers("2,10,11,14,16,18,20")}
CAMERAS = {"cv1_train": numbers("1"), "cv1_val": numbers("5"), "cv1_test": numbers("2"),
           "cv2_train": numbers("1,3,4,6,7"), "cv2_val": numbers("5"), "cv2_test": numbers("2")}

PUBLISHED = {
    "cs_train": 8829, "cs_val": 1853, "cs_test": 5433,
    "cv1_train": 1877, "cv1_val": 3539, "cv1_test": 1901,
    "cv2_train": 7806, "cv2_val": 3539, "cv2_test": 1901,
}

# LCR-Net's 13 joints run from the right ankle up to the head; ours from the head down. Then neck and mid-hip.
_FROM_LCR13 = [12 - v for v in range(13)]
_NECK_OF, _MID_HIP_OF = (10, 11), (4, 5)


def read_smarthome(videos: str | Path, skeletons: str | Path) -> DataSet:
    """Videos, and their JSON skeletons of either version: 15 joints per person.

    The official protocols become splits: cs (by subject, 31 classes), cv1 and cv2 (by camera, 19 classes), each train,
    val and test. Pour.Fromcup is left out, as its authors advise; videos without skeletons, and
    skeletons without a video, are listed in skipped.jsonl.

    Args:
        videos: Folder of the videos (Cook.Cleandishes_p02_r00_v02_c03.mp4), or its URL; sub-folders are searched.
        skeletons: Folder of the skeletons of one version; sub-folders are searched for the video's name with .json (v1.1)
            or _pose3d.json (v1.2).

    Raises:
        UserError: a folder does not exist or has no such files, or the skeletons are of both versions.
    """
    folder = VideoFolder(videos)
    skipped = list(folder.left_out)
    named = files_by_name(skeletons, "skeletons", ".json", skipped)
    _require_one_version(named, skeletons)
    files = {stem.removesuffix(V12_SUFFIX): path for stem, path in named.items()}
    skipped += without_video(files, folder, NAME)

    def make(item: tuple[str, str]) -> ClipAnnotation:
        stem, video = item
        match = NAME.fullmatch(stem)
        if match is None:
            raise UserError(f"{video}: expected a Smarthome name like Cook.Cleandishes_p02_r00_v02_c03.mp4")
        activity = match[1]
        if activity == DROPPED_CLASS:
            raise UserError(f"the data set's authors leave out {DROPPED_CLASS}")
        if activity not in CLASSES:
            raise UserError(f"{video}: unknown activity {activity!r}; expected one of {', '.join(CLASSES)}")
        if stem not in files:
            raise UserError(f"no skeleton '{stem}.json' or '{stem}_pose3d.json'")
        return ClipAnnotation(
            key=safe_key(stem), label=CLASSES.index(activity), video=video, subject=int(match[2]), camera=int(match[3]),
            pose_file=PoseFile(read_smarthome_json, str(files[stem])))

    clips = clips_of(folder.videos(), make, lambda item: (safe_key(item[0]), item[1]), skipped)
    views = dict.fromkeys(CAMERAS, VIEW_CLASSES)
    splits = smarthome_splits({*folder.stems(), *files})  # including samples that were left out
    return DataSet("smarthome", layout("smarthome15"), CLASSES, splits, clips, skipped, PUBLISHED, views)


def _require_one_version(files: Mapping[str, Path], root: str | Path) -> None:
    """UserError if there are skeletons of both versions, whose poses are not comparable."""
    old = [path for stem, path in files.items() if NAME.fullmatch(stem)]
    new = [path for stem, path in files.items() if stem.endswith(V12_SUFFIX) and NAME.fullmatch(stem.removesuffix(V12_SUFFIX))]
    if old and new:
        raise UserError(f"{root}: has skeletons of both versions, {len(old)} of v1.1 such as {old[0]} and {len(new)} of v1.2 "
                        f"such as {new[0]}; give the folder of one version, or move the other out of it")


def smarthome_splits(stems: Iterable[str]) -> dict[str, list[str]]:
    """Keys of the nine splits by subject and camera, from names of videos; other names, and unknown classes, are in none."""
    parsed = {safe_key(stem): match for stem in sorted(stems) if (match := NAME.fullmatch(stem)) and match[1] in CLASSES}
    seen = {key: match for key, match in parsed.items() if match[1] in VIEW_CLASSES}
    by_subject = {name: [key for key, match in parsed.items() if int(match[2]) in some] for name, some in SUBJECTS.items()}
    by_camera = {name: [key for key, match in seen.items() if int(match[3]) in some] for name, some in CAMERAS.items()}
    return by_subject | by_camera


def read_smarthome_json(path: str) -> Pose:
    """Pose (M,T,15,2) in pixels of 640x480, one slot per person; a frame's detections are in any order in the file.

    UserError names the frame.
    """
    with open_bytes(path) as file:
        try:
            frames: Any = json.load(file)["frames"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a Smarthome skeleton ({error})") from error
    if not isinstance(frames, list) or not all(isinstance(people, list) for people in frames):
        raise UserError(f"{path}: not a Smarthome skeleton (expected frames, a list of lists of persons)")
    persons = max((len(people) for people in frames), default=0)
    pose_MTVC = np.zeros((max(persons, 1), len(frames), 15, 2), np.float32)
    for t, people in enumerate(frames):
        for m, person in enumerate(people):
            try:
                numbers_26 = np.asarray(person["pose2d"], np.float32)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise UserError(f"{path}, frame {t}: a person without pose2d, 26 numbers ({error})") from error
            if numbers_26.shape != (26,):
                raise UserError(f"{path}, frame {t}: pose2d has shape {numbers_26.shape}, expected 26 numbers")
            pose_MTVC[m, t] = _joints15(numbers_26.reshape(2, 13).T)
    pose_MTVC, joined = link_slots(pose_MTVC)
    return Pose(pose_MTVC, width=WIDTH, height=HEIGHT, joined=joined)


def _joints15(lcr_VC: np.ndarray) -> np.ndarray:
    """(13, 2) in LCR-Net order -> (15, 2); a mean of two joints is missing if one of them is."""
    lcr_VC = np.where((lcr_VC == -1).all(axis=1, keepdims=True), 0, lcr_VC)
    means = [lcr_VC[list(pair)].mean(axis=0) if lcr_VC[list(pair)].any(axis=1).all() else np.zeros(2)
             for pair in (_NECK_OF, _MID_HIP_OF)]
    return np.concatenate([lcr_VC[_FROM_LCR13], np.stack(means)])
