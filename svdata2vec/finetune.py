"""Fine-tuning: a recogniser from a pretraining run or from scratch, on RGB alone by default.

B clips, M persons, T frames, V joints, C coordinates, H W picture
"""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdata2vec.card import complete_card, evaluation_entry, model_card
from svdata2vec.classifier import Classifier, load_encoder
from svdata2vec.config import FinetuneConfig, to_json
from svdata2vec.data import build_loader, labelled_rows, to_device
from svdata2vec.evaluate import predict_split
from svdata2vec.metrics import measure
from svdata2vec.mixup import draw_mixture
from svdata2vec.optim import build_optimizer
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.remote import open_shards
from svdata2vec.runtime import Runtime, running, unwrap
from svdata2vec.stepping import EpochBatch, Stepper, finish_run, is_finished, read_result, train

log = logging.getLogger(__name__)


class Finetuning:
    """Everything a fine-tuning run holds, wired once; `step` is the training step.

    Args:
        config: the resolved configuration.
        runtime: this process and its device.
        loader: training clips.
        num_joints: V of the shards' joint layout.
        num_classes: classes of the data set.
    """

    def __init__(
        self, config: FinetuneConfig, runtime: Runtime, loader: ClipLoader, num_joints: int, num_classes: int
    ) -> None:
        torch.manual_seed(config.run.seed)
        model = Classifier(config, num_joints, num_classes)
        if config.pretrained is not None:
            load_encoder(model.encoder, config.pretrained)
        self.config, self.runtime, self.loader = config, runtime, loader
        self.network = runtime.wrap(model, config.run)
        layer_decay = config.head.layer_decay if config.pretrained is not None else 1.0
        self.optimizer = build_optimizer(
            self.model.named_parameters(), config.optim, depth=config.model.depth, layer_decay=layer_decay
        )
        self.stepper = Stepper(config.optim, config.run, runtime, self.optimizer, loader.batches_per_epoch)

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

    def state(self) -> dict[str, Any]:
        return {
            "kind": "finetune",
            "config": to_json(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stepper": self.stepper.state_dict(),
            "loader": self.loader.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stepper.load_state_dict(state["stepper"])
        self.loader.load_state_dict(state["loader"])

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train (or continue) a recogniser, publish it and evaluate it on the test split; returns the metrics."""
    with running(config.run) as runtime:
        if is_finished(config, config.run):
            return read_result(config.run)
        shards = open_shards(config.data.shards)
        classes = list(shards.split_classes(config.data.train_split))
        num_joints = len(shards.manifest.layout.joints)
        rows = labelled_rows(shards, config.data.train_split, config.label_fraction, config.run.seed)
        loader_of = partial(
            build_loader, shards, config.data, config.run, runtime, config.model.persons, modality=config.modality
        )
        with loader_of(train=True, rows=rows) as loader:
            run = Finetuning(config, runtime, loader, num_joints, len(classes))
            card = model_card(
                "finetune", config, num_joints=num_joints, classes=classes, shards=shards, train_clips=len(rows)
            )
            train(run, card)
        with loader_of(train=False) as loader:
            predictions = predict_split(run.model, loader, runtime)
        metrics = measure(predictions.scores_nc, predictions.labels_n)
        result = {"split": config.data.test_split, "labels": len(rows), "classes": classes, **metrics.to_dict()}
        if runtime.is_main:
            complete_card(config.run.out, evaluation=evaluation_entry(result))
        finish_run(config.run, runtime, result)
        log.info("%s: top-1 %.1f %% of %d clips", config.run.out, 100 * metrics.top1, metrics.count)
        return result
