"""Encoded clips as decoders take them. Imports no torch, so that decoder processes start quickly.

T sampled frames, D different ones among them, F frames of the clip.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.errors import AGAIN
from svdata2vec.shards.reading.sample import JPEG_END, JPEG_START, cut_out

MARKS = JPEG_START + JPEG_END


@dataclass(frozen=True)
class EncodedClip:
    """The encoded video of one clip, the frames wanted and where the output pixels lie in its packed picture.

    Attributes:
        video: 1-D uint8.
        offsets: int64 (F+1,) of the frames in it; None for a video container, and for blocks that were gathered (`gathered`).
        frames_T: int64; numbers may repeat.
        output_to_packed: (2, 3).
        packed_width, packed_height: size of the encoded picture in pixels.
        blocks: layout of each frame, None for JPEGs and containers.
        table: the JPEGs that are decoded, if this was already computed.
        pictures: the JPEGs of `table`, cut out of `video`.
    """

    key: str
    video: NDArray[np.uint8]
    offsets: NDArray[np.int64] | None
    frames_T: NDArray[np.int64]
    output_to_packed: Affine
    packed_width: int
    packed_height: int
    blocks: BlockFormat | None = None
    table: "JpegTable | None" = None
    pictures: Sequence[memoryview] = ()

    def with_video(self, video: NDArray[np.uint8], pictures: Sequence[memoryview]) -> "EncodedClip":
        """The same clip with its bytes in other memory."""
        return changed(self, video=video, pictures=pictures)


Record = TypeVar("Record")


def changed(record: Record, **fields: Any) -> Record:
    """`dataclasses.replace` without constructing the record again, which takes several times as long for a frozen one."""
    copy = object.__new__(type(record))
    vars(copy).update(vars(record), **fields)
    return copy


class JpegTable(NamedTuple):
    """The D JPEGs of a clip that are decoded: its `different` frames.

    Attributes:
        frames_D: int64, their frame numbers in ascending order.
        starts, stops: where each begins and ends in the clip's bytes.
        ends_4D: int64, positions of the first two and the last two bytes of each.
        places_T: int64, which of them each wanted frame shows.
    """

    frames_D: NDArray[np.int64]
    starts: list[int]
    stops: list[int]
    ends_4D: NDArray[np.int64]
    places_T: NDArray[np.int64]


class Jpegs(NamedTuple):
    """The JPEGs of a clip that are decoded: `different` ones, and (T,) which of them each wanted frame shows."""

    pictures: Sequence[memoryview]
    places: NDArray[np.int64]


def jpeg_slices(clips: Sequence[EncodedClip]) -> list[Jpegs]:
    """The JPEGs of each clip, without copying.

    Raises ValueError if an offset table does not fit the bytes, or if a picture does not begin and end as a JPEG does: a
    decoder would silently fill the missing part with grey.
    """
    tables = [clip.table for clip in clips if clip.table is not None]
    if len(tables) < len(clips):
        tables = jpeg_tables([clip.key for clip in clips], [clip.offsets for clip in clips], [clip.frames_T for clip in clips])
    found = []
    for clip, table in zip(clips, tables, strict=True):
        _check_marks(clip, table)
        found.append(Jpegs(clip.pictures or cut_out(clip.video, table.starts, table.stops), table.places_T))
    return found


def jpeg_tables(
    keys: Sequence[str], offsets: Sequence[NDArray[np.int64] | None], frames: Sequence[NDArray[np.int64]]
) -> list[JpegTable]:
    """Where the wanted frames of each clip are stored. N wanted frames of all clips together, P different ones among them.

    offsets, frames: (F + 1,) and (T,) of each clip. Raises ValueError for a clip whose table lacks one of its frames.
    """
    table, row_N, first_B = _tables(keys, offsets, frames)
    row_P, place_N = np.unique(row_N, return_inverse=True)
    cut_B = np.searchsorted(row_P, [*first_B, len(table)])
    start_P, stop_P = table[row_P], table[row_P + 1]
    wrong_P = (start_P < 0) | (stop_P - start_P < len(MARKS))
    if wrong_P.any():
        wrong = int(wrong_P.argmax())
        raise ValueError(f"clip {keys[int(np.searchsorted(cut_B, wrong, 'right')) - 1]}: offsets.npy has a JPEG from byte "
                         f"{start_P[wrong]} to {stop_P[wrong]}; {AGAIN}")
    ends_4P = np.stack([start_P, start_P + 1, stop_P - 2, stop_P - 1])
    frame_P = row_P - np.repeat(first_B, np.diff(cut_B))
    starts, stops = start_P.tolist(), stop_P.tolist()
    found, last, cuts = [], 0, cut_B.tolist()
    for wanted, low, high in zip(frames, cuts, cuts[1:], strict=False):
        first, last = last, last + len(wanted)
        found.append(JpegTable(
            frame_P[low:high], starts[low:high], stops[low:high], ends_4P[:, low:high], place_N[first:last] - low
        ))
    return found


def _tables(
    keys: Sequence[str], offsets: Sequence[NDArray[np.int64] | None], frames: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The clips' offset tables as one, (N,) row of each wanted frame in it, (B,) row at which each clip's own table begins.

    Raises ValueError for a clip without a table, or with one that ends before a wanted frame.
    """
    tables = [table for table in offsets if table is not None]
    if len(tables) < len(keys):
        raise ValueError(f"clip {next(key for key, table in zip(keys, offsets, strict=True) if table is None)}: no offsets.npy "
                         "for its concatenated JPEGs")
    length_B = [len(table) for table in tables]
    first_B = np.cumsum([0, *length_B[:-1]])
    frame_N, wanted_B = np.concatenate(frames), [len(wanted) for wanted in frames]
    missing_N = (frame_N < 0) | (frame_N > np.repeat(length_B, wanted_B) - 2)
    if missing_N.any():
        clip = np.repeat(np.arange(len(keys)), wanted_B)[missing_N.argmax()]
        raise ValueError(f"clip {keys[clip]}: frame {frame_N[missing_N.argmax()]} wanted, {length_B[clip] - 1} stored")
    return np.concatenate(tables), frame_N + np.repeat(first_B, wanted_B), first_B


