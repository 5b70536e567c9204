"""The twelve actions of the synthetic action data set: one or two performers in three dimensions.

Nothing is drawn here. An action changes the stances of a stage, which are at rest initially. The result of `perform` is a
`Cast`: joints in metres for one or two performers and the track of the object that one of them may carry. Actions differ
in motion and come in groups that share their poses, so that one frame does not reveal the class: raise / lower, sit down /
stand up / jump, wave / hold up, shake hands / hand over. No two actions are mirror images of each other, because the
training recipe flips clips at random.

Axes and joints as in `motion_bodies`. Letters: T frames, M performers, J drawn joints.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from motion_bodies import FPS, JOINT, Array, Body, Rng, columns, pose
from motion_stage import Stage, active_window, clip_time, cycles, facing, hump, idle, move_wrist, move_wrists, ramp, wobble

BYSTANDER_RATE = 0.55  # share of one-person actions with a second person who only stands there
CARRY_RATE = 0.4  # share of actions other than "hand over" in which somebody holds an object


@dataclass(frozen=True)
class Cast:
    """Joints (M, T, J, 3) in metres, each performer's body, and the carried object's track (T, 3), if there is one."""

    joints_MTJ3: Array
    bodies: tuple[Body, ...]
    object_T3: Array | None


def raised_hand(stage: Stage, swing_T: Array) -> None:
    """One forearm goes up beside the head, moves by `swing_T` (-1..1) and comes down: wave and hold up share it."""
    rng, count = stage.rng, stage.num_frames
    start, stop = active_window(stage, 0.66, 0.9)
    envelope_T = hump(count, start, stop, rng.uniform(7, 10), rng.uniform(7, 10))
    target_T3 = columns(count, rng.uniform(0.1, 0.25), 0.46 + 0.4 * swing_T, 0.66 - 0.12 * swing_T**2)
    move_wrist(stage.stances[0], int(rng.integers(2)), envelope_T, target_T3)


def wave(stage: Stage) -> None:
    frequency = stage.rng.uniform(1.5, 2.0)
    raised_hand(stage, np.sin(2 * np.pi * (frequency * clip_time(stage) + stage.rng.uniform())))


def hold_up(stage: Stage) -> None:
    place = np.sin(2 * np.pi * stage.rng.uniform())  # the same distribution of poses as a wave
    raised_hand(stage, np.clip(place + wobble(stage.rng, stage.num_frames, 0.06), -1.0, 1.0))


def both_arms(stage: Stage, up_T: Array) -> None:
    """Both arms between hanging (0) and overhead (1), on an arc through the side."""
    rng, count = stage.rng, stage.num_frames
    angle_T = np.pi * 0.93 * up_T
    forward, side_reach = rng.uniform(0.05, 0.3), rng.uniform(0.6, 0.85)
    target_T3 = columns(count, forward, 0.15 + side_reach * np.sin(angle_T), -0.95 * np.cos(angle_T))
    move_wrists(stage.stances[0], np.ones(count), target_T3)  # at rest they hang: raised ones would undo the move


def one_way(stage: Stage) -> Array:
    """0 -> 1 once, somewhere in the middle of the clip."""
    length = stage.rng.uniform(15, 21) / stage.tempo
    centre = stage.rng.uniform(0.3, 0.7) * stage.num_frames
    return ramp(stage.num_frames, centre - length / 2, length)


def crouch(stage: Stage, down_T: Array) -> None:
    """Knees bend, the trunk leans forward, the arms come forward: 0 standing, 1 as low as on a stool."""
    rng, count, stance = stage.rng, stage.num_frames, stage.stances[0]
    stance.drop_T += rng.uniform(0.46, 0.56) * down_T
    stance.pitch_T += rng.uniform(0.35, 0.6) * down_T
    move_wrists(stance, 0.9 * down_T, columns(count, rng.uniform(0.35, 0.6), 0.1, -0.72))


def jump(stage: Stage) -> None:
    """Two or three times: crouch, leave the floor, land."""
    rng, count, stance = stage.rng, stage.num_frames, stage.stances[0]
    phase_T = cycles(stage, rng.uniform(17, 20) / stage.tempo, 3, 0.0, 1.0)
    bend_T = np.where(phase_T < 0.42, np.sin(np.pi * phase_T / 0.42), 0.0)
    bend_T += np.where(phase_T > 0.8, 0.5 * np.sin(np.pi * (phase_T - 0.8) / 0.2), 0.0)
    air_T = np.clip((phase_T - 0.38) / 0.44, 0.0, 1.0)
    lift_T = rng.uniform(0.34, 0.44) * 4.0 * air_T * (1.0 - air_T)
    stance.drop_T += 0.34 * bend_T - lift_T
    stance.pitch_T += 0.35 * bend_T
    stance.ankles_T23[:, :, 2] += lift_T[:, None]
    move_wrists(stance, 0.8 * bend_T, columns(count, -0.3, 0.3, -0.8))
    move_wrists(stance, 1.6 * np.minimum(lift_T, 0.5), columns(count, 0.7, 0.35, 0.1))


def clap(stage: Stage) -> None:
    rng, count, stance = stage.rng, stage.num_frames, stage.stances[0]
    start, stop = active_window(stage, 0.6, 0.82)
    envelope_T = hump(count, start, stop, rng.uniform(6, 9), rng.uniform(6, 9))
    frequency = rng.uniform(1.6, 2.1)
    open_T = 0.5 - 0.5 * np.cos(2 * np.pi * (frequency * clip_time(stage) + rng.uniform()))
    together = -0.9 * stage.bodies[0].shoulder / stage.bodies[0].arm
    height = rng.uniform(-0.15, 0.2)
    target_T3 = columns(count, 0.62 - 0.12 * open_T, together + 0.95 * open_T, height)
    move_wrists(stance, envelope_T, target_T3)


def walk(stage: Stage) -> None:
    """Across the scene in the direction of the body's yaw, standing still before and after."""
    rng, count, stance, body = stage.rng, stage.num_frames, stage.stances[0], stage.bodies[0]
    start, stop = active_window(stage, 0.5, 0.7)
    pace_T = hump(count, start, stop, 6, 6)
    travel_T = np.cumsum(pace_T) * rng.uniform(0.85, 1.15) * stage.tempo / FPS
    yaw = float(stance.yaw_T.mean())
    stance.ground_T2 += (travel_T - travel_T[-1] / 2)[:, None] * np.array([np.sin(yaw), -np.cos(yaw)])
    stance.ankles_T23[:, :, 0] *= 1.0 - pace_T[:, None]
    stance.drop_T *= 1.0 - pace_T
    stride = rng.uniform(0.85, 1.05) * body.height / 1.7
    for side in range(2):
        phase_T = (travel_T / stride + 0.5 * side + 0.15) % 1.0
        planted_T = phase_T < 0.6
        swing_T = np.clip((phase_T - 0.6) / 0.4, 0.0, 1.0)
        reach = 0.3 * stride / body.leg
        ahead_T = np.where(planted_T, reach * (1 - 2 * phase_T / 0.6), -reach * np.cos(np.pi * swing_T))
        stance.ankles_T23[:, side, 0] += pace_T * ahead_T
        stance.ankles_T23[:, side, 2] += pace_T * 0.16 * np.sin(np.pi * swing_T)
        swing_arm_T = -0.5 * ahead_T / reach
        move_wrist(stance, side, pace_T, columns(count, swing_arm_T + 0.1, 0.15, -0.92 + 0.25 * swing_arm_T**2))
    stance.drop_T += 0.045 * pace_T


