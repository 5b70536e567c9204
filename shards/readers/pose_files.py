"""Reads your own videos with the poses that another program found. `pose_formats.py` parses the files.

M persons, T frames, V joints.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, Pose, PoseFile, Skipped
from svdata2vec.shards.errors import SERVER_ERRORS, TOO_MANY_FILES, UserError, reason_of, require_machine, require_memory
from svdata2vec.shards.layouts import COCO17, layout, to_coco17
from svdata2vec.shards.npy import read_npy
from svdata2vec.shards.ranges import Range, Share, check_number
from svdata2vec.shards.readers.found_poses import RELATIVE_SCALE
from svdata2vec.shards.readers.joint_order import choose_layout
from svdata2vec.shards.readers.media import folders_of, plain_name, strange_folder, without_extension
from svdata2vec.shards.readers.pose_formats import OPENPOSE_NAME, PARSERS, YOLO_NAME, coco_videos
from svdata2vec.shards.readers.text import spelled
from svdata2vec.shards.readers.videos import read_video_csv, read_video_folder
from svdata2vec.shards.readers.walk import Walk, walk
from svdata2vec.shards.tracking import TrackingOptions, track_persons

FORMATS = (*PARSERS, "npz")
# The joints of each program's own models; other layouts are recognised by their number of joints, or named by the user.
USUAL = {"coco": {17: "coco17"}, "openpose": {25: "body25", 18: "openpose18"}, "alphapose": {17: "coco17", 26: "halpe26"},
         "mmpose": {17: "coco17", 26: "halpe26"}, "yolo": {17: "coco17"}, "mediapipe": {33: "mediapipe33"},
         "npz": {17: "coco17"}}
MOST_PERSONS = 100
CHECKED_CLIPS = 20  # whose joints are compared with the layout
AS_NAMED = "`svdata2vec shard poses-json --help` says how files of each format are named"


def read_pose_files(videos: str | Path, poses: str | Path, *, format: str, name: str | None = None,
                    joints: str | None = None, as_coco17: bool = False, persons: Annotated[int, Range(1, MOST_PERSONS)] = 2,
                    min_score: Share = 0.3, split_by: str | None = None) -> DataSet:
    """Your own videos, and the poses that another program found in them, one file per video.

    A pose file has its video's name: walk/001.json, or 001.json if that name occurs once; walk/001.json is never taken for
    run/001.mp4 where both videos and poses are in folders. Where the format has a file per frame, these are in one folder,
    under the video's name and a frame number. Persons are tracked from frame to frame as tools/pose/extract_poses.py does,
    whatever track numbers the file has. Videos without poses of their own are listed in skipped.jsonl.

    Formats:
      - coco: keypoint JSON with images and annotations, a file per video, or one file for all whose images are in a folder
        per video (001/000012.jpg) or name it by video_id. frame_id, else file_name's last number, is the frame; above 1 the
        first may be that of a longer video, or frames before it show nobody, whichever fits with the number of frames
      - openpose: folder of --write_json, VIDEO_000000000012_keypoints.json
      - alphapose: alphapose-results.json, as VIDEO.json or in a folder VIDEO
      - mmpose: predictions/VIDEO.json of the inferencer, or of a demo script
      - yolo: labels/VIDEO_12.txt of Ultralytics' save_txt (without vid_stride: its numbers count the frames that are taken), or
        VIDEO.json, a list of Results.to_json per frame
      - mediapipe: VIDEO.json, a list with the landmarks x, y, visibility of every frame, null for nobody
      - npz: VIDEO.npz with keypoint (M, T, V, 2) in pixels, both 0 where missing, and perhaps score (M, T, V), box (T, 4) as
        x1, y1, x2, y2, and img_shape, height and width if not the video's; persons are taken as they are

    Args:
        videos: Folder with class/video.mp4 or split/class/video.mp4, or a table path,label,split, as of `shard csv`.
        poses: Folder of the pose files, searched with its sub-folders, or one file.
        format: Format of the pose files: coco, openpose, alphapose, mmpose, yolo, mediapipe or npz.
        name: Name of the data set; by default that of the folder or table of videos.
        joints: Joint layout, as of `shard pyskl`; by default the one that the program writes with so many joints.
        as_coco17: Keep only the 17 joints of COCO, by name; those that the layout lacks are missing.
        persons: Main persons to keep per clip (npz: all are kept).
        min_score: Detections with a lower score are ignored, from 0 to 1.
        split_by: Make splits train and val instead: random, or random:0.2 with the share of clips for val.

    Raises:
        UserError: a folder does not exist, or holds no video or no pose file of this format.
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}: expected one of {', '.join(FORMATS)}")
    check_number("persons", persons, 1, MOST_PERSONS, whole=True)
    check_number("min_score", min_score, 0, 1)
    read = read_video_csv if Path(videos).is_file() else read_video_folder
    dataset = read(videos, name=name, split_by=split_by)
    skipped = list(dataset.skipped)
    placed = _placed(dataset.clips, _Places(poses, format), skipped)
    if not placed:
        raise UserError(f"{poses}: no {format} poses of any of the {len(dataset.clips)} videos, e.g. {skipped[-1].reason}; "
                        f"{AS_NAMED}")

    def with_poses(num_joints: int, coco17_of: str | None) -> list[ClipAnnotation]:
        return [
            replace(clip, pose_file=PoseFile(read_poses, path, (format, item, num_joints, coco17_of, persons, min_score)))
            for clip, path, item in placed
        ]

    found = _first_poses(with_poses(len(layout(joints or "coco17").joints), None))
    counts = {pose.shape[2] for pose in found}
    chosen = choose_layout(found, joints, USUAL[format].get(next(iter(counts))) if len(counts) == 1 else None, poses)
    clips = with_poses(len(chosen.joints), chosen.name if as_coco17 else None)
    return replace(dataset, layout=COCO17 if as_coco17 else chosen, clips=clips, skipped=skipped)


