"""PKU-MMD in miniature, as its owner's archives lie: which frames and joints a line of a label file cuts out."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from shards_data import clip_of, packed, write_video

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing import clip as packclip
from svdata2vec.shards.packing.clip import resize_square
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
    (tmp_path / "a.txt").write_text(" ".join(map(str, [*metres, *[0] * 144])) + "\n")
    joints = read_pku_skeleton(str(tmp_path / "a.txt"), 0, 1).pose_MTVC[0, 0, :2]
    assert np.abs(joints - [[1036.233, 519.1677], [1041.918, 444.3235]]).max() < 2


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
])
def test_a_wrong_line_of_a_label_file_leaves_out_its_clip(tmp_path: Path, text: str, key: str, reason: str) -> None:
    sources = pku_set(tmp_path)
    (tmp_path / "label/0002-L.txt").write_text(text)
    dataset = open_dataset("pku-mmd", **sources)
    assert [(entry.key, entry.reason.rpartition("/")[2]) for entry in dataset.skipped] == [(key, reason)]
    assert len(dataset.clips) == 3


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
    (tmp_path / "a.txt").write_text("1 2 3\n4 5 6\n")
    with pytest.raises(UserError, match=r"a\.txt: lines of \(3,\) numbers, expected 150"):
        read_pku_skeleton(str(tmp_path / "a.txt"), 0, 1)
    (tmp_path / "b.txt").write_text(" ".join(["1"] * 150) + "\n")
    with pytest.raises(UserError, match=r"b\.txt: 1 frames, the label ends at frame 9"):
        read_pku_skeleton(str(tmp_path / "b.txt"), 0, 9)
