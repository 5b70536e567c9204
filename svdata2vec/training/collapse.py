"""Ends a pretraining run whose targets or predictions have become the same for every clip; warns where targets become alike."""

import logging
from collections.abc import Mapping

from svdata2vec.runs.failures import RunFailedError

NEAR_0 = 1e-3  # of a spread; healthy targets have 0.4 to 1, predictions 0.04 at the least
LOW = 0.3  # of the targets' spread: 40 runs on synthetic clips had 0.54 to 0.96 throughout, with targets of any kind

SPREADS = {  # of a record -> where to look when it is near 0
    "target_std": "the teacher has collapsed, or reads empty skeletons: look at the joints (`svdata2vec inspect`), "
    "--ema.start and --optim.lr",
    "prediction_std": "the student has collapsed: look at the clips (`svdata2vec inspect`), --optim.lr and --optim.clip-grad",
}

log = logging.getLogger(__name__)


class CollapsedError(RunFailedError):
    """Going on would train on nothing."""


class CollapseGuard:
    """Counts log records in a row with a spread near 0, and those with a low spread of targets.

    Args:
        largest_run: so many in a row end the run, or are warned of once; 0 = never.
    """

    def __init__(self, largest_run: int) -> None:
        self.largest_run = largest_run
        self._in_a_row = dict.fromkeys(SPREADS, 0)
        self._low_in_a_row, self._warned = 0, False

    def look(self, spreads: Mapping[str, float]) -> None:
        """Take note of a record's `target_std` and `prediction_std`; one that is missing or not finite shows nothing.

        Raises CollapsedError where one was near 0 for `largest_run` records in a row.
        """
        for name, cause in SPREADS.items():
            self._in_a_row[name] = self._in_a_row[name] + 1 if abs(spreads.get(name, 1.0)) < NEAR_0 else 0
            if 0 < self.largest_run <= self._in_a_row[name]:
                raise CollapsedError(
                    f"{name} was below {NEAR_0} in {self._in_a_row[name]} records of the log in a row, the same for every "
                    f"clip: {cause}; --collapse-records 0 takes this check away"
                )
        self._look_for_low(spreads.get("target_std", 1.0))

    def _look_for_low(self, target_std: float) -> None:
        """Warn once of targets that are becoming alike: the loss then falls, too, and nothing better is learned."""
        self._low_in_a_row = self._low_in_a_row + 1 if target_std < LOW else 0
        if 0 < self.largest_run <= self._low_in_a_row and not self._warned:
            self._warned = True
            log.warning("target_std was below %g in %d records of the log in a row (healthy: 0.4 to 1): targets are becoming "
                        "alike, which may end in a collapse; look at the joints (`svdata2vec inspect`), --ema.start and "
                        "--optim.lr. The run goes on", LOW, self._low_in_a_row)
