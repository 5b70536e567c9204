"""The report's tables of results: every run with its intervals, runs that differ only in the seed together, classes."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdata2vec.config.files import to_values
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.reports.html_page import note, section, table
from svdata2vec.reports.results import (
    INTERVALS,
    NAMES,
    accuracies,
    by_probe,
    class_rows,
    confusion_rows,
    percent,
    scored,
    with_interval,
)
from svdata2vec.runs.card import read_card
from svdata2vec.runs.folder import Settings, read_config
from svdata2vec.runs.intervals import mean_over_seeds
from svdata2vec.shards.errors import UserError

MOST_CONFUSIONS = 20
MOST_ANCESTORS = 8  # runs before a run whose settings are compared
SEED = ("seed", "out", "shards")  # settings in which runs that differ only in the seed may differ


@dataclass(frozen=True)
class Outcome:
    """Figures of a run's classifier; a probe has several (`way`: which). `result`: the run's whole `result.json`."""

    name: str
    config: FinetuneConfig | ProbeConfig
    result: Mapping[str, Any]
    way: str
    figures: Mapping[str, Any]

    @property
    def how(self) -> str:
        """What it started from, and of a probe which it is."""
        start = f"pretrained ({self.config.pretrained.name})" if self.config.pretrained else "scratch"
        return f"{start}, {self.way}" if self.way else start

    def about(self, field: str) -> str:
        """What the result says it is about; results of earlier versions say little."""
        return str(self.result.get(field, ""))


def outcomes(name: str, config: Settings, result: Mapping[str, Any] | None) -> list[Outcome]:
    """None of a pretraining run or one that is not finished."""
    if result is None or not isinstance(config, (FinetuneConfig, ProbeConfig)):
        return []
    ways = [("", result)] if isinstance(config, FinetuneConfig) else by_probe(result)
    return [Outcome(name, config, result, way, figures) for way, figures in ways]


def results(found: Sequence[Outcome]) -> str:
    """All results with their intervals, what they are of, and the means over seeds; nothing without results."""
    if not found:
        return ""
    numbers = sorted({len(each.result["classes"]) for each in found})
    by_luck = [
        ["chance" if len(numbers) == 1 else f"chance, {classes} classes", "", "", "",
         *(percent(min(guesses, classes) / classes) for guesses in (1, 5, 1)), ""]
        for classes in numbers
    ]
    header = ["run", "input", "start", "labelled clips", *NAMES.values(), "test clips"]
    rows = [
        [each.name, each.config.modality, each.how, str(each.result["labels"]), *accuracies(each.figures).values(),
         scored(each.figures)]
        for each in found
    ]
    return section("Results", table(header, [*rows, *by_luck]) + note(INTERVALS) + _about(found)
                   ) + section("Over seeds", _over_seeds(found))


def _about(found: Sequence[Outcome]) -> str:
    """What each run was tested on, when, and which of its networks."""
    fields = ("dataset", "split", "fingerprint", "date", "seed")
    rows = []
    for each in {id(each.result): each for each in found}.values():
        network = each.about("network")
        if network == "best" and each.result.get("validation"):
            network = f"best on {each.result['validation']['split']}, epoch {each.about('epoch')}"
        values = {field: each.about(field) for field in fields}
        rows.append([each.name, *(values | {"fingerprint": values["fingerprint"][:16]}).values(), network])
    return table(["run", "data set", "test split", "fingerprint", "day", "seed", "network"], rows)


def _over_seeds(found: Sequence[Outcome]) -> str:
    groups: dict[str, dict[tuple[int, ...], Outcome]] = {}
    for each in found:
        data = each.about("fingerprint") or each.config.data.shards
        same = repr((each.way, data, _without_seed(each.config)))
        groups.setdefault(same, {}).setdefault(_seeds_of(each), each)  # a copy of a run says nothing new
    rows = []
    for group in [[*members.values()] for members in groups.values()]:
        if len(group) < 2:
            continue
        figures = []
        for name in NAMES:
            mean, (low, high) = mean_over_seeds([each.figures[name] for each in group])
            figures.append(with_interval(mean, (max(low, 0.0), min(high, 1.0))))
        rows.append([", ".join(each.name for each in group), group[0].how, str(len(group)), *figures])
    text = "Mean of runs that differ only in their seeds, with its 95 % interval by Student's t"
    return table(["runs", "start", "seeds", *NAMES.values()], rows) + note(text) if rows else ""


def _seeds_of(found: Outcome) -> tuple[int, ...]:
    """Those that decide its figures: with all labels, only the attentive probe draws anything by its own seed."""
    config = found.config
    own = not isinstance(config, ProbeConfig) or config.label_fraction < 1 or found.way.startswith("attentive")
    return _seeds(config)[not own:]


def _seeds(config: Settings, ancestors: int = MOST_ANCESTORS) -> tuple[int, ...]:
    """Of a run, and of those that it started from as far as they can be read."""
    source: Path | None = getattr(config, "pretrained", None)
    if source is not None and ancestors:
        with suppress(UserError, OSError):
            return (config.run.seed, *_seeds(read_config(source), ancestors - 1))
    return (config.run.seed,)


def _without_seed(config: Settings, ancestors: int = MOST_ANCESTORS) -> dict[str, Any]:
    """Settings without seeds and folders; a run that it started from counts by its own settings and clips, where they can be
    read."""
    values = to_values(config)
    for part in (values, values["data"], values.get("run", {})):
        for name in SEED:
            part.pop(name, None)
    source: Path | None = getattr(config, "pretrained", None)
    if source is not None and ancestors:
        try:
            before = read_config(source)
            values["pretrained"] = {**_without_seed(before, ancestors - 1), "trained_on": _trained_on(source, before)}
        except (UserError, OSError):
            values["pretrained"] = str(source)
    return values


def _trained_on(run: Path, config: Settings) -> str:
    """The fingerprint of a run's shards; where its card does not say, their place."""
    with suppress(UserError, OSError):
        if found := (read_card(run).get("trained_on") or {}).get("fingerprint"):
            return str(found)
    return config.data.shards


def class_tables(result: Mapping[str, Any]) -> str:
    """Accuracy of each class from the weakest up, and what is most often taken for what."""
    mistakes = confusion_rows(result)[:MOST_CONFUSIONS]
    tables = {"Accuracy per class": table(["class", "clips", "accuracy"], class_rows(result))}
    if mistakes:
        tables["Most frequent confusions"] = table(["class", "taken for", "clips"], mistakes)
    return "".join(f"<details open><summary>{title}</summary>{body}</details>" for title, body in tables.items())
