"""Turns one annotated clip into its tar components: decode once, crop, resize, encode, move joints to video pixels.

M persons, T annotated frames, F decoded frames, V joints.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, Pose
from svdata2vec.shards.boxes import joint_box, packed_square, packed_to_source, person_boxes, union_box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.encode import VIDEO_CODECS, Encoder, JpegEncoder, VideoEncoder, npy_bytes
from svdata2vec.shards.packing.video_pose import VideoPose, to_video_pixels
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.video import VideoInfo, VideoReader, open_bytes


@dataclass(frozen=True)
class ClipOptions:
    """How the frames of a clip are stored. `gop` 0 = one group of pictures per clip; `pose_slack`: poses that may be
    missing or too many at a clip's end (the last one is repeated, or the surplus dropped)."""

    codec: str
    quality: int
    chroma: str
    gop: int
    size: int
    pose_slack: int


@dataclass
class Times:
    """Seconds spent per step, summed over clips."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True)
class PackedClip:
    """Components of one clip (name -> bytes) and its number of frames."""

    parts: dict[str, bytes]
    num_frames: int


class Readers:
    """Hands out video readers; clips cut out of one video, taken in order, share a single pass over it."""

    def __init__(self) -> None:
        self._kept: VideoReader | None = None

    def take(self, clip: ClipAnnotation) -> VideoReader:
        """A reader that stands at or before the clip's start. Whoever takes it closes it or gives it back."""
        kept, self._kept = self._kept, None
        if kept is not None and kept.path == str(clip.video) and kept.position <= clip.start_frame:
            return kept
        if kept is not None:
            kept.close()
        return VideoReader(clip.video)

    def give_back(self, reader: VideoReader, clip: ClipAnnotation) -> None:
        """Keep the reader if more clips of its video may follow."""
        if clip.end_frame is None:
            reader.close()
        else:
            self._kept = reader

    def close(self) -> None:
        """Close the reader that is kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def pack_clip(clip: ClipAnnotation, num_joints: int, options: ClipOptions, times: Times,
              readers: Readers) -> PackedClip:
    """Pack one clip. Raises UserError with the reason if the clip cannot be packed."""
    with times.step("own"):
        pose = clip.load_pose()
    with times.step("decode"):
        reader = readers.take(clip)
    try:
        packed = _pack_from(reader, clip, pose, num_joints, options, times)
    except BaseException:
        reader.close()
        raise
    readers.give_back(reader, clip)
    return packed


def _pack_from(reader: VideoReader, clip: ClipAnnotation, pose: Pose | None, num_joints: int, options: ClipOptions,
               times: Times) -> PackedClip:
    info = reader.info
    with times.step("own"):
        people = None if pose is None else to_video_pixels(clip.key, pose, info, num_joints)
        square = _square(people, info, options.size)
    if options.codec == "copy":
        video, num_frames = _copy(clip, reader, times)
    else:
        video, num_frames = _encode(clip, reader, square, options, times)
    with times.step("own"):
        _check_count(clip, people, info, num_frames, options.pose_slack)
        side = _side_parts(people, info, num_frames, num_joints)
        meta = _meta(clip, people, info, num_frames, square, options)
        return PackedClip({**video, **side, "json": meta.to_bytes()}, num_frames)


def _square(people: VideoPose | None, info: VideoInfo, size: int) -> tuple[int, int, int]:
    """The stored square (x, y, side): around all joints and boxes of the whole clip."""
    if people is None:
        return packed_square(None, info.width, info.height, size)
    found = [joint_box(people.pose_MTVC)]
    if people.box_T4 is not None:
        found.append(union_box(people.box_T4))
    boxes = [box for box in found if box is not None]
    return packed_square(union_box(np.array(boxes)) if boxes else None, info.width, info.height, size)


def _encode(clip: ClipAnnotation, reader: VideoReader, square: tuple[int, int, int], options: ClipOptions,
            times: Times) -> tuple[dict[str, bytes], int]:
    encoder: Encoder
    if options.codec == "jpeg":
        encoder = JpegEncoder(options.quality, options.chroma)
    else:
        codec = VIDEO_CODECS[options.codec]
        encoder = VideoEncoder(codec, options.quality, options.gop, options.size, reader.info.fps)
    crops = reader.crops(*square, start=clip.start_frame, times=times)
    length = None if clip.end_frame is None else clip.end_frame - clip.start_frame
    num_frames = 0
    for crop in islice(crops, length):
        with times.step("resize"):
            frame_HWC = resize_square(crop, options.size)
        with times.step("encode"):
            encoder.add(frame_HWC)
        num_frames += 1
    if num_frames == 0:
        raise UserError(f"{clip.video}: ends before frame {clip.start_frame}, where the clip starts")
    with times.step("encode"):
        return encoder.finish(), num_frames


def resize_square(crop_HWC: np.ndarray, size: int) -> np.ndarray:
    """The square at the stored size; unchanged if it has it already.

    Cubic without antialias comes 0.5 to 2 dB closer to the method's own crop (bilinear, straight from the source) than
    area averaging or bilinear do, at every scale up to 3.
    """
    if crop_HWC.shape[0] == size:
        return crop_HWC
    return cv2.resize(crop_HWC, (size, size), interpolation=cv2.INTER_CUBIC)


def _copy(clip: ClipAnnotation, reader: VideoReader, times: Times) -> tuple[dict[str, bytes], int]:
    """The video file as it is; decoded once to count its frames and to know that it can be."""
    if reader.info.rotation:
        raise UserError(f"{clip.video}: turned by {reader.info.rotation} degrees; codec copy keeps the stream as it "
                        "is, use another codec")
    if clip.start_frame or clip.end_frame is not None:
        raise UserError(f"{clip.video}: the clip is a part of its video; codec copy keeps whole files, use another "
                        "codec")
    with times.step("decode"):
        num_frames = reader.count()
    with times.step("read"), open_bytes(clip.video) as file:
        return {container_component(str(clip.video)): file.read()}, num_frames


def container_component(video: str) -> str:
    """Component name of a copied video: its extension in lower case."""
    return PurePosixPath(video).suffix.lower().lstrip(".")


def _check_count(clip: ClipAnnotation, people: VideoPose | None, info: VideoInfo, num_frames: int, slack: int) -> None:
    whole = clip.start_frame == 0 and clip.end_frame is None
    expected = people.pose_MTVC.shape[1] if people is not None else clip.num_frames
    if people is not None and clip.num_frames is not None and clip.num_frames != expected:
        raise UserError(f"{clip.video}: the annotation has {expected} poses but says total_frames = {clip.num_frames}")
    if expected is not None and abs(num_frames - expected) > slack:
        raise UserError(f"{clip.video}: {num_frames} video frames but {expected} poses; the video is cut short, or the "
                        "poses belong to another video or skip frames")
    if expected is None and whole and num_frames < info.claimed_frames - slack:
        raise UserError(f"{clip.video}: cut short, {num_frames} of {info.claimed_frames} frames can be decoded")


def _side_parts(people: VideoPose | None, info: VideoInfo, num_frames: int, num_joints: int) -> dict[str, bytes]:
    """pose.npy, score.npy (if there are scores) and box.npy, all with exactly `num_frames` frames."""
    if people is None:  # video alone: the whole picture is the box
        box_T4 = np.tile(np.array([0, 0, info.width, info.height], np.float32), (num_frames, 1))
        pose_MTVC = np.zeros((0, num_frames, num_joints, 2), np.float32)
        return {"pose.npy": npy_bytes(pose_MTVC), "box.npy": npy_bytes(box_T4)}
    if people.pose_MTVC.shape[1] == 0:
        raise UserError("the annotation has no frame")
    frames_F = np.minimum(np.arange(num_frames), people.pose_MTVC.shape[1] - 1)
    pose_MTVC = people.pose_MTVC[:, frames_F]
    box_T4 = person_boxes(pose_MTVC) if people.box_T4 is None else people.box_T4[frames_F]
    parts = {"pose.npy": npy_bytes(pose_MTVC), "box.npy": npy_bytes(box_T4)}
    if people.score_MTV is not None:
        parts["score.npy"] = npy_bytes(people.score_MTV[:, frames_F])
    return parts


def _meta(clip: ClipAnnotation, people: VideoPose | None, info: VideoInfo, num_frames: int,
          square: tuple[int, int, int], options: ClipOptions) -> ClipMeta:
    poses = num_frames if people is None else people.pose_MTVC.shape[1]
    meta = ClipMeta(
        key=clip.key, label=clip.label, num_frames=num_frames, fps=round(info.fps, 4),
        width=info.width, height=info.height, packed_width=options.size, packed_height=options.size,
        packed_to_source=packed_to_source(*square, options.size), source=Path(str(clip.video)).name,
        subject=clip.subject, camera=clip.camera, setup=clip.setup,
        pose_frames=None if poses == num_frames else poses, bad_joints=0 if people is None else people.bad_joints,
    )
    if options.codec != "copy":
        return meta
    identity = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return replace(meta, packed_width=info.width, packed_height=info.height, packed_to_source=identity)
