"""A finished run that is started again: its closing figures, unless what it was made from has changed since."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from svdata2vec.config.schema import DataConfig, PretrainConfig
from svdata2vec.runs.card import other_start, read_card
from svdata2vec.runs.data import open_data
from svdata2vec.runs.folder import Settings, claimed, is_finished, read_result, require_same_folder
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)


def run_once(config: Settings, work: Callable[[Runtime], dict[str, Any]]) -> dict[str, Any]:
    """Closing figures of a run: read from its folder if it is finished, otherwise made by `work`, alone in the folder."""
    with running(config.run) as runtime:
        done = finished_result(config)
        require_same_folder(config.run.out, runtime, done is None)
        if done is not None:
            return done
        with claimed(config.run, runtime):
            return work(runtime)


def finished_result(config: Settings) -> dict[str, Any] | None:
    """The closing figures of the run that the folder holds; None if something is left to do.

    Raises UserError as `is_finished` does, and if the shards or the run of `--from` have been replaced since.
    """
    if not is_finished(config):
        return None
    out, card = config.run.out, {}
    with suppress(UserError):  # without weights the figures can still be read
        card = read_card(out)
    changed = [f"shards {config.data.shards}"] if _other_shards(config.data, card) else []
    if not isinstance(config, PretrainConfig) and other_start(config.pretrained, card):
        changed.append(f"run {config.pretrained}")
    if changed:
        raise UserError(f"{out} holds a finished run whose inputs have been replaced since ({', '.join(changed)}); choose "
                        "another folder")
    log.info("%s is finished already; nothing to do", out)
    return read_result(out, config.kind)


def _other_shards(data: DataConfig, card: dict[str, Any]) -> bool:
    """Whether a run's shards are not those that its card names. Missing ones, and those behind a URL, are not checked."""
    before = (card.get("trained_on") or {}).get("fingerprint")
    with suppress(UserError):
        return before is not None and "://" not in data.shards and open_data(data).manifest.fingerprint != before
    return False
