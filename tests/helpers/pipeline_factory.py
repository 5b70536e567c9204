"""Makes small shard sets for the pipeline's tests: known pictures and skeletons, packed without a source video."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from shards_data import edit_manifest

from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.shards.atomic import npy_bytes
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.boxes import packed_to_source, person_boxes
from svdata2vec.shards.layouts import COCO17, KINECT25
from svdata2vec.shards.packing.encode import VIDEO_CODECS, BlockClipEncoder, Encoder, JpegEncoder, VideoClipEncoder
from svdata2vec.shards.packing.tarwriter import TarWriter
from svdata2vec.shards.reading.manifest import Manifest, ShardEntry, build_index
from svdata2vec.shards.reading.sample import ClipMeta, parse_array
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.sums import clip_sums, save_head

WIDTH, HEIGHT = 200, 160  # source picture of every clip
JPEG_PARTS = ("jpegs", "offsets.npy", "pose.npy", "score.npy", "box.npy", "json")
BLOCK_BITS = {"luma_bits": 3, "chroma_bits": 2}


def picture(size: int, seed: int) -> np.ndarray:
    """A smooth random picture (size, size, 3): structure in every colour, little noise."""
    coarse = np.random.default_rng(seed).integers(0, 255, (max(size // 16, 2), max(size // 16, 2), 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def skeletons(num_frames: int, persons: int, seed: int, *, centre: tuple[float, float] = (110, 80)) -> np.ndarray:
    """float32 (persons, F, 17, 2) joints in a box of about 60 x 80 px around `centre`, a tenth of them missing."""
    generator = np.random.default_rng(seed)
    pose = np.array(centre) + generator.uniform(-1, 1, (persons, num_frames, 17, 2)) * (30, 40)
    pose[generator.random(pose.shape[:-1]) < 0.1] = 0
    return pose.astype(np.float32)


def _encoder(codec: str, size: int) -> Encoder:
    if codec == "jpeg":
        return JpegEncoder(90, "420")
    if codec == "blocks":
        return BlockClipEncoder(BlockFormat(size, **BLOCK_BITS))
    return VideoClipEncoder(VIDEO_CODECS[codec], VIDEO_CODECS[codec].quality, 0, size, 30.0)


def clip_parts(
    key: str, num_frames: int, *, codec: str = "jpeg", size: int = 96, label: int = 0, persons: int = 1, seed: int = 0,
    pose: np.ndarray | None = None,
) -> dict[str, bytes]:
    """The tar components of one clip: a still background over which a bright bar moves by one column per frame."""
    background = picture(size, seed)
    encoder = _encoder(codec, size)
    for t in range(num_frames):
        frame = background.copy()
        frame[:, t % size : t % size + 6] = 255
        encoder.add(frame)
    pose = skeletons(num_frames, persons, seed) if pose is None else pose
    meta = ClipMeta(
        key=key, label=label, num_frames=num_frames, fps=30.0, width=WIDTH, height=HEIGHT, packed_width=size,
        packed_height=size, packed_to_source=packed_to_source(30, 5, 150, size), source=f"{key}.avi",
    )
    side_parts = {"pose.npy": npy_bytes(pose), "box.npy": npy_bytes(person_boxes(pose)), "json": meta.to_bytes()}
    return {**encoder.finish(), **side_parts}


def encoded_clip(
    codec: str, num_frames: int, frames: Sequence[int], output_to_packed: np.ndarray, packed: int = 96
) -> EncodedClip:
    """Some frames of a clip, as the loader hands it to a decoder; `packed`: side of the stored pictures."""
    parts = clip_parts("clip", num_frames, codec=codec, size=packed, seed=num_frames)
    offsets = parse_array(parts["offsets.npy"], "test") if codec == "jpeg" else None
    video = np.frombuffer(parts["jpegs" if codec == "jpeg" else "mp4"], np.uint8)
    return EncodedClip("clip", video, offsets, np.array(frames, np.int64), output_to_packed, packed, packed)


def write_shards(
    root: Path, clips: Sequence[tuple[str, int, dict[str, bytes]]], *, codec: str = "jpeg", clips_per_shard: int = 4,
    splits: dict[str, list[str]] | None = None, size: int = 96,
) -> ShardSet:
    """A shard folder of (key, num_frames, components); all labels are the clip's number modulo 5."""
    root.mkdir(parents=True, exist_ok=True)
    components = JPEG_PARTS if codec == "jpeg" else ("blocks" if codec == "blocks" else "mp4", *JPEG_PARTS[2:])
    rows, entries = [], []
    for shard, start in enumerate(range(0, len(clips), clips_per_shard)):
        with TarWriter(root / f"shard-{shard:06d}.tar") as tar:
            part = clips[start : start + clips_per_shard]
            for number, (key, num_frames, parts) in enumerate(part, start):
                place = tar.add(key, parts, components)
                rows.append((key, shard, number % 5, num_frames, *place, clip_sums(parts, components)))
            sha256, num_bytes = tar.commit()
        entries.append({"name": f"shard-{shard:06d}.tar", "sha256": sha256, "bytes": num_bytes, "count": len(part)})
    manifest = _manifest(codec, size, components, splits or {"all": [row[0] for row in rows]}, entries)
    save_head(root, manifest, build_index(rows, len(components)), [row[-1] for row in rows])
    return ShardSet.open(root)


def _manifest(
    codec: str, size: int, components: tuple[str, ...], splits: dict[str, list[str]], entries: list[dict]
) -> Manifest:
    return Manifest(
        dataset="factory", codec=codec, packed_size=size, layout=COCO17, classes=tuple("abcde"), components=components,
        splits=splits, shards=tuple(ShardEntry(**entry) for entry in entries), fingerprint="factory",
        codec_options=BLOCK_BITS if codec == "blocks" else {},
    )


def shard_set(
    root: Path, num_clips: int, *, codec: str = "jpeg", num_frames: Callable[[int], int] = lambda i: 20 + i % 7,
    size: int = 96, clips_per_shard: int = 4, first_seed: int = 0,
) -> ShardSet:
    """`num_clips` different clips in a split called "all"; of another `first_seed` other clips of the same names."""
    clips = []
    for i in range(num_clips):
        key, frames = f"clip{i:05d}", num_frames(i)
        parts = clip_parts(key, frames, codec=codec, size=size, label=i % 5, persons=1 + i % 2, seed=first_seed + i)
        clips.append((key, frames, parts))
    return write_shards(root, clips, codec=codec, clips_per_shard=clips_per_shard, size=size)


def kinect_set(root: Path, num_clips: int, *, size: int = 96) -> ShardSet:
    """The same with the 25 joints of Kinect."""
    clips = []
    for i in range(num_clips):
        key, frames = f"clip{i:05d}", 20 + i % 5
        seventeen, others = skeletons(frames, 1, 100 + i), skeletons(frames, 1, 150 + i)
        pose = np.concatenate([seventeen, others[:, :, :8]], axis=2)
        parts = clip_parts(key, frames, size=size, label=i % 5, seed=100 + i, pose=pose)
        clips.append((key, frames, parts))
    write_shards(root, clips, size=size)
    edit_manifest(root, layout=asdict(KINECT25))
    return ShardSet.open(root)
