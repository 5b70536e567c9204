"""`svdata2vec label-efficiency`: accuracy over the share of labels, for rows with the same clips, steps and search.

A row is a way to get a classifier (`rows.py`, `probe_rows.py`). What it is for: svdata2vec/README.md, "Label efficiency".
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from svdata2vec.config.files import to_values
from svdata2vec.config.label_efficiency import LabelEfficiencyConfig
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import FinetuneConfig, MaskConfig, PretrainConfig, RunConfig, TargetConfig
from svdata2vec.evaluation.probe import check_input
from svdata2vec.model.step_cost import step_flops, step_layers
from svdata2vec.reports.html_page import save_figure
from svdata2vec.reports.label_curve import label_curve
from svdata2vec.runs import own_preset
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import (
    labelled_rows,
    open_data,
    require_classes,
    require_clips,
    require_several_classes,
    require_skeletons,
    taken_per_epoch,
    warn_of_earlier_clips,
    warn_of_shared_clips,
    warn_of_view,
)
from svdata2vec.runs.metrics_log import METRICS_NAME, cost
from svdata2vec.runs.performers import warn_of_shared_people
from svdata2vec.runs.provenance import UNKNOWN, commit, hardware, head, save
from svdata2vec.runs.published import input_settings, published_config, require_same_network
from svdata2vec.runs.runtime import pick_device
from svdata2vec.runs.validation import hold_out, validation_split
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.studies.probe_rows import ProbeRow
from svdata2vec.studies.rows import FinetuneRow, Kind, Row, start_of
from svdata2vec.studies.study import Plan, fewer_seeds, run_study, search_cells

FORMAT, VERSION = "svdata2vec-label-efficiency", 1
RECORD = "label_efficiency.json"  # in the study's folder, with a chart beside it

log = logging.getLogger(__name__)


def label_efficiency(config: LabelEfficiencyConfig) -> dict[str, Any]:
    """Run what is not finished and write `label_efficiency.json` into the study's folder; returns the record."""
    return write_study(config, rows_of(config))


def fit(config: LabelEfficiencyConfig) -> LabelEfficiencyConfig:
    """The preset `own`: splits, frames, batch, epochs and network as fine-tuning has them for these shards, from the first run
    of `--from` if there is one."""
    if not config.pretrained:
        return fit_after(config, None)
    run = start_of(config.pretrained[0].partition("=")[2], config.run.seed)
    return fit_after(config, published_config(read_card(run), run))


def fit_after(config: LabelEfficiencyConfig, first: PretrainConfig | FinetuneConfig | None) -> LabelEfficiencyConfig:
    """`fit` for a first run with these settings, which may not exist yet."""
    made = own_preset.fit_after(replace(config.classifier(), eval_every=int(config.search.chooses)), first)
    return replace(config, data=made.data, model=made.model, optim=made.optim, run=made.run)


def write_study(config: LabelEfficiencyConfig, rows: list[Row]) -> dict[str, Any]:
    """Run some rows and write the record."""
    shards, out = open_data(config.data), config.run.out
    seeds = range(config.run.seed, config.run.seed + config.seeds)
    if not rows:
        wanted = f"--ways {' '.join(config.ways)}"
        raise UserError(f"{wanted}: these start from pretraining runs; name one with --from, or add scratch")
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two rows of the study are named {', '.join(twice)}; give the runs of --from other names")
    train_split, fingerprint = config.data.train_split, shards.manifest.fingerprint
    require_classes(shards, config.data.test_split, shards.one_class_list(train_split), f"split {train_split!r}")
    plan = Plan(
        rows, config.fractions, seeds, config.search, out, fingerprint, config.jobs, config.keep_runs, config.collect,
        config.run.device,
    )
    beginning = about(config, shards)
    if not config.collect:
        require_labels(plan, config, shards)
    require_writable(out / RECORD, ".png")
    found = run_study(plan)
    if not found["rows"]:
        raise UserError(f"{out}: no run is finished; start the study without --collect")
    record = {**beginning, **found}
    starts = {row.name: getattr(row, "start", None) for row in rows}
    for row in found["rows"]:
        start = starts[row["name"]]
        if start is not None:
            row["pretraining"] = [_pretraining(start_of(start, seed)) for seed in seeds]
    save(record, out / RECORD)
    save_figure(label_curve(record), (out / RECORD).with_suffix(".png"), dpi=110)
    for line in lines(record):
        log.info("%s", line)
    return record


