"""Plans a packing: the plan that makes two runs comparable, the order of clips, the shards' tasks."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.atomic import read_object, write_atomically
from svdata2vec.shards.errors import UserError, require_machine
from svdata2vec.shards.packing.clip import container_component
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.packing.shard import PARTS, ShardTask
from svdata2vec.shards.reading.manifest import PROGRAM, file_bytes
from svdata2vec.shards.reading.sample import CONTAINERS, PICTURES, SIDE_COMPONENTS
from svdata2vec.shards.shown import some_of
from svdata2vec.shards.video import numbered_pictures, open_bytes

PLAN_NAME = "plan.json"
VIDEOS_NAME = "videos.json"  # beside the plan: clip -> size of its video, to name the ones that changed
_HASHED = ("annotations", "skeletons", "videos")  # entries of the plan that are only a hash


def make_plan(dataset: DataSet, options: PackOptions) -> dict[str, object]:
    """The facts that must be equal for two runs to give the same bytes.

    Folders may move between the two: only file names count, not their paths. Skeleton files count with their content: two
    versions of a data set may agree in names and sizes, time stamps change with every copy, and reading them once more
    costs little compared with decoding the videos. Videos count with name and size, as reading them would cost as much as
    packing; behind a URL, where even the size is a request per clip, only with the name.
    """
    coding = {name: value for name, value in asdict(options).items()
              if name not in ("workers", "cluster", "resume") and options.has(name)}
    facts = asdict(replace(dataset, clips=[], skipped=[])) | {"skipped": sorted(entry.key for entry in dataset.skipped)}
    annotations, skeletons, videos = hashlib.sha256(json.dumps(facts).encode()), hashlib.sha256(), hashlib.sha256()
    content_hash = lru_cache(maxsize=1024)(_content_hash)  # clips of one long video, or all, may share one
    for clip in sorted(dataset.clips, key=lambda clip: clip.key):
        annotations.update(_annotation(clip))
        videos.update(repr((clip.key, _video_bytes(clip))).encode())
        if clip.pose_file is not None:
            skeletons.update(repr((clip.key, content_hash(clip.pose_file.path))).encode())
    return {"dataset": dataset.name, "clips": len(dataset.clips), **coding, "quality": options.coded_quality,
            "version": PROGRAM, "annotations": annotations.hexdigest(), "skeletons": skeletons.hexdigest(),
            "videos": videos.hexdigest()}


def _video_bytes(clip: ClipAnnotation) -> int | None:
    """Size of a clip's video, or of all its pictures if it is a folder of them.

    None for a URL, and for a video that does not exist or cannot be read, whose clip will be listed as skipped.
    """
    if "://" in str(clip.video):
        return None
    video = Path(clip.video)
    try:
        return sum(picture.stat().st_size for picture in numbered_pictures(video)) if video.is_dir() else file_bytes(video)
    except (OSError, UserError) as error:
        require_machine(error, video)
        return None


def _annotation(clip: ClipAnnotation) -> bytes:
    """All facts of a clip's annotation, without the content of its files."""
    facts = vars(clip) | {"video": Path(str(clip.video)).name}
    if clip.pose_file is not None:
        pose = clip.pose_file
        facts["pose_file"] = vars(pose) | {"read": pose.read.__qualname__, "path": Path(pose.path).name}
    for name, value in facts.items():
        if isinstance(value, np.ndarray):
            facts[name] = value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest()
    return repr(facts).encode()


