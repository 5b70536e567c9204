"""Reads the files of pose programs into detections per frame: COCO, OpenPose, AlphaPose, MMPose, Ultralytics YOLO, MediaPipe.

Every parser takes (path, item, V) and returns a `FoundPoses`: `path` is a file, or the folder of a video's files, `item`
the video's name if path holds several videos, V the number of joints if the file does not state it. Each parser describes
the structure that the program writes. N detections in a frame, V joints.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.found_poses import FoundPoses, Person
from svdata2vec.shards.readers.text import read_text, stamp

LARGEST_RELATIVE = 1.5  # if all coordinates are below it, they are parts of the picture (formats that allow both)
# A frame number beyond both MOST_FRAMES and MOST_ABSENT times the frames with persons is a time stamp, a date or a hash.
MOST_FRAMES, MOST_ABSENT = 100_000, 100
SEVERAL = 6  # frames with persons, all multiples of a step apart: the frames between them were not searched


def _json(path: str) -> Any:
    """Content of a JSON file; a list for JSON lines. Cached, as a file may hold many videos."""
    return _parsed(path, stamp(path))


@lru_cache(maxsize=2)
def _parsed(path: str, _changed: int) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]  # texts may hold U+2028
        except (ValueError, RecursionError):
            raise UserError(f"{path}: not JSON ({error})") from error


def _files_of(folder: str, item: str, names: re.Pattern[str]) -> list[tuple[int, Path]]:
    """The files of one video in a folder: frame number and file of each frame; UserError if two are of one frame."""
    found: dict[int, str] = {}
    for number, name in _files_by_video(folder, names, stamp(folder)).get(item, ()):
        if (other := found.setdefault(number, name)) != name:
            raise UserError(f"{folder}: {other} and {name} both are frame {number}; expected every frame once")
    return [(number, Path(folder, name)) for number, name in found.items()]


@lru_cache(maxsize=2)
def _files_by_video(folder: str, names: re.Pattern[str], _changed: int) -> dict[str, list[tuple[int, str]]]:
    """The files of all videos. Cached, as a folder may hold millions of files and is not scanned for each video."""
    files: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(entry.name for entry in os.scandir(folder)):
        if (match := names.fullmatch(name)) is not None:
            files.setdefault(match[1], []).append((int(match[2]), name))
    return files


def _triples(values: Any, where: str) -> np.ndarray:
    """float64 (V, 3) from a flat list x, y, score, x, y, score, ..., where a score may be null."""
    if isinstance(values, list) and None in values:
        values = [1.0 if value is None and place % 3 == 2 else value for place, value in enumerate(values)]
    try:
        flat = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        flat = np.zeros(1)
    if flat.ndim != 1 or flat.size % 3 or not flat.size:
        raise UserError(f"{where}: expected keypoints as numbers x, y, score, ..., found {str(values)[:60]}")
    return flat.reshape(-1, 3)


def _box(corner_and_size: Any) -> np.ndarray | None:
    """`_corners` from x, y, width, height."""
    values = _numbers(corner_and_size, 4)
    return None if values is None else _corners([*values[:2], *(values[:2] + values[2:])])


def _corners(values: Any) -> np.ndarray | None:
    """A box x1, y1, x2, y2; None if it is not four numbers, or an empty box, which some programs write for none."""
    found = _numbers(values, 4)
    return None if found is None or (found[2:] <= found[:2]).any() else found


def _numbers(values: Any, count: int) -> np.ndarray | None:
    try:
        found = np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    return found if found.size == count and np.isfinite(found).all() else None


def _score(value: Any) -> float | None:
    """A person's score; None if it is not a number."""
    found = _numbers(value, 1)
    return None if found is None else float(found[0])


def _joint_scores(values: Any) -> Any:
    """Scores of a person's joints; null means no score, which counts as 1."""
    return [1.0 if value is None else value for value in values] if isinstance(values, list) else values