def require_labels(plan: Plan, config: LabelEfficiencyConfig, shards: ShardSet) -> None:
    """Before any run starts: UserError unless every share of the labels has enough clips to train on, and to hold out if the
    search needs it, and the validation split has the same classes."""
    data, base = config.data, config.classifier()
    for split in (data.train_split, data.test_split):
        require_clips(shards, base, split, None, 0)
    trained = [row for row in plan.rows if isinstance(row, FinetuneRow)]
    if any(row.base.modality != "rgb" for row in trained):
        require_skeletons(shards, data.train_split)
    val = validation_split(shards, data, shards.rows(data.train_split))
    searched = {(cell.fraction, cell.seed, val is None) for _, cell in search_cells(plan)}
    if searched and val is not None:
        require_classes(shards, val, shards.one_class_list(data.train_split), f"split {data.train_split!r}")
    for fraction, seed, holding in sorted(searched | set(itertools.product(plan.fractions, plan.seeds, [False]))):
        rows, option = labelled_rows(shards, data.train_split, fraction, seed, verbose=False), "fractions"
        if holding:
            option = "search.fractions"
            otherwise = f"search no share of the labels as small as {fraction:g} (--{option})"
            rows = rows[~hold_out(shards, rows, data.val_fraction, seed, otherwise=otherwise, verbose=False)]
        if trained and (taken := taken_per_epoch(shards, rows)) < 2:
            raise UserError(
                f"{shards.where}: with {fraction:g} of the labels an epoch takes {taken} of {len(rows)} clips by --data.weights"
                f", one step takes 2 or more; give larger shares with --{option}, or larger weights"
            )


def _pretraining(run: Path) -> dict[str, Any]:
    """What a pretraining run cost, and the commits that it was trained at."""
    return {**cost(run), "commits": read_card(run).get("commits", [UNKNOWN])}


def about(config: LabelEfficiencyConfig, shards: ShardSet) -> dict[str, Any]:
    """First part of a record: format, machine, commit, data, settings."""
    data, rows = config.data, shards.rows(config.data.train_split)
    require_several_classes(shards, data.train_split, data.test_split)
    val = validation_split(shards, data, rows)
    warn_of_shared_clips(shards, data.test_split, rows)
    warn_of_shared_people(shards, data, rows, val)
    splits = {"train_split": data.train_split, "val_split": val, "test_split": data.test_split}
    manifest, classes = shards.manifest, len(shards.split_classes(data.train_split))
    return {
        **head(FORMAT, VERSION), "kind": "label-efficiency", "machine": hardware(pick_device(config.run.device)),
        "commit": commit(), "metric": data.metric,
        "data": {
            "name": manifest.dataset, "fingerprint": manifest.fingerprint, "classes": classes,
            **splits, "clips": {name: len(shards.rows(name)) for name in splits.values() if name is not None},
        },
        "settings": to_values(replace(config, run=replace(config.run, out=Path(config.run.out.name)))),
    }


def rows_of(config: LabelEfficiencyConfig) -> list[Row]:
    """The rows that the options ask for; UserError for a pretraining run that is not finished, or does not fit them."""
    base, starts = config.classifier(), [tuple(start.split("=", 1)) for start in config.pretrained]
    seeds = range(config.run.seed, config.run.seed + config.seeds)
    runs = dict.fromkeys(start_of(start, seed) for _, start in starts for seed in seeds)
    require_fit({run: published_config(read_card(run), run) for run in runs}, config)
    _warn_of_starts([start for _, start in starts], seeds, config)
    rows: list[Row] = []
    if "scratch" in config.ways:
        rows.append(FinetuneRow("scratch", "from scratch", "rival", base, config.steps))
    if "scratch_total" in config.ways:
        bonus = worth_in_clips(start_of(starts[0][1], seeds[0]), base, open_data(config.data))
        title = "from scratch, with the compute of pretraining besides"
        rows.append(FinetuneRow("scratch_total", title, "rival", base, config.steps, bonus_clips=bonus))
    for name, start in starts:
        rows += _rows_after(config, name, start, _kind(start_of(start, seeds[0])))
    if "skeleton" in config.ways:
        seeing = replace(base, modality="skeleton", model=replace(base.model, init=None))
        rows.append(FinetuneRow("skeleton_supervised", "skeletons, from scratch", "reference", seeing, config.steps))
    return rows


def require_fit(runs: Mapping[Path, PretrainConfig | FinetuneConfig], config: LabelEfficiencyConfig) -> None:
    """Before any run starts: UserError unless the study's rows can start from runs with these settings.

    A doubt that several runs share is logged once.
    """
    doubtful: dict[str, list[Path]] = {}
    for run, made in runs.items():
        if (text := check_input(run, input_settings(made, "rgb"), config.data)) is not None:
            doubtful.setdefault(text, []).append(run)
        if "finetune" in config.ways:
            require_same_network(run, made.model, config.model, "the study", "rgb")
    for text, these in doubtful.items():
        log.warning("%s%s: %s", these[0], f" and {len(these) - 1} more" if len(these) > 1 else "", text)


