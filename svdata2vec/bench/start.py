"""How benchmarks start: their shards and setting, and workers, which return their result or their error in a file."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from svdata2vec.config.files import from_dict, read_json, to_json, to_values
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.runs.data import open_data
from svdata2vec.runs.failures import RunFailedError, told
from svdata2vec.runs.runtime import Runtime, end_with_parent
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.shown import public

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent.parent  # what holds this package


def open_preset_shards(config: PretrainConfig, why_alone: str) -> ShardSet:
    """The preset's shards; where there are none, the error says how to get some. UserError under torchrun."""
    if (announced := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(f"{why_alone}, but WORLD_SIZE is {announced!r}; start it without torchrun, or `unset WORLD_SIZE`")
    try:
        return open_data(config.data)
    except UserError as error:
        raise UserError(
            f"{error}. `bash tools/demo.sh` makes the demo's shards, `svdata2vec shard` packs a data set, "
            "--data.shards FOLDER names others"
        ) from error


def setting(config: PretrainConfig, runtime: Runtime, shards: ShardSet) -> dict[str, Any]:
    """What was measured: everything that a comparison must know."""
    return {
        "shards": public(config.data.shards), "dataset": shards.manifest.dataset, "split": config.data.train_split,
        "codec": shards.manifest.codec, "codec_options": shards.manifest.codec_options,
        "packed_size": shards.manifest.packed_size, "batch_size": config.run.batch_size,
        "precision": "bf16" if runtime.bf16 else "fp32", "encode": config.encode,
        "num_frames": config.data.num_frames, "size": config.data.size,
        "threads": config.data.threads, "readers": config.data.readers, "prefetch": config.data.prefetch,
        "engine_share": config.data.engine_share, "run_pictures": config.data.run_pictures,
        "decoder": config.data.decoder, "launch": config.run.launch,
        "model": {name: value for name, value in to_values(config.model).items() if name != "init"},  # shapes and ops alone
        "masks": to_values(config.mask), "target": to_values(config.target), "augment": to_values(config.data.augment),
        "crop": config.data.crop, "weights": list(config.data.weights), "check_hashes": config.data.check_hashes,
    }


@contextlib.contextmanager
def worker(
    module: str, config: PretrainConfig, *words: str, launcher: Sequence[str] = (), threads: int | None = None
) -> Generator[tuple[subprocess.Popen, Callable[[str], Any]]]:
    """A process of its own that runs a module of this folder (see `answer_job`); it ends when the context is left.

    Args:
        module: name of the module.
        config: its job.
        words: further arguments of what the module measures.
        launcher: arguments for Python that start a launcher, which starts the module.
        threads: OMP_NUM_THREADS of the process; None = as here.

    Yields:
        The process, and a function that waits for it and returns its answer. UserError with the process's own sentence if it
        refused, RunFailedError if it failed; one that begins with the function's argument if it broke or was killed.
    """
    with tempfile.TemporaryDirectory(prefix="svdata2vec-bench-") as folder:
        job, out, said = (Path(folder) / name for name in ("job.json", "answer.json", "stderr"))
        job.write_text(to_json(config, credentials=True))
        command = [sys.executable, *launcher, "-m", f"svdata2vec.bench.{module}", str(job), str(out), *words]
        with said.open("w") as stderr:
            process = subprocess.Popen(command, env=environment(threads), stdout=stderr, stderr=stderr)

        def answer(what: str) -> Any:
            status, failure = process.wait(), failure_file(out)
            if failure.is_file():
                told_status, message = json.loads(failure.read_text())
                raise (UserError if told_status == 2 else RunFailedError)(message)
            if status or not out.is_file():
                raise broken(what, status, said.read_text(errors="replace"))
            return json.loads(out.read_text())

        try:
            yield process, answer
        finally:
            process.terminate()  # torchrun ends its workers; nothing happens where it has ended
            process.wait()


def environment(threads: int | None = None) -> dict[str, str]:
    """Variables for a process that runs a module of this package. threads: its OMP_NUM_THREADS; None = as here.

    It finds this package from any folder, and imports nothing from the one where the benchmark was started: after `-m`, a
    typing.py there would shadow that of the standard library.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **chosen, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def failure_file(out: Path) -> Path:
    """Where a worker that fails says why, beside its answer."""
    return out.with_suffix(".error")


def broken(what: str, status: int, said: str = "") -> RunFailedError:
    """What to raise for a process that ended without a sentence; the log shows the end of what it said."""
    if said:
        log.error("%s", said[-4000:])
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return RunFailedError(f"{what} {how}; see its output above")


def answer_job(kind: type[PretrainConfig], measure: Callable[..., Any]) -> None:
    """All that a worker does: the arguments JOB.json OUT.json WORDS -> OUT.json, with what `measure` makes of job and words.

    The exit status and sentence of what a command tells in one line are written beside OUT.json, where the starting process
    finds them; None is not written. The process ends with the one that started it.

    Args:
        kind: of the configuration in JOB.json.
    """
    end_with_parent()
    job, out, *words = sys.argv[1:]
    try:
        answer = measure(from_dict(kind, read_json(Path(job)), job), *words)
    except Exception as error:
        found = told(error)
        if found is None:
            raise
        write_atomically(failure_file(Path(out)), json.dumps(found).encode())
        raise SystemExit(found[0]) from error
    if answer is not None:
        Path(out).write_text(json.dumps(answer))
