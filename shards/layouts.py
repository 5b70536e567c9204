"""Joint layouts as data: names, bones, left/right pairs. A manifest stores its layout in full."""

from dataclasses import dataclass

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

    @property
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

COCO17 = _by_names(
    "coco17",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle",
    _ARMS_AND_LEGS + "nose-l_eye nose-r_eye l_eye-l_ear r_eye-r_ear l_ear-l_shoulder r_ear-r_shoulder "
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

LAYOUTS: dict[str, JointLayout] = {entry.name: entry for entry in (COCO17, KINECT25, SMARTHOME15, OPENPOSE18)}


def layout(name: str) -> JointLayout:
    """The layout of that name; a UserError lists the known ones."""
    if name not in LAYOUTS:
        raise UserError(f"unknown joint layout {name!r}: expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
