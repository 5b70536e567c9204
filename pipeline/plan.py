"""Clip plans: which frames of a clip are seen and through which one affine map. All randomness of the pipeline is here.

Frames, square crop around the sampled joints, and in training resize to 256, random-resized crop, resize to 224, mirror
(pipeline/README.md, "What a clip looks like"): all of it composed into one map output -> source, applied to pixels once
and to joints exactly. M persons, T sampled frames, F frames of the clip, V joints, C = 2 coordinates.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.augment import AugmentConfig, PixelAugment, Shares, draw_pixel_augment
from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.pipeline.sampling import draw_frames, draw_frames_original, draw_temporal_window, spread_frames
from svdata2vec.shards.boxes import (
    CROP_SCORES,
    Box,
    View,
    counted_joints,
    crop_square,
    joint_box,
    picture_square,
    union_box,
)
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import JointLayout
from svdata2vec.shards.ranges import Count, Range, Seed, Share, check_fields
from svdata2vec.shards.reading.sample import ClipMeta


@dataclass(frozen=True)
class PlanConfig:
    """What a clip looks like to the model. The defaults are the method's. Raises UserError that begins with a field's name."""

    num_frames: Count = 40                          # T
    size: Count = 224                               # output picture, pixels
    persons: Count = 2                              # M: skeletons are cut or padded to it
    crop: Literal["joints", "boxes"] = "joints"     # box of the sampled joints | stored person boxes (RGB-only mode)
    crop_scores: tuple[Share, Share] = CROP_SCORES  # least score of a joint that counts: in the picture, outside it
    padding: Annotated[float, Range(0, 1000)] = 0.1            # of the box, around its centre
    resize_ratio: Annotated[float, Range(1, 1000)] = 256 / 224  # picture of the random-resized crop / output picture
    area: Shares = (0.56, 1.0)                      # random-resized crop, share of the picture
    aspect: Annotated[tuple[float, float], Range(0.001, 1000, rising=True)] = (3 / 4, 4 / 3)  # width / height, log-uniform
    attempts: Annotated[int, Range(1, 10_000)] = 10            # then the centre square
    flip_probability: Share = 0.5
    frame_draw: Literal["fixed", "original", "centre"] = "fixed"  # evaluation: by the clip's name | authors' code | no draw
    frame_seed: Seed = 255                          # evaluation, "fixed"
    views: Count = 1                                # evaluation: frame draws per clip
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # training: beyond the method, off

    def __post_init__(self) -> None:
        check_fields(self)
        if self.frame_draw == "original" and self.views > 1:
            raise UserError(f"views is {self.views} with frame_draw 'original', which has one view: set frame_draw to 'fixed'")

    @property
    def resized(self) -> int:
        """Side of the picture in which the random-resized crop is drawn (256 for 224)."""
        return round(self.resize_ratio * self.size)


@dataclass(frozen=True)
class ClipPlan:
    """One clip as the model sees it.

    frames_T: int64 frame numbers of the clip. output_to_source (2, 3): output pixels -> source pixels, centre of pixel
    (i, j) = (j + 0.5, i + 0.5). flip: the map mirrors, so left and right joints change names. size: output pixels.
    each_coordinate: a zero x or y is missing by itself, as in the authors' code; else a joint is, if both are zero.
    """

    frames_T: NDArray[np.int64]
    output_to_source: affine.Affine
    flip: bool
    size: int
    augment: PixelAugment | None = None
    each_coordinate: bool = False


def make_plan(
    meta: ClipMeta,
    pose_MFVC: NDArray[np.floating],
    box_F4: NDArray[np.floating],
    config: PlanConfig,
    *,
    train: bool,
    seed: int,
    epoch: int,
    view: int = 0,
    score_MFV: NDArray[np.floating] | None = None,
    shows: View = "persons",
) -> ClipPlan:
    """The plan of one clip: a pure function, in training of (seed, epoch, key), else of (frame_seed, meta.key, view).

    `pose_MFVC` are source pixels with (0, 0) = missing; `score_MFV` their scores, where there are any.
    `shows`: what the set's clips show, `view` of its manifest; of whole pictures nothing is cut, whatever `config.crop` is.
    Evaluation: crop, resize; with frame_draw "original" number for number as the authors' code: its frames (drawn out of
    as many as the annotation has), its rule that any zero is missing, no look at scores. Raises ValueError for a clip
    without frames or with a pose of another length.
    """
    if pose_MFVC.ndim != 4 or pose_MFVC.shape[1] != meta.num_frames:
        raise ValueError(
            f"clip {meta.key}: pose of shape {pose_MFVC.shape} for {meta.num_frames} frames: expected (persons, frames, "
            "joints, 2); run `svdata2vec verify` on the shards"
        )
    original = not train and config.frame_draw == "original"
    if train:
        generator = keyed_generator("train", seed, epoch, meta.key, view)
        first, length = draw_temporal_window(generator, meta.num_frames, config.augment.temporal_crop)
        frames_T = first + draw_frames(generator, config.num_frames, length)
    elif original:
        annotated = meta.pose_frames or meta.num_frames
        frames_T = draw_frames_original(config.num_frames, min(annotated, meta.num_frames))
    elif config.frame_draw == "centre":
        frames_T = spread_frames(config.num_frames, meta.num_frames, view, config.views)
    else:
        generator = keyed_generator("evaluate", config.frame_seed, meta.key, view)
        frames_T = draw_frames(generator, config.num_frames, meta.num_frames)
    if shows == "picture":
        crop: Box = picture_square(meta.width, meta.height)
    else:
        crop = _crop(meta, pose_MFVC, score_MFV, box_F4, frames_T, config, original)
    if not train:
        return ClipPlan(frames_T, affine.window_map(crop, config.size), False, config.size, each_coordinate=original)
    window = draw_resized_crop(generator, config.resized, config)
    flip = bool(generator.random() < config.flip_probability)
    inner = affine.window_map(window, config.size)
    if flip:
        inner = affine.compose(inner, affine.mirror_map(config.size))
    output_to_source = on_whole_pixels(affine.compose(affine.window_map(crop, config.resized), inner), meta, config.size)
    augment = draw_pixel_augment(generator, config.augment, config.size)
    return ClipPlan(frames_T, output_to_source, flip, config.size, augment)


def _crop(
    meta: ClipMeta,
    pose_MFVC: NDArray[np.floating],
    score_MFV: NDArray[np.floating] | None,
    box_F4: NDArray[np.floating],
    frames_T: NDArray[np.int64],
    config: PlanConfig,
    original: bool,
) -> tuple[int, int, int, int]:
    if config.crop == "joints":
        joints_MTVC = pose_MFVC[:, frames_T]
        if score_MFV is not None and not original:
            joints_MTVC = counted_joints(joints_MTVC, score_MFV[:, frames_T], config.crop_scores, meta.width, meta.height)
        box = joint_box(joints_MTVC, each_coordinate=original)
    else:
        # A left or upper edge that is 0 throughout is there all the same: the authors' code shows the whole picture then,
        # of which a packed clip has only the part around its people.
        box = union_box(box_F4, each_coordinate=original) or union_box(box_F4)
    x1, y1, x2, y2 = crop_square(box, meta.width, meta.height, config.padding)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def draw_resized_crop(generator: np.random.Generator, side: int, config: PlanConfig) -> tuple[int, int, int, int]:
    """Window (x1, y1, x2, y2) in whole pixels of a side x side picture.

    Area uniform, ratio log-uniform, `attempts` tries, the first that fits; else the largest centre square (all of it).
    """
    log_low, log_high = math.log(config.aspect[0]), math.log(config.aspect[1])
    aspect_N = np.exp(generator.uniform(log_low, log_high, size=config.attempts))
    area_N = generator.uniform(*config.area, size=config.attempts) * side * side
    width_N = np.rint(np.sqrt(area_N * aspect_N)).astype(np.int64)
    height_N = np.rint(np.sqrt(area_N / aspect_N)).astype(np.int64)
    place_x, place_y = generator.random(2)
    for width, height in zip(width_N.tolist(), height_N.tolist(), strict=True):
        if 0 < width <= side and 0 < height <= side:
            x, y = int(place_x * (side - width + 1)), int(place_y * (side - height + 1))
            return x, y, x + width, y + height
    return 0, 0, side, side


def on_whole_pixels(output_to_source: affine.Affine, meta: ClipMeta, size: int) -> affine.Affine:
    """A map close by, whose window has its edges on whole pixels of the packed picture: cheaper to sample, as random as before.

    An edge moves by at most one packed pixel. A window that is enlarged more than three times stays as it is.
    """
    (scale_x, _, left), (_, scale_y, top) = affine.compose(affine.invert(meta.packed_to_source), output_to_source).tolist()
    width, height = round(size * scale_x), round(size * scale_y)
    if min(abs(width), abs(height)) <= size * affine.SMALLEST_SCALE:
        return output_to_source
    return affine.compose(meta.packed_to_source, affine.scale_and_shift(width / size, height / size, round(left), round(top)))


def apply_to_joints(
    plan: ClipPlan, pose_MFVC: NDArray[np.floating], layout: JointLayout, persons: int
) -> NDArray[np.float32]:
    """float32 (persons, T, V, 2): the sampled joints in output pixels; (0, 0) = missing stays (0, 0).

    Persons are cut or padded with missing joints; a mirrored plan swaps left and right joints.
    """
    if pose_MFVC.shape[2] != len(layout.joints):
        raise ValueError(
            f"pose has {pose_MFVC.shape[2]} joints but layout {layout.name} has {len(layout.joints)}: "
            "use the layout of the shards' manifest"
        )
    pose_MTVC = pose_MFVC[:persons, plan.frames_T, :, :2]
    if plan.flip:
        pose_MTVC = pose_MTVC[:, :, layout.flip_V]
    moved_MTVC = affine.apply(affine.invert(plan.output_to_source), pose_MTVC)
    zero_MTVC = pose_MTVC == 0
    moved_MTVC[zero_MTVC if plan.each_coordinate else zero_MTVC[..., 0] & zero_MTVC[..., 1]] = 0.0
    joints_MTVC = np.zeros((persons, *pose_MTVC.shape[1:]), dtype=np.float32)
    joints_MTVC[: len(pose_MTVC)] = moved_MTVC
    return joints_MTVC
