"""Joint layouts as data: names, bones, left/right pairs. A manifest stores its layout in full."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from svdata2vec.shards.errors import UserError


@dataclass(frozen=True)
class JointLayout:
    """The joints of one skeleton format.

    `edges` are pairs of joint numbers (for drawing); `left[i]` and `right[i]` change places in a horizontal flip.
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.joints)
        if len(self.left) != len(self.right):
            raise UserError(f"layout {self.name}: {len(self.left)} left joints but {len(self.right)} right joints")
        sides = self.left + self.right
        if len(set(sides)) != len(sides):
            raise UserError(f"layout {self.name}: a joint is listed twice in left and right: {sides}")
        used = [*sides, *(joint for edge in self.edges for joint in edge)]
        if any(not 0 <= joint < count for joint in used):
            raise UserError(f"layout {self.name}: joint numbers must be in 0..{count - 1}, got {sorted(set(used))}")

    @cached_property
    def flip_V(self) -> np.ndarray:  # noqa: N802 - shape suffix
        """int64 (V,): `joints[..., flip_V, :]` swaps left and right."""
        flip_V = np.arange(len(self.joints), dtype=np.int64)
        flip_V[list(self.left)] = self.right
        flip_V[list(self.right)] = self.left
        return flip_V


def _by_names(name: str, joints: str, bones: str) -> JointLayout:
    """Layout from words: joints in order; bones `a-b`; `l_x` and `r_x` are a left/right pair."""
    names = tuple(joints.split())
    number = {joint: i for i, joint in enumerate(names)}
    edges = tuple((number[a], number[b]) for a, b in (bone.split("-") for bone in bones.split()))
    left = tuple(i for i, joint in enumerate(names) if joint.startswith("l_"))
    right = tuple(number["r_" + names[i][2:]] for i in left)
    return JointLayout(name, names, edges, left, right)


_ARMS_AND_LEGS = (
    "l_shoulder-l_elbow l_elbow-l_wrist r_shoulder-r_elbow r_elbow-r_wrist "
    "l_hip-l_knee l_knee-l_ankle r_hip-r_knee r_knee-r_ankle "
)
_FACE = "nose-l_eye nose-r_eye l_eye-l_ear r_eye-r_ear "

COCO17 = _by_names(
    "coco17",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle",
    _ARMS_AND_LEGS + _FACE + "l_ear-l_shoulder r_ear-r_shoulder "
    "l_shoulder-r_shoulder l_shoulder-l_hip r_shoulder-r_hip l_hip-r_hip",
)

# Kinect v2, the order of the NTU RGB+D and PKU-MMD skeleton files.
KINECT25 = _by_names(
    "kinect25",
    "spine_base spine_mid neck head l_shoulder l_elbow l_wrist l_hand r_shoulder r_elbow r_wrist r_hand "
    "l_hip l_knee l_ankle l_foot r_hip r_knee r_ankle r_foot spine_shoulder l_hand_tip l_thumb r_hand_tip r_thumb",
    _ARMS_AND_LEGS + "spine_base-spine_mid spine_mid-spine_shoulder spine_shoulder-neck neck-head "
    "spine_shoulder-l_shoulder spine_shoulder-r_shoulder spine_base-l_hip spine_base-r_hip "
    "l_wrist-l_hand r_wrist-r_hand l_hand-l_hand_tip l_wrist-l_thumb r_hand-r_hand_tip r_wrist-r_thumb "
    "l_ankle-l_foot r_ankle-r_foot",
)

# Toyota Smarthome: the 13 LCR-Net joints from head to feet, then neck and mid-hip computed from them.
SMARTHOME15 = _by_names(
    "smarthome15",
    "head l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist l_hip r_hip l_knee r_knee l_ankle r_ankle neck mid_hip",
    _ARMS_AND_LEGS + "neck-head mid_hip-neck r_hip-mid_hip l_hip-mid_hip r_shoulder-neck l_shoulder-neck",
)

OPENPOSE18 = _by_names(
    "openpose18",
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist r_hip r_knee r_ankle l_hip l_knee l_ankle "
    "r_eye l_eye r_ear l_ear",
    _ARMS_AND_LEGS + "neck-nose neck-r_shoulder neck-l_shoulder neck-r_hip neck-l_hip "
    "nose-r_eye nose-l_eye r_eye-r_ear l_eye-l_ear",
)

# OpenPose's default model: that of COCO-18 with mid-hip and feet.
BODY25 = _by_names(
    "body25",
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist mid_hip r_hip r_knee r_ankle l_hip l_knee l_ankle "
    "r_eye l_eye r_ear l_ear l_big_toe l_small_toe l_heel r_big_toe r_small_toe r_heel",
    _ARMS_AND_LEGS + _FACE + "neck-nose neck-l_shoulder neck-r_shoulder neck-mid_hip mid_hip-l_hip mid_hip-r_hip "
    "l_ankle-l_big_toe l_big_toe-l_small_toe l_ankle-l_heel r_ankle-r_big_toe r_big_toe-r_small_toe r_ankle-r_heel",
)

# Human3.6M as mmpose and the lifting networks order it; what they call foot is the ankle.
H36M17 = _by_names(
    "h36m17",
    "root r_hip r_knee r_ankle l_hip l_knee l_ankle spine thorax neck head l_shoulder l_elbow l_wrist "
    "r_shoulder r_elbow r_wrist",
    _ARMS_AND_LEGS + "root-l_hip root-r_hip root-spine spine-thorax thorax-neck neck-head "
    "thorax-l_shoulder thorax-r_shoulder",
)

