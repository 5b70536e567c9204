"""The classifier: the encoder that pretraining leaves, and a head (svdata2vec/README.md, "Networks").

B clips, M persons, T frames, V joints, C coordinates, H W picture, D width
"""

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.model.student import Encoder
from svdata2vec.model.transformer import initialise_transformer
from svdata2vec.pipeline.video import Video


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
    """Encoder and head for one of the modalities "rgb", "skeleton" or "both"; `linear`: the head of a linear probe."""

    def __init__(self, config: FinetuneConfig, num_joints: int, num_classes: int, *, linear: bool = False) -> None:
        super().__init__()
        head = config.head
        self.modality = config.modality
        self.encoder = Encoder(
            config.model, config.data.num_frames, num_joints, modality=config.modality, drop_path=head.drop_path
        )
        self.head: Head | LinearHead = (
            LinearHead(config.model.width, num_classes)
            if linear
            else Head(config.model.width, head.hidden, num_classes, head.dropout).apply(initialise_transformer)
        )

    def forward(self, video_BTHWC: Video | None, joints_BMTVC: Tensor | None) -> Tensor:
        """Logits (B, classes), float32 under autocast too."""
        features_BTD = self.encoder(video_BTHWC, joints_BMTVC)
        kind = features_BTD.device.type
        if not torch.is_autocast_enabled(kind):
            return self.head(features_BTD)
        with torch.autocast(kind, enabled=False):  # in bfloat16 close scores would be equal, and count for the first class
            return self.head(features_BTD.float())
