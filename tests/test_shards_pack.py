"""Packing and reading back: pixels, joints, index, manifest, determinism, tars as other libraries read them."""

import hashlib
import itertools
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from shards_data import HEIGHT, WIDTH, block_pose, block_xy, folder_bytes, frame_picture, write_motion_set, write_video

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing.pack import PackOptions, Progress, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.stats import set_statistics
from svdata2vec.shards.reading.verify import verify

OPTIONS = PackOptions(workers=1, size=96, clips_per_shard=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Six clips of 8 to 13 frames, annotated at twice the video's resolution."""
    return read_pyskl(*write_motion_set(tmp_path_factory.mktemp("motion"), scale=2.0))


@pytest.fixture(scope="module")
def packed(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The six clips in two shards."""
    root = tmp_path_factory.mktemp("packed") / "set"
    pack(dataset, root, OPTIONS)
    return ShardSet.open(root)


def decoded(sample_video: memoryview, offsets: np.ndarray) -> list[np.ndarray]:
    """RGB frames of a jpeg clip."""
    parts = [np.frombuffer(sample_video[a:b], np.uint8) for a, b in itertools.pairwise(offsets)]
    return [cv2.cvtColor(cv2.imdecode(part, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for part in parts]


def test_pixels_lie_where_the_map_says(packed: ShardSet) -> None:
    for row in range(len(packed)):
        sample = packed.sample(row)
        number = int(sample.key[-3:]) - 1
        assert sample.offsets is not None and sample.video is not None
        frames = decoded(sample.video, sample.offsets)
        assert len(frames) == sample.meta.num_frames == 8 + number
        x, y = sample.meta.packed_to_source[:, 2].astype(int)
        assert np.array_equal(sample.meta.packed_to_source[:, :2], np.eye(2)), "small people are not resized"
        for t, frame in enumerate(frames):
            padded = np.pad(frame_picture(number, t), ((200, 200), (200, 200), (0, 0)))
            expected = padded[200 + y : 296 + y, 200 + x : 296 + x]
            error = np.abs(frame.astype(int) - expected).mean()
            assert error < 4, f"clip {sample.key} frame {t}: mean error {error}"


def test_joints_are_in_video_pixels(packed: ShardSet) -> None:
    sample = packed.sample(int(packed.find(["S001C001P001R001A001"])[0]), video=False)
    assert sample.video is None and sample.offsets is None
    assert sample.pose_MTVC.dtype == np.float32
    assert np.abs(sample.pose_MTVC - block_pose(8)).max() < 0.2  # float16 at twice the size
    assert sample.score_MTV is not None and sample.score_MTV.dtype == np.float16
    x, y = block_xy(3)
    assert np.abs(sample.box_T4[3] - [x + 2.4, y + 4, x + 21.6, y + 36]).max() < 0.2
    assert (sample.meta.width, sample.meta.height, sample.meta.fps) == (WIDTH, HEIGHT, 30.0)


def test_rows_follow_the_split(packed: ShardSet) -> None:
    keys = [packed.index["key"][row].decode() for row in packed.rows("half_val")]
    assert keys == ["S001C001P001R001A001", "S001C001P001R001A003", "S001C001P001R001A005"]
    assert len(packed.rows("train")) == len(packed) == 6
    assert packed.index["label"][packed.rows("train")].tolist() == [0, 1, 2, 0, 1, 2]
    assert packed.index["frames"][packed.rows("train")].tolist() == [8, 9, 10, 11, 12, 13]
    assert packed.rows("train").tolist() != sorted(packed.rows("train")), "packed in random order"
    with pytest.raises(UserError, match="no split 'test'; it has train, half_val"):
        packed.rows("test")
    with pytest.raises(UserError, match="no clip 'nobody' in the index"):
        packed.find(["nobody"])
    assert packed.find([]).dtype == np.int64


def test_manifest_describes_the_folder(packed: ShardSet, dataset: DataSet) -> None:
    manifest = packed.manifest
    assert (manifest.codec, manifest.packed_size, manifest.num_clips) == ("jpeg", 96, 6)
    assert manifest.classes == ("stand", "walk", "run")
    assert manifest.layout == layout("coco17")
    assert manifest.components == ("jpegs", "offsets.npy", "pose.npy", "score.npy", "box.npy", "json")
    for shard in manifest.shards:
        content = (packed.root / shard.name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (shard.sha256, shard.bytes)
    assert sorted(path.name for path in packed.root.iterdir()) == [
        "index.npy", "manifest.json", "shard-000000.tar", "shard-000001.tar", "skipped.jsonl", "sums.npy"]
    fields = json.loads((packed.root / "manifest.json").read_text())
    assert fields["format"] == "svdata2vec-shards" and fields["version"] == 2
    assert fields["splits"]["train"] == dataset.splits["train"]


def test_tars_are_plain_and_read_by_webdataset(packed: ShardSet) -> None:
    tars = [str(packed.root / shard.name) for shard in packed.manifest.shards]
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [key.decode() for key in packed.index["key"]]
    for row, sample in enumerate(found):
        parts = packed.read(row, packed.manifest.components)
        assert {name: bytes(part) for name, part in parts.items()} == {
            name: sample[name] for name in packed.manifest.components}
    with tarfile.open(tars[0]) as tar:
        for member in tar:
            assert (member.mode, member.mtime, member.uid, member.pax_headers) == (0o444, 0, 0, {})


def test_bytes_do_not_depend_on_workers(dataset: DataSet, packed: ShardSet, tmp_path: Path) -> None:
    seen: list[Progress] = []
    pack(dataset, tmp_path / "two", replace(OPTIONS, workers=2), progress=lambda state: seen.append(replace(state)))
    assert folder_bytes(tmp_path / "two") == folder_bytes(packed.root)
    assert len(seen) == 2 and seen[0].clips_done < 6
    assert (seen[-1].clips_done, seen[-1].frames_done, seen[-1].clips_total) == (6, 63, 6)
    assert seen[-1].step_seconds["decode"] > 0


def test_clips_packed_by_an_earlier_run_do_not_count_as_work(dataset: DataSet, packed: ShardSet, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: Progress) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        pack(dataset, tmp_path / "out", OPTIONS, progress=stop)
    seen: list[Progress] = []
    pack(dataset, tmp_path / "out", replace(OPTIONS, resume=True), progress=lambda state: seen.append(replace(state)))
    before, end = seen
    first = sum(packed.sample(row).meta.num_frames for row in range(before.clips_done))
    assert (before.resumed_clips, before.resumed_frames) == (before.clips_done, first) and first > 0
    assert (before.frames_per_second, before.remaining_seconds) == (0, None)
    assert end.frames_per_second == pytest.approx((63 - first) / end.elapsed_seconds) and end.remaining_seconds == 0
    assert Progress(100, clips_done=40, resumed_clips=30, elapsed_seconds=5).remaining_seconds == 30


def test_seed_changes_the_order_only(dataset: DataSet, packed: ShardSet, tmp_path: Path) -> None:
    pack(dataset, tmp_path / "other", replace(OPTIONS, seed=1))
    other = ShardSet.open(tmp_path / "other")
    assert other.index["key"].tolist() != packed.index["key"].tolist()
    assert sorted(other.index["key"].tolist()) == sorted(packed.index["key"].tolist())


def test_shardset_survives_pickling(packed: ShardSet) -> None:
    copy = pickle.loads(pickle.dumps(packed))
    assert bytes(copy.read(2, ["json"])["json"]) == bytes(packed.read(2, ["json"])["json"])


def test_video_alone_has_the_whole_picture_as_box(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 5)
    own = DataSet("own", layout("coco17"), ("x",), {"train": ["a"]}, [ClipAnnotation("a", 0, video)])
    pack(own, tmp_path / "out", OPTIONS)
    sample = ShardSet.open(tmp_path / "out").sample(0)
    assert sample.pose_MTVC.shape == (0, 5, 17, 2)
    assert sample.box_T4.tolist() == [[0, 0, WIDTH, HEIGHT]] * 5
    assert sample.score_MTV is None
    scale = WIDTH / 96
    assert sample.meta.packed_to_source.tolist() == [[scale, 0, 0], [0, scale, (HEIGHT - WIDTH) / 2]]
    assert verify(tmp_path / "out") == []
    figures = set_statistics(ShardSet.open(tmp_path / "out"))
    assert figures.persons_per_clip == {0: 1} and figures.empty_frames == 1.0 and figures.box_height_px.median == HEIGHT


@pytest.mark.parametrize(("changes", "message"), [
    ({"codec": "av1"}, "codec is 'av1': expected 'jpeg' or 'blocks' or 'vp9' or 'h264' or 'hevc' or 'mjpeg' or 'copy'"),
    ({"size": 100}, "size is 100: expected a multiple of 32"),
    ({"quality": 0}, "quality for codec jpeg is 0: expected a number from 1 to 100"),
    ({"codec": "vp9", "quality": 90}, "quality for codec vp9 is 90: expected a number from 0 to 63"),
    ({"codec": "h264", "quality": 52}, "quality for codec h264 is 52: expected a number from 0 to 51"),
    ({"codec": "hevc", "quality": 52}, "quality for codec hevc is 52: expected a number from 0 to 51"),
    ({"codec": "mjpeg", "quality": 0}, "quality for codec mjpeg is 0: expected a number from 1 to 63"),
    ({"luma_bits": 2}, "luma_bits is 2: codec jpeg has no such option, blocks has; leave it out"),
    ({"codec": "copy", "chroma_bits": 3}, "chroma_bits is 3: codec copy has no such option, blocks has; leave it out"),
    ({"codec": "vp9", "chroma": "444"}, "chroma is 444: codec vp9 has no such option, jpeg has; leave it out"),
    ({"gop": 3}, "gop is 3: codec jpeg has no such option, vp9, h264, hevc, mjpeg have; leave it out"),
    ({"codec": "blocks", "quality": 90}, "quality is 90: codec blocks has none but --luma-bits and --chroma-bits"),
    ({"codec": "copy", "quality": 50}, "quality is 50: codec copy encodes nothing; leave it out"),
    ({"codec": "copy", "size": 96}, "size is 96: codec copy has no such option, jpeg, blocks, vp9, h264, hevc, mjpeg have"),
    ({"codec": "blocks", "luma_bits": 4}, "luma_bits is 4: expected a whole number from 2 to 3"),
    ({"clips_per_shard": 0}, "clips_per_shard is 0: expected a whole number from 1 to"),
    ({"workers": 0}, "workers is 0: expected a whole number from 1 to"),
])
def test_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackOptions(**changes)  # type: ignore[arg-type]


def test_open_names_what_is_missing(packed: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; expected one made by"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"manifest\.json: does not exist; expected a folder made by"):
        ShardSet.open(tmp_path)
    (tmp_path / ".parts").mkdir()
    with pytest.raises(UserError, match="the packing is not finished: run it again with --resume"):
        ShardSet.open(tmp_path)
    for name in ("manifest.json", "shard-000000.tar", "shard-000001.tar"):
        (tmp_path / name).write_bytes((packed.root / name).read_bytes())
    with pytest.raises(UserError, match=r"index\.npy: does not exist although the manifest does; copy it again"):
        ShardSet.open(tmp_path)
    (tmp_path / "index.npy").write_bytes((packed.root / "index.npy").read_bytes()[:100])
    with pytest.raises(UserError, match=r"index\.npy: not a readable array"):
        ShardSet.open(tmp_path)
    (tmp_path / "index.npy").write_bytes((packed.root / "index.npy").read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"index\.npy: was changed after packing \(CRC-32\); copy it again or pack again"):
        ShardSet.open(tmp_path)
    (tmp_path / "index.npy").write_bytes((packed.root / "index.npy").read_bytes())
    with pytest.raises(UserError, match=r"sums\.npy: not a readable array"):
        ShardSet.open(tmp_path)
    (tmp_path / "sums.npy").write_bytes((packed.root / "sums.npy").read_bytes())
    (tmp_path / "shard-000001.tar").write_bytes(b"short")
    with pytest.raises(UserError, match=r"shard-000001\.tar: 5 bytes, expected \d+ bytes; copy it again"):
        ShardSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "svdata2vec-shards", "version": 9}')
    with pytest.raises(UserError, match="format version 9, this program reads 2 and older"):
        ShardSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        ShardSet.open(tmp_path)


def test_a_relative_folder_is_found_from_another_one(packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed.root.parent)
    shards = ShardSet.open(packed.root.name)
    pickled = pickle.dumps(shards)
    monkeypatch.chdir(tmp_path)
    assert shards.sample(0).key == pickle.loads(pickled).sample(0).key == packed.sample(0).key


@pytest.mark.parametrize(("name", "key"), [
    ("S001C001P001R001A001", "S001C001P001R001A001"),
    ("Cook.Cleandishes_p02_r00_v02_c03", "Cook-Cleandishes_p02_r00_v02_c03"),
    ("stehen und gehen/ä", "stehen%20und%20gehen%2F%C3%A4"),
])
def test_safe_key(name: str, key: str) -> None:
    assert safe_key(name) == key


def test_safe_key_shortens_long_names() -> None:
    one, two = safe_key("ü" * 300 + "1"), safe_key("ü" * 300 + "2")
    assert one != two and len(one) <= 80 and one.isascii()
