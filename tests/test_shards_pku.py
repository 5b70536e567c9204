"""PKU-MMD in miniature, laid out like the official archives: the frames and joints that a line of a label file cuts out."""

import os
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from shards_data import clip_of, left_out, packed, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing import clip as packclip
from svdata2vec.shards.packing.clip import resize_square
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pku import read_pku_skeleton
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.video import VideoReader

HEIGHT = 108  # of a video of the shape of 1920x1080


def pku_set(root: Path) -> dict[str, object]:
    """Two long videos (20 frames) with two actions each; one person 2 m away, who walks to the right."""
    for name in ("video", "label", "skeleton"):
        (root / name).mkdir()
    for stem in ("0002-L", "0003-M"):
        write_video(root / "video" / f"{stem}.avi", 20, codec="mpeg4", height=HEIGHT)
        (root / "label" / f"{stem}.txt").write_text("34,2,8,1\n51,10,20,2\n")
        rows = []
        for t in range(20):
            person = np.stack([np.linspace(-0.2, 0.2, 25) + 0.01 * t, np.linspace(0.8, -0.8, 25), np.full(25, 2.0)], 1)
            rows.append(" ".join(f"{x:.6f}" for x in [*person.reshape(-1), *np.zeros(75)]))
        (root / "skeleton" / f"{stem}.txt").write_text("\n".join(rows) + "\n")
    (root / "cross-subject.txt").write_text("Training videos:\n0002-L, 0002-M, \nValidataion videos:\n0003-M, 0003-L\n")
    return {"videos": root / "video", "labels": root / "label", "skeletons": root / "skeleton",
            "splits": {"xsub": root / "cross-subject.txt"}}


def test_pku_mmd(tmp_path: Path) -> None:
    dataset = open_dataset("pku-mmd", **pku_set(tmp_path))
    assert dataset.splits == {"xsub_train": ["0002-L_000", "0002-L_001"], "xsub_val": ["0003-M_000", "0003-M_001"]}
    shards = packed(dataset, tmp_path)
    sample = clip_of(shards, "0003-M_001")
    assert (shards.manifest.classes[sample.label], sample.meta.num_frames, sample.meta.camera) == ("writing", 10, 2)
    assert shards.manifest.classes[33] == "standing up" and len(shards.manifest.classes) == 51
    pose = read_pku_skeleton(str(tmp_path / "skeleton" / "0003-M.txt"), 10, 20)
    spine_x = 959.5 + 1081.37 * (-0.2 + 0.1 + 0.0507) / 2.0
    assert np.allclose(pose.pose_MTVC[0, 0, 0], [spine_x, 569.0 - 1081.37 * 0.4], atol=0.01)
    assert not pose.pose_MTVC[1].any(), "the second person is absent"
    first = clip_of(shards, "0002-L_000")
    whole = clip_of(shards, "0002-L_001")
    assert first.meta.num_frames == 6 and first.video is not None and whole.video is not None
    assert bytes(first.video[:2000]) != bytes(whole.video[:2000])


def test_pku_projection_fits_a_real_sensor(tmp_path: Path) -> None:
    """The first two joints of NTU's S001C001P001R001A001, which gives metres and colour pixels of the same sensor."""
    metres = [0.2181153, 0.1725972, 3.785547, 0.2323292, 0.4326636, 3.714767]
    (tmp_path / "a.txt").write_text(" ".join(map(str, [*metres, 0.1, 0.1, 0.05, *[0] * 141])) + "\n")
    joints = read_pku_skeleton(str(tmp_path / "a.txt"), 0, 1).pose_MTVC[0, 0, :3]
    assert np.abs(joints[:2] - [[1036.233, 519.1677], [1041.918, 444.3235]]).max() < 2
    assert not joints[2].any(), "nearer than a Kinect sees: no joint"


def test_a_skeleton_that_was_corrected_is_read_again(tmp_path: Path) -> None:
    """Its rows are cached for the next clip of the video: a second packing in the same process got those of the first."""
    file = tmp_path / "a.txt"
    for second, metres in enumerate((1.0, 2.0)):
        file.write_text(" ".join([str(metres)] * 150) + "\n")
        os.utime(file, (second, second))
        found = read_pku_skeleton(str(file), 0, 1).pose_MTVC[0, 0, 0]
        assert found == pytest.approx([959.5 + 1081.37 * (metres + 0.0507) / metres, 569 - 1081.37])


