"""Chooses the joint layout of annotations: the one that the user or the format names, checked by its bone lengths."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import LAYOUTS, JointLayout, bone_length, layout

log = logging.getLogger(__name__)

CHECKED_CLIPS = 50
CHECKED_SKELETONS = 200  # of a clip
# If the bones of another layout with as many joints are shorter than this part of the named one's, the named one is wrong.
# People in photographs in Human3.6M's order have bones of 0.15 diagonals of their box, and of 0.34 if read as COCO-17; in
# Kinect-25's order of 0.10, and of 0.24 if read as BODY_25; the other way round 0.11 and 0.35. COCO-17 read as Human3.6M is
# too similar to be noticed (0.17 and 0.20).
CLEARLY_SHORTER = 0.6


def choose_layout(poses: Sequence[np.ndarray], named: str | None, default: str | None, where: object) -> JointLayout:
    """The layout of these annotations, arrays (M,T,V,2): the `named` one, else that of the format (`default`), else the
    only one with V joints.

    Raises:
        UserError: the named one has another number of joints; nothing is named and none or several have V joints, or the
            format's own does not fit the bones.
    """
    counts = Counter(pose.shape[2] for pose in poses)
    if not counts:
        return layout(named or default or "coco17")
    count = counts.most_common(1)[0][0]
    fitting = [entry for entry in LAYOUTS.values() if len(entry.joints) == count]
    names = " or ".join(entry.name for entry in fitting)
    if named is not None:
        chosen = layout(named)
        if chosen not in fitting:
            raise UserError(f"{where}: {count} joints per person, layout {named} has {len(chosen.joints)}")
    elif not fitting:
        raise UserError(f"{where}: {count} joints per person fit no known layout; expected those of {', '.join(LAYOUTS)}; of "
                        "COCO-WholeBody's 133 keep the first 17, of Halpe's 136 the first 26")
    elif len(fitting) == 1:
        chosen = fitting[0]
    elif default is not None and layout(default) in fitting:
        chosen = layout(default)
    else:
        raise UserError(f"{where}: {count} joints per person may be {names}; say which with --joints")
    _compare_bones(poses, chosen, fitting, named, where)
    how = "the only known layout with that number" if len(fitting) == 1 else "as the format says"
    how = how if named is None else "as named"
    log.info("%s: %d joints per person, %s (%s)", where, count, chosen.name, how)
    return chosen


def _compare_bones(poses: Sequence[np.ndarray], chosen: JointLayout, fitting: Sequence[JointLayout], named: str | None,
                   where: object) -> None:
    """If another layout gives clearly shorter bones: UserError, or a warning if the user has named the layout."""
    if len(fitting) < 2:
        return
    some = [pose for pose in poses[:: max(len(poses) // CHECKED_CLIPS, 1)] if pose.shape[2] == len(chosen.joints)]
    skeletons = [pose.reshape(-1, *pose.shape[2:]) for pose in some]
    joints_NVC = np.concatenate([one[:: max(len(one) // CHECKED_SKELETONS, 1)] for one in skeletons])
    lengths = {entry.name: bone_length(entry, joints_NVC) for entry in fitting}
    best = min(lengths, key=lambda name: (np.nan_to_num(lengths[name], nan=np.inf), name != chosen.name))
    if best == chosen.name or not lengths[best] < CLEARLY_SHORTER * lengths[chosen.name]:
        return
    message = (f"{where}: the joints look like {best}, not {chosen.name} (bones of {lengths[best]:.2f} and "
               f"{lengths[chosen.name]:.2f} of a person's size)")
    if named is None:
        raise UserError(f"{message}; say which with --joints")
    log.warning("%s; kept as named", message)