def _warn_of_starts(starts: Sequence[str], seeds: Sequence[int], config: LabelEfficiencyConfig) -> None:
    """Warn of runs of `--from` that have seen test clips, that clips are shown to otherwise, or that serve all seeds."""
    shards, data = open_data(config.data), config.data
    for start in starts:
        run = start_of(start, seeds[0])
        warn_of_earlier_clips(shards, data.test_split, read_card(run), run)
        if "linear" in config.ways or "attentive" in config.ways:
            warn_of_view(shards, data.test_split, read_card(run))
        if len(seeds) > 1 and "{seed}" not in start:
            log.warning("%s: one run for all %d seeds, so that the intervals do not say how much pretraining runs differ; with "
                        "{seed} in its path each seed has its own", start, len(seeds))


def _rows_after(config: LabelEfficiencyConfig, name: str, start: str, kind: Kind) -> list[Row]:
    """Fine-tuning and probes of a pretraining run."""
    title, rows, base = name.replace("_", " "), list[Row](), config.classifier()
    if "finetune" in config.ways:  # starts from the run: `model.init` is for scratch
        base = replace(base, model=replace(base.model, init=None))
        rows.append(FinetuneRow(name, f"{title}, fine-tuned", kind, base, config.steps, start))
    probes = ProbeConfig(
        data=config.data, attentive=config.attentive, batch_size=config.run.batch_size, device=config.run.device
    )
    features = config.run.out / "features"
    if "linear" in config.ways:
        rows.append(ProbeRow(f"{name}_linear", f"{title}, linear probe", kind, "linear", probes, start, features))
    if "attentive" in config.ways:
        rows.append(ProbeRow(f"{name}_attentive", f"{title}, attentive probe", kind, "attentive", probes, start, features))
    return rows


def _kind(run: Path) -> Kind:
    """Role of a pretraining run in the comparison, by its targets."""
    config = published_config(read_card(run), run)
    if not isinstance(config, PretrainConfig):
        return "rival"
    target = config.target
    if target.shuffle_skeletons or (target.teacher == "encoder" and config.ema.start == 1):
        return "control"
    return "ours" if target == replace(TargetConfig(), top_layers=target.top_layers) else "rival"


# ---- costs ------------------------------------------------------------------------------------------------------------


def worth_in_clips(run: Path, classifier: FinetuneConfig, shards: ShardSet) -> int:
    """How many clips of RGB fine-tuning cost as much as a pretraining run, by the multiply-adds of their training steps."""
    config, joints = published_config(read_card(run), run), len(shards.manifest.layout.joints)
    if not isinstance(config, PretrainConfig):
        raise UserError(f"{run} is no pretraining run, whose compute scratch_total could have; leave it out of --ways")
    clips = cost(run)["clips_seen"]
    if not clips:
        raise UserError(
            f"{run} has no {METRICS_NAME} that says how many clips it has seen (a converted checkpoint has none), so that "
            "scratch_total cannot have its compute; leave it out of --ways, or name another run first"
        )
    model, data = classifier.model, classifier.data
    seen = PretrainConfig(
        data=data, model=model, mask=MaskConfig(0.0, 1.0), encode="all_frames", target=TargetConfig(min(8, model.depth)),
        run=RunConfig(batch_size=classifier.run.batch_size),
    )
    supervised = [layer for layer in step_layers(seen, joints) if layer.part in ("video", "encoder")]
    return round(clips * step_flops(step_layers(config, joints)) / step_flops(supervised))


# ---- for the terminal -------------------------------------------------------------------------------------------------


def lines(record: dict[str, Any]) -> list[str]:
    """A table: a line per row, a column per share of labels."""
    shares = record["settings"]["fractions"]
    width = max(len(row["name"]) for row in record["rows"])
    found = {row["name"]: {cell["fraction"]: _cell(cell) for cell in row["cells"]} for row in record["rows"]}
    wide = max(20, *(len(text) + 2 for cells in found.values() for text in cells.values()))
    table = [f"{'':{width}s}" + "".join(f"{100 * share:>{wide - 2}g} %" for share in shares)]
    for name, cells in found.items():
        table.append(f"{name:{width}s}" + "".join(f"{cells.get(share, ''):>{wide}s}" for share in shares))
    return table


def _cell(cell: dict[str, Any]) -> str:
    scores = cell["scores"]
    few = fewer_seeds(len(scores) - scores.count(None), len(scores))
    if cell["interval"] is None:
        return f"{100 * cell['mean']:.1f}{few}"
    return f"{100 * cell['mean']:.1f} +- {50 * (cell['interval'][1] - cell['interval'][0]):.1f}{few}"
