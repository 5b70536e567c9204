"""Pictures of the synthetic action data set: camera, scenery, drawing, and what a pose detector would say.

Everything is drawn with cheap OpenCV calls on uint8 pictures, because the budget is about two milliseconds per frame
with the encoding. Nothing here knows the action. Coordinates are continuous: pixel (i, j) has its centre at
(j+0.5, i+0.5).

Letters: T frames, M performers, J drawn joints (17 COCO joints first), V the 17 COCO joints, P parts of a body.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from motion_figures import COCO, JOINT, Array, Body, Cast, Rng
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

NUM_JOINTS = len(COCO)
AZIMUTHS = (-0.7, 0.0, 0.7)  # radians; cameras C001, C002, C003
FIGURE_SHARE = 0.56  # of the picture's height, for a person of 1.72 m in the middle of the scene
MARGIN = 24  # pixels of scenery beyond the picture's edges, for the sway of the camera
SHIFT = 3  # OpenCV draws with 1/8 pixel
PLAIN_GREY = 128


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


@dataclass(frozen=True)
class Part:
    """A capsule between two joints; radius as a share of the body's height; `colour_of` picks from a look."""

    first: str
    second: str
    radius: float
    colour_of: str
    nearer: float = 0.0  # metres added towards the camera when parts are sorted by depth


def body_parts() -> tuple[Part, ...]:
    parts = [Part("neck", "pelvis", 0.058, "shirt"), Part("neck", "head", 0.03, "skin", -0.05),
             Part("left_hip", "right_hip", 0.05, "thigh", -0.02), Part("head", "head", 0.066, "head", 0.06)]
    for side in ("left", "right"):
        parts += [
            Part(f"{side}_shoulder", f"{side}_elbow", 0.033, "upper_arm", 0.04),
            Part(f"{side}_elbow", f"{side}_wrist", 0.028, "forearm", 0.05),
            Part(f"{side}_wrist", f"{side}_hand", 0.027, "skin", 0.06),
            Part(f"{side}_hip", f"{side}_knee", 0.045, "thigh"),
            Part(f"{side}_knee", f"{side}_ankle", 0.034, "shin", 0.01),
            Part(f"{side}_ankle", f"{side}_toe", 0.024, "shoe", 0.02),
        ]
    return tuple(parts)


PARTS = body_parts()
PART_ENDS = np.array([[JOINT[p.first], JOINT[p.second]] for p in PARTS])
PART_NEARER = np.array([p.nearer for p in PARTS])
PART_RADIUS = np.array([p.radius for p in PARTS])
TORSO, HEAD = 0, 3


def part_colours(look: Look) -> list[Colour]:
    table = {"shirt": look.shirt, "skin": look.skin, "head": look.skin, "upper_arm": look.sleeves[0],
             "forearm": look.sleeves[1], "thigh": look.legs[0], "shin": look.legs[1], "shoe": look.shoes}
    return [table[p.colour_of] for p in PARTS]


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


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def fixed(values: Array) -> list:
    """Continuous coordinates -> OpenCV's fixed point numbers, whose origin is the centre of the first pixel."""
    return np.round((values - 0.5) * (1 << SHIFT)).astype(np.int64).tolist()