def _listed(values: Any, where: str, what: str) -> list[Any]:
    if not isinstance(values, list):
        raise UserError(f"{where}: expected {what}, found {type(values).__name__}")
    return values


def _field(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, Mapping) or name not in entry:
        raise UserError(f"{where}: expected an object with {name!r}, found {str(entry)[:60]}")
    return entry[name]


def _last_number(name: str) -> int | None:
    """The number that a frame's file name ends with: img_00012.jpg, or img-0012_jpg.rf.HASH.jpg as Roboflow writes it."""
    found = _numbered(name)
    return None if found is None else int(found[2])


def _numbered(name: str) -> re.Match[str] | None:
    """A frame's file name in three parts: what precedes its number, the number, and what follows it."""
    return re.search(r"^(.*?)(\d+)(\D*)$", re.sub(r"\.rf\.\w+$", "", PurePosixPath(name).stem), re.DOTALL)


def _places_of(numbers: Sequence[int]) -> tuple[list[int], bool, int]:
    """The frame that each image of a video is, by their ascending numbers; whether these are all frames; `Pose.first_number`.

    Some writers leave out frames without persons: if numbers are consecutive but for some missing ones, they are frame numbers,
    from 0 if there is a 0, else from 1. (Every fifth frame is not a video with gaps: packing refuses that number of poses.)
    """
    steps = [after - before for before, after in pairwise(numbers)]
    if not steps or min(steps) != 1 or max(steps) == 1:
        follow_each_other = bool(steps) and min(steps) == max(steps) == 1
        return list(range(len(numbers))), True, numbers[0] if follow_each_other else 0
    first = min(numbers[0], 1)
    return [number - first for number in numbers], False, 0


def _by_number(people: Mapping[int, list[Person]], where: str) -> list[list[Person]]:
    """Frames 0 to the last number; empty lists for frames without persons. UserError if numbers skip frames."""
    last = max(people, default=-1)
    if last > max(MOST_FRAMES, MOST_ABSENT * len(people)):
        raise UserError(f"{where}: frame number {last}, but persons in {len(people)} frames only; expected frames counted from "
                        "0 or 1, no time stamps: number them so")
    step = math.gcd(*(after - before for before, after in pairwise(sorted(people))))
    if len(people) >= SEVERAL and step > 1:
        raise UserError(f"{where}: poses of one frame in {step} alone; expected those of every frame: find them without a step")
    return [people.get(number, []) for number in range(last + 1)]


def _is_relative(frames: Iterable[list[Person]], path: str) -> bool:
    """Whether coordinates are parts of the picture, by their size; UserError for those of -1..1."""
    found_N = np.concatenate([np.zeros(0), *(one.joints_V3[:, :2].ravel() for people in frames for one in people)])
    found_N = found_N[np.isfinite(found_N)]
    if not len(found_N) or np.abs(found_N).max() > LARGEST_RELATIVE:
        return False
    if found_N.min() < 1 - LARGEST_RELATIVE:
        raise UserError(f"{path}: coordinates of -1..1; expected pixels, or parts of the picture from 0 to 1")
    return True


# ---------------------------------------------------------------------------------------------------- COCO

def coco_videos(path: str) -> dict[str, list[Mapping[str, Any]]]:
    """The images of a COCO keypoint file by video, in order of their frames.

    A video is the entry of `videos` with an image's `video_id` (CocoVID), else the folder in its file_name
    (walk/001/000012.jpg: video 001), else the file itself. Frames are in the order of `frame_id` (or `frame_index`), else of
    the number in the file name, else of the id.
    """
    return _coco_videos(path, stamp(path))


