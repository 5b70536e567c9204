"""One person, one slot: pieces of tracks are joined for every reader, and false detections are ordered after people."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ntu_files import skeleton_text
from shards_data import WIDTH, annotation, block_pose, clip_of, packed, write_pickle, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.readers.pku import read_pku_skeleton
from svdata2vec.shards.readers.skeleton_text import FIRST_COLUMNS
from svdata2vec.shards.readers.smarthome import read_smarthome_json
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.stats import persons_report, set_statistics
from svdata2vec.shards.tracking import Detections, TrackingOptions, join_pieces
from svdata2vec.shards.tracks import join_slots, link_slots

FRAMES = 20
NAME = "S001C001P001R001A001"


def body(
    x: float = 60, num_frames: int = FRAMES, height: float = 60, seen: range | None = None, joints: int = 17
) -> np.ndarray:
    """(T, V, 2): somebody who walks to the right, a pixel per frame; zero where not seen."""
    spread = np.stack([np.linspace(0, 0.4, joints), np.linspace(0, 1, joints)], 1) * height + (x, 30)
    pose = spread[None] + np.stack([np.arange(num_frames), np.zeros(num_frames)], 1)[:, None]
    return np.where(np.isin(np.arange(num_frames), seen or range(num_frames))[:, None, None], pose, 0).astype(np.float32)


def in_pieces(*ranges: range, **options: Any) -> np.ndarray:
    """(M, T, V, 2): one body whose slot changes."""
    return np.stack([body(seen=piece, **options) for piece in ranges])


FOUR = (range(6), range(6, 11), range(12, 16), range(16, 20))


def skeleton_lines(pose_MTVC: np.ndarray, columns: int, first: int, scale: np.ndarray) -> str:
    """A text skeleton with one body id per slot."""
    seen_MT = pose_MTVC.any((2, 3))
    poses = np.where(seen_MT[:, :, None, None], pose_MTVC * scale, np.nan)
    return skeleton_text({f"7205759403793{m}": pose for m, pose in enumerate(poses)}, pose_MTVC.shape[1], columns, first)


def ntu(root: Path, pose_MTVC: np.ndarray) -> ShardSet:
    """Packed from a .skeleton file."""
    for folder in ("videos", "skeletons"):
        (root / folder).mkdir(parents=True)
    write_video(root / "videos" / f"{NAME}_rgb.avi", pose_MTVC.shape[1], codec="mpeg4", height=108)
    text = skeleton_lines(pose_MTVC, 12, 5, np.array([1920 / WIDTH, 1920 / WIDTH]))
    (root / "skeletons" / f"{NAME}.skeleton").write_text(text)
    return packed(open_dataset("ntu60-skeleton", skeletons=root / "skeletons", videos=root / "videos"), root)


def uav(root: Path, pose_MTVC: np.ndarray) -> ShardSet:
    name = "P000S00G10B10H10UC022000LC021000A000R0_08241716"
    for folder in ("videos", "skeletons"):
        (root / folder).mkdir(parents=True)
    write_video(root / "videos" / f"{name}.avi", pose_MTVC.shape[1], codec="mpeg4")
    (root / "skeletons" / f"{name}.txt").write_text(skeleton_lines(pose_MTVC, 3, FIRST_COLUMNS[0], np.ones(2)))
    return packed(open_dataset("uav-human", skeletons=root / "skeletons", videos=root / "videos"), root)


def pyskl(root: Path, pose_MTVC: np.ndarray) -> ShardSet:
    (root / "videos").mkdir(parents=True)
    write_video(root / "videos" / "a.mp4", pose_MTVC.shape[1])
    entry = annotation("a", 0, pose_MTVC.shape[1], keypoint=pose_MTVC, keypoint_score=pose_MTVC[..., 1] / 200)
    return packed(open_dataset("pyskl", pickle_path=write_pickle(root / "set.pkl", [entry]), videos=root / "videos"), root)


READERS = {"ntu": (ntu, 25), "uav": (uav, 17), "pyskl": (pyskl, 17)}


@pytest.mark.parametrize("reader", READERS)
def test_one_person_under_four_numbers_is_one_person(
    tmp_path: Path, reader: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model would see two of four pieces: 8 of 20 frames without a joint, unreported."""
    pack, joints = READERS[reader]
    pieces = in_pieces(*FOUR, joints=joints)
    with caplog.at_level(logging.INFO, logger="svdata2vec"):
        shards = pack(tmp_path, pieces)
    sample = shards.sample(0)
    assert f"in 1 clips 3 pieces of a person's track were joined to others, e.g. in {sample.key}" in caplog.text
    assert sample.pose_MTVC.shape == (1, FRAMES, joints, 2)
    assert np.abs(sample.pose_MTVC[0] - pieces.sum(axis=0)).max() < 0.01
    if sample.score_MTV is not None:
        assert np.allclose(sample.score_MTV[0], pieces.sum(axis=0)[..., 1] / 200, atol=1e-3)
    figures = set_statistics(shards)
    assert figures.persons_per_clip == {1: 1} and figures.empty_frames == 1 / 20 and figures.frames_of_others == 0
    assert main(["verify", str(tmp_path / "packed"), "--workers", "1"]) == 0
    assert "no fault, but note: a model of 2 persons sees nobody in 5.00 % of the frames" in capsys.readouterr().out


