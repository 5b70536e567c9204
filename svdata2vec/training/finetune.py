"""Fine-tuning: a classifier from a pretraining run or from scratch, on RGB alone by default.

B clips, M persons, T frames, V joints, C coordinates, H W picture
"""

import contextlib
import logging
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.evaluation.evaluate import score
from svdata2vec.evaluation.metrics import Metrics
from svdata2vec.evaluation.probe import check_input
from svdata2vec.model.classifier import Classifier
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.reports.results import NAMES, accuracies, scored
from svdata2vec.runs.card import complete_card, evaluated_on, evaluation_entry, model_card, read_card
from svdata2vec.runs.checkpoint import has_checkpoints
from svdata2vec.runs.data import (
    build_loader,
    open_data,
    refuse_validation,
    require_joints,
    require_skeletons,
    warn_of_earlier_clips,
    warn_of_shared_clips,
    warn_of_view,
)
from svdata2vec.runs.finished import run_once
from svdata2vec.runs.folder import finish_run
from svdata2vec.runs.image_init import start_from_images
from svdata2vec.runs.published import load_encoder_weights, load_published, publish, published_config, require_same_network
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.validation import choose_clips
from svdata2vec.shards.errors import UserError
from svdata2vec.training.loop import TrainingRun, train
from svdata2vec.training.mixup import draw_mixture

log = logging.getLogger(__name__)

BEST_STEP = "best_val_step"  # among the values in checkpoints: the step of the network in `best`


