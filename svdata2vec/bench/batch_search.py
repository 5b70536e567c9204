"""Which batch sizes to try, which to recommend, and what memory a size will take. Pure functions of what was measured.

A function tries each size, so that tests can stand in for the machine. Sizes are clips per process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEARLY_BEST = 0.97  # of the best rate: the smallest batch that reaches it is recommended
SAFETY = 1.1  # on the memory of the clips by which a size is larger than those measured
GPU_STEP = 8  # tensor cores and BatchNorm like multiples of 8


@dataclass(frozen=True)
class Trial:
    """The result of one size.

    peak_bytes: most memory of the step; where it did not run, what was expected. base_bytes: memory before the first step.
    clips_per_s: 0 where it does not fit. ran: False where the memory was known to be too little beforehand. reason: why it
    does not fit.
    """

    size: int
    fits: bool
    peak_bytes: int
    base_bytes: int = 0
    clips_per_s: float = 0.0
    ran: bool = True
    reason: str = ""


def search(try_size: Callable[[int], Trial], largest: int, gpu: bool, smallest: int = 1) -> list[Trial]:
    """Double from `smallest` (on a GPU 8) until a size does not fit or `largest` is reached, then halve the gap down to
    `granularity`.

    No size is tried twice, none below `smallest`, and none above twice the largest that is known to fit. Trials come in the
    order they were made.
    """
    trials: list[Trial] = []
    fits, too_large, size = smallest - 1, 0, min(GPU_STEP if gpu else smallest, largest)
    while not too_large and size > fits:
        trials.append(try_size(size))
        if trials[-1].fits:
            fits, size = size, min(2 * size, largest)
        else:
            too_large = size
    while too_large - fits > granularity(fits, gpu):
        step = granularity(fits, gpu)
        size = fits + max((too_large - fits) // (2 * step), 1) * step
        trials.append(try_size(size))
        fits, too_large = (size, too_large) if trials[-1].fits else (fits, size)
    return trials


def granularity(fits: int, gpu: bool) -> int:
    """Step of the search above a size that fits: 8 clips on a GPU; on a CPU a sixteenth of it, as a power of two."""
    if gpu:
        return GPU_STEP if fits >= GPU_STEP else 1
    return 2 ** (max(fits // 16, 1).bit_length() - 1)


def fitting(trials: Sequence[Trial]) -> list[Trial]:
    """Those that ran and fit, by size."""
    return sorted((trial for trial in trials if trial.fits), key=lambda trial: trial.size)


def expected_peak(trials: Sequence[Trial], size: int) -> int | None:
    """Peak bytes of a larger size, from those that ran; None if none did. Rather too much than too little.

    Memory is a constant and so much per clip: what the two largest sizes differ by gives the part per clip. Of one size
    alone, all that its steps took is held to grow with its clips (gradients and the optimizer's averages do not).
    """
    ran = fitting(trials)
    if not ran:
        return None
    last = ran[-1]
    most = last.base_bytes + (last.peak_bytes - last.base_bytes) * size / last.size
    if len(ran) > 1:
        slope = max(last.peak_bytes - ran[-2].peak_bytes, 0) / (last.size - ran[-2].size)
        most = min(most, last.peak_bytes + SAFETY * slope * (size - last.size))
    return int(max(most, last.peak_bytes))


def bytes_per_clip(trials: Sequence[Trial]) -> float | None:
    """What one more clip adds to the peak, from the smallest to the largest size that fits; None with fewer than two."""
    ran = fitting(trials)
    if len(ran) < 2:
        return None
    return (ran[-1].peak_bytes - ran[0].peak_bytes) / (ran[-1].size - ran[0].size)


@dataclass(frozen=True)
class Recommendation:
    """recommended: the smallest size within 3 % of the best rate. fastest: the size of that rate. largest: that fits."""

    recommended: int
    fastest: int
    largest: int


def recommend(trials: Sequence[Trial]) -> Recommendation | None:
    """None if no size fits."""
    found = fitting(trials)
    if not found:
        return None
    best = max(found, key=lambda trial: trial.clips_per_s)
    smallest = next(trial for trial in found if trial.clips_per_s >= NEARLY_BEST * best.clips_per_s)
    return Recommendation(smallest.size, best.size, found[-1].size)
