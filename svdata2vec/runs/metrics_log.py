"""The log of a run in training: JSON lines, TensorBoard, one line on the terminal; timed without waiting for the GPU."""

import contextlib
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from svdata2vec.config.checked_json import NUMBER, faults
from svdata2vec.shards.atomic import append_line, make_folder, naming, write_atomically
from svdata2vec.shards.ranges import Range

METRICS_NAME = "metrics.jsonl"  # in a run's folder
METRICS = {"step": Range(0), "epoch": NUMBER, "clips_per_second": NUMBER, "seconds_total": NUMBER, "*": NUMBER}  # of a line

_NUMBER = itertools.count()  # of the files that this process writes
log = logging.getLogger(__name__)


class MetricsLog:
    """Writes one record per log interval to `metrics.jsonl`, TensorBoard and the log (main process only).

    A resumed run first drops the records from `first_step` on, so that no step is there twice.
    """

    def __init__(self, folder: Path, first_step: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self._path = folder / METRICS_NAME
        earlier = [line for line in read_metrics(folder) if line["step"] <= first_step]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in earlier).encode())
        self._board = BoardFile(folder / "tensorboard", first_step)

    def write(self, step: int, values: dict[str, float], line: str) -> None:
        if not self.enabled:
            return
        append_line(self._path, json.dumps({"step": step, **values}))
        self._board.add(step, values)
        log.info("%s", line)


class BoardFile:
    """Scalars for TensorBoard, written when they are added; those of an earlier part of the run from `first_step` on are void.

    TensorBoard's own writer works in a thread, which would report a full disk by nothing but a traceback.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        make_folder(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBER)}"
        self._path = folder / name
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, step: int, values: dict[str, float]) -> None:
        """One value per name. Raises WriteFailedError."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _write(self, event: Event) -> None:
        with naming(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log; none where there is no log."""
    return read_lines(folder / METRICS_NAME, METRICS)


def read_lines(path: Path, schema: Any) -> list[dict[str, Any]]:
    """Records of a file of JSON lines. Those that are torn or do not fit the schema are left out, and counted in the log."""
    records, lines = [], path.read_bytes().splitlines() if path.is_file() else []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # also of what is not UTF-8
            record = json.loads(line)
            if not faults(record, schema):
                records.append(record)
    if len(records) < len(lines):
        log.warning("%s: left out %d of %d lines, which are damaged", path, len(lines) - len(records), len(lines))
    return records


class Ticks:
    """Time from one tick to the next; on a GPU by events, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._ticks: list[Any] = []

    def tick(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Durations between neighbouring ticks; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = itertools.pairwise(self._ticks)
        return [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairs]


class StepClock:
    """Seconds per part of the training step (data, forward, backward, optimizer), summed over a log interval."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self, before: Mapping[str, float] | None = None) -> None:
        """Begin an interval; `before`: what an earlier process spent in it, as `spent` gave it."""
        self._before = before or {}
        self.started, self.cpu_started = time.perf_counter(), time.process_time()
        self._parts: list[str] = []
        self._ticks = Ticks(self.device)
        self._ticks.tick()

    def mark(self, part: str) -> None:
        """The time since the last mark belongs to `part`."""
        self._parts.append(part)
        self._ticks.tick()

    def seconds(self) -> dict[str, float]:
        """Seconds per part in this interval, and `total` by the wall clock."""
        sums = {part: spent for part, spent in self._before.items() if part != "cpu"}
        for part, spent in zip(self._parts, self._ticks.seconds(), strict=True):
            sums[part] = sums.get(part, 0.0) + spent
        sums["total"] = sums.get("total", 0.0) + time.perf_counter() - self.started
        return sums

    def cpu_seconds(self) -> float:
        """Processor time of this process in this interval, of all its threads."""
        return self._before.get("cpu", 0.0) + time.process_time() - self.cpu_started

    def spent(self) -> dict[str, float]:
        """`seconds`, and the processor time as `cpu`."""
        return {**self.seconds(), "cpu": self.cpu_seconds()}


Sum = Callable[[Tensor], Tensor]


def _alone(values: Tensor) -> Tensor:
    return values


class Averages:
    """Means of device scalars over a log interval; read once per interval. What is not finite is left out.

    `over`: the sum over all processes, which have the same names and call this together; without it those of this one alone.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (sum, count) of the finite values

    def state_dict(self, over: Sum = _alone) -> dict[str, list[float]]:
        """Waits for the device."""
        return dict(zip(self._sums, over(torch.stack(list(self._sums.values()))).tolist(), strict=True)) if self._sums else {}

    def load_state_dict(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        self._sums = {name: torch.tensor(entry, device=device) for name, entry in state.items()}

    def add(self, values: dict[str, Tensor], weight: int = 1) -> None:
        """`weight`: as how many each value counts, of a batch its clips: ranks and steps may have batches of several sizes."""
        for name, value in values.items():
            value = value.detach().float()
            finite = torch.isfinite(value)
            entry = torch.stack([torch.where(finite, value, 0.0), finite.float()]) * weight
            self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def take(self, over: Sum = _alone) -> dict[str, float]:
        """Means since the last call (one wait for the device); a value that was never finite is absent."""
        sums, self._sums = self.state_dict(over), {}
        return {name: total / count for name, (total, count) in sums.items() if count}


def cost(run: Path) -> dict[str, Any]:
    """What a run cost, by its log: steps, clips, CPU seconds of its process, seconds."""
    records = read_metrics(run)
    return {
        "steps": records[-1]["step"] if records else 0,
        "clips_seen": round(sum(record["clips_per_second"] * record["seconds_total"] for record in records)),
        "cpu_seconds": sum(record.get("cpu_seconds", 0.0) for record in records),
        "seconds": sum(record["seconds_total"] for record in records),
    }
