"""Probes: what a linear map, nearest neighbours and attention make of frozen features (paper section 5: linear evaluation).

n clips, N training clips, D token width, c classes, k neighbours
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import DataConfig, FinetuneConfig
from svdata2vec.evaluation.attentive import attentive_scores, fit_attentive
from svdata2vec.evaluation.features import Features, TrainedEncoder, extract, load_encoder
from svdata2vec.evaluation.metrics import measure
from svdata2vec.reports.results import NAMES, accuracies, by_probe, scored
from svdata2vec.runs.card import evaluated_on, evaluation_entry, model_card
from svdata2vec.runs.data import (
    build_loader,
    labelled_rows,
    open_data,
    refuse_validation,
    require_classes,
    require_joints,
    require_several_classes,
    warn_of_earlier_clips,
    warn_of_shared_clips,
    warn_of_view,
)
from svdata2vec.runs.finished import run_once
from svdata2vec.runs.folder import PROBES, finish_run, write_config
from svdata2vec.runs.performers import warn_of_shared_people
from svdata2vec.runs.published import publish
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

CHUNK_CLIPS = 4096  # rows of a similarity matrix at a time: 4096 x 40,000 training clips are 0.6 GiB
UNVOTED = 1e-9  # how far below 0 the scores of classes without a vote lie, by size

log = logging.getLogger(__name__)


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Extract features once, measure all probes on the test split, publish the linear one; returns the metrics.

    The result has the linear probe's figures at its top level, as a fine-tuning run has them, those of the nearest
    neighbours under "knn", of the nearest one alone under "nearest", of the attentive probe under "attentive".
    """
    if config.pretrained is None:
        raise UserError("probing needs a finished run: give its folder with --from RUN")
    refuse_validation(config.data, "probing validates nothing; leave it out")
    if config.data.weights:
        given = " ".join(map(str, config.data.weights))
        raise UserError(f"--data.weights is {given}, but probes take every clip once; leave it out")
    return run_once(config, partial(_probe, config, config.pretrained))


def _probe(config: ProbeConfig, source: Path, runtime: Runtime) -> dict[str, Any]:
    trained = load_encoder(source, config.modality, config.device)
    if (doubtful := check_input(source, trained.config.data, config.data)) is not None:
        log.warning("%s: %s", source, doubtful)
    shards = open_data(config.data)
    train_split, test_split = config.data.train_split, config.data.test_split
    require_joints(shards, source, trained.card, trained.modality, train_split)
    require_classes(shards, test_split, shards.one_class_list(train_split), f"split {train_split!r}")
    require_several_classes(shards, train_split, test_split)
    rows = labelled_rows(shards, train_split, config.label_fraction, config.seed)
    warn_of_shared_clips(shards, test_split, rows)
    warn_of_earlier_clips(shards, test_split, trained.card, source)
    for split in (train_split, test_split):
        warn_of_view(shards, split, trained.card)
    warn_of_shared_people(shards, config.data, rows)
    train = split_features(config, trained, shards, train_split, rows, runtime)
    test = split_features(config, trained, shards, test_split, None, runtime)
    classes = list(shards.split_classes(train_split))
    linear, found = measure_probes(config, train, test, len(classes), len(shards.rows(test_split)), trained, runtime)
    result = {
        "kind": "probe", **evaluated_on(shards, test_split, config.data.metric, config.seed), "labels": len(train.keys),
        "classes": classes, **found,
    }
    if runtime.is_main:
        _publish(config, trained, linear, shards, result)
    finish_run(config.run, runtime, result)
    name = config.data.metric
    shown = [f"{title} {accuracies(figures)[name]}" for title, figures in by_probe(result)]
    log.info("%s: %s of %s clips, %s", config.out, NAMES[name], scored(result), ", ".join(shown))
    return result


def measure_probes(
    config: ProbeConfig, train: Features, test: Features, classes: int, tested: int, trained: TrainedEncoder, runtime: Runtime
) -> tuple[nn.Linear, dict[str, Any]]:
    """The linear probe, and the figures of all probes as a result has them. `tested`: clips of the test split."""
    linear = fit_linear(train, classes, config.weight_decay, config.iterations)
    found: dict[str, Any] = measure(linear_scores(linear, test), test.labels_n, tested).to_dict()
    for name, neighbours in (("knn", min(config.neighbours, len(train.labels_n))), ("nearest", 1)):
        votes_nc = knn_scores(train, test, classes, neighbours, config.temperature)
        figures = measure(votes_nc, test.labels_n, tested).to_dict()
        found[name] = {"neighbours": neighbours, "temperature": config.temperature, **figures}
    if config.attentive.blocks:
        head = fit_attentive(train, classes, config.attentive, trained.config.model, config.seed, runtime.device)
        scores_nc = attentive_scores(head, test, runtime.device)
        found["attentive"] = measure(scores_nc, test.labels_n, tested).to_dict()
    return linear, found


