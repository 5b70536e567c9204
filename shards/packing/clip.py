"""Turns one annotated clip into its tar components: decode once, crop, resize, encode, move joints to video pixels.

M persons, T annotated frames, F decoded frames, V joints.
"""

import hashlib
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

import cv2
import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, Pose
from svdata2vec.shards.atomic import npy_bytes
from svdata2vec.shards.boxes import Box, joint_box, packed_square, packed_to_source, union_box
from svdata2vec.shards.errors import UserError, readable
from svdata2vec.shards.joints import stored_boxes, to_video_pixels
from svdata2vec.shards.packing.encode import VIDEO_CODECS, BlockClipEncoder, Encoder, JpegEncoder, VideoClipEncoder
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.reading.decode import cut_off_reason
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.shown import public
from svdata2vec.shards.times import Times
from svdata2vec.shards.video import VideoInfo, VideoReader, open_bytes

# Share of a video's frames by which its length may differ from the annotation's: common frame rates differ by 4 % (24 and
# 25) or more, except 29.97 and 30, which differ by a frame in a thousand.
OTHER_RATE = 0.03
MOST_EMPTY = 0.25  # of a clip: more without anybody at its end is reported

FileState = tuple[int, int]  # size in bytes, time of the last change in ns


def file_state(path: str | Path | None) -> FileState | None:
    """State of a file; None without one, for a URL, and for a missing file, which its reader reports."""
    if path is None or "://" in str(path) or not Path(path).is_file():
        return None
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def check_unchanged(path: str | Path | None, before: FileState | None) -> None:
    """UserError if a file has changed since its state `before` reading: the bytes read may be of two versions."""
    after = file_state(path)
    if before is not None and after != before:
        now = "it is gone" if after is None else f"{before[0]} bytes, then {after[0]} bytes written later"
        raise UserError(f"{path}: changed while it was packed ({now}); pack it again when nothing writes to it")


