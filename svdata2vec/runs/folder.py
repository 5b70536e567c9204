"""The folder of a run: whose it is, whether it is finished, its closing figures."""

import json
import logging
from typing import Any

from svdata2vec.config.files import to_json
from svdata2vec.config.schema import RunConfig
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)

FINISHED = "result.json"


def is_finished(config: Any, run: RunConfig) -> bool:
    """True if the run's folder holds this very run, finished: there is nothing left to do.

    Raises UserError if it holds a finished run with other settings, or any run where `run.resume` is "never".
    """
    path = run.out / "config.json"
    if not path.is_file():
        return False
    if run.resume == "never":
        raise UserError(f"{run.out} holds a run already; choose another folder, or continue it with --run.resume auto")
    old, new = json.loads(path.read_text()), json.loads(to_json(config))
    if kind_of(old) != kind_of(new):
        raise UserError(f"{run.out} holds a {kind_of(old)} run, this is a {kind_of(new)} run; choose another folder")
    changes = ", ".join(changed_settings(old, new))
    finished = (run.out / FINISHED).is_file()
    if finished and changes:
        raise UserError(f"{run.out} holds a finished run with other settings ({changes}); choose another folder")
    if changes:
        log.warning("%s: continuing with other settings: %s", run.out, changes)
    if finished:
        log.info("%s is finished already; nothing to do", run.out)
    return finished


def kind_of(config: dict[str, Any]) -> str:
    """ "pretrain", "finetune" or "probe": what the settings in a `config.json` are of."""
    return "probe" if "neighbours" in config else "finetune" if "label_fraction" in config else "pretrain"


def changed_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations differ, with both values."""
    names: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += changed_settings(before, after, f"{prefix}{name}.")
        elif before != after:
            names.append(f"{prefix}{name} {before} -> {after}")
    return names


def finish_run(run: RunConfig, runtime: Runtime, result: dict[str, Any]) -> None:
    """Write the run's closing figures, last of all: a folder with them holds a finished run."""
    if runtime.is_main:
        write_atomically(run.out / FINISHED, json.dumps(result, indent=2).encode())
    runtime.barrier()


def read_result(run: RunConfig) -> dict[str, Any]:
    return json.loads((run.out / FINISHED).read_text())
