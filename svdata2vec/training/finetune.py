"""Fine-tuning: a classifier from a pretraining run or from scratch, on RGB alone by default.

B clips, M persons, T frames, V joints, C coordinates, H W picture
"""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.evaluation.evaluate import score
from svdata2vec.evaluation.metrics import Metrics
from svdata2vec.model.classifier import Classifier
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.card import complete_card, evaluated_on, evaluation_entry, model_card
from svdata2vec.runs.data import build_loader, labelled_rows, open_data, require_skeletons, warn_of_shared_clips, warn_of_view
from svdata2vec.runs.folder import finish_run, is_finished, read_result
from svdata2vec.runs.published import load_encoder_weights, publish
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.training.loop import TrainingRun, train
from svdata2vec.training.mixup import draw_mixture

log = logging.getLogger(__name__)


class Finetuning(TrainingRun):
    """A fine-tuning run: the classifier that its model card describes, and the clips that it is tested on."""

    config: FinetuneConfig
    model: Classifier

    def __init__(
        self, config: FinetuneConfig, runtime: Runtime, loader: ClipLoader, test_loader: ClipLoader, card: dict[str, Any]
    ) -> None:
        torch.manual_seed(config.run.seed)
        model = Classifier(config, card["num_joints"], len(card["classes"]))
        layer_decay = 1.0
        if config.pretrained is not None:
            load_encoder_weights(model.encoder, config.pretrained)
            layer_decay = config.head.layer_decay
        self.test_loader, self.card = test_loader, card
        super().__init__(config, runtime, loader, model, depth=config.model.depth, layer_decay=layer_decay)

    def figures(self, batch: ClipBatch, epoch: int) -> dict[str, Tensor]:
        batch = batch.to(self.runtime.device)
        mixture = draw_mixture(self.config.head.mixup, len(batch), self.runtime.device)
        with self.runtime.autocast():
            logits_BC = self.network(mixture.blend(batch.video_BTHWC), mixture.blend(batch.joints_BMTVC)).float()
            loss = mixture.loss(logits_BC, batch.label_B, self.config.head.label_smoothing)
        return {"loss": loss, "accuracy": (logits_BC.argmax(1) == batch.label_B).float().mean()}

    def evaluate(self) -> Metrics:
        """Accuracy on the test clips, of the network that the first process publishes."""
        self.runtime.share_buffers(self.model)
        return score(self.model, self.test_loader, self.runtime)

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Every `eval_every` epochs: evaluate, and publish the network in `best` if it is the best so far."""
        if not self.config.eval_every or epoch % self.config.eval_every:
            return {}
        metrics = self.evaluate()
        best = self.stepper.values.get("best_test_top1", -1.0)
        if metrics.top1 > best and self.runtime.is_main:
            figures = evaluation_entry({"split": self.config.data.test_split, **metrics.to_dict()})
            card = {**self.card, "epoch": epoch, "evaluation": figures}
            publish(self.config.run.out / "best", self.model.state_dict(), card)
        return {"test_top1": metrics.top1, "best_test_top1": max(metrics.top1, best)}

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, **super().parts()}


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train (or continue) a classifier, publish it and evaluate it on the test split; returns the metrics."""
    with running(config.run) as runtime:
        if is_finished(config):
            return read_result(config.run)
        shards = open_data(config.data)
        classes = list(shards.split_classes(config.data.train_split))
        num_joints = len(shards.manifest.layout.joints)
        rows = labelled_rows(shards, config.data.train_split, config.label_fraction, config.run.seed)
        warn_of_shared_clips(shards, config.data.test_split, rows)
        warn_of_view(shards, config.data.train_split)
        if config.modality != "rgb":
            require_skeletons(shards, config.data.train_split)
        loader_of = partial(build_loader, shards, config, runtime, modality=config.modality)
        card = model_card("finetune", config, num_joints=num_joints, classes=classes, shards=shards, train_clips=len(rows))
        with loader_of(train=True, rows=rows) as loader, loader_of(train=False, views=config.data.views) as test_loader:
            run = Finetuning(config, runtime, loader, test_loader, card)
            train(run, card)
            metrics = run.evaluate()
        about = evaluated_on(shards, config.data.test_split, config.data.metric, config.run.seed)
        result = {**about, "labels": len(rows), "classes": classes, **metrics.to_dict()}
        if runtime.is_main:
            complete_card(config.run.out, evaluation=evaluation_entry(result))
        finish_run(config.run, runtime, result)
        log.info("%s: top-1 %.1f %% of %d clips", config.run.out, 100 * metrics.top1, metrics.count)
        return result
