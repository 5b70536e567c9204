"""Which frames of a clip are seen: one per equal segment, drawn once for video and joints alike.

T sampled frames, n frames in the clip.
"""

import numpy as np
from numpy.typing import NDArray

ORIGINAL_SEED = 255


def _consecutive(start: int, num_frames: int, clip_frames: int) -> NDArray[np.int64]:
    return (start + np.arange(num_frames, dtype=np.int64)) % clip_frames


def _skip_gaps(gaps: NDArray[np.int64], num_frames: int) -> NDArray[np.int64]:
    """0..T-1, each moved on by the number of skipped gaps in front of it; `gaps` (n-T,) are chosen among T+1."""
    skipped = np.zeros(num_frames + 1, dtype=np.int64)
    skipped[gaps] = 1
    return np.arange(num_frames, dtype=np.int64) + np.cumsum(skipped)[:-1]


def _segments(num_frames: int, clip_frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts (T,) and lengths (T,) of T equal segments, start_i = i n // T."""
    bounds = np.arange(num_frames + 1, dtype=np.int64) * clip_frames // num_frames
    return bounds[:-1], np.diff(bounds)


def _check(num_frames: int, clip_frames: int) -> None:
    if num_frames < 1 or clip_frames < 1:
        raise ValueError(f"cannot draw {num_frames} frames out of a clip of {clip_frames}: both must be at least 1")


def draw_frames(generator: np.random.Generator, num_frames: int, clip_frames: int) -> NDArray[np.int64]:
    """T frame numbers (int64) of an n-frame clip, as the authors' code draws them.

    See pipeline/README.md, "What a clip looks like".

    n >= 2T: one uniform frame per segment. T <= n < 2T: all in order, skipping n-T of T+1 gaps. n < T: T consecutive
    frames from a random start, modulo n.
    """
    _check(num_frames, clip_frames)
    if clip_frames < num_frames:
        return _consecutive(int(generator.integers(clip_frames)), num_frames, clip_frames)
    if clip_frames < 2 * num_frames:
        return _skip_gaps(generator.permutation(num_frames + 1)[: clip_frames - num_frames], num_frames)
    starts, lengths = _segments(num_frames, clip_frames)
    return starts + generator.integers(lengths)


def draw_frames_original(num_frames: int, clip_frames: int) -> NDArray[np.int64]:
    """The frames that the authors' released evaluation draws, number for number.

    Its generator is `RandomState(255)`, made anew for each clip; one `rand()` and one `randint(1)` are drawn first and
    thrown away (a temporal crop of ratio 1). Clips shorter than T start at frame 0, without a draw.
    """
    _check(num_frames, clip_frames)
    state = np.random.RandomState(ORIGINAL_SEED)
    state.rand()
    state.randint(1)
    if clip_frames < num_frames:
        return _consecutive(0, num_frames, clip_frames)
    if clip_frames < 2 * num_frames:
        return _skip_gaps(state.choice(num_frames + 1, clip_frames - num_frames, replace=False), num_frames)
    starts, lengths = _segments(num_frames, clip_frames)
    return starts + state.randint(lengths)


def draw_temporal_window(
    generator: np.random.Generator, clip_frames: int, keep: tuple[float, float]
) -> tuple[int, int]:
    """(first frame, number of frames) of a random part of the clip; keep: its smallest and largest share of the clip."""
    length = max(1, int(generator.uniform(*keep) * clip_frames))
    return int(generator.integers(clip_frames - length + 1)), length