@lru_cache(maxsize=2)
def _coco_videos(path: str, _changed: int) -> dict[str, list[Mapping[str, Any]]]:
    content = _json(path)
    if isinstance(content, list):
        raise UserError(f"{path}: a list of results without 'images': expected a COCO file with 'images' and 'annotations' "
                        "(results of AlphaPose: --format alphapose)")
    images = _listed(_field(content, "images", path), path, "a list of images")
    for number, count in Counter(_field(image, "id", path) for image in images).most_common(1):
        if count > 1:
            raise UserError(f"{path}: {count} images have id {number!r}; expected one for each, by which annotations name it")
    names = {_field(video, "id", path): str(_field(video, "name", path)) for video in content.get("videos") or ()}
    videos: dict[str, list[Mapping[str, Any]]] = {}
    for image in images:
        file_name = PurePosixPath(str(_field(image, "file_name", path)).replace("\\", "/"))
        name = names.get(image.get("video_id"), str(file_name.parent))
        name = PurePosixPath(path).stem if name in ("", ".") else name
        videos.setdefault(name, []).append(image)

    def place(image: Mapping[str, Any]) -> tuple[int, int]:
        return _frame_number(image) or 0, _id_of(image)

    return {name: sorted(found, key=place) for name, found in videos.items()}


def _id_of(image: Mapping[str, Any]) -> int:
    number = image.get("id")
    return number if isinstance(number, int) else 0


def _frame_number(image: Mapping[str, Any]) -> int | None:
    frame = image.get("frame_id", image.get("frame_index", _last_number(str(image["file_name"]))))
    if isinstance(frame, int):
        return frame
    number = _numbers(frame, 1)  # "12" or 12.0
    return int(number[0]) if number is not None and number[0].is_integer() else None


def _checked_numbers(images: Sequence[Mapping[str, Any]], where: str) -> list[int]:
    """The frame numbers of a video's sorted images; their places if they have none, or the same number in all names.

    UserError if only some have one, two have the same, or they come from names of several kinds and contradict the ids' order.
    """
    names = [str(image["file_name"]) for image in images]
    found = [_frame_number(image) for image in images]
    numbers = [number for number in found if number is not None]
    by_name = not any("frame_id" in image or "frame_index" in image for image in images)
    one_video = by_name and len(set(names)) == 1 and len({_id_of(image) for image in images}) == len(images)  # its own name
    if not numbers or one_video or (len(set(found)) == 1 and len(set(names)) == len(names)):
        return list(range(len(images)))
    expected = "expected every frame once, by its number in file_name or frame_id"
    if len(numbers) < len(found):
        raise UserError(f"{where}: image {names[found.index(None)]!r} has no frame number, others have; {expected}")
    if (twice := next((place for place, (a, b) in enumerate(pairwise(numbers)) if a == b), None)) is not None:
        both = f"images {names[twice]!r} and {names[twice + 1]!r} both are frame {numbers[twice]}"
        raise UserError(f"{where}: {both}; {expected}")
    parts = [part for name in names if (part := _numbered(name)) is not None]
    kinds = {(re.sub(r"^[0-9a-f]{8}-", "", part[1]), part[3]) for part in parts}  # Label Studio puts HASH- in front
    if by_name and len(kinds) > 1 and any(_id_of(after) < _id_of(before) for before, after in pairwise(images)):
        raise UserError(f"{where}: which number in {names[0]!r} and {names[-1]!r} is the frame's? By the last one these are in "
                        "another order than by id; add frame_id to the images")
    return numbers


@lru_cache(maxsize=2)
def _coco_annotations(path: str, _changed: int) -> dict[Any, list[Any]]:
    by_image: dict[Any, list[Any]] = {}
    for entry in _listed(_field(_json(path), "annotations", path), path, "a list of annotations"):
        by_image.setdefault(_field(entry, "image_id", path), []).append(entry)
    if by_image and by_image.keys().isdisjoint(image["id"] for images in coco_videos(path).values() for image in images):
        raise UserError(f"{path}: annotations have image_id {next(iter(by_image))!r} and so on; expected the id of an image")
    return by_image