def test_figures_are_those_of_the_persons_that_the_model_reads(tmp_path: Path) -> None:
    """Three bodies too far from one another to be one: the third is stored, and not seen."""
    pieces = np.stack([body(20, seen=range(8)), body(160, seen=range(8, 15)), body(20, seen=range(15, 20), height=20)])
    shards = pyskl(tmp_path, pieces)
    sample = clip_of(shards, "a")
    assert np.array_equal(sample.pose_MTVC, pieces), "nothing is joined, nothing moved"
    figures = set_statistics(shards)
    assert figures.persons_per_clip == {3: 1} and figures.empty_frames == 0.25 and figures.frames_of_others == 0.25
    assert persons_report(figures) == (
        "a model of 2 persons sees nobody in 25.00 % of the frames, and in 25.00 % only others are there; 1 of 1 clips have "
        "more persons than it reads")
    assert set_statistics(shards, persons=3).empty_frames == 0
    out = tmp_path / "inspect"
    assert main(["inspect", str(tmp_path / "packed"), "--split", "train", "--out", str(out), "--size", "32"]) == 0
    assert json.loads((out / "statistics.json").read_text())["empty_frames"] == 0.25


@pytest.mark.parametrize(("first", "second", "joined"), [
    (body(seen=range(10)), body(seen=range(10, 20)), 1),                           # goes on
    (body(seen=range(10)), body(seen=range(9, 20)), 0),                            # one frame shows both
    (body(seen=range(10)), body(60 + 70, seen=range(10, 20)), 0),                  # a body's side away
    (body(seen=range(10)), body(height=25, seen=range(10, 20)), 0),                # half the size
    (body(seen=range(10, 20)), body(seen=range(10)), 1),                           # the other way round
    (body(num_frames=200, seen=range(10)), body(10, num_frames=200, seen=range(101, 120)), 0),  # three seconds later
    (body(60, num_frames=99, seen=range(9)), body(20, num_frames=99, seen=range(60, 99)), 1),
])
def test_what_is_one_person(first: np.ndarray, second: np.ndarray, joined: int) -> None:
    pose = np.stack([first, second, 0 * first])  # a slot without anybody is no piece
    found, score, count = join_slots(pose, np.ones(pose.shape[:3], np.float16))
    assert count == joined
    if joined:
        assert found.shape[0] == 1 and np.array_equal(found[0], pose.sum(axis=0))
        assert score is not None and np.array_equal(score[0] > 0, pose.sum(axis=0).any(axis=-1))
    else:
        assert found is pose, "as it was, to the byte"


def test_slots_that_take_turns_are_one_person() -> None:
    """As in PKU-MMD's two slots, and in pickles: one body is sometimes in the first slot, sometimes in the second."""
    turns = np.arange(FRAMES) // 3 % 2
    pose = np.stack([np.where((turns == slot)[:, None, None], body(), 0) for slot in range(2)])
    found, _, count = join_slots(pose)
    assert count == 1 and np.array_equal(found, body()[None])
    far = np.stack([pose[0], np.where(pose[1] != 0, pose[1] + (100, 0), 0)])
    assert join_slots(far)[2] == 0


def test_two_people_of_whom_one_changes_the_number_stay_two(tmp_path: Path) -> None:
    other = body(140, joints=25)
    pose = np.stack([other, *in_pieces(range(9), range(10, 20), joints=25)])
    sample = ntu(tmp_path, pose).sample(0)
    assert sample.pose_MTVC.shape[0] == 2
    assert np.abs(sample.pose_MTVC[0] - other).max() < 0.01
    assert np.abs(sample.pose_MTVC[1] - pose[1:].sum(axis=0)).max() < 0.01


