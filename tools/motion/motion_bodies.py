"""Bodies of the synthetic action data set: proportions, and inverse kinematics from a stance to joints.

World: X to the right and Y away from camera C002, Z up, metres; the floor is Z = 0. A body with yaw 0 looks at C002.
Letters: T frames, J drawn joints (17 COCO joints first, then `EXTRA`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdata2vec.shards.layouts import COCO17

Array = NDArray[np.float64]
Rng = np.random.Generator

EXTRA = ("neck", "pelvis", "head", "l_hand", "r_hand", "l_toe", "r_toe")
JOINT = {name: index for index, name in enumerate(COCO17.joints + EXTRA)}
SIDES = ("l", "r")
FPS = 30


@dataclass(frozen=True)
class Body:
    """Proportions of one performer: lengths in metres, `tempo` is a factor on every speed."""

    height: float
    arm: float
    leg: float
    torso: float
    shoulder: float
    hip: float
    girth: float
    tempo: float

    @property
    def standing(self) -> float:
        """Height of the pelvis above the floor when standing: a little less than stretched legs."""
        return 0.985 * self.leg + 0.045 * self.height


def make_body(rng: Rng) -> Body:
    """Draw the proportions of one performer."""
    height = rng.uniform(1.56, 1.88)
    return Body(
        height=height,
        arm=height * rng.uniform(0.325, 0.355),
        leg=height * rng.uniform(0.475, 0.505),
        torso=height * rng.uniform(0.285, 0.31),
        shoulder=height * rng.uniform(0.108, 0.128),
        hip=height * rng.uniform(0.055, 0.068),
        girth=rng.uniform(0.88, 1.18),
        tempo=rng.uniform(0.88, 1.15),
    )


@dataclass
class Stance:
    """What a performer does, per frame, in the body's own frame (forward, outward or left, up).

    `wrists_T23`: wrist relative to its shoulder in arm lengths (forward, outward, up), left then right.
    `ankles_T23`: ankle relative to the floor point below the pelvis, in leg lengths (forward, outward, up).
    `meet_T23`: a wrist target in the world in metres, mixed in with weight `meet_weight_T2`.
    """

    ground_T2: Array
    yaw_T: Array
    drop_T: Array
    pitch_T: Array
    head_yaw_T: Array
    wrists_T23: Array
    ankles_T23: Array
    meet_T23: Array
    meet_weight_T2: Array


def oscillation(rng: Rng, num_frames: int, slowest: float, fastest: float) -> Array:
    """(T,) sine of random phase and a random frequency in Hz."""
    return np.sin(2 * np.pi * (rng.uniform(slowest, fastest) * np.arange(num_frames) / FPS + rng.uniform()))


def columns(num_frames: int, *values: float | Array) -> Array:
    """(T, len(values)) from numbers and (T,) arrays."""
    return np.stack([np.broadcast_to(np.asarray(v, dtype=np.float64), (num_frames,)) for v in values], axis=1)


def two_bones(root_T3: Array, target_T3: Array, upper: float, lower: float, pole_T3: Array) -> tuple[Array, Array]:
    """Inverse kinematics of a limb that bends towards `pole_T3`: returns its middle joint and its end, within reach."""
    delta_T3 = target_T3 - root_T3
    distance_T1 = np.linalg.norm(delta_T3, axis=1, keepdims=True)
    along_T3 = delta_T3 / np.maximum(distance_T1, 1e-9)
    reach_T1 = np.clip(distance_T1, abs(upper - lower) + 1e-3, 0.995 * (upper + lower))
    pole_T3 = pole_T3 - along_T3 * np.sum(along_T3 * pole_T3, axis=1, keepdims=True)
    pole_T3 = pole_T3 / np.maximum(np.linalg.norm(pole_T3, axis=1, keepdims=True), 1e-9)
    foot_T1 = (reach_T1**2 + upper**2 - lower**2) / (2 * reach_T1)
    bend_T1 = np.sqrt(np.maximum(upper**2 - foot_T1**2, 0.0))
    return root_T3 + along_T3 * foot_T1 + pole_T3 * bend_T1, root_T3 + along_T3 * reach_T1


def pose(body: Body, stance: Stance) -> Array:
    """Joints (T, J, 3) in metres of one performer."""
    count = len(stance.yaw_T)
    zero_T = np.zeros(count)
    up_T3 = np.tile([0.0, 0.0, 1.0], (count, 1))
    forward_T3 = columns(count, np.sin(stance.yaw_T), -np.cos(stance.yaw_T), zero_T)
    left_T3 = columns(count, np.cos(stance.yaw_T), np.sin(stance.yaw_T), zero_T)
    joints_TJ3 = np.zeros((count, len(JOINT), 3))

    def put(name: str, value_T3: Array) -> Array:
        joints_TJ3[:, JOINT[name]] = value_T3
        return value_T3

    ground_T3 = np.column_stack([stance.ground_T2, zero_T])
    pelvis_T3 = put("pelvis", ground_T3 + up_T3 * (body.standing - body.leg * stance.drop_T)[:, None])
    lean_T1 = stance.pitch_T[:, None]
    spine_T3 = np.cos(lean_T1) * up_T3 + np.sin(lean_T1) * forward_T3
    front_T3 = np.cos(lean_T1) * forward_T3 - np.sin(lean_T1) * up_T3
    pelvis_T3 = put("pelvis", pelvis_T3 - 0.3 * body.torso * np.sin(lean_T1) * forward_T3)  # keeps the balance
    neck_T3 = put("neck", pelvis_T3 + body.torso * spine_T3)
    put_head(body, put, neck_T3, spine_T3, front_T3, left_T3, stance.head_yaw_T[:, None])
    for side, name in enumerate(SIDES):
        out_T3 = left_T3 if side == 0 else -left_T3
        shoulder_T3 = put(f"{name}_shoulder", neck_T3 + body.shoulder * out_T3 - 0.015 * body.height * spine_T3)
        wrist_T3 = shoulder_T3 + body.arm * local(stance.wrists_T23[:, side], forward_T3, out_T3, up_T3)
        weight_T1 = stance.meet_weight_T2[:, side, None]
        wrist_T3 = (1.0 - weight_T1) * wrist_T3 + weight_T1 * stance.meet_T23[:, side]
        pole_T3 = -0.7 * forward_T3 + 0.5 * out_T3 - 0.6 * up_T3
        elbow_T3, wrist_T3 = two_bones(shoulder_T3, wrist_T3, 0.52 * body.arm, 0.48 * body.arm, pole_T3)
        put(f"{name}_elbow", elbow_T3)
        put(f"{name}_wrist", wrist_T3)
        put(f"{name}_hand", wrist_T3 + 0.32 * (wrist_T3 - elbow_T3))
        hip_T3 = put(f"{name}_hip", pelvis_T3 + body.hip * out_T3)
        ankle_T3 = ground_T3 + body.leg * local(stance.ankles_T23[:, side], forward_T3, out_T3, up_T3)
        ankle_T3 = ankle_T3 + 0.045 * body.height * up_T3
        pole_T3 = forward_T3 + 0.25 * out_T3
        knee_T3, ankle_T3 = two_bones(hip_T3, ankle_T3, 0.5 * body.leg, 0.5 * body.leg, pole_T3)
        put(f"{name}_knee", knee_T3)
        put(f"{name}_ankle", ankle_T3)
        put(f"{name}_toe", ankle_T3 + 0.085 * body.height * forward_T3 - 0.025 * body.height * up_T3)
    return joints_TJ3


def local(value_T3: Array, forward_T3: Array, out_T3: Array, up_T3: Array) -> Array:
    """A vector given as (forward, outward, up), in world axes."""
    return value_T3[:, :1] * forward_T3 + value_T3[:, 1:2] * out_T3 + value_T3[:, 2:] * up_T3


def put_head(
    body: Body, put: Callable[[str, Array], Array], neck_T3: Array, spine_T3: Array, front_T3: Array, left_T3: Array,
    turn_T1: Array,
) -> None:
    """Place the head, which turns about the spine, and the five joints of the face."""
    size = body.height
    look_T3 = np.cos(turn_T1) * front_T3 + np.sin(turn_T1) * left_T3
    cheek_T3 = np.cos(turn_T1) * left_T3 - np.sin(turn_T1) * front_T3
    head_T3 = put("head", neck_T3 + 0.1 * size * spine_T3 + 0.012 * size * front_T3)
    put("nose", head_T3 + 0.058 * size * look_T3 - 0.006 * size * spine_T3)
    for name, sign in zip(SIDES, (1.0, -1.0), strict=True):
        put(f"{name}_eye", head_T3 + size * (0.046 * look_T3 + sign * 0.024 * cheek_T3 + 0.016 * spine_T3))
        put(f"{name}_ear", head_T3 + size * (sign * 0.056 * cheek_T3 - 0.004 * look_T3))
