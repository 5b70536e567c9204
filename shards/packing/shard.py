"""The packer's unit of work: one shard, packed by one process, either complete or absent."""

import errno
import json
import os
import socket
import time
import zlib
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, Skipped
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.boxes import present_joints
from svdata2vec.shards.errors import SERVER_ERRORS, MachineError, UserError, reason_of, require_machine
from svdata2vec.shards.packing.clip import ClipPacker
from svdata2vec.shards.packing.crashes import NOTE_SUFFIX
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.packing.tarwriter import TarWriter
from svdata2vec.shards.reading.manifest import file_bytes
from svdata2vec.shards.reading.sample import ClipMeta, parse_array
from svdata2vec.shards.reading.sums import clip_sums
from svdata2vec.shards.shown import public
from svdata2vec.shards.times import Times
from svdata2vec.shards.urls import RETRY_SECONDS, answer_of, cause_of, filesystem_of, may_pass
from svdata2vec.shards.video import open_bytes, silence_decoder

_reached: dict[str, str] = {}  # store -> the URL that this process has read from it last
PARTS = ".parts"  # folder with one record per finished shard, until the manifest is written


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs, in one picklable object. `components`: order of a clip's tar members.

    `refused`: clips that must not be packed -> reason. `there`: clips whose video existed when the packing started.
    """

    number: int
    root: Path
    clips: tuple[ClipAnnotation, ...]
    num_joints: int
    components: tuple[str, ...]
    options: PackOptions
    refused: dict[str, str]
    there: frozenset[str]


@dataclass(frozen=True)
class ShardRecord:
    """Outcome of a shard. A shard without clips has no tar and an empty hash.

    Attributes:
        rows: (key, label, frames, offsets, sizes) per clip.
        sums: uint32, clip after clip as `clip_sums` returns them; an array, as a packing keeps those of all shards in memory.
        without_joints: keys of packed clips that have persons but not a single joint.
        joined: clip -> number of its slots that were joined to others of the same person.
        pictures: clip -> `ClipMeta.pictures`.
        early: clip -> `ClipPacker.early`, of its frames.
    """

    number: int
    sha256: str
    bytes: int
    rows: list[tuple[str, int, int, list[int], list[int]]]
    sums: np.ndarray
    skipped: list[Skipped]
    without_joints: list[str]
    joined: dict[str, int]
    pictures: dict[str, str]
    early: dict[str, tuple[int, int]] = field(default_factory=dict)

    def save(self, root: Path) -> None:
        """Write the record, preceded by its CRC-32."""
        content = json.dumps(asdict(self), default=np.ndarray.tolist).encode()
        write_atomically(record_path(root, self.number), f"{zlib.crc32(content):08x}\n".encode() + content)

    @classmethod
    def load(cls, root: Path, number: int) -> "ShardRecord | None":
        """The record of a shard that is complete on disk; None if there is none, or if it or the tar is damaged."""
        try:
            stated, _, content = record_path(root, number).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if stated != f"{zlib.crc32(content):08x}".encode():
            return None
        fields: Any = json.loads(content)
        try:
            fields["rows"] = [tuple(row) for row in fields["rows"]]
            fields["sums"] = np.array(fields["sums"], np.uint32)
            fields["skipped"] = [Skipped(**entry) for entry in fields["skipped"]]
            fields["early"] = {key: tuple(frames) for key, frames in fields.get("early", {}).items()}
            record = cls(**fields)
        except (KeyError, TypeError):  # written by a program with other fields
            return None
        return record if not record.rows or file_bytes(root / shard_name(number)) == record.bytes else None


def shard_name(number: int) -> str:
    """`shard-000012.tar`."""
    return f"shard-{number:06d}.tar"


def record_path(root: Path, number: int) -> Path:
    """Path of the record of a finished shard."""
    return root / PARTS / f"shard-{number:06d}.json"


def pack_shard(task: ShardTask) -> tuple[ShardRecord, Times]:
    """Pack the clips of one shard; runs in a worker. A clip that cannot be packed is recorded with its reason.

    Raises MachineError if the shard cannot be written (disk full), or if the sources have disappeared.
    """
    silence_decoder()
    cv2.setNumThreads(1)  # one worker per core
    packer = ClipPacker(task.num_joints, task.options)
    try:
        with packer.times.step("total"):
            record = _write_shard(task, packer)
            with packer.times.step("write"):
                record.save(task.root)
    except OSError as error:
        raise write_error(task.root, error) from error
    return record, packer.times


def _write_shard(task: ShardTask, packer: ClipPacker) -> ShardRecord:
    rows, sums, skipped, without_joints = [], [], [], []
    joined: dict[str, int] = {}
    pictures: dict[str, str] = {}
    early: dict[str, tuple[int, int]] = {}
    with TarWriter(task.root / shard_name(task.number)) as tar, closing(packer):
        for clip in task.clips:
            try:
                parts, num_frames = _pack_or_refuse(clip, task, packer)
                with packer.times.step("write"):
                    offsets, sizes = tar.add(clip.key, parts, task.components)
                    sums += clip_sums(parts, task.components)
            except MachineError:
                raise
            except UserError as error:
                skipped.append(Skipped(clip.key, str(error), str(clip.video)))
                continue
            if packer.joined:
                joined[clip.key] = packer.joined
            if packer.early:
                early[clip.key] = packer.early, num_frames
            pictures[clip.key] = ClipMeta.from_bytes(parts["json"], clip.key).pictures
            rows.append((clip.key, clip.label, num_frames, offsets, sizes))
            pose_MTVC = parse_array(parts["pose.npy"], clip.key)
            if len(pose_MTVC) and not present_joints(pose_MTVC).any():
                without_joints.append(clip.key)
        sha256, size = "", 0
        if rows:
            with packer.times.step("write"):
                sha256, size = tar.commit()
    return ShardRecord(
        task.number, sha256, size, rows, np.array(sums, np.uint32), skipped, without_joints, joined, pictures, early)


def _pack_or_refuse(clip: ClipAnnotation, task: ShardTask, packer: ClipPacker) -> tuple[dict[str, bytes], int]:
    """`ClipPacker.pack`, repeated if the store of the files may have failed only for a moment.

    Its last exception becomes a UserError, so that one clip never ends the packing; MachineError if all files beside the clip's
    are gone as well, or the store fails for others, too.
    """
    if clip.key in task.refused:
        raise UserError(task.refused[clip.key])
    note = record_path(task.root, task.number).with_suffix(NOTE_SUFFIX)
    note.write_text(clip.key, encoding="ascii")  # if the decoder crashes this process, the note stays
    waits, video = [*RETRY_SECONDS], str(clip.video)
    remote = "://" in video
    try:
        while True:
            try:
                packed = packer.pack(clip)
            except Exception as error:
                passing = may_pass(cause_of(error)) if remote else getattr(error, "errno", None) in SERVER_ERRORS
                if not waits or not passing:
                    raise _refusal(clip, task, error) from error
            else:
                if remote:
                    _reached[_store(video)] = video
                return packed
            time.sleep(waits.pop(0))
    finally:
        note.unlink(missing_ok=True)


def _refusal(clip: ClipAnnotation, task: ShardTask, error: Exception) -> UserError:
    """Why a clip is left out. Raises MachineError if its files are not to blame."""
    video = str(clip.video)
    require_machine(error, video, passed=True)
    if "://" not in video:
        if clip.key in task.there:
            _require_sources(clip)
    elif not isinstance(error, (ValueError, TypeError)) and getattr(error, "filename", None) is None:
        _require_store(video)  # what failed is neither its content nor a file of this machine
        return UserError(f"{video}: cannot be read ({answer_of(cause_of(error))})")
    return UserError(reason_of(error, video))


def _store(url: str) -> str:
    """Scheme and host, or bucket, of a URL."""
    return "{0.scheme}://{0.netloc}".format(urlsplit(url))


def _require_store(url: str) -> None:
    """MachineError if the store of a file that cannot be read fails for everything, or for what was read from it before.

    It may be away, or access to it may have expired. If its clips were skipped instead, the finished set would lack all that
    were still to be packed.
    """
    before = _reached.get(_store(url))
    try:
        if before is None:
            system, place = filesystem_of(url.rpartition("/")[0])
            system.info(place)
        else:
            with open_bytes(before) as file:
                file.read(1)
    except Exception as error:
        failure = cause_of(error)
        if before is not None or may_pass(failure):
            does = "no longer gives what it gave before" if before else "fails"
            raise MachineError(public(f"{_store(url)}: {does} ({answer_of(failure)}); finished shards are kept: run again with "
                                      "--resume when it works")) from error


def _require_sources(clip: ClipAnnotation) -> None:
    """MachineError if a file of the clip is gone with everything in its folder, as if a disk is not mounted here.

    If such clips were skipped instead, the finished set would lack all clips that were still to be packed.
    """
    for path in map(Path, (clip.video, *([] if clip.pose_file is None else [clip.pose_file.path]))):
        if _is_away(path):
            raise MachineError(f"{path.parent}: not there any more, or empty, on {socket.gethostname()}; {path.name} was to be "
                               "packed from it. Finished shards are kept: mount it there (workers of --cluster need it under "
                               "the same path) and run again with --resume")


def _is_away(path: Path) -> bool:
    """Whether neither this file nor any other one in its folder exists."""
    try:
        return not any(path.parent.iterdir())
    except OSError:
        return not os.access(path, os.F_OK)  # a folder may be accessible, but not listable


def write_error(root: Path, error: OSError) -> MachineError:
    """The error to raise if the output folder cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(f"{root}: the disk is full ({error.strerror}); finished shards are kept: free some space and "
                            "run the same command with --resume")
    return MachineError(f"{root}: cannot be written ({error}); finished shards are kept: run again with --resume")