def test_pku_clips_hold_the_frames_of_their_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("pku-mmd", **pku_set(tmp_path))
    with VideoReader(dataset.clips[0].video) as reader:
        frames = [frame.copy() for frame in reader.crops(0, 0, 192)]
    with VideoReader(dataset.clips[0].video) as reader:
        first = [frame.copy() for frame in islice(reader.crops(0, 0, 192, start=2), 6)]
        second = [frame.copy() for frame in reader.crops(0, 0, 192, start=10)]
        with pytest.raises(ValueError, match="frame 3 was passed, the next one is 20"):
            next(reader.crops(0, 0, 192, start=3))
    assert len(frames) == 20 and np.array_equal(first, frames[2:8]) and np.array_equal(second, frames[10:])
    opened: list[str] = []
    monkeypatch.setattr(packclip, "VideoReader", lambda path: opened.append(Path(path).name) or VideoReader(path))
    shards = packed(dataset, tmp_path)
    assert sorted(opened) == ["0002-L.avi", "0003-M.avi"], "one pass serves both clips of a video"
    with VideoReader(dataset.clips[0].video) as reader:
        expected = [resize_square(frame, 96) for frame in reader.crops(*square_of(shards, "0002-L_001"), start=10)]
    sample = clip_of(shards, "0002-L_001")
    assert sample.video is not None and sample.offsets is not None
    for t in range(len(expected)):
        coded = np.frombuffer(sample.video[sample.offsets[t] : sample.offsets[t + 1]], np.uint8)
        found = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
        errors = [np.abs(found.astype(int) - other).mean() for other in expected]
        assert np.argmin(errors) == t


def square_of(shards: ShardSet, key: str) -> tuple[int, int, int]:
    """The stored square (x, y, side) of a clip."""
    a = clip_of(shards, key).meta.packed_to_source
    return round(a[0, 2]), round(a[1, 2]), round(a[0, 0] * shards.manifest.packed_size)


@pytest.mark.parametrize(("text", "key", "reason"), [
    ("1,2\n1,2,5,1\n", "0002-L_000", "0002-L.txt, line 1: expected class,start,end,confidence, found '1,2'"),
    ("1,2,5,1\n\n52,6,9,1\n", "0002-L_001", "0002-L.txt, line 3: expected class 1..51 and start < end, found '52,6,9,1'"),
    ("0,2,5,1\n1,2,5,1\n", "0002-L_000", "0002-L.txt, line 1: expected class 1..51 and start < end, found '0,2,5,1'"),
    ("1,5,5,1\n1,2,5,1\n", "0002-L_000", "0002-L.txt, line 1: expected class 1..51 and start < end, found '1,5,5,1'"),
])
def test_a_wrong_line_of_a_label_file_leaves_out_its_clip(tmp_path: Path, text: str, key: str, reason: str) -> None:
    sources = pku_set(tmp_path)
    (tmp_path / "label/0002-L.txt").write_text(text)
    dataset = open_dataset("pku-mmd", **sources)
    assert [(entry.key, entry.reason.rpartition("/")[2]) for entry in dataset.skipped] == [(key, reason)]
    assert len(dataset.clips) == 3


def test_frames_that_two_lines_cut_out_are_one_clip(tmp_path: Path) -> None:
    """A repeated line, also with another confidence or class; a different span is another action."""
    sources = pku_set(tmp_path)
    (tmp_path / "label/0002-L.txt").write_text("34,2,8,1\n51,10,20,2\n34,2,8,1\n34,2,8,2\n\n33,2,8,1\n34,2,9,1\n")
    dataset = open_dataset("pku-mmd", **sources)
    spans = [(clip.key, clip.label, clip.start_frame, clip.end_frame) for clip in dataset.clips if clip.key < "0003"]
    assert spans == [("0002-L_000", 33, 2, 8), ("0002-L_001", 50, 10, 20), ("0002-L_005", 33, 2, 9)]
    file = tmp_path / "label/0002-L.txt"
    assert [(entry.key, entry.reason) for entry in dataset.skipped] == [
        (f"0002-L_{count:03d}", f"{file}, line {line}: has the frames of '{file}, line 1', which is taken; found {text!r}")
        for count, line, text in ((2, 3, "34,2,8,1"), (3, 4, "34,2,8,2"), (4, 6, "33,2,8,1"))]
    assert packed(dataset, tmp_path).manifest.splits["xsub_train"] == ["0002-L_000", "0002-L_001", "0002-L_005"]


def test_a_clip_of_the_first_frame_alone_seen_from_the_right(tmp_path: Path) -> None:
    sources = pku_set(tmp_path)
    for path in [*tmp_path.glob("*/0002-L.*")]:
        path.rename(path.with_name(f"0002-R{path.suffix}"))
    (tmp_path / "label/0002-R.txt").write_text("1,0,1,1\n")
    clip = open_dataset("pku-mmd", **sources).clips[0]
    assert (clip.key, clip.label, clip.start_frame, clip.end_frame, clip.camera) == ("0002-R_000", 0, 0, 1, 3)