def _placed(
    clips: Sequence[ClipAnnotation], places: "_Places", skipped: list[Skipped]
) -> list[tuple[ClipAnnotation, str, str]]:
    """The clips whose videos have poses, with path and item of these; the others are `skipped`.

    If several videos find the same poses by name, these belong to the video that shares most folders with them, and to none in
    another folder (`strange_folder`).
    """
    shared = places.folders() & folders_of(spelled(str(clip.video)) for clip in clips)
    fits_of: dict[tuple[str, str], list[tuple[int, ClipAnnotation]]] = {}
    for clip in clips:
        try:
            path, item, fit = places.of(str(clip.video))
        except UserError as error:
            skipped.append(Skipped(clip.key, str(error), str(clip.video)))
        else:
            fits_of.setdefault((path, item), []).append((fit, clip))
    found = []
    as_videos = "put them into folders as the videos are"
    for (path, item), fits in fits_of.items():
        other_of = {clip.key: strange_folder(spelled(str(clip.video)), places.names_of(path, item), shared) for _, clip in fits}
        own = [(fit, clip) for fit, clip in fits if other_of[clip.key] is None]
        most = max((fit for fit, _ in own), default=0)
        owners = [clip for fit, clip in own if fit == most]
        if len(owners) == 1:
            found.append((owners[0], path, item))
        for _, clip in fits:
            if len(owners) == 1:
                reason = f"{path}: the poses are of '{owners[0].video}', which has the same name"
            elif other_of[clip.key] is not None:
                reason = f"{path}: poses of this name, but of folder {other_of[clip.key]!r}; {as_videos}"
            else:
                reason = f"{path}: poses of '{owners[0].video}' or of '{owners[1].video}'; {as_videos}"
            if owners != [clip]:
                skipped.append(Skipped(clip.key, reason, str(clip.video)))
    return found


def _first_poses(clips: Sequence[ClipAnnotation]) -> list[np.ndarray]:
    """Joints of some clips; unreadable ones are left for packing to report. UserError if all are unreadable."""
    found: list[np.ndarray] = []
    reason = ""
    for clip in clips:
        assert clip.pose_file is not None
        try:
            pose = read_poses(clip.pose_file.path, *clip.pose_file.arguments)
        except Exception as error:  # noqa: BLE001 - packing names the clip
            require_machine(error, clip.pose_file.path)
            reason = reason or reason_of(error, clip.pose_file.path)
            continue
        found.append(pose.pose_MTVC)
        if len(found) == CHECKED_CLIPS:
            break
    if not found:
        raise UserError(f"none of the poses of {len(clips)} videos can be read; the first: {reason}")
    return found


def read_poses(path: str, format: str, item: str, num_joints: int, coco17_of: str | None, persons: int,
               min_score: float) -> Pose:
    """The main persons of one video's pose file, a slot each. `coco17_of`: the layout to convert to COCO-17, or None.

    All detections must have the same number of joints; `num_joints` is used if the file does not state it.
    """
    if format == "npz":
        pose = _read_npz(path)
    else:
        found = PARSERS[format](path, item, num_joints)
        counts = {len(person.joints_V3) for people in found.frames for person in people}
        if len(counts) > 1:
            raise UserError(f"{path}: persons of {' and '.join(map(str, sorted(counts)))} joints; expected one layout")
        frames = found.detections(next(iter(counts), num_joints), path)
        if not frames:
            raise UserError(f"{path}: no frame of {item or 'the video'}")
        main = track_persons(frames, TrackingOptions(min_score=min_score, persons=persons))
        scale = RELATIVE_SCALE if found.relative else 1.0
        width, height = (1, 1) if found.relative else found.size or (None, None)
        box_T4 = main.box_T5[:, :4] / scale if found.has_boxes else None
        pose = Pose(main.joints_MTV2 / scale, main.joint_score_MTV, box_T4, width, height, open_end=not found.complete,
                    first_number=found.first_number)
    if coco17_of is None:
        return pose
    source = layout(coco17_of)
    if pose.pose_MTVC.shape[2] != len(source.joints):
        raise UserError(f"{path}: {pose.pose_MTVC.shape[2]} joints per person, layout {source.name} has {len(source.joints)}")
    score_MTV = None if pose.score_MTV is None else to_coco17(pose.score_MTV, source, 2)
    return replace(pose, pose_MTVC=to_coco17(pose.pose_MTVC, source, 2), score_MTV=score_MTV)


