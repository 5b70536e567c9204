"""Camera, looks and scenery of the synthetic action data set: all that a clip shows, before it is drawn.

Nothing here knows the action. Coordinates are continuous: pixel (i, j) has its centre at (j+0.5, i+0.5).

Letters: T frames, M performers, J drawn joints (17 COCO joints first), V the 17 COCO joints.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from motion_bodies import COCO, JOINT, Array, Body, Rng
from motion_figures import Cast
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

NUM_JOINTS = len(COCO)
AZIMUTHS = (-0.7, 0.0, 0.7)  # radians; cameras C001, C002, C003
FIGURE_SHARE = 0.56  # of the picture's height, for a person of 1.72 m in the middle of the scene
MARGIN = 24  # pixels of scenery beyond the picture's edges, for the sway of the camera


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a tripod that sways a little: `sway_T2` in pixels moves everything."""

    position_3: Array
    axes_33: Array  # rows: right, down, forward
    focal: float
    centre_2: Array
    sway_T2: Array

    def project(self, points_T3: Array) -> tuple[Array, Array]:
        """(..., T, 3) metres -> (..., T, 2) pixels and (..., T) depth in metres."""
        seen = (points_T3 - self.position_3) @ self.axes_33.T
        depth = np.maximum(seen[..., 2], 0.5)
        pixels = self.focal * seen[..., :2] / depth[..., None] + self.centre_2 + self.sway_T2
        return pixels, depth


def make_camera(azimuth: float, rng: Rng, num_frames: int, width: int, height: int) -> Camera:
    """Camera at `azimuth` with a height, distance and sway of its own."""
    distance, eye = rng.uniform(5.0, 6.2), rng.uniform(1.0, 1.9)
    position_3 = np.array([distance * np.sin(azimuth), -distance * np.cos(azimuth), eye])
    aim_3 = np.array([*rng.uniform(-0.12, 0.12, 2), rng.uniform(0.98, 1.1)])
    forward_3 = (aim_3 - position_3) / np.linalg.norm(aim_3 - position_3)
    right_3 = np.cross(forward_3, [0.0, 0.0, 1.0])
    right_3 /= np.linalg.norm(right_3)
    down_3 = np.cross(forward_3, right_3)
    focal = FIGURE_SHARE * height * distance / 1.72 * rng.uniform(0.95, 1.05)
    time_T = np.arange(num_frames) / 30.0
    sway = [rng.uniform(0.0, 0.012) * height * np.sin(2 * np.pi * (rng.uniform(0.2, 0.7) * time_T + rng.uniform()))
            for _ in range(2)]
    centre_2 = np.array([width / 2, height / 2])
    return Camera(position_3, np.stack([right_3, down_3, forward_3]), focal, centre_2, np.stack(sway, axis=1))


# ---------------------------------------------------------------------------------------------------------------------
# Looks


def colour(rng: Rng, low: int = 20, high: int = 235) -> Colour:
    """A random colour (BGR) that is not grey: one channel is pushed to an end."""
    value = rng.integers(low, high, 3)
    value[rng.integers(3)] = rng.choice([low, high])
    return int(value[0]), int(value[1]), int(value[2])


def darker(value: Colour, factor: float = 0.5) -> Colour:
    return int(value[0] * factor), int(value[1] * factor), int(value[2] * factor)


SKINS: tuple[Colour, ...] = ((180, 205, 240), (140, 175, 225), (105, 145, 200), (75, 110, 165), (50, 75, 120))
HAIRS: tuple[Colour, ...] = ((25, 25, 30), (30, 50, 80), (60, 110, 160), (120, 190, 220), (110, 110, 115))


@dataclass(frozen=True)
class Look:
    """Colours of one performer: every limb has its own, the shirt has a pattern."""

    skin: Colour
    hair: Colour
    shirt: Colour
    pattern: Colour
    pattern_kind: int  # 0 plain, 1 stripes across, 2 stripes along, 3 dots
    sleeves: tuple[Colour, Colour]  # upper arm, forearm
    legs: tuple[Colour, Colour]  # thigh, shin
    shoes: Colour


