"""Camera and looks of the synthetic action data set, and a scene: all that a clip shows, before it is drawn.

Nothing here knows the action. Coordinates are continuous: pixel (i, j) has its centre at (j+0.5, i+0.5).

Letters: T frames, M performers, J drawn joints (17 COCO joints first), V the 17 COCO joints.
"""

from dataclasses import dataclass

import numpy as np
from motion_actions import Cast
from motion_bodies import JOINT, Array, Body, Rng, oscillation
from motion_scenery import Colour, Difficulty, Occluder, colour, darker, make_occluders

from svdata2vec.shards.layouts import COCO17

NUM_JOINTS = len(COCO17.joints)
AZIMUTHS = (-0.7, 0.0, 0.7)  # radians; cameras C001, C002, C003
FIGURE_SHARE = 0.56  # of the picture's height, for a person of 1.72 m in the middle of the scene


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


def make_camera(azimuth: float, rng: Rng, num_frames: int, width: int, height: int, difficulty: Difficulty) -> Camera:
    """Camera at `azimuth` with a height, distance and sway of its own."""
    distance, eye = rng.uniform(5.0, 6.2), rng.uniform(1.0, 1.9)
    position_3 = np.array([distance * np.sin(azimuth), -distance * np.cos(azimuth), eye])
    aim_3 = np.array([*rng.uniform(-0.12, 0.12, 2), rng.uniform(0.98, 1.1)])
    forward_3 = (aim_3 - position_3) / np.linalg.norm(aim_3 - position_3)
    right_3 = np.cross(forward_3, [0.0, 0.0, 1.0])
    right_3 /= np.linalg.norm(right_3)
    down_3 = np.cross(forward_3, right_3)
    focal = FIGURE_SHARE * height * distance / 1.72 * rng.uniform(0.95, 1.05)
    most, fastest = difficulty.sway, difficulty.fastest_sway
    sway = [rng.uniform(0.0, most) * height * oscillation(rng, num_frames, 0.2, fastest) for _ in range(2)]
    centre_2 = np.array([width / 2, height / 2])
    return Camera(position_3, np.stack([right_3, down_3, forward_3]), focal, centre_2, np.stack(sway, axis=1))


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
    upper_arm: Colour
    forearm: Colour
    thigh: Colour
    shin: Colour
    shoe: Colour


def make_look(person: Rng, clothes: Rng) -> Look:
    """Skin and hair belong to the person, clothes to the recording session, or to the clip."""
    skin, hair = SKINS[person.integers(len(SKINS))], HAIRS[person.integers(len(HAIRS))]
    shirt, trousers = colour(clothes), colour(clothes)
    return Look(
        skin=skin,
        hair=hair,
        shirt=shirt,
        pattern=colour(clothes),
        pattern_kind=int(clothes.integers(4)),
        upper_arm=darker(shirt, 0.8),
        forearm=skin if clothes.uniform() < 0.6 else colour(clothes),
        thigh=trousers,
        shin=skin if clothes.uniform() < 0.25 else darker(trousers, 0.8),
        shoe=colour(clothes),
    )


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw a clip, and the true joints: `pixels_MTJ2`, `depth_MTJ`."""

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
    difficulty: Difficulty

    @property
    def num_frames(self) -> int:
        return len(self.camera.sway_T2)

    def coco(self) -> Array:
        """True COCO joints (M, T, V, 2) in pixels, inside the picture or not."""
        return self.pixels_MTJ2[:, :, :NUM_JOINTS]

    def spans(self) -> Array:
        """Height in pixels of each performer (M,), averaged over the clip."""
        return self.scale_MT.mean(axis=1) * np.array([body.height for body in self.bodies])


def make_scene(
    cast: Cast, looks: tuple[Look, ...], camera: Camera, width: int, height: int, seed: tuple[int, ...],
    difficulty: Difficulty, *, plain: bool,
) -> Scene:
    """Project the cast and set up the occluders in front of it; `plain` leaves them out."""
    pixels_MJT2, depth_MJT = camera.project(cast.joints_MTJ3.swapaxes(1, 2))
    pixels_MTJ2, depth_MTJ = pixels_MJT2.swapaxes(1, 2), depth_MJT.swapaxes(1, 2)
    floor_MT3 = cast.joints_MTJ3[:, :, JOINT["pelvis"]] * (1.0, 1.0, 0.0)
    held = None if cast.object_T3 is None else camera.project(cast.object_T3)
    num_frames = len(camera.sway_T2)
    occluders = [] if plain else make_occluders(np.random.default_rng([*seed, 1]), camera.sway_T2, width, height)
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
        difficulty=difficulty,
    )
