"""What is packed and how: the options, the plan that makes two runs comparable, the order of clips, the shards' tasks."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.clip import ClipOptions, container_component
from svdata2vec.shards.packing.encode import CODEC_QUALITY, JPEG_CHROMA, OFFSETS
from svdata2vec.shards.packing.shard import PARTS, ShardTask
from svdata2vec.shards.reading.manifest import file_bytes, program_version
from svdata2vec.shards.reading.sample import SIDE_COMPONENTS, VIDEO_COMPONENTS
from svdata2vec.shards.video import open_bytes

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class PackOptions:
    """How to pack: encoding, picture size, order, processes."""

    codec: str = "jpeg"
    """Encoding of the pictures: jpeg (random access, the default), vp9, h264, hevc, mjpeg, or copy (original stream)."""
    quality: int | None = None
    """JPEG quality, CRF, or qscale (mjpeg); None = the codec's own default."""
    chroma: str = "444"
    """Colour resolution of JPEGs: 444, or 420 for smaller files (video codecs always have 420)."""
    gop: int = 0
    """Frames between two key frames of a video codec; 0 = one key frame per clip."""
    size: int = 320
    """Side of the stored square, in pixels; a multiple of 32."""
    clips_per_shard: int = 128
    """Clips in one tar."""
    seed: int = 0
    """Seed of the order in which clips are packed."""
    pose_slack: int = 2
    """Frames at a clip's end that may lack a pose, or poses that may lack a frame; a clip with more is left out."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that decode and encode on this machine."""
    cluster: str | None = None
    """Address of a dask scheduler that does the work instead, e.g. tcp://scheduler:8786."""
    resume: bool = False
    """Go on with an unfinished folder; a finished one of the same data and options is kept."""

    def __post_init__(self) -> None:
        if self.codec not in CODEC_QUALITY:
            raise UserError(f"unknown codec {self.codec!r}: expected one of {', '.join(CODEC_QUALITY)}")
        if self.size % 32 or not 32 <= self.size <= 4096:
            raise UserError(f"size {self.size}: expected a multiple of 32 between 32 and 4096")
        if self.chroma not in JPEG_CHROMA:
            raise UserError(f"chroma {self.chroma!r}: expected one of {', '.join(JPEG_CHROMA)}")
        low, high = (1, 100) if self.codec == "jpeg" else (0, 63)
        if self.quality is not None and not low <= self.quality <= high:
            raise UserError(f"quality {self.quality}: expected {low}..{high} for codec {self.codec}")
        for name in ("gop", "pose_slack", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 or more")
        if self.clips_per_shard < 1:
            raise UserError(f"clips_per_shard {self.clips_per_shard}: expected 1 or more")

    def clip_options(self) -> ClipOptions:
        """The part of the options that decides on bytes."""
        quality = CODEC_QUALITY[self.codec] if self.quality is None else self.quality
        return ClipOptions(self.codec, quality, self.chroma, self.gop, self.size, self.pose_slack)


def make_plan(dataset: DataSet, options: PackOptions) -> dict[str, object]:
    """What must be equal for two runs to give the same bytes.

    Folders may move between the two: of a path only the file's name counts. Skeleton files count with their content:
    two versions of a data set may agree in names and sizes, time stamps change with every copy, and reading them once
    more costs little next to decoding the videos. Videos, which would cost as much to read as to pack, count with name
    and size; behind a URL, where even the size is a request per clip, with the name alone.
    """
    clip_options = asdict(options.clip_options())
    facts = [dataset.name, dataset.classes, dataset.splits, clip_options, asdict(dataset.layout)]
    annotations, skeletons, videos = hashlib.sha256(json.dumps(facts).encode()), hashlib.sha256(), hashlib.sha256()
    content_hash = lru_cache(maxsize=1)(_content_hash)  # clips of one long video stand in a row and share a file
    for clip in sorted(dataset.clips, key=lambda clip: clip.key):
        annotations.update(_annotation(clip))
        videos.update(repr((clip.key, _video_bytes(clip))).encode())
        if clip.pose_file is not None:
            skeletons.update(repr((clip.key, content_hash(clip.pose_file.path))).encode())
    return {"dataset": dataset.name, "clips": len(dataset.clips), **clip_options, "seed": options.seed,
            "clips_per_shard": options.clips_per_shard, "version": program_version(),
            "annotations": annotations.hexdigest(), "skeletons": skeletons.hexdigest(), "videos": videos.hexdigest()}


def _annotation(clip: ClipAnnotation) -> bytes:
    """Everything that a clip's annotation says, but for the content of its files."""
    pose = clip.pose_file
    reader = None if pose is None else (pose.read.__qualname__, Path(pose.path).name, pose.arguments)
    arrays = [np.ascontiguousarray(array) for array in (clip.pose_MTVC, clip.score_MTV, clip.box_T4) if array is not None]
    facts = (clip.key, clip.label, Path(str(clip.video)).name, clip.num_frames, clip.start_frame, clip.end_frame,
             clip.width, clip.height, clip.subject, clip.camera, clip.setup, clip.video_box, reader,
             [(array.dtype.str, array.shape) for array in arrays])
    return repr(facts).encode() + b"".join(array.tobytes() for array in arrays)


def _video_bytes(clip: ClipAnnotation) -> int | None:
    return None if "://" in str(clip.video) else file_bytes(Path(clip.video))


def _content_hash(path: str) -> str:
    try:
        with open_bytes(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:  # the clip will be listed as skipped
        return "cannot be read"


def fingerprint(plan: dict[str, object]) -> str:
    """sha256 of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def start_or_resume(root: Path, plan: dict[str, object], options: PackOptions) -> None:
    """Leave the plan in a fresh folder, or hold it against the one of the run to resume; UserError if they differ."""
    parts = root / PARTS
    stored = parts / PLAN_NAME
    if not stored.is_file():
        others = sorted(path.name for path in root.iterdir() if path.name not in (PARTS, ".lock", PLAN_NAME))
        if others:
            raise UserError(f"{root}: the folder is not empty ({others[0]}); choose another one")
        parts.mkdir(exist_ok=True)
        write_atomically(stored, json.dumps(plan).encode())
        return
    if not options.resume:
        raise UserError(f"{root}: holds an unfinished packing; go on with --resume, or delete the folder")
    before = json.loads(stored.read_bytes())
    changed = [f"{name} was {before.get(name)!r}, now {value!r}" for name, value in plan.items()
               if before.get(name) != value]
    if changed:
        raise UserError(f"{root}: cannot resume with other input: {'; '.join(changed)}; give the same input, or delete the "
                        "folder")
    remove_leftovers(root)


def remove_leftovers(root: Path) -> None:
    """Remove the half-written files of processes that were killed."""
    for leftover in [*root.glob("*.tmp"), *(root / PARTS).glob("*.tmp")]:
        leftover.unlink()


def _packed_order(clips: list[ClipAnnotation], seed: int) -> list[ClipAnnotation]:
    """All clips in a random order that depends on their names and the seed alone.

    Clips cut out of one video stay together, in the video's order, so that it is decoded once and not once per clip.
    """
    groups: dict[str, list[ClipAnnotation]] = {}
    for clip in sorted(clips, key=lambda clip: (clip.start_frame, clip.key)):
        groups.setdefault(clip.key if clip.end_frame is None else str(clip.video), []).append(clip)
    by_name = sorted(groups.values(), key=lambda group: group[0].key)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(by_name))
    return [clip for i in order for clip in by_name[i]]


def components_of(dataset: DataSet, codec: str) -> tuple[str, ...]:
    """Tar members of a clip. Codec `copy` keeps the containers that occur; UserError for one that cannot be kept."""
    if codec == "jpeg":
        return ("jpegs", OFFSETS, *SIDE_COMPONENTS)
    if codec != "copy":
        return ("mp4", *SIDE_COMPONENTS)
    containers = sorted({container_component(str(clip.video)) for clip in dataset.clips})
    unknown = [name for name in containers if name not in VIDEO_COMPONENTS[1:]]
    if unknown:
        raise UserError(f"codec copy keeps {', '.join(VIDEO_COMPONENTS[1:])} files, found .{unknown[0]}; "
                        "use another codec")
    return (*containers, *SIDE_COMPONENTS)


def shard_tasks(root: Path, dataset: DataSet, options: PackOptions, refused: dict[str, str]) -> Iterator[ShardTask]:
    """The work, shard by shard; the same for every run with this data set and these options."""
    clips = _packed_order(dataset.clips, options.seed)
    components = components_of(dataset, options.codec)
    for number, start in enumerate(range(0, len(clips), options.clips_per_shard)):
        part = tuple(clips[start : start + options.clips_per_shard])
        yield ShardTask(number, str(root.resolve()), part, len(dataset.layout.joints), components,
                        options.clip_options(), {clip.key: refused[clip.key] for clip in part if clip.key in refused})
