"""Processes of a study share the machine; if stopped or killed, they save, nothing else starts, and none is left over."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from repository import ROOT
from waiting import wait_for

from svdata2vec.runs.failures import REQUEUE_EXIT_CODE
from svdata2vec.runs.stopping import StopRequested, StopSignal
from svdata2vec.shards import cores
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.studies import jobs
from svdata2vec.studies.jobs import run_all

# Five jobs, two at a time. A job is like a run: asked to stop, it ends a step, saves, and says so.
STUDY = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.stopping import StopSignal
from svdata2vec.studies.jobs import run_all

def train(folder, number):
    with StopSignal() as stop:
        (folder / f"begun-{number}.tmp").write_text(str(os.getpid()))
        (folder / f"begun-{number}.tmp").rename(folder / f"begun-{number}")
        while not stop.received:
            time.sleep(0.05)
            if number == 1 and (folder / "fail").exists():
                raise RunFailedError("the disk is full")
            if (folder / "finish").exists():
                return number
        time.sleep(0.5)
        (folder / f"saved-{number}").touch()
        raise stop.request()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
    print(run_all([partial(train, Path(sys.argv[1]), number) for number in range(5)], 2))
"""


def names(folder: Path, kind: str) -> set[str]:
    return {path.name.removeprefix(f"{kind}-") for path in folder.glob(f"{kind}-?")}


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A study that has just been started."""
    (tmp_path / "study.py").write_text(STUDY)
    process = subprocess.Popen([sys.executable, str(tmp_path / "study.py"), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def study(starting: subprocess.Popen[str], tmp_path: Path) -> subprocess.Popen[str]:
    """A study whose first two jobs have begun."""
    wait_for(lambda: names(tmp_path, "begun") == {"0", "1"})
    return starting


def processes(folder: Path) -> list[int]:
    return [int((folder / f"begun-{number}").read_text()) for number in (0, 1)]


def test_sigterm_in_a_job_that_does_not_train_asks_to_be_queued_again(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StopRequested) as stopped:
        run_all([partial(os.kill, os.getpid(), signal.SIGTERM), partial(pytest.fail, "begun")], 1)
    assert stopped.value.code == REQUEUE_EXIT_CODE
    assert caplog.messages == ["asked to stop: what is finished is kept, start again to go on"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, REQUEUE_EXIT_CODE)])
def test_a_stopped_study_leaves_no_process_behind(
    study: subprocess.Popen[str], tmp_path: Path, number: int, status: int
) -> None:
    """Killed, too: jobs save, and no other begins in their processes."""
    children = processes(tmp_path)
    study.send_signal(number)
    study.communicate(timeout=60)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in children), 30)
    assert study.returncode == status
    assert names(tmp_path, "saved") == names(tmp_path, "begun") == {"0", "1"}


@pytest.mark.slow
def test_a_study_that_is_killed_while_its_processes_start_leaves_no_run(
    starting: subprocess.Popen[str], tmp_path: Path
) -> None:
    """They import for seconds before the kernel can tell them of its end."""
    parent = psutil.Process(starting.pid)

    def workers() -> list[psutil.Process]:
        return [child for child in parent.children() if any("spawn_main" in word for word in child.cmdline())]

    wait_for(lambda: len(workers()) == 2)
    found = workers()
    starting.kill()
    wait_for(lambda: not any(worker.is_running() for worker in found), 60)
    assert not names(tmp_path, "begun")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_ends_a_study_in_one_line(
    study: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    """The other run saves, and its process ends: the study waits for it."""
    killed, other = processes(tmp_path)[number], processes(tmp_path)[1 - number]
    psutil.Process(killed).kill()
    _, said = study.communicate(timeout=60)
    wait_for(lambda: not psutil.pid_exists(other), 30)
    assert said.splitlines()[-1].startswith("svdata2vec.shards.errors.MachineError: the process of a run was killed")
    assert names(tmp_path, "saved") == {str(1 - number)} and names(tmp_path, "begun") == {"0", "1"}


@pytest.mark.slow
def test_ctrl_c_stops_a_study_without_a_traceback_of_its_processes(study: subprocess.Popen[str], tmp_path: Path) -> None:
    """A terminal sends it to all of the group."""
    os.killpg(study.pid, signal.SIGINT)
    _, said = study.communicate(timeout=60)
    assert study.returncode == -signal.SIGINT and "Process Spawn" not in said
    assert said.splitlines()[-1] == "KeyboardInterrupt" and said.count("Traceback") == 1
    assert names(tmp_path, "saved") == names(tmp_path, "begun") == {"0", "1"}


def test_a_process_that_ends_by_itself_is_not_called_killed() -> None:
    with pytest.raises(MachineError, match=r"ended unexpectedly \(exit status 3;"):
        run_all([partial(os._exit, 3), os.getpid], 2)


def test_a_run_that_is_stopped_alone_stops_the_study() -> None:
    """Its process sends what `StopSignal` raises."""
    with pytest.raises(StopRequested) as stopped:
        run_all([stop_alone, partial(time.sleep, 600)], 2)
    assert stopped.value.code == REQUEUE_EXIT_CODE


def stop_alone() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        raise stop.request()


@pytest.mark.slow
def test_after_a_failure_no_other_run_begins(study: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    assert study.stderr is not None
    said_meanwhile = study.stderr.readline()
    assert said_meanwhile == "a run has failed, others come to their end first: the disk is full\n"
    assert study.poll() is None  # the other one goes on to its end
    (tmp_path / "finish").touch()
    _, said = study.communicate(timeout=60)
    assert "\nsvdata2vec.runs.failures.RunFailedError: the disk is full\n" in said
    assert names(tmp_path, "begun") == {"0", "1"} and not names(tmp_path, "saved")


def test_jobs_share_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "cgroup")
    assert [place["cores"] for place in jobs.shares(2)] == [[0, 1], [2, 5]]
    assert [place["cores"] for place in jobs.shares(3)] == [[0], [1], [2]]
    assert [place["cores"] for place in jobs.shares(6)] == [[0], [1], [2], [5], [0], [1]]
    assert [[place["threads"] for place in jobs.shares(at_once)] for at_once in (2, 3)] == [[2, 2], [1, 1, 1]]
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert list(jobs.shares(2)) == [{"cores": [0, 1], "threads": 1}, {"cores": [2, 5], "threads": 1}]
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ["3", "4"])
    assert [place["gpu"] for place in jobs.shares(3)] == ["3", "4", "3"]
    assert [place["cores"] for place in jobs.shares(2, "cpu")] == [[0, 1], [2, 5]]


@pytest.mark.parametrize(("named", "count", "gpus"), [
    ("-1", 0, []), ("0", 0, []), ("", 0, []), (None, 2, ["0", "1"]), ("5,3", 2, ["5", "3"]), ("1,-1", 1, ["1"]),
])
def test_only_gpus_that_are_seen_are_shared_out(
    named: str | None, count: int, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process on a GPU that is not there would take all cores, beside others that do the same."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert jobs.visible_gpus() == gpus
    assert all(("gpu" in place) == bool(gpus) for place in jobs.shares(2))


@pytest.mark.slow
def test_jobs_run_in_processes_of_their_own_with_results_in_order(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        *found, process = run_all([partial(abs, -3), partial(abs, 2), os.getpid], 2)
    assert caplog.messages[-1] == "3 of 3 runs done"
    assert found == [3, 2] and process != os.getpid()
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        run_all([partial(math.sqrt, -1), os.getpid], 2)


def test_a_study_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start it as one process, with --jobs"):
        run_all([lambda: 0], 1)