def check_input(run: Path, made: DataConfig, wanted: DataConfig, whose: str = "the probe") -> str | None:
    """What to warn of: other sizes and crops than the run's are possible, but rarely meant. UserError for other numbers of
    frames. `whose` settings `wanted` are, as the message has it."""
    text = (
        f"the encoder reads {made.num_frames} frames of {made.size} pixels around {made.crop}, {whose} asks for "
        f"{wanted.num_frames} frames of {wanted.size} around {wanted.crop}"
    )
    names = {"num_frames": "--data.num-frames", "size": "--data.size", "crop": "--data.crop"}
    other = [f"{names[name]} {getattr(made, name)}" for name in names if getattr(wanted, name) != getattr(made, name)]
    if wanted.num_frames != made.num_frames:
        raise UserError(f"{run}: {text}; set {' '.join(other)}")
    return f"{text}; its own are {' '.join(other)}" if other else None


def split_features(
    config: ProbeConfig, trained: TrainedEncoder, shards: ShardSet, split: str, rows: np.ndarray | None, runtime: Runtime
) -> Features:
    """Features of a split (or some rows of it), as evaluation sees them: fixed frames, no augmentation."""
    settings = replace(trained.config, data=replace(config.data, test_split=split), run=config.run)
    with build_loader(
        shards, settings, runtime, train=False, modality=trained.modality, rows=rows, views=config.data.views
    ) as loader:
        return extract(trained, loader, runtime, tokens=config.attentive.blocks > 0)


def fit_linear(train: Features, num_classes: int, weight_decay: float, iterations: int) -> nn.Linear:
    """Multinomial logistic regression of all features at once, in float64 on the CPU.

    It minimises mean cross-entropy + weight_decay / 2 * |W|^2 on features scaled to zero mean and unit variance, and folds
    the scaling into the Linear that it returns (float32, for features as they are).
    """
    features_nD = torch.from_numpy(train.features_nD).double()
    labels_n = torch.from_numpy(train.labels_n)
    mean_D = features_nD.mean(0)
    std_D = features_nD.std(0, correction=0).clamp_min(1e-6)
    scaled_nD = (features_nD - mean_D) / std_D
    weight_cD = torch.zeros(num_classes, features_nD.shape[1], dtype=torch.float64, requires_grad=True)
    bias_c = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_cD, bias_c], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(scaled_nD, weight_cD, bias_c), labels_n)
        loss = loss + weight_decay / 2 * weight_cD.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    linear = nn.Linear(features_nD.shape[1], num_classes)
    with torch.no_grad():
        linear.weight.copy_(weight_cD / std_D)
        linear.bias.copy_(bias_c - (weight_cD / std_D) @ mean_D)
    return linear


@torch.no_grad()
def linear_scores(linear: nn.Linear, test: Features) -> np.ndarray:
    """(n, c) probabilities."""
    return linear(torch.from_numpy(test.features_nD)).softmax(1).numpy()


def knn_scores(train: Features, test: Features, num_classes: int, neighbours: int, temperature: float) -> np.ndarray:
    """(n, c) shares of the votes of the k nearest training clips by cosine, each with weight exp(cosine / temperature).

    A class without a vote has a score below 0 that rises with the cosine of its nearest clip, so that ranks beyond the voted
    classes, which top-5 of few neighbours looks at, mean something. A class without a clip is last.
    """
    bank_nD = F.normalize(torch.from_numpy(train.features_nD), dim=1)
    labels_n = torch.from_numpy(train.labels_n)
    k = min(neighbours, len(bank_nD))
    chunks = []
    for queries_nD in F.normalize(torch.from_numpy(test.features_nD), dim=1).split(CHUNK_CLIPS):
        cosine_nN = queries_nD @ bank_nD.T
        cosine_nk, nearest_nk = cosine_nN.topk(k, dim=1)
        votes_nk = ((cosine_nk - cosine_nk[:, :1]) / temperature).exp()  # the nearest one's is 1: the same shares in range
        votes_nc = torch.zeros(len(queries_nD), num_classes).scatter_add_(1, labels_n[nearest_nk], votes_nk)
        closest_nc = torch.full_like(votes_nc, -2).scatter_reduce_(1, labels_n.expand_as(cosine_nN), cosine_nN, "amax")
        shares_nc = votes_nc / votes_nc.sum(1, keepdim=True)
        chunks.append(torch.where(shares_nc > 0, shares_nc, UNVOTED * (closest_nc - 2)))
    return torch.cat(chunks).numpy()


def _publish(
    config: ProbeConfig, trained: TrainedEncoder, linear: nn.Linear, shards: ShardSet, result: dict[str, Any]
) -> None:
    """The frozen encoder with the linear probe as its head: `evaluate`, `predict` and `export` take it."""
    classifier = FinetuneConfig(
        data=config.data,
        model=trained.config.model,
        run=config.run,
        pretrained=config.pretrained,
        modality=trained.modality,
        label_fraction=config.label_fraction,
    )
    card = model_card(
        "probe", classifier, num_joints=trained.card["num_joints"], classes=result["classes"], shards=shards,
        train_clips=result["labels"],
    )
    beside = {name: {figure: result[name][figure] for figure in ("top1", "top5")} for name in PROBES if name in result}
    figures = {"evaluation": evaluation_entry(result), **beside}
    weights = {f"encoder.{name}": tensor for name, tensor in trained.encoder.state_dict().items()}
    head = {f"head.fc.{name}": tensor for name, tensor in linear.state_dict().items()}
    write_config(config.out, config)
    publish(config.out, {**weights, **head}, {**card, **figures})
