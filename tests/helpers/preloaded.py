"""Processes that begin with PyTorch imported: forked from a server in a tenth of a second, instead of seven of imports.

For tests of what processes do once they run. That they start is tested with the real command, by itself and under torchrun,
in test_svdata2vec_stopping.py and others.
"""

import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from svdata2vec.cli.main import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "svdata2vec.cli.main", "svdata2vec.training.pretrain"])


def start(words: list[str]) -> Any:
    """The command in a process of its own: a line without the command's name."""
    process = SERVER.Process(target=command, args=(words,))
    process.start()
    return process


def command(words: list[str]) -> None:
    """In such a process: the command on one thread, as in the tests' own."""
    torch.set_num_threads(1)
    sys.exit(main(words))


def elastic(
    folder: Path, processes: int, function: Callable[..., None], *arguments: Any, max_restarts: int = 0
) -> tuple[bool, str]:
    """Run an importable function in so many processes by torchrun's agent: whether all succeeded, and what they said."""
    logs = DefaultLogsSpecs(log_dir=tempfile.mkdtemp(dir=folder), redirects=Std.ALL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=max_restarts, monitor_interval=0.1, start_method="forkserver", logs_specs=logs,
    )
    with ThreadPoolExecutor(1) as thread:  # in the main one the agent would take the tests' signals
        try:
            thread.submit(elastic_launch(config, function), *arguments).result(timeout=150)
            succeeded = True
        except ChildFailedError:
            succeeded = False
    return succeeded, "".join(path.read_text() for path in sorted(Path(logs.root_log_dir).rglob("std*.log")))