def kick(stage: Stage) -> None:
    """One leg swings back, then high to the front, once or twice."""
    rng, count, stance = stage.rng, stage.num_frames, stage.stances[0]
    side = int(rng.integers(2))
    phase_T = cycles(stage, rng.uniform(23, 28) / stage.tempo, int(rng.integers(1, 3)), 0.02, 0.98)
    back_T = np.where(phase_T < 0.4, np.sin(np.pi * phase_T / 0.4) ** 2, 0.0)
    front_T = np.sin(np.pi * np.clip((phase_T - 0.32) / 0.6, 0.0, 1.0)) ** 2
    high = rng.uniform(0.5, 0.66)
    stance.ankles_T23[:, side, 0] += -0.42 * back_T + 0.86 * front_T
    stance.ankles_T23[:, side, 2] += 0.22 * back_T + high * front_T
    stance.pitch_T -= 0.25 * front_T - 0.15 * back_T
    stance.drop_T += 0.05 * front_T
    move_wrists(stance, 0.7 * front_T, columns(count, 0.25, 0.55, -0.6))


RIGHT = 1


def hands_meet(stage: Stage, reach_M: tuple[Array, Array], bounce_T: Array) -> None:
    """Both performers bring the right hand to one point between them, which moves up and down by `bounce_T` metres."""
    first, second = stage.stances
    middle_T2 = 0.5 * (first.ground_T2 + second.ground_T2)
    height = 0.62 * min(body.height for body in stage.bodies) + stage.rng.uniform(-0.06, 0.1)
    point_T3 = np.column_stack([middle_T2, height + bounce_T])
    for stance, reach_T in zip(stage.stances, reach_M, strict=True):
        stance.meet_T23[:, RIGHT] = point_T3
        stance.meet_weight_T2[:, RIGHT] = reach_T


