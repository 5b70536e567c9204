"""How a run is asked to stop, and does so with a checkpoint: SIGTERM, which schedulers send, and Ctrl+C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from svdata2vec.runs.failures import REQUEUE_EXIT_CODE
from svdata2vec.runs.runtime import Runtime

INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
TERMINATED_EXIT_CODE = 128 + signal.SIGTERM  # of what has nothing to save
POLL_SECONDS = 2.0  # with several processes, between two agreements on whether to stop; at least a step
MOST_STEPS = 20  # between two agreements, should steps become slower


class StopRequested(SystemExit):
    """The run was asked to stop (SIGTERM, or SIGINT: INTERRUPTED_EXIT_CODE) and has saved what it saves."""

    def __init__(self, status: int = REQUEUE_EXIT_CODE) -> None:
        super().__init__(status)


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the training loop reads between two steps; a second SIGINT interrupts at once.

    Several processes agree by an exchange that each of them waits for, on a GPU for the device too. They have it every
    POLL_SECONDS, or every step where steps take longer: the next step to do it at follows from the time of the last ones,
    which is exchanged as well, so that all of them count to the same one.
    """

    def __init__(self) -> None:
        self.received: int = 0  # signal number
        self._wait = 1  # steps to the next agreement
        self._steps = 0  # since the last one
        self._since = time.monotonic()

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, runtime: Runtime) -> bool:
        """After every step: True on every process once any of them was asked to stop."""
        if runtime.world_size == 1:
            return bool(self.received)
        self._steps += 1
        if self._steps < self._wait:
            return False
        seconds = (time.monotonic() - self._since) / self._steps
        asked, total = runtime.sum(torch.tensor([float(bool(self.received)), seconds])).tolist()
        self._wait = max(1, min(MOST_STEPS, int(POLL_SECONDS * runtime.world_size / max(total, 1e-9))))
        self._steps, self._since = 0, time.monotonic()
        return bool(asked)

    def request(self) -> StopRequested:
        """What to raise once the run has saved."""
        return StopRequested(INTERRUPTED_EXIT_CODE if self.received == signal.SIGINT else REQUEUE_EXIT_CODE)


@contextmanager
def stoppable(status: int = REQUEUE_EXIT_CODE) -> Iterator[None]:
    """Within the block SIGTERM ends the process with this status at once, wherever `StopSignal` does not take it.

    As an exception: what the process has begun is put away, its temporary folders and other processes.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopRequested(status)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
