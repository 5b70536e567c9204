"""Pose files in the formats of other programs: from a folder of videos and one of poses to packed clips."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_data import HEIGHT, WIDTH, clip_of, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout, to_coco17
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pose_files import read_poses
from svdata2vec.shards.readers.pose_formats import PARSERS
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.shardset import ShardSet

FRAMES = 8
NOBODY = 5  # the frame in which nobody is found
SCORE = 0.75


def body(t: int, x: float = 60, num_joints: int = 17, height: float = 60) -> np.ndarray:
    """(V, 2): joints all over a person who walks to the right."""
    spread = np.stack([np.linspace(0, 0.4, num_joints) + 0.1 * (np.arange(num_joints) % 3), np.linspace(0, 1, num_joints)], 1)
    return spread * height + (x + t, 30)


def people(t: int, num_joints: int = 17) -> list[np.ndarray]:
    """Two persons, listed in turns; nobody in one frame, the second person not in the first two."""
    both = [body(t, num_joints=num_joints), body(t, 120, num_joints, 40)][: 1 if t < 2 else 2]
    return [] if t == NOBODY else both[:: -1 if t % 2 else 1]


def flat(joints_V2: np.ndarray) -> list[float]:
    return [round(float(value), 4) for x, y in joints_V2 for value in (x, y, SCORE)]


def corners(joints_V2: np.ndarray) -> tuple[float, float, float, float]:
    """A box that is larger than that of the joints, like a detector's."""
    (x1, y1), (x2, y2) = joints_V2.min(0), joints_V2.max(0)
    return float(x1) - 2, float(y1) - 4, float(x2) + 6, float(y2) + 8


def xywh(joints_V2: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = corners(joints_V2)
    return [x1, y1, x2 - x1, y2 - y1]


def dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root: Path, name: str) -> None:
    """A file for this video, frames as images of its own folder, written out of order."""
    size = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": 100 + t, "file_name": f"{name}/img_{t + 1:05d}.jpg", **size} for t in range(FRAMES)]
    entries = [{"id": 10 * t + i, "image_id": 100 + t, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "score": 0.9,
                "keypoints": flat(one), "bbox": xywh(one)} for t in range(FRAMES) for i, one in enumerate(people(t))]
    dump(root / f"{name}.json", {"images": images[::-1], "annotations": entries, "categories": [{"id": 1, "name": "person"}]})


def write_openpose(root: Path, name: str) -> None:
    for t in range(FRAMES):
        found = [{"person_id": [-1], "pose_keypoints_2d": flat(one), "face_keypoints_2d": [], "hand_left_keypoints_2d": []}
                 for one in people(t, 25)]
        dump(root / f"{name}_{t:012d}_keypoints.json", {"version": 1.3, "people": found})


def write_alphapose(root: Path, name: str) -> None:
    found = [{"image_id": f"{t}.jpg", "category_id": 1, "keypoints": flat(one), "score": 2.75, "box": xywh(one), "idx": 7}
             for t in range(FRAMES) for one in people(t)]
    dump(root / name / "alphapose-results.json", found)


def write_mmpose(root: Path, name: str) -> None:
    def instance(one: np.ndarray) -> dict[str, Any]:
        return {"keypoints": one.tolist(), "keypoint_scores": [SCORE] * len(one), "bbox": [list(corners(one))],
                "bbox_score": 0.9}

    dump(root / "predictions" / f"{name}.json",
         [{"frame_id": t, "instances": [instance(one) for one in people(t)]} for t in range(FRAMES)])


