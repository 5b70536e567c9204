"""One clip as it is stored in a tar: component names, the `json` component, and the checks when it is read.

M persons, F frames, V joints; all coordinates are pixels of the source video as decoded and turned upright.
"""

import functools
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from operator import itemgetter, le
from typing import cast, get_args

import numpy as np

from svdata2vec.shards.blocks import HEADER_BYTES, BlockFormat, parse_clip
from svdata2vec.shards.errors import AGAIN, LOOK, UserError, require_memory
from svdata2vec.shards.npy import read_npy

CONTAINERS = ("mp4", "mkv", "webm", "avi")
VIDEO_COMPONENTS = ("jpegs", "blocks", *CONTAINERS)  # a clip has one of them
OFFSETS = "offsets.npy"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"  # a JPEG's first and last two bytes
# The components that hold a codec's pictures: all of them, of codec `copy` one of them.
PICTURES = {"jpeg": ("jpegs", OFFSETS), "blocks": ("blocks",), **dict.fromkeys(("vp9", "h264", "hevc", "mjpeg"), ("mp4",)),
            "copy": CONTAINERS}
BY_FRAME = ("jpeg", "blocks")  # codecs that store frames one by one: each is decoded without those before it
SIDE_COMPONENTS = ("pose.npy", "score.npy", "box.npy", "json")

Buffer = bytes | memoryview
_FLOAT32, _FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)


@dataclass(frozen=True)
class ClipMeta:
    """The `json` component of a clip.

    Attributes:
        width, height: size of the source picture.
        packed_width, packed_height: size of the stored picture.
        packed_to_source: float64 (2, 3), source_xy = A[:, :2] @ packed_xy + A[:, 2]; the centre of pixel (row i, column j) is
            (j + 0.5, i + 0.5).
        source: file name of the video.
        pose_frames: poses in the annotation, if their number is not `num_frames`.
        bad_joints: joints of the annotation that are NaN, infinite or far outside the picture, stored as missing.
        source_sha256: hash of the video's bytes, empty if it came from a URL.
        first_frame: the video's frame with which the clip begins.

    In the JSON text every field is present and always has the same type: None is written as -1.
    """

    key: str
    label: int
    num_frames: int
    fps: float
    width: int
    height: int
    packed_width: int
    packed_height: int
    packed_to_source: np.ndarray
    source: str = ""
    subject: int | None = None
    camera: int | None = None
    setup: int | None = None
    pose_frames: int | None = None
    bad_joints: int = 0
    source_sha256: str = ""
    first_frame: int = 0

    @property
    def pictures(self) -> str:
        """An identifier that is equal for clips with the same frames of the same file; empty if that is not known."""
        return f"{self.source_sha256} {self.first_frame} {self.num_frames}" if self.source_sha256 else ""

    def to_bytes(self) -> bytes:
        """JSON text, the same for the same content."""
        fields = asdict(self) | {"packed_to_source": self.packed_to_source.tolist(), "fps": float(self.fps)}
        fields |= {name: -1 for name in _PERHAPS if fields[name] is None}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: Buffer, where: str) -> "ClipMeta":
        """Parse the component; UserError names `where` and the fault."""
        try:
            values = json.loads(str(content, "utf-8"))
            values["packed_to_source"] = matrix = np.array(values["packed_to_source"], np.float64)
            for name in _PERHAPS:  # format 1 wrote null
                if values.get(name) == -1:
                    values[name] = None
            wrong = _of_wrong_kind(tuple(values), tuple(map(type, values.values())))
        except Exception as error:
            require_memory(error, where)
            raise UserError(f"{where}: the json component is damaged ({error}); {LOOK}") from error
        meta = object.__new__(cls)  # `__init__` of a frozen class takes as long as parsing
        vars(meta).update(_DEFAULTS, **values)
        if not wrong and not (all(map(le, _LOWEST.values(), _bounded(vars(meta)))) and max(_bounded(vars(meta))) < 2**31):
            wrong = [name for name, low in _LOWEST.items() if not low <= getattr(meta, name) < 2**31]
        if wrong or matrix.shape != (2, 3) or not all(map(math.isfinite, matrix.ravel().tolist())):
            raise UserError(f"{where}: the json component has a wrong {' and '.join(wrong) or 'packed_to_source'}; {LOOK}")
        return meta


