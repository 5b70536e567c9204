"""Accuracy figures from all predictions of an evaluation, each clip counted exactly once.

n clips, c classes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svdata2vec.runs.intervals import accuracy_intervals, class_hits
from svdata2vec.shards.errors import UserError


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation; shares lie in 0..1.

    Attributes:
        count: clips evaluated.
        clips: clips of the split, those that could not be read among them.
        top1, top5: share of clips whose class is the first, or among the first five.
        mean_class: mean over the classes present of the share of their clips that was recognised (Toyota Smarthome's).
        per_class: that share per class; None where a class has no clip.
        confusion: (true class, predicted class) counts.
        intervals: 95 % intervals of top1 and top5 (Wilson's score) and of mean_class (from Wilson's of the classes).
    """

    count: int
    clips: int
    top1: float
    top5: float
    mean_class: float
    per_class: list[float | None]
    confusion: list[list[int]]
    intervals: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def measure(scores_nc: np.ndarray, labels_n: np.ndarray, clips: int | None = None) -> Metrics:
    """Figures of scores (n, c) against labels (n,) in 0..c-1; ties count as the lower class.

    `clips`: how many the split has, if more than n. UserError if a score is not finite.
    """
    count, classes = scores_nc.shape
    if count == 0:
        raise ValueError("no prediction to measure; the split is empty")
    require_finite(scores_nc)
    ranked_nc = np.argsort(-scores_nc, axis=1, kind="stable")
    hits_nc = ranked_nc == labels_n[:, None]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels_n, ranked_nc[:, 0]), 1)
    recalls = [hits / total if total else None for hits, total in class_hits(confusion.tolist())]
    top1, top5 = (float(hits_nc[:, :k].any(1).mean()) for k in (1, 5))
    return Metrics(
        count=count,
        clips=count if clips is None else clips,
        top1=top1,
        top5=top5,
        mean_class=float(np.mean([recall for recall in recalls if recall is not None])),
        per_class=recalls,
        confusion=confusion.tolist(),
        intervals=accuracy_intervals(top1, top5, confusion.tolist()),
    )


def require_finite(values_nD: np.ndarray, keys: Sequence[str] = ()) -> None:
    """UserError, naming a clip where `keys` has them, if the network gave something else than numbers."""
    bad = np.flatnonzero(~np.isfinite(values_nD).all(axis=1))
    if len(bad):
        where = f", the first is {keys[bad[0]]}" if keys else ""
        raise UserError(
            f"the network's outputs are not finite for {len(bad)} of {len(values_nD)} clips{where}: its weights are "
            "damaged, or training diverged; train again with a smaller learning rate, or in precision fp32"
        )