def write_yolo(root: Path, name: str) -> None:
    """save_txt with save_conf and tracks: class, box, joints, score, number."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for t in range(FRAMES):
        lines = []
        for number, one in enumerate(people(t)):
            x, y, width, height = xywh(one)
            box = [(x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT]
            joints = [value for x, y in one for value in (x / WIDTH, y / HEIGHT, SCORE)]
            lines.append(" ".join(f"{value:.6g}" for value in [0, *box, *joints, 0.9, number + 1]))
        if lines:
            (root / "labels" / f"{name}_{t + 1}.txt").write_text("\n".join(lines) + "\n")


def write_yolo_json(root: Path, name: str) -> None:
    def result(one: np.ndarray) -> dict[str, Any]:
        box = dict(zip(("x1", "y1", "x2", "y2"), corners(one), strict=True))
        return {"name": "person", "class": 0, "confidence": 0.9, "box": box,
                "keypoints": {"x": one[:, 0].tolist(), "y": one[:, 1].tolist(), "visible": [SCORE] * len(one)}}

    dump(root / f"{name}.json", [[result(one) for one in people(t)] for t in range(FRAMES)])


def landmarks(one: np.ndarray) -> list[dict[str, float]]:
    return [{"x": x / WIDTH, "y": y / HEIGHT, "z": 0.1, "visibility": SCORE} for x, y in one]


def write_mediapipe(root: Path, name: str) -> None:
    """The Tasks API: a list of persons per frame."""
    dump(root / f"{name}.json", [{"pose_landmarks": [landmarks(one) for one in people(t, 33)]} for t in range(FRAMES)])


def write_npz(root: Path, name: str) -> None:
    keypoint = np.zeros((2, FRAMES, 17, 2), np.float32)
    for t in range(FRAMES):
        if t != NOBODY:
            keypoint[0, t], keypoint[1, t] = body(t), body(t, 120, height=40) if t > 1 else 0
    root.mkdir(parents=True, exist_ok=True)
    score = np.where(keypoint.any(axis=3), SCORE, 0)
    np.savez(root / f"{name}.npz", keypoint=keypoint * 2, score=score, img_shape=np.array([2 * HEIGHT, 2 * WIDTH]))


WRITERS: dict[str, tuple[str, Callable[[Path, str], None], str]] = {
    "coco": ("coco", write_coco, "coco17"), "openpose": ("openpose", write_openpose, "body25"),
    "alphapose": ("alphapose", write_alphapose, "coco17"), "mmpose": ("mmpose", write_mmpose, "coco17"),
    "yolo text": ("yolo", write_yolo, "coco17"), "yolo json": ("yolo", write_yolo_json, "coco17"),
    "mediapipe": ("mediapipe", write_mediapipe, "mediapipe33"), "npz": ("npz", write_npz, "coco17"),
}


def videos_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / f"{name}.mp4", FRAMES)
    return root


def packed(root: Path, **options: Any) -> ShardSet:
    pack(open_dataset("poses-json", **options), root / "packed", PackOptions(workers=1, size=96))
    return ShardSet.open(root / "packed")


@pytest.mark.parametrize("written", WRITERS)
@pytest.mark.parametrize("as_coco17", [False, True])
def test_poses_of_every_program_become_clips(tmp_path: Path, written: str, as_coco17: bool) -> None:
    """Two persons in any order, one frame without anybody, labels and splits from the folders, scores kept."""
    form, write, joints = WRITERS[written]
    videos = videos_of(tmp_path / "videos", "train/walk/001", "val/run/002", "train/run/003")
    for name in ("001", "002"):
        write(tmp_path / "poses", name)
    shards = packed(tmp_path, videos=videos, poses=tmp_path / "poses", format=form, as_coco17=as_coco17)
    assert shards.manifest.classes == ("run", "walk") and shards.manifest.layout == layout("coco17" if as_coco17 else joints)
    assert shards.manifest.splits == {"train": ["train%2Fwalk%2F001"], "val": ["val%2Frun%2F002"]}
    skipped = json.loads((tmp_path / "packed" / "skipped.jsonl").read_text())
    assert skipped["key"] == "train%2Frun%2F003" and f"no {form} poses of '003' below" in skipped["reason"]
    sample = clip_of(shards, "val%2Frun%2F002")
    count = len(layout(joints).joints)
    expected = np.zeros((2, FRAMES, count, 2))
    for t in range(FRAMES):
        if t != NOBODY:
            expected[0, t] = body(t, num_joints=count)
            expected[1, t] = body(t, 120, count, 40) if t > 1 else 0
    expected = to_coco17(expected, layout(joints), 2) if as_coco17 else expected
    assert np.abs(sample.pose_MTVC - expected).max() < 0.02
    assert sample.score_MTV is not None and np.allclose(sample.score_MTV[sample.pose_MTVC.any(axis=3)], SCORE, atol=1e-3)
    assert not sample.score_MTV[~sample.pose_MTVC.any(axis=3)].any()
    larger = form not in ("openpose", "mediapipe", "npz")
    low, high = expected[:, 3].reshape(-1, 2).min(0), expected[:, 3].reshape(-1, 2).max(0)
    if not as_coco17:
        box = np.array([*low, *high]) + larger * np.array([-2, -4, 6, 8])
        assert np.allclose(sample.box_T4[3], box, atol=0.05) and not sample.box_T4[NOBODY].any()


def test_one_coco_file_holds_many_videos(tmp_path: Path) -> None:
    """By folders of images, or by CocoVID's videos with frame numbers."""
    videos = videos_of(tmp_path / "videos", "walk/a", "walk/b")
    for number, style in enumerate(("folders", "videos")):
        images: list[dict[str, Any]] = []
        entries = []
        for video_id, name in enumerate("ab"):
            for t in range(FRAMES):
                identity = len(images)
                place = ({"file_name": f"walk/{name}/{t + 1:06d}.jpg"} if style == "folders"
                         else {"file_name": f"{identity}.jpg", "video_id": video_id, "frame_id": t})
                images.append({"id": identity, **place})
                entries.append({"image_id": identity, "keypoints": flat(body(t, 60 + 50 * video_id))})
        listed = [] if style == "folders" else [{"id": video_id, "name": f"{name}.mp4"} for video_id, name in enumerate("ab")]
        dump(tmp_path / f"{style}.json", {"images": images[::-1], "annotations": entries[::-1], "videos": listed})
        shards = packed(tmp_path / str(number), videos=videos, poses=tmp_path / f"{style}.json", format="coco")
        for video_id, name in enumerate("ab"):
            sample = clip_of(shards, f"walk%2F{name}")
            assert np.abs(sample.pose_MTVC[0, 4] - body(4, 60 + 50 * video_id)).max() < 0.01


