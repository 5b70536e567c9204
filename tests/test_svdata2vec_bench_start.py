"""Processes of benchmarks: their messages reach the parent, and SIGTERM leaves none of them behind."""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import pretrain_config

from svdata2vec.bench import batch, start
from svdata2vec.bench.config import BatchConfig, DataBenchOptions
from svdata2vec.runs.failures import RunFailedError, told
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.stepper import NotFiniteError


def small_job(shards: Path, folder: Path) -> BatchConfig:
    return BatchConfig.of(pretrain_config(shards, folder / "run"))


def test_a_record_holds_no_password_of_a_url(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Records and their pages are passed on."""
    config = small_job(tiny_shard_folder, tmp_path)
    named = replace(config, data=replace(config.data, shards="s3://key:secret@b/x,https://me:word@host/y?part=1&token=abc"))
    here = Runtime(torch.device("cpu"), 0, 1, bf16=False)
    said = start.setting(named, here, ShardSet.open(tiny_shard_folder))["shards"]
    assert said == "s3://b/x,https://host/y?part=1&token=***"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("x.json: wrong"), 2, "x.json: wrong"), (MachineError("killed"), 1, "killed"),
        (NotFiniteError("5 steps"), 1, "5 steps"), (OSError(28, "No space left"), 1, "[Errno 28] No space left"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory (CUDA out of memory); take a smaller batch"),
    ],
)
def test_the_message_of_a_worker_reaches_the_parent(
    error: Exception, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its exit status; the worker ends with its parent, too."""
    bound: list[bool] = []
    monkeypatch.setattr(start, "end_with_parent", lambda: bound.append(True))
    written: list[Path] = []

    def in_this_process(command: list[str], **_: Any) -> Any:
        job, out = (Path(word) for word in command[3:5])
        written.append(out.parent)
        monkeypatch.setattr(sys, "argv", ["worker", str(job), str(out)])

        def measure(config: BatchConfig) -> None:
            raise error

        with pytest.raises(SystemExit) as ended:
            start.answer_job(BatchConfig, measure)
        return SimpleNamespace(wait=lambda: ended.value.code, terminate=lambda: None)

    monkeypatch.setattr(start.subprocess, "Popen", in_this_process)
    with (
        pytest.raises((UserError, RunFailedError)) as caught,
        start.worker("batch_worker", small_job(tmp_path, tmp_path)) as (_, answer),
    ):
        answer("it")
    assert str(caught.value).startswith(message) and told(caught.value) == (status, str(caught.value))
    assert bound == [True] and not written[0].exists()


def test_a_worker_imports_nothing_from_the_folder_where_the_benchmark_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("typing", "queue"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    named = ["-m", "svdata2vec", "bench", "data", "--help"]
    subprocess.run([sys.executable, *named], env=start.environment(threads=1), check=True, stdout=subprocess.DEVNULL)
    usual = subprocess.run([sys.executable, *named], capture_output=True, text=True)
    assert "RuntimeError: shadowed" in usual.stderr  # without the environment


def test_sigterm_ends_the_worker_and_leaves_no_folder(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them holds the job, with the credentials of its URLs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    polled: list[subprocess.Popen] = []

    def asked_to_stop(poll: Any, *_: Any) -> None:
        polled.append(poll.__self__)
        assert [*tmp_path.glob("svdata2vec-bench-*/job.json")] and polled[0].poll() is None
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(batch, "watch", asked_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        batch.bench_batch(small_job(tiny_shard_folder, tmp_path))
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert polled[0].poll() == -signal.SIGTERM and not [*tmp_path.glob("svdata2vec-*")]


@pytest.mark.parametrize("name", ["batch", "data", "host", "run", "scale"])
def test_sigterm_is_an_exception_in_every_benchmark(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"svdata2vec.bench.{name}")
    monkeypatch.setattr(module, "require_writable", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    options = DataBenchOptions(folder=tmp_path) if name == "data" else small_job(tmp_path, tmp_path)
    with pytest.raises(SystemExit) as ended:
        getattr(module, f"bench_{name}")(options)
    assert ended.value.code == 128 + signal.SIGTERM
