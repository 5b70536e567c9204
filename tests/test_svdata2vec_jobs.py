"""Studies whose processes are stopped or killed: what is at work saves, nothing else begins, nobody stays behind."""

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
from repository import ROOT
from waiting import wait_for

from svdata2vec.runs.failures import REQUEUE_EXIT_CODE
from svdata2vec.runs.stopping import StopRequested, StopSignal
from svdata2vec.shards.errors import MachineError
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
def test_a_study_that_is_stopped_leaves_nobody_behind(
    study: subprocess.Popen[str], tmp_path: Path, number: int, status: int
) -> None:
    """Killed, too: jobs save, and no other begins in their processes."""
    jobs = processes(tmp_path)
    study.send_signal(number)
    study.communicate(timeout=60)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in jobs), 30)
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
    with pytest.raises(MachineError, match=r"has ended by itself \(exit status 3;"):
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