def test_ghosts_come_after_people() -> None:
    """A body of a few frames, and furniture that is wider than high all the time: MAMP and CTR-GCN drop them."""
    chair = body(20)[..., ::-1] + np.array([0, 60])
    blink, walker, other = body(120, seen=range(11)), body(70), body(130, height=50)
    scores = np.tile(np.arange(4.0)[:, None, None], (1, FRAMES, 17))
    found, found_scores, _ = join_slots(np.stack([chair, blink, other, walker]), scores)
    assert np.array_equal(found, np.stack([other, walker, chair, blink]))
    assert found_scores is not None and np.array_equal(found_scores, scores[[2, 3, 0, 1]])


def test_in_a_clip_of_few_frames_they_do_not_mean_a_ghost() -> None:
    small, walker, other = body(20, 8, 15), body(70, 8), body(130, 8, 50)
    assert np.array_equal(join_slots(np.stack([small, walker, other]))[0], np.stack([walker, other, small]))


@pytest.mark.parametrize(("second", "third"), [
    ((0, 60, FRAMES), (56, 72, FRAMES)),  # twice the spread in both directions together, not in one
    ((24, 60, 12), (36, 90, FRAMES)),     # half as large again, and longer in view
])
def test_a_later_slot_that_is_clearly_more_of_a_person_comes_first(
    second: tuple[int, int, int], third: tuple[int, int, int]
) -> None:
    def still(width: int, height: int, frames: int) -> np.ndarray:
        joints_V2 = np.linspace((20, 30), (20 + width, 30 + height), 17)
        return np.where(np.arange(FRAMES)[:, None, None] < frames, joints_V2, 0)

    large = still(60, 150, FRAMES)
    found = join_slots(np.stack([large, still(*second), still(*third)]))[0]
    assert np.array_equal(found, np.stack([large, still(*third), still(*second)]))


def test_people_who_are_much_alike_keep_their_order() -> None:
    """A pickle's first two are the authors' two."""
    three = np.stack([body(20, height=45), body(70, height=50), body(130, height=60)])
    assert join_slots(three)[0] is three
    four = np.stack([*three, body(100, height=20, seen=range(15))])
    assert join_slots(four)[0] is four
    blink_first = np.stack([body(20, seen=range(6)), body(130)])
    assert join_slots(blink_first)[0] is blink_first, "of two, both keep their places"


def test_joined_slots_are_sorted_by_the_frames_in_which_they_are_seen() -> None:
    brief, pieces = body(20, seen=range(12)), in_pieces(range(9), range(10, 20))
    found = join_slots(np.stack([brief, *pieces]))[0]
    assert np.array_equal(found, np.stack([pieces.sum(axis=0), brief]))


def test_joints_that_are_not_finite_are_left_to_the_packer() -> None:
    pose = in_pieces(*FOUR)
    pose[0, 2, 3] = np.nan
    pose[1, 7, 4] = np.inf
    found, _, count = join_slots(pose)
    assert count == 3 and np.isnan(found[0, 2, 3]).all() and np.isinf(found[0, 7, 4]).all()
    assert join_slots(np.zeros((3, 4, 17, 2)))[2] == 0
    wrong = np.zeros((2, 4, 17))
    assert join_slots(wrong)[0] is wrong and join_slots(pose, wrong)[0] is pose


def pku_file(path: Path, present: np.ndarray) -> Path:
    """Rows of two persons, 2 m away; `present`: bool (2, T)."""
    rows = []
    for t in range(present.shape[1]):
        person = np.stack([np.linspace(-0.2, 0.2, 25) + 0.01 * t, np.linspace(0.8, -0.8, 25), np.full(25, 2.0)], 1)
        rows.append(" ".join(f"{x:.6f}" for slot in range(2) for x in (person * present[slot, t]).reshape(-1)))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_joint_of_half_a_place_keeps_no_pieces_apart() -> None:
    """The sensor writes joints without x; as (0, y) they made the person as wide as its distance from the left edge."""
    pieces = np.stack([body(300, seen=range(12)), body(300, seen=range(12, FRAMES))])
    pieces[0, 11, 3] = np.nan, pieces[0, 11, 3, 1]
    found, _, joined = join_slots(pieces)
    assert joined == 1 and len(found) == 1


def test_pku_places_are_joined(tmp_path: Path) -> None:
    turns = np.arange(30) // 10 % 2
    pose = read_pku_skeleton(str(pku_file(tmp_path / "a.txt", np.stack([turns == 0, turns == 1]))), 0, 30)
    found, _, count = join_slots(pose.pose_MTVC)
    assert count == 1 and found.shape[0] == 1 and found.any(axis=(2, 3)).all()


# --- Toyota Smarthome: each frame is a list of detections --------------------------------------------------------------------


