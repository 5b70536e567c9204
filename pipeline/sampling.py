"""Which frames of a clip are seen: one per equal segment, drawn once for video and joints alike.

T sampled frames, n frames in the clip.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ORIGINAL_SEED = 255


def _draw(
    num_frames: int,
    clip_frames: int,
    start: Callable[[int], int],
    choose: Callable[[int, int], NDArray[np.int64]],
    offsets: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """`draw_frames` from three draws: a number below n, k of n numbers, and one number below each of some lengths."""
    if num_frames < 1 or clip_frames < 1:
        raise ValueError(f"cannot draw {num_frames} frames out of a clip of {clip_frames}: both must be at least 1")
    if clip_frames < num_frames:
        return (start(clip_frames) + np.arange(num_frames, dtype=np.int64)) % clip_frames
    if clip_frames < 2 * num_frames:
        skipped = np.zeros(num_frames + 1, dtype=np.int64)
        skipped[choose(num_frames + 1, clip_frames - num_frames)] = 1
        return np.arange(num_frames, dtype=np.int64) + np.cumsum(skipped)[:-1]
    starts, lengths = _segments(num_frames, clip_frames)
    return starts + offsets(lengths)


@functools.lru_cache(maxsize=4096)
def _segments(num_frames: int, clip_frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(T,) first frame and length of each of T equal segments of a clip."""
    bounds = np.arange(num_frames + 1, dtype=np.int64) * clip_frames // num_frames
    return bounds[:-1], np.diff(bounds)


def draw_frames(
    generator: np.random.Generator, num_frames: int, clip_frames: int, *, fresh: bool = False
) -> NDArray[np.int64]:
    """T frame numbers (int64) of an n-frame clip, as the authors' code draws them.

    See pipeline/README.md, "What a clip looks like". fresh: no integer has been drawn from the generator yet, so that a faster
    method gives the same draws.

    n >= 2T: one uniform frame per segment, the i-th from i n // T. T <= n < 2T: all in order, skipping n-T of T+1 gaps.
    n < T: T consecutive frames from a random start, modulo n.
    """
    return _draw(
        num_frames, clip_frames, lambda n: int(generator.integers(n)), lambda n, k: generator.permutation(n)[:k],
        functools.partial(_below, generator) if fresh else generator.integers,
    )


def _below(generator: np.random.Generator, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number below each length: that of `generator.integers(lengths)` in a third of the time, if no half word is buffered.

    (`integers` also rejects one word in a hundred million, which would favour some numbers, and draws the next.)
    """
    if len(lengths) % 2:  # half a word is left, which `integers` keeps for the next draw
        return generator.integers(lengths)
    words = generator.bit_generator.random_raw(len(lengths) // 2)
    return (words.view(np.uint32) * lengths) >> 32


def draw_frames_original(num_frames: int, clip_frames: int) -> NDArray[np.int64]:
    """The frames that the authors' released evaluation draws, number for number.

    Its generator is a new `RandomState(255)` for each clip; one `rand()` and one `randint(1)` are drawn first and
    discarded (a temporal crop of ratio 1). Clips shorter than T start at frame 0, without a draw.
    """
    state = np.random.RandomState(ORIGINAL_SEED)
    state.rand()
    state.randint(1)
    return _draw(num_frames, clip_frames, lambda n: 0, lambda n, k: state.choice(n, k, replace=False), state.randint)


def spread_frames(num_frames: int, clip_frames: int, view: int = 0, views: int = 1) -> NDArray[np.int64]:
    """T frame numbers (int64) of an n-frame clip without a draw: the middle of each of T equal segments.

    With several views each segment is divided into one equal part per view, and each view sees the middle of its part.
    n < T: T consecutive frames from the start of the clip (or of the view's part of it), modulo n.
    """
    if num_frames < 1 or clip_frames < 1:
        raise ValueError(f"cannot take {num_frames} frames out of a clip of {clip_frames}: both must be at least 1")
    if clip_frames < num_frames:
        return (view * clip_frames // views + np.arange(num_frames, dtype=np.int64)) % clip_frames
    return (2 * views * np.arange(num_frames, dtype=np.int64) + 2 * view + 1) * clip_frames // (2 * views * num_frames)


def draw_temporal_window(
    generator: np.random.Generator, clip_frames: int, keep: tuple[float, float]
) -> tuple[int, int]:
    """(first frame, number of frames) of a random part of the clip; keep: its smallest and largest share of the clip."""
    low, high = keep
    length = max(1, int((low + (high - low) * generator.random()) * clip_frames))  # as `uniform` has it
    return int(generator.integers(clip_frames - length + 1)) if length < clip_frames else 0, length
