"""Accuracy figures from all predictions of an evaluation, each clip counted exactly once.

n clips, c classes
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation; shares lie in 0..1.

    Attributes:
        count: clips evaluated.
        top1, top5: share of clips whose class is the first, or among the first five.
        mean_class: mean over the classes present of the share of their clips that was recognised (Toyota Smarthome's).
        per_class: that share per class; None where a class has no clip.
        confusion: (true class, predicted class) counts.
    """

    count: int
    top1: float
    top5: float
    mean_class: float
    per_class: list[float | None]
    confusion: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def measure(scores_nc: np.ndarray, labels_n: np.ndarray) -> Metrics:
    """Figures of scores (n, c) against labels (n,) in 0..c-1; ties count as the lower class."""
    count, classes = scores_nc.shape
    if count == 0:
        raise ValueError("no prediction to measure; the split is empty")
    ranked_nc = np.argsort(-scores_nc, axis=1, kind="stable")
    hits_nc = ranked_nc == labels_n[:, None]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels_n, ranked_nc[:, 0]), 1)
    totals = confusion.sum(1)
    recalls = [float(confusion[c, c] / totals[c]) if totals[c] else None for c in range(classes)]
    return Metrics(
        count=count,
        top1=float(hits_nc[:, 0].mean()),
        top5=float(hits_nc[:, :5].any(1).mean()),
        mean_class=float(np.mean([r for r in recalls if r is not None])),
        per_class=recalls,
        confusion=confusion.tolist(),
    )
