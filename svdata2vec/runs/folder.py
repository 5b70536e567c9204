"""The folder of a run: what kind of run it holds, its settings, whether it is finished, its closing figures."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from svdata2vec.config.checked_json import NUMBER, check_record, read_sealed, sealed
from svdata2vec.config.files import from_dict, read_json, to_values, with_todays_names
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig, RunConfig
from svdata2vec.runs.checkpoint import has_checkpoints
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import stoppable
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.errors import UserError, require_folder
from svdata2vec.shards.lock import folder_lock
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.reading.joined import set_names
from svdata2vec.shards.reading.manifest import MANIFEST_NAME

CONFIG, FINISHED = "config.json", "result.json"
WEIGHTS, CARD = "model.safetensors", "model.json"  # that are published

Settings = PretrainConfig | FinetuneConfig | ProbeConfig
KINDS: dict[str, type[Settings]] = {config.kind: config for config in (PretrainConfig, FinetuneConfig, ProbeConfig)}

# Schema of the closing figures; those of earlier versions have fewer fields.
_FIGURES = {
    "count": Range(0), "clips?": Range(0), "top1": NUMBER, "top5": NUMBER, "mean_class": NUMBER, "confusion": [[Range(0)]],
    "intervals?": {name: [NUMBER] for name in ("top1", "top5", "mean_class")},
}
_CLASSIFIER = {
    **_FIGURES, "labels": Range(0), "classes": [str], "seed?": int, "validation?": {"split": str},
    **{f"{name}?": str for name in ("split", "dataset", "fingerprint", "date", "metric", "network")},
}
_NEIGHBOURS = {**_FIGURES, "neighbours": Range(1)}
RESULTS: dict[str, Any] = {
    "pretrain": {"*": NUMBER}, "finetune": _CLASSIFIER,
    "probe": {**_CLASSIFIER, "knn": _NEIGHBOURS, "nearest?": _NEIGHBOURS, "attentive?": _FIGURES},
}
PROBES = ("knn", "nearest", "attentive")  # besides the linear one, whose figures are at the top level of a result

# Prefixes of settings that do not affect a run's figures: a finished run is the same run with other values.
TECHNICAL = (
    "data.threads", "data.engine_share", "data.run_pictures", "data.readers", "data.prefetch", "data.max_bad_rate",
    "data.check_hashes", "data.remote_",
    "model.impl", "model.fused_blocks", "model.checkpoint_activations", "run.out", "run.device", "run.launch",
    "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.resume", "run.max_bad_steps",
    "collapse_records", "out", "device",
)
# Further settings that may change while a run continues: either they do not affect the weights, ...
EVALUATION = ("data.shards", "data.test_split")
# ... or the run's card records the change. Everything else stays as it was at the start.
ADJUSTABLE = ("data.decoder", "run.batch_size", "optim.accumulate", "optim.lr_batch", "run.epochs", "run.precision")


@contextmanager
def claimed(run: RunConfig, runtime: Runtime) -> Iterator[None]:
    """Hold the lock of the run's folder, which is made if needed; UserError if another run is using it."""
    if not runtime.is_main:
        yield
        return
    with claimed_folder(run.out, "training in"), stoppable() if runtime.world_size == 1 else nullcontext():
        yield