class FigurePainter:
    """Draws one performer; all coordinates and depth orders are worked out for the whole clip beforehand."""

    def __init__(self, scene: Scene, person: int) -> None:
        pixels_TJ2 = scene.pixels_MTJ2[person]
        ends_TP22 = pixels_TJ2[:, PART_ENDS]
        size_T = scene.scale_MT[person] * scene.bodies[person].height
        radius_TP = size_T[:, None] * PART_RADIUS * scene.bodies[person].girth
        depth_TP = scene.depth_MTJ[person][:, PART_ENDS].mean(axis=2) - PART_NEARER
        self.look = scene.looks[person]
        self.colours = part_colours(self.look)
        self.ends = fixed(ends_TP22)
        self.thickness = np.maximum(2, np.round(2 * radius_TP)).astype(int).tolist()
        self.order = np.argsort(-depth_TP, axis=1, kind="stable").tolist()
        self.corners = self.torso_corners(pixels_TJ2, radius_TP[:, TORSO])
        self.head = fixed(pixels_TJ2[:, JOINT["head"]])
        self.hair = fixed(self.hair_centre(pixels_TJ2))
        self.eyes = fixed(pixels_TJ2[:, [JOINT["left_eye"], JOINT["right_eye"]]])
        depth_TJ = scene.depth_MTJ[person]
        eye_depth_T2 = depth_TJ[:, [JOINT["left_eye"], JOINT["right_eye"]]]
        self.eye_seen = (eye_depth_T2 < depth_TJ[:, JOINT["head"], None]).tolist()

    @staticmethod
    def torso_corners(pixels_TJ2: Array, radius_T: Array) -> NDArray[np.int32]:
        """(T, 4, 2) fixed point: shoulders and hips, never narrower than the trunk is deep."""
        names = ("left_shoulder", "right_shoulder", "right_hip", "left_hip")
        corners_T42 = pixels_TJ2[:, [JOINT[name] for name in names]].copy()
        axis_T2 = pixels_TJ2[:, JOINT["pelvis"]] - pixels_TJ2[:, JOINT["neck"]]
        across_T2 = np.stack([-axis_T2[:, 1], axis_T2[:, 0]], axis=1)
        across_T2 /= np.maximum(np.linalg.norm(across_T2, axis=1, keepdims=True), 1e-6)
        for first, second in ((0, 1), (3, 2)):
            half_T = 0.5 * np.sum((corners_T42[:, first] - corners_T42[:, second]) * across_T2, axis=1)
            sign_T = np.where(half_T < 0, -1.0, 1.0)
            extra_T = np.maximum(0.0, radius_T - np.abs(half_T))
            corners_T42[:, first] += (sign_T * extra_T)[:, None] * across_T2
            corners_T42[:, second] -= (sign_T * extra_T)[:, None] * across_T2
        return np.asarray(fixed(corners_T42), dtype=np.int32)

    @staticmethod
    def hair_centre(pixels_TJ2: Array) -> Array:
        """Hair sits behind and above the face."""
        head_T2, neck_T2 = pixels_TJ2[:, JOINT["head"]], pixels_TJ2[:, JOINT["neck"]]
        back_T2 = head_T2 - pixels_TJ2[:, JOINT["nose"]]
        return np.asarray(head_T2 + 0.35 * back_T2 + 0.22 * (head_T2 - neck_T2))

    def draw(self, frame: Picture, time: int) -> None:
        ends, thickness = self.ends[time], self.thickness[time]
        for part in self.order[time]:
            if part == TORSO:
                self.draw_torso(frame, time)
            elif part == HEAD:
                self.draw_head(frame, time)
            else:
                first, second = ends[part]
                cv2.line(frame, first, second, darker(self.colours[part], 0.45), thickness[part] + 2, shift=SHIFT)
                cv2.line(frame, first, second, self.colours[part], max(1, thickness[part] - 1), shift=SHIFT)

    def draw_torso(self, frame: Picture, time: int) -> None:
        look, corners_42 = self.look, self.corners[time]
        wide = self.thickness[time][TORSO] // 3
        outline = [corners_42.reshape(-1, 1, 2)]
        cv2.polylines(frame, outline, True, look.shirt, wide, shift=SHIFT)
        cv2.fillConvexPoly(frame, corners_42, look.shirt, shift=SHIFT)
        left, right = corners_42[[0, 3]], corners_42[[1, 2]]
        thin = max(1, wide // 2)

        def line(first: Array, second: Array) -> None:
            cv2.line(frame, first.astype(int).tolist(), second.astype(int).tolist(), look.pattern, thin, shift=SHIFT)

        if look.pattern_kind == 1:
            for share in (0.1, 0.36, 0.62, 0.88):
                first, second = (side[0] + share * (side[1] - side[0]) for side in (left, right))
                line(first, second)
        elif look.pattern_kind == 2:
            for share in (0.2, 0.5, 0.8):
                first, second = (left[k] + share * (right[k] - left[k]) for k in (0, 1))
                line(first, second)
        elif look.pattern_kind == 3:
            for down, across in ((0.15, 0.25), (0.2, 0.75), (0.5, 0.5), (0.8, 0.2), (0.85, 0.8)):
                top, bottom = (left[k] + across * (right[k] - left[k]) for k in (0, 1))
                spot = (top + down * (bottom - top)).astype(int).tolist()
                cv2.circle(frame, spot, thin << SHIFT, look.pattern, -1, shift=SHIFT)

    def draw_head(self, frame: Picture, time: int) -> None:
        radius = self.thickness[time][HEAD] << (SHIFT - 1)
        cv2.circle(frame, self.hair[time], radius + (1 << SHIFT), self.look.hair, -1, shift=SHIFT)
        cv2.circle(frame, self.head[time], int(0.9 * radius), self.look.skin, -1, shift=SHIFT)
        for eye, seen in zip(self.eyes[time], self.eye_seen[time], strict=True):
            if seen:
                cv2.circle(frame, eye, max(1 << SHIFT, radius // 6), (20, 20, 20), -1, shift=SHIFT)


class SceneryPainter:
    """Draws what is behind the performers: two lightings of one backdrop, mixed, and moving things."""

    def __init__(self, scene: Scene) -> None:
        rng = np.random.default_rng([*scene.scenery_seed, 2])
        width, height = scene.width, scene.height
        self.scene = scene
        self.light = make_light(rng, scene.num_frames)
        self.backdrops = [make_backdrop(rng, width, height)]
        slope = np.linspace(rng.uniform(0.55, 0.8), rng.uniform(0.95, 1.15), width + 2 * MARGIN, dtype=np.float32)
        slope = slope[:: int(rng.choice([-1, 1]))]
        self.backdrops.append((self.backdrops[0] * slope[None, :, None]).clip(0, 255).astype(np.uint8))
        self.movers = make_movers(rng, scene.num_frames, width, height)
        noise = int(rng.integers(2, 7))
        self.noise = rng.integers(0, noise + 1, (height + 32, width + 32, 3), dtype=np.uint8)
        self.offset = float(self.noise.mean())
        self.noise_corner_T2 = rng.integers(0, 32, (scene.num_frames, 2)).tolist()

    def draw(self, time: int) -> Picture:
        x, y = (round(MARGIN - float(v)) for v in self.scene.camera.sway_T2[time])
        window = (slice(y, y + self.scene.height), slice(x, x + self.scene.width))
        mix = float(self.light.mix_T[time])
        first, second = (backdrop[window] for backdrop in self.backdrops)
        frame = np.asarray(cv2.addWeighted(first, mix, second, 1 - mix, 0), np.uint8)
        for mover in self.movers:
            x, y = (int(v) for v in mover.path_T2[time])
            cv2.circle(frame, (x, y), mover.radius, mover.fill, -1)
            cv2.line(frame, (x - mover.radius, y), (x + mover.radius, y), mover.stripe, max(2, mover.radius // 2))
        return frame

    def shade(self, frame: Picture, time: int) -> Picture:
        """The light of this moment and the sensor's noise."""
        gain, offset = float(self.light.gain_T[time]), float(self.light.offset_T[time]) - self.offset
        y, x = self.noise_corner_T2[time]
        noise = self.noise[y:y + self.scene.height, x:x + self.scene.width]
        return np.asarray(cv2.addWeighted(frame, gain, noise, 1.0, offset), np.uint8)


def render(scene: Scene, *, plain: bool) -> Iterator[Picture]:
    """Yield the clip's frames (H, W, 3) BGR; `plain` draws the figures alone on grey."""
    scenery = None if plain else SceneryPainter(scene)
    figures = [FigurePainter(scene, person) for person in range(len(scene.looks))]
    far_first = np.argsort(-scene.depth_MTJ[:, :, JOINT["pelvis"]], axis=0)
    shadow_radius = (0.2 * scene.scale_MT[..., None] * (1.0, 0.3)).astype(int).tolist()
    shadows = np.round(scene.shadow_MT2).astype(int).tolist()
    held = None if scene.object_T2 is None else np.round(scene.object_T2).astype(int).tolist()
    held_colour = colour(np.random.default_rng([*scene.scenery_seed, 3]))
    for time in range(scene.num_frames):
        if scenery is None:
            frame = np.full((scene.height, scene.width, 3), PLAIN_GREY, np.uint8)
        else:
            frame = scenery.draw(time)
            for person in range(len(figures)):
                cv2.ellipse(frame, shadows[person][time], shadow_radius[person][time], 0, 0, 360, (40, 40, 40), -1)
        for person in far_first[:, time]:
            figures[person].draw(frame, time)
        if held is not None:
            radius = max(2, int(scene.object_radius_T[time]))
            cv2.circle(frame, held[time], radius + 1, darker(held_colour, 0.4), -1)
            cv2.circle(frame, held[time], radius, held_colour, -1)
        for occluder in scene.occluders:
            occluder.draw(frame, time)
        yield frame if scenery is None else scenery.shade(frame, time)


# ---------------------------------------------------------------------------------------------------------------------
# The pose detector

JITTER_V = np.array([0.5] * 5 + [1.0] * 2 + [1.1] * 2 + [1.2] * 2 + [1.2] * 2 + [1.1] * 2 + [1.2] * 2)


def detect(scene: Scene, rng: Rng) -> tuple[Array, Array]:
    """What a pose detector reports: keypoints (M, T, V, 2) in pixels and scores (M, T, V); exact zeros where missing.

    Errors are partly correlated in time and grow with the person's size. Like a top-down detector, it guesses joints
    that are hidden (larger errors, low scores) and seldom leaves one out; joints outside the picture are missing, and
    now and then a whole person is lost for some frames.
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
    """(M, T): which performer is listed where; a tracker's order is arbitrary and sometimes flips within a clip."""
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
    for person in range(len(joints_MTV2)):
        for joint in range(NUM_JOINTS):
            for occluder in scene.occluders:
                hidden_MTV[person, :, joint] |= occluder.covers(joints_MTV2[person, :, joint])
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