def test_labels_come_from_a_table_too(tmp_path: Path) -> None:
    videos_of(tmp_path / "clips", "x")
    (tmp_path / "own.csv").write_text("path,label,split\nclips/x.mp4,jump,test\n")
    write_mmpose(tmp_path / "poses", "x")
    shards = packed(tmp_path, videos=tmp_path / "own.csv", poses=tmp_path / "poses", format="mmpose")
    assert shards.manifest.classes == ("jump",) and shards.manifest.splits == {"test": ["clips%2Fx"]}


def test_the_command_line_packs_poses(tmp_path: Path) -> None:
    videos = videos_of(tmp_path / "videos", "walk/a")
    write_openpose(tmp_path / "poses" / "a", "a")
    words = ["--videos", str(videos), "--poses", str(tmp_path / "poses"), "--persons", "1", "--as-coco17", "--format"]
    assert main(["shard", "poses-json", str(tmp_path / "out"), *words, "openpose", "--workers", "1", "--size", "96"]) == 0
    assert ShardSet.open(tmp_path / "out").sample(0).pose_MTVC.shape == (1, FRAMES, 17, 2)
    assert main(["shard", "poses-json", str(tmp_path / "out"), *words, "json"]) == 2


def test_videos_of_one_name_need_their_folders(tmp_path: Path) -> None:
    videos = videos_of(tmp_path / "videos", "walk/a", "run/a")
    for folder in ("walk", "run"):
        write_mmpose(tmp_path / "poses" / folder, "a")
        (tmp_path / "poses" / folder / "predictions" / "a.json").rename(tmp_path / "poses" / folder / "a.json")
    dataset = open_dataset("poses-json", videos=videos, poses=tmp_path / "poses", format="mmpose")
    places = [clip.pose_file.path for clip in dataset.clips if clip.pose_file is not None]
    assert [Path(path).parent.name for path in places] == ["run", "walk"]
    flat_folder = tmp_path / "flat"
    write_mmpose(flat_folder / "x", "a")
    write_mmpose(flat_folder / "y", "a")
    with pytest.raises(UserError, match=r"poses of 'a' are in '.*x.*a\.json' and in '.*y.*a\.json'"):
        open_dataset("poses-json", videos=videos, poses=flat_folder, format="mmpose")