def parse_coco(path: str, item: str, num_joints: int) -> FoundPoses:
    """{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "keypoints": [x, y, v, ...],
    "bbox": [x, y, width, height], "score"}]}: an image per frame. v is 0 (not annotated), 1 or 2, or a score."""
    images = coco_videos(path).get(item, [])
    annotations = _coco_annotations(path, stamp(path))
    found: dict[int, list[Person]] = {}
    numbers, complete, first_number = _places_of(_checked_numbers(images, f"{path}, {item}"))
    for number, image in zip(numbers, images, strict=True):
        people = []
        for entry in annotations.get(image["id"], []):
            where = f"{path}, frame {number} of {item}"
            joints_V3 = _triples(_field(entry, "keypoints", where), where)
            if np.isin(joints_V3[:, 2], (0, 1, 2)).all():
                joints_V3 = np.where(joints_V3[:, 2:] > 0, joints_V3, 0)
                joints_V3[:, 2] = np.minimum(joints_V3[:, 2], 1)
            score = _score(entry.get("score"))
            people.append(Person(joints_V3, _box(entry.get("bbox")), 1.0 if score is None else score))
        found[number] = people
    size = _numbers([images[0].get("width"), images[0].get("height")], 2) if images else None
    return FoundPoses(_by_number(found, path), complete, size=None if size is None else (int(size[0]), int(size[1])),
                      first_number=first_number)


# ---------------------------------------------------------------------------------------------------- OpenPose

OPENPOSE_NAME = re.compile(r"(.+)_(\d+)_keypoints\.json")


def parse_openpose(path: str, item: str, num_joints: int) -> FoundPoses:
    """A folder of `--write_json`: {item}_000000000012_keypoints.json for every frame, from 0 (or as images are numbered, or
    from --frame_first); each {"people": [{"pose_keypoints_2d": [x, y, score, ...]}]}, a joint that is not found as 0, 0, 0."""
    people: dict[int, list[Person]] = {}
    for number, file in _files_of(path, item, OPENPOSE_NAME):
        listed = _listed(_field(_json(str(file)), "people", str(file)), str(file), "a list of people")
        people[number] = [Person(_triples(_field(entry, "pose_keypoints_2d", str(file)), str(file))) for entry in listed
                          if not isinstance(entry, Mapping) or entry.get("pose_keypoints_2d") != []]
    relative = _is_relative(people.values(), path)  # --keypoint_scale 3
    numbers, complete, first_number = _places_of(sorted(people))
    placed = {place: people[number] for place, number in zip(numbers, sorted(people), strict=True)}
    return FoundPoses(_by_number(placed, f"{path}, {item}"), complete, relative, first_number=first_number)


# ---------------------------------------------------------------------------------------------------- AlphaPose

def parse_alphapose(path: str, item: str, num_joints: int) -> FoundPoses:
    """alphapose-results.json: [{"image_id": "12.jpg", "keypoints": [x, y, score, ...], "score", "box": [x, y, width,
    height]}], a line per person; frames without anybody are left out. Frames of videos count from 0, as "0.jpg"; names
    with letters are image files, and count from 1 unless there is a 0."""
    people: dict[int, list[Person]] = {}
    images: dict[int, str] = {}
    plain = True
    for entry in _listed(_json(path), path, "a list of results"):
        image = str(_field(entry, "image_id", path))
        number = _last_number(image)
        if number is None:
            raise UserError(f"{path}: image_id {image!r} has no frame number")
        if (other := images.setdefault(number, image)) != image:
            raise UserError(f"{path}: images {other!r} and {image!r} both are frame {number}; expected every frame once, by "
                            "the last number in its name, and a file for every video")
        plain &= PurePosixPath(image).stem.isdigit() and not PurePosixPath(image).stem.startswith("00")
        joints_V3 = _triples(_field(entry, "keypoints", path), f"{path}, {image}")
        people.setdefault(number, []).append(Person(joints_V3, _box(entry.get("box")), _score(entry.get("score"))))
    first = 0 if plain or 0 in people else 1
    return FoundPoses(_by_number({number - first: found for number, found in people.items()}, path), complete=False)


# ---------------------------------------------------------------------------------------------------- MMPose