def make_look(person: Rng, clothes: Rng) -> Look:
    """Skin and hair belong to the person, clothes to the recording session."""
    skin, hair = SKINS[person.integers(len(SKINS))], HAIRS[person.integers(len(HAIRS))]
    shirt, trousers = colour(clothes), colour(clothes)
    return Look(
        skin=skin,
        hair=hair,
        shirt=shirt,
        pattern=colour(clothes),
        pattern_kind=int(clothes.integers(4)),
        sleeves=(darker(shirt, 0.8), skin if clothes.uniform() < 0.6 else colour(clothes)),
        legs=(trousers, skin if clothes.uniform() < 0.25 else darker(trousers, 0.8)),
        shoes=colour(clothes),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Scenery


def cloud(rng: Rng, width: int, height: int, cells: int, low: Colour, high: Colour) -> Picture:
    """Smooth random texture between two colours."""
    grid = rng.integers(0, 256, (max(2, cells * height // width), cells), dtype=np.uint8)
    share = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)[..., None] / 255
    dark, bright = np.array(low, np.float32), np.array(high, np.float32)
    return (dark + (bright - dark) * share).clip(0, 255).astype(np.uint8)


def make_backdrop(rng: Rng, width: int, height: int) -> Picture:
    """Wall, floor, pictures and furniture: a still picture with `MARGIN` extra pixels on each side."""
    width, height = width + 2 * MARGIN, height + 2 * MARGIN
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
    """Something that moves behind the performers: a striped disc on a straight or swinging path."""

    path_T2: Array
    radius: int
    fill: Colour
    stripe: Colour


def make_movers(rng: Rng, num_frames: int, width: int, height: int) -> list[Mover]:
    movers = []
    time_T = np.arange(num_frames) / 30.0
    for _ in range(int(rng.integers(1, 5))):
        start = rng.uniform(0, 1, 2) * (width, 0.75 * height)
        if rng.uniform() < 0.5:
            path = start + time_T[:, None] * rng.uniform(-0.3, 0.3, 2) * (width, height)
        else:
            swing_T1 = np.sin(2 * np.pi * (rng.uniform(0.3, 2.0) * time_T + rng.uniform()))[:, None]
            path = start + swing_T1 * rng.uniform(-0.12, 0.12, 2) * (width, height)
        movers.append(Mover(path, int(rng.uniform(0.02, 0.07) * height), colour(rng), colour(rng)))
    return movers


@dataclass(frozen=True)
class Occluder:
    """Something between the camera and the performers: a textured patch with a mask, at a drifting place."""

    patch: Picture
    mask: Picture
    corner_T2: NDArray[np.int64]

    def covers(self, pixels_T2: Array) -> NDArray[np.bool_]:
        """Which of the points (T, 2) lie behind it."""
        height, width = self.mask.shape
        place_T2 = np.floor(pixels_T2).astype(np.int64) - self.corner_T2
        inside_T = ((place_T2 >= 0) & (place_T2 < (width, height))).all(axis=1)
        place_T2 = place_T2.clip(0, (width - 1, height - 1))
        return inside_T & (self.mask[place_T2[:, 1], place_T2[:, 0]] > 0)

    def draw(self, frame: Picture, time: int) -> None:
        """Paint it over the frame, cut at the frame's edges."""
        x, y = (int(v) for v in self.corner_T2[time])
        height, width = self.mask.shape
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(height, frame.shape[0] - y), min(width, frame.shape[1] - x)
        if top < bottom and left < right:
            target = frame[y + top:y + bottom, x + left:x + right]
            cv2.copyTo(self.patch[top:bottom, left:right], self.mask[top:bottom, left:right], target)


def make_occluders(rng: Rng, camera: Camera, width: int, height: int) -> list[Occluder]:
    """None, one or two: a pole, a low wall or a bush, in any place."""
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
        drift_T1 = np.arange(len(camera.sway_T2))[:, None] * rng.uniform(-0.0012, 0.0012) * width
        corner_T2 = corner_2 + 1.4 * camera.sway_T2 + drift_T1 * np.array([1.0, 0.0])
        occluders.append(Occluder(patch, mask, np.round(corner_T2).astype(np.int64)))
    return occluders


@dataclass(frozen=True)
class Light:
    """Over time: `gain_T` and `offset_T` of the whole picture, `mix_T` between two lightings of the scenery."""

    gain_T: Array
    offset_T: Array
    mix_T: Array


def make_light(rng: Rng, num_frames: int) -> Light:
    time_T = np.arange(num_frames) / 30.0
    slow_T = np.sin(2 * np.pi * (rng.uniform(0.1, 0.9) * time_T + rng.uniform()))
    gain_T = rng.uniform(0.8, 1.12) * (1.0 + rng.uniform(0.0, 0.14) * slow_T)
    if rng.uniform() < 0.25:  # a lamp goes on or off
        gain_T *= np.where(time_T < rng.uniform(0.2, 0.8) * time_T[-1], 1.0, rng.uniform(0.78, 1.2))
    mix_T = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.6) * time_T + rng.uniform()))
    return Light(gain_T, rng.uniform(-12, 12) + rng.uniform(-1.0, 1.0, num_frames), mix_T)


