"""What pretraining and fine-tuning share: the optimizer step, the loop, checkpoints, logging, stopping and resuming."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from svdata2vec.config.schema import FinetuneConfig, OptimConfig, PretrainConfig, RunConfig, to_json
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.checkpoint import Checkpoints, publish
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.metrics_log import Averages, MetricsLog, StepClock, read_metrics
from svdata2vec.runs.runtime import Runtime, StopRequested, StopSignal, seed_step
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.training.optim import clip_gradients, set_learning_rate
from svdata2vec.training.schedules import learning_rate

log = logging.getLogger(__name__)

FINISHED = "result.json"
EpochBatch = tuple[int, ClipBatch]  # the epoch that a batch belongs to, and the batch


class NotFiniteError(RunFailedError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class FiniteGuard:
    """Counts optimizer steps that were skipped because their gradient was not finite.

    The skip itself happens on the device; on a GPU the flags are read once per log interval. All processes see the same
    flags; each writes down the clips that it had itself.
    """

    def __init__(self, largest_run: int, folder: Path, rank: int = 0) -> None:
        self.largest_run = largest_run
        self.path = folder / (f"not_finite-rank{rank}.json" if rank else "not_finite.json")
        self.skipped = 0
        self._in_a_row: list[tuple[int, list[str]]] = []
        self._pending: list[tuple[int, list[str], Tensor]] = []

    def add(self, step: int, keys: list[str], bad: Tensor) -> None:
        self._pending.append((step, keys, bad))
        if bad.device.type == "cpu":
            self.read()

    def read(self) -> None:
        """Take note of the pending flags; raises NotFiniteError after `largest_run` bad steps in a row."""
        if not self._pending:
            return
        flags = torch.stack([bad for _, _, bad in self._pending]).tolist()
        for (step, keys, _), bad in zip(self._pending, flags, strict=True):
            self._in_a_row = [*self._in_a_row, (step, keys)] if bad else []
            if bad:
                self.skipped += 1
                log.warning("step %d: loss or gradient not finite; the step is skipped", step)
            if len(self._in_a_row) >= self.largest_run:
                self._give_up()
        self._pending = []

    def _give_up(self) -> None:
        rows = [{"step": step, "keys": keys} for step, keys in self._in_a_row]
        write_atomically(self.path, json.dumps(rows, indent=2).encode())
        raise NotFiniteError(
            f"{len(self._in_a_row)} steps in a row had a loss or gradient that is not finite; "
            f"their clips are listed in {self.path}"
        )


class Statistics:
    """BatchNorm's running statistics as they were before a step, to put them back if the step is skipped."""

    def __init__(self, network: nn.Module) -> None:
        self._live = [
            statistic
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for statistic in (module.running_mean, module.running_var)
            if statistic is not None
        ]
        self._before = torch.zeros(0)

    @torch.no_grad()
    def keep(self) -> None:
        if self._live:
            self._before = torch.cat(self._live)

    @torch.no_grad()
    def put_back_if(self, bad: Tensor) -> None:
        """Without waiting for the device to know whether `bad`."""
        if self._live:
            values = torch.where(bad, self._before, torch.cat(self._live))
            torch._foreach_copy_(self._live, values.split([len(statistic) for statistic in self._live]))