def test_poses_belong_to_one_video(tmp_path: Path) -> None:
    """A video without poses does not get those of another video with its name."""
    videos = videos_of(tmp_path / "videos", "walk/a", "run/a", "run/b")
    write_mmpose(tmp_path / "poses" / "walk", "a")
    file = (tmp_path / "poses" / "walk" / "predictions" / "a.json").rename(tmp_path / "poses" / "walk" / "a.json")
    write_mmpose(tmp_path / "poses", "b")
    options = {"videos": videos, "poses": tmp_path / "poses", "format": "mmpose"}
    dataset = open_dataset("poses-json", **options)
    assert sorted(clip.key for clip in dataset.clips) == ["run%2Fb", "walk%2Fa"]
    [entry] = dataset.skipped
    assert (entry.key, entry.reason) == ("run%2Fa", f"{file}: the poses are of '{videos}/walk/a.mp4', which has the same name")
    file = file.rename(tmp_path / "poses" / "a.json")
    dataset = open_dataset("poses-json", **options)
    assert [clip.key for clip in dataset.clips] == ["run%2Fb"]
    reason = f"{file}: poses of '{videos}/run/a.mp4' or of '{videos}/walk/a.mp4'; put them into folders as the videos are"
    assert [(entry.key, entry.reason) for entry in dataset.skipped] == [("run%2Fa", reason), ("walk%2Fa", reason)]


@pytest.mark.parametrize(("videos", "poses", "taken"), [
    (["run/a", "run/b"], ["walk/a", "run/b"], ["run/b"]),  # run is a folder of poses, too
    (["run/a", "walk/b"], ["walk/a", "walk/b"], ["walk/b"]),  # walk is one of videos, too
    (["train/run/a", "val/run/b"], ["val/run/a", "val/run/b"], ["val/run/b"]),
    (["run/a", "walk/b"], ["predictions/a", "predictions/b"], ["run/a", "walk/b"]),
    (["run/a", "walk/b"], ["a", "walk/b"], ["run/a", "walk/b"]),
    (["train/run/a", "val/walk/b"], ["train/a", "val/b"], ["train/run/a", "val/walk/b"]),  # folders of splits alone
])
@pytest.mark.parametrize("form", ["npz", "openpose"])
def test_poses_of_another_folder_are_of_another_clip(
    tmp_path: Path, form: str, videos: list[str], poses: list[str], taken: list[str]
) -> None:
    for name in poses:
        WRITERS[form][1]((tmp_path / "poses" / name).parent, Path(name).name)
    dataset = open_dataset("poses-json", videos=videos_of(tmp_path / "videos", *videos), poses=tmp_path / "poses", format=form)
    assert sorted(clip.key for clip in dataset.clips) == [name.replace("/", "%2F") for name in taken]
    assert all("poses of this name, but of folder" in entry.reason for entry in dataset.skipped)