class ClipPacker:
    """Packs clips one by one; `times` sums up the steps. Clips cut out of one video, in order, share one pass over it.

    `joined`: slots of the last clip that were joined to others of the same person. `early`: frames up to the last with
    somebody, if a file that leaves out empty frames has nobody in the last quarter of the clip or more; else 0.
    """

    def __init__(self, num_joints: int, options: PackOptions) -> None:
        self.times = Times()
        self.joined = self.early = 0
        self._num_joints, self._options = num_joints, options
        self._reader: VideoReader | None = None
        self._video_state: FileState | None = None  # when the reader was opened
        # (video, its state), sha256 of its bytes; kept because clips of one video follow each other.
        self._hashed: tuple[tuple[str, FileState | None], str] = ("", None), ""

    def pack(self, clip: ClipAnnotation) -> tuple[dict[str, bytes], int]:
        """A clip's components (name -> bytes) and number of frames.

        Raises UserError if the clip cannot be packed, or if one of its files was changed meanwhile.
        """
        skeletons = None if clip.pose_file is None else clip.pose_file.path
        with self.times.step("own"):
            skeleton_state = file_state(skeletons)
            pose = clip.load_pose()
            self.joined = 0 if pose is None else pose.joined
        with self.times.step("decode"):
            reader = self._open(clip)
        try:
            packed = self._pack_from(reader, clip, pose)
            check_unchanged(clip.video, self._video_state)
            check_unchanged(skeletons, skeleton_state)
            return packed
        except BaseException:
            self.close()
            self._hashed = ("", None), ""
            raise

    def close(self) -> None:
        """Close the video of the last clip."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _open(self, clip: ClipAnnotation) -> VideoReader:
        """The reader of the last clip if its position is not after this one's start, else a new one."""
        reader = self._reader
        if reader is None or reader.path != str(clip.video) or reader.position > clip.start_frame:
            self.close()
            self._video_state = file_state(clip.video)
            reader = self._reader = VideoReader(clip.video)
        return reader

    def _pack_from(self, reader: VideoReader, clip: ClipAnnotation, pose: Pose | None
                   ) -> tuple[dict[str, bytes], int]:
        info, options = reader.info, self._options
        with self.times.step("own"):
            people, bad_joints = None, 0
            if pose is not None:
                _check_video(clip, pose, reader, options.pose_slack)
                people, bad_joints = to_video_pixels(clip.key, pose, info, self._num_joints)
            held = None if people is None else held_box(people)
            square = packed_square(held, info.width, info.height, options.size)
        if options.codec == "copy":
            video, num_frames = self._copy(clip, reader)
            size, matrix = (info.width, info.height), np.eye(2, 3)
        else:
            video, num_frames = self._encode(clip, reader, square)
            size, matrix = (options.size, options.size), packed_to_source(*square, options.size)
        with self.times.step("own"):
            self.early = 0 if people is None else _ends_early(people, num_frames)
            people = None if people is None else people.until(num_frames)
            _check_count(clip, people, reader, num_frames, options.pose_slack)
            side = _side_parts(people, info, num_frames, self._num_joints)
            poses = num_frames if people is None else people.pose_MTVC.shape[1]
            meta = ClipMeta(
                key=clip.key, label=clip.label, num_frames=num_frames, fps=round(info.fps, 4), width=info.width,
                height=info.height, packed_width=size[0], packed_height=size[1], packed_to_source=matrix,
                source=readable(public(Path(str(clip.video)).name)), subject=clip.subject, camera=clip.camera, setup=clip.setup,
                pose_frames=None if poses == num_frames else poses, bad_joints=bad_joints,
                source_sha256=self._source_sha256(str(clip.video)), first_frame=clip.start_frame,
            )
        return {**video, **side, "json": meta.to_bytes()}, num_frames

    def _source_sha256(self, video: str) -> str:
        """Hash of the video's bytes; empty for a URL, from which they would have to be fetched again."""
        if "://" in video:
            return ""
        if self._hashed[0] != (video, self._video_state):
            with self.times.step("read"), open_bytes(video) as file:
                sha256 = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
                self._hashed = (video, self._video_state), sha256
        return self._hashed[1]

    def _encode(self, clip: ClipAnnotation, reader: VideoReader,
                square: tuple[int, int, int]) -> tuple[dict[str, bytes], int]:
        encoder: Encoder
        if self._options.codec == "jpeg":
            encoder = JpegEncoder(self._options.coded_quality, self._options.chroma)
        elif self._options.blocks is not None:
            encoder = BlockClipEncoder(self._options.blocks)
        else:
            options, codec = self._options, VIDEO_CODECS[self._options.codec]
            encoder = VideoClipEncoder(codec, options.coded_quality, options.gop, options.size, reader.info.fps)
        crops = reader.crops(*square, start=clip.start_frame, times=self.times)
        length = None if clip.end_frame is None else clip.end_frame - clip.start_frame
        num_frames = 0
        for crop in islice(crops, length):
            with self.times.step("resize"):
                frame_HWC = resize_square(crop, self._options.size)
            with self.times.step("encode"):
                encoder.add(frame_HWC)
            num_frames += 1
        if num_frames == 0:
            raise UserError(f"{clip.video}: ends before frame {clip.start_frame}, where the clip starts")
        with self.times.step("encode"):
            return encoder.finish(), num_frames

    def _copy(self, clip: ClipAnnotation, reader: VideoReader) -> tuple[dict[str, bytes], int]:
        """The video file unchanged; decoded once to count its frames and to check that it can be decoded."""
        if not reader.info.kept_as_stored:
            why = str(reader.info.orientation) or "its pixels are not square"
            raise UserError(f"{clip.video}: {why}; codec copy keeps the stream as it is, use another codec")
        if not reader.is_first_stream:
            raise UserError(f"{clip.video}: a cover picture or another video lies before the video; codec copy keeps the file, "
                            "and readers take its first video stream; use another codec")
        if clip.start_frame or clip.end_frame is not None:
            raise UserError(f"{clip.video}: the clip is a part of its video; codec copy keeps whole files, use another "
                            "codec")
        with self.times.step("decode"):
            num_frames = reader.count()
        if reader.hides_frames:
            raise UserError(f"{clip.video}: an edit list hides some of its frames; codec copy keeps the stream as it is, use "
                            "another codec")
        with self.times.step("read"), open_bytes(clip.video) as file:
            content = file.read()
        check_unchanged(clip.video, self._video_state)
        if (problem := cut_off_reason(np.frombuffer(content, np.uint8))) is not None:  # as the decoder would report later
            raise UserError(f"{clip.video}: {problem}")
        return {container_component(str(clip.video)): content}, num_frames


