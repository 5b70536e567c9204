"""Clip plans: the frames of a clip that are seen, and one affine map. Everything random about a clip's look is drawn here.

Frames, square crop around the sampled joints, and in training resize to 256, random-resized crop, resize to 224, mirror
(pipeline/README.md, "What a clip looks like"): all of it composed into one map output -> source, applied to pixels once
and to joints exactly. A step's clips are planned together, each as it would be alone. B clips, M persons of a clip, N of all
clips, T sampled frames, F frames of a clip, V joints, C = 2 coordinates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.augment import AugmentConfig, PixelAugment, Shares, draw_pixel_augment
from svdata2vec.pipeline.keyed import KeyedDraws
from svdata2vec.pipeline.sampling import draw_frames, draw_frames_original, draw_temporal_window, spread_frames
from svdata2vec.shards.boxes import (
    CROP_SCORES,
    NOBODY,
    PADDING,
    Box,
    View,
    counted_joints,
    crop_squares,
    joint_box,
    joint_boxes,
    picture_square,
    union_box,
)
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import JointLayout
from svdata2vec.shards.ranges import Count, Range, Seed, Share, check_fields
from svdata2vec.shards.reading.sample import ClipMeta, Sample

Crop = Literal["joints", "boxes"]
FrameDraw = Literal["fixed", "original", "centre"]


@dataclass(frozen=True)
class PlanConfig:
    """What a clip looks like to the model. The defaults are the method's. Raises UserError that begins with a field's name."""

    num_frames: Count = 40                          # T
    size: Count = 224                               # output picture, pixels
    persons: Count = 2                              # M: skeletons are cut or padded to it
    crop: Crop = "joints"                           # box of the sampled joints | stored person boxes (RGB-only mode)
    crop_scores: tuple[Share, Share] = CROP_SCORES  # least score of a joint that counts: in the picture, outside it
    padding: Annotated[float, Range(0, 1000)] = PADDING        # of the box, around its centre
    resize_ratio: Annotated[float, Range(1, 1000)] = 256 / 224  # picture of the random-resized crop / output picture
    area: Shares = (0.56, 1.0)                      # random-resized crop, share of the picture
    aspect: Annotated[tuple[float, float], Range(0.001, 1000, rising=True)] = (3 / 4, 4 / 3)  # width / height, log-uniform
    attempts: Annotated[int, Range(1, 10_000)] = 10            # then the centre square
    flip_probability: Share = 0.5
    frame_draw: FrameDraw = "fixed"                 # evaluation: by the clip's name | authors' code | no draw
    frame_seed: Seed = 255                          # evaluation, "fixed"
    views: Count = 1                                # evaluation: frame draws per clip
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # training: beyond the method, off

    def __post_init__(self) -> None:
        check_fields(self)
        if self.frame_draw == "original" and self.views > 1:
            raise UserError(f"views is {self.views} with frame_draw 'original', which has one view: leave views at 1, or set "
                            "frame_draw to 'fixed'")

    @property
    def resized(self) -> int:
        """Side of the picture in which the random-resized crop is drawn (256 for 224)."""
        return round(self.resize_ratio * self.size)


@dataclass(frozen=True)
class ClipPlan:
    """One clip as the model sees it.

    Attributes:
        frames_T: int64 frame numbers of the clip.
        output_to_source: (2, 3), output pixels -> source pixels; the centre of pixel (i, j) is (j + 0.5, i + 0.5).
        flip: whether the map mirrors, so that left and right joints are swapped.
        size: side of the output in pixels.
    """

    frames_T: NDArray[np.int64]
    output_to_source: affine.Affine
    flip: bool
    size: int
    augment: PixelAugment | None


@dataclass(frozen=True)
class People:
    """The persons of several clips in their sampled frames, clip after clip; a clip without persons has one, all missing.

    Attributes:
        joints_NTVC: source pixels, (0, 0) = missing; so are joints that other clips have and this one lacks.
        clip_N: the clip that each person belongs to.
        place_N: number of the person within the clip.
        first_B: the first person of each clip.
        joints_B: V of each clip.
    """

    joints_NTVC: NDArray[np.floating]
    clip_N: NDArray[np.int64]
    place_N: NDArray[np.int64]
    first_B: NDArray[np.int64]
    joints_B: list[int]

    @classmethod
    def sampled(cls, poses: Sequence[NDArray[np.floating]], frames_BT: NDArray[np.int64]) -> "People":
        """From (M, F, V, 2) of each clip."""
        counts_B, joints_B = [max(1, len(pose)) for pose in poses], [pose.shape[2] for pose in poses]
        first_B = np.cumsum([0, *counts_B])[:-1]
        shape = sum(counts_B), frames_BT.shape[1], max(joints_B), 2
        joints_NTVC = np.zeros(shape, poses[0].dtype)
        for first, pose, frames_T in zip(first_B.tolist(), poses, frames_BT, strict=True):
            room = joints_NTVC[first : first + len(pose), :, : pose.shape[2]]
            pose.take(frames_T, axis=1, out=room, mode="clip")  # no frame is out of range; mode "raise" would copy twice
        clip_N = np.repeat(np.arange(len(poses)), counts_B)
        return cls(joints_NTVC, clip_N, np.arange(len(clip_N)) - first_B[clip_N], first_B, joints_B)


@dataclass(frozen=True)
class ClipPlans:
    """The plans of several clips (`plans[i]` is a `ClipPlan`), and their people.

    each_coordinate: a zero x or y alone counts as missing, as in the authors' code; else a joint is missing if both are zero.
    """

    frames_BT: NDArray[np.int64]
    output_to_source_B23: affine.Affine
    flip_B: list[bool]
    augment_B: list[PixelAugment | None]
    size: int
    people: People
    each_coordinate: bool

    def __getitem__(self, clip: int) -> ClipPlan:
        return ClipPlan(
            self.frames_BT[clip], self.output_to_source_B23[clip], self.flip_B[clip], self.size, self.augment_B[clip]
        )


def make_plans(
    samples: Sequence[Sample],
    config: PlanConfig,
    *,
    train: bool,
    seed: int,
    epoch: int,
    views: Sequence[int],
    shows: View = "persons",
) -> ClipPlans:
    """The plan of each clip: a pure function, in training of (seed, epoch, key, view), else of (frame_seed, key, view).

    Evaluation: crop, resize; with frame_draw "original" number for number as the authors' code: its frames (drawn from as
    many as the annotation has), its rule that any zero is missing, and scores ignored.

    Args:
        shows: what the set's clips show, `view` of its manifest. Whole pictures are not cropped, whatever `config.crop` is.

    Raises:
        ValueError: a clip without frames, with a pose of another length, or with joints far outside any picture.
    """
    for sample in samples:
        _check_pose(sample)
    original = not train and config.frame_draw == "original"
    keyed = KeyedDraws()
    draws = [_draw(keyed, sample.meta, view, config, train, seed, epoch) for sample, view in zip(samples, views, strict=True)]
    frames_BT = np.stack([frames_T for frames_T, _, _ in draws])
    people = People.sampled([sample.pose_MTVC for sample in samples], frames_BT)
    crop_B4 = _crops(samples, people, frames_BT, config, original, shows)
    augment_B = [augment for _, _, augment in draws]
    if not train:
        maps_B23, flip_B = affine.window_map(crop_B4, config.size), [False] * len(samples)
    else:
        share_BN = np.stack([share_N for _, share_N, _ in draws])
        mirrored_B = share_BN[:, -1] < config.flip_probability
        maps_B23 = _training_maps(crop_B4, share_BN[:, :-1], mirrored_B, config)
        packed_B23 = np.stack([sample.meta.packed_to_source for sample in samples])
        maps_B23, flip_B = on_whole_pixels(maps_B23, packed_B23, config.size), mirrored_B.tolist()
    return ClipPlans(frames_BT, maps_B23, flip_B, augment_B, config.size, people, original)


def _check_pose(sample: Sample) -> None:
    pose_MFVC, meta = sample.pose_MTVC, sample.meta
    if pose_MFVC.ndim != 4 or pose_MFVC.shape[1] != meta.num_frames:
        raise ValueError(
            f"clip {meta.key}: pose of shape {pose_MFVC.shape} for {meta.num_frames} frames: expected (persons, frames, "
            "joints, 2); run `svdata2vec verify` on the shards"
        )


def _draw(
    keyed: KeyedDraws, meta: ClipMeta, view: int, config: PlanConfig, train: bool, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], PixelAugment | None]:
    """Frames of a clip; in training also the random numbers of its window and (the last) mirroring, and its augmentation."""
    if train:
        generator = keyed("train", seed, epoch, meta.key, view)
        first, length = draw_temporal_window(generator, meta.num_frames, config.augment.temporal_crop)
        fresh = length == meta.num_frames  # else the window's place was drawn
        frames_T = first + draw_frames(generator, config.num_frames, length, fresh=fresh)
        share_N = generator.random(_window_draws(config) + 1)
        return frames_T, share_N, draw_pixel_augment(generator, config.augment, config.size)
    if config.frame_draw == "original":
        frames_T = draw_frames_original(config.num_frames, min(meta.pose_frames or meta.num_frames, meta.num_frames))
    elif config.frame_draw == "centre":
        frames_T = spread_frames(config.num_frames, meta.num_frames, view, config.views)
    else:
        generator = keyed("evaluate", config.frame_seed, meta.key, view)
        frames_T = draw_frames(generator, config.num_frames, meta.num_frames, fresh=True)
    return frames_T, np.empty(0), None


def _crops(
    samples: Sequence[Sample], people: People, frames_BT: NDArray[np.int64], config: PlanConfig, original: bool, shows: View
) -> NDArray[np.float64]:
    """(B, 4): the window of each clip, in whole pixels of its source picture."""
    picture_B2 = np.array([(sample.meta.width, sample.meta.height) for sample in samples])
    if shows == "picture":
        return np.array([picture_square(width, height) for width, height in picture_B2.tolist()])
    if config.crop == "boxes":
        # A left or upper edge that is 0 in all frames counts nevertheless: the authors' code would show the whole picture,
        # but a packed clip has only the part around its people.
        boxes = [union_box(sample.box_T4, each_coordinate=original) or union_box(sample.box_T4) for sample in samples]
        box_B4 = _as_array(boxes)
    elif original:
        each = np.split(people.joints_NTVC, people.first_B[1:])
        box_B4 = _as_array([joint_box(joints_MTVC, each_coordinate=True) for joints_MTVC in each])
    else:
        box_B4 = joint_boxes(_counted(samples, people, frames_BT, config), people.first_B)
    crop_B4 = crop_squares(box_B4, picture_B2, config.padding)
    wrong_B = ~np.isfinite(crop_B4).all(axis=1)
    if wrong_B.any():
        raise ValueError(f"clip {samples[int(wrong_B.argmax())].meta.key}: its joints or boxes lie outside any picture")
    return crop_B4


def _as_array(boxes: Sequence[Box | None]) -> NDArray[np.float64]:
    return np.array([box or NOBODY for box in boxes])


def _counted(
    samples: Sequence[Sample], people: People, frames_BT: NDArray[np.int64], config: PlanConfig
) -> NDArray[np.floating]:
    """The joints that crops are put around: not all of them if there are scores (`counted_joints`)."""
    scored = [clip for clip, sample in enumerate(samples) if sample.score_MTV is not None]
    counted_NTVC = people.joints_NTVC.copy() if scored else people.joints_NTVC
    for clip in scored:
        score_MFV, meta = samples[clip].score_MTV, samples[clip].meta
        assert score_MFV is not None
        first = people.first_B[clip]
        here_MTVC = counted_NTVC[first : first + len(score_MFV), :, : people.joints_B[clip]]
        score_MTV = score_MFV.take(frames_BT[clip], axis=1)
        here_MTVC[:] = counted_joints(here_MTVC, score_MTV, config.crop_scores, meta.width, meta.height)
    return counted_NTVC


def _training_maps(
    crop_B4: NDArray[np.float64], share_BN: NDArray[np.float64], mirrored_B: NDArray[np.bool_], config: PlanConfig
) -> affine.Affine:
    """(B, 2, 3): output -> source pixels, through the random-resized crop of the resized crop."""
    maps_B23 = affine.window_map(resized_crops(share_BN, config.resized, config), config.size)
    mirrored_B23 = affine.compose(maps_B23, affine.mirror_map(config.size))
    maps_B23 = np.where(mirrored_B[:, None, None], mirrored_B23, maps_B23)
    return affine.compose(affine.window_map(crop_B4, config.resized), maps_B23)


def _window_draws(config: PlanConfig) -> int:
    """The random numbers of a random-resized crop."""
    return 2 * config.attempts + 2


def draw_resized_crop(generator: np.random.Generator, side: int, config: PlanConfig) -> tuple[int, int, int, int]:
    """One window of `resized_crops`."""
    x1, y1, x2, y2 = map(int, resized_crops(generator.random((1, _window_draws(config))), side, config)[0].tolist())
    return x1, y1, x2, y2


def resized_crops(share_BN: NDArray[np.float64], side: int, config: PlanConfig) -> NDArray[np.float64]:
    """Windows (B, 4), x1, y1, x2, y2 in whole pixels of side x side pictures, each from numbers in 0..1.

    Area uniform, ratio log-uniform, `attempts` tries, the first that fits; else the largest centre square (all of it).
    """
    tries = config.attempts
    log_low, log_high = math.log(config.aspect[0]), math.log(config.aspect[1])
    low, high = config.area
    aspect_BA = np.exp(log_low + (log_high - log_low) * share_BN[:, :tries])
    area_BA = (low + (high - low) * share_BN[:, tries : 2 * tries]) * side * side
    sides_BA2 = np.rint(np.sqrt(np.stack([area_BA * aspect_BA, area_BA / aspect_BA], axis=-1)))
    fits_BA = np.all((sides_BA2 > 0) & (sides_BA2 <= side), axis=-1)
    sides_B2 = sides_BA2[np.arange(len(share_BN)), fits_BA.argmax(axis=1)]
    low_B2 = np.floor(share_BN[:, 2 * tries :] * (side - sides_B2 + 1))
    window_B4 = np.concatenate([low_B2, low_B2 + sides_B2], axis=1)
    return np.where(np.any(fits_BA, axis=1, keepdims=True), window_B4, (0, 0, side, side))


def on_whole_pixels(output_to_source: affine.Affine, packed_to_source: affine.Affine, size: int) -> affine.Affine:
    """Nearby maps whose windows have their edges on whole packed pixels: cheaper to sample and just as random.

    An edge moves by at most one packed pixel. A window that is enlarged more than three times stays as it is.
    """
    output_to_packed = affine.compose(affine.invert(packed_to_source), output_to_source)
    sides = np.rint(size * output_to_packed[..., [0, 1], [0, 1]])
    whole = np.zeros_like(output_to_packed)
    whole[..., [0, 1], [0, 1]], whole[..., 2] = sides / size, np.rint(output_to_packed[..., 2]) + 0.0  # never -0
    enlarged = np.abs(sides).min(axis=-1) <= size * affine.SMALLEST_SCALE
    return np.where(enlarged[..., None, None], output_to_source, affine.compose(packed_to_source, whole))


def apply_to_joints(plans: ClipPlans, layouts: Sequence[JointLayout], persons: int) -> list[NDArray[np.float32]]:
    """The sampled joints of each clip in output pixels, float32 (persons, T, V, 2); (0, 0) = missing stays (0, 0).

    Persons are cut or padded with missing joints; a mirrored plan swaps left and right joints.
    """
    people = plans.people
    for found, layout in zip(people.joints_B, layouts, strict=True):
        if found != len(layout.joints):
            raise ValueError(
                f"pose has {found} joints but layout {layout.name} has {len(layout.joints)}: "
                "use the layout of the shards' manifest"
            )
    source_to_output_B23 = affine.invert(plans.output_to_source_B23)
    moved_NTVC = affine.apply(source_to_output_B23[people.clip_N, None, None], people.joints_NTVC).astype(np.float32)
    if plans.each_coordinate:
        np.copyto(moved_NTVC, 0, where=people.joints_NTVC == 0)
    else:
        np.copyto(_points(moved_NTVC), 0, where=_points(people.joints_NTVC) == 0)
    joints_BMTVC = np.zeros((len(layouts), persons, *moved_NTVC.shape[1:]), np.float32)
    seen_N = people.place_N < persons
    joints_BMTVC[people.clip_N[seen_N], people.place_N[seen_N]] = moved_NTVC[seen_N]
    return [
        joints_MTVC.take(layout.flip_V, axis=2) if flip else joints_MTVC[:, :, : len(layout.joints)]
        for joints_MTVC, layout, flip in zip(joints_BMTVC, layouts, plans.flip_B, strict=True)
    ]


def _points(xy: NDArray[np.floating]) -> NDArray[np.complexfloating]:
    """(..., 2) coordinates as (...) complex numbers: zeroing whole joints takes a tenth of the time of two coordinates."""
    return xy.view(np.result_type(xy.dtype, np.complex64))[..., 0]