def test_joints_that_may_be_several_layouts_are_asked_for(tmp_path: Path) -> None:
    """25 joints in a COCO file are ambiguous; in OpenPose's files they are its own."""
    videos = videos_of(tmp_path / "videos", "walk/a")
    joints = flat(body(0, num_joints=25))
    images = [{"id": t, "file_name": f"a/{t}.jpg"} for t in range(FRAMES)]
    dump(tmp_path / "a.json", {"images": images, "annotations": [{"image_id": t, "keypoints": joints} for t in range(FRAMES)]})
    with pytest.raises(UserError, match=r"25 joints per person may be kinect25 or body25; say which with --joints"):
        open_dataset("poses-json", videos=videos, poses=tmp_path / "a.json", format="coco")
    with pytest.raises(UserError, match="25 joints per person, layout coco17 has 17"):
        open_dataset("poses-json", videos=videos, poses=tmp_path / "a.json", format="coco", joints="coco17")
    found = open_dataset("poses-json", videos=videos, poses=tmp_path / "a.json", format="coco", joints="body25")
    assert found.layout.name == "body25"


def test_frames_that_a_program_leaves_out_have_nobody(tmp_path: Path) -> None:
    """Ultralytics and AlphaPose write no frame without a person: also not the last ones."""
    videos = videos_of(tmp_path / "videos", "walk/a")
    write_yolo(tmp_path / "poses", "a")
    for number in (6, 7, 8):
        (tmp_path / "poses" / "labels" / f"a_{number}.txt").unlink(missing_ok=True)
    sample = packed(tmp_path, videos=videos, poses=tmp_path / "poses", format="yolo").sample(0)
    assert sample.meta.num_frames == FRAMES and sample.pose_MTVC[0, :5].any(axis=(1, 2)).all()
    assert not sample.pose_MTVC[:, 5:].any() and not sample.box_T4[5:].any()


@pytest.mark.parametrize("first", [0, 1])
def test_images_that_a_coco_file_leaves_out_have_nobody(tmp_path: Path, first: int) -> None:
    """The frames after a gap were taken for those in it."""
    videos = videos_of(tmp_path / "videos", "walk/a")
    write_coco(tmp_path, "a")
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"] = [image | {"file_name": f"{image['id'] - 100 + first}.jpg"} for image in content["images"]
                         if image["id"] not in (103, 107)]
    dump(tmp_path / "a.json", content)
    sample = packed(tmp_path, videos=videos, poses=tmp_path / "a.json", format="coco").sample(0)
    assert sample.pose_MTVC[0].any(axis=(1, 2)).tolist() == [t not in (3, NOBODY, 7) for t in range(FRAMES)]
    assert np.allclose(sample.pose_MTVC[0, 6], body(6), atol=0.01)


def test_openpose_of_images_counts_from_the_first(tmp_path: Path) -> None:
    videos = videos_of(tmp_path / "videos", "walk/a")
    for t in range(FRAMES):
        dump(tmp_path / "poses" / f"a_{t + 1:06d}_keypoints.json", {"people": [{"pose_keypoints_2d": flat(body(t, 60, 25))}]})
    sample = packed(tmp_path, videos=videos, poses=tmp_path / "poses", format="openpose").sample(0)
    assert np.allclose(sample.pose_MTVC[0], [body(t, 60, 25) for t in range(FRAMES)], atol=0.01)


