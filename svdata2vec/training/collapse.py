"""Ends a pretraining run whose targets or predictions are the same for every clip; warns before that, and of divergence."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from svdata2vec.runs.failures import RunFailedError

NEAR_0 = 1e-3  # of a spread; healthy targets have 0.4 to 1, predictions 0.04 at the least
LOW = 0.3  # of the targets' spread: 40 runs on synthetic clips had 0.54 to 0.96 throughout, with targets of any kind
HIGH = 10.0  # of the loss where targets have a variance of 1 at most, so that predicting zeros has about 1: 72 runs that
# learned had 2.7 at most, two that diverged 1,700 and more

SPREADS = {  # of a record -> where to look when it is near 0
    "target_std": "the teacher has collapsed, or reads empty skeletons: look at the joints (`svdata2vec inspect`), "
    "--ema.start and --optim.lr",
    "prediction_std": "the student has collapsed: look at the clips (`svdata2vec inspect`), --optim.lr and --optim.clip-grad",
}

WARNINGS: dict[str, tuple[Callable[[float], bool], str]] = {  # of a record -> what is unhealthy, and what is said of it
    "target_std": (
        lambda spread: spread < LOW,
        f"was below {LOW:g} in %d records of the log in a row (healthy: 0.4 to 1): targets are becoming alike, which may end "
        "in a collapse; look at the joints (`svdata2vec inspect`), --ema.start and --optim.lr",
    ),
    "loss": (
        lambda loss: loss > HIGH,
        f"was above {HIGH:g} in %d records of the log in a row (zeros for predictions: about 1): the run has diverged and "
        "learns nothing; look at --optim.lr, --optim.warmup-epochs and --optim.clip-grad",
    ),
}
WATCHED = (*SPREADS, "loss")

log = logging.getLogger(__name__)


class CollapsedError(RunFailedError):
    """Going on would train on nothing."""


class CollapseGuard:
    """Counts log records in a row with a spread near 0, and those with a low spread of targets or a high loss.

    Args:
        max_records: how many in a row end the run, or cause one warning; 0 = never.
    """

    def __init__(self, max_records: int) -> None:
        self.max_records = max_records
        self._in_a_row = dict.fromkeys(SPREADS, 0)
        self._unhealthy = dict.fromkeys(WARNINGS, 0)
        self._warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row, "unhealthy": self._unhealthy, "warned": sorted(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._in_a_row, self._unhealthy = dict(state["in_a_row"]), dict(state["unhealthy"])
        self._warned = set(state["warned"])

    def check(self, record: Mapping[str, float]) -> None:
        """Count a record's WATCHED figures; one that is missing or not finite is not counted.

        Raises CollapsedError where a spread was near 0 for `max_records` records in a row.
        """
        for name, cause in SPREADS.items():
            self._in_a_row[name] = self._in_a_row[name] + 1 if abs(record.get(name, 1.0)) < NEAR_0 else 0
            if 0 < self.max_records <= self._in_a_row[name]:
                raise CollapsedError(
                    f"{name} was below {NEAR_0} in {self._in_a_row[name]} records of the log in a row, the same for every "
                    f"clip: {cause}; --collapse-records 0 takes this check away"
                )
        for name, (unhealthy, said) in WARNINGS.items():
            value = record.get(name, math.nan)
            self._unhealthy[name] = self._unhealthy[name] + 1 if math.isfinite(value) and unhealthy(value) else 0
            if 0 < self.max_records <= self._unhealthy[name] and name not in self._warned:
                self._warned.add(name)
                log.warning("%s %s. The run goes on", name, said % self._unhealthy[name])