# ---------------------------------------------------------------------------------------------------------------------
# The scene


@dataclass(frozen=True)
class Scene:
    """All that is needed to draw a clip, and the true joints: `pixels_MTJ2`, `depth_MTJ`."""

    width: int
    height: int
    pixels_MTJ2: Array
    depth_MTJ: Array
    scale_MT: Array  # pixels per metre at each performer
    bodies: tuple[Body, ...]
    looks: tuple[Look, ...]
    object_T2: Array | None
    object_radius_T: Array
    shadow_MT2: Array
    occluders: tuple[Occluder, ...]
    camera: Camera
    scenery_seed: tuple[int, ...]

    @property
    def num_frames(self) -> int:
        return len(self.camera.sway_T2)

    def coco(self) -> Array:
        """True COCO joints (M, T, V, 2) in pixels, wherever they are."""
        return self.pixels_MTJ2[:, :, :NUM_JOINTS]

    def spans(self) -> Array:
        """Height in pixels of each performer (M,), averaged over the clip."""
        return self.scale_MT.mean(axis=1) * np.array([body.height for body in self.bodies])


def make_scene(
    cast: Cast, looks: tuple[Look, ...], camera: Camera, width: int, height: int, seed: tuple[int, ...], *, plain: bool
) -> Scene:
    """Project the cast and set up what stands in front of it; `plain` leaves occluders away."""
    pixels_MJT2, depth_MJT = camera.project(cast.joints_MTJ3.swapaxes(1, 2))
    pixels_MTJ2, depth_MTJ = pixels_MJT2.swapaxes(1, 2), depth_MJT.swapaxes(1, 2)
    floor_MT3 = cast.joints_MTJ3[:, :, JOINT["pelvis"]] * (1.0, 1.0, 0.0)
    held = None if cast.object_T3 is None else camera.project(cast.object_T3)
    num_frames = len(camera.sway_T2)
    occluders = [] if plain else make_occluders(np.random.default_rng([*seed, 1]), camera, width, height)
    return Scene(
        width=width,
        height=height,
        pixels_MTJ2=pixels_MTJ2,
        depth_MTJ=depth_MTJ,
        scale_MT=camera.focal / depth_MTJ[:, :, JOINT["pelvis"]],
        bodies=cast.bodies,
        looks=looks,
        object_T2=None if held is None else held[0],
        object_radius_T=np.zeros(num_frames) if held is None else 0.065 * camera.focal / held[1],
        shadow_MT2=camera.project(floor_MT3)[0],
        occluders=tuple(occluders),
        camera=camera,
        scenery_seed=seed,
    )
