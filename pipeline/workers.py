"""Worker processes: a function in a fresh interpreter, objects through its standard input and output.

Fresh and not forked: safe beside threads, CUDA and DALI, and the main program is not imported again. A worker ends at the
end of its input, so it never outlives its parent.
"""

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from svdata2vec.shards.errors import MachineError

_EXIT_SECONDS = 5


class GoneError(Exception):
    """The process has ended without an answer. Not an OSError: those come from the request or from this process."""


class WorkerProcess:
    """A process that answers requests with the function that `module.answering(descriptors)` returns there.

    descriptors: files that stay open in it.

    `send` and `receive` raise GoneError. Raises OSError if it cannot be started (`not_started`).
    """

    def __init__(self, module: str, descriptors: Sequence[int]) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
        # -P: with -m alone, a queue.py in the current folder would shadow that of the standard library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, module, *map(str, descriptors)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors, env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def send(self, request: Any) -> None:
        try:
            pickle.dump(request, self._requests, protocol=pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
        except OSError as error:
            raise GoneError from error

    def receive(self) -> Any:
        try:
            return pickle.load(self._answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise GoneError from error

    def close(self) -> int:
        """End the process; returns its exit status (negative: the signal that ended it)."""
        with contextlib.suppress(OSError):  # the process has ended already
            self._requests.close()
        self._answers.close()  # a worker in the middle of an answer is not waited for
        try:
            return self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def not_started(error: OSError, job: str, option: str) -> MachineError:
    """The error for a process that cannot be started. job: what it does; option: the one that sets the number of processes."""
    return MachineError(
        f"a process that {job} cannot be started ({error.strerror or error}): take fewer of them ({option}), or end what else "
        "uses memory, processes or open files (`ulimit -a` lists the limits)"
    )


def serve(answer: Callable[[Any], Any]) -> None:
    """A worker's main loop: answer requests until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent handles them and closes the pipe
        signal.signal(number, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray message of a library must not end up among the answers
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(answer(pickle.load(requests)), answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
    os._exit(0)  # nothing is left to save, and a broken pipe needs no second report


if __name__ == "__main__":
    serve(importlib.import_module(sys.argv[1]).answering(list(map(int, sys.argv[2:]))))