@functools.lru_cache(maxsize=256)
def _of_wrong_kind(names: tuple[str, ...], kinds: tuple[type, ...]) -> list[str]:
    """Fields with values of a wrong type. TypeError for a missing or unknown field. Cached, as few combinations occur."""
    given = dict(zip(names, kinds, strict=True))
    ClipMeta(**given)  # type: ignore[arg-type]  # for its error
    return [name for name, kind in _KINDS.items() if name in given and not issubclass(given[name], kind)]


_KINDS: dict[str, tuple[type, ...]] = {  # `isinstance` is slow with a union
    field.name: get_args(field.type) or (cast("type", field.type),) for field in fields(ClipMeta)
} | {"fps": (int, float)}
_DEFAULTS = {field.name: field.default for field in fields(ClipMeta) if field.default is not MISSING}
_PERHAPS = ("subject", "camera", "setup", "pose_frames")
_LOWEST = {"label": 0, "num_frames": 1, "fps": 0, "width": 1, "height": 1, "packed_width": 1, "packed_height": 1,
           "first_frame": 0}
_bounded = itemgetter(*_LOWEST)


@dataclass(frozen=True)
class Sample:
    """One clip, parsed and checked.

    Attributes:
        video: bytes of the video component.
        offsets: int64 (F + 1,), codecs jpeg and blocks: frame f is `video[offsets[f] : offsets[f + 1]]`.
        pose_MTVC: float32 (M, F, V, 2), zero = missing.
        score_MTV: float16 or None.
        box_T4: float32 (F, 4).
        blocks: layout of the frames, codec blocks only.
    """

    key: str
    label: int
    video: memoryview | None
    offsets: np.ndarray | None
    pose_MTVC: np.ndarray
    score_MTV: np.ndarray | None
    box_T4: np.ndarray
    meta: ClipMeta
    blocks: BlockFormat | None = None


# Version 1.0 headers of little-endian numbers in C order, as NumPy writes them.
_PLAIN_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '(?P<dtype><[fiu][248]|\|[iu]1)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n"
)


@functools.lru_cache(maxsize=4096)
def _plain_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], int] | None:
    """Type, shape and bytes of a plain array; None if it is not one. Cached, as few different headers occur."""
    found = _PLAIN_NPY.fullmatch(header)
    if found is None:
        return None
    dtype = np.dtype(found["dtype"].decode())
    shape = tuple(int(number) for number in found["shape"].split(b",") if number.strip())
    return dtype, shape, dtype.itemsize * math.prod(shape)


def parse_array(content: Buffer, where: str) -> np.ndarray:
    """An .npy component; UserError if it is damaged. The array has its own memory.

    Plain arrays are read without `np.load`, which parses the header with `ast`: that costs tens of microseconds.
    """
    try:
        start = 10 + content[8] + (content[9] << 8)
        plain = _plain_header(bytes(content[:start])) if start <= 128 else None
        if plain is None:
            return read_npy(lambda: np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))
        dtype, shape, size = plain
        if len(content) != start + size:
            raise ValueError(f"{len(content) - start} bytes for {shape} {dtype}")
        return np.ndarray(shape, dtype, content, start).copy()
    except Exception as error:
        require_memory(error, where)
        raise UserError(f"{where}: not a readable array ({error}); {LOOK}") from error


def parse_sample(
    key: str, parts: Mapping[str, Buffer], video_component: str | None, num_joints: int | None,
    frames_in: int | BlockFormat | None = None,
) -> Sample:
    """Build a Sample from its components and check that they agree; UserError names the clip and the component.

    `video_component`: None leaves out the pixels. The sample then still has the offsets of its frames if `frames_in` is given:
    the number of bytes of all JPEGs, or the format of blocks. `num_joints`: None accepts any number of joints.
    """
    meta = ClipMeta.from_bytes(parts["json"], f"clip {key}")
    if meta.key != key:
        raise UserError(f"clip {key}: the stored clip calls itself {meta.key}; the index belongs to other shards")
    arrays = {name: parse_array(parts[name], f"clip {key}, {name}") for name in ("pose.npy", "box.npy")}
    score_MTV = parse_array(parts["score.npy"], f"clip {key}, score.npy") if parts.get("score.npy") else None
    _check_shapes(key, meta, arrays["pose.npy"], arrays["box.npy"], score_MTV, num_joints)
    video = offsets = blocks = None
    if video_component is not None:
        video = memoryview(parts[video_component])
        if video_component == "jpegs":
            offsets = parse_offsets(key, parts[OFFSETS], len(video), meta.num_frames)
        elif video_component == "blocks":
            blocks = parse_blocks(key, video, meta)
            offsets = block_offsets(blocks, meta.num_frames)
    elif isinstance(frames_in, BlockFormat):
        blocks, offsets = frames_in, block_offsets(frames_in, meta.num_frames)
    elif frames_in is not None:
        offsets = parse_offsets(key, parts[OFFSETS], frames_in, meta.num_frames)
    return Sample(key, meta.label, video, offsets, arrays["pose.npy"], score_MTV, arrays["box.npy"], meta, blocks)


