"""Joint layouts and crop geometry: published pairs, the paper's boxes, packed squares that hold the crop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdata2vec.shards.boxes import (
    crop_square,
    joint_box,
    packed_square,
    packed_to_source,
    person_boxes,
    present_joints,
    union_box,
)
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17, LAYOUTS, JointLayout, joint_numbers, layout, to_coco17


@pytest.mark.parametrize(("name", "joints", "left", "right"), [
    ("coco17", 17, [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]),
    ("kinect25", 25, [4, 5, 6, 7, 12, 13, 14, 15, 21, 22], [8, 9, 10, 11, 16, 17, 18, 19, 23, 24]),
    ("smarthome15", 15, [1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10, 12]),
    ("openpose18", 18, [5, 6, 7, 11, 12, 13, 15, 17], [2, 3, 4, 8, 9, 10, 14, 16]),
    ("body25", 25, [5, 6, 7, 12, 13, 14, 16, 18, 19, 20, 21], [2, 3, 4, 9, 10, 11, 15, 17, 22, 23, 24]),
    ("h36m17", 17, [4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]),
    ("halpe26", 26, [1, 3, 5, 7, 9, 11, 13, 15, 20, 22, 24], [2, 4, 6, 8, 10, 12, 14, 16, 21, 23, 25]),
    ("mediapipe33", 33, [1, 2, 3, 7, *range(9, 33, 2)], [4, 5, 6, 8, *range(10, 33, 2)]),
])
def test_layouts_have_the_published_pairs(name: str, joints: int, left: list[int], right: list[int]) -> None:
    entry = layout(name)
    assert len(entry.joints) == joints
    assert list(entry.left) == left
    assert list(entry.right) == right
    assert entry.flip_V[entry.flip_V].tolist() == list(range(joints))
    assert len(set(entry.edges)) == len(entry.edges)
    reached = {0}
    for _ in entry.edges:
        reached |= {b for edge in entry.edges for a, b in (edge, edge[::-1]) if a in reached}
    in_pieces = {"mediapipe33": set(range(9, 33))}  # its published connections leave the face alone
    assert reached == set(range(joints)) - in_pieces.get(name, set()), "the bones connect all joints"
    flipped = {frozenset(entry.flip_V[list(edge)].tolist()) for edge in entry.edges}
    assert flipped == {frozenset(edge) for edge in entry.edges}, "a mirrored skeleton has the same bones"


MEDIAPIPE_CONNECTIONS = (
    "0-1 0-4 1-2 2-3 3-7 4-5 5-6 6-8 9-10 11-12 11-13 11-23 12-14 12-24 13-15 14-16 15-17 15-19 15-21 16-18 16-20 16-22 "
    "17-19 18-20 23-24 23-25 24-26 25-27 26-28 27-29 27-31 28-30 28-32 29-31 30-32"
)


def test_mediapipe_bones_are_its_connections() -> None:
    """POSE_CONNECTIONS of mediapipe 0.10."""
    published = {frozenset(map(int, pair.split("-"))) for pair in MEDIAPIPE_CONNECTIONS.split()}
    assert {frozenset(edge) for edge in layout("mediapipe33").edges} == published


@pytest.mark.parametrize(("name", "numbers"), [
    ("coco17", list(range(17))),
    ("halpe26", list(range(17))),
    ("openpose18", [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]),
    ("body25", [0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11]),
    ("mediapipe33", [0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]),
    ("h36m17", [None] * 5 + [11, 14, 12, 15, 13, 16, 4, 1, 5, 2, 6, 3]),
    ("kinect25", [None] * 5 + [4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18]),
    ("smarthome15", [None] * 5 + list(range(1, 13))),
])
def test_every_layout_maps_to_coco17(name: str, numbers: list[int | None]) -> None:
    """With published numbers; mirroring before or after the mapping is the same, and absent joints are missing."""
    source = layout(name)
    assert list(joint_numbers(source, COCO17)) == numbers
    pose = np.arange(1, 2 * 3 * len(source.joints) * 2 + 1, dtype=np.float32).reshape(2, 3, -1, 2)
    mapped = to_coco17(pose, source, 2)
    assert mapped.shape == (2, 3, 17, 2)
    for joint, number in enumerate(numbers):
        expected = np.zeros((2, 3, 2)) if number is None else pose[:, :, number]
        assert np.array_equal(mapped[:, :, joint], expected)
    mirrored = to_coco17(pose[:, :, source.flip_V], source, 2)
    assert np.array_equal(mirrored, mapped[:, :, layout("coco17").flip_V])
    assert np.array_equal(to_coco17(pose[..., 0], source, 2), mapped[..., 0])


def test_all_layouts_are_tested_here() -> None:
    marks = [mark for test in (test_layouts_have_the_published_pairs, test_every_layout_maps_to_coco17)
             for mark in test.pytestmark]
    for mark in marks:
        assert {case[0] for case in mark.args[1]} == set(LAYOUTS)


def test_smarthome_edges_are_the_published_ones() -> None:
    published = "(14,1)(15,14)(9,15)(8,15)(10,8)(12,10)(11,9)(13,11)(3,14)(5,3)(7,5)(2,14)(4,2)(6,4)"
    pairs = {frozenset(int(n) - 1 for n in pair.split(",")) for pair in published.strip("()").split(")(")}
    assert {frozenset(edge) for edge in layout("smarthome15").edges} == pairs


def test_layout_refuses_nonsense() -> None:
    with pytest.raises(UserError, match=r"unknown joint layout 'coco': expected one of coco17, kinect25"):
        layout("coco")
    with pytest.raises(UserError, match="1 left joints but 0 right joints"):
        JointLayout("x", ("a", "b"), (), (0,), ())
    with pytest.raises(UserError, match=r"joint numbers must be in 0\.\.1"):
        JointLayout("x", ("a", "b"), ((0, 2),), (), ())
    with pytest.raises(UserError, match="listed twice"):
        JointLayout("x", ("a", "b"), (), (0,), (0,))


def test_boxes_ignore_missing_joints() -> None:
    joints_MTVC = np.zeros((2, 3, 4, 2), np.float32)
    joints_MTVC[0, 0, 1] = 10, 20
    joints_MTVC[1, 0, 2] = 30, 5
    joints_MTVC[1, 2, 0] = 0, 7  # on the left edge: present, although x is zero
    assert joint_box(joints_MTVC) == (0, 5, 30, 20)
    assert person_boxes(joints_MTVC).tolist() == [[10, 5, 30, 20], [0, 0, 0, 0], [0, 7, 0, 7]]
    assert int(present_joints(joints_MTVC).sum()) == 3
    assert joint_box(np.zeros((0, 3, 17, 2), np.float32)) is None
    assert person_boxes(np.zeros((0, 3, 17, 2), np.float32)).tolist() == [[0] * 4] * 3
    assert union_box(np.array([[0, 0, 0, 0], [1, 2, 3, 4], [2, 1, 5, 3]])) == (1, 1, 5, 4)
    assert union_box(np.array([[0, 0, 9, 4], [3, 1, 5, 6]])) == (0, 0, 9, 6), "a box in the upper left corner counts"
    assert union_box(np.zeros((3, 4))) is None


def test_each_coordinate_may_be_missing_by_itself_as_in_the_papers_code() -> None:
    joints_MTVC = np.array([[[[0, 7], [30, 5], [12, 0], [0, 0]]]], np.float32)
    assert joint_box(joints_MTVC) == (0, 0, 30, 7) and joint_box(joints_MTVC, each_coordinate=True) == (12, 5, 30, 7)
    boxes_T4 = np.array([[0, 2, 9, 4], [3, 1, 5, 3]], np.float32)
    assert union_box(boxes_T4) == (0, 1, 9, 4) and union_box(boxes_T4, each_coordinate=True) == (3, 1, 9, 4)
    assert union_box(boxes_T4[:1], each_coordinate=True) is None
    for one in (0, 2):  # without an x, without a y
        assert joint_box(joints_MTVC[..., one : one + 1, :], each_coordinate=True) is None


@pytest.mark.parametrize(("box", "expected"), [
    (None, (0, 0, 640, 480)),
    ((100, 100, 109.9, 200), (0, 0, 640, 480)),      # narrower than 10 px
    ((100, 100, 200, 109), (0, 0, 640, 480)),        # lower than 10 px
    ((100, 100, 110, 200), (50, 95, 160, 205)),      # 10 px are enough
    ((100, 100, 201, 303), (38, 89, 262, 313)),      # height decides: half = 111.65
    ((100, 200, 303, 250), (89, 113, 313, 336)),     # width decides
    ((0, 0, 101, 101), (-5, -5, 106, 106)),          # -5.05 and 106.05 truncated toward zero
    ((50, 60, 150, 80), (45, 15, 155, 125)),         # 100 - 50 * 1.1 is 45, in float64 a little less
])
def test_crop_square_follows_the_paper(box: tuple[float, ...] | None, expected: tuple[int, ...]) -> None:
    assert crop_square(box, 640, 480) == expected


coordinate = st.floats(-300, 1200, allow_nan=False)


@given(st.tuples(coordinate, coordinate, coordinate, coordinate), st.sampled_from([32, 160, 320]))
def test_packed_square_holds_what_is_in_the_picture(corners: tuple[float, ...], size: int) -> None:
    width, height = 960, 540
    box = (min(corners[0], corners[2]), min(corners[1], corners[3]),
           max(corners[0], corners[2]), max(corners[1], corners[3]))
    x, y, side = packed_square(box, width, height, size)
    x1, y1, x2, y2 = crop_square(box, width, height)
    margin = 0.125 * max(x2 - x1, y2 - y1)
    left, top = max(x1 - margin, 0), max(y1 - margin, 0)
    right, bottom = min(x2 + margin, width), min(y2 + margin, height)
    assert side >= size
    assert side <= max(size, 1.25 * max(x2 - x1, y2 - y1) + 2, 0) or right <= left or bottom <= top
    if right > left and bottom > top:
        assert x <= left + 1 and y <= top + 1 and x + side >= right - 1 and y + side >= bottom - 1


@pytest.mark.parametrize(("box", "size", "expected"), [
    ((300, 200, 350, 300), 320, (165, 90, 320)),  # small people keep the source's resolution
    ((0, 100, 200, 500), 320, (-70, 25, 515)),    # -175 .. 375 by 25 .. 575, less what lies outside
    ((760, 40, 960, 440), 320, (515, 0, 515)),    # 585 .. 1135 by -35 .. 515
    ((400, 0, 480, 90), 32, (377, -9, 125)),      # 377.6 .. 501.4 by 0 .. 106.4
    ((0, 200, 90, 280), 32, (-9, 177, 125)),
    ((-95, 200, -15, 280), 320, (0, -210, 960)),  # ends where the picture begins: nobody is in it
])
def test_packed_square_is_the_padded_one_with_its_margin_less_what_lies_outside(
    box: tuple[float, ...], size: int, expected: tuple[int, int, int]
) -> None:
    assert packed_square(box, 960, 540, size) == expected


def test_packed_to_source_maps_corners() -> None:
    matrix = packed_to_source(-10, 20, 640, 320)
    assert (matrix[:, :2] @ [0, 0] + matrix[:, 2]).tolist() == [-10, 20]
    assert (matrix[:, :2] @ [320, 320] + matrix[:, 2]).tolist() == [630, 660]
    assert (matrix[:, :2] @ [0.5, 0.5] + matrix[:, 2]).tolist() == [-9, 21], "centre of the first pixel"
