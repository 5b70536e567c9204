"""Clip plans: frames, one map per clip, joints; all draws keyed."""

import hashlib
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.pipeline.plan import (
    ClipPlan,
    ClipPlans,
    PlanConfig,
    apply_to_joints,
    draw_resized_crop,
    make_plans,
    resized_crops,
)
from svdata2vec.pipeline.sampling import draw_frames, draw_frames_original, draw_temporal_window
from svdata2vec.shards.boxes import crop_square, joint_box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17, KINECT25, JointLayout
from svdata2vec.shards.reading.sample import ClipMeta, Sample

CONFIG = PlanConfig(num_frames=8, size=56)


def pose_of(num_frames: int, persons: int, seed: int, spread: float = 60.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    pose = generator.uniform(-spread, spread, (persons, num_frames, 17, 2)) + np.array((160, 120))
    pose[generator.random(pose.shape[:-1]) < 0.2] = 0
    return pose.astype(np.float32)


def sample_of(
    pose: np.ndarray, box_F4: np.ndarray | None = None, score_MFV: np.ndarray | None = None, key: str = "k", **changes: Any
) -> Sample:
    """A clip of 320 x 240 with this pose; windows stay where they are, because its packed pixels are large."""
    meta = ClipMeta(key, 0, pose.shape[1], 30.0, 320, 240, 40, 40, affine.scale_and_shift(8, 8, 0, 0))
    boxes = np.zeros((pose.shape[1], 4), np.float32) if box_F4 is None else box_F4
    return Sample(key, 0, None, None, pose, score_MFV, boxes, replace(meta, **changes))


def plans_of(
    samples: list[Sample], *, train: bool, epoch: int = 0, config: PlanConfig = CONFIG, view: int = 0
) -> ClipPlans:
    return make_plans(samples, config, train=train, seed=3, epoch=epoch, views=[view] * len(samples))


def plan_of(pose: np.ndarray, *, key: str = "k", **options: Any) -> ClipPlan:
    return plans_of([sample_of(pose, key=key)], **options)[0]


def planned(pose: np.ndarray, layout: JointLayout, persons: int, **options: Any) -> tuple[ClipPlan, np.ndarray]:
    """A plan, and the joints through it."""
    plans = plans_of([sample_of(pose, key=options.pop("key", "k"))], **options)
    return plans[0], apply_to_joints(plans, [layout], persons)[0]


@pytest.mark.parametrize("num_frames", [1, 4, 40])
@pytest.mark.parametrize("clip_frames", [1, 3, 4, 39, 40, 41, 79, 80, 81, 400])
def test_frames_lie_in_their_segments(num_frames, clip_frames):
    for seed in range(5):
        for frames in (
            draw_frames(np.random.default_rng(seed), num_frames, clip_frames),
            draw_frames_original(num_frames, clip_frames),
        ):
            assert frames.shape == (num_frames,) and frames.dtype == np.int64
            assert frames.min() >= 0 and frames.max() < clip_frames
            if clip_frames >= 2 * num_frames:
                starts = np.arange(num_frames + 1) * clip_frames // num_frames
                assert (frames >= starts[:-1]).all() and (frames < starts[1:]).all()
            elif clip_frames >= num_frames:
                assert (np.diff(frames) >= 1).all()
            else:
                np.testing.assert_array_equal(frames, (frames[0] + np.arange(num_frames)) % clip_frames)


def test_original_frames_are_the_published_draws():
    """The definition in plain code, with the legacy generator's calls in the order of the released evaluation."""
    state = np.random.RandomState(255)
    state.rand(), state.randint(1)
    starts = np.arange(41) * 103 // 40
    expected = starts[:-1] + state.randint(np.diff(starts))
    np.testing.assert_array_equal(draw_frames_original(40, 103), expected)
    state = np.random.RandomState(255)
    state.rand(), state.randint(1)
    skipped = set(state.choice(41, 13, replace=False).tolist())
    expected = [t + sum(gap <= t for gap in skipped) for t in range(40)]
    np.testing.assert_array_equal(draw_frames_original(40, 53), expected)
    np.testing.assert_array_equal(draw_frames_original(40, 7), np.arange(40) % 7)


@pytest.mark.parametrize(("pose_frames", "counted"), [(None, 20), (17, 17), (23, 20)])
def test_original_frames_are_drawn_out_of_as_many_as_the_annotation_has(pose_frames, counted):
    sample = sample_of(pose_of(20, 1, 0), pose_frames=pose_frames)
    plan = plans_of([sample], train=False, config=replace(CONFIG, frame_draw="original"))[0]
    assert plan.frames_T.tolist() == draw_frames_original(8, counted).tolist()


def test_every_gap_choice_is_reached():
    frames = {tuple(draw_frames(np.random.default_rng(seed), 3, 4)) for seed in range(200)}
    assert frames == {(0, 1, 2), (1, 2, 3), (0, 2, 3), (0, 1, 3)}


@pytest.mark.parametrize("num_frames", [1, 8, 9, 40])
@pytest.mark.parametrize("fresh", [True, False])
def test_segments_are_drawn_in_as_numpy_draws_integers(num_frames, fresh):
    """The draws that follow are the same too; also after a draw that leaves half a word, such as a temporal crop's."""
    for clip_frames in (2 * num_frames, 103, 4000):
        lengths = np.diff(np.arange(num_frames + 1) * clip_frames // num_frames)
        for key in range(50):
            expected, found = keyed_generator("a", key), keyed_generator("a", key)
            if not fresh:
                assert expected.integers(50) == found.integers(50)
            frames = np.arange(num_frames) * clip_frames // num_frames + expected.integers(lengths)
            np.testing.assert_array_equal(draw_frames(found, num_frames, clip_frames, fresh=fresh), frames)
            assert found.integers(9, size=3).tolist() == expected.integers(9, size=3).tolist()


@pytest.mark.parametrize("clip_frames", [0, -1])
def test_empty_clip_is_refused(clip_frames):
    with pytest.raises(ValueError, match="both must be at least 1"):
        draw_frames(np.random.default_rng(0), 4, clip_frames)


def test_evaluation_map_is_crop_and_resize():
    pose = np.zeros((1, 8, 17, 2), np.float32)
    pose[0, :, 0], pose[0, :, 1] = (100, 50), (150, 130)  # 50 x 80 px around (125, 90): half side 44
    plan, joints = planned(pose, COCO17, 2, train=False)
    np.testing.assert_allclose(plan.output_to_source, [[88 / 56, 0, 81], [0, 88 / 56, 46]])
    assert joints.shape == (2, 8, 17, 2) and joints.dtype == np.float32
    np.testing.assert_allclose(joints[0, 0, 0], [(100 - 81) * 56 / 88, (50 - 46) * 56 / 88], rtol=1e-6)
    assert not joints[0, :, 2:].any() and not joints[1].any()


def test_crop_follows_the_sampled_frames_only():
    pose = np.full((1, 100, 17, 2), 100, np.float32)
    pose[0, :, 1] = (150, 160)
    first = plan_of(pose, train=False)
    outside = np.setdiff1d(np.arange(100), first.frames_T)
    pose[0, outside, 2] = (300, 200)
    np.testing.assert_array_equal(plan_of(pose, train=False).output_to_source, first.output_to_source)


@pytest.mark.parametrize("nobody", [True, False])
def test_without_a_usable_box_the_whole_picture_is_seen(nobody):
    pose = np.zeros((1, 8, 17, 2), np.float32) if nobody else np.full((1, 8, 17, 2), 50, np.float32)
    plan = plan_of(pose, train=False)
    np.testing.assert_allclose(plan.output_to_source, [[320 / 56, 0, 0], [0, 240 / 56, 0]])


def test_stored_boxes_decide_in_rgb_only_mode():
    pose, boxes = pose_of(8, 1, 0), np.zeros((8, 4), np.float32)
    boxes[3], boxes[6] = (10, 20, 60, 100), (30, 40, 90, 90)  # union 80 x 80 around (50, 60): half side 44
    config = replace(CONFIG, crop="boxes")
    plan = plans_of([sample_of(pose, boxes)], train=False, config=config)[0]
    np.testing.assert_allclose(plan.output_to_source, [[88 / 56, 0, 6], [0, 88 / 56, 16]])


def close_up(score: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Head and arms in the picture of 320x240, the last four joints at (160, y) with this score."""
    pose, scores = np.zeros((1, 8, 17, 2), np.float32), np.full((1, 8, 17), 0.9, np.float16)
    pose[..., :13, :] = np.stack([np.linspace(100, 220, 13), np.linspace(60, 220, 13)], 1)
    pose[..., 13:, :], scores[..., 13:] = (160, y), score
    return pose, scores


@pytest.mark.parametrize(
    ("score", "y", "counts"),
    [(0.29, 470, False), (0.3, 470, True), (0.9, 470, True), (0.09, 235, False), (0.1, 235, True), (0.29, 235, True),
     (0.29, -90, False), (0.3, -90, True), (0.29, 300, False)],
)
@pytest.mark.parametrize("train", [False, True])
def test_joints_of_low_score_do_not_widen_the_crop(score, y, counts, train):
    """Least scores inside and outside the picture as stored, in float16; the joints themselves stay."""
    pose, scores = close_up(score, y)

    def plan(pose: np.ndarray, config: PlanConfig, score_MFV: np.ndarray | None = scores) -> np.ndarray:
        return plans_of([sample_of(pose, score_MFV=score_MFV)], train=train, config=config)[0].output_to_source

    expected = pose if counts else np.where(np.arange(17)[:, None] < 13, pose, 0)
    np.testing.assert_array_equal(plan(pose, CONFIG), plan(expected, CONFIG, None))
    np.testing.assert_array_equal(plan(pose, replace(CONFIG, crop_scores=(0.0, 0.0))), plan(pose, CONFIG, None))
    if not train:
        original = replace(CONFIG, frame_draw="original")
        np.testing.assert_array_equal(plan(pose, original), plan(pose, original, None))


def test_a_clip_of_low_scores_alone_is_cropped_around_all_its_joints():
    pose, scores = pose_of(8, 1, 0), np.zeros((1, 8, 17), np.float16)
    pose[..., 16, :], scores[..., 16] = 0, 0.9  # a missing joint's score says nothing
    low = plans_of([sample_of(pose, score_MFV=scores)], train=False)[0]
    np.testing.assert_array_equal(low.output_to_source, plan_of(pose, train=False).output_to_source)


def test_boxes_that_touch_the_left_edge_in_original_mode():
    """Zeros do not count, as in the authors' code, unless there is nothing else."""
    pose, boxes = pose_of(8, 1, 0), np.zeros((8, 4), np.float32)
    boxes[:4], boxes[4:] = (0, 20, 60, 100), (20, 20, 100, 100)
    config = replace(CONFIG, crop="boxes", frame_draw="original")
    plan = plans_of([sample_of(pose, boxes)], train=False, config=config)[0]
    np.testing.assert_allclose(plan.output_to_source[:, 2], (16, 16))  # 20..100 around 60: half side 44
    boxes[4:] = boxes[0]
    plan = plans_of([sample_of(pose, boxes)], train=False, config=config)[0]
    np.testing.assert_allclose(plan.output_to_source[:, 2], (-14, 16))  # 0..60 around 30, as high as 80


@pytest.mark.parametrize("keep", [(1.0, 1.0), (0.5, 0.9)])
def test_training_map_is_the_chain_of_the_method_step_by_step(keep):
    """Follow points through crop, resize to 64, window, resize to 56 and mirror; the one map must lead back."""
    pose, points = pose_of(30, 2, 1), np.random.default_rng(0).uniform(0, 300, (50, 2))
    flips = set()
    for epoch in range(20):
        plan = plan_of(pose, train=True, epoch=epoch, config=replace(CONFIG, augment=AugmentConfig(temporal_crop=keep)))
        generator = keyed_generator("train", 3, epoch, "k", 0)
        first, length = draw_temporal_window(generator, 30, keep)
        frames = first + draw_frames(generator, 8, length)
        crop = crop_square(joint_box(pose[:, frames]), 320, 240)
        window = draw_resized_crop(generator, 64, CONFIG)
        moved = (points - crop[:2]) * 64 / (np.array(crop[2:]) - crop[:2])
        moved = (moved - window[:2]) * 56 / (np.array(window[2:]) - window[:2])
        if generator.random() < 0.5:
            moved[:, 0] = 56 - moved[:, 0]
        np.testing.assert_array_equal(plan.frames_T, frames)
        np.testing.assert_allclose(affine.apply(plan.output_to_source, moved), points, atol=1e-9)
        flips.add(plan.flip)
    assert flips == {True, False}


def test_random_resized_crop_has_the_published_distribution():
    windows = resized_crops(np.random.default_rng(0).random((4000, 22)), 256, PlanConfig())
    width, height = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
    assert windows.min() >= 0 and windows.max() <= 256
    share, ratio = width * height / 256**2, width / height
    assert 0.55 < share.min() < 0.58 and share.max() <= 1
    assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.01  # log-uniform, so symmetric in the logarithm
    assert 0.45 < (windows[:, 0] / np.maximum(256 - width, 1)).mean() < 0.55


@pytest.mark.parametrize(("area", "aspect"), [(1.0, 4 / 3), (3e-6, 1.0)])  # too wide; no pixel wide
def test_crop_that_never_fits_falls_back_to_the_whole_square(area, aspect):
    config = PlanConfig(area=(area, area), aspect=(aspect, aspect))
    assert draw_resized_crop(np.random.default_rng(0), 256, config) == (0, 0, 256, 256)


def test_draws_depend_on_seed_epoch_key_and_view_alone():
    pose = pose_of(100, 1, 0)
    base = plan_of(pose, train=True)
    again = plan_of(pose, train=True)
    np.testing.assert_array_equal(base.frames_T, again.frames_T)
    np.testing.assert_array_equal(base.output_to_source, again.output_to_source)
    for change in ({"epoch": 1}, {"key": "l"}, {"view": 1}):
        other = plan_of(pose, train=True, **change)
        assert not np.array_equal(base.frames_T, other.frames_T)
    evaluation = plan_of(pose, train=False)
    np.testing.assert_array_equal(evaluation.frames_T, plan_of(pose, train=False, epoch=7).frames_T)
    assert not np.array_equal(evaluation.frames_T, plan_of(pose, train=False, view=1).frames_T)
    np.testing.assert_array_equal(
        plan_of(pose, train=False, config=replace(CONFIG, frame_draw="original")).frames_T, draw_frames_original(8, 100)
    )


def test_temporal_crop_narrows_the_frames():
    config = replace(CONFIG, augment=AugmentConfig(temporal_crop=(0.3, 0.5)))
    pose = pose_of(200, 1, 0)
    spans = [np.ptp(plan_of(pose, train=True, epoch=e, config=config).frames_T) for e in range(50)]
    assert max(spans) < 100 and min(spans) > 40
    starts = [plan_of(pose, train=True, epoch=e, config=config).frames_T[0] for e in range(50)]
    assert max(starts) > 80 and min(starts) < 40
    generator = np.random.default_rng(0)
    assert {draw_temporal_window(generator, 4, (0.5, 0.5)) for _ in range(50)} == {(0, 2), (1, 2), (2, 2)}


@settings(max_examples=60, deadline=None)
@given(
    num_frames=st.integers(1, 400), persons=st.integers(0, 3), seed=st.integers(0, 2**30), train=st.booleans(),
    spread=st.sampled_from([0.0, 4.0, 60.0, 700.0]),
)
def test_joints_go_through_the_same_map_as_pixels(num_frames, persons, seed, train, spread):
    pose = pose_of(num_frames, persons, seed, spread)
    plan, joints = planned(pose, COCO17, 2, train=train, key=str(seed))
    assert joints.shape == (2, 8, 17, 2) and np.isfinite(joints).all()
    named = joints[:, :, COCO17.flip_V] if plan.flip else joints
    source = np.zeros((2, 8, 17, 2), np.float32)
    source[: min(persons, 2)] = pose[:2, plan.frames_T]
    missing = (source == 0).all(-1)
    assert (named[missing] == 0).all()
    np.testing.assert_allclose(affine.apply(plan.output_to_source, named)[~missing], source[~missing], atol=2e-3)


def test_flip_swaps_sides_and_mirrors():
    pose = pose_of(30, 1, 0)
    found = (plans_of([sample_of(pose)], train=True, epoch=epoch) for epoch in range(50))
    plans = next(plans for plans in found if plans.flip_B[0])
    mirror = affine.compose(plans.output_to_source_B23, affine.mirror_map(56))
    straight = replace(plans, output_to_source_B23=mirror, flip_B=[False])
    flipped, plain = (apply_to_joints(p, [COCO17], 1)[0] for p in (plans, straight))
    present = (plain != 0).any(-1)
    np.testing.assert_allclose(flipped[:, :, COCO17.flip_V][..., 0][present], 56 - plain[..., 0][present], atol=1e-3)
    np.testing.assert_allclose(flipped[:, :, COCO17.flip_V][..., 1], plain[..., 1], atol=1e-4)


def test_wrong_shapes_are_named():
    longer = sample_of(pose_of(7, 1, 0), num_frames=8)
    with pytest.raises(ValueError, match=r"clip k: pose of shape \(1, 7, 17, 2\) for 8 frames.*verify"):
        plans_of([sample_of(pose_of(8, 1, 0), key="a"), longer], train=False)
    with pytest.raises(ValueError, match="16 joints but layout coco17 has 17"):
        planned(pose_of(8, 1, 0)[:, :, :16], COCO17, 2, train=False)


@pytest.mark.parametrize("wrong", [(1, 0, 0, 0), (1e-7, 1e-7, 0, 0), (1, 1, np.nan, 0), (1, 1, 0, np.inf)])
def test_a_map_without_an_inverse_is_named(wrong):
    wrong_23 = affine.scale_and_shift(*wrong)
    for maps in (wrong_23, np.stack([affine.mirror_map(8), wrong_23])):
        with pytest.raises(ValueError, match=re.escape(f"affine map {wrong_23.tolist()} has no inverse")):
            affine.invert(maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed_to_source": np.zeros((2, 3))}, "has no inverse"),
        ({"pose": 3e38}, "clip bad: its joints or boxes lie outside any picture"),
    ],
)
def test_a_clip_that_cannot_be_planned_is_an_error_among_others_too(change, message):
    pose = pose_of(8, 1, 0)
    far = change.get("pose", 0)
    pose[0, :, 0], pose[0, :, 1] = far, -far
    changes = {name: value for name, value in change.items() if name != "pose"}
    samples = [sample_of(pose_of(8, 2, 1)), sample_of(pose, key="bad", **changes)]
    with pytest.raises(ValueError, match=message):
        plans_of(samples, train=True)


def mixed_samples() -> list[Sample]:
    """Clips of all kinds: persons, lengths, layouts, scores, boxes, nobody at all."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(60):
        num_frames, persons, joints = map(int, map(generator.choice, ([1, 5, 8, 12, 16, 90], [0, 1, 1, 2, 4], [17, 25])))
        pose = pose_of(num_frames, persons, number, float(generator.choice([0, 4, 60, 700])))
        pose = np.repeat(pose, 2, axis=2)[:, :, :joints] * (generator.random() < 0.9)
        boxes = np.sort(generator.uniform(-20, 300, (num_frames, 2, 2)), axis=1).reshape(num_frames, 4).astype(np.float32)
        scores = generator.random(pose.shape[:3]).astype(np.float16) if generator.random() < 0.5 else None
        packed_to_source = affine.scale_and_shift(1.3, 1.3, *generator.integers(-60, 60, 2).tolist())
        samples.append(sample_of(pose, boxes, scores, str(number), packed_to_source=packed_to_source))
    return samples


@pytest.mark.parametrize("crop", ["joints", "boxes"])
@pytest.mark.parametrize("shows", ["persons", "picture"])
@pytest.mark.parametrize(("train", "frame_draw"), [(True, "fixed"), (False, "fixed"), (False, "original"), (False, "centre")])
def test_a_clip_is_planned_among_others_as_it_is_alone(crop, shows, train, frame_draw):
    """Bit for bit: frames, map, mirror, augmentation and joints."""
    config = replace(CONFIG, crop=crop, frame_draw=frame_draw, augment=AugmentConfig(temporal_crop=(0.5, 1), hue=0.2))
    samples = mixed_samples()
    layouts = [COCO17 if sample.pose_MTVC.shape[2] == 17 else KINECT25 for sample in samples]

    def of(clips: slice) -> tuple[ClipPlans, list[np.ndarray]]:
        plans = make_plans(
            samples[clips], config, train=train, seed=3, epoch=1, views=[0] * len(samples[clips]), shows=shows
        )
        return plans, apply_to_joints(plans, layouts[clips], 2)

    together, joints = of(slice(None))
    for number in range(len(samples)):
        alone, own = of(slice(number, number + 1))
        plan, expected = together[number], alone[0]
        assert plan.frames_T.tobytes() == expected.frames_T.tobytes()
        assert plan.output_to_source.tobytes() == expected.output_to_source.tobytes()
        assert (plan.flip, plan.augment) == (expected.flip, expected.augment)
        assert joints[number].shape == own[0].shape and np.array_equal(joints[number], own[0])
        assert joints[number].shape == (2, 8, len(layouts[number].joints), 2)


def test_plans_are_those_of_earlier_versions():
    """Byte for byte: a resumed run must see the clips that it would have seen."""
    digest = hashlib.sha256()
    samples = mixed_samples()
    layouts = [COCO17 if sample.pose_MTVC.shape[2] == 17 else KINECT25 for sample in samples]
    for train, crop in ((True, "joints"), (True, "boxes"), (False, "joints")):
        plans = plans_of(samples, train=train, config=replace(CONFIG, crop=crop))
        digest.update(plans.frames_BT.tobytes() + plans.output_to_source_B23.tobytes() + bytes(plans.flip_B))
        for joints_MTVC in apply_to_joints(plans, layouts, 2):
            digest.update(joints_MTVC.tobytes())
    assert digest.hexdigest() == "79a569442bf1da8d229f59fa0dbd79033b37753b375ab77ae39391b229a17c2b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0: expected a whole number from 1 to"),
        ({"num_frames": 1.5}, r"^num_frames is 1\.5: expected a whole number from 1 to \d+$"),
        ({"persons": "2"}, "^persons is '2': expected a whole number from 1 to"),
        ({"padding": math.inf}, "^padding is inf: expected a number from 0 to 1000$"),
        ({"area": (0.9, 0.5)}, "smallest <= largest"),
        ({"crop_scores": (0.1, 1.5)}, "crop_scores is 1.5: expected a number from 0 to 1"),
        ({"flip_probability": 1.5}, "from 0 to 1"),
        ({"crop": "centre"}, "expected 'joints' or 'boxes'"),
        ({"frame_draw": "original", "views": 3}, "has one view"),
        ({"augment": AugmentConfig(hue=0.7)}, "augment.hue is 0.7: expected a number from 0 to 0.5"),
        ({"augment": AugmentConfig(contrast=-0.1)}, "augment.contrast is -0.1: expected a number from 0 to 1"),
        ({"augment": AugmentConfig(erase_area=(0.5, 0.2))}, "augment.erase_area.*smallest <= largest"),
        ({"aspect": (0.0, 1.0)}, "aspect is"),
        ({"padding": -0.1}, "padding is -0.1: expected a number from 0 to"),
        ({"resize_ratio": 0.5}, "resize_ratio is 0.5: expected a number from 1 to"),
    ],
)
def test_configuration_is_checked(change, message):
    with pytest.raises(UserError, match=message):
        replace(PlanConfig(), **change)
