"""Fine-tuning: a classifier from a pretraining run or from scratch, on RGB alone by default.

B clips, M persons, T frames, V joints, C coordinates, H W picture
"""

import logging
from functools import partial
from typing import Any

import torch

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.evaluation.evaluate import predict_split
from svdata2vec.evaluation.metrics import Metrics, measure
from svdata2vec.model.classifier import Classifier
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.card import complete_card, evaluation_entry, model_card
from svdata2vec.runs.data import build_loader, labelled_rows, open_data, to_device
from svdata2vec.runs.folder import finish_run, is_finished, read_result
from svdata2vec.runs.published import load_encoder_weights, publish
from svdata2vec.runs.runtime import Runtime, running, unwrap
from svdata2vec.training.loop import EpochBatch, Stateful, train
from svdata2vec.training.mixup import draw_mixture
from svdata2vec.training.optim import build_optimizer
from svdata2vec.training.stepper import Stepper

log = logging.getLogger(__name__)


class Finetuning:
    """Everything a fine-tuning run holds, wired once; `step` is the training step.

    Args:
        config: the resolved configuration.
        runtime: this process and its device.
        loader: training clips.
        test_loader: test clips.
        card: the run's model card.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        runtime: Runtime,
        loader: ClipLoader,
        test_loader: ClipLoader,
        card: dict[str, Any],
    ) -> None:
        torch.manual_seed(config.run.seed)
        model = Classifier(config, card["num_joints"], len(card["classes"]))
        if config.pretrained is not None:
            load_encoder_weights(model.encoder, config.pretrained)
        self.config, self.runtime, self.loader, self.test_loader = config, runtime, loader, test_loader
        self.card = card
        self.network = runtime.wrap(model, config.run)
        layer_decay = config.head.layer_decay if config.pretrained is not None else 1.0
        self.optimizer = build_optimizer(
            self.model.named_parameters(), config.optim, depth=config.model.depth, layer_decay=layer_decay
        )
        self.stepper = Stepper(
            config.optim, config.run, runtime, self.network, self.optimizer, loader.batches_per_epoch
        )

    @property
    def model(self) -> Classifier:
        model = unwrap(self.network)
        assert isinstance(model, Classifier)
        return model

    def step(self, batches: list[EpochBatch]) -> None:
        """One optimizer step over `optim.accumulate` batches."""
        stepper = self.stepper
        stepper.begin()
        self.network.train()
        for _, batch in batches:
            video_BTHWC, joints_BMTVC, label_B = to_device(batch, self.runtime.device)
            mixture = draw_mixture(self.config.head.mixup, len(label_B), label_B.device)
            with self.runtime.autocast():
                logits_BC = self.network(mixture.blend(video_BTHWC), mixture.blend(joints_BMTVC)).float()
                loss = mixture.loss(logits_BC, label_B, self.config.head.label_smoothing)
            stepper.clock.mark("forward")
            stepper.backward(loss, self.network, last=batch is batches[-1][1])
            stepper.note({"loss": loss, "accuracy": (logits_BC.argmax(1) == label_B).float().mean()})
        stepper.update([key for _, batch in batches for key in batch.keys])
        stepper.end({})

    def evaluate(self) -> Metrics:
        """Accuracy on the test clips, of the network that the first process publishes."""
        self.runtime.share_buffers(self.model)
        predictions = predict_split(self.model, self.test_loader, self.runtime)
        return measure(predictions.scores_nc, predictions.labels_n)

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

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint holds."""
        return {"model": self.model, "optimizer": self.optimizer, "stepper": self.stepper, "loader": self.loader}


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train (or continue) a classifier, publish it and evaluate it on the test split; returns the metrics."""
    with running(config.run) as runtime:
        if is_finished(config, config.run):
            return read_result(config.run)
        shards = open_data(config.data)
        classes = list(shards.split_classes(config.data.train_split))
        num_joints = len(shards.manifest.layout.joints)
        rows = labelled_rows(shards, config.data.train_split, config.label_fraction, config.run.seed)
        loader_of = partial(
            build_loader, shards, config.data, config.run, runtime, config.model.persons, modality=config.modality
        )
        card = model_card(
            "finetune", config, num_joints=num_joints, classes=classes, shards=shards, train_clips=len(rows)
        )
        with loader_of(train=True, rows=rows) as loader, loader_of(train=False, views=config.data.views) as test_loader:
            run = Finetuning(config, runtime, loader, test_loader, card)
            train(run, card)
            metrics = run.evaluate()
        result = {"split": config.data.test_split, "labels": len(rows), "classes": classes, **metrics.to_dict()}
        if runtime.is_main:
            complete_card(config.run.out, evaluation=evaluation_entry(result))
        finish_run(config.run, runtime, result)
        log.info("%s: top-1 %.1f %% of %d clips", config.run.out, 100 * metrics.top1, metrics.count)
        return result
