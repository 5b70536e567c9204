"""Building blocks of the synthetic action data set's actions: timing, the stance at rest, and moves that several share.

Axes and joints as in `motion_bodies`. Letters: T frames.
"""

from dataclasses import dataclass, field

import numpy as np
from motion_bodies import FPS, Array, Body, Rng, Stance, oscillation


@dataclass
class Stage:
    """Everything an action works with: its random numbers, the frame count, the bodies, and one stance per performer."""

    rng: Rng
    num_frames: int
    bodies: tuple[Body, ...]
    stances: list[Stance] = field(default_factory=list)

    @property
    def tempo(self) -> float:
        return self.bodies[0].tempo


def ramp(num_frames: int, start: float, length: float) -> Array:
    """Smooth step 0 -> 1 that begins at frame `start` and takes `length` frames."""
    x_T = np.clip((np.arange(num_frames) - start) / max(length, 1.0), 0.0, 1.0)
    return x_T * x_T * (3.0 - 2.0 * x_T)


def hump(num_frames: int, start: float, stop: float, rise: float, fall: float) -> Array:
    """0 -> 1 -> 0: rises from `start` in `rise` frames, is back at `stop` after `fall` frames."""
    return ramp(num_frames, start, rise) * (1.0 - ramp(num_frames, stop - fall, fall))


def active_window(stage: Stage, low: float, high: float) -> tuple[float, float]:
    """Random first and last frame of the action: `low` to `high` of the clip, anywhere in it."""
    length = stage.rng.uniform(low, high) * stage.num_frames
    start = stage.rng.uniform(0.04, 0.96) * (stage.num_frames - length)
    return start, start + length


def cycles(stage: Stage, period: float, most: int, low: float, high: float) -> Array:
    """(T,) progress of a repeated move, 0 to 1 in each of at most `most` turns of `period` frames; 0 outside of them.

    The first turn starts after a share of `low` to `high` of the frames that the turns leave free.
    """
    repeats = int(np.clip(0.9 * stage.num_frames / period, 1, most))
    start = stage.rng.uniform(low, high) * max(stage.num_frames - repeats * period, 1.0)
    cycles_T = (np.arange(stage.num_frames) - start) / period
    return np.where((cycles_T > 0) & (cycles_T < repeats), cycles_T % 1.0, 0.0)


def wobble(rng: Rng, num_frames: int, size: float) -> Array:
    """Slow smooth random motion around zero: two sines of less than 1 Hz."""
    return size * 0.5 * (oscillation(rng, num_frames, 0.15, 0.8) + oscillation(rng, num_frames, 0.15, 0.8))


def clip_time(stage: Stage) -> Array:
    """Seconds of the first performer's own clock: subjects differ in tempo."""
    return np.arange(stage.num_frames) / FPS * stage.tempo


HANG, BELLY, HIP, CHEST = (0.06, 0.16, -0.97), (0.5, -0.2, -0.5), (0.02, 0.06, -0.72), (0.5, -0.12, -0.12)
HEAD, OVERHEAD, FRONT = (0.18, 0.46, 0.62), (0.15, 0.3, 0.85), (0.72, -0.05, -0.3)
# Where a wrist rests. The raised positions also occur in other actions, so a raised hand at rest does not reveal the class.
REST_WRISTS = (HANG, BELLY, HIP, CHEST, HEAD, OVERHEAD, FRONT)
REST_SHARES = (0.44, 0.13, 0.13, 0.08, 0.09, 0.05, 0.08)
ALIKE_RATE = 0.5  # share of performers whose wrists rest alike
ASTRIDE_RATE = 0.35  # share of performers who stand with one foot in front, as in a step


def idle(rng: Rng, num_frames: int, ground: Array, yaw: float) -> Stance:
    """Standing at rest in one of many poses, breathing and swaying a little, looking around."""
    left, right = rng.choice(len(REST_WRISTS), 2, p=REST_SHARES)
    rest_23 = np.array([REST_WRISTS[left], REST_WRISTS[left if rng.uniform() < ALIKE_RATE else right]])
    wrists_T23 = np.tile(rest_23, (num_frames, 1, 1)) + rng.normal(0.0, 0.03, (1, 2, 3))
    for side in range(2):
        wrists_T23[:, side, 0] += wobble(rng, num_frames, 0.06)
    step = rng.choice([-1.0, 1.0]) * rng.uniform(0.1, 0.32) if rng.uniform() < ASTRIDE_RATE else 0.0
    ankles_T23 = np.zeros((num_frames, 2, 3))
    ankles_T23[:, :, 0] = rng.normal(0.0, 0.03, (1, 2)) + np.array([step, -step])
    ankles_T23[:, :, 1] = rng.uniform(0.12, 0.2)
    sway_T2 = np.stack([wobble(rng, num_frames, 0.02), wobble(rng, num_frames, 0.02)], axis=1)
    return Stance(
        ground_T2=ground + sway_T2,
        yaw_T=yaw + wobble(rng, num_frames, 0.08),
        drop_T=np.full(num_frames, 1.0 - np.sqrt(1.0 - step * step)),  # both feet stay on the floor
        pitch_T=rng.uniform(0.0, 0.08) + wobble(rng, num_frames, 0.03),
        head_yaw_T=rng.uniform(-0.3, 0.3) + wobble(rng, num_frames, 0.3),
        wrists_T23=wrists_T23,
        ankles_T23=ankles_T23,
        meet_T23=np.zeros((num_frames, 2, 3)),
        meet_weight_T2=np.zeros((num_frames, 2)),
    )


def move_wrist(stance: Stance, side: int, weight_T: Array, target_T3: Array) -> None:
    """Blend one wrist towards a target (forward, outward, up) in arm lengths."""
    weight_T1 = weight_T[:, None]
    stance.wrists_T23[:, side] = (1.0 - weight_T1) * stance.wrists_T23[:, side] + weight_T1 * target_T3


def move_wrists(stance: Stance, weight_T: Array, target_T3: Array) -> None:
    """Blend both wrists, each on its own side."""
    for side in range(2):
        move_wrist(stance, side, weight_T, target_T3)


def facing(rng: Rng) -> float:
    """Yaw of a lone performer: towards the cameras or across, for every action alike."""
    if rng.uniform() < 0.45:
        return float(rng.uniform(-0.8, 0.8))
    return float(rng.choice([-1.0, 1.0]) * rng.uniform(0.9, 1.75))