def parse_mmpose(path: str, item: str, num_joints: int) -> FoundPoses:
    """The inferencer's predictions/VIDEO.json: [{"frame_id", "instances": [{"keypoints": [[x, y], ...],
    "keypoint_scores": [...], "bbox": [[x1, y1, x2, y2]], "bbox_score"}]}], every frame in order; the demo scripts have the
    list in "instance_info", and count from 1. Where the detector finds nobody, the whole picture is taken for a person."""
    content = _json(path)
    listed = _listed(content.get("instance_info") if isinstance(content, Mapping) else content, path, "a list of frames")
    frames = []
    for number, frame in enumerate(listed):
        where = f"{path}, frame {number}"
        if _field(frame, "frame_id", where) != listed[0]["frame_id"] + number:
            raise UserError(f"{where}: frame_id {frame['frame_id']}, expected every frame in order")
        people = []
        for entry in _listed(_field(frame, "instances", where), where, "a list of instances"):
            try:
                joints_V2 = np.asarray(_field(entry, "keypoints", where), np.float64)
                scores_V1 = np.asarray(_joint_scores(_field(entry, "keypoint_scores", where)), np.float64)[:, None]
                if joints_V2.shape[1] != 2:
                    raise ValueError(f"{joints_V2.shape[1]} coordinates, like those of a 3-D pose")
                joints_V3 = np.concatenate([joints_V2, scores_V1], axis=1)
            except (TypeError, ValueError, IndexError) as error:
                raise UserError(f"{where}: expected keypoints [[x, y], ...] and as many keypoint_scores ({error})") from error
            people.append(Person(joints_V3, _corners(entry.get("bbox")), _score(entry.get("bbox_score"))))
        frames.append(people)
    return FoundPoses(_without_whole_pictures(frames), complete=True)


def _without_whole_pictures(frames: list[list[Person]]) -> list[list[Person]]:
    """With nobody in frames whose only person is the whole picture: from (0, 0) to whole numbers, the largest box of the file.

    As it is if all persons have that box: then no detector was asked (`det_model="whole_image"`).
    """
    boxes = [(0.0,) * 4 if person.box_4 is None else tuple(person.box_4) for people in frames for person in people]
    largest = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=(0.0,) * 4)
    if any(largest[:2]) or not all(number.is_integer() for number in largest) or set(boxes) == {largest}:
        return frames
    nobody = [len(people) == 1 and people[0].box_4 is not None and tuple(people[0].box_4) == largest for people in frames]
    return [[] if empty else people for people, empty in zip(frames, nobody, strict=True)]


# ---------------------------------------------------------------------------------------------------- Ultralytics YOLO

YOLO_NAME = re.compile(r"(.+)_(\d+)\.txt")


def parse_yolo(path: str, item: str, num_joints: int) -> FoundPoses:
    """A folder of `save_txt`: labels/{item}_12.txt for every frame with somebody, from 1; a line per person, all parts of
    the picture: class, box centre x, y, width, height, joints x, y (and score), perhaps the person's score and track
    number. Or a JSON file: for every frame the list that `Results.to_json` gives."""
    if not Path(path).is_dir():
        return _parse_yolo_json(path)
    people: dict[int, list[Person]] = {}
    for frame, file in _files_of(path, item, YOLO_NAME):
        lines = read_text(file).splitlines()
        people[frame - 1] = [_yolo_person(line, num_joints, f"{file}, line {number}")
                             for number, line in enumerate(lines, 1) if line.strip()]
    if min(people, default=0) < 0:
        raise UserError(f"{path}: a frame 0 of {item}; Ultralytics counts frames from 1")
    return FoundPoses(_by_number(people, f"{path}, {item}"), complete=False, relative=True)


