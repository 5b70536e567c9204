"""Where the persons of a video are: in a box that is given, in a file of poses, or where the picture moves.

F frames, h w sides of the small grey pictures, M persons, V joints
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from svdata2vec.evaluation.span import Span, check_span
from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.boxes import MIN_BOX_PX, Box, union_box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.joints import stored_boxes, to_video_pixels
from svdata2vec.shards.packing.clip import OTHER_RATE, held_box
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.readers.media import plain_name, without_extension
from svdata2vec.shards.readers.pyskl import NO_BOX, load_pickle, pose_of
from svdata2vec.shards.readers.text import spelled
from svdata2vec.shards.video import VideoInfo, VideoReader, numbered_pictures

LONGER_SIDE = 160  # of the small pictures: a person is some twenty pixels high, noise is averaged away
MAX_FRAMES = 64
SMALLEST_CHANGE = 10.0  # grey levels
CHANGE_OVER_NOISE = 6.0  # standard deviations of the noise
LARGEST_NOISE = 5.0  # grey levels; where the typical change is larger, the camera moves
SMALLEST_REGION = 0.001  # of the picture; less is a flicker
LARGEST_REGION = 0.6  # of the picture; more is the camera


@dataclass(frozen=True)
class Persons:
    """What was found in a video.

    Attributes:
        box: around all persons in all frames; None = no one was found, NO_BOX = as in a packed clip without persons.
        how: what was done, for the user to read.
        held: of poses, around what the square of their packed clip is put (`held_box`); None = around the box.
    """

    box: Box | None
    how: str
    held: Box | None = None


def find_persons(
    video: Path,
    box: Box | None,
    poses: Path | None,
    whole_picture: bool,
    trained_on_whole: bool = False,
    frames: Span | None = None,
) -> Persons:
    """What to crop a video around: the box that is given, the persons of a file of poses, or the region that moves.

    A network that was trained on whole pictures sees them whole, unless a box or poses are given. `frames`: the part of the
    video that counts; UserError unless the video has it.
    """
    box = None if box is None else _four_numbers(box)
    if sum((box is not None, poses is not None, whole_picture)) > 1:
        raise UserError("--box, --poses and --whole-picture exclude each other; give one of them, or none")
    if not video.is_file() and not (video.is_dir() and numbered_pictures(video)):
        found = "is a folder without numbered pictures" if video.is_dir() else "no such file"
        raise UserError(f"{video}: {found}; expected a video")
    looks = box is None and poses is None and not whole_picture and not trained_on_whole
    with VideoReader(video) as reader:
        info = reader.info
        if frames is not None and not (looks and 0 <= frames[0] < frames[1]):  # else `moving_region` does
            check_span(reader, frames)
    if box is not None:
        _check_box(box, info, video)
        return Persons(box, "the box that was given")
    if whole_picture:
        return Persons(None, "looked for nobody")
    if poses is not None:
        persons = persons_of_poses(poses, video, info, frames)
        return persons if persons.box is not None or trained_on_whole else replace(persons, box=NO_BOX)
    return moving_region(video, info, frames) if looks else Persons(None, "as the network was trained")


def _four_numbers(box: Box) -> Box:
    """A box as floats, from any four numbers."""
    try:
        x1, y1, x2, y2 = (float(edge) for edge in box)
    except (TypeError, ValueError) as error:
        raise UserError(f"box {box!r}: expected four numbers, x1, y1, x2, y2 in pixels") from error
    return x1, y1, x2, y2


def too_small(box: Box) -> bool:
    """Whether a box is so narrow or low that clips with it show the whole picture, squeezed into a square."""
    return min(box[2] - box[0], box[3] - box[1]) < MIN_BOX_PX


def _check_box(box: Box, info: VideoInfo, video: Path) -> None:
    x1, y1, x2, y2 = box
    reach = max(info.width, info.height)  # of a box beyond the picture
    inside = -reach <= x1 < info.width and -reach <= y1 < info.height and 0 < x2 <= info.width + reach
    if not (inside and 0 < y2 <= info.height + reach and x1 < x2 and y1 < y2):
        raise UserError(
            f"box {','.join(f'{v:g}' for v in box)} is empty, outside the {info.width}x{info.height} picture of {video}, "
            "or far larger; expected x1,y1,x2,y2 in pixels with x1 < x2 and y1 < y2"
        )
    if too_small(box):
        raise UserError(f"box {','.join(f'{v:g}' for v in box)} has a side below {MIN_BOX_PX:g} pixels; expected one around a "
                        "person that can be recognised")


def persons_of_poses(poses: Path, video: Path, info: VideoInfo, frames: Span | None = None) -> Persons:
    """The union of the boxes that packing would store with a video's annotation in a pickle, as extract_poses.py writes it.

    `frames`: the part of the video that counts, None = all of it.

    Raises:
        UserError: no such file, or it has no or several annotations of a video of that name, or one without joints, or of
            another number of frames than the video has.
    """
    entries = _annotations_of(video, load_pickle(poses)["annotations"])
    if len(entries) != 1:
        raise UserError(
            f"{poses}: has {len(entries)} annotations of {video.stem}, expected one; run tools/pose/extract_poses.py"
        )
    try:
        pose = _part(pose_of(entries[0]), frames, video)
        people, _ = to_video_pixels(video.stem, pose, info, pose.pose_MTVC.shape[2])
    except (UserError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{poses}: the annotation of {video.stem} cannot be used ({error})") from error
    box = union_box(stored_boxes(people))
    if box is None:
        return Persons(None, f"nobody in {poses}")
    return Persons(box, f"the persons in {poses}", held_box(people))


def _part(pose: Pose, frames: Span | None, video: Path) -> Pose:
    """The poses of these frames, None = all; UserError if there are none, or if they are of another video or frame rate."""
    poses = pose.pose_MTVC.shape[1]
    slack = max(PackOptions.pose_slack, OTHER_RATE * poses)
    with VideoReader(video) as reader:
        found = reader.stated_frames
        if abs(found - poses) > slack if found else frames is None:  # of a variable rate, or with hidden frames: not as stated
            found = reader.count()
    if found and abs(found - poses) > slack:
        raise UserError(f"it has {poses} frames, the video {found}: it belongs to another one, or to one of another frame rate")
    if frames is None:
        return pose
    if poses < frames[1]:
        raise UserError(f"it has {poses} frames; expected frames {frames[0]} to {frames[1]}")
    return pose.between(*frames)


def _annotations_of(video: Path, entries: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Those whose names packing would find this video by; of several those with its folder in front, or its own name."""
    stem = spelled(PurePosixPath(plain_name(video)).name)
    found = []
    for entry in entries:
        if isinstance(entry, Mapping):
            name = spelled(str(entry.get("frame_dir", entry.get("filename", ""))))
            places = map(PurePosixPath, (name, without_extension(name)))
            place = next((place for place in places if stem in (place.name, f"{place.name}_rgb")), None)
            if place is not None:
                found.append((place.parent.name, (place.name != stem, str(place) != name), entry))
    in_folder = [one for one in found if one[0] == spelled(video.resolve().parent.name)]
    found = in_folder if len(found) > 1 and in_folder else found
    return [entry for _, strange, entry in found if strange == min(other for _, other, _ in found)]


