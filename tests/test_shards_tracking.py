"""Pieces of tracks: joined as if all pairs were tried again after each join, which would take too long for long videos."""

import itertools
import math

import numpy as np
import pytest

from svdata2vec.shards.tracking import Detections, Track, TrackingOptions, join_pieces, link_boxes


def seen_now_and_then(seed: int, num_frames: int) -> list[Detections]:
    """Four persons who wander through a picture of 300 px, each found in every other frame or so, and boxes of nobody."""
    rng = np.random.default_rng(seed)
    start_P2, step_P2, side_P = rng.uniform(0, 300, (4, 2)), rng.uniform(-2, 2, (4, 2)), rng.uniform(20, 60, 4)
    frames = []
    for number in range(num_frames):
        found_P = rng.random(4) < 0.5
        low_P2 = start_P2 + step_P2 * number + rng.normal(0, 8, (4, 2))
        low_N2 = np.concatenate([low_P2[found_P], rng.uniform(0, 300, (1, 2))])
        side_N1 = np.append(side_P[found_P], rng.uniform(10, 80))[:, None]
        box_N4 = np.concatenate([low_N2, low_N2 + side_N1], axis=1).astype(np.float32)
        count = len(box_N4)
        frames.append(Detections(box_N4, np.ones(count), np.zeros((count, 1, 2)), np.ones((count, 1))))
    return frames


def distance(a: Track, b: Track, frames: list[Detections], longest: int) -> float:
    """As `join_pieces` says it, over all sightings of both."""
    both = sorted([(*sighting, 0) for sighting in a] + [(*sighting, 1) for sighting in b])
    apart = [0.0]
    for (frame, row, whose), (next_frame, next_row, then) in itertools.pairwise(both):
        box, next_box = frames[frame].box_N4[row].astype(float), frames[next_frame].box_N4[next_row].astype(float)
        sides = [max(one[2] - one[0], one[3] - one[1]) for one in (box, next_box)]
        if frame == next_frame or (whose != then and (next_frame - frame > longest or max(sides) > 2 * min(sides))):
            return math.inf
        if whose != then:
            middle_2 = (box[:2] + box[2:] - next_box[:2] - next_box[2:]) / 2
            apart.append(math.hypot(*middle_2) / max(sides))
    return max(apart)


def join_by_trying_all(tracks: list[Track], frames: list[Detections], longest: int) -> list[Track]:
    pieces = dict(enumerate(tracks))
    while len(pieces) > 1:
        pairs = itertools.combinations(sorted(pieces), 2)
        nearest, first, second = min((distance(pieces[a], pieces[b], frames, longest), a, b) for a, b in pairs)
        if nearest > 1:
            break
        pieces[first] = sorted(pieces[first] + pieces.pop(second))
    return [pieces[number] for number in sorted(pieces)]


@pytest.mark.parametrize(("seed", "join_gap", "max_gap"), [(0, 3, 0), (1, 10, 2), (2, 90, 0), (3, 0, 15)])
def test_pieces_are_joined_as_by_trying_all_pairs(seed: int, join_gap: int, max_gap: int) -> None:
    options = TrackingOptions(join_gap=join_gap, max_gap=max_gap)
    frames = seen_now_and_then(seed, 25)
    tracks = link_boxes(frames, options)
    turns = [[track[turn::2] for turn in (0, 1)] for track in tracks]  # pieces that lie between each other, too
    pieces = [piece for pair in turns for piece in pair if piece]
    joined = join_pieces(pieces, frames, options)
    assert joined == join_by_trying_all(pieces, frames, join_gap + 1) and len(joined) < len(pieces)


@pytest.mark.parametrize(("gap", "shift", "tracks"), [(15, 0, 1), (16, 0, 2), (0, 20, 1), (0, 25, 2)])
def test_boxes_are_linked_over_short_gaps_where_they_overlap(gap: int, shift: int, tracks: int) -> None:
    """Of 40 pixels: an IoU of 20 / 60 is enough, 15 / 65 is not."""
    before, after = (
        Detections(np.array([[x, 0, x + 40, 90]]), np.ones(1), np.zeros((1, 1, 2)), np.ones((1, 1))) for x in (10, 10 + shift)
    )
    assert len(link_boxes([before, *[before.take([])] * gap, after], TrackingOptions(max_gap=15, min_iou=0.3))) == tracks