def test_a_cut_video_is_not_hidden_by_frames_that_a_program_leaves_out(tmp_path: Path) -> None:
    """Poses that end with the last person do not say how many frames the video should have."""
    videos = tmp_path / "videos"
    (videos / "walk").mkdir(parents=True)
    whole = write_video(tmp_path / "a.mkv", 90, options={"g": "10", "crf": "12"})
    (videos / "walk" / "a.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    write_yolo(tmp_path / "poses", "a")
    dataset = open_dataset("poses-json", videos=videos, poses=tmp_path / "poses", format="yolo")
    with pytest.raises(UserError, match=r"a\.mkv: cut short, it ends after"):
        pack(dataset, tmp_path / "out", PackOptions(workers=1, size=96))


def test_openpose_states_coordinates_of_zero_to_one(tmp_path: Path) -> None:
    """--keypoint_scale 3; that of -1..1 is refused."""
    videos = videos_of(tmp_path / "videos", "walk/a")

    def write(scale: np.ndarray, shift: float) -> None:
        for t in range(FRAMES):
            joints = body(t, num_joints=25) * scale + shift
            dump(tmp_path / "poses" / f"a_{t:012d}_keypoints.json", {"people": [{"pose_keypoints_2d": flat(joints)}]})

    write(1 / np.array([WIDTH, HEIGHT]), 0)
    sample = packed(tmp_path, videos=videos, poses=tmp_path / "poses", format="openpose").sample(0)
    assert np.abs(sample.pose_MTVC[0, 3] - body(3, num_joints=25)).max() < 0.02
    write(2 / np.array([WIDTH, HEIGHT]), -1)
    with pytest.raises(UserError, match=r"coordinates of -1\.\.1; expected pixels"):
        open_dataset("poses-json", videos=videos, poses=tmp_path / "poses", format="openpose")


def test_mediapipe_landmarks_of_the_older_interface(tmp_path: Path) -> None:
    """mp.solutions.pose: one person, as a message or a plain list, null for nobody."""
    marks = landmarks(body(0, num_joints=33))
    dump(tmp_path / "a.json", {"frames": [marks, None, {"landmark": marks}, {"pose_landmarks": {"landmark": marks}}, [], {}]})
    found = PARSERS["mediapipe"](str(tmp_path / "a.json"), "", 33)
    assert [len(frame) for frame in found.frames] == [1, 0, 1, 1, 0, 0] and found.relative and found.complete


NAN_JOINT = {"x": [10.0, float("nan")], "y": [20.0, float("nan")], "visible": [0.9, 0.0]}


@pytest.mark.parametrize(("form", "file", "content"), [
    ("openpose", "a_000000000000_keypoints.json", {"people": [{"pose_keypoints_2d": [10, 20, 0.9, *[float("nan")] * 3]}]}),
    ("yolo", "a.json", [[{"keypoints": NAN_JOINT}]]),
])
def test_a_joint_that_is_no_number_does_not_make_pixels_parts_of_the_picture(
    tmp_path: Path, form: str, file: str, content: Any
) -> None:
    dump(tmp_path / file, content)
    assert not PARSERS[form](str(tmp_path if form == "openpose" else tmp_path / file), "a", 2).relative


@pytest.mark.parametrize(("form", "content"), [
    ("mediapipe", [[{"x": 0.2, "y": 0.3, "visibility": None}, {"x": 0.4, "y": 0.5, "visibility": 0.9}]]),
    ("mmpose", [{"frame_id": 0, "instances": [{"keypoints": [[20, 30], [40, 50]], "keypoint_scores": [None, 0.9],
                                               "bbox": [[7, 7, 7, 7]]}]}]),
    ("yolo", [[{"keypoints": {"x": [20, 40], "y": [30, 50], "visible": [None, 0.9]}, "confidence": float("nan"),
                "box": {"x1": 0, "y1": 0, "x2": 0, "y2": 0}}]]),
    ("coco", {"images": [{"id": 1, "file_name": "1.jpg"}],
              "annotations": [{"image_id": 1, "keypoints": [20, 30, None, 40, 50, 0.9], "bbox": [0, 0, 0, 0]}]}),
    ("alphapose", [{"image_id": "0.jpg", "keypoints": [20, 30, None, 40, 50, 0.9], "score": float("nan"), "box": [-1] * 4}]),
])
def test_a_score_that_is_null_and_an_empty_box_are_none(tmp_path: Path, form: str, content: Any) -> None:
    """As a program without scores writes none, which counts as 1, and one without boxes: the person is there all the same."""
    dump(tmp_path / "a.json", content)
    pose = read_poses(str(tmp_path / "a.json"), form, "a", 2, None, 1, 0.3)
    assert pose.pose_MTVC.all() and pose.score_MTV is not None and np.allclose(pose.score_MTV, [[[1, 0.9]]])
    assert pose.box_T4 is None


@pytest.mark.parametrize(("form", "file", "content", "message"), [
    ("coco", "a.json", "[]", "a list of results without 'images'"),
    ("coco", "a.json", '{"images": [{"id": 1}]}', "expected an object with 'file_name'"),
    ("coco", "a.json", '{"images": [{"file_name": "1.jpg"}]}', "expected an object with 'id'"),
    ("coco", "a.json", '{"images": [{"id": 3, "file_name": "1.jpg"}, {"id": 3, "file_name": "2.jpg"}]}', "images have id 3"),
    ("coco", "a.json", '{"images": [{"id": 3, "file_name": "1.jpg"}], "annotations": [{"image_id": "3"}]}', "image_id .3. and"),
    ("coco", "a.json", "{", "not JSON"),
    ("mmpose", "a.json", '[{"frame_id": 0, "instances": [{"keypoints": [[1, 2]]}]}]', "with 'keypoint_scores'"),
    ("mmpose", "a.json", '[{"frame_id": 0, "instances": []}, {"frame_id": 2, "instances": []}]', "expected every frame in"),
    ("mmpose", "a.json", '[{"frame_id": 0, "instances": [{"keypoints": [[1, 2, 3]], "keypoint_scores": [1]}]}]', "3 coord"),
    ("mmpose", "a.json", '{"instance_info": 3}', "expected a list of frames, found int"),
    ("alphapose", "a.json", '[{"image_id": "x.jpg", "keypoints": [1, 2, 3]}]', "'x.jpg' has no frame number"),
    ("alphapose", "a.json", '[{"image_id": "1.jpg", "keypoints": [1, 2]}]', "expected keypoints as numbers x, y, score"),
    ("alphapose", "a.json", '[{"image_id": "1.jpg", "keypoints": ["a", "b", "c"]}]', "expected keypoints as numbers"),
    ("openpose", "a_000000000000_keypoints.json", '{"people": [{"pose_keypoints_2d": [1, 2]}]}', "json: expected keypoints"),
    ("openpose", "a_000000000000_keypoints.json", "[]", "expected an object with 'people'"),
    ("yolo", "a_1.txt", "0 0.5 0.5 0.1 0.1 0.5 0.5 1\n", "line 1: expected a class, a box and 17 joints .* found 8 numbers"),
    ("yolo", "a_1.txt", "person\n", "found 1 numbers"),
    ("yolo", "a.json", '[[{"keypoints": {"x": [1], "y": [1, 2]}}]]', "expected keypoints x, y and visible"),
    ("mediapipe", "a.json", '[{"poseLandmarks": [{"x": 0.1, "y": 0.6}]}]', "frame 0: expected an object with 'pose_landmarks'"),
    ("mediapipe", "a.json", "[[[3]]]", "expected an object with 'x', found 3"),
    ("mediapipe", "a.json", '[[{"x": 0.1, "y": -0.6}, {"x": -0.2, "y": 0.8}, {"x": 0, "y": 0.8}], []]', "2 of 3 .* as world "),
    ("npz", "a.npz", "PK", r"not a readable \.npz"),
    ("openpose", "other.txt", "", "no openpose poses in it"),
])
def test_odd_files_are_named(tmp_path: Path, form: str, file: str, content: str, message: str) -> None:
    """An unreadable file ends the reading if it is the only one; among others only its clip is left out."""
    videos = videos_of(tmp_path / "videos", "walk/a")
    (tmp_path / "poses").mkdir()
    (tmp_path / "poses" / file).write_text(content)
    with pytest.raises(UserError, match=message):
        open_dataset("poses-json", videos=videos, poses=tmp_path / "poses", format=form)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["yolo", "mmpose"])