# AlphaPose and RTMPose: COCO-17 with head, neck, hip and feet.
HALPE26 = _by_names(
    "halpe26",
    " ".join(COCO17.joints) + " head neck hip l_big_toe r_big_toe l_small_toe r_small_toe l_heel r_heel",
    _ARMS_AND_LEGS + _FACE + "l_eye-r_eye l_ear-l_shoulder r_ear-r_shoulder head-neck neck-l_shoulder neck-r_shoulder "
    "neck-hip hip-l_hip hip-r_hip l_ankle-l_big_toe l_ankle-l_small_toe l_ankle-l_heel "
    "r_ankle-r_big_toe r_ankle-r_small_toe r_ankle-r_heel",
)

# MediaPipe Pose (BlazePose).
MEDIAPIPE33 = _by_names(
    "mediapipe33",
    "nose l_eye_inner l_eye l_eye_outer r_eye_inner r_eye r_eye_outer l_ear r_ear l_mouth r_mouth l_shoulder r_shoulder "
    "l_elbow r_elbow l_wrist r_wrist l_pinky r_pinky l_index r_index l_thumb r_thumb l_hip r_hip l_knee r_knee "
    "l_ankle r_ankle l_heel r_heel l_foot_index r_foot_index",
    _ARMS_AND_LEGS + "nose-l_eye_inner l_eye_inner-l_eye l_eye-l_eye_outer l_eye_outer-l_ear "
    "nose-r_eye_inner r_eye_inner-r_eye r_eye-r_eye_outer r_eye_outer-r_ear l_mouth-r_mouth "
    "l_shoulder-r_shoulder l_shoulder-l_hip r_shoulder-r_hip l_hip-r_hip "
    "l_wrist-l_pinky l_wrist-l_index l_wrist-l_thumb l_pinky-l_index "
    "r_wrist-r_pinky r_wrist-r_index r_wrist-r_thumb r_pinky-r_index "
    "l_ankle-l_heel l_ankle-l_foot_index l_heel-l_foot_index r_ankle-r_heel r_ankle-r_foot_index r_heel-r_foot_index",
)

LAYOUTS: dict[str, JointLayout] = {
    entry.name: entry
    for entry in (COCO17, KINECT25, SMARTHOME15, OPENPOSE18, BODY25, H36M17, HALPE26, MEDIAPIPE33)
}


def layout(name: str) -> JointLayout:
    """The layout of that name; a UserError lists the known ones."""
    if name not in LAYOUTS:
        raise UserError(f"unknown joint layout {name!r}: expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def joint_numbers(source: JointLayout, target: JointLayout) -> tuple[int | None, ...]:
    """Number, in `source`, of each joint of `target`: the joint of the same name, None where there is none."""
    number = {joint: i for i, joint in enumerate(source.joints)}
    return tuple(number.get(joint) for joint in target.joints)


def to_layout(values: np.ndarray, source: JointLayout, target: JointLayout, axis: int) -> np.ndarray:
    """Joints or scores in the order of `source` along `axis`, in that of `target`; zero (missing) where there is none.

    A joint is taken where both layouts have its name, and never made from others: of Kinect's 25, COCO-17 gets shoulders,
    elbows, wrists, hips, knees and ankles; its nose, eyes and ears stay missing, as Kinect's `head` is none of them.
    """
    numbers = joint_numbers(source, target)
    taken = np.take(values, [number or 0 for number in numbers], axis=axis)
    absent = [i for i, number in enumerate(numbers) if number is None]
    np.moveaxis(taken, axis, 0)[absent] = 0
    return taken


def to_coco17(values: np.ndarray, source: JointLayout, axis: int) -> np.ndarray:
    """`to_layout` with COCO-17 as the target."""
    return to_layout(values, source, COCO17, axis)


def bone_length(entry: JointLayout, joints_NVC: np.ndarray) -> float:
    """Mean length of a skeleton's bones in diagonals of its box, the median over these; NaN if no bone has both its ends.

    In a wrong order of joints bones run across the body and are longer.
    """
    xy_NV2 = np.where(np.isfinite(joints_NVC[..., :2]), joints_NVC[..., :2], 0).astype(np.float64)
    present_NV = (xy_NV2 != 0).any(axis=-1)
    first_E, second_E = np.array(entry.edges).T
    both_NE = present_NV[:, first_E] & present_NV[:, second_E]
    length_NE = np.linalg.norm(xy_NV2[:, first_E] - xy_NV2[:, second_E], axis=-1)
    low_N2 = np.where(present_NV[..., None], xy_NV2, np.inf).min(axis=1)
    high_N2 = np.where(present_NV[..., None], xy_NV2, -np.inf).max(axis=1)
    with np.errstate(invalid="ignore"):
        size_N = np.linalg.norm(high_N2 - low_N2, axis=-1)
    used_N = both_NE.any(axis=1) & (size_N > 0) & np.isfinite(size_N)
    if not used_N.any():
        return float("nan")
    mean_N = np.where(both_NE, length_NE, 0)[used_N].sum(axis=1) / both_NE[used_N].sum(axis=1)
    return float(np.median(mean_N / size_N[used_N]))
