"""Scenery and light of the synthetic action data set: static and moving objects and lighting around the performers.

Nothing here knows the action. Letters: T frames.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from motion_bodies import FPS, Array, Rng, oscillation
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Difficulty:
    """Amount of distraction: visible variation that is unrelated to the action."""

    sway: float = 0.012  # of the picture's height: how far a camera sways at most
    fastest_sway: float = 0.7  # Hz
    movers: tuple[int, int] = (1, 4)  # things that move behind the performers, fewest and most
    front_movers: tuple[int, int] = (0, 0)  # and in front of them
    flicker: float = 0.0  # maximum relative change of a frame's gain from the mean
    noise: tuple[int, int] = (2, 6)  # levels of the sensor's noise
    own_clothes: bool = False  # clothes of each clip; else of a person in a setup


EASY = Difficulty()
HARD = Difficulty(
    sway=0.05, fastest_sway=1.2, movers=(5, 10), front_movers=(1, 3), flicker=0.12, noise=(6, 30), own_clothes=True,
)


def margin(height: int, sway: float) -> int:
    """Pixels of scenery beyond the picture's edges, for the sway of the camera."""
    return max(24, math.ceil(sway * height))


def colour(rng: Rng, low: int = 20, high: int = 235) -> Colour:
    """A random colour (BGR) that is not grey: one channel is pushed to an end."""
    value = rng.integers(low, high, 3)
    value[rng.integers(3)] = rng.choice([low, high])
    return int(value[0]), int(value[1]), int(value[2])


def darker(value: Colour, factor: float) -> Colour:
    return int(value[0] * factor), int(value[1] * factor), int(value[2] * factor)