def test_pose_files_with_a_mark_are_read(tmp_path: Path, form: str, encoding: str) -> None:
    joints = "".join(f" {x / 40} {x / 20} 1" for x in range(1, 18))
    keypoints = [[20 + x, 10 + 3 * x] for x in range(17)]
    person = {"keypoints": keypoints, "keypoint_scores": [1] * 17, "bbox_score": 0.9}
    file, text = {"yolo": ("a_1.txt", f"0 0.5 0.5 0.1 0.1{joints}\n"),
                  "mmpose": ("a.json", json.dumps([{"frame_id": 0, "instances": [person]}]))}[form]
    poses = []
    for folder, name in (("plain", "utf-8"), ("marked", encoding)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(text.encode(name))
        path = tmp_path / folder if form == "yolo" else tmp_path / folder / file
        poses.append(read_poses(str(path), form, "a", 17, None, 2, 0.3).pose_MTVC)
    assert poses[0].any() and np.array_equal(*poses)


def test_an_odd_file_among_good_ones_is_one_skipped_clip(tmp_path: Path) -> None:
    videos = videos_of(tmp_path / "videos", "walk/a", "walk/b", "walk/c")
    write_mmpose(tmp_path / "poses", "b")
    for name, count in (("a", 0), ("c", 20)):
        frames = [{"frame_id": t, "instances": []} for t in range(count)] or [{"frame_id": 0, "instances": 3}]
        dump(tmp_path / "poses" / f"{name}.json", frames)
    shards = packed(tmp_path, videos=videos, poses=tmp_path / "poses", format="mmpose")
    assert shards.manifest.splits == {"train": ["walk%2Fb"]}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()]
    assert "expected a list of instances, found int" in reasons[0] and "8 video frames but 20 poses" in reasons[1]