def shake_hands(stage: Stage) -> None:
    rng, count = stage.rng, stage.num_frames
    start, stop = active_window(stage, 0.52, 0.72)
    envelopes = [hump(count, start + rng.uniform(0, 4), stop - rng.uniform(0, 3), 9, 8) for _ in range(2)]
    shaking_T = np.minimum(*envelopes)
    frequency = rng.uniform(1.7, 2.2)
    bounce_T = 0.15 * shaking_T**2 * np.sin(2 * np.pi * (frequency * clip_time(stage) + rng.uniform()))
    hands_meet(stage, (envelopes[0], envelopes[1]), bounce_T)


def hand_over(stage: Stage) -> Array:
    """The giver reaches out, the taker follows, the object changes hands. Returns who holds it: 0 giver, 1 taker."""
    rng, count = stage.rng, stage.num_frames
    start, stop = active_window(stage, 0.56, 0.78)
    change = 0.5 * (start + stop) + rng.uniform(-2, 2)
    giver_T = hump(count, start, change + 13, rng.uniform(9, 12), 10)
    taker_T = hump(count, change - 12, stop + 2, 10, rng.uniform(9, 12))
    hands_meet(stage, (giver_T, taker_T), 0.02 * np.sin(np.arange(count) / 5.0))
    return (np.arange(count) >= change).astype(np.float64)


ACTIONS: dict[str, Callable[[Stage], Array | None]] = {
    "wave": wave,
    "hold up a hand": hold_up,
    "raise both arms": lambda stage: both_arms(stage, one_way(stage)),
    "lower both arms": lambda stage: both_arms(stage, 1.0 - one_way(stage)),
    "sit down": lambda stage: crouch(stage, one_way(stage)),
    "stand up": lambda stage: crouch(stage, 1.0 - one_way(stage)),
    "jump": jump,
    "clap": clap,
    "walk": walk,
    "kick": kick,
    "shake hands": shake_hands,
    "hand over": hand_over,
}
CLASSES = tuple(ACTIONS)
TOGETHER = ("shake hands", "hand over")


def build_stage(action: str, rng: Rng, num_frames: int, bodies: tuple[Body, Body], camera_yaw: float) -> Stage:
    """One or two idle performers in their places; two stand side by side for the camera (azimuth in radians)."""
    together = action in TOGETHER
    centre = rng.uniform(-0.15, 0.15, 2)
    if not together and rng.uniform() >= BYSTANDER_RATE:
        stage = Stage(rng, num_frames, bodies[:1])
        stage.stances.append(idle(rng, num_frames, centre, facing(rng)))
        return stage
    angle = camera_yaw + rng.uniform(-0.5, 0.5)
    apart = np.array([np.cos(angle), np.sin(angle)]) * rng.choice([-1.0, 1.0])
    gap = rng.uniform(0.95, 1.15) + (0.0 if together or rng.uniform() < 0.7 else rng.uniform(0.0, 0.25))
    stage = Stage(rng, num_frames, bodies)
    for place, sign in ((centre - 0.5 * gap * apart, 1.0), (centre + 0.5 * gap * apart, -1.0)):
        towards = sign * apart
        yaw = float(np.arctan2(towards[0], -towards[1]))
        if not together and rng.uniform() < 0.3:
            yaw = facing(rng)
        stage.stances.append(idle(rng, num_frames, place, yaw))
    if action == "walk":  # the walker passes in front of or behind the other one
        yaw = float(stage.stances[0].yaw_T.mean())
        stage.stances[1].ground_T2 += 0.35 * np.array([np.cos(yaw), np.sin(yaw)])
    return stage


def object_track(rng: Rng, joints_MTJ3: Array, taker_T: Array | None) -> Array | None:
    """Track (T, 3) of the object: passed from the first to the second, else held by somebody, or None."""
    hands_MT3 = joints_MTJ3[:, :, JOINT["r_hand"]]
    if taker_T is not None:
        share_T1 = np.convolve(np.pad(taker_T, 1, mode="edge"), np.ones(3) / 3, mode="valid")[:, None]
        return (1.0 - share_T1) * hands_MT3[0] + share_T1 * hands_MT3[1]
    if rng.uniform() >= CARRY_RATE:
        return None
    return np.asarray(hands_MT3[rng.integers(len(hands_MT3))])


def perform(label: int, rng: Rng, num_frames: int, bodies: tuple[Body, Body], camera_yaw: float) -> Cast:
    """Perform action `label` (index into CLASSES) for `num_frames` frames at 30 frames per second."""
    action = CLASSES[label]
    stage = build_stage(action, rng, num_frames, bodies, camera_yaw)
    taker_T = ACTIONS[action](stage)
    joints_MTJ3 = np.stack([pose(body, stance) for body, stance in zip(stage.bodies, stage.stances, strict=True)])
    return Cast(joints_MTJ3, stage.bodies, object_track(rng, joints_MTJ3, taker_T))
