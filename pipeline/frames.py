"""Encoded clips as decoders take them. Imports no torch: decoder processes start quickly.

T sampled frames, D different ones among them, F frames of the clip.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine
from svdata2vec.shards.blocks import BlockFormat

WHOLE = b"\xff\xd8\xff\xd9"  # a JPEG's first and last two bytes


@dataclass(frozen=True)
class EncodedClip:
    """The encoded video of one clip, the frames wanted and where the output pixels lie in its packed picture.

    video: 1-D uint8. offsets: int64 (F+1,) of the frames in it, None for a video container, and for blocks that were gathered
    (`gathered`). frames_T: int64, a number may occur again. blocks: how each frame is laid out, None for JPEGs and containers.
    output_to_packed (2, 3). packed_width, packed_height: pixels of the encoded picture.
    """

    key: str
    video: NDArray[np.uint8]
    offsets: NDArray[np.int64] | None
    frames_T: NDArray[np.int64]
    output_to_packed: Affine
    packed_width: int
    packed_height: int
    blocks: BlockFormat | None = None

    def with_video(self, video: NDArray[np.uint8]) -> "EncodedClip":
        """The same clip, its bytes elsewhere."""
        return EncodedClip(
            self.key, video, self.offsets, self.frames_T, self.output_to_packed, self.packed_width, self.packed_height,
            self.blocks,
        )


def jpeg_slices(clip: EncodedClip) -> list[memoryview]:
    """The JPEGs of the `different` wanted frames, without copying.

    Raises ValueError when the offset table does not fit the bytes, or when a picture does not begin and end as a JPEG
    does: a decoder would fill what is missing with grey and say nothing.
    """
    frames = different(clip)
    start_D, stop_D = _ends(clip, np.array(frames))
    starts, stops = start_D.tolist(), stop_D.tolist()
    if min(starts) < 0 or (stop_D - start_D).min() < 4 or max(stops) > clip.video.size:
        raise ValueError(f"clip {clip.key}: offsets.npy points outside the {clip.video.size} bytes of its JPEGs")
    marks = clip.video.take(np.concatenate([start_D, start_D + 1, stop_D - 2, stop_D - 1])).tobytes()
    if marks != b"".join(bytes([mark]) * len(starts) for mark in WHOLE):
        wrong = next(d for d in range(len(starts)) if marks[d :: len(starts)] != WHOLE)
        raise ValueError(f"clip {clip.key}: frame {frames[wrong]} is not a whole JPEG picture")
    content = clip.video.data
    return [content[start:stop] for start, stop in zip(starts, stops, strict=True)]


def block_slices(clip: EncodedClip, blocks: BlockFormat) -> list[NDArray[np.uint8]]:
    """The wanted frames in blocks, uint8 (frame_bytes,) each, without copying. Raises ValueError for one of another size."""
    starts, stops = _ends(clip, clip.frames_T)
    if starts.min() < 0 or stops.max() > clip.video.size or (stops - starts != blocks.frame_bytes).any():
        raise ValueError(f"clip {clip.key}: {clip.video.size} bytes do not hold its frames of {blocks.frame_bytes} bytes each")
    return [clip.video[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


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
    """The wanted frames, each once, in the order in which they are first seen."""
    return list(dict.fromkeys(clip.frames_T.tolist()))


def places(clip: EncodedClip) -> list[int]:
    """Of each of the T wanted frames its place among the `different` ones."""
    place = {frame: i for i, frame in enumerate(different(clip))}
    return [place[frame] for frame in clip.frames_T.tolist()]


def in_order(clip: EncodedClip, video: NDArray[np.uint8]) -> EncodedClip:
    """The clip over the bytes of its `different` frames alone."""
    return replace(clip, video=video, offsets=None, frames_T=np.array(places(clip)))


def laid(clip: EncodedClip, place: NDArray[np.uint8]) -> EncodedClip:
    """A gathered clip whose bytes are the first of `place`."""
    assert clip.blocks is not None and clip.offsets is None
    return replace(clip, video=place[: (int(clip.frames_T.max()) + 1) * clip.blocks.frame_bytes])


def _ends(clip: EncodedClip, frames_D: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(D,) first byte of each of these frames, and the byte behind its last."""
    if clip.offsets is None:
        raise ValueError(f"clip {clip.key}: no offsets.npy for its concatenated JPEGs")
    try:
        return clip.offsets.take(frames_D), clip.offsets.take(frames_D + 1)
    except IndexError:
        last = int(clip.frames_T.max())
        raise ValueError(f"clip {clip.key}: frame {last} wanted, {len(clip.offsets) - 1} stored") from None
