"""What benchmarks that measure in processes of their own share: how these are started, and how they say what is wrong."""

import contextlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from svdata2vec.shards.errors import UserError

ROOT = Path(__file__).parent.parent.parent  # what holds this package


def worker_environment(threads: int | None) -> dict[str, str]:
    """This process's environment, with this package importable; `threads` per process, None = as many as here."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **chosen, "PYTHONPATH": path}


@contextlib.contextmanager
def refused(out: Path) -> Generator[None]:
    """In a worker: write a UserError's sentence beside `out`, where the starting process finds it."""
    try:
        yield
    except UserError as error:
        out.with_suffix(".error").write_text(str(error))
        raise SystemExit(2) from error


def read_answer(out: Path, status: int, said: Path, what: str) -> Any:
    """What workers wrote to `out`. UserError with their own sentence if they refused, RuntimeError if they broke."""
    sentence = out.with_suffix(".error")
    if sentence.is_file():
        raise UserError(sentence.read_text())
    if status or not out.is_file():
        raise RuntimeError(f"{what} ended with status {status}:\n{said.read_text()[-4000:]}")
    return json.loads(out.read_text())