def cloud(rng: Rng, width: int, height: int, cells: int, low: Colour, high: Colour) -> Picture:
    """Smooth random texture between two colours."""
    grid = rng.integers(0, 256, (max(2, cells * height // width), cells), dtype=np.uint8)
    share = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)[..., None] / 255
    dark, bright = np.array(low, np.float32), np.array(high, np.float32)
    return (dark + (bright - dark) * share).clip(0, 255).astype(np.uint8)


def make_backdrop(rng: Rng, width: int, height: int, edge: int) -> Picture:
    """Wall, floor, pictures and furniture: a still picture with `edge` extra pixels on each side."""
    width, height = width + 2 * edge, height + 2 * edge
    wall = colour(rng, 60, 200)
    picture = cloud(rng, width, height, int(rng.integers(6, 24)), darker(wall, 0.75), wall)
    floor_top = int(rng.uniform(0.62, 0.78) * height)
    floor = colour(rng, 40, 190)
    picture[floor_top:] = cloud(rng, width, height - floor_top, int(rng.integers(10, 40)), darker(floor, 0.7), floor)
    if rng.uniform() < 0.5:  # floor boards
        for x in range(-width, 2 * width, int(rng.integers(30, 70))):
            end = (int(width / 2 + (x - width / 2) * 2.2), height)
            cv2.line(picture, (x, floor_top), end, darker(floor, 0.55), 1)
    for _ in range(int(rng.integers(3, 9))):
        size = rng.uniform(0.06, 0.24, 2) * (width, height)
        corner = rng.uniform(-0.05, 0.95, 2) * (width, floor_top)
        first, second = corner.astype(int), (corner + size).astype(int)
        shade = colour(rng)
        cv2.rectangle(picture, first.tolist(), second.tolist(), shade, -1)
        step = int(rng.integers(5, 14))
        for offset in range(step, int(size[1]), step):
            y = int(first[1]) + offset
            cv2.line(picture, (int(first[0]), y), (int(second[0]), y), darker(shade, 0.7), 2)
        cv2.rectangle(picture, first.tolist(), second.tolist(), darker(shade, 0.4), 1)
    return picture


@dataclass(frozen=True)
class Mover:
    """Something that moves behind or in front of the performers: a striped disc on a straight or swinging path."""

    path_T2: Array
    radius: int
    fill: Colour
    stripe: Colour

    def draw(self, frame: Picture, time: int) -> None:
        x, y = (int(v) for v in self.path_T2[time])
        cv2.circle(frame, (x, y), self.radius, self.fill, -1)
        cv2.line(frame, (x - self.radius, y), (x + self.radius, y), self.stripe, max(2, self.radius // 2))


def make_movers(rng: Rng, num_frames: int, width: int, height: int, number: tuple[int, int]) -> list[Mover]:
    movers = []
    time_T = np.arange(num_frames) / FPS
    for _ in range(int(rng.integers(number[0], number[1] + 1))):
        start = rng.uniform(0, 1, 2) * (width, 0.75 * height)
        if rng.uniform() < 0.5:
            path = start + time_T[:, None] * rng.uniform(-0.3, 0.3, 2) * (width, height)
        else:
            path = start + oscillation(rng, num_frames, 0.3, 2.0)[:, None] * rng.uniform(-0.12, 0.12, 2) * (width, height)
        movers.append(Mover(path, int(rng.uniform(0.02, 0.07) * height), colour(rng), colour(rng)))
    return movers


@dataclass(frozen=True)
class Occluder:
    """Something between the camera and the performers: a textured patch with a mask, at a drifting place."""

    patch: Picture
    mask: Picture
    corner_T2: NDArray[np.int64]

    def covers(self, pixels: Array) -> NDArray[np.bool_]:
        """Which of the points (..., T, 2) lie behind it."""
        height, width = self.mask.shape
        place = np.floor(pixels).astype(np.int64) - self.corner_T2
        inside = ((place >= 0) & (place < (width, height))).all(axis=-1)
        place = place.clip(0, (width - 1, height - 1))
        return inside & (self.mask[place[..., 1], place[..., 0]] > 0)

    def draw(self, frame: Picture, time: int) -> None:
        """Paint it over the frame, cut at the frame's edges."""
        x, y = (int(v) for v in self.corner_T2[time])
        height, width = self.mask.shape
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(height, frame.shape[0] - y), min(width, frame.shape[1] - x)
        if top < bottom and left < right:
            target = frame[y + top:y + bottom, x + left:x + right]
            cv2.copyTo(self.patch[top:bottom, left:right], self.mask[top:bottom, left:right], target)


def make_occluders(rng: Rng, sway_T2: Array, width: int, height: int) -> list[Occluder]:
    """None, one or two: a pole, a low wall or a bush, in any place; nearer than the performers, so that it sways more."""
    occluders = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.35, 0.45, 0.2]))):
        kind = int(rng.integers(3))
        share = [(rng.uniform(0.02, 0.045), 1.3), (rng.uniform(0.2, 0.6), 0.3), (rng.uniform(0.1, 0.2), 0.3)][kind]
        size_x, size_y = max(4, int(share[0] * width)), max(4, int(share[1] * height))
        mask = np.full((size_y, size_x), 255, np.uint8)
        if kind == 2:
            mask[:] = 0
            for _ in range(14):
                spot = rng.uniform(0.25, 0.75, 2) * (size_x, size_y)
                cv2.circle(mask, spot.astype(int).tolist(), int(rng.uniform(0.1, 0.25) * min(size_x, size_y)), 255, -1)
        base = colour(rng)
        patch = cloud(rng, size_x, size_y, 8, darker(base, 0.5), base)
        top = {0: -0.15, 1: rng.uniform(0.8, 0.92), 2: rng.uniform(0.68, 0.85)}[kind] * height
        corner_2 = np.array([rng.uniform(-0.05, 1.0) * width - size_x / 2, top])
        drift_T1 = np.arange(len(sway_T2))[:, None] * rng.uniform(-0.0012, 0.0012) * width
        corner_T2 = corner_2 + 1.4 * sway_T2 + drift_T1 * np.array([1.0, 0.0])
        occluders.append(Occluder(patch, mask, np.round(corner_T2).astype(np.int64)))
    return occluders


@dataclass(frozen=True)
class Light:
    """Over time: `gain_T` and `offset_T` of the whole picture, `mix_T` between two lightings of the scenery."""

    gain_T: Array
    offset_T: Array
    mix_T: Array


def make_light(rng: Rng, num_frames: int, flicker: float) -> Light:
    time_T = np.arange(num_frames) / FPS
    slow_T = oscillation(rng, num_frames, 0.1, 0.9)
    gain_T = rng.uniform(0.8, 1.12) * (1.0 + rng.uniform(0.0, 0.14) * slow_T)
    if rng.uniform() < 0.25:  # a lamp goes on or off
        gain_T *= np.where(time_T < rng.uniform(0.2, 0.8) * time_T[-1], 1.0, rng.uniform(0.78, 1.2))
    mix_T = 0.5 + 0.5 * oscillation(rng, num_frames, 0.1, 0.6)
    if flicker:  # else no random number is drawn, so that those that follow stay the same
        gain_T *= rng.uniform(1.0 - flicker, 1.0 + flicker, num_frames)
    return Light(gain_T, rng.uniform(-12, 12) + rng.uniform(-1.0, 1.0, num_frames), mix_T)
