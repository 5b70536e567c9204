"""Kills packing and training at random moments, again and again, and compares the final result with an undisturbed run.

    python tools/fuzz/kill_loop.py --rounds 10 --out tools/results/kill_loop.json   # a quarter of an hour on two cores

A round starts a command, ends it by SIGKILL (every third time by SIGTERM) at a random moment, starts it again, and so on,
until an attempt finishes. Then the result must equal that of an undisturbed run: every byte for packing, every tensor for
training. The exit status is 1 if a round ends otherwise.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import torch
from safetensors.torch import load_file

from svdata2vec.shards.atomic import WriteFailedError, require_writable

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from fuzz_case import command, digest_folder  # noqa: E402 - found through the line above
from shards_data import write_motion_set  # noqa: E402
from tiny import finetune_config, pretrain_config, tiny_shards  # noqa: E402
from tiny_command import command_words  # noqa: E402

from svdata2vec.runs.provenance import machine, save  # noqa: E402
from svdata2vec.shards.ranges import LARGEST_SEED, Range  # noqa: E402

MOST_ATTEMPTS = 12  # then one may end undisturbed
PATIENCE_SECONDS = 120
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass(frozen=True)
class Work:
    """A kind of work. `words(out)`: its command line; `result(out)`: what must be equal."""

    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def _tensors(out: Path) -> dict[str, bytes]:
    """Every published tensor, bit for bit."""
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor).encode()
            for name, tensor in load_file(out / "model.safetensors").items()}


def works(folder: Path) -> dict[str, Work]:
    """All kinds, on small input made in `folder`."""
    pickle_path, videos = write_motion_set(folder / "source", 12)
    tiny_shards(folder / "shards")
    pretrained = folder / "pretrained"
    command(*command_words(pretrain_config(folder / "shards", pretrained, epochs=2))[3:])

    def packing(out: Path) -> list[str]:
        sources = ["--pickle-path", str(pickle_path), "--videos", str(videos)]
        options = ["--size", "96", "--workers", "2", "--clips-per-shard", "2", "--resume"]
        return [sys.executable, "-m", "svdata2vec", "shard", "pyskl", str(out), *sources, *options]

    def pretraining(out: Path) -> list[str]:
        return command_words(pretrain_config(folder / "shards", out, epochs=4, batch_size=2, checkpoint_every=3))

    def finetuning(out: Path) -> list[str]:
        shards = folder / "shards"
        return command_words(finetune_config(shards, out, pretrained=pretrained, epochs=4, batch_size=2, checkpoint_every=3))

    def distributed(out: Path) -> list[str]:
        words = command_words(pretrain_config(folder / "shards", out, epochs=4, batch_size=1, checkpoint_every=3))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.2"]
        return [sys.executable, *launcher, *words[1:]]

    return {"packing, 2 workers": Work(packing, digest_folder), "pretraining": Work(pretraining, _tensors),
            "fine-tuning": Work(finetuning, _tensors), "pretraining, torchrun, 2 processes": Work(distributed, _tensors)}


def attempt(words: list[str], limit_seconds: float | None, number: signal.Signals) -> bool:
    """Start a command in its own process group. True if it finished before it was killed; SystemExit if it failed."""
    process = subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        error = process.communicate(timeout=limit_seconds)[1]
    except subprocess.TimeoutExpired:
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # launcher and workers alike
        else:
            process.send_signal(number)
        process.communicate(timeout=PATIENCE_SECONDS)  # one that does not end is an error
        return False
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: status {process.returncode}\n{error.decode(errors='replace')[-3000:]}")
    return True


def loop(work: Work, folder: Path, rounds: int, rng: random.Random) -> dict[str, Any]:
    """Run rounds of one kind: how often it was killed, and how many ended with a different result."""
    started = time.monotonic()
    attempt(work.words(folder / "whole"), None, signal.SIGKILL)
    seconds, wanted = time.monotonic() - started, work.result(folder / "whole")
    killed, different = 0, 0
    for _ in range(rounds):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        for count in range(MOST_ATTEMPTS):
            limit = None if count == MOST_ATTEMPTS - 1 else rng.uniform(0.2, 1.1) * seconds
            if attempt(work.words(out), limit, signal.SIGTERM if rng.random() < 1 / 3 else signal.SIGKILL):
                break
            killed += 1
        different += work.result(out) != wanted
    return {"rounds": rounds, "kills": killed, "different": different}


def main() -> int:
    """Run the rounds and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=Range(1).parser(int), default=10, help="of every kind")
    parser.add_argument("--seed", type=Range(0, LARGEST_SEED).parser(int), default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="write the record, a JSON file")
    options = parser.parse_args()
    try:
        require_writable(options.out)
    except WriteFailedError as error:
        parser.error(str(error))
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as root:
        for name, work in works(Path(root)).items():
            folder = Path(root) / f"work-{len(found)}"
            folder.mkdir()
            found[name] = loop(work, folder, options.rounds, random.Random(f"{name} {options.seed}"))
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    if options.out:
        save({"works": found, "date": time.strftime("%Y-%m-%d"), "machine": machine()}, options.out)
    return any(row["different"] for row in found.values())


if __name__ == "__main__":
    sys.exit(main())
