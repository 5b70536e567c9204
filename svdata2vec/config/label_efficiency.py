"""Options of `svdata2vec label-efficiency`: rows, shares of labels, seeds, budgets, and the search of hyper-parameters."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from svdata2vec.config.presets import FINETUNE
from svdata2vec.config.probe import AttentiveConfig
from svdata2vec.config.schema import DataConfig, FinetuneConfig, HeadConfig, ModelConfig, OptimConfig, RunConfig, check
from svdata2vec.shards.ranges import ABOVE_0, Count, PositiveShare, Range, check_fields

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 1.0)  # of the labels: the usual shares of semi-supervised learning

Way = Literal["scratch", "scratch_total", "finetune", "linear", "attentive", "skeleton"]

TRAINED = frozenset({"scratch", "scratch_total", "finetune", "skeleton"})  # ways that train a network
PROBED = frozenset({"linear", "attentive"})  # ways that read frozen features
# Hyper-parameters of the search, and which ways have them.
SEARCHED = {
    "lr": TRAINED | {"attentive"}, "steps": TRAINED | {"attentive"}, "drop_path": TRAINED,
    "weight_decay": frozenset({"linear"}),
}
GRID = tuple(SEARCHED)


@dataclass(frozen=True)
class SearchConfig:
    """Hyper-parameters that every row chooses for itself, on clips of performers that are neither trained nor tested on.

    Every row that is trained tries all combinations of the same grid; parameters without values here are set by the other
    options. A single combination is used without a trial.
    """

    lr: tuple[Annotated[float, Range(ABOVE_0, 1000)], ...] = ()
    """Peak learning rates to try."""
    steps: tuple[Annotated[int, Range(1)], ...] = ()
    """Optimizer steps to try, rounded up to whole epochs."""
    drop_path: tuple[Annotated[float, Range(0, 0.999)], ...] = ()
    """Rates of stochastic depth to try."""
    weight_decay: tuple[Annotated[float, Range(0)], ...] = ()
    """L2 weights of the linear probe, its only hyper-parameter, to try."""
    seeds: Count = 1
    """Number of seeds whose mean on the validation clips decides."""
    fractions: tuple[PositiveShare, ...] = ()
    """Shares of the labels to search at, each large enough to hold out at least one clip; other shares use the result of the
    nearest one; none = all."""

    def __post_init__(self) -> None:
        check_fields(self, "search.")
        for name in (*GRID, "fractions"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), f"search.{name} is {' '.join(map(str, values))}: expected every value once")

    @property
    def chooses(self) -> bool:
        """Whether there is more than one combination to choose from."""
        return any(len(getattr(self, name)) > 1 for name in GRID)


@dataclass(frozen=True)
class LabelEfficiencyConfig:
    """Accuracy over the share of labels: from scratch, fine-tuned and probed after pretraining, over seeds, with intervals.

    All rows have the same labelled clips; those that train a network have the same steps and clips per step. Finished runs
    are reused; the results are written to `label_efficiency.json` in the folder, with a chart beside it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=lambda: FinetuneConfig().optim)
    run: RunConfig = field(default_factory=lambda: RunConfig(out=Path("runs/label-efficiency"), epochs=100))
    pretrained: Annotated[tuple[str, ...], tyro.conf.arg(name="from", metavar="NAME=RUN [NAME=RUN ...]")] = ()
    """Pretraining runs to start from, each with a name for its rows; {seed} in a folder stands for the seed."""
    ways: tuple[Way, ...] = ("scratch", "finetune", "linear", "attentive")
    """Rows to compute: RGB from scratch, and with the compute of the first run of `--from` on top; every run of `--from`
    fine-tuned and probed; skeletons from scratch, for reference."""
    fractions: tuple[PositiveShare, ...] = FRACTIONS
    """Shares of the labelled training clips; the clips of a smaller one are part of those of a larger one."""
    seeds: Count = 3
    """Runs per row and share, with consecutive seeds from `run.seed` on, which draw labels, weights and order of clips."""
    steps: Annotated[int, Range(0)] = 0
    """Optimizer steps of every fine-tuning, rounded up to whole epochs; 0 = `run.epochs` epochs."""
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    """The attentive probe."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Hyper-parameters to choose on validation clips."""
    jobs: Annotated[int, Range(1, 1000)] = 1
    """Runs at a time, each in a process that has a core (or a GPU) to itself."""
    keep_runs: bool = False
    """Keep the folders of finished runs with their weights; their figures are kept in any case."""
    collect: bool = False
    """Start no runs; write the record of the finished ones."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(set(self.fractions)) == len(self.fractions) > 0, "fractions: expected one or more, each once")
        check(len(set(self.ways)) == len(self.ways) > 0, "ways: expected one or more, each once")
        names = [start.partition("=")[0] for start in self.pretrained]
        for start, name in zip(self.pretrained, names, strict=True):
            check(
                "=" in start and name.isidentifier(),
                f"from is {start!r}: expected a name and a folder, as in pretrained=runs/pretrain-demo",
            )
        check(len(set(names)) == len(names), f"from names {', '.join(names)}: expected every name once")
        check(
            bool(self.pretrained) or "scratch_total" not in self.ways,
            "ways has scratch_total, which has the compute of the first run of --from; name one, or leave it out",
        )
        check(
            self.attentive.blocks > 0 or "attentive" not in self.ways,
            "attentive.blocks is 0, which is no attentive probe, and ways has attentive; leave one of them out",
        )
        check(
            not self.data.weights or PROBED.isdisjoint(self.ways),
            f"data.weights is {' '.join(map(str, self.data.weights))}, but probes take every clip once; leave it out, or "
            f"{' and '.join(way for way in self.ways if way in PROBED)} out of ways",
        )
        check(self.search.seeds <= self.seeds, f"search.seeds is {self.search.seeds}: expected 1 to {self.seeds} (seeds)")
        check(
            self.search.chooses
            or not (self.search.fractions or self.search.seeds > 1 or self.data != self.data.without_validation()),
            "search.fractions, search.seeds, data.val_split and data.val_fraction say where to choose, but there is nothing "
            f"to choose; give several values to one of {', '.join(f'search.{name}' for name in GRID)}, or leave them out",
        )
        lowest = min(self.search.lr, default=self.optim.min_lr)
        check(
            self.optim.min_lr_share > 0 or lowest >= self.optim.min_lr or TRAINED.isdisjoint(self.ways),
            f"search.lr has {lowest:g}: the rate would rise from there to optim.min_lr {self.optim.min_lr:g}; set another "
            "of the two, or optim.min_lr_share",
        )
        check(
            not (self.search.lr and self.optim.base_lr),
            "search.lr has the peak rates to try, and optim.base_lr would take their place; leave one of them out",
        )
        for name, ways in SEARCHED.items():
            check(
                not getattr(self.search, name) or not ways.isdisjoint(self.ways),
                f"search.{name} is given, but nothing in ways ({' '.join(self.ways)}) has it; leave it out, or add one of "
                f"{' '.join(sorted(ways))}",
            )

    def classifier(self) -> FinetuneConfig:
        """Settings of a classifier from scratch, with all labels."""
        return FinetuneConfig(data=self.data, model=self.model, head=self.head, optim=self.optim, run=self.run)


def _preset(name: str) -> LabelEfficiencyConfig:
    classifier = FINETUNE[name]()
    run = classifier.run
    out = run.out.with_name(run.out.name.replace("finetune", "label-efficiency"))
    return LabelEfficiencyConfig(
        data=classifier.data, model=classifier.model, head=classifier.head, optim=classifier.optim, run=replace(run, out=out)
    )


LABEL_EFFICIENCY: dict[str, Callable[[], LabelEfficiencyConfig]] = {name: partial(_preset, name) for name in FINETUNE}
