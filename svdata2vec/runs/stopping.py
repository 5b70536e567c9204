"""How a run is asked to stop: SIGTERM, which schedulers send before they take a machine away."""

import signal
from types import FrameType

import torch

from svdata2vec.runs.runtime import Runtime

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: the run was asked to stop, has saved, and can be started again as it was
STOP_POLL_STEPS = 10  # with several processes, optimizer steps between two agreements on whether to stop


class StopRequested(SystemExit):
    """The run was asked to stop (SIGTERM) and has saved a checkpoint."""

    def __init__(self) -> None:
        super().__init__(REQUEUE_EXIT_CODE)


class StopSignal:
    """Turns SIGTERM into a flag that the training loop reads between two steps."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopSignal":
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def agreed(self, runtime: Runtime, step: int) -> bool:
        """True on every process once any of them was asked to stop."""
        if runtime.world_size == 1:
            return self.received
        if step % STOP_POLL_STEPS:
            return False
        return bool(runtime.sum(torch.tensor([float(self.received)])).item())
