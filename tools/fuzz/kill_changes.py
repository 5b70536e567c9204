"""Kill a pretraining run at random moments, resume with another batch size, accumulation or number of processes each time.

    python tools/fuzz/kill_changes.py --kills 30

In the end the run must have completed the requested epochs, seen every clip once per epoch, and used the learning rates of
its schedule. Moments and settings come from the seed; since the moments are in seconds, no two runs of this are equal.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from tiny import NUM_CLIPS, pretrain_config, tiny_shards  # noqa: E402 - found through the line above
from tiny_command import command_words  # noqa: E402

from svdata2vec.config.schema import OptimConfig, PretrainConfig  # noqa: E402
from svdata2vec.runs.metrics_log import read_metrics  # noqa: E402
from svdata2vec.shards.ranges import LARGEST_SEED, Range  # noqa: E402
from svdata2vec.training.optim import learning_rate  # noqa: E402

RATE = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=2)
# Processes, batch size, accumulation.
SETTINGS = [(1, 4, 1), (1, 2, 1), (1, 2, 2), (1, 3, 1), (1, 6, 1), (1, 4, 3), (2, 2, 1), (2, 3, 1), (2, 1, 2), (2, 6, 1)]

# The command, which notes the clips of every step that it starts: all processes have noted them before it can be saved.
WORKER = """
import json, os, sys, time
from svdata2vec.cli.main import main
from svdata2vec.training.pretrain import Pretraining

step = Pretraining.step

def noted(run, batches):
    row = {"step": run.stepper.step + 1, "clips": [(epoch, key) for epoch, batch in batches for key in batch.keys]}
    with open(f"{os.environ['NOTES']}-rank{os.environ.get('RANK', '0')}.jsonl", "a") as file:
        file.write(json.dumps(row) + chr(10))
    time.sleep(0.1)
    step(run, batches)

Pretraining.step = noted
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, attempt: int, processes: int, batch: int, accumulate: int, epochs: int) -> subprocess.Popen[bytes]:
    """Start or resume the run of a folder."""
    config = settings(folder, batch, accumulate, epochs)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    notes = str(folder / f"attempt{attempt:03d}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NOTES": notes}
    command = [sys.executable, *launcher, str(folder / "worker.py"), *command_words(config)[3:]]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def settings(folder: Path, batch: int, accumulate: int, epochs: int) -> PretrainConfig:
    """Settings of the run in a folder."""
    optim = dataclasses.replace(RATE, accumulate=accumulate)
    return pretrain_config(folder / "shards", folder / "run", optim=optim, batch_size=batch, epochs=epochs, checkpoint_every=2)


def notes_of(folder: Path, attempt: int) -> list[Path]:
    """Files with the notes of the steps that an attempt has started."""
    return list(folder.glob(f"attempt{attempt:03d}-*"))


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to all of its processes at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=60)


def wait(process: subprocess.Popen[bytes], rng: random.Random, notes: Callable[[], list[Path]]) -> None:
    """Wait for a random moment, usually in the first steps of an attempt, sometimes before; or for the end of the process."""
    early, end = rng.random() < 0.25, time.monotonic() + rng.uniform(0, 6)
    while process.poll() is None and (time.monotonic() < end if early else not notes()):
        time.sleep(0.01)
    end = time.monotonic() + rng.uniform(0, 2)
    while process.poll() is None and not early and time.monotonic() < end:
        time.sleep(0.01)


def disturbed(folder: Path, kills: int, epochs: int, rng: random.Random) -> int:
    """A run that is killed up to `kills` times and then left alone; returns how often it was killed."""
    (folder / "worker.py").write_text(WORKER)
    tiny_shards(folder / "shards")
    killed = attempt = 0
    while True:
        attempt += 1
        process = start(folder, attempt, *rng.choice(SETTINGS), epochs)
        if killed < kills:
            wait(process, rng, partial(notes_of, folder, attempt))
        else:
            process.wait()
        if process.poll() is not None:
            if process.returncode:
                raise SystemExit(f"attempt {attempt} ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
            return killed
        kill(process)
        killed += 1
        if (folder / "run" / "result.json").is_file():  # it came too late
            return killed


def check(folder: Path, epochs: int) -> dict[str, Any]:
    """Check the finished run and describe it; AssertionError if something is wrong."""
    attempts: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("attempt*.jsonl")):
        attempts.setdefault(path.name.split("-")[0], []).extend(json.loads(line) for line in path.read_text().splitlines())
    seen: Counter[tuple[int, str]] = Counter()
    following = 10**9
    for name in sorted(attempts, reverse=True):
        seen.update((epoch, key) for row in attempts[name] if row["step"] < following for epoch, key in row["clips"])
        following = min(following, *(row["step"] for row in attempts[name]))
    expected = Counter((epoch, f"clip{i:05d}") for epoch in range(epochs) for i in range(NUM_CLIPS))
    assert seen == expected, f"lost {dict(expected - seen)}, too often {dict(seen - expected)}"
    records = read_metrics(folder / "run")
    places = [0.0, *(record["epoch"] for record in records)]
    assert places[-1] == epochs, places[-1]
    assert [record["step"] for record in records] == [*range(1, len(records) + 1)]
    for record, place in zip(records, places[:-1], strict=True):
        assert abs(record["lr"] - learning_rate(RATE, place, epochs)) < 1e-9, record
    return {"attempts with steps": len(attempts), "steps": len(records), "clips": sum(seen.values())}


def main() -> None:
    """Run until the requested number of kills has been survived; print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=Range(1).parser(int), default=30)
    parser.add_argument("--epochs", type=Range(1).parser(int), default=12, help="of each run")
    parser.add_argument("--seed", type=Range(0, LARGEST_SEED).parser(int), default=0)
    options = parser.parse_args()
    rng, killed, runs = random.Random(options.seed), 0, 0
    while killed < options.kills:
        with tempfile.TemporaryDirectory() as name:
            killed += disturbed(Path(name), options.kills - killed, options.epochs, rng)
            print(f"{killed} kills: {check(Path(name), options.epochs)}", flush=True)
        runs += 1
    print(f"{killed} kills in {runs} runs: every clip was seen once per epoch, the runs ended at epoch {options.epochs}")


if __name__ == "__main__":
    main()
