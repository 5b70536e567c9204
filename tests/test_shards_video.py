"""Source videos as cameras and people produce them: turned, mirrored, trimmed, cut off, with pixels that are not square."""

import json
import os
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from shards_data import annotation, frame_picture, write_pickle, write_video

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.verify import verify
from svdata2vec.shards.video import VideoReader, numbered_pictures, open_bytes

FRAMES = 120  # 4 seconds


def remux(source: Path, path: Path, start_seconds: float = 0.0, matrix: tuple[int, ...] | None = None,
          sound_seconds: float = 0.0) -> Path:
    """The video's packets in another file, from a key frame on: as `ffmpeg -ss START -i SOURCE -c copy` does it.

    `matrix`: display matrix of the new file. `sound_seconds`: silence beside the pictures.
    """
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = read.streams.video[0]
        target: Any = written.add_stream_from_template(stream)
        if matrix is not None:
            target.set_display_matrix(matrix)
        sound: Any = written.add_stream("aac", rate=16000) if sound_seconds else None
        shift = int(start_seconds / stream.time_base)
        read.seek(shift, stream=stream)
        for packet in read.demux(stream):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
            written.mux(packet)
        for number in range(int(sound_seconds * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, number * 1024
            written.mux(sound.encode(frame))
        if sound:
            written.mux(sound.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 seconds with a key frame every second and B frames."""
    return write_video(tmp_path_factory.mktemp("video") / "whole.mp4", FRAMES, options={"g": "30", "crf": "12", "bf": "2"})


def packed_or_reason(video: Path, root: Path, **changes: Any) -> int | str:
    """Frames of the clip packed from a video without poses, or why it is left out; a good clip is packed with it."""
    root.mkdir(exist_ok=True)
    good = write_video(root / "good.mp4", 3)
    clips = [ClipAnnotation("good", 0, good), ClipAnnotation("clip", 0, video)]
    options = PackOptions(workers=1, size=320 if changes.get("codec") == "copy" else 96, **changes)
    pack(DataSet("set", layout("coco17"), ("x",), {"train": ["good", "clip"]}, clips), root / "out", options)
    listed = [json.loads(line) for line in (root / "out" / "skipped.jsonl").read_text().splitlines()]
    if listed:
        return str(listed[0]["reason"]).removeprefix(f"{video}: ")
    shards = ShardSet.open(root / "out")
    return shards.sample(int(shards.find(["clip"])[0])).meta.num_frames


# ---------------------------------------------------------------------------------------------------- whole or cut

@pytest.mark.parametrize(("name", "frames"), [("trim.mp4", 54), ("trim.mov", 54), ("trim.mkv", 60)])
def test_a_lossless_trim_is_whole(video: Path, tmp_path: Path, name: str, frames: int) -> None:
    """MP4 and MOV hide the frames before 2.2 s by an edit list; Matroska, which has none, keeps all from the key frame on."""
    trimmed = remux(video, tmp_path / name, 2.2)
    assert packed_or_reason(trimmed, tmp_path) == frames
    if name.endswith("mp4"):
        with VideoReader(trimmed) as reader:
            first = next(reader.crops(0, 0, 192)).copy()
        errors = [np.abs(first[:128].astype(int) - frame_picture(0, number)).mean() for number in (60, 65, 66, 67)]
        assert np.argmin(errors) == 2, "the first frame that is shown is the one at 2.2 s"
        (tmp_path / "copy").mkdir()
        assert "an edit list hides some of its frames" in str(packed_or_reason(trimmed, tmp_path / "copy", codec="copy"))


CONTAINERS = {".mkv": "libx264", ".webm": "libvpx", ".avi": "mpeg4", ".mp4": "libx264", ".mov": "libx264", ".flv": "libx264",
              ".wmv": "wmv2", ".mpg": "mpeg2video", ".3gp": "mpeg4", ".m4v": "mpeg4",
              ".mxf": "mpeg2video"}


@pytest.mark.parametrize("ending", CONTAINERS)
def test_half_the_bytes_are_not_a_whole_video(tmp_path: Path, ending: str) -> None:
    options = {"g": "12"} if CONTAINERS[ending] == "libx264" else {}
    options = {"deadline": "realtime", "cpu-used": "8"} if ending == ".webm" else options
    # The index of an MP4 in front promises what is gone.
    front = {"movflags": "faststart"} if ending in (".mp4", ".mov", ".3gp", ".m4v") else None
    whole = write_video(tmp_path / f"whole{ending}", FRAMES, codec=CONTAINERS[ending], options=options, container_options=front)
    for share in (1.0, 0.5, 0.9):
        part = tmp_path / f"part{share}" / f"clip{ending}"
        part.parent.mkdir()
        part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        found = packed_or_reason(part, part.parent)
        if share == 1:
            assert found == FRAMES
        elif not (ending == ".avi" and share == 0.9):  # there, what is lost is the index behind the frames
            assert isinstance(found, str) and ("cut short, " in found or "damaged" in found or "cannot be decoded" in found)


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv"])
def test_sound_may_be_longer_than_the_pictures(video: Path, tmp_path: Path, name: str) -> None:
    assert packed_or_reason(remux(video, tmp_path / name, sound_seconds=6.0), tmp_path) == FRAMES


def test_a_fragmented_file_is_whole(tmp_path: Path) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "frag.mp4", FRAMES, options={"g": "12"}, container_options=fragments)
    assert packed_or_reason(path, tmp_path) == FRAMES


# ---------------------------------------------------------------------------------------------------- turned and mirrored

ONE, UNIT = 1 << 16, 1 << 30
SHOWN = {  # (a, b, c, d) of the display matrix: the stored x axis is shown along (a, b), the y axis along (c, d); y down
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, 1, 0): lambda p: p.swapaxes(0, 1)[::-1],
    (0, 1, -1, 0): lambda p: p.swapaxes(0, 1)[:, ::-1],
    (0, -1, -1, 0): lambda p: p.swapaxes(0, 1)[::-1, ::-1],
}


@pytest.mark.parametrize("axes", SHOWN)
def test_all_eight_orientations(video: Path, tmp_path: Path, axes: tuple[int, int, int, int]) -> None:
    """The picture is shown as the matrix says, pixel by pixel; so joints annotated in the shown picture lie on it."""
    a, b, c, d = (value * ONE for value in axes)
    turned = remux(video, tmp_path / "turned.mp4", matrix=(a, b, 0, c, d, 0, 0, 0, UNIT))
    with VideoReader(video) as reader:
        stored = next(reader.crops(0, 0, 192))[:128].copy()
    with VideoReader(turned) as reader:
        info = reader.info
        shown = next(reader.crops(0, 0, 192))[: info.height, : info.width].copy()
    expected = SHOWN[axes](stored)
    assert shown.shape == expected.shape and np.array_equal(shown, expected)
    assert info.kept_as_stored == (axes == (1, 0, 0, 1))
    if not info.kept_as_stored:
        assert str(info.orientation) in str(packed_or_reason(turned, tmp_path, codec="copy"))


# ---------------------------------------------------------------------------------------------------- pixels not square

@pytest.mark.parametrize(("aspect", "width"), [((16, 15), 205), ((8, 9), 171), ((1, 1), 192), ((1, 1000), 192)])
def test_pixels_become_square(tmp_path: Path, aspect: tuple[int, int], width: int) -> None:
    """The block of 24x40 stored pixels is 24 * aspect pixels wide when it is shown."""
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_picture(1, 0), format="rgb24")))
        container.mux(stream.encode())
    with VideoReader(path) as reader:
        assert (reader.info.width, reader.info.height) == (width, 128)
        picture = next(reader.crops(0, 0, 256))[:128, :width].astype(int)
    bright = np.flatnonzero((picture[60] > 215).all(axis=1))
    assert abs(bright[0] - 60 * width / 192) <= 1.5 and abs(len(bright) - 24 * width / 192) <= 3
    if width != 192:
        assert "pixels are not square" in str(packed_or_reason(path, tmp_path, codec="copy"))


# ---------------------------------------------------------------------------------------------------- videos in pictures

@pytest.mark.parametrize("form", ["{}.jpg", "{:05d}.JPG", "v2_{}.png", "7-{}.jpeg"])
def test_pictures_are_numbered_in_many_ways(tmp_path: Path, form: str) -> None:
    """All of 8.jpg to 119.jpg count, in numerical order."""
    names = [form.format(number) for number in range(8, 120)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".1.jpg").touch()
    assert [path.name for path in numbered_pictures(tmp_path)] == names


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4: is a pipe or a device; expected a file, or a folder of numbered pictures"):
        VideoReader(tmp_path / "a.mp4")


def test_a_folder_without_numbered_pictures_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder without numbered pictures; expected a video"):
        VideoReader(tmp_path)


@pytest.mark.parametrize("kinds", [("rgb_{}.png", "depth_{}.png"), ("v{}.jpg", "v{}.png"), ("b{}.png", "a{}.png", "c{}.png")])
def test_equally_many_pictures_of_two_kinds_are_left_out(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    folder = tmp_path / "films" / "walk" / "clip"
    folder.mkdir(parents=True)
    for number, kind in [(number, kind) for number in range(3) for kind in kinds]:
        cv2.imwrite(str(folder / kind.format(number)), frame_picture(0, number))
    assert [clip.key for clip in open_dataset("folder", root=tmp_path / "films").clips] == ["walk%2Fclip"]
    first, second, *_ = sorted(kind.format(0) for kind in kinds)
    assert f"as many numbered pictures like {first} as like {second}; " in str(packed_or_reason(folder, tmp_path / "tie"))
    cv2.imwrite(str(folder / kinds[0].format(3)), frame_picture(0, 3))
    assert packed_or_reason(folder, tmp_path / "more") == 4


def test_two_pictures_of_one_number_are_no_two_frames(tmp_path: Path) -> None:
    """Both were packed, one after the other."""
    for name in ("img_00.png", "img_01.png", "img_1.png", "img_02.png"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"img_01\.png and img_1\.png are both picture 1; expected every number once"):
        numbered_pictures(tmp_path)


@pytest.mark.parametrize(("numbers", "said"), [
    ((1, 2, 3, 5, 6), r"after img_03\.png comes img_05\.png; expected every number, or a constant step: pictures are missing"),
    ((0, 1, 4), r"after img_01\.png comes img_04\.png; "), ((7, 8, 9), ""), ((0, 5, 10, 15), ""), ((3, 17, 90, 91 + 40), ""),
])
def test_missing_pictures_are_no_shorter_video(tmp_path: Path, numbers: tuple[int, ...], said: str) -> None:
    """Poses after a gap belonged to earlier pictures. Every fifth picture, or time stamps as numbers, have no gap."""
    for number in numbers:
        (tmp_path / f"img_{number:02d}.png").touch()
    with pytest.raises(UserError, match=said) if said else nullcontext():
        assert len(numbered_pictures(tmp_path)) == len(numbers)


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_a_folder_of_numbered_pictures_is_a_video(tmp_path: Path, ending: str) -> None:
    """As mmaction extracts them: img_00001.jpg beside flow_x_00001.jpg; numbers decide on the order, not names."""
    root = tmp_path / "rawframes"
    for name, seed in (("walk/v1.5", 0), ("run/clip", 1)):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(12):
            picture = frame_picture(seed, number)[..., ::-1]
            cv2.imwrite(str(folder / f"img_{number + 1}{ending}"), picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
            cv2.imwrite(str(folder / f"flow_x_{number + 1:05d}{ending}"), np.zeros((128, 192), np.uint8))
    with VideoReader(root / "walk" / "v1.5") as reader:
        assert (reader.info.width, reader.info.height, reader.info.fps) == (192, 128, 0)
        for number, frame in enumerate(reader.crops(0, 0, 192)):
            assert np.abs(frame[:128].astype(int) - frame_picture(0, number)).mean() < 2
        assert reader.position == 12 and reader.cut_short() is None
    dataset = open_dataset("folder", root=root)
    assert [clip.key for clip in dataset.clips] == ["run%2Fclip", "walk%2Fv1-5"] and dataset.skipped == []
    pack(dataset, tmp_path / "out", PackOptions(workers=1, size=96))
    shards = ShardSet.open(tmp_path / "out")
    assert {shards.sample(row).meta.num_frames for row in range(2)} == {12} and verify(tmp_path / "out") == []
    path = write_pickle(tmp_path / "set.pkl", [annotation("v1.5", 0, 12), annotation("run/clip", 0, 12)])
    assert [Path(clip.video).name for clip in open_dataset("pyskl", pickle_path=path, videos=root).clips] == ["v1.5", "clip"]
    broken = root / "run" / "clip" / f"img_5{ending}"
    broken.write_bytes(broken.read_bytes()[:200])
    assert isinstance(packed_or_reason(root / "run" / "clip", tmp_path / "broken"), str)


def test_pictures_are_read_one_by_one(tmp_path: Path) -> None:
    """Those of a long video do not fit into memory."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"before")
    with open_bytes(tmp_path) as file:
        assert file.read(1) == b"b"
        (tmp_path / "2.jpg").write_bytes(b"later")
        assert file.read() == b"efore" b"before" b"later"