class Stepper:
    """One optimizer step: schedule, accumulation, finiteness, clipping; and the step's times and averages.

    `step` counts optimizer steps over the whole run and drives every schedule.
    """

    def __init__(
        self,
        optim: OptimConfig,
        run: RunConfig,
        runtime: Runtime,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches_per_epoch: int,
    ) -> None:
        self.optim, self.run, self.runtime, self.optimizer = optim, run, runtime, optimizer
        self.batches_per_epoch = batches_per_epoch
        self.steps_per_epoch = max(batches_per_epoch // optim.accumulate, 1)
        self.total_steps = max(run.epochs * batches_per_epoch // optim.accumulate, 1)
        self.step = 0
        self.clips_in_interval = 0
        self.clock = StepClock(runtime.device)
        self.averages = Averages()
        self.guard = FiniteGuard(run.max_bad_steps, run.out, runtime.rank)
        self.statistics = Statistics(network)
        self.values: dict[str, float] = {}

    def begin(self) -> None:
        """Set the step's learning rate and random state. Call when its batches are there."""
        self.clock.mark("data")
        lr = learning_rate(self.optim, self.step, self.batches_per_epoch / self.optim.accumulate, self.run.epochs)
        set_learning_rate(self.optimizer, lr)
        self.values["lr"] = lr
        self.statistics.keep()
        seed_step(self.run.seed, self.step, self.runtime.rank)

    @property
    def epochs_done(self) -> int:
        """Whole passes over the training split."""
        return self.step * self.optim.accumulate // self.batches_per_epoch

    def backward(self, loss: Tensor, model: nn.Module, *, last: bool) -> None:
        """Add the batch's share of the gradient; processes exchange gradients in the last one only."""
        wait = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            (loss / self.optim.accumulate).backward()
        self.clock.mark("backward")

    def note(self, values: dict[str, Tensor]) -> None:
        self.averages.add(values)

    def update(self, keys: list[str]) -> None:
        """Apply the gradient unless it is not finite (decided on the device, without waiting for it)."""
        norm = clip_gradients(self.optimizer, self.optim.clip_grad)
        bad = ~torch.isfinite(norm)
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # the fused AdamW leaves its step out
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.put_back_if(bad)
        self.guard.add(self.step, keys, bad)
        self.averages.add({"grad_norm": norm})
        self.clips_in_interval += len(keys)

    def end(self, values: dict[str, float]) -> None:
        self.values.update(values)
        self.step += 1
        self.clock.mark("optimizer")

    def take_record(self) -> dict[str, float]:
        """Averages, rates and shares of time since the last record; waits for the device once."""
        self.guard.read()
        seconds = self.clock.seconds()
        total = seconds.pop("total")
        rate = self.clips_in_interval * self.runtime.world_size / total
        record = {
            "epoch": self.step * self.optim.accumulate / self.batches_per_epoch,
            **self.averages.take(),
            **self.values,
            "clips_per_second": rate,
            "skipped_steps": float(self.guard.skipped),
            **{f"seconds_{part}": spent for part, spent in seconds.items()},
            "seconds_total": total,
        }
        if self.runtime.device.type == "cuda":
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.clips_in_interval = 0
        self.clock.reset()
        return record

    def state_dict(self) -> dict[str, Any]:
        self.guard.read()
        return {"step": self.step, "skipped": self.guard.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.guard.skipped = state["skipped"]


class TrainingRun(Protocol):
    """What the loop needs of a run."""

    stepper: Stepper
    loader: ClipLoader
    runtime: Runtime

    @property
    def config(self) -> PretrainConfig | FinetuneConfig: ...
    def step(self, batches: list[EpochBatch]) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...
    def weights(self) -> dict[str, Tensor]: ...
    def epoch_end(self, epoch: int) -> dict[str, float]: ...


def is_finished(config: Any, run: RunConfig) -> bool:
    """True if the run's folder holds this very run, finished: there is nothing left to do.

    Raises UserError if it holds a finished run with other settings, or any run where `run.resume` is "never".
    """
    path = run.out / "config.json"
    if not path.is_file():
        return False
    if run.resume == "never":
        raise UserError(f"{run.out} holds a run already; choose another folder, or continue it with --run.resume auto")
    old, new = json.loads(path.read_text()), json.loads(to_json(config))
    if kind_of(old) != kind_of(new):
        raise UserError(f"{run.out} holds a {kind_of(old)} run, this is a {kind_of(new)} run; choose another folder")
    changes = ", ".join(changed_settings(old, new))
    finished = (run.out / FINISHED).is_file()
    if finished and changes:
        raise UserError(f"{run.out} holds a finished run with other settings ({changes}); choose another folder")
    if changes:
        log.warning("%s: continuing with other settings: %s", run.out, changes)
    if finished:
        log.info("%s is finished already; nothing to do", run.out)
    return finished


def kind_of(config: dict[str, Any]) -> str:
    """ "pretrain", "finetune" or "probe": what the settings in a `config.json` are of."""
    return "probe" if "neighbours" in config else "finetune" if "label_fraction" in config else "pretrain"


def changed_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations differ, with both values."""
    names: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += changed_settings(before, after, f"{prefix}{name}.")
        elif before != after:
            names.append(f"{prefix}{name} {before} -> {after}")
    return names


def finish_run(run: RunConfig, runtime: Runtime, result: dict[str, Any]) -> None:
    """Write the run's closing figures, last of all: a folder with them holds a finished run."""
    if runtime.is_main:
        write_atomically(run.out / FINISHED, json.dumps(result, indent=2).encode())
    runtime.barrier()


def read_result(run: RunConfig) -> dict[str, Any]:
    return json.loads((run.out / FINISHED).read_text())


def train(run: TrainingRun, card: dict[str, Any]) -> dict[str, float]:
    """Run to the end from the newest checkpoint, then publish the weights with their model card.

    Returns:
        The last record of the log. SIGTERM saves a checkpoint and raises StopRequested.
    """
    stepper, runtime, folder = run.stepper, run.runtime, run.stepper.run.out
    checkpoints = Checkpoints(folder, stepper.run.keep_checkpoints)
    state = checkpoints.load_newest()
    if state is not None:
        _take_up(run, state)
    _begin(folder, run)
    metrics = MetricsLog(folder, stepper.step, runtime.is_main)
    stream = epoch_batches(run.loader)
    record: dict[str, float] = next(iter(read_metrics(folder / "metrics.jsonl")[-1:]), {})
    epochs_done = stepper.epochs_done
    started = time.perf_counter()
    stepper.clock.reset()
    with StopSignal() as stop, contextlib.closing(stream), contextlib.closing(metrics):
        while stepper.step < stepper.total_steps:
            run.step([next(stream) for _ in range(stepper.optim.accumulate)])
            done = stepper.step == stepper.total_steps
            if done or stepper.epochs_done > epochs_done:
                epochs_done = stepper.run.epochs if done else stepper.epochs_done
                stepper.values.update(run.epoch_end(epochs_done))
            if done or stepper.step % stepper.run.log_every == 0:
                record = stepper.take_record()
                metrics.write(stepper.step, record, describe(stepper, record, started))
            stopping = stop.agreed(runtime, stepper.step)
            if done or stopping or stepper.step % stepper.run.checkpoint_every == 0:
                _save(checkpoints, run)
            if stopping and not done:
                log.warning("asked to stop: saved step %d in %s; start again to go on", stepper.step, checkpoints.folder)
                raise StopRequested
    if runtime.is_main:
        publish(folder, run.weights(), {**card, "step": stepper.step, "metrics": record})
    runtime.barrier()
    return record


def _take_up(run: TrainingRun, state: dict[str, Any]) -> None:
    """Load a checkpoint; one of a network or data set of other settings is an error that says in what they differ."""
    try:
        run.load(state)
    except (RuntimeError, KeyError, ValueError) as error:
        changes = ", ".join(changed_settings(json.loads(state["config"]), json.loads(to_json(run.config))))
        if not changes:
            raise
        raise UserError(
            f"{run.stepper.run.out}: its checkpoint does not fit these settings ({changes}); choose another folder, or give "
            f"the settings that the run began with ({' '.join(str(error).split())[:200]})"
        ) from error


def _begin(folder: Path, run: TrainingRun) -> None:
    """Make the run's folder and write the resolved configuration into it."""
    if run.runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", to_json(run.config).encode())
    run.runtime.barrier()


def _save(checkpoints: Checkpoints, run: TrainingRun) -> None:
    state = run.state()
    if run.runtime.is_main:
        checkpoints.save(run.stepper.step, state)
    run.runtime.barrier()


def epoch_batches(loader: ClipLoader) -> Generator[EpochBatch]:
    """Batches with their epoch, epoch after epoch, from the loader's position on."""
    while True:
        epoch = loader.epoch
        for batch in loader:
            yield epoch, batch


def describe(stepper: Stepper, record: dict[str, float], started: float) -> str:
    """One line for the terminal: where the run is, what it sees, how fast, how long still."""
    names = ("loss", "accuracy", "target_std", "prediction_std", "grad_norm")
    shown = [f"{name} {record[name]:.4g}" for name in names if name in record]
    wait = record.get("seconds_data", 0.0) / max(record["seconds_total"], 1e-9)
    remaining = (stepper.total_steps - stepper.step) * record["seconds_total"] / stepper.run.log_every
    return (
        f"step {stepper.step}/{stepper.total_steps} epoch {record['epoch']:.2f} {' '.join(shown)} lr {record['lr']:.2e} "
        f"{record['clips_per_second']:.1f} clips/s data wait {100 * wait:.0f} % "
        f"ETA {_clock(remaining)} elapsed {_clock(time.perf_counter() - started)}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
