"""Runs that are asked to stop: by SIGTERM, by Ctrl+C, under torchrun, and by the death of their launcher."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from repository import ROOT
from tiny import pretrain_config
from tiny_command import command_words
from waiting import wait_for

from svdata2vec.cli.main import main
from svdata2vec.runs import stopping
from svdata2vec.runs.checkpoint import Checkpoints, read_checkpoint
from svdata2vec.runs.failures import REQUEUE_EXIT_CODE
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import INTERRUPTED_EXIT_CODE, StopRequested, StopSignal
from svdata2vec.training.pretrain import Pretraining, pretrain

CPU = torch.device("cpu")


INTERRUPTED_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in a shell's background ignores it
sys.meta_path.insert(0, Finder())
from svdata2vec.cli.main import main
sys.exit(main([sys.argv[3], "own", "--data.shards", "none"]))
"""


def interrupted_import(module: str, number: int, command: str) -> tuple[int, str]:
    """Exit status and standard error of a command that gets a signal when it looks for a module."""
    words = [sys.executable, "-c", INTERRUPTED_IMPORT, module, str(int(number)), command]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["svdata2vec.cli.commands", "numpy", "torch._subclasses.fake_tensor"])
def test_ctrl_c_while_modules_are_imported_is_one_word(module: str) -> None:
    assert interrupted_import(module, signal.SIGINT, "finetune") == (INTERRUPTED_EXIT_CODE, "interrupted\n")


@pytest.mark.parametrize(("command", "status"), [
    *dict.fromkeys(("pretrain", "finetune", "probe", "label-efficiency"), REQUEUE_EXIT_CODE).items(),
    ("shard", -signal.SIGTERM),
])
def test_sigterm_while_modules_are_imported_asks_for_another_start(command: str, status: int) -> None:
    """Of commands that go on where they are started again; there is nothing yet to save."""
    assert interrupted_import("svdata2vec.cli.commands", signal.SIGTERM, command) == (status, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, REQUEUE_EXIT_CODE), (signal.SIGINT, INTERRUPTED_EXIT_CODE)])
@pytest.mark.parametrize("saving", [False, True], ids=["in a step", "in a checkpoint"])
def test_a_signal_saves_wherever_it_comes(
    number: int, status: int, saving: bool, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step: that step is saved. In the middle of a checkpoint: it is written to its end."""
    save, step = torch.save, Pretraining.step

    def interrupted_save(state: Any, file: Any) -> None:
        if saving:
            os.kill(os.getpid(), number)
        save(state, file)

    def interrupted_step(run: Pretraining, batches: list) -> None:
        if not saving and run.stepper.step == 2:
            os.kill(os.getpid(), number)
        step(run, batches)

    monkeypatch.setattr(torch, "save", interrupted_save)
    monkeypatch.setattr(Pretraining, "step", interrupted_step)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    words = command_words(pretrain_config(tiny_shard_folder, tmp_path / "run", checkpoint_every=2))[3:]
    with pytest.raises(StopRequested) as stopped:
        main(words)
    assert stopped.value.code == status
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    newest = Checkpoints(tmp_path / "run", 2).paths()[-1]
    assert read_checkpoint(newest) is not None and newest.name == f"step-00000000{2 if saving else 3}.pt"
    assert not list((tmp_path / "run").rglob("*.tmp")) and not (tmp_path / "run" / ".lock").exists()


def test_a_second_ctrl_c_does_not_wait(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pretraining, "step", lambda *_: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert main(command_words(pretrain_config(tiny_shard_folder, tmp_path / "run"))[3:]) == 130
    assert not Checkpoints(tmp_path / "run", 2).paths()


def test_sigterm_outside_of_training_asks_to_be_queued_again(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "load_newest", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StopRequested) as stopped:
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run"))
    assert stopped.value.code == REQUEUE_EXIT_CODE


class Clock:
    """Time that passes by the step, and the exchange of two processes, of which the other one takes as long."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.exchanges, self.other = seconds, 0.0, 0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.exchanges += 1
        return values + torch.tensor([self.other, values[1]])


@pytest.mark.parametrize(("seconds", "every"), [(0.02, 20), (0.5, 4), (0.9, 2), (6.7, 1), (60.0, 1)])
def test_processes_agree_by_time(seconds: float, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges cost a wait for the device: none in most steps, and never more than a step or POLL_SECONDS between two."""
    clock = Clock(seconds)
    monkeypatch.setattr(stopping, "time", clock)
    runtime = Runtime(CPU, 0, 2, False)
    monkeypatch.setattr(Runtime, "sum", lambda _, values: clock.sum(values))
    stop = StopSignal()
    for _ in range(100):
        clock.now += seconds
        assert not stop.agreed(runtime)
    assert 100 // every <= clock.exchanges <= 100 // every + 1
    assert every * seconds <= max(stopping.POLL_SECONDS, seconds)
    clock.other, steps = 1.0, 0
    while not stop.agreed(runtime):
        clock.now += seconds
        steps += 1
    assert steps < every


# ---- under torchrun ----------------------------------------------------------------------------------------------------

# The command, whose steps take as long as those of a large network.
WORKER = """
import sys, time
from svdata2vec.cli.main import main
from svdata2vec.training.pretrain import Pretraining

step = Pretraining.step

def slow(run, batches):
    time.sleep(3)
    step(run, batches)

Pretraining.step = slow
sys.exit(main(sys.argv[1:]))
"""


def begun(shards: Path, folder: Path) -> subprocess.Popen[str]:
    """Two processes under torchrun in the middle of their first slow steps."""
    (folder / "worker.py").write_text(WORKER)
    config = pretrain_config(shards, folder / "run", epochs=1000, batch_size=2, checkpoint_every=1000)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(folder / "worker.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *words, *command_words(config)[3:]], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (folder / "run" / "metrics.jsonl").is_file() and (folder / "run" / "metrics.jsonl").stat().st_size > 0)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 1), (signal.SIGINT, 1)])
def test_slow_steps_under_torchrun_are_saved(number: int, status: int, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Ten such steps are longer than torchrun waits. Its own status is 1 whatever its processes end with."""
    process = begun(tiny_shard_folder, tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == status, said[-1000:]
    assert "asked to stop: saved step" in said
    assert len(Checkpoints(tmp_path / "run", 2).paths()) == 1


@pytest.mark.slow
def test_no_worker_outlives_its_launcher(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Killed, it can tell them nothing: the kernel does, and they save and end."""
    process = begun(tiny_shard_folder, tmp_path)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert len(Checkpoints(tmp_path / "run", 2).paths()) == 1
