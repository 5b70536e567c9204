"""Drawing of the synthetic action data set: figures from capsules, scenery with changing light, occluders in front.

Coordinates, thickness and depth order are computed for the whole clip first, so that a frame costs little more than its
OpenCV calls.

Letters: T frames, M performers, J drawn joints, P parts of a body.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from motion_bodies import JOINT, SIDES, Array
from motion_scene import Scene
from motion_scenery import Picture, colour, darker, make_backdrop, make_light, make_movers, margin
from numpy.typing import NDArray

SHIFT = 3  # OpenCV draws with 1/8 pixel
PLAIN_GREY = 128


@dataclass(frozen=True)
class Part:
    """A capsule between two joints; radius as a share of the body's height; `colour_of` names a colour of a `Look`."""

    first: str
    second: str
    radius: float
    colour_of: str
    nearer: float = 0.0  # metres added towards the camera when parts are sorted by depth


def body_parts() -> tuple[Part, ...]:
    parts = [Part("neck", "pelvis", 0.058, "shirt"), Part("neck", "head", 0.03, "skin", -0.05),
             Part("l_hip", "r_hip", 0.05, "thigh", -0.02), Part("head", "head", 0.066, "skin", 0.06)]
    for side in SIDES:
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


def fixed(values: Array) -> list:
    """Continuous coordinates -> OpenCV's fixed point numbers, whose origin is the centre of the first pixel."""
    return np.round((values - 0.5) * (1 << SHIFT)).astype(np.int64).tolist()


class FigurePainter:
    """Draws one performer."""

    def __init__(self, scene: Scene, person: int) -> None:
        pixels_TJ2, depth_TJ = scene.pixels_MTJ2[person], scene.depth_MTJ[person]
        size_T = scene.scale_MT[person] * scene.bodies[person].height
        radius_TP = size_T[:, None] * PART_RADIUS * scene.bodies[person].girth
        depth_TP = depth_TJ[:, PART_ENDS].mean(axis=2) - PART_NEARER
        self.look = scene.looks[person]
        self.colours = [getattr(self.look, part.colour_of) for part in PARTS]
        self.ends = fixed(pixels_TJ2[:, PART_ENDS])
        self.thickness = np.maximum(2, np.round(2 * radius_TP)).astype(int).tolist()
        self.order = np.argsort(-depth_TP, axis=1, kind="stable").tolist()
        self.corners = self.torso_corners(pixels_TJ2, radius_TP[:, TORSO])
        head_T2, neck_T2, nose_T2 = (pixels_TJ2[:, JOINT[name]] for name in ("head", "neck", "nose"))
        self.head = fixed(head_T2)
        self.hair = fixed(head_T2 + 0.35 * (head_T2 - nose_T2) + 0.22 * (head_T2 - neck_T2))  # behind and above the face
        eyes = [JOINT["l_eye"], JOINT["r_eye"]]
        self.eyes = fixed(pixels_TJ2[:, eyes])
        self.eye_seen = (depth_TJ[:, eyes] < depth_TJ[:, JOINT["head"], None]).tolist()

    @staticmethod
    def torso_corners(pixels_TJ2: Array, radius_T: Array) -> NDArray[np.int32]:
        """(T, 4, 2) fixed point: shoulders and hips, never narrower than the trunk is deep."""
        names = ("l_shoulder", "r_shoulder", "r_hip", "l_hip")
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
        cv2.polylines(frame, [corners_42.reshape(-1, 1, 2)], True, look.shirt, wide, shift=SHIFT)
        cv2.fillConvexPoly(frame, corners_42, look.shirt, shift=SHIFT)
        left, right = corners_42[[0, 3]], corners_42[[1, 2]]
        thin = max(1, wide // 2)

        def line(first: Array, second: Array) -> None:
            cv2.line(frame, first.astype(int).tolist(), second.astype(int).tolist(), look.pattern, thin, shift=SHIFT)

        if look.pattern_kind == 1:
            for share in (0.1, 0.36, 0.62, 0.88):
                line(*(side[0] + share * (side[1] - side[0]) for side in (left, right)))
        elif look.pattern_kind == 2:
            for share in (0.2, 0.5, 0.8):
                line(*(left[k] + share * (right[k] - left[k]) for k in (0, 1)))
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
    """Draws the background: two lightings of one backdrop, mixed, and moving objects."""

    def __init__(self, scene: Scene) -> None:
        rng = np.random.default_rng([*scene.scenery_seed, 2])
        width, height = scene.width, scene.height
        self.scene = scene
        difficulty = scene.difficulty
        self.edge = margin(height, difficulty.sway)
        self.light = make_light(rng, scene.num_frames, difficulty.flicker)
        self.backdrops = [make_backdrop(rng, width, height, self.edge)]
        slope = np.linspace(rng.uniform(0.55, 0.8), rng.uniform(0.95, 1.15), width + 2 * self.edge, dtype=np.float32)
        slope = slope[:: int(rng.choice([-1, 1]))]
        self.backdrops.append((self.backdrops[0] * slope[None, :, None]).clip(0, 255).astype(np.uint8))
        self.movers = make_movers(rng, scene.num_frames, width, height, difficulty.movers)
        noise = int(rng.integers(difficulty.noise[0], difficulty.noise[1] + 1))
        self.noise = rng.integers(0, noise + 1, (height + 32, width + 32, 3), dtype=np.uint8)
        self.offset = float(self.noise.mean())
        self.noise_corner_T2 = rng.integers(0, 32, (scene.num_frames, 2)).tolist()
        self.front_movers = make_movers(rng, scene.num_frames, width, height, difficulty.front_movers)

    def draw(self, time: int) -> Picture:
        x, y = (round(self.edge - float(v)) for v in self.scene.camera.sway_T2[time])
        window = (slice(y, y + self.scene.height), slice(x, x + self.scene.width))
        mix = float(self.light.mix_T[time])
        first, second = (backdrop[window] for backdrop in self.backdrops)
        frame = np.asarray(cv2.addWeighted(first, mix, second, 1 - mix, 0), np.uint8)
        for mover in self.movers:
            mover.draw(frame, time)
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
        if scenery is not None:
            for mover in scenery.front_movers:
                mover.draw(frame, time)
            frame = scenery.shade(frame, time)
        yield frame
