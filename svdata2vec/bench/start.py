"""How benchmarks start: their shards and setting, and processes of their own, which answer in a file or say what is wrong."""

import contextlib
import json
import os
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svdata2vec.config.schema import PretrainConfig
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet

ROOT = Path(__file__).parent.parent.parent  # what holds this package


def refuse_torchrun(why: str) -> None:
    """UserError in a process that torchrun started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{why}; start it without torchrun")


def open_preset_shards(config: PretrainConfig) -> ShardSet:
    """The preset's shards; where there are none, the error says how to get some."""
    try:
        return open_shards(config.data.shards)
    except UserError as error:
        raise UserError(
            f"{error}. `bash tools/demo.sh` makes the demo's shards, `svdata2vec shard` packs a data set, "
            "--data.shards FOLDER names others"
        ) from error


def setting(config: PretrainConfig, runtime: Runtime, shards: ShardSet) -> dict[str, Any]:
    """What was measured: everything that a comparison must know."""
    return {
        "shards": config.data.shards, "dataset": shards.manifest.dataset, "codec": shards.manifest.codec,
        "packed_size": shards.manifest.packed_size, "split": config.data.train_split,
        "batch_size": config.run.batch_size, "precision": "bf16" if runtime.bf16 else "fp32",
        "encode": config.encode, "num_frames": config.data.num_frames, "size": config.data.size,
        "threads": config.data.threads, "prefetch": config.data.prefetch, "decoder": config.data.decoder,
        "compile": config.run.compile, "model": asdict(config.model),
    }


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


def read_answer(out: Path, status: int, stderr: Path, what: str) -> Any:
    """What workers wrote to `out`. UserError with their own sentence if they refused, RuntimeError if they broke."""
    sentence = out.with_suffix(".error")
    if sentence.is_file():
        raise UserError(sentence.read_text())
    if status or not out.is_file():
        raise RuntimeError(f"{what} ended with status {status}:\n{stderr.read_text()[-4000:]}")
    return json.loads(out.read_text())