def test_a_video_in_two_folders_is_named(tmp_path: Path) -> None:
    sources = pku_set(tmp_path)
    copy = tmp_path / "video" / "more" / "0002-L.avi"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "video" / "0002-L.avi").read_bytes())
    dataset = open_dataset("pku-mmd", **sources)
    assert len(dataset.clips) == 4 and [entry.key for entry in dataset.skipped] == ["0002-L_000 (again)", "0002-L_001 (again)"]
    assert dataset.skipped[0].reason.startswith(f"{copy} has the name of another video, ")


def test_pku_split_file_of_another_kind(tmp_path: Path) -> None:
    sources = pku_set(tmp_path)
    (tmp_path / "cross-subject.txt").write_text("hello\n")
    with pytest.raises(UserError, match="expected a line 'Training videos:' and one with names"):
        open_dataset("pku-mmd", **sources)


def test_pku_names_of_part_two(tmp_path: Path) -> None:
    sources = pku_set(tmp_path)
    for path in [*(tmp_path / "video").iterdir(), *(tmp_path / "label").iterdir(), *(tmp_path / "skeleton").iterdir()]:
        path.rename(path.with_name(path.name.replace("0002", "A01N02").replace("0003", "A12N03")))
    (tmp_path / "cross-subject.txt").write_text("Training videos:\nA01N02-L, A01N02-M\nValidation videos:\nA12N03-M\n")
    dataset = open_dataset("pku-mmd", **sources)
    assert dataset.splits == {"xsub_train": ["A01N02-L_000", "A01N02-L_001"], "xsub_val": ["A12N03-M_000", "A12N03-M_001"]}
    assert packed(dataset, tmp_path).manifest.num_clips == 4


def test_pku_skeleton_faults(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(" ".join(["1"] * 150) + "\n")
    with pytest.raises(UserError, match=r"b\.txt: 1 frames, the label ends at frame 2"):
        read_pku_skeleton(str(tmp_path / "b.txt"), 0, 2)


LINE = " ".join(["1"] * 150)


@pytest.mark.parametrize(("text", "message"), [
    ("1 2 3\n4 5 6\n", r"line 1: 3 numbers, expected 150 \(x, y, z of 25 joints of two persons\)"),
    (f"{LINE}\n{LINE} 1\n", "line 2: 151 numbers"),
    (f"{LINE}\n\n{LINE}\n", "line 2: 0 numbers"),
    ("", "line 1: 0 numbers"),
    (f"{LINE}\n{LINE[:-1]}x\n", "expected 150 numbers in every line .*'x'"),
])
def test_a_wrong_line_of_a_skeleton_is_named(tmp_path: Path, text: str, message: str) -> None:
    """An empty line too: passed over, it would give every later frame the joints of the one before."""
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=rf"a\.txt(, |: ){message}"):
        read_pku_skeleton(str(tmp_path / "a.txt"), 0, 1)


def test_texts_that_other_systems_wrote_are_read(tmp_path: Path) -> None:
    """With a byte-order mark, in UTF-16, with line ends of Windows, and with empty lines at the end."""
    sources = pku_set(tmp_path)
    before = open_dataset("pku-mmd", **sources)
    for path in [tmp_path / "cross-subject.txt", *(tmp_path / "skeleton").iterdir(), *(tmp_path / "label").iterdir()]:
        text = path.read_text() + "\n\n"
        path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig" if "0002" in path.name else "utf-16"))
    dataset = open_dataset("pku-mmd", **sources)
    assert dataset.splits == before.splits and not dataset.skipped
    assert packed(dataset, tmp_path).manifest.num_clips == 4


def test_labels_and_skeletons_may_lie_deeper(tmp_path: Path) -> None:
    sources = pku_set(tmp_path)
    before = open_dataset("pku-mmd", **sources)
    for name in ("label", "skeleton"):
        (tmp_path / name).rename(tmp_path / "deeper")
        (tmp_path / name).mkdir()
        (tmp_path / "deeper").rename(tmp_path / name / "Train_Label_PKU_final")
    after = open_dataset("pku-mmd", **sources)
    assert [clip.key for clip in after.clips] == [clip.key for clip in before.clips] and not after.skipped