def _yolo_person(line: str, num_joints: int, where: str) -> Person:
    words = line.split()
    values = _numbers(words, len(words))
    for columns in (3, 2):
        end = 5 + columns * num_joints
        if values is not None and end <= len(values) <= end + 2:
            joints_VC = values[5:end].reshape(num_joints, columns)
            joints_V3 = joints_VC if columns == 3 else np.concatenate([joints_VC, np.ones((num_joints, 1))], axis=1)
            x, y, width, height = values[1:5]
            rest = values[end:]
            score = float(rest[0]) if len(rest) and rest[0] <= 1 else None  # one number above 1: that of the track
            return Person(joints_V3, np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]), score)
    raise UserError(f"{where}: expected a class, a box and {num_joints} joints of 2 or 3 numbers, found {len(words)} numbers")


def _parse_yolo_json(path: str) -> FoundPoses:
    frames = []
    for number, frame in enumerate(_listed(_json(path), path, "a list with the results of every frame")):
        where = f"{path}, frame {number}"
        people = []
        found = json.loads(frame) if isinstance(frame, str) else frame
        for entry in _listed(found, where, "a list of results"):
            joints = _field(entry, "keypoints", where)
            columns = [_field(joints, name, where) for name in ("x", "y")]
            visible = joints.get("visible")
            try:
                columns.append([1.0] * len(columns[0]) if visible is None else _joint_scores(visible))
                joints_V3 = np.array(columns, np.float64).T
            except (TypeError, ValueError) as error:
                raise UserError(f"{where}: expected keypoints x, y and visible as lists of numbers ({error})") from error
            box = entry.get("box") or {}
            people.append(Person(joints_V3, _corners([box.get(name) for name in ("x1", "y1", "x2", "y2")]),
                                 _score(entry.get("confidence"))))
        frames.append(people)
    return FoundPoses(frames, complete=True, relative=_is_relative(frames, path))  # to_json(normalize=True)


# ---------------------------------------------------------------------------------------------------- MediaPipe

def parse_mediapipe(path: str, item: str, num_joints: int) -> FoundPoses:
    """A JSON list with the landmarks of every frame, parts of the picture: null or [] for nobody, a list of {"x", "y",
    "visibility"} (or {"landmark": [...]}, the message of mp.solutions.pose) for one person, or a list of such lists
    (pose_landmarks of the Tasks API)."""
    content = _json(path)
    listed = _listed(content.get("frames") if isinstance(content, Mapping) else content, path, "a list of frames")
    frames = []
    for number, frame in enumerate(listed):
        where = f"{path}, frame {number}"
        named = isinstance(frame, Mapping) and frame and "landmark" not in frame  # {} is nobody
        found = _field(frame, "pose_landmarks", where) if named else frame
        if isinstance(found, Mapping):
            found = found.get("landmark")
        persons = _listed(found or [], where, "a list of landmarks")
        if persons and isinstance(persons[0], Mapping) and "landmark" not in persons[0]:
            persons = [persons]
        people = []
        for one in persons:
            marks = _listed(one.get("landmark") if isinstance(one, Mapping) else one, where, "a list of landmarks")
            rows = [[_field(mark, "x", where), _field(mark, "y", where), mark.get("visibility", 1.0)] for mark in marks]
            people.append(Person(_triples([value for row in rows for value in row], where)))
        frames.append(people)
    marks_N2 = np.concatenate([np.zeros((0, 2)), *(one.joints_V3[:, :2] for people in frames for one in people)])
    negative = int((marks_N2 < 0).any(axis=1).sum())
    if 2 * negative > len(marks_N2):
        raise UserError(f"{path}: {negative} of {len(marks_N2)} landmarks have a negative x or y, as world landmarks (metres "
                        "around the hips) have; expected pose_landmarks, parts of the picture from 0 to 1")
    return FoundPoses(frames, complete=True, relative=True)


Parser = Callable[[str, str, int], FoundPoses]
PARSERS: dict[str, Parser] = {
    "coco": parse_coco, "openpose": parse_openpose, "alphapose": parse_alphapose, "mmpose": parse_mmpose, "yolo": parse_yolo,
    "mediapipe": parse_mediapipe,
}
