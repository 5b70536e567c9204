"""Checkpoints that survive a kill at any moment.

A checkpoint is one file, written beside its final name and renamed; the newest readable one is continued from.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from svdata2vec import __version__
from svdata2vec.runs.failures import SaveFailedError, first_line
from svdata2vec.shards.atomic import atomic_file
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, `<run>/checkpoints/step-000000123.pt`.

    Args:
        folder: the run's folder.
        keep: number of newest checkpoints that stay on disk.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`, then remove the oldest beyond `keep`, and torn ones.

        Raises:
            SaveFailedError: the file system refused; the checkpoints before it are still there.
        """
        path = self.folder / f"step-{step:09d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                torch.save({**state, "step": step, "version": __version__}, file)
        except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as a RuntimeError
            raise SaveFailedError(
                f"{path} could not be written ({first_line(error)}); the run stops, older ones are kept"
            ) from error
        left_by_killed_runs = list(self.folder.glob("step-*.tmp"))
        for old in [*self.paths()[: -self.keep], *left_by_killed_runs]:
            old.unlink()
        return path

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.folder.glob(f"step-{9 * '[0-9]'}.pt"))

    def load_newest(self) -> dict[str, Any] | None:
        """The newest readable checkpoint (damaged ones are skipped with a warning), or None if there is none at all."""
        paths = self.paths()
        for path in reversed(paths):
            state = read_checkpoint(path)
            if state is not None:
                log.info("continuing from %s", path)
                return state
            log.warning("%s is damaged; trying the checkpoint before it", path)
        if paths:
            raise UserError(f"{self.folder}: none of the {len(paths)} checkpoints can be read; move it away to start over")
        return None


def has_checkpoints(folder: Path) -> bool:
    """Whether a run's folder holds checkpoints that the run goes on from."""
    return bool(Checkpoints(folder, 1).paths())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint, on the CPU; None if the file is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - a torn file fails in many ways inside zip and pickle
        log.warning("%s: %s", path, first_line(error))
        return None
    return state if isinstance(state, dict) and "step" in state else None