def _content_hash(path: str) -> str:
    try:
        if Path(path).is_dir():  # a file per frame
            files = sorted(file for file in Path(path).iterdir() if file.is_file())
            return hashlib.sha256(repr([(file.name, _content_hash(str(file))) for file in files]).encode()).hexdigest()
        with open_bytes(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        require_machine(error, path)
        return "cannot be read"  # the clip will be listed as skipped


def fingerprint(plan: dict[str, object]) -> str:
    """sha256 of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def start_or_resume(root: Path, dataset: DataSet, plan: dict[str, object], options: PackOptions) -> None:
    """Write the plan to a new folder, or compare it with that of the run to resume; UserError if they differ."""
    parts = root / PARTS
    stored = parts / PLAN_NAME
    if not stored.is_file():
        others = sorted(path.name for path in root.iterdir() if path.name not in (PARTS, ".lock"))
        if others:
            raise UserError(f"{root}: the folder is not empty ({others[0]}); choose another one")
        parts.mkdir(exist_ok=True)
        write_atomically(parts / VIDEOS_NAME, json.dumps({clip.key: _video_bytes(clip) for clip in dataset.clips}).encode())
        write_atomically(stored, json.dumps(plan).encode())
        return
    if not options.resume:
        raise UserError(f"{root}: holds an unfinished packing; continue it with --resume, or delete the folder")
    before = read_object(stored)
    if before is None:
        raise UserError(f"{stored}: damaged; expected the plan of the packing; pack into another folder, or delete this one")
    same_codec = before.get("codec") == plan["codec"]  # each codec has options of its own
    if before.get("version") != PROGRAM or (same_codec and before.keys() != plan.keys()):
        version = before.get("version")
        by = f"another state of {PROGRAM}" if version == PROGRAM else f"another version ({version}, this is {PROGRAM})"
        raise UserError(f"{root}: an unfinished packing by {by}; continue with the version that started it, or pack into "
                        "another folder")
    changed = [f"{name} was {before[name]!r}, now {value!r}" for name, value in plan.items()
               if name in before and before[name] != value and name not in _HASHED]
    if other := _other_clips(parts, dataset):  # other clips alone change the hashes
        changed.append(other)
    else:
        changed += [f"the {name} have changed" for name in _HASHED[:2] if before.get(name) != plan[name]]
        changed += [_changed_video(parts, dataset)] if before.get("videos") != plan["videos"] else []
    if changed:
        raise UserError(f"{root}: cannot resume with other input: {'; '.join(changed)}; give the same input, or delete the "
                        "folder")
    remove_leftovers(root)


def _other_clips(parts: Path, dataset: DataSet) -> str:
    """Names the clips that came or went since the run to resume; empty if none did, or if its list is unreadable."""
    before, now = set(read_object(parts / VIDEOS_NAME) or ()), {clip.key for clip in dataset.clips}
    if not before:
        return ""
    changes = {"new": sorted(now - before), "missing": sorted(before - now)}
    return "; ".join(f"{kind} are {some_of(keys)}" for kind, keys in changes.items() if keys)


def _changed_video(parts: Path, dataset: DataSet) -> str:
    """Describes the change of the first video whose size is not that of the run to resume."""
    before = read_object(parts / VIDEOS_NAME) or {}
    for clip in dataset.clips:
        now = _video_bytes(clip)
        if clip.key in before and before[clip.key] != now:
            was = "was not there" if before[clip.key] is None else f"had {before[clip.key]} bytes"
            return f"{clip.video} {was}, now it {'is gone' if now is None else f'has {now}'}"
    return "the videos have changed"


def remove_leftovers(root: Path) -> None:
    """Remove the half-written files of processes that were killed."""
    for leftover in [*root.glob("*.tmp"), *(root / PARTS).glob("*.tmp")]:
        leftover.unlink(missing_ok=True)  # a worker of a cluster may still be running


def _packed_order(clips: list[ClipAnnotation], seed: int) -> list[ClipAnnotation]:
    """All clips in a random order that depends only on their names and the seed.

    Clips cut out of one video stay together, in the video's order, so that it is decoded once instead of once per clip.
    """
    groups: dict[str, list[ClipAnnotation]] = {}
    for clip in sorted(clips, key=lambda clip: (clip.start_frame, clip.key)):
        groups.setdefault(clip.key if clip.end_frame is None else str(clip.video), []).append(clip)
    by_name = sorted(groups.values(), key=lambda group: group[0].key)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(by_name))
    return [clip for i in order for clip in by_name[i]]


def components_of(dataset: DataSet, codec: str) -> tuple[str, ...]:
    """Tar members of a clip. Codec `copy` keeps the containers of the videos; UserError for one that is not supported."""
    if codec != "copy":
        return (*PICTURES[codec], *SIDE_COMPONENTS)
    containers = sorted({container_component(str(clip.video)) for clip in dataset.clips})
    unknown = [name for name in containers if name not in CONTAINERS]
    if unknown:
        found = f".{unknown[0]}" if unknown[0] else "a folder of pictures, or a file without an extension"
        raise UserError(f"codec copy keeps {', '.join(CONTAINERS)} files, found {found}; use another codec")
    return (*containers, *SIDE_COMPONENTS)


def shard_tasks(root: Path, dataset: DataSet, options: PackOptions, refused: dict[str, str]) -> Iterator[ShardTask]:
    """The work, shard by shard; the same for every run with this data set and these options."""
    clips = _packed_order(dataset.clips, options.seed)
    components = components_of(dataset, options.codec)
    sizes = read_object(root / PARTS / VIDEOS_NAME) or {}
    for number, start in enumerate(range(0, len(clips), options.clips_per_shard)):
        part = tuple(clips[start : start + options.clips_per_shard])
        if options.cluster is not None:
            part = tuple(map(_with_absolute_paths, part))
        yield ShardTask(number, root.resolve(), part, len(dataset.layout.joints), components, options,
                        {clip.key: refused[clip.key] for clip in part if clip.key in refused},
                        frozenset(clip.key for clip in part if sizes.get(clip.key) is not None))


def _with_absolute_paths(clip: ClipAnnotation) -> ClipAnnotation:
    """The clip with absolute paths: workers of a cluster may have been started in other folders."""
    pose = clip.pose_file
    return replace(clip, video=_absolute(clip.video), pose_file=pose and replace(pose, path=_absolute(pose.path)))


def _absolute(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).absolute())
