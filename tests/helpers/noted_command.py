"""The command in processes of its own, which note the clips of every step and may be killed before one."""

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

from preloaded import command, elastic

from svdata2vec.training.pretrain import Pretraining


def noted(notes: str, kill_rank: int, kill_step: int, words: list[str]) -> None:
    """In a process: the command, which notes the clips of every finished step; one rank is killed before a step, once."""
    rank, attempt, step = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]), Pretraining.step

    def noting(run: Any, batches: Any) -> None:
        if (rank, attempt, run.stepper.step) == (kill_rank, 0, kill_step):
            os.kill(os.getpid(), signal.SIGKILL)
        step(run, batches)
        clips = [(epoch, key) for epoch, batch in batches for key in batch.keys]
        with Path(f"{notes}-rank{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"attempt": attempt, "step": run.stepper.step, "clips": clips}) + "\n")

    with patch.object(Pretraining, "step", noting):
        command(words)


def launch(folder: Path, name: str, words: list[str], processes: int, kill_step: int, *, max_restarts: int = 0) -> None:
    """Run a command line in processes as torchrun does; the last one is killed before `kill_step` (negative: never)."""
    arguments = [str(folder / name), processes - 1, kill_step, words[3:]]
    succeeded, said = elastic(folder, processes, noted, *arguments, max_restarts=max_restarts)
    assert succeeded == (kill_step < 0 or max_restarts > 0), said[-2000:]


def notes(folder: Path, name: str) -> list[dict[str, Any]]:
    """A launch's steps, of all processes: number of the attempt and of the step, and (epoch, name) of its clips."""
    return [json.loads(line) for path in folder.glob(f"{name}-rank*.jsonl") for line in path.read_text().splitlines()]