@pytest.mark.parametrize(("file", "keys", "reason"), [
    ("video/0002-L.avi", ["0002-L_000", "0002-L_001"], "no video '0002-L.avi' below"),
    ("skeleton/0002-L.txt", ["0002-L_000", "0002-L_001"], "no skeleton '0002-L.txt' below"),
    ("label/0002-L.txt", ["0002-L"], "no label file '0002-L.txt'"),
])
def test_actions_of_which_a_file_is_missing_are_listed(tmp_path: Path, file: str, keys: list[str], reason: str) -> None:
    sources = pku_set(tmp_path)
    (tmp_path / file).unlink()
    dataset = open_dataset("pku-mmd", **sources)
    assert [entry.key for entry in dataset.skipped] == keys and dataset.skipped[0].reason.startswith(reason)
    assert [clip.key for clip in dataset.clips] == ["0003-M_000", "0003-M_001"]
    assert dataset.splits["xsub_train"] == keys, "skipped.jsonl names the split"
    source = {"video": "label/0002-L.txt"}.get(file.split("/")[0], "video/0002-L.avi")
    assert left_out(packed(dataset, tmp_path).root) == dict.fromkeys(keys, (str(tmp_path / source), ["xsub_train"]))


def test_a_label_file_without_a_line_is_listed(tmp_path: Path) -> None:
    sources = pku_set(tmp_path)
    (tmp_path / "label/0002-L.txt").write_text("\n")
    skipped = open_dataset("pku-mmd", **sources).skipped
    assert [entry.key for entry in skipped] == ["0002-L"] and "0002-L.txt: no line; expected class" in skipped[0].reason


@pytest.mark.parametrize("text", [
    "Training videos: 0002-L, 0002-M\nTest videos: 0003-M\n",
    "training videos\n0002-L.avi\n0002-M.avi\n\nvalidation\n0003-M.avi\n",
    "Training videos:\n0002-L\n",
])
def test_split_files_of_other_forms(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    sources = pku_set(tmp_path)
    (tmp_path / "cross-subject.txt").write_text(text)
    assert open_dataset("pku-mmd", **sources).splits == {
        "xsub_train": ["0002-L_000", "0002-L_001"], "xsub_val": ["0003-M_000", "0003-M_001"]}
    assert "neither" not in caplog.text


def test_split_files_are_held_against_the_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A video that the file lists nowhere is in no split: a misspelt training video would be tested on."""
    sources = pku_set(tmp_path)
    file = tmp_path / "cross-subject.txt"
    file.write_text("Training videos:\n0002-L, 0092-L\nValidation videos:\n0004-M\n")
    assert open_dataset("pku-mmd", **sources).splits == {"xsub_train": ["0002-L_000", "0002-L_001"], "xsub_val": []}
    assert "lists videos that are not there: 0004-M, 0092-L" in caplog.text
    assert "videos in neither list, and so in neither split: 0003-M" in caplog.text
    file.write_text("Training videos:\nA01N01-L\nValidation videos:\nA01N02-L\n")
    with pytest.raises(UserError, match="lists A01N01-L and the like, none of the videos there are, such as 0002-L"):
        open_dataset("pku-mmd", **sources)
    file.write_text("Training videos:\n0002-L\nValidation videos:\n0003-M, 0002-L\n")
    with pytest.raises(UserError, match="lists 0002-L for training and for validation; remove one"):
        open_dataset("pku-mmd", **sources)


@pytest.mark.parametrize(("frames", "slack", "reason"), [
    (18, 2, None), (10, 2, "10 frames but 20 poses of the whole video.*own frame rate.*--pose-slack 10"), (24, 4, None)])
def test_a_video_at_another_frame_rate_is_refused(tmp_path: Path, frames: int, slack: int, reason: str | None) -> None:
    """Its frames 2 to 8 exist, but show a later scene: only the length of the whole video reveals it."""
    sources = pku_set(tmp_path)
    for stem in ("0002-L", "0003-M"):
        write_video(tmp_path / "video" / f"{stem}.avi", frames, codec="mpeg4", height=HEIGHT)
        (tmp_path / "label" / f"{stem}.txt").write_text("34,2,8,1\n")
    options = PackOptions(workers=1, size=96, pose_slack=slack)
    if reason is None:
        assert pack(open_dataset("pku-mmd", **sources), tmp_path / "packed", options).num_clips == 2
    else:
        with pytest.raises(UserError, match=reason):
            pack(open_dataset("pku-mmd", **sources), tmp_path / "packed", options)


@pytest.mark.parametrize(("container", "codec"), [
    ("avi", "mpeg4"), ("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_a_video_states_its_frames_before_it_is_read(tmp_path: Path, container: str, codec: str) -> None:
    path = write_video(tmp_path / f"a.{container}", 23, codec=codec)
    with VideoReader(path) as reader:
        assert (reader.stated_frames, reader.position) == (23, 0)


def test_a_split_file_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = pku_set(tmp_path)
    words = [f"--{name}={sources[name]}" for name in ("videos", "labels", "skeletons")]
    assert main(["shard", "pku-mmd", str(tmp_path / "out"), *words, "--splits", str(tmp_path / "cross-subject.txt")]) == 2
    assert "cross-subject.txt'; expected NAME FILE [NAME FILE ...];" in capsys.readouterr().err
