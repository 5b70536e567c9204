"""Simulated pose detector for scenes of the synthetic action data set: errors, scores, missing joints.

Letters: T frames, M performers, V the 17 COCO joints.
"""

import numpy as np
from motion_bodies import JOINT, Array, Rng
from motion_scene import NUM_JOINTS, Scene
from numpy.typing import NDArray

JITTER_V = np.array([0.5] * 5 + [1.0] * 2 + [1.1] * 2 + [1.2] * 2 + [1.2] * 2 + [1.1] * 2 + [1.2] * 2)


def detect(scene: Scene, rng: Rng) -> tuple[Array, Array]:
    """Simulated detections: keypoints (M, T, V, 2) in pixels and scores (M, T, V); exact zeros where missing.

    Errors are partly correlated in time and grow with the person's size. Like a top-down detector, it guesses joints
    that are hidden (larger errors, low scores) and rarely leaves one out; joints outside the picture are missing, and
    occasionally a whole person is lost for some frames.
    """
    joints_MTV2 = scene.coco()
    hidden_MTV = hidden_joints(scene)
    persons, count = joints_MTV2.shape[:2]
    sigma_MTV = 0.0095 * scene.spans()[:, None, None] * JITTER_V * np.where(hidden_MTV, 2.5, 1.0)
    keypoint = joints_MTV2 + sigma_MTV[..., None] * correlated(rng, joints_MTV2.shape)
    score = np.clip(0.93 - 0.05 * np.abs(rng.normal(size=hidden_MTV.shape)), 0.3, 0.99)
    score = np.where(hidden_MTV, rng.uniform(0.15, 0.55, hidden_MTV.shape), score)
    steady_MTV = correlated(rng, hidden_MTV.shape)  # a hidden joint stays lost for a while
    missing_MTV = (hidden_MTV & (steady_MTV > 2.8)) | (rng.uniform(size=hidden_MTV.shape) < 0.0001)
    for person in range(persons):
        if rng.uniform() < 0.03:
            start, length = int(rng.integers(count)), int(rng.integers(1, 5))
            missing_MTV[person, start:start + length] = True
    rounded = keypoint.astype(np.float16).astype(np.float64)
    inside_MTV = ((rounded > 0.25) & (rounded < (scene.width, scene.height))).all(axis=-1)
    missing_MTV |= ~inside_MTV
    keypoint, score = np.where(missing_MTV[..., None], 0.0, keypoint), np.where(missing_MTV, 0.0, score)
    order_MT = person_order(rng, persons, count)
    return keypoint[order_MT, np.arange(count)], score[order_MT, np.arange(count)]


def person_order(rng: Rng, persons: int, num_frames: int) -> NDArray[np.int64]:
    """(M, T): order in which performers are listed; a tracker's order is arbitrary and sometimes flips within a clip."""
    order_MT = np.repeat(rng.permutation(persons)[:, None], num_frames, axis=1)
    if persons == 2 and rng.uniform() < 0.1:
        start = int(rng.integers(num_frames))
        order_MT[:, start:] = order_MT[::-1, start:]
    return order_MT


def correlated(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Unit normal noise along axis 1, half of its variance a slow autoregressive process."""
    fast, drive = rng.normal(size=shape), rng.normal(size=shape)
    slow = np.empty(shape)
    slow[:, 0] = drive[:, 0]
    for time in range(1, shape[1]):
        slow[:, time] = 0.8 * slow[:, time - 1] + 0.6 * drive[:, time]
    return np.sqrt(0.5) * (fast + slow)


def hidden_joints(scene: Scene) -> NDArray[np.bool_]:
    """(M, T, V): behind an occluder, or behind the trunk of a nearer performer or of the body itself."""
    joints_MTV2, depth_MTJ = scene.coco(), scene.depth_MTJ
    hidden_MTV = np.zeros(joints_MTV2.shape[:3], dtype=bool)
    for occluder in scene.occluders:
        hidden_MTV |= occluder.covers(joints_MTV2.swapaxes(1, 2)).swapaxes(1, 2)
    neck, pelvis = JOINT["neck"], JOINT["pelvis"]
    for other in range(len(joints_MTV2)):
        top_T12 = scene.pixels_MTJ2[other, :, neck, None]
        axis_T12 = scene.pixels_MTJ2[other, :, pelvis, None] - top_T12
        length_T1 = np.maximum(np.sum(axis_T12**2, axis=-1), 1e-6)
        radius_T1 = 0.075 * scene.scale_MT[other, :, None] * scene.bodies[other].height
        for person in range(len(joints_MTV2)):
            offset_TV2 = joints_MTV2[person] - top_T12
            share_TV = np.clip(np.sum(offset_TV2 * axis_T12, axis=-1) / length_T1, 0.0, 1.0)
            distance_TV = np.linalg.norm(offset_TV2 - share_TV[..., None] * axis_T12, axis=-1)
            trunk_T1 = 0.5 * (depth_MTJ[other, :, neck, None] + depth_MTJ[other, :, pelvis, None])
            hidden_MTV[person] |= (distance_TV < radius_T1) & (depth_MTJ[person, :, :NUM_JOINTS] > trunk_T1 + 0.1)
    return hidden_MTV
