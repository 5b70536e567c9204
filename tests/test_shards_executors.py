"""Worker processes that die or cannot start; a cluster that has disappeared."""

import concurrent.futures as cf
import json
import logging
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shards_data import write_tree

from svdata2vec.shards import executors
from svdata2vec.shards.annotations import Pose, PoseFile
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.sources import open_dataset

SERIAL = PackOptions(workers=1, size=32, clips_per_shard=1)
NOTE = Path(".parts", "shard-000000.now")  # a clip that a worker was at


class KilledError(BaseException):
    """Ends a packing as a signal would."""


def deadly(_: str) -> Pose:
    """Ends the process that reads it, or all that this one does."""
    if multiprocessing.parent_process() is not None:
        os._exit(13)
    raise KilledError


def test_dead_worker_process_is_named() -> None:
    with pytest.raises(UserError, match=r"a worker process died .*; finished shards are kept: run again"):
        list(run_tasks(os._exit, [1], workers=2))


@pytest.mark.parametrize("from_file", [True, False])
def test_a_script_that_its_workers_cannot_import_is_told_what_to_do(tmp_path: Path, from_file: bool) -> None:
    """Without a guard, or read from standard input: no worker starts, and neither memory nor a clip is to blame."""
    script = tmp_path / "script.py"
    guard = "" if from_file else "if __name__ == '__main__': "
    script.write_text("from svdata2vec.shards.executors import run_tasks\n"
                      f"{guard}print(list(run_tasks(abs, [-1], workers=2)))\n")
    with script.open() as text:
        done = subprocess.run([sys.executable, script if from_file else "-"], stdin=text, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("svdata2vec.shards.errors.UserError: worker processes ended as they began") and not done.stdout
    assert "a file, not standard input" in said and 'under `if __name__ == "__main__":`' in said


def test_a_clip_that_ended_a_packing_of_one_process_is_left_out_by_the_next_run(tmp_path: Path) -> None:
    """Such a clip used to end every run."""
    dataset = open_dataset("folder", root=write_tree(tmp_path / "videos", "c/a.mp4", "c/b.mp4"))
    clips = [replace(clip, pose_file=PoseFile(deadly, "none")) if clip.key == "c%2Fb" else clip for clip in dataset.clips]
    dataset, out = replace(dataset, clips=clips), tmp_path / "out"
    with pytest.raises(KilledError):
        pack(dataset, out, SERIAL)
    (out / NOTE).write_text("c%2Fb")
    assert pack(dataset, out, replace(SERIAL, resume=True)).splits == {"train": ["c%2Fa"]}
    (left_out,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert "b.mp4: crashes the process that decodes it" in left_out["reason"]


def test_no_clip_is_blamed_if_no_process_can_start(tmp_path: Path) -> None:
    """A script from standard input continues after kill -9, which leaves the note of its current clip."""
    root, out = write_tree(tmp_path / "videos", "c/a.mp4"), tmp_path / "out"
    script = ("import pathlib\n"
              "from svdata2vec.shards.packing.pack import PackOptions, pack\n"
              "from svdata2vec.shards.packing.plan import make_plan, start_or_resume\n"
              "from svdata2vec.shards.readers.sources import open_dataset\n"
              f"dataset, out = open_dataset('folder', root={str(root)!r}), pathlib.Path({str(out)!r})\n"
              "options = PackOptions(workers=1, size=32, resume=True)\n"
              "out.mkdir()\n"
              "start_or_resume(out, dataset, make_plan(dataset, options), options)\n"
              f"(out / {str(NOTE)!r}).write_text('c%2Fa')\n"
              "print(pack(dataset, out, options).splits)\n")
    done = subprocess.run([sys.executable, "-"], input=script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert done.stdout == "{'train': ['c%2Fa']}\n"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replaces dask: `future` is the result of submitting a task, `threads` those of the workers."""
    found = SimpleNamespace(future=cf.Future(), threads=[{"a": 1}, {}])

    class Client:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def wait_for_workers(self, count: int, timeout: float) -> None:
            if not found.threads[0]:
                raise TimeoutError

        def nthreads(self) -> dict[str, int]:
            return found.threads.pop(0)

        def get_executor(self, pure: bool) -> Any:
            return SimpleNamespace(submit=lambda function, task: found.future)

    lost = {"KilledWorker": type("KilledWorker", (Exception,), {}),
            "comm": SimpleNamespace(CommClosedError=type("CommClosedError", (Exception,), {}))}
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=Client, **lost))  # type: ignore[arg-type]
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.01)
    return found


def test_a_cluster_without_workers_is_waited_for_and_reported(
    cluster: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be restarted; packing used to wait forever, silently."""
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cluster.future.set_result(7)

    executors.log.addHandler(handler := Handler())
    try:
        assert list(run_tasks(abs, [1], 1, "tcp://scheduler:8786")) == [7]
    finally:
        executors.log.removeHandler(handler)
    (said,) = caplog.messages
    assert said == ("--cluster tcp://scheduler:8786: no worker is left, and packing waits for some; start them, or stop and go "
                    "on with --resume: dask worker tcp://scheduler:8786")


def test_a_scheduler_that_is_gone_is_named(cluster: SimpleNamespace) -> None:
    cluster.future.cancel()
    cluster.future.set_running_or_notify_cancel()
    with pytest.raises(MachineError, match="--cluster tcp://a:1: the scheduler died, or cannot be reached any more; finished"):
        list(run_tasks(abs, [1], 1, "tcp://a:1"))


def test_a_cluster_without_workers_is_named(cluster: SimpleNamespace) -> None:
    cluster.threads = [{}]
    with pytest.raises(UserError, match="--cluster tcp://a:1: the scheduler has no workers; start some: dask worker tcp://a:1"):
        list(run_tasks(abs, [1], 1, "tcp://a:1"))
