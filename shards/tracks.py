"""The persons of an annotation as a model should get them: the pieces of one person joined, ghosts behind people.

Annotations name persons by slots: a body's number (Kinect), a place in a list. A sensor that loses a body for a moment gives
it a new number, and a model that reads two persons then sees half of one. M persons (slots), T frames, V joints.
"""

from collections.abc import Sequence

import numpy as np

from svdata2vec.shards.boxes import person_boxes, present_joints
from svdata2vec.shards.tracking import Detections, Track, TrackingOptions, join_pieces, link_boxes

OPTIONS = TrackingOptions(min_score=0.0)
MAIN_PERSONS = 2
# Bodies that are furniture, as CTR-GCN's and MAMP's preparation of NTU RGB+D tells them: seen in few frames, or wider than
# 0.8 of their height in more than 69.754 % of their frames.
FEW_FRAMES = 11
WIDE, WIDE_SHARE = 0.8, 0.69754
CLEARLY_MORE = 2.0  # times the weight of a main person: only then somebody behind takes the place


def join_slots(pose_MTVC: np.ndarray, score_MTV: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Joints and scores with one slot per person, and how many slots were joined to others.

    Slots that never share a frame become one where place and size continue (`tracking.join_pieces`); those seen for longest
    then come first. If there are more than two, one of the first two gives way to another only if that one is clearly more of a
    person (`_weights`). Arrays of an annotation without such pieces and ghosts are returned as they are, and so are those
    whose shapes do not fit, which the packer refuses.
    """
    if pose_MTVC.ndim != 4 or len(pose_MTVC) < 2 or (score_MTV is not None and np.shape(score_MTV) != pose_MTVC.shape[:3]):
        return pose_MTVC, score_MTV, 0
    clean_MTVC = _without_bad(pose_MTVC)
    seen_MT = np.any(present_joints(clean_MTVC), axis=2)
    joined = 0
    if _some_disjoint(seen_MT):
        frames = _detections(clean_MTVC, seen_MT)
        tracks = join_pieces(_slot_tracks(seen_MT), frames, OPTIONS)
        joined = int(seen_MT.any(axis=1).sum()) - len(tracks)
        if joined:
            tracks.sort(key=len, reverse=True)
            score_MTV = None if score_MTV is None else _filled(np.asarray(score_MTV), seen_MT, tracks)
            pose_MTVC, clean_MTVC = _filled(pose_MTVC, seen_MT, tracks), _filled(clean_MTVC, seen_MT, tracks)
            seen_MT = np.any(present_joints(clean_MTVC), axis=2)
    order = _main_first(clean_MTVC, seen_MT)
    if order != sorted(order):
        pose_MTVC = pose_MTVC[order]
        score_MTV = None if score_MTV is None else np.asarray(score_MTV)[order]
    return pose_MTVC, score_MTV, joined


def link_slots(pose_MTVC: np.ndarray) -> tuple[np.ndarray, int]:
    """Joints with one slot per person, and how many tracks were joined to others, of an annotation whose slots are the
    places in each frame's list of detections.

    Detections are linked by the overlap of their boxes (`tracking.link_boxes`) and pieces joined; the two longest tracks
    have slots of their own, in the order of their first sighting, all others share what slots they need. With one
    detection per frame there is nothing to tell apart, and the array is returned as it is.
    """
    clean_MTVC = _without_bad(pose_MTVC)
    seen_MT = np.any(present_joints(clean_MTVC), axis=2)
    if pose_MTVC.shape[0] < 2 or seen_MT.sum(axis=0).max(initial=0) < 2:
        return pose_MTVC, 0
    frames = _detections(clean_MTVC, seen_MT)
    pieces = link_boxes(frames, OPTIONS)
    tracks = join_pieces(pieces, frames, OPTIONS)
    longest = sorted(range(len(tracks)), key=lambda number: -len(tracks[number]))[:MAIN_PERSONS]
    slots = [tracks[number] for number in sorted(longest)]
    for number, track in enumerate(tracks):
        if number in longest:
            continue
        frames_of = {frame for frame, _ in track}
        free = next((slot for slot in slots[MAIN_PERSONS:] if frames_of.isdisjoint(frame for frame, _ in slot)), None)
        if free is None:
            slots.append(list(track))
        else:
            free += track
    return _filled(pose_MTVC, seen_MT, slots), len(pieces) - len(tracks)


def _without_bad(pose_MTVC: np.ndarray) -> np.ndarray:
    """The joints without those of which a coordinate is no number, as packing stores them."""
    return np.where(np.isfinite(pose_MTVC).all(axis=-1, keepdims=True), pose_MTVC, 0)


def _some_disjoint(seen_MT: np.ndarray) -> bool:
    """Whether two slots both show someone, but never in the same frame."""
    used_MT = seen_MT[seen_MT.any(axis=1)].astype(np.int32)
    together_MM = used_MT @ used_MT.T
    return bool((together_MM == 0).any())


def _detections(pose_MTVC: np.ndarray, seen_MT: np.ndarray) -> list[Detections]:
    """The slots of each frame that show somebody, in order."""
    box_MT4 = np.stack([person_boxes(one_TVC[None]) for one_TVC in pose_MTVC])
    found = []
    for t in range(seen_MT.shape[1]):
        rows = np.flatnonzero(seen_MT[:, t])
        joints_NV2 = pose_MTVC[rows, t, :, :2]
        found.append(Detections(box_MT4[rows, t], np.ones(len(rows)), joints_NV2, np.ones(joints_NV2.shape[:2])))
    return found


def _slot_tracks(seen_MT: np.ndarray) -> list[Track]:
    """One track per slot that shows somebody."""
    row_MT = np.cumsum(seen_MT, axis=0) - 1
    return [[(int(t), int(row_MT[m, t])) for t in np.flatnonzero(seen_MT[m])] for m in np.flatnonzero(seen_MT.any(axis=1))]


def _filled(values: np.ndarray, seen_MT: np.ndarray, tracks: Sequence[Track]) -> np.ndarray:
    """The array (M, T, ...) with a slot per track, zero where it is not seen."""
    filled = np.zeros((len(tracks), *values.shape[1:]), values.dtype)
    slots = [np.flatnonzero(seen_M) for seen_M in seen_MT.T]
    for number, track in enumerate(tracks):
        for t, row in track:
            filled[number, t] = values[slots[t][row], t]
    return filled


def _main_first(pose_MTVC: np.ndarray, seen_MT: np.ndarray) -> list[int]:
    """The slots, the main persons first; each part in the order that it had."""
    main, rest = list(range(len(pose_MTVC)))[:MAIN_PERSONS], list(range(len(pose_MTVC)))[MAIN_PERSONS:]
    weight_M = _weights(pose_MTVC, seen_MT) if rest else np.zeros(0)
    while rest:
        weakest, strongest = min(main, key=weight_M.__getitem__), max(rest, key=weight_M.__getitem__)
        if not weight_M[strongest] > CLEARLY_MORE * weight_M[weakest]:
            break
        main[main.index(weakest)], rest[rest.index(strongest)] = strongest, weakest
    return sorted(main) + sorted(rest)


def _weights(pose_MTVC: np.ndarray, seen_MT: np.ndarray) -> np.ndarray:
    """float64 (M,): frames in which a slot is seen, times the spread of its joints over body and clip; 0 for furniture.

    The spread (standard deviation in x plus that in y) is the energy by which mmaction2 chooses bodies.
    """
    xy_MTV2 = pose_MTVC[..., :2].astype(np.float64)
    there_MTV = present_joints(pose_MTVC)
    frames_M = seen_MT.sum(axis=1)
    weight_M = np.zeros(len(pose_MTVC))
    for m in np.flatnonzero(frames_M):
        box_T4 = person_boxes(pose_MTVC[m : m + 1])[seen_MT[m]]
        side_T2 = box_T4[:, 2:] - box_T4[:, :2]
        wide = (side_T2[:, 0] > WIDE * side_T2[:, 1]).mean() > WIDE_SHARE
        if not wide and not frames_M[m] <= FEW_FRAMES < frames_M.max():
            weight_M[m] = frames_M[m] * xy_MTV2[m][there_MTV[m]].std(axis=0).sum()
    return weight_M