@pytest.mark.parametrize("form", ["coco", "npz"])
def test_a_file_that_is_no_pose_file_is_one_skipped_clip(tmp_path: Path, form: str) -> None:
    videos = videos_of(tmp_path / "videos", "walk/a", "walk/b")
    WRITERS[form][1](tmp_path / "poses", "b")
    if form == "coco":
        dump(tmp_path / "poses" / "a.json", {"images": [{"id": 1}], "annotations": []})
    else:
        with (tmp_path / "poses" / "a.npz").open("wb") as file:  # one array, as np.save writes it
            np.save(file, np.zeros(3))
    shards = packed(tmp_path, videos=videos, poses=tmp_path / "poses", format=form)
    assert shards.manifest.splits == {"train": ["walk%2Fb"]}
    (line,) = (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith(f"{tmp_path / 'poses' / 'a'}.")


@pytest.mark.parametrize(("arrays", "message"), [
    ({"keypoints": np.zeros(3)}, "has no 'keypoint'; it has keypoints"),
    ({"keypoint": np.zeros((FRAMES, 17))}, r"keypoint is float64 of shape \(8, 17\), expected numbers"),
    ({"keypoint": np.zeros((1, FRAMES, 17, 3))}, r"of shape \(1, 8, 17, 3\)"),
    ({"keypoint": np.ones((FRAMES, 17, 2)), "img_shape": np.array([1, 2, 3])}, r"img_shape has shape \(3,\)"),
])
def test_arrays_of_other_shapes_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    videos = videos_of(tmp_path / "videos", "walk/a")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_dataset("poses-json", videos=videos, poses=tmp_path / "a.npz", format="npz")


def test_resume_refuses_other_poses_in_a_folder_of_frames(tmp_path: Path) -> None:
    """The plan covers the content of a folder with a file per frame."""
    from svdata2vec.shards.packing.plan import make_plan

    videos = videos_of(tmp_path / "videos", "walk/a")
    write_openpose(tmp_path / "poses", "a")

    def skeletons() -> object:
        dataset = open_dataset("poses-json", videos=videos, poses=tmp_path / "poses", format="openpose")
        return make_plan(dataset, PackOptions(workers=1))["skeletons"]

    before = skeletons()
    assert skeletons() == before
    dump(tmp_path / "poses" / "a_000000000003_keypoints.json", {"people": []})
    assert skeletons() != before
