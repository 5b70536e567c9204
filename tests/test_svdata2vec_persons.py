"""Positions of the persons in a video: the moving region of planted videos, and the joints of a pose file."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from shards_data import HEIGHT, WIDTH, annotation, clip_of, packed, write_motion_set, write_pickle, write_video

from svdata2vec.evaluation.persons import Persons, moving_region, persons_of_poses
from svdata2vec.shards.boxes import union_box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.video import VideoReader

WIDE, HIGH, NUM_FRAMES = 640, 360, 40


def texture() -> np.ndarray:
    """A still scene with edges, wider than the picture."""
    generator = np.random.default_rng(0)
    return np.kron(generator.integers(40, 200, (HIGH // 20, 2 * WIDE // 20, 3)), np.ones((20, 20, 1))).astype(np.uint8)


def film(path: Path, pictures: Iterator[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def walkers(starts: list[tuple[int, int]], noise: float) -> Iterator[np.ndarray]:
    """Figures of 60 x 140 px that walk 4 px per frame to the right, before a still scene seen by a noisy sensor."""
    generator, scene = np.random.default_rng(1), texture()[:, :WIDE]
    for number in range(NUM_FRAMES):
        picture = scene.astype(np.float32)
        for x, y in starts:
            picture[y : y + 140, x + 4 * number : x + 4 * number + 60] = (250, 30, 120)
        yield (picture + generator.normal(0, noise, picture.shape)).clip(0, 255).astype(np.uint8)


def found(path: Path) -> Persons:
    with VideoReader(path) as reader:
        info = reader.info
    return moving_region(path, info)


@pytest.mark.parametrize("noise", [0.0, 12.0])
@pytest.mark.parametrize("starts", [[(100, 150)], [(30, 40), (300, 200)]], ids=["one", "two"])
def test_the_region_holds_everybody_who_walks(tmp_path: Path, starts: list[tuple[int, int]], noise: float) -> None:
    box = found(film(tmp_path / "walk.mp4", walkers(starts, noise))).box
    last = 4 * (NUM_FRAMES - 1) + 60
    expected = (
        min(x for x, _ in starts), min(y for _, y in starts), max(x for x, _ in starts) + last, max(y for _, y in starts) + 140
    )
    assert box == pytest.approx(expected, abs=10), "within two of the small pictures' pixels, and a bit of blur"


def test_a_still_video_has_nobody(tmp_path: Path) -> None:
    persons = found(film(tmp_path / "still.mp4", walkers([], noise=12.0)))
    assert persons.box is None and persons.how == "nothing moves"


def test_a_camera_that_pans_is_no_person(tmp_path: Path) -> None:
    scene = texture()
    pans = (np.ascontiguousarray(scene[:, 8 * number : 8 * number + WIDE]) for number in range(NUM_FRAMES))
    persons = found(film(tmp_path / "pan.mp4", pans))
    assert persons.box is None and "of the picture moves, the camera too" in persons.how


def test_one_frame_allows_no_conclusion(tmp_path: Path) -> None:
    assert found(write_video(tmp_path / "one.mp4", 1)).box is None


def test_long_videos_are_thinned_out_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdata2vec.evaluation.persons.MAX_FRAMES", 8)
    box = found(film(tmp_path / "walk.mp4", walkers([(100, 150)], 0.0))).box
    assert box is not None and box[0] < 110 and box[2] > 100 + 60 + 4 * (NUM_FRAMES - 9)


def test_poses_give_the_union_of_all_joints_in_pixels_of_the_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", 8)
    poses = write_pickle(tmp_path / "poses.pkl", [annotation("walk/clip", 0, scale=0.5), annotation("other", 0)])
    with VideoReader(video) as reader:
        info = reader.info
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    persons = persons_of_poses(poses, video, info)
    assert persons.box == pytest.approx((60 + 2.4, 40 + 4, 67 + 21.6, 40 + 36), abs=0.3)
    assert persons.how == f"the persons in {poses}"
    nobody = annotation("clip", 0) | {"keypoint": np.zeros((1, 8, 17, 2), np.float16)}
    assert persons_of_poses(write_pickle(tmp_path / "empty.pkl", [nobody]), video, info).box is None


@pytest.mark.parametrize(("name", "video"), [
    ("S001C001P001R001A001", "S001C001P001R001A001_rgb.mp4"),
    (unicodedata.normalize("NFC", "écran"), unicodedata.normalize("NFD", "écran.mp4")),
    ("walk/001", "walk/001.mp4"),
])
def test_poses_are_found_by_the_names_that_packing_knows(tmp_path: Path, name: str, video: str) -> None:
    path = tmp_path / video
    path.parent.mkdir(exist_ok=True)
    poses = write_pickle(tmp_path / "poses.pkl", [annotation(name, 0), annotation("run/001", 0)])
    with VideoReader(write_video(path, 8)) as reader:
        assert persons_of_poses(poses, path, reader.info).box is not None


def test_the_annotation_with_the_video_s_own_name_counts(tmp_path: Path) -> None:
    """As in packing, where `a` fits a_rgb.mp4 as well."""
    names = ("a", "a_rgb")
    own, other = annotation(names[1], 0), annotation(names[0], 0)
    other["keypoint"][0, :, 3] = (30, 70)  # type: ignore[index]
    poses = write_pickle(tmp_path / "poses.pkl", [other, own])
    videos = [write_video(tmp_path / f"{name}.mp4", 8) for name in names]
    with VideoReader(videos[0]) as reader:
        info = reader.info
    found = [persons_of_poses(poses, video, info).box for video in videos]
    alone = [
        persons_of_poses(write_pickle(tmp_path / "alone.pkl", [entry]), video, info).box
        for entry, video in zip((other, own), videos, strict=True)
    ]
    assert found == alone and found[0] != found[1]


def test_the_folder_in_front_of_a_name_counts_before_the_name(tmp_path: Path) -> None:
    """As in packing: a/x is of a/x_rgb.mp4, which b/x_rgb is not."""
    own, other = annotation("a/x", 0), annotation("b/x_rgb", 0)
    other["keypoint"][0, :, 3] = (30, 70)  # type: ignore[index]
    path = tmp_path / "a" / "x_rgb.mp4"
    path.parent.mkdir()
    video = write_video(path, 8)
    with VideoReader(video) as reader:
        info = reader.info
    both = persons_of_poses(write_pickle(tmp_path / "poses.pkl", [other, own]), video, info)
    assert both.box == persons_of_poses(write_pickle(tmp_path / "alone.pkl", [own]), video, info).box


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 60000.0, -60000.0])
def test_a_joint_that_cannot_be_true_is_missing(tmp_path: Path, value: float) -> None:
    """As in packing: a NaN is no traceback, and an outlier no crop of gigabytes."""
    video = write_video(tmp_path / "clip.mp4", 8)
    with VideoReader(video) as reader:
        info = reader.info
    good = persons_of_poses(write_pickle(tmp_path / "good.pkl", [annotation("clip", 0)]), video, info).box
    entry = annotation("clip", 0)
    entry["keypoint"][0, 3, 5, 1] = value  # type: ignore[index]
    assert persons_of_poses(write_pickle(tmp_path / "bad.pkl", [entry]), video, info).box == good


def test_the_box_of_poses_is_the_one_that_packing_stores(tmp_path: Path) -> None:
    """Given boxes come first; of joints those count whose score does."""
    pickle_path, videos = write_motion_set(tmp_path, count=1)
    video = videos / "S001C001P001R001A001.mp4"
    scored = annotation(video.stem, 0, scale=0.5)
    scored["keypoint"][0, :, 16] = (30, 70)  # type: ignore[index]  # below the picture of 96x64
    scored["keypoint_score"][0, :, 16] = 0.2  # type: ignore[index]
    boxed = scored | {"bboxes": np.tile(np.float32([20, 10, 90, 120, 0.9]), (8, 1))}
    for number, entry in enumerate((annotation(video.stem, 0), scored, boxed)):
        write_pickle(pickle_path, [entry])
        with VideoReader(video) as reader:
            box = persons_of_poses(pickle_path, video, reader.info).box
        folder = tmp_path / str(number)
        sample = clip_of(packed(open_dataset("pyskl", pickle_path=pickle_path, videos=videos), folder), video.stem)
        assert box == union_box(sample.box_T4)
        assert box is not None and box[3] < HEIGHT
    assert box == (20, 10, 90, 120)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoint": np.zeros((8, 17, 2))}, r"keypoint has shape \(8, 17, 2\)"),
        ({"keypoint_score": np.zeros((1, 7, 17))}, r"joint scores have shape \(1, 7, 17\)"),
        ({"bboxes": np.zeros((5, 4))}, r"boxes have shape \(5, 4\), expected \(8, 4\)"),
    ],
)
def test_poses_of_a_wrong_shape_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    video = write_video(tmp_path / "clip.mp4", 8)
    poses = write_pickle(tmp_path / "poses.pkl", [annotation("clip", 0) | change])
    with VideoReader(video) as reader, pytest.raises(UserError, match=rf"annotation of clip cannot be used .*{message}"):
        persons_of_poses(poses, video, reader.info)


@pytest.mark.parametrize("frames", [None, (2, 6)])
def test_the_frames_that_are_there_count_not_those_that_a_header_states(tmp_path: Path, frames: tuple[int, int] | None) -> None:
    """Matroska states a length, which with a mean rate gives no number of frames where the rate varies."""
    video = write_video(tmp_path / "clip.mkv", 8, times=[0, 1, 2, 30, 31, 60, 90, 91])
    entries = {count: write_pickle(tmp_path / f"{count}.pkl", [annotation("clip", 0, count)]) for count in (8, 40)}
    with VideoReader(video) as reader:
        assert reader.stated_frames == 92 and persons_of_poses(entries[8], video, reader.info, frames).box is not None
        with pytest.raises(UserError, match="it has 40 frames, the video 8: it belongs to another one"):
            persons_of_poses(entries[40], video, reader.info, frames)


@pytest.mark.parametrize(("names", "count"), [(["other"], 0), (["a/clip", "b/clip"], 2)])
def test_poses_must_name_the_video_once(tmp_path: Path, names: list[str], count: int) -> None:
    video = write_video(tmp_path / "clip.mp4", 8)
    poses = write_pickle(tmp_path / "poses.pkl", [annotation(name, 0) for name in names])
    with VideoReader(video) as reader:
        info = reader.info
    with pytest.raises(UserError, match=f"has {count} annotations of clip, expected one; run tools/pose/extract_poses.py"):
        persons_of_poses(poses, video, info)
