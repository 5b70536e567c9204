"""Encoded clips as decoders take them. Imports no torch: decoder processes start quickly.

T sampled frames, D different ones among them, F frames of the clip.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.reading.sample import JPEG_END, JPEG_START

MARKS = JPEG_START + JPEG_END


@dataclass(frozen=True)
class EncodedClip:
    """The encoded video of one clip, the frames wanted and where the output pixels lie in its packed picture.

    video: 1-D uint8. offsets: int64 (F+1,) of the frames in it, None for a video container, and for blocks that were gathered
    (`gathered`). frames_T: int64, a number may occur again. blocks: how each frame is laid out, None for JPEGs and containers.
    output_to_packed (2, 3). packed_width, packed_height: pixels of the encoded picture. pictures: its `different` frames in
    `video`, if they were already cut out of it.
    """

    key: str
    video: NDArray[np.uint8]
    offsets: NDArray[np.int64] | None
    frames_T: NDArray[np.int64]
    output_to_packed: Affine
    packed_width: int
    packed_height: int
    blocks: BlockFormat | None = None
    pictures: Sequence[memoryview] = ()

    def with_video(self, video: NDArray[np.uint8], pictures: Sequence[memoryview] = ()) -> "EncodedClip":
        """The same clip, its bytes elsewhere."""
        return changed(self, video=video, pictures=pictures)


Record = TypeVar("Record")


def changed(record: Record, **fields: Any) -> Record:
    """`dataclasses.replace` without making the record anew, which takes several times as long where it is frozen."""
    copy = object.__new__(type(record))
    vars(copy).update(vars(record), **fields)
    return copy


@dataclass(frozen=True)
class Jpegs:
    """The JPEGs of a clip that are decoded: `different` ones, and (T,) which of them each wanted frame shows."""

    pictures: Sequence[memoryview]
    places: NDArray[np.int64]


def jpeg_slices(clips: Sequence[EncodedClip]) -> list[Jpegs]:
    """The JPEGs of each clip, without copying. N wanted frames of all clips, P different ones among them: in arrays of all.

    Raises ValueError when an offset table does not fit the bytes, or when a picture does not begin and end as a JPEG
    does: a decoder would fill what is missing with grey and say nothing.
    """
    table, row_N, first_B = _tables(clips)
    row_P, place_N = np.unique(row_N, return_inverse=True)
    cut_B = np.searchsorted(row_P, [*first_B, len(table)])
    start_P, stop_P = table[row_P], table[row_P + 1]
    size_P = np.repeat([clip.video.size for clip in clips], np.diff(cut_B))
    wrong_P = (start_P < 0) | (stop_P - start_P < len(MARKS)) | (stop_P > size_P)
    if wrong_P.any():
        clip = clips[int(np.searchsorted(cut_B, wrong_P.argmax(), "right")) - 1]
        raise ValueError(f"clip {clip.key}: offsets.npy points outside the {clip.video.size} bytes of its JPEGs")
    ends_4P = np.stack([start_P, start_P + 1, stop_P - 2, stop_P - 1])
    found, last = [], 0
    for clip, low, high in zip(clips, cut_B.tolist(), cut_B[1:].tolist(), strict=False):
        _check_marks(clip, ends_4P[:, low:high])
        first, last = last, last + len(clip.frames_T)
        pictures = clip.pictures or _cut(clip.video.data, start_P[low:high], stop_P[low:high])
        found.append(Jpegs(pictures, place_N[first:last] - low))
    return found


def _cut(content: memoryview, start_D: NDArray[np.int64], stop_D: NDArray[np.int64]) -> list[memoryview]:
    return [content[start:stop] for start, stop in zip(start_D.tolist(), stop_D.tolist(), strict=True)]


def _tables(clips: Sequence[EncodedClip]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The clips' offset tables as one, (N,) where in it each wanted frame stands, (B,) where each clip's own begins.

    Raises ValueError for a clip without a table, or with one that ends before a wanted frame.
    """
    for clip in clips:
        if clip.offsets is None:
            raise ValueError(f"clip {clip.key}: no offsets.npy for its concatenated JPEGs")
    tables = [clip.offsets for clip in clips if clip.offsets is not None]
    length_B = [len(table) for table in tables]
    first_B = np.cumsum([0, *length_B[:-1]])
    frame_N, wanted_B = np.concatenate([clip.frames_T for clip in clips]), [len(clip.frames_T) for clip in clips]
    missing_N = (frame_N < 0) | (frame_N > np.repeat(length_B, wanted_B) - 2)
    if missing_N.any():
        clip = clips[np.repeat(np.arange(len(clips)), wanted_B)[missing_N.argmax()]]
        raise ValueError(f"clip {clip.key}: frame {frame_N[missing_N.argmax()]} wanted, {len(clip.offsets) - 1} stored")
    return np.concatenate(tables), frame_N + np.repeat(first_B, wanted_B), first_B


