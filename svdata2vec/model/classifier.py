"""The recogniser: the encoder that pretraining leaves, and a head (README, "The method in numbers").

B clips, M persons, T frames, V joints, C coordinates, H W picture, D width
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from svdata2vec.config.schema import FinetuneConfig, from_dict
from svdata2vec.model.student import Encoder
from svdata2vec.model.transformer import initialise_transformer
from svdata2vec.runs.checkpoint import load_published
from svdata2vec.shards.errors import UserError


class Head(nn.Module):
    """Dropout, mean over time, Linear, BatchNorm, ReLU, Linear."""

    def __init__(self, width: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(width, hidden)
        self.bn = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, features_BTD: Tensor) -> Tensor:
        hidden = self.fc1(self.dropout(features_BTD).mean(dim=1))
        return self.fc2(self.bn(hidden).relu())


class LinearHead(nn.Module):
    """Mean over time, one Linear: the linear probe."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, features_BTD: Tensor) -> Tensor:
        return self.fc(features_BTD.mean(dim=1))


class Classifier(nn.Module):
    """Encoder and head for one of the modalities "rgb", "skeleton" or "both"."""

    def __init__(self, config: FinetuneConfig, num_joints: int, num_classes: int) -> None:
        super().__init__()
        head = config.head
        self.modality = config.modality
        self.encoder = Encoder(
            config.model, config.data.num_frames, num_joints, modality=config.modality, drop_path=head.drop_path
        )
        self.head: Head | LinearHead = Head(config.model.width, head.hidden, num_classes, head.dropout)
        self.head.apply(initialise_transformer)

    def forward(self, video_BTHWC: Tensor | None, joints_BMTVC: Tensor | None) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.encoder(video_BTHWC, joints_BMTVC))


def load_encoder(encoder: Encoder, source: Path) -> None:
    """Take the encoder's weights from a finished run; anything missing or of another shape is an error that lists it."""
    weights, _ = load_published(source)
    prefix = "encoder."
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    wanted = encoder.state_dict()
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise UserError(
            f"{source}: {len(missing)} weights of the encoder are missing: {', '.join(missing[:8])}; use the model.* settings "
            "and a modality that the run was made with (its config.json)"
        )
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if found[name].shape != wanted[name].shape
    ]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights have another shape: {', '.join(wrong[:4])}; use the model.* and data.num_frames "
            "settings that the run was made with (its config.json), and shards of its joint layout if skeletons are read"
        )
    encoder.load_state_dict({name: found[name] for name in wanted})


def load_classifier(run: Path) -> tuple[Classifier, FinetuneConfig, dict[str, Any]]:
    """The recogniser of a finished fine-tuning or probe run, in evaluation mode, with its configuration and model card."""
    weights, card = load_published(run)
    if card.get("kind") not in ("finetune", "probe"):
        raise UserError(f"{run} is a {card.get('kind', 'foreign')} run without a classifier; give a finetune or probe run")
    config = from_dict(FinetuneConfig, card["config"], f"{run}/model.json")
    model = Classifier(config, card["num_joints"], len(card["classes"]))
    if card["kind"] == "probe":
        model.head = LinearHead(config.model.width, len(card["classes"]))
    model.load_state_dict(weights)
    return model.eval(), config, card
