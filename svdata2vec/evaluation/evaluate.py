"""Run a network over a split, every clip exactly once, alone or on several processes; accuracy of a classifier."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from svdata2vec.config.schema import Device
from svdata2vec.evaluation.metrics import Metrics, measure, require_finite
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.producer import MORE_UNUSABLE
from svdata2vec.runs.card import evaluated_on
from svdata2vec.runs.data import (
    build_loader,
    labelled_rows,
    open_data,
    require_classes,
    require_joints,
    require_own_shards,
    require_same_clips,
    warn_of_earlier_clips,
    warn_of_shared_clips,
    warn_of_view,
)
from svdata2vec.runs.published import load_classifier
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """Scores of clips, in the order they were visited (n clips, c classes)."""

    keys: list[str]
    scores_nc: np.ndarray
    labels_n: np.ndarray


@torch.no_grad()
def over_split(
    loader: ClipLoader, runtime: Runtime, network: Callable[[ClipBatch], Tensor]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, network outputs (float32) and labels of a split's clips in the order of visiting, the same on all processes."""
    require_same_clips(loader, runtime)
    keys: list[str] = []
    outputs, labels = [], []
    for batch in loader:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            outputs.append(network(batch).float())
        keys.extend(batch.keys)
        labels.append(batch.label_B)
    mine = (keys, torch.cat(outputs).cpu().numpy(), torch.cat(labels).cpu().numpy()) if keys else None
    filled = [part for part in runtime.gather(mine) if part is not None]
    if not filled:
        raise UserError(f"split {loader.split} has no clip that can be read")
    names, values, numbers = zip(*filled, strict=True)
    found, values_nD = [key for part in names for key in part], np.concatenate(values)
    check_lost(loader, len(found))
    require_finite(values_nD, found)
    return found, values_nD, np.concatenate(numbers)


def check_lost(loader: ClipLoader, found: int) -> None:
    """Log how many clips (times views) of a split no process could read; UserError if there are too many."""
    whole = loader.order.num_entries
    if found == whole:
        return
    what = "clips" if loader.order.views == 1 else "views of clips"
    log.warning("split %r: %d of %d %s are left out, they could not be read", loader.split, whole - found, whole, what)
    if whole - found > loader.most_unusable:
        raise UserError(
            f"split {loader.split!r}: {whole - found} of {whole} {what} are unusable, more than the allowed "
            f"{loader.max_bad_rate:.2%}; {MORE_UNUSABLE}"
        )


def predict_split(model: nn.Module, loader: ClipLoader, runtime: Runtime) -> Predictions:
    """Softmax scores of every clip of the loader's split, averaged over its views; all processes get all of them."""
    model.eval()

    def scores(batch: ClipBatch) -> Tensor:
        return model(batch.video_BTHWC, batch.joints_BMTVC).float().softmax(1)

    whole = Predictions(*over_split(loader, runtime, scores))
    return _mean_of_views(whole) if loader.plan.views > 1 else whole


def score(model: nn.Module, loader: ClipLoader, runtime: Runtime) -> Metrics:
    """Figures of a classifier on the loader's split; equal on all processes."""
    predictions = predict_split(model, loader, runtime)
    return measure(predictions.scores_nc, predictions.labels_n, loader.num_clips)


def _mean_of_views(views: Predictions) -> Predictions:
    """One entry per clip, in order of first appearance: the mean of the scores of its views."""
    number = {key: i for i, key in enumerate(dict.fromkeys(views.keys))}
    clip_n = np.array([number[key] for key in views.keys])
    scores_nc = np.zeros((len(number), views.scores_nc.shape[1]), views.scores_nc.dtype)
    np.add.at(scores_nc, clip_n, views.scores_nc)
    labels_n = np.empty(len(number), views.labels_n.dtype)
    labels_n[clip_n] = views.labels_n
    return Predictions(list(number), scores_nc / np.bincount(clip_n)[:, None].astype(scores_nc.dtype), labels_n)


def evaluate_run(
    run: Path, shards: str | None = None, split: str | None = None, views: int | None = None, device: Device = "auto"
) -> dict[str, Any]:
    """Evaluate a finished fine-tuning or probe run; arguments as the options of `svdata2vec evaluate`.

    Returns:
        The metrics with the class names, what they are about (`evaluated_on`), and over how many views of a clip its scores
        were averaged, ready for JSON.
    """
    model, config, card = load_classifier(run)
    data = config.data
    split, views = split or data.test_split, views or data.views
    if shards is None:
        require_own_shards(run, data)
    data = replace(data, shards=shards or data.shards, test_split=split, weights=(), views=views)
    config = replace(config, data=data, run=replace(config.run, device=device))
    packed = open_data(data)
    require_joints(packed, run, card, config.modality, data.test_split)
    warn_of_view(packed, data.test_split, card)
    if (card.get("trained_on") or {}).get("fingerprint") == packed.manifest.fingerprint:
        trained_on = labelled_rows(packed, data.train_split, config.label_fraction, config.run.seed, verbose=False)
        warn_of_shared_clips(packed, data.test_split, trained_on)
    warn_of_earlier_clips(packed, data.test_split, {**card, "trained_on": None}, run)
    require_classes(packed, data.test_split, card["classes"], f"{run} was trained on")
    with (
        running(config.run) as runtime,
        build_loader(packed, config, runtime, train=False, modality=config.modality, views=data.views) as loader,
    ):
        metrics = score(model.to(runtime.device), loader, runtime)
    about = evaluated_on(packed, data.test_split, data.metric, config.run.seed)
    return {"run": str(run), **about, "views": data.views, "classes": card["classes"], **metrics.to_dict()}