def moving_region(video: Path, info: VideoInfo, frames: Span | None = None) -> Persons:
    """The region that differs from the still background, the median over time; for cameras that stand still.

    `frames`: the part of the video that is looked at, None = all of it; UserError unless the video has it.

    A person who does not move is not found, and anything else that moves is taken for one.
    """
    small_Fhw = _small_pictures(video, info, *(frames or (0, None)))
    change_Fhw = np.abs(small_Fhw - np.median(small_Fhw, axis=0))
    noise = min(1.4826 * float(np.median(change_Fhw)), LARGEST_NOISE)
    moving_Fhw = (change_Fhw > max(SMALLEST_CHANGE, CHANGE_OVER_NOISE * noise)).astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    region_hw = np.stack([cv2.morphologyEx(moving_hw, cv2.MORPH_OPEN, cross) for moving_hw in moving_Fhw]).max(axis=0)
    if region_hw.mean() > LARGEST_REGION:
        return Persons(None, f"{100 * region_hw.mean():.0f} % of the picture moves, the camera too, it seems")
    _, _, stats_R5, _ = cv2.connectedComponentsWithStats(region_hw, connectivity=8)
    regions = [stats for stats in stats_R5[1:] if stats[cv2.CC_STAT_AREA] >= SMALLEST_REGION * region_hw.size]
    if not regions:
        return Persons(None, "nothing moves")
    left, top, width, height = np.array(regions)[:, :4].T
    scale_x, scale_y = info.width / region_hw.shape[1], info.height / region_hw.shape[0]
    box = (left.min() * scale_x, top.min() * scale_y, (left + width).max() * scale_x, (top + height).max() * scale_y)
    moving = _four_numbers(box)
    return Persons(None, f"what moves is below {MIN_BOX_PX:g} pixels") if too_small(moving) else Persons(moving, "what moves")


def _small_pictures(video: Path, info: VideoInfo, start: int, stop: int | None) -> np.ndarray:
    """float32 (F, h, w) grey: at most MAX_FRAMES, evenly spaced over the frames from `start` to `stop` (None = the end)."""
    scale = min(LONGER_SIDE / max(info.width, info.height), 1.0)
    size = max(round(info.width * scale), 1), max(round(info.height * scale), 1)
    kept: list[np.ndarray] = []
    stride = 1
    with VideoReader(video) as reader:
        squares = reader.crops(0, 0, max(info.width, info.height), start=start)
        for number, square in enumerate(islice(squares, None if stop is None else stop - start)):
            if number % stride:
                continue
            grey = cv2.cvtColor(square[: info.height, : info.width], cv2.COLOR_RGB2GRAY)
            kept.append(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
            if len(kept) == MAX_FRAMES:  # full: every second one makes room for the rest
                kept, stride = kept[::2], 2 * stride
        if stop is not None:
            check_span(reader, (start, stop))
    return np.stack(kept).astype(np.float32)