def _arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: read_npy(partial(file.__getitem__, key)) for key in file.files}


def _read_npz(path: str) -> Pose:
    try:
        content = _arrays(path)
    except Exception as error:  # a damaged archive fails in many ways
        if isinstance(error, OSError) and error.errno in (*SERVER_ERRORS, *TOO_MANY_FILES):
            raise  # no fault of the file
        require_memory(error, path)
        raise UserError(f"{path}: not a readable .npz ({error})") from error
    if "keypoint" not in content:
        raise UserError(f"{path}: has no 'keypoint'; it has {', '.join(content) or 'nothing'}")
    keypoint, score, box = content["keypoint"], content.get("score"), content.get("box")
    if keypoint.ndim == 3:  # one person
        keypoint, score = keypoint[None], None if score is None or score.ndim == 3 else score[None]
    if keypoint.ndim != 4 or keypoint.shape[3] != 2 or keypoint.dtype.kind not in "fiu":
        raise UserError(f"{path}: keypoint is {keypoint.dtype} of shape {keypoint.shape}, expected numbers (persons, frames, "
                        "joints, 2)")
    shape = content.get("img_shape")
    if shape is not None and shape.shape != (2,):
        raise UserError(f"{path}: img_shape has shape {shape.shape}, expected height and width")
    height, width = (None, None) if shape is None else (int(shape[0]), int(shape[1]))
    return Pose(keypoint, score, box, width, height)


class _Places:
    """Finds the poses of videos by the video's name, alone or with one or two folders in front."""

    def __init__(self, poses: str | Path, format: str) -> None:
        self.poses, self.format = poses, format
        self._by_tail: dict[str, set[tuple[str, str]]] = {}
        self._names: dict[tuple[str, str], set[str]] = {}
        found = Walk(str(Path(poses).parent), [str(poses)]) if Path(poses).is_file() else walk(poses, f"the {format} poses")
        above = len(PurePosixPath(found.root).parts)
        for video, path, item in _named(found.files, format):
            parts = PurePosixPath(spelled(video)).parts
            self._names.setdefault((path, item), set()).add("/".join(parts[above:]))
            for count in range(1, min(len(parts), 3) + 1):
                self._by_tail.setdefault("/".join(parts[-count:]), set()).add((path, item))
        if not self._by_tail:
            raise UserError(f"{poses}: no {format} poses in it; {AS_NAMED}")

    def names_of(self, path: str, item: str) -> list[str]:
        """Names that the video of these poses may have, with the folders below that of the poses."""
        return sorted(self._names[path, item])

    def folders(self) -> set[tuple[int, str]]:
        """`folders_of` all poses."""
        return folders_of(name for names in self._names.values() for name in names)

    def of(self, video: str) -> tuple[str, str, int]:
        """(path, item) of a video's poses, and how many parts of its path match. UserError if there are none, or several."""
        for name in dict.fromkeys((without_extension(spelled(video)), spelled(plain_name(video)))):
            parts = PurePosixPath(name).parts
            for count in (3, 2, 1):
                found = sorted(self._by_tail.get("/".join(parts[-count:]), ()))
                if len(found) > 1:
                    raise UserError(f"poses of '{parts[-1]}' are in '{found[0][0]}' and in '{found[1][0]}'; put them into "
                                    "folders as the videos are, or remove one")
                if found:
                    return *found[0], count
        raise UserError(f"no {self.format} poses of '{parts[-1]}' below {self.poses}")


def _coco_videos(file: str, one_of_many: bool) -> Sequence[str]:
    """The videos of a COCO file. If it is one of many and unreadable, the video of its name, so that packing reports why."""
    try:
        return list(coco_videos(file))
    except Exception:
        if not one_of_many:
            raise
        return [PurePosixPath(file).stem]


def _named(files: Sequence[str], format: str) -> Iterator[tuple[str, str, str]]:
    """(video's path without extension, path, item) of all poses in these files."""
    for file in files:
        path = PurePosixPath(file)
        frame = {"openpose": OPENPOSE_NAME, "yolo": YOLO_NAME}.get(format)
        match = None if frame is None else frame.fullmatch(path.name)
        if match is not None:
            yield str(path.parent / match[1]), str(path.parent), match[1]
            parents = path.parent.parts
            yield (str(PurePosixPath(*parents[:-1], match[1])) if parents else match[1]), str(path.parent), match[1]
        elif format == "coco" and path.suffix == ".json":
            for video in _coco_videos(file, one_of_many=len(files) > 1):
                place = path.with_suffix("") if video == path.stem else path.parent / without_extension(video)
                yield str(place), file, video
        elif format == "npz" and path.suffix == ".npz":
            yield str(path.with_suffix("")), file, ""
        elif format == "alphapose" and path.name == "alphapose-results.json":
            yield str(path.parent), file, ""
        elif format not in ("openpose", "coco", "npz") and path.suffix == ".json":
            yield str(path.with_suffix("")), file, ""
