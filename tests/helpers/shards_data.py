"""Miniature data for the tests of shards/: videos of a moving block and the annotations that belong to them.

M persons, T frames, V joints.
"""

import hashlib
import itertools
import json
import os
import pickle
import shutil
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from svdata2vec.shards.annotations import DataSet, Pose
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder
from svdata2vec.shards.reading.sample import Sample
from svdata2vec.shards.reading.shardset import ShardSet

WIDTH, HEIGHT = 192, 128


def background(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): smooth colours, so that encoders keep them."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 200, (5, 7, 3))
    rows = np.linspace(0, 3.999, height)
    columns = np.linspace(0, 5.999, width)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    i, j = y.astype(int), x.astype(int)
    v, u = (y - i)[..., None], (x - j)[..., None]
    top = coarse[i, j] * (1 - u) + coarse[i, j + 1] * u
    bottom = coarse[i + 1, j] * (1 - u) + coarse[i + 1, j + 1] * u
    return (top * (1 - v) + bottom * v).astype(np.uint8)


def frame_picture(seed: int, number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 (height, width, 3): the background with a bright block where `block_xy` says."""
    picture = background(seed, height, width).copy()
    x, y = block_xy(number)
    picture[y : y + 40, x : x + 24] = (250, 240, 230)
    return picture


def block_xy(number: int) -> tuple[int, int]:
    """Upper left corner of the block in frame `number`."""
    return 60 + number, 40


def write_video(path: Path, num_frames: int = 8, seed: int = 0, *, codec: str = "libx264", height: int = HEIGHT,
                width: int = WIDTH, times: list[int] | None = None, options: dict[str, str] | None = None,
                container_options: dict[str, str] | None = None, pixel_format: str = "yuv420p", first: int = 0) -> Path:
    """A small video; `times`: presentation times in 1/30 s for a variable frame rate; `first`: number of its first picture."""
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=30, options=options or {"crf": "12"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 30)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frame_picture(seed, first + number, height, width), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_cover(video: Path, path: Path) -> Path:
    """The video in another file, behind a stream that is a picture of 64x64."""
    with av.open(str(video), mode="r") as source, av.open(str(path), "w") as target:
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        film = target.add_stream_from_template(source.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        target.mux(cover.encode(picture.reformat(format="yuvj420p")))
        target.mux(cover.encode())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = film
                target.mux(packet)
    return path


def rotate_flag(content: bytes) -> bytes:
    """The MP4 with a display matrix of 90 degrees instead of the identity, in its track header."""
    identity = b"".join(v.to_bytes(4, "big") for v in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    quarter = b"".join(v.to_bytes(4, "big") for v in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000))
    start = content.index(b"tkhd")
    place = content.index(identity, start)
    return content[:place] + quarter + content[place + len(identity) :]


def block_pose(num_frames: int, num_joints: int = 17, scale: float = 1.0) -> np.ndarray:
    """float32 (1, T, V, 2): joints spread over the block, in video pixels times `scale`."""
    spread = np.linspace(0.1, 0.9, num_joints)
    corner = np.array([block_xy(t) for t in range(num_frames)], np.float64)[:, None]
    joints = corner + np.stack([spread * 24, spread[::-1] * 40], axis=-1)[None]
    return joints[None].astype(np.float32) * scale


def annotation(name: str, label: int, num_frames: int = 8, scale: float = 1.0, **changes: object) -> dict[str, object]:
    """One annotation of the pyskl format; `scale`: annotated picture size relative to the video."""
    shape = (round(HEIGHT * scale), round(WIDTH * scale))
    pose = block_pose(num_frames, scale=scale)
    entry: dict[str, object] = {
        "frame_dir": name, "label": label, "img_shape": shape, "original_shape": shape, "total_frames": num_frames,
        "keypoint": pose.astype(np.float16), "keypoint_score": np.full(pose.shape[:3], 0.5, np.float16),
    }
    return entry | changes


def write_pickle(path: Path, annotations: list[dict[str, object]], split: dict[str, list[str]] | None = None) -> Path:
    """A pickle of the pyskl format; default splits: `train` has all clips, `half_val` (of another protocol) every second."""
    names = [str(entry["frame_dir"]) for entry in annotations]
    split = {"train": names, "half_val": names[::2]} if split is None else split
    path.write_bytes(pickle.dumps({"split": split, "annotations": annotations}))
    return path


def write_motion_set(root: Path, count: int = 6, num_frames: int = 8, scale: float = 1.0) -> tuple[Path, Path]:
    """`count` videos and their pickle; returns (pickle, folder of videos)."""
    videos = root / "videos"
    videos.mkdir(parents=True)
    names = [f"S001C001P001R001A{i + 1:03d}" for i in range(count)]
    for i, name in enumerate(names):
        write_video(videos / f"{name}.mp4", num_frames + i, seed=i)
    entries = [annotation(name, i % 3, num_frames + i, scale) for i, name in enumerate(names)]
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("stand", "walk", "run")[:count]))
    return write_pickle(root / "motion.pkl", entries), videos


def folder_bytes(root: Path) -> dict[str, str]:
    """File name -> hash, for all files of a folder."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


def left_out(root: Path) -> dict[str, tuple[str, list[str]]]:
    """The entries of a packed folder's skipped.jsonl: key -> its file, and the splits that lack it."""
    entries = map(json.loads, (root / "skipped.jsonl").read_text().splitlines())
    return {entry["key"]: (entry["source"], entry["splits"]) for entry in entries}


def edit_manifest(root: Path, **changes: object) -> None:
    """Change fields of a manifest, as somebody would who edits it and removes its sum; None removes a field."""
    fields = json.loads((root / "manifest.json").read_text()) | changes | {"manifest_crc32": None}
    fields = {name: value for name, value in fields.items() if value is not None}
    (root / "manifest.json").write_text(json.dumps(fields))


def without_sums(root: Path) -> ShardSet:
    """Make a packed folder one of version 0.2.0, which had no checksums, and open it."""
    edit_manifest(root, crc32=None)
    (root / "sums.npy").unlink(missing_ok=True)
    return ShardSet.open(root)


def deadly_pose(path: str) -> Pose:
    """A pose reader that ends its process, like a crash in a decoder."""
    os._exit(13)


def packed(dataset: DataSet, root: Path) -> ShardSet:
    """Pack small pictures into root/packed and open it."""
    pack(dataset, root / "packed", PackOptions(workers=1, size=96))
    return ShardSet.open(root / "packed")


def decoded_frames(sample: Sample) -> list[np.ndarray]:
    """RGB frames of a clip by OpenCV and PyAV alone, or of blocks by the format's decoder."""
    assert sample.video is not None
    if sample.offsets is None:
        with av.open(BytesIO(sample.video), mode="r") as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    parts = [np.frombuffer(sample.video[a:b], np.uint8) for a, b in itertools.pairwise(sample.offsets)]
    if sample.blocks is not None:
        return [BlockFrameDecoder(sample.blocks)(part) for part in parts]
    return [np.asarray(cv2.imdecode(part, cv2.IMREAD_COLOR_RGB)) for part in parts]


def clip_of(shards: ShardSet, key: str) -> Sample:
    """The clip with this key."""
    return shards.sample(int(shards.find([key])[0]))


def damaged(source: Path, root: Path, *rows: int) -> Path:
    """A copy of shards, some of whose clips have joints and pictures of zeros."""
    shutil.copytree(source, root)
    shards = ShardSet.open(root)
    for row in rows:
        entry = shards.index[row]
        with (root / shards.manifest.shards[int(entry["shard"])].name).open("r+b") as tar:
            for offset, size in zip(entry["offset"].tolist(), entry["size"].tolist(), strict=True):
                tar.seek(offset)
                tar.write(bytes(size))
    return root


def write_tree(root: Path, *names: str, num_frames: int = 4, height: int = HEIGHT) -> Path:
    """Copies of one small video under these names."""
    root.parent.mkdir(exist_ok=True)
    first = write_video(root.parent / "one.mp4", num_frames, height=height)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(first.read_bytes())
    return root


def reasons(dataset: DataSet) -> dict[str, str]:
    """Key -> reason, of the clips that were left out."""
    return {entry.key: entry.reason for entry in dataset.skipped}
