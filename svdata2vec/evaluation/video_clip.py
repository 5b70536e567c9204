"""A video file as the network sees it: sampled and cropped exactly as evaluation prepares packed clips.

M persons, T sampled frames, F frames of the video, V joints, C coordinates, S side of the crop
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from svdata2vec.config.schema import DataConfig
from svdata2vec.evaluation.persons import Box
from svdata2vec.pipeline import affine
from svdata2vec.pipeline.plan import ClipPlan, make_plan
from svdata2vec.pipeline.reference import resample
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.video import VideoInfo, VideoReader

MARGIN_PX = 2  # around the crop: bilinear sampling at its edge reads the pixels beyond it


@dataclass(frozen=True)
class Clip:
    """A video as the network sees it, and how it came about.

    Attributes:
        frames_TSS3: uint8 RGB crops.
        plan: the sampled frames and the map from crop to picture.
        num_frames: F.
        info: size and rate of the video.
    """

    frames_TSS3: np.ndarray
    plan: ClipPlan
    num_frames: int
    info: VideoInfo


def read_clip(video: Path, data: DataConfig, box: Box | None = None) -> Clip:
    """Sample and crop a video file as evaluation does: fixed frames per file name, square crop, bilinear resize.

    Args:
        video: any file that FFmpeg decodes; turned upright if it has a rotation flag.
        data: gives the number of frames and the side of the crop.
        box: person box (x1, y1, x2, y2) in pixels of the upright picture; it is grown by a tenth, made square. None:
            the whole picture.

    Raises:
        UserError: the file cannot be decoded.
    """
    with VideoReader(video) as reader:
        info = reader.info
        num_frames = reader.count()
    box_F4 = np.zeros((num_frames, 4), np.float32)
    if box is not None:
        box_F4[:] = box
    config = replace(data, crop="boxes").plan(persons=1)
    nobody_MFVC = np.zeros((1, num_frames, 1, 2), np.float32)
    meta = ClipMeta(
        key=video.stem, label=0, num_frames=num_frames, fps=info.fps, width=info.width, height=info.height,
        packed_width=info.width, packed_height=info.height, packed_to_source=np.eye(2, 3),
    )
    plan = make_plan(meta, nobody_MFVC, box_F4, config, train=False, seed=0, epoch=0)
    return Clip(_read_frames(video, plan), plan, num_frames, info)


def _read_frames(video: Path, plan: ClipPlan) -> np.ndarray:
    """(T, S, S, 3): the plan carried out; of the decoded pictures only the crop is converted to RGB."""
    corners = affine.apply(plan.output_to_source, np.array([[0.0, 0.0], [plan.size, plan.size]]))
    x, y = (int(v) for v in np.floor(corners[0]) - MARGIN_PX)
    side = int(np.ceil(corners[1] - corners[0]).max()) + 2 * MARGIN_PX + 1
    output_to_square = plan.output_to_source.copy()
    output_to_square[:, 2] -= (x, y)
    wanted = set(plan.frames_T.tolist())
    last, found = max(wanted), {}
    with VideoReader(video) as reader:
        for number, square in enumerate(reader.crops(x, y, side)):
            if number in wanted:
                found[number] = resample(square, output_to_square, plan.size)
            if number == last:
                break
    return np.stack([found[number] for number in plan.frames_T.tolist()])