def smarthome_file(path: Path, frames: list[list[np.ndarray]]) -> str:
    """`frames`: the detections of each frame, (13, 2) in the file's order of joints."""
    listed = [[{"pose2d": [float(v) for v in person.T.reshape(-1)]} for person in people] for people in frames]
    path.write_text(json.dumps({"K": 5, "njts": 13, "frames": listed}))
    return str(path)


def test_smarthome_detections_in_any_order_are_two_persons(tmp_path: Path) -> None:
    """Sorted by confidence, the second person comes first now and then, or is missed."""
    big, small = body(100, joints=13, height=120)[:, ::-1], body(300, joints=13, height=80)[:, ::-1]
    frames = []
    for t in range(FRAMES):
        people = [big[t], small[t]] if t % 3 else [small[t], big[t]]
        frames.append([big[t]] if t in (7, 8) else people)
    lost = [[big[t]] if t in range(10, 14) else [big[t], small[t]] for t in range(FRAMES)]
    assert read_smarthome_json(smarthome_file(tmp_path / "c.json", lost)).joined == 0, "a gap that boxes bridge is no joint"
    pose = read_smarthome_json(smarthome_file(tmp_path / "a.json", frames)).pose_MTVC
    ordered = read_smarthome_json(smarthome_file(tmp_path / "b.json", [[big[t], small[t]] for t in range(FRAMES)])).pose_MTVC
    assert pose.shape[0] == 2
    rows = [int(np.abs(pose[m, 0] - ordered[0, 0]).max() > 1) for m in range(2)]
    for slot, row in enumerate(rows):
        seen = pose[slot].any(axis=(1, 2))
        assert np.array_equal(pose[slot, seen], ordered[row, seen])
    assert pose[rows.index(0)].any(axis=(1, 2)).all() and not pose[rows.index(1), 7:9].any()


def test_smarthome_files_in_order_are_as_they_were(tmp_path: Path) -> None:
    """Of one detection per frame, however it jumps, and of two in the same order throughout: to the byte."""
    jumps = [[body(20 + 200 * (t % 2), joints=13)[t]] for t in range(FRAMES)]
    assert read_smarthome_json(smarthome_file(tmp_path / "a.json", jumps)).pose_MTVC.shape[0] == 1
    pair = np.stack([body(100, joints=15), body(300, joints=15)])
    assert np.array_equal(link_slots(pair)[0], pair) and link_slots(pair)[1] == 0
    later = np.stack([body(100, joints=15, seen=range(12)), body(300, joints=15, seen=range(5, FRAMES))])
    assert np.array_equal(link_slots(later)[0], later), "who is seen for longer, but later, comes second"


def test_main_persons_do_not_share_their_slots() -> None:
    first, second, brief = body(300), body(100, seen=range(10, FRAMES)), body(500, seen=range(4))
    found, joined = link_slots(np.stack([first, second + brief]))
    assert np.array_equal(found, np.stack([first, second, brief])) and joined == 0


def test_many_brief_detections_do_not_multiply_slots() -> None:
    """K = 20 hypotheses of version 1.1: what is not one of the two main persons shares slots."""
    rng = np.random.default_rng(0)
    pose = np.zeros((6, 60, 15, 2), np.float32)
    pose[0] = body(300, 60, 100, joints=15)
    for t in range(60):
        for slot in range(1, rng.integers(1, 6)):
            pose[slot, t] = rng.uniform(0, 600, 2) + rng.uniform(0, 30, (15, 2))
    found, _ = link_slots(pose)
    assert found.shape[0] <= 8
    assert np.array_equal(np.sort(found[found.any(axis=(2, 3))].sum((1, 2))), np.sort(pose[pose.any(axis=(2, 3))].sum((1, 2))))
    assert np.array_equal(found[0], pose[0]) or np.array_equal(found[1], pose[0])


def test_pieces_are_joined_nearest_first() -> None:
    """Two tracks end near one that starts: the nearer one is continued."""
    def detections(*corners: float) -> Detections:
        box_N4 = np.array([[x, 10, x + 40, 110] for x in corners]).reshape(-1, 4)
        return Detections(box_N4, np.ones(len(box_N4)), np.zeros((len(box_N4), 17, 2)), np.ones((len(box_N4), 17)))

    frames = [detections(10, 70), detections(10, 70), detections(60)]
    tracks = [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(2, 0)]]
    assert join_pieces(tracks, frames, TrackingOptions()) == [tracks[0], [*tracks[1], *tracks[2]]]


def test_block_of_one_person_is_untouched(tmp_path: Path) -> None:
    pose = block_pose(8, 17)
    assert join_slots(pose)[0] is pose