def _check_shapes(key: str, meta: ClipMeta, pose_MTVC: np.ndarray, box_T4: np.ndarray, score_MTV: np.ndarray | None,
                  num_joints: int | None) -> None:
    persons, _, joints, _ = pose_MTVC.shape if pose_MTVC.ndim == 4 else (0, 0, 0, 0)
    shape_MTV = persons, meta.num_frames, joints if num_joints is None else num_joints
    for name, array, dtype, shape in (
        ("pose.npy", pose_MTVC, _FLOAT32, (*shape_MTV, 2)), ("box.npy", box_T4, _FLOAT32, (meta.num_frames, 4)),
        ("score.npy", score_MTV, _FLOAT16, shape_MTV),
    ):
        if array is not None and (array.shape != shape or array.dtype != dtype):
            raise UserError(f"clip {key}: {name} is {array.dtype} {array.shape}, expected {dtype} {shape}; {AGAIN}")
    if not _all(np.isfinite(pose_MTVC)) or not _all(np.isfinite(box_T4)):
        raise UserError(f"clip {key}: joints or boxes are not finite; {AGAIN}")


def _all(condition: np.ndarray) -> bool:
    """`condition.all()` of a small array, in half the time."""
    return b"\0" not in condition.tobytes()


def parse_offsets(key: str, content: Buffer, blob_bytes: int, num_frames: int) -> np.ndarray:
    """The table of a clip's JPEGs, int64 (F + 1,); UserError if it does not divide `blob_bytes` into `num_frames`."""
    offsets = parse_array(content, f"clip {key}, offsets.npy")
    if offsets.shape != (num_frames + 1,) or offsets.dtype != np.int64:
        raise UserError(f"clip {key}: offsets.npy is {offsets.dtype} {offsets.shape}, expected int64 "
                        f"({num_frames + 1},); {AGAIN}")
    if offsets[0] != 0 or offsets[-1] != blob_bytes or not _all(offsets[1:] > offsets[:-1]):
        raise UserError(f"clip {key}: offsets.npy does not divide the {blob_bytes} bytes of jpegs; {AGAIN}")
    return offsets


def cut_out(video: np.ndarray, starts: Sequence[int], stops: Sequence[int]) -> list[memoryview]:
    """Parts of 1-D bytes, without copying."""
    whole = video.data  # slicing a memoryview costs less than slicing an array
    return [whole[start:stop] for start, stop in zip(starts, stops, strict=True)]


def parse_blocks(key: str, content: Buffer, meta: ClipMeta) -> BlockFormat:
    """The format of a clip's blocks; UserError if the header is damaged or does not fit the clip's `meta`."""
    try:
        found, frames = parse_clip(np.frombuffer(content, np.uint8))
    except ValueError as error:
        raise UserError(f"clip {key}: {error}") from error
    if len(frames) != meta.num_frames or (found.side, found.side) != (meta.packed_width, meta.packed_height):
        raise UserError(f"clip {key}: blocks: {len(frames)} frames of side {found.side}, expected {meta.num_frames} of "
                        f"{meta.packed_width}x{meta.packed_height}; {AGAIN}")
    return found


def block_offsets(layout: BlockFormat, num_frames: int) -> np.ndarray:
    """int64 (F + 1,): where each frame begins in a `blocks` component, and where the last one ends."""
    return HEADER_BYTES + np.arange(num_frames + 1, dtype=np.int64) * layout.frame_bytes
