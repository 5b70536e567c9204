"""Every encoding keeps every frame in order; every kind of source video is read frame by frame as it is shown."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pipeline_factory import clip_parts
from shards_data import (
    HEIGHT,
    WIDTH,
    annotation,
    decoded_frames,
    edit_manifest,
    folder_bytes,
    frame_picture,
    with_cover,
    write_pickle,
    write_video,
)

from svdata2vec.pipeline.reference import psnr
from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.decode import decode_video
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.verify import verify
from svdata2vec.shards.video import VideoReader

FRAMES = 12
OPTIONS = PackOptions(workers=1, size=128)
COPY = PackOptions(workers=1, codec="copy")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """One clip of 12 frames."""
    root = tmp_path_factory.mktemp("one")
    (root / "videos").mkdir()
    write_video(root / "videos" / "a.mp4", FRAMES)
    return read_pyskl(write_pickle(root / "set.pkl", [annotation("a", 0, FRAMES)]), root / "videos")


@pytest.mark.parametrize(("codec", "least_db"), [
    ("jpeg", 36), ("blocks", 32), ("vp9", 32), ("h264", 32), ("hevc", 32), ("mjpeg", 32), ("copy", 36)])
def test_every_codec_keeps_every_frame(dataset: DataSet, tmp_path: Path, codec: str, least_db: float) -> None:
    pack(dataset, tmp_path / "set", COPY if codec == "copy" else replace(OPTIONS, codec=codec))
    shards = ShardSet.open(tmp_path / "set")
    assert verify(tmp_path / "set") == []
    meta = shards.sample(0).meta
    frames = decoded_frames(shards.sample(0))
    assert len(frames) == FRAMES == meta.num_frames
    expected_size = (HEIGHT, WIDTH, 3) if codec == "copy" else (128, 128, 3)
    x, y = meta.packed_to_source[:, 2].astype(int)
    for t, frame in enumerate(frames):
        assert frame.shape == expected_size
        padded = np.pad(frame_picture(0, t), ((200, 200), (200, 200), (0, 0)))
        expected = padded[200 + y : 200 + y + frame.shape[0], 200 + x : 200 + x + frame.shape[1]]
        assert psnr(frame, expected) > least_db, f"frame {t}"
        others = [psnr(frame, padded_crop(other, x, y, frame.shape)) for other in (t - 1, t + 1) if 0 <= other < FRAMES]
        assert psnr(frame, expected) > max(others), f"frame {t} is another one"
    again = tmp_path / "again"
    pack(dataset, again, COPY if codec == "copy" else replace(OPTIONS, codec=codec))
    assert folder_bytes(again) == folder_bytes(tmp_path / "set"), "reproducible"


def padded_crop(number: int, x: int, y: int, shape: tuple[int, ...]) -> np.ndarray:
    """Frame `number` as it should look in the packed square."""
    padded = np.pad(frame_picture(0, number), ((200, 200), (200, 200), (0, 0)))
    return padded[200 + y : 200 + y + shape[0], 200 + x : 200 + x + shape[1]]


def key_frames(video: memoryview) -> int:
    """Number of key frames of a stream."""
    with av.open(BytesIO(video), mode="r") as container:
        return sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc"])
def test_groups_of_pictures(dataset: DataSet, tmp_path: Path, codec: str) -> None:
    for gop, expected in ((0, 1), (4, 3)):
        pack(dataset, tmp_path / str(gop), replace(OPTIONS, codec=codec, gop=gop))
        video = ShardSet.open(tmp_path / str(gop)).sample(0).video
        assert video is not None and key_frames(video) == expected


@pytest.mark.parametrize(("codec", "fine", "coarse"), [
    ("jpeg", 95, 50), ("vp9", 10, 50), ("h264", 10, 40), ("hevc", 10, 40), ("mjpeg", 2, 20)])
def test_quality_decides_on_the_size(dataset: DataSet, tmp_path: Path, codec: str, fine: int, coarse: int) -> None:
    sizes = []
    for quality in (fine, coarse):
        pack(dataset, tmp_path / str(quality), replace(OPTIONS, codec=codec, quality=quality))
        video = ShardSet.open(tmp_path / str(quality)).sample(0).video
        assert video is not None
        sizes.append(len(video))
    assert sizes[0] > 1.3 * sizes[1]


def test_bits_decide_on_the_size_of_blocks(dataset: DataSet, tmp_path: Path) -> None:
    sizes = {}
    for luma, chroma in ((2, 2), (3, 2), (3, 3)):
        pack(dataset, tmp_path / f"{luma}{chroma}", replace(OPTIONS, codec="blocks", luma_bits=luma, chroma_bits=chroma))
        shards = ShardSet.open(tmp_path / f"{luma}{chroma}")
        assert shards.manifest.codec_options == {"luma_bits": luma, "chroma_bits": chroma}
        assert shards.sample(0).blocks == shards.manifest.blocks == BlockFormat(128, luma, chroma)
        sizes[luma, chroma] = int(shards.index["size"][0, shards.manifest.components.index("blocks")])
    assert sizes == {(2, 2): 16 + FRAMES * 9216, (3, 2): 16 + FRAMES * 11264, (3, 3): 16 + FRAMES * 12288}


def test_chroma_of_jpegs(dataset: DataSet, tmp_path: Path) -> None:
    sampling = {}
    for chroma in ("444", "420"):
        pack(dataset, tmp_path / chroma, replace(OPTIONS, chroma=chroma))
        shards = ShardSet.open(tmp_path / chroma)
        assert shards.manifest.codec_options["chroma"] == int(chroma)
        sample = shards.sample(0)
        assert sample.video is not None
        content = bytes(sample.video)
        sampling[chroma] = content[content.index(b"\xff\xc0") + 11]  # first component's factors
    assert sampling == {"444": 0x11, "420": 0x22}
    with pytest.raises(UserError, match="packed with other options: chroma was 444, now 420; nothing is added"):
        pack(dataset, tmp_path / "444", replace(OPTIONS, chroma="420", resume=True))
    edit_manifest(tmp_path / "444", codec_options={"quality": OPTIONS.coded_quality, "gop": 0}, fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"with other options: chroma was not noted \(444, but for `--chroma 420`\), now 420"):
        pack(dataset, tmp_path / "444", replace(OPTIONS, resume=True))


def test_variable_frame_rate_is_counted_by_pictures(tmp_path: Path) -> None:
    times = [0, 1, 2, 9, 10, 30, 31, 90]
    path = write_video(tmp_path / "vfr.mp4", len(times), times=times)
    with VideoReader(path) as reader:
        pictures = [frame.copy() for frame in reader.crops(0, 0, WIDTH)]
    assert len(pictures) == len(times)
    for t, picture in enumerate(pictures):
        assert psnr(picture[:HEIGHT], frame_picture(0, t)) > 36


# Quarter turns as a file says them: the upper left 2x2 of the matrix in its track header, 16.16 fixed point.
ONE, MINUS = b"\x00\x01\x00\x00", b"\xff\xff\x00\x00"
ZERO = bytes(4)
TURNS = {90: ZERO + ONE + ZERO + MINUS + ZERO + ZERO, 180: MINUS + ZERO + ZERO + ZERO + MINUS + ZERO,
         270: ZERO + MINUS + ZERO + ONE + ZERO + ZERO}


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_flags_are_obeyed(tmp_path: Path, degrees: int) -> None:
    path = write_video(tmp_path / "turned.mp4", 3)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 24] = TURNS[degrees]
    path.write_bytes(content)
    shown = cv2.VideoCapture(str(path)).read()[1][..., ::-1]
    assert shown.shape[:2] == ((WIDTH, HEIGHT) if degrees != 180 else (HEIGHT, WIDTH))
    with VideoReader(path) as reader:
        assert (reader.info.width, reader.info.height) == (shown.shape[1], shown.shape[0])
        picture = next(reader.crops(0, 0, WIDTH))[: shown.shape[0], : shown.shape[1]]
    assert psnr(picture, shown) > 36
    clip = ClipAnnotation("a", 0, path)
    turned = DataSet("turned", layout("coco17"), ("x",), {"train": ["a"]}, [clip])
    with pytest.raises(UserError, match=r"turned\.mp4: turned by \d+ degrees; codec copy keeps the stream as it is"):
        pack(turned, tmp_path / "copy", COPY)
    pack(turned, tmp_path / "set", OPTIONS)
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize(("codec", "pixel_format", "width", "height"), [
    ("libx264", "yuv420p", 192, 128), ("mjpeg", "yuvj420p", 191, 127), ("libx264", "yuv444p", 191, 127),
    ("libx264", "yuv420p10le", 192, 128), ("mjpeg", "yuvj420p", 190, 126), ("ffv1", "gray", 192, 128)])
@pytest.mark.parametrize("square", [(0, 0, 64), (-20, 33, 101), (77, -15, 200), (150, 100, 35), (300, 300, 32)])
def test_cutting_equals_converting_everything(tmp_path: Path, codec: str, pixel_format: str, width: int, height: int,
                                              square: tuple[int, int, int]) -> None:
    path = write_video(tmp_path / "v.mkv", 2, codec=codec, pixel_format=pixel_format, width=width, height=height)
    with av.open(str(path), mode="r") as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    x, y, side = square
    with VideoReader(path) as reader:
        for full, cut in zip(whole, reader.crops(x, y, side), strict=True):
            padded = np.pad(full, ((400, 400), (400, 400), (0, 0)))
            assert np.array_equal(cut, padded[400 + y : 400 + y + side, 400 + x : 400 + x + side])


def test_lines_of_interlaced_video_have_the_colours_of_their_own_field(tmp_path: Path) -> None:
    """Even lines are red, odd ones blue: every second row of the halved colours belongs to the one, the others to the other."""
    planes = np.zeros((96, 64), np.uint8)
    planes[0:64:2], planes[1:64:2] = 82, 41  # Y
    for first, red, blue in ((64, 90, 240), (80, 240, 110)):  # Cb, Cr: two rows of 32 in each row of 64
        planes[first : first + 16] = np.repeat([red, blue], 32)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0", "x264-params": "interlaced=1:tff=1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    with VideoReader(tmp_path / "v.mkv") as reader:
        picture = next(reader.crops(10, 6, 40)).astype(int)
    assert np.abs(picture[0::2] - (255, 0, 0)).max() < 6 and np.abs(picture[1::2] - (0, 0, 255)).max() < 6


def test_a_picture_in_front_is_not_taken_for_the_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 5)
    with_cover(video, tmp_path / "cover.mkv")
    with VideoReader(tmp_path / "cover.mkv") as reader:
        assert (reader.info.width, reader.info.height) == (WIDTH, HEIGHT)
        assert reader.count() == 5
    clips = [ClipAnnotation(path.stem, 0, path) for path in (video, tmp_path / "cover.mkv")]
    pack(DataSet("set", layout("coco17"), ("x",), {"train": ["v", "cover"]}, clips), tmp_path / "set", COPY)
    assert ShardSet.open(tmp_path / "set").manifest.splits == {"train": ["v"]} and verify(tmp_path / "set") == []
    said = (tmp_path / "set" / "skipped.jsonl").read_text()
    assert "cover.mkv: a cover picture or another video lies before the video; codec copy keeps the file" in said


def test_copy_keeps_what_can_be_decoded_afterwards(tmp_path: Path) -> None:
    """A short file whose end is missing is not a video; a title that is not UTF-8 does no harm."""
    whole = write_video(tmp_path / "whole.mkv", 8)
    short = tmp_path / "short.mkv"
    short.write_bytes(whole.read_bytes()[:-40])
    titled = tmp_path / "titled.avi"
    with av.open(str(titled), "w") as container:
        container.metadata["title"] = "Gruesse"
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_picture(0, number), format="rgb24")))
        container.mux(stream.encode())
    titled.write_bytes(titled.read_bytes().replace(b"Gruesse", "Grüße!!".encode("latin-1")))
    clips = [ClipAnnotation(path.stem, 0, path) for path in (whole, short, titled)]
    keys = [clip.key for clip in clips]
    pack(DataSet("set", layout("coco17"), ("x",), {"train": keys}, clips), tmp_path / "set", COPY)
    shards = ShardSet.open(tmp_path / "set")
    assert shards.manifest.splits == {"train": ["whole", "titled"]} and verify(tmp_path / "set") == []
    assert "short.mkv: the Matroska file is cut off" in (tmp_path / "set" / "skipped.jsonl").read_text()
    for row in range(2):
        video = shards.sample(row).video
        assert video is not None and decode_video(np.frombuffer(video, np.uint8), np.arange(8)).keys() == set(range(8))


def test_a_picture_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.ts", 3, container_options={})
    large = write_video(tmp_path / "b.ts", 3, width=256, height=192)
    both = tmp_path / "both.mpg"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(both) as reader, pytest.raises(UserError, match=r"changes from 192x128 to 256x192 at frame 3"):
        reader.count()


def test_copy_refuses_parts_and_unknown_containers(dataset: DataSet, tmp_path: Path) -> None:
    clip = replace(dataset.clips[0], start_frame=2, pose_MTVC=None, score_MTV=None, num_frames=None)
    with pytest.raises(UserError, match="the clip is a part of its video; codec copy keeps whole files"):
        pack(replace(dataset, clips=[clip]), tmp_path / "out", COPY)
    clip = replace(dataset.clips[0], video="a.mpg")
    with pytest.raises(UserError, match=r"codec copy keeps mp4, mkv, webm, avi files, found \.mpg"):
        pack(replace(dataset, clips=[clip]), tmp_path / "other", COPY)


def test_large_people_are_shrunk_with_an_exact_map(tmp_path: Path) -> None:
    """A bright dot at a known source pixel is found where the stored map says."""
    path = tmp_path / "dot.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "gray"
        picture = np.zeros((480, 640), np.uint8)
        picture[200:208, 300:308] = 255  # centre at (304, 204) in pixel-corner coordinates
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())
    pose = np.zeros((1, 1, 17, 2), np.float32)
    pose[0, 0, 0], pose[0, 0, 1] = (100, 50), (400, 430)
    dot = DataSet("dot", layout("coco17"), ("x",), {"train": ["a"]}, [ClipAnnotation("a", 0, path, pose_MTVC=pose)])
    pack(dot, tmp_path / "set", OPTIONS)
    shards = ShardSet.open(tmp_path / "set")
    frame = decoded_frames(shards.sample(0))[0].astype(float).mean(axis=2)
    frame[frame < 40] = 0
    rows, columns = np.mgrid[0:128, 0:128] + 0.5
    center = np.array([(columns * frame).sum(), (rows * frame).sum()]) / frame.sum()
    a = shards.sample(0).meta.packed_to_source
    assert a[0, 0] > 3
    assert np.abs(a[:, :2] @ center + a[:, 2] - [304, 204]).max() < 0.5, "well under a source pixel"


@pytest.mark.parametrize("codec", ["jpeg", "blocks", "vp9", "h264", "hevc", "mjpeg"])
def test_equal_pictures_give_equal_bytes_in_every_call(codec: str) -> None:
    calls = [clip_parts("clip", 12, codec=codec, size=320, seed=30) for _ in range(5)]
    assert all(parts == calls[0] for parts in calls[1:])


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "mjpeg"])
@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_the_shortest_clips_give_equal_bytes_and_whole_frames(codec: str, num_frames: int) -> None:
    """FFmpeg's x265 writes random decoding times for one or two frames: different bytes, or a file that is refused."""
    calls = [clip_parts("clip", num_frames, codec=codec, size=96, seed=30)["mp4"] for _ in range(20)]
    assert len(set(calls)) == 1
    with av.open(BytesIO(calls[0]), mode="r") as container:
        assert [frame.pts * frame.time_base * 30 for frame in container.decode(video=0)] == list(range(num_frames))
