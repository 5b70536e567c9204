"""The folder of a run: what kind of run it holds, its settings, whether it is finished, its closing figures."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from svdata2vec.config.files import from_dict, read_json, to_values
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig, RunConfig
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)

CONFIG, FINISHED = "config.json", "result.json"

Settings = PretrainConfig | FinetuneConfig | ProbeConfig
KINDS: dict[str, type[Settings]] = {config.kind: config for config in (PretrainConfig, FinetuneConfig, ProbeConfig)}


def write_config(folder: Path, config: Settings) -> None:
    """Make the folder with its `config.json`: the kind of the run and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, json.dumps({"kind": config.kind, **to_values(config)}, indent=2).encode())


def read_config(folder: Path) -> Settings:
    """The settings of the run in a folder, as `write_config` left them.

    Raises:
        UserError: no `config.json`, one of no kind, or with a setting that is unknown or not of its type.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: no {CONFIG}; expected the folder of a run (pretrain, finetune or probe)")
    values = read_json(path)
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in [*KINDS]:
        raise UserError(f'{path}: "kind" is {json.dumps(kind)}; add the kind of the run to it: one of {", ".join(KINDS)}')
    return from_dict(KINDS[kind], values, str(path))


def is_finished(config: Settings) -> bool:
    """True if the run's folder holds this very run, finished: there is nothing left to do.

    Raises UserError if it holds a finished run with other settings, or any run where `run.resume` is "never".
    """
    run = config.run
    if not (run.out / CONFIG).is_file():
        return False
    if run.resume == "never":
        raise UserError(f"{run.out} holds a run already; choose another folder, or continue it with --run.resume auto")
    old = read_config(run.out)
    if old.kind != config.kind:
        raise UserError(f"{run.out} holds a {old.kind} run, this is a {config.kind} run; choose another folder")
    changes = ", ".join(changed_settings(to_values(old), to_values(config)))
    finished = (run.out / FINISHED).is_file()
    if finished and changes:
        raise UserError(f"{run.out} holds a finished run with other settings ({changes}); choose another folder")
    if changes:
        log.warning("%s: continuing with other settings: %s", run.out, changes)
    if finished:
        log.info("%s is finished already; nothing to do", run.out)
    return finished


def changed_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations of one run differ, with both values.

    The run's own folder is left out, and the folders that it reads are compared by their absolute paths.
    """
    names: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += changed_settings(before, after, f"{prefix}{name}.")
        elif name != "out" and _meant(name, before) != _meant(name, after):
            names.append(f"{prefix}{name} {before} -> {after}")
    return names


def _meant(name: str, value: Any) -> Any:
    local = name in ("pretrained", "shards") and isinstance(value, str) and "://" not in value
    return os.path.realpath(value) if local else value


def finish_run(run: RunConfig, runtime: Runtime, result: dict[str, Any]) -> None:
    """Write the run's closing figures, last of all: a folder with them holds a finished run."""
    if runtime.is_main:
        write_atomically(run.out / FINISHED, json.dumps(result, indent=2).encode())
    runtime.barrier()


def read_result(run: RunConfig) -> dict[str, Any]:
    return read_json(run.out / FINISHED)