def _check_marks(clip: EncodedClip, table: JpegTable) -> None:
    """Raise ValueError unless each of the D JPEGs of a clip begins and ends with the marks of one."""
    try:
        marks = clip.video.take(table.ends_4D).tobytes()
    except IndexError:
        raise ValueError(
            f"clip {clip.key}: offsets.npy points outside the {clip.video.size} bytes of its JPEGs"
        ) from None
    count = len(table.frames_D)
    if marks != _marks(count):
        wrong = next(d for d in range(count) if marks[d::count] != MARKS)
        raise ValueError(f"clip {clip.key}: frame {table.frames_D[wrong]} is not a whole JPEG picture")


@functools.lru_cache(maxsize=256)
def _marks(count: int) -> bytes:
    """The first bytes of `count` JPEGs, then their second bytes, their last but one and their last."""
    return b"".join(bytes([mark]) * count for mark in MARKS)


def block_slices(clip: EncodedClip, blocks: BlockFormat) -> list[NDArray[np.uint8]]:
    """The wanted frames in blocks, uint8 (frame_bytes,) each, without copying. Raises ValueError for one of another size."""
    table, row_T, _ = _tables([clip.key], [clip.offsets], [clip.frames_T])
    start_T, stop_T = table[row_T], table[row_T + 1]
    if start_T.min() < 0 or stop_T.max() > clip.video.size or (stop_T - start_T != blocks.frame_bytes).any():
        raise ValueError(f"clip {clip.key}: {clip.video.size} bytes do not hold its frames of {blocks.frame_bytes} bytes each")
    return [clip.video[start:stop] for start, stop in zip(start_T.tolist(), stop_T.tolist(), strict=True)]


def gathered(clip: EncodedClip, blocks: BlockFormat) -> EncodedClip:
    """A clip in blocks whose bytes are only its different wanted frames, one after the other; `frames_T` are places among them.

    Raises ValueError if it does not hold them, or they are stored in another format.
    """
    if clip.blocks != blocks:
        raise ValueError(f"clip {clip.key}: {clip.blocks}, expected {blocks}")
    if clip.offsets is None:
        return clip
    by_frame = dict(zip(clip.frames_T.tolist(), block_slices(clip, blocks), strict=True))
    return in_order(clip, np.concatenate([by_frame[frame] for frame in different(clip)]))


def different(clip: EncodedClip) -> list[int]:
    """The wanted frames, each once, in ascending order."""
    return sorted(set(clip.frames_T.tolist()))


def places(clip: EncodedClip) -> NDArray[np.int64]:
    """Place of each of the T wanted frames among the `different` ones."""
    return np.searchsorted(different(clip), clip.frames_T)


def in_order(clip: EncodedClip, video: NDArray[np.uint8]) -> EncodedClip:
    """The clip with `video`, the bytes of only its `different` frames."""
    return changed(clip, video=video, offsets=None, frames_T=places(clip))


def laid(clip: EncodedClip, place: NDArray[np.uint8]) -> EncodedClip:
    """A gathered clip whose bytes are at the start of `place`."""
    assert clip.blocks is not None and clip.offsets is None
    return changed(clip, video=place[: (int(clip.frames_T.max()) + 1) * clip.blocks.frame_bytes])