class Finetuning(TrainingRun):
    """A fine-tuning run: the classifier that its model card describes, and its validation clips, if any."""

    config: FinetuneConfig
    model: Classifier

    def __init__(
        self, config: FinetuneConfig, runtime: Runtime, loader: ClipLoader, val_loader: ClipLoader | None, card: dict[str, Any]
    ) -> None:
        torch.manual_seed(config.run.seed)
        model = Classifier(config, card["num_joints"], len(card["classes"]))
        layer_decay = 1.0
        if config.pretrained is not None:
            if not has_checkpoints(config.run.out):
                made = published_config(read_card(config.pretrained), config.pretrained)
                require_same_network(config.pretrained, made.model, config.model, "the classifier", config.modality)
                load_encoder_weights(model.encoder, config.pretrained)
                doubtful = check_input(config.pretrained, made.data, config.data, "the classifier")
                if doubtful is not None and config.modality != "rgb":  # joints are pixels of the crop
                    log.warning("%s: %s", config.pretrained, doubtful)
            layer_decay = config.head.layer_decay
        self.val_loader, self.card = val_loader, card
        super().__init__(config, runtime, loader, model, depth=config.model.depth, layer_decay=layer_decay)

    def figures(self, batch: ClipBatch, epoch: int) -> dict[str, Tensor]:
        batch = batch.to(self.runtime.device)
        mixture = draw_mixture(self.config.head.mixup, len(batch), self.runtime.device)
        with self.runtime.autocast():
            logits_BC = self.network(mixture.blend(batch.video_BTHWC), mixture.blend(batch.joints_BMTVC)).float()
            loss = mixture.loss(logits_BC, batch.label_B, self.config.head.label_smoothing)
        return {"loss": loss, "accuracy": (logits_BC.argmax(1) == batch.label_B).float().mean()}

    def evaluate(self, loader: ClipLoader) -> Metrics:
        """Accuracy on a loader's clips, of the network that the first process publishes."""
        self.runtime.share_buffers(self.model)
        return score(self.model, loader, self.runtime)

    def epoch_end(self, epoch: int, before: int) -> dict[str, float]:
        """Every `eval_every` epochs, and at the end: validate, and publish the network in `best` if it is the best so far."""
        config = self.config
        due = self.val_loader is not None and epoch // config.eval_every > before // config.eval_every
        if self.val_loader is None or not (due or epoch == config.run.epochs):
            return {}
        metrics = self.evaluate(self.val_loader)
        found = getattr(metrics, config.data.metric)
        if found > self._best_so_far():
            self.stepper.values.update({self._best_name: found, BEST_STEP: self.stepper.step})
            self.save_due = True  # otherwise a killed run would resume before this step, with this network in `best`
            if self.runtime.is_main:
                about = evaluated_on(self.val_loader.shards, self.val_loader.split, config.data.metric, config.run.seed)
                card = {**self.card, "epoch": epoch, "step": self.stepper.step,
                        "validation": evaluation_entry({**about, **metrics.to_dict()})}
                publish(config.run.out / "best", self.model.state_dict(), card)
        return {"val_top1": metrics.top1, "val_mean_class": metrics.mean_class}

    @property
    def _best_name(self) -> str:
        return f"best_val_{self.config.data.metric}"

    def _best_so_far(self) -> float:
        """Validation accuracy of the network in `best`; -1 if there is none, or if it is from steps that the run has lost."""
        name, values, best = self._best_name, self.stepper.values, self.config.run.out / "best"
        if name not in values:
            return -1.0
        best_step = None
        if self.runtime.is_main and BEST_STEP in values:
            with contextlib.suppress(UserError):  # missing or damaged
                best_step = load_published(best)[1].get("step")
        if self.runtime.gather(best_step)[0] == values.get(BEST_STEP):
            return values[name]
        log.warning("%s is missing, or from steps that were lost: the best network is chosen among those from here on", best)
        return -1.0

    def take_best(self) -> dict[str, Any]:
        """Load the network that validated best on all processes, and publish it; returns which one it is, for the result."""
        if self.val_loader is None:
            return {"network": "last", "epoch": self.config.run.epochs}
        if self._best_so_far() < 0:  # lost since the last step: the last network is the best of those left
            self.stepper.values.pop(self._best_name, None)
            self.epoch_end(self.config.run.epochs, self.config.run.epochs)
        card = None
        if self.runtime.is_main:
            weights, card = load_published(self.config.run.out / "best")
            self.model.load_state_dict(weights)
            publish(self.config.run.out, weights, {**card, **self.card})  # the run's card is newer: shards may have moved
        self.runtime.share_weights(self.model)
        card = self.runtime.gather(card)[0]
        return {"network": "best", "epoch": card["epoch"], "validation": card["validation"]}

    @property
    def takes_last(self) -> bool:
        """Only without validation; with it `take_best` publishes its choice, and until then the run is not finished."""
        return self.val_loader is None

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, **super().parts()}


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train (or continue) a classifier, publish it and evaluate it on the test split; returns the metrics."""
    return run_once(config, partial(_finetune, config))


def _finetune(config: FinetuneConfig, runtime: Runtime) -> dict[str, Any]:
    if config.run.batch_size == 1:
        raise UserError("--run.batch-size is 1; BatchNorm of the classifier needs 2 clips per process or more")
    if not config.eval_every:
        refuse_validation(config.data, "nothing is validated; set --eval-every, say 1")
    shards, data = open_data(config.data), config.data
    clips = choose_clips(shards, config)
    warn_of_shared_clips(shards, data.test_split, np.concatenate([clips.train_rows, clips.val_rows]))
    warn_of_view(shards, data.train_split)
    if config.pretrained is not None and not has_checkpoints(config.run.out):  # a resumed run does not need it
        began_from = read_card(config.pretrained)
        warn_of_earlier_clips(shards, data.test_split, began_from, config.pretrained)
        require_joints(shards, config.pretrained, began_from, config.modality, data.train_split)
    elif config.modality != "rgb":
        require_skeletons(shards, data.train_split)
    num_joints, labels = len(shards.manifest.layout.joints), len(clips.train_rows)
    classes = list(shards.split_classes(data.train_split))
    card = model_card("finetune", config, num_joints=num_joints, classes=classes, shards=shards, train_clips=labels)
    loader_of = partial(build_loader, shards, config, runtime, modality=config.modality)
    with contextlib.ExitStack() as loaders:
        loader = loaders.enter_context(loader_of(train=True, rows=clips.train_rows))
        test_loader = loaders.enter_context(loader_of(train=False, views=data.views))
        val_loader = None
        if clips.val_split is not None:
            validation = loader_of(train=False, split=clips.val_split, rows=clips.val_rows, views=data.views)
            val_loader = loaders.enter_context(validation)
        run = Finetuning(config, runtime, loader, val_loader, card)
        card.update(start_from_images(run.model.encoder, config))
        trained = train(run, card)
        network = run.take_best()
        metrics = run.evaluate(test_loader)
    about = {**evaluated_on(shards, data.test_split, data.metric, config.run.seed), **network}
    skipped = trained.get("skipped_clips", 0.0)  # of training; earlier versions did not count them
    result = {**about, "labels": labels, "skipped_clips": skipped, "classes": classes, **metrics.to_dict()}
    if runtime.is_main:
        complete_card(config.run.out, **network, evaluation=evaluation_entry(result))
    finish_run(config.run, runtime, result)
    log.info("%s: %s %s of %s clips", config.run.out, NAMES[data.metric], accuracies(result)[data.metric], scored(result))
    return result
