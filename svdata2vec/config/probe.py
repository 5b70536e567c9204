"""Configuration and presets of probing: how good frozen features are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from svdata2vec.config.presets import FINETUNE
from svdata2vec.config.schema import DataConfig, Device, Modality, RunConfig
from svdata2vec.shards.ranges import ABOVE_0, Count, PositiveShare, Range, Seed, check_fields


@dataclass(frozen=True)
class AttentiveConfig:
    """The attentive probe: a learned query that attends to a clip's frozen tokens, and one Linear (V-JEPA's protocol)."""

    blocks: Annotated[int, Range(0, 100)] = 1
    """Attention blocks: the last one has the query, those before it attend among the tokens; 0 = no attentive probe."""
    steps: Count = 500
    """Optimizer steps."""
    batch_size: Annotated[int, Range(2)] = 64
    """Clips per step (times views); fewer if the split has fewer."""
    lr: Annotated[float, Range(ABOVE_0, 1000)] = 1e-3
    """Peak learning rate of AdamW: a tenth of the steps from 0, then half a cosine down to 0."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Weight decay."""

    def __post_init__(self) -> None:
        check_fields(self, "attentive.")


@dataclass(frozen=True)
class ProbeConfig:
    """Probes of the frozen features of a finished run: linear, nearest neighbours (mean over time), attentive (all tokens)."""

    kind: ClassVar = "probe"
    data: DataConfig = field(default_factory=DataConfig)
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Folder of a finished run whose encoder to probe, as a rule a pretraining run (required)."""
    out: Path = Path("runs/probe")
    """Folder of the results."""
    modality: Modality = "rgb"
    """Modality that the encoder sees."""
    label_fraction: PositiveShare = 1.0
    """Share of the training labels that is used, drawn per class by seed."""
    weight_decay: Annotated[float, Range(0)] = 1e-3
    """Weight of half the squared norm of the linear probe's weights (on features of unit variance)."""
    iterations: Count = 200
    """Maximum number of L-BFGS iterations of the linear probe; the problem is convex, and it stops at the minimum."""
    neighbours: Count = 20
    """Neighbours that vote on a clip; the result with the nearest one alone is reported too. Classes without a vote rank below
    those with one, by the cosine of their nearest clip."""
    temperature: Annotated[float, Range(0.01, 1000)] = 0.07
    """A neighbour's vote is exp(cosine / temperature)."""
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    """The attentive probe."""
    batch_size: Count = 32
    """Clips per process and forward pass."""
    seed: Seed = 0
    """Seed of the share of labels, and of the attentive probe."""
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
