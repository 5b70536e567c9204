"""The command in processes of its own, which note the clips of every step and may be killed before one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from repository import ROOT

# The command, which notes the clips of every finished step, and is killed in process KILL_RANK before step KILL_STEP.
WORKER = """
import json, os, signal, sys
from svdata2vec.cli.main import main
from svdata2vec.training.pretrain import Pretraining

rank, step = os.environ.get("RANK", "0"), Pretraining.step

def noted(run, batches):
    if (rank, run.stepper.step) == (os.environ["KILL_RANK"], int(os.environ["KILL_STEP"])):
        os.kill(os.getpid(), signal.SIGKILL)
    step(run, batches)
    row = {"step": run.stepper.step, "clips": [(epoch, key) for epoch, batch in batches for key in batch.keys]}
    with open(f"{os.environ['NOTES']}-rank{rank}.jsonl", "a") as file:
        file.write(json.dumps(row) + chr(10))

Pretraining.step = noted
sys.exit(main(sys.argv[1:]))
"""


def launch(folder: Path, name: str, words: list[str], processes: int, kill_step: int) -> None:
    """Run a command line under torchrun; its last process is killed before `kill_step` (negative: never)."""
    (folder / "worker.py").write_text(WORKER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NOTES": str(folder / name),
                   "KILL_RANK": str(processes - 1), "KILL_STEP": str(kill_step)}
    command = [sys.executable, *launcher, str(folder / "worker.py"), *words[3:]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)
    assert (done.returncode == 0) == (kill_step < 0), done.stderr[-2000:]


def notes(folder: Path, name: str) -> list[dict[str, Any]]:
    """A launch's steps, of all processes: number of the step, and (epoch, name) of its clips."""
    return [json.loads(line) for path in folder.glob(f"{name}-rank*.jsonl") for line in path.read_text().splitlines()]
