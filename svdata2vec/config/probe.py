"""Configuration and presets of probing: how good frozen features are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from svdata2vec.config.presets import FINETUNE
from svdata2vec.config.schema import DataConfig, Device, Modality, RunConfig
from svdata2vec.shards.ranges import Count, PositiveShare, Range, Seed, check_fields


@dataclass(frozen=True)
class ProbeConfig:
    """Linear probe and nearest neighbours on the frozen features of a finished run: mean over time, one Linear."""

    kind: ClassVar = "probe"
    data: DataConfig = field(default_factory=DataConfig)
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Folder of a finished run whose encoder to probe, as a rule a pretraining run (required)."""
    out: Path = Path("runs/probe")
    """Folder of the results."""
    modality: Modality = "rgb"
    """What the encoder sees."""
    label_fraction: PositiveShare = 1.0
    """Share of the training labels that is used, drawn per class by seed."""
    weight_decay: Annotated[float, Range(0)] = 1e-3
    """Weight of half the squared norm of the linear probe's weights (on features of unit variance)."""
    iterations: Count = 200
    """Most L-BFGS iterations of the linear probe; it is convex and stops when it is at its minimum."""
    neighbours: Count = 20
    """Neighbours that vote on a clip."""
    temperature: Annotated[float, Range(0.01, 1000)] = 0.07
    """A neighbour's vote is exp(cosine / temperature)."""
    batch_size: Count = 32
    """Clips per process and forward pass."""
    seed: Seed = 0
    """Seed of the share of labels."""
    device: Device = "auto"
    """Where the encoder runs; auto = the GPU if there is one."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def run(self) -> RunConfig:
        """The part that every run has."""
        return RunConfig(out=self.out, batch_size=self.batch_size, seed=self.seed, device=self.device)


def _preset(name: str) -> ProbeConfig:
    classifier = FINETUNE[name]()
    out = classifier.run.out
    return ProbeConfig(
        data=classifier.data,
        out=out.with_name(out.name.replace("finetune", "probe")),
        label_fraction=classifier.label_fraction,
        batch_size=classifier.run.batch_size,
    )


PROBE: dict[str, Callable[[], ProbeConfig]] = {name: partial(_preset, name) for name in FINETUNE}