def _check_marks(clip: EncodedClip, ends_4D: NDArray[np.int64]) -> None:
    """ValueError unless these bytes of a clip are those that each of its D JPEGs begins and ends with."""
    count = ends_4D.shape[1]
    marks = clip.video.take(ends_4D).tobytes()
    if marks != _marks(count):
        wrong = next(d for d in range(count) if marks[d::count] != MARKS)
        raise ValueError(f"clip {clip.key}: frame {different(clip)[wrong]} is not a whole JPEG picture")


@functools.lru_cache(maxsize=256)
def _marks(count: int) -> bytes:
    """All first bytes of so many JPEGs, all second ones, all last but one, all last."""
    return b"".join(bytes([mark]) * count for mark in MARKS)


def block_slices(clip: EncodedClip, blocks: BlockFormat) -> list[NDArray[np.uint8]]:
    """The wanted frames in blocks, uint8 (frame_bytes,) each, without copying. Raises ValueError for one of another size."""
    table, row_T, _ = _tables([clip])
    start_T, stop_T = table[row_T], table[row_T + 1]
    if start_T.min() < 0 or stop_T.max() > clip.video.size or (stop_T - start_T != blocks.frame_bytes).any():
        raise ValueError(f"clip {clip.key}: {clip.video.size} bytes do not hold its frames of {blocks.frame_bytes} bytes each")
    return [clip.video[start:stop] for start, stop in zip(start_T.tolist(), stop_T.tolist(), strict=True)]


def gathered(clip: EncodedClip, blocks: BlockFormat) -> EncodedClip:
    """A clip in blocks whose bytes are its different wanted frames, one behind the other, which `frames_T` now counts.

    Raises ValueError if it does not hold them, or they are stored in another format.
    """
    if clip.blocks != blocks:
        raise ValueError(f"clip {clip.key}: {clip.blocks}, expected {blocks}")
    if clip.offsets is None:
        return clip
    by_frame = dict(zip(clip.frames_T.tolist(), block_slices(clip, blocks), strict=True))
    return in_order(clip, np.concatenate([by_frame[frame] for frame in different(clip)]))


def different(clip: EncodedClip) -> list[int]:
    """The wanted frames, each once, in rising order."""
    return sorted(set(clip.frames_T.tolist()))


def places(clip: EncodedClip) -> NDArray[np.int64]:
    """Of each of the T wanted frames its place among the `different` ones."""
    return np.searchsorted(different(clip), clip.frames_T)


def in_order(clip: EncodedClip, video: NDArray[np.uint8]) -> EncodedClip:
    """The clip over the bytes of its `different` frames alone."""
    return changed(clip, video=video, offsets=None, frames_T=places(clip), pictures=())


def laid(clip: EncodedClip, place: NDArray[np.uint8]) -> EncodedClip:
    """A gathered clip whose bytes are the first of `place`."""
    assert clip.blocks is not None and clip.offsets is None
    return changed(clip, video=place[: (int(clip.frames_T.max()) + 1) * clip.blocks.frame_bytes])
