"""95 % intervals of accuracies and of means over seeds.

Clips count as drawn independently. Those of one subject are not quite, so that the true intervals are somewhat wider.
"""

import math
from collections.abc import Sequence

Interval = tuple[float, float]

NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
# The same of Student's t with 1, 2, ... 30 degrees of freedom.
STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)


def wilson(hits: int, count: int) -> Interval:
    """Wilson's score interval of a share, hits of count (E. B. Wilson, JASA 22, 1927)."""
    share, z2 = hits / count, NORMAL**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_of_shares(shares: Sequence[tuple[int, int]]) -> Interval:
    """Of the mean over classes, each (hits, count), from Wilson's of each (Zou and Donner, Statistics in Medicine 27, 2008).

    Unlike one from the classes' standard errors it does not shrink to nothing where every class of few clips is all right
    or all wrong.
    """
    mean = sum(hits / count for hits, count in shares) / len(shares)
    below = above = 0.0
    for hits, count in shares:
        low, high = wilson(hits, count)
        below += (hits / count - low) ** 2
        above += (high - hits / count) ** 2
    return mean - math.sqrt(below) / len(shares), mean + math.sqrt(above) / len(shares)


def accuracy_intervals(top1: float, top5: float, confusion: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Of the figures of an evaluation, by their names: Wilson's of top1 and top5, `mean_of_shares` of mean_class.

    `confusion`: (true class, predicted class) counts.
    """
    classes = class_hits(confusion)
    count = sum(total for _, total in classes)
    return {
        "top1": [*wilson(round(top1 * count), count)],
        "top5": [*wilson(round(top5 * count), count)],
        "mean_class": [*mean_of_shares([pair for pair in classes if pair[1]])],
    }


def class_hits(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(hits, clips) of each class."""
    return [(row[number], sum(row)) for number, row in enumerate(confusion)]


def mean_over_seeds(values: Sequence[float]) -> tuple[float, Interval]:
    """Mean of two or more runs and its interval by Student's t."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    freedom = count - 1
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else NORMAL + (NORMAL**3 + NORMAL) / (4 * freedom)
    half = quantile * math.sqrt(variance / count)
    return mean, (mean - half, mean + half)