def resize_square(crop_HWC: np.ndarray, size: int) -> np.ndarray:
    """The square at the stored size; unchanged if it already has that size.

    Cubic without antialias came 0.5 to 2 dB closer to the method's own crop (bilinear, straight from the source) than
    area averaging or bilinear did, at every scale up to 3 (tried once, 2026-11-22, no record).
    """
    if crop_HWC.shape[0] == size:
        return crop_HWC
    return cv2.resize(crop_HWC, (size, size), interpolation=cv2.INTER_CUBIC)


def container_component(video: str) -> str:
    """Component name of a copied video: its extension in lower case."""
    return PurePosixPath(video).suffix.lower().lstrip(".")


def held_box(people: Pose) -> Box | None:
    """Box of what the stored square is put around: all joints of the whole clip, whatever their scores, and its boxes."""
    found = [joint_box(people.pose_MTVC), None if people.box_T4 is None else union_box(people.box_T4)]
    return union_box(np.array([box for box in found if box is not None]).reshape(-1, 4))


def _check_video(clip: ClipAnnotation, pose: Pose, reader: VideoReader, slack: int) -> None:
    """UserError if a clip is cut out of a video of another length than the annotation's: its frames would be the wrong ones."""
    poses, frames = pose.video_frames, reader.stated_frames
    if poses is not None and frames and abs(frames - poses) > max(slack, OTHER_RATE * poses):
        raise UserError(f"{clip.video}: {frames} frames but {poses} poses of the whole video, whose frame numbers cut out the "
                        "clips; expected the video at its own frame rate (if only the ends differ, pack with "
                        f"--pose-slack {abs(frames - poses)})")


def _check_count(clip: ClipAnnotation, people: Pose | None, reader: VideoReader, num_frames: int, slack: int) -> None:
    whole = clip.start_frame == 0 and clip.end_frame is None
    expected = people.pose_MTVC.shape[1] if people is not None else clip.num_frames
    if people is not None and clip.num_frames is not None and clip.num_frames != expected:
        raise UserError(f"{clip.video}: the annotation has {expected} poses but says total_frames = {clip.num_frames}")
    if expected is not None and abs(num_frames - expected) > slack:
        raise UserError(f"{clip.video}: {num_frames} video frames but {expected} poses; the video is cut short, or the "
                        "poses belong to another video or skip frames")
    counted = expected is not None and not (people is not None and people.open_end)
    problem = reader.cut_short() if whole and not counted else None
    if problem is not None:
        raise UserError(f"{clip.video}: cut short, {problem}")


def _ends_early(people: Pose, num_frames: int) -> int:
    """See `ClipPacker.early`: everybody may have left, or the program was stopped, or skipped frames and did not say so."""
    there = people.pose_MTVC.shape[1]
    filled = people.until(num_frames)
    early = people.open_end and there <= (1 - MOST_EMPTY) * num_frames and not filled.pose_MTVC[:, there:].any()
    return there if early else 0


def _side_parts(people: Pose | None, info: VideoInfo, num_frames: int, num_joints: int) -> dict[str, bytes]:
    """pose.npy, score.npy (if there are scores) and box.npy, all with exactly `num_frames` frames."""
    if people is None:  # video alone: the whole picture is the box
        box_T4 = np.tile(np.array([0, 0, info.width, info.height], np.float32), (num_frames, 1))
        pose_MTVC = np.zeros((0, num_frames, num_joints, 2), np.float32)
        return {"pose.npy": npy_bytes(pose_MTVC), "box.npy": npy_bytes(box_T4)}
    if people.pose_MTVC.shape[1] == 0:
        raise UserError("the annotation has no frame")
    frames_F = np.minimum(np.arange(num_frames), people.pose_MTVC.shape[1] - 1)
    pose_MTVC = people.pose_MTVC[:, frames_F]
    parts = {"pose.npy": npy_bytes(pose_MTVC), "box.npy": npy_bytes(stored_boxes(people)[frames_F])}
    if people.score_MTV is not None:
        parts["score.npy"] = npy_bytes(people.score_MTV[:, frames_F])
    return parts