@contextmanager
def claimed_folder(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if needed; `work` names what is done there, as in "training in"."""
    make_folder(folder)
    try:
        with folder_lock(folder, work):
            yield
    finally:
        with suppress(OSError):  # as a rule it is not empty
            folder.rmdir()


def require_same_folder(folder: Path, runtime: Runtime, found: Any) -> None:
    """UserError unless all processes have found the same in a run's folder."""
    runtime.require_same(
        found, f"{folder}: the processes find different things there; give one that all nodes share"
    )


def write_config(folder: Path, config: Settings) -> None:
    """Make the folder with its `config.json`: the kind of the run and its settings."""
    make_folder(folder)
    write_atomically(folder / CONFIG, json.dumps({"kind": config.kind, **to_values(config)}, indent=2).encode())


def read_config(folder: Path) -> Settings:
    """The settings of the run in a folder, as `write_config` left them.

    Raises:
        UserError: no such folder, no `config.json`, one of no kind, or with a setting that is unknown or not of its type.
    """
    path, expected = folder / CONFIG, "the folder of a run (pretrain, finetune or probe)"
    require_folder(folder, expected)
    if not path.is_file():
        raise UserError(f"{folder}: no {CONFIG}; expected {expected}")
    values = read_json(path)
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in [*KINDS]:
        raise UserError(f'{path}: "kind" is {json.dumps(kind)}; add the kind of the run to it: one of {", ".join(KINDS)}')
    return from_dict(KINDS[kind], with_todays_names(values), str(path))


def parts_of_run(folder: Path) -> list[str]:
    """What a folder holds of a run, by name."""
    left = [name for name in (CONFIG, FINISHED, WEIGHTS, CARD) if (folder / name).is_file()]
    return [*left, "checkpoints"] if has_checkpoints(folder) else left


def is_finished(config: Settings) -> bool:
    """True if the run's folder holds this very run, finished: there is nothing left to do.

    Raises UserError if it holds a data set, a finished run with other settings, or weights that came from elsewhere (as of
    `convert`), or where `run.resume` is "never" any part of a run.
    """
    run, left = config.run, parts_of_run(config.run.out)
    if not left and (run.out / MANIFEST_NAME).is_file():  # `verify` would count the run's files as faults of the set
        raise UserError(f"{run.out} holds a data set ({MANIFEST_NAME}); choose another folder for the run")
    if left and run.resume == "never":
        raise UserError(
            f"{run.out} holds a run already ({', '.join(left)}); choose another folder, or continue it with --run.resume auto"
        )
    old = read_config(run.out) if CONFIG in left else None
    if old is not None and old.kind != config.kind:
        raise UserError(f"{run.out} holds a {old.kind} run, this is a {config.kind} run; choose another folder")
    if WEIGHTS in left and not {FINISHED, "checkpoints" if config.kind != "probe" else CONFIG} & {*left}:
        raise UserError(f"{run.out} holds {WEIGHTS}, which was not trained in this folder; choose another folder")
    if old is None or FINISHED not in left:
        return False
    changes = ", ".join(changed_settings(to_values(old), to_values(config), TECHNICAL))
    if changes:
        raise UserError(f"{run.out} holds a finished run with other settings ({changes}); choose another folder")
    return True


def changed_settings(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...] = (), prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations of one run differ, with both values.

    Folders that the run reads are compared by their absolute paths. A setting that is missing in one counts as equal.

    Args:
        free: beginnings of the names that are left out.
    """
    names: list[str] = []
    for name in sorted(set(old) & set(new)):
        before, after, dotted = old[name], new[name], f"{prefix}{name}"
        if isinstance(before, dict) and isinstance(after, dict):
            names += changed_settings(before, after, free, f"{dotted}.")
        elif not dotted.startswith(free) and _meant(name, before) != _meant(name, after):
            names.append(f"{dotted} {before} -> {after}")
    return names


def _meant(name: str, value: Any) -> Any:
    if name not in ("pretrained", "shards", "init") or not isinstance(value, str):
        return value
    names = set_names(value) if name == "shards" else [value]
    return [each if "://" in each else os.path.realpath(each) for each in names]


def withdraw(folder: Path) -> None:
    """Remove closing figures and published weights of a run that continues: they would be taken for its final ones."""
    for name in (FINISHED, CARD, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def finish_run(run: RunConfig, runtime: Runtime, result: dict[str, Any]) -> None:
    """Write the run's closing figures, last of all: a folder with them holds a finished run."""
    if runtime.is_main:
        write_atomically(run.out / FINISHED, sealed(result))
    runtime.barrier()


def read_result(folder: Path, kind: str) -> dict[str, Any]:
    """The closing figures of a finished run of this kind, as `finish_run` left them. UserError for damaged ones."""
    path = folder / FINISHED
    result: dict[str, Any] = check_record(read_sealed(path), RESULTS[kind], path)
    classes = len(result.get("classes", ()))
    beside = [result[name] for name in PROBES if kind == "probe" and name in result]
    for figures in () if kind == "pretrain" else (result, *beside):
        if [len(row) for row in figures["confusion"]] != [classes] * classes:
            raise UserError(f"{path} is damaged: its confusion matrix is not {classes} x {classes}, as its classes are")
        if any(len(interval) != 2 for interval in (figures.get("intervals") or {}).values()):
            raise UserError(f"{path} is damaged: an interval is not of two numbers")
    return result
