"""A video file as the network sees it: sampled and cropped exactly as evaluation prepares packed clips.

M persons, N views, T sampled frames, F frames of the video or of a part of it, V joints, C coordinates, S side of the crop
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svdata2vec.config.schema import DataConfig
from svdata2vec.evaluation.span import Span
from svdata2vec.pipeline import affine
from svdata2vec.pipeline.plan import ClipPlan, ClipPlans, make_plans
from svdata2vec.pipeline.reference import resample
from svdata2vec.shards.boxes import Box, packed_square, packed_to_source
from svdata2vec.shards.errors import readable
from svdata2vec.shards.packing.clip import resize_square
from svdata2vec.shards.reading.sample import ClipMeta, Sample
from svdata2vec.shards.video import VideoInfo, VideoReader

MARGIN_PX = 2  # around the crop: bilinear sampling at its edge reads the pixels beyond it


@dataclass(frozen=True)
class Clip:
    """A video as the network sees it, and how it came about.

    Attributes:
        frames_NTSS3: uint8 RGB crops of every view.
        plan: the sampled frames of the first view and the map from crop to picture, which is that of all.
        num_frames: F.
        info: size and rate of the video.
        cut_short: why the file cannot be whole; None if nothing speaks against it, and for a part of the video.
    """

    frames_NTSS3: np.ndarray
    plan: ClipPlan
    num_frames: int
    info: VideoInfo
    cut_short: str | None


def read_clip(
    video: Path,
    data: DataConfig,
    box: Box | None = None,
    card: Mapping[str, Any] | None = None,
    frames: Span | None = None,
    held: Box | None = None,
) -> Clip:
    """Sample and crop a video file as evaluation does: its frames, square crop, bilinear resize.

    Args:
        video: any file that FFmpeg decodes; turned upright if it has a rotation flag.
        data: gives the number of frames and of views, how they are drawn (by the file's name), and the side of the crop.
        box: person box (x1, y1, x2, y2) in pixels of the upright picture; it is grown by a tenth, made square. None:
            the whole picture in a square, black beside it.
        card: of the run, which says at what size the clips that it was trained on were stored: the video is reduced to
            that size first, as packing does. None: straight from the source.
        frames: the part of the video to take, which it has (`span.check_span`); None = the whole video.
        held: box of what the stored square is put around, where it is not `box` (`Persons.held`).

    Raises:
        UserError: the file cannot be decoded.
    """
    with VideoReader(video) as reader:
        info = reader.info
        first, end = frames or (0, reader.count())
        cut_short = None if frames else reader.cut_short()
    num_frames = end - first
    box_F4 = np.zeros((num_frames, 4), np.float32)
    if box is not None:
        box_F4[:] = box
    config = replace(data, crop="boxes").plan(persons=1, views=data.views)
    nobody_MFVC = np.zeros((1, num_frames, 1, 2), np.float32)
    meta = ClipMeta(
        key=_name_of(video), label=0, num_frames=num_frames, fps=info.fps, width=info.width, height=info.height,
        packed_width=info.width, packed_height=info.height, packed_to_source=np.eye(2, 3),
    )
    sample = Sample(meta.key, meta.label, None, None, nobody_MFVC, None, box_F4, meta)
    plans = make_plans(
        [sample] * data.views, config, train=False, seed=0, epoch=0, views=range(data.views),
        shows="picture" if box is None else "persons",
    )
    stored = (card or {}).get("preprocessing", {}).get("stored_size", 0)
    square = packed_square(held or box, info.width, info.height, stored) if stored else _square(plans[0])
    frames_NTSS3 = _read_frames(video, first, plans, square, stored or square[2])
    return Clip(frames_NTSS3, plans[0], num_frames, info, cut_short)


def _name_of(video: Path) -> str:
    """What the draw of frames depends on, however the path is spelled: a file's name without its ending, a folder's name."""
    path = Path(os.path.abspath(video))  # noqa: PTH100 - a link keeps its own name
    return readable(path.name if path.is_dir() else path.stem)


def _square(plan: ClipPlan) -> tuple[int, int, int]:
    """(x, y, side) of a square of whole pixels around the crop."""
    low, high = affine.corners(plan.output_to_source, plan.size)
    x, y = (int(v) for v in np.floor(low) - MARGIN_PX)
    return x, y, int(np.ceil(high - low).max()) + 2 * MARGIN_PX + 1


def _read_frames(video: Path, first: int, plans: ClipPlans, square: tuple[int, int, int], stored: int) -> np.ndarray:
    """(N, T, S, S, 3): the plans carried out on a square (x, y, side) of the source, reduced to `stored` pixels.

    The plans count frames from the video's frame `first` on.

    Of the decoded pictures only the square is converted to RGB.
    """
    output_to_stored = affine.compose(affine.invert(packed_to_source(*square, stored)), plans[0].output_to_source)
    wanted_NT = plans.frames_BT.tolist()
    wanted = set(plans.frames_BT.ravel().tolist())
    last, found = max(wanted), {}
    with VideoReader(video) as reader:
        for number, picture in enumerate(reader.crops(*square, start=first)):
            if number in wanted:
                found[number] = resample(resize_square(picture, stored), output_to_stored, plans.size)
            if number == last:
                break
    return np.stack([np.stack([found[number] for number in wanted_T]) for wanted_T in wanted_NT])
