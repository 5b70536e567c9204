"""One optimizer step: schedule, accumulation, finiteness, clipping; and what is measured of it."""

import contextlib
import json
import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.metrics_log import Averages, StepClock
from svdata2vec.runs.runtime import Runtime, seed_step
from svdata2vec.shards.atomic import append_line
from svdata2vec.training.optim import clip_gradients, learning_rate, resolve, set_learning_rate

log = logging.getLogger(__name__)


class NotFiniteError(RunFailedError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class FiniteGuard:
    """Counts optimizer steps that were skipped because their gradient was not finite.

    The skip itself happens on the device; on a GPU the flags are read once per log interval. All processes see the same
    flags; each appends its own clips to its file, a JSON object per skipped step (`path` None: to no file).
    """

    def __init__(self, max_bad_steps: int, folder: Path, rank: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.path: Path | None = folder / (f"not_finite-rank{rank}.jsonl" if rank else "not_finite.jsonl")
        self.skipped = 0
        self.in_a_row = 0
        self._pending: list[tuple[int, list[str], Tensor]] = []

    def add(self, step: int, keys: list[str], bad: Tensor) -> None:
        self._pending.append((step, keys, bad))
        if bad.device.type == "cpu":
            self.read()

    def read(self) -> None:
        """Count the pending flags; raises NotFiniteError after `max_bad_steps` bad steps in a row."""
        if not self._pending:
            return
        flags = torch.stack([bad for _, _, bad in self._pending]).tolist()
        listed = "" if self.path is None else f"; the clips are listed in {self.path}"
        for (step, keys, _), bad in zip(self._pending, flags, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self.skipped += 1
                if self.path is not None:
                    append_line(self.path, json.dumps({"step": step, "keys": keys}))
                log.warning("step %d: loss or gradient not finite; the step is skipped%s", step, listed)
            if self.in_a_row >= self.max_bad_steps:
                raise NotFiniteError(f"{self.in_a_row} steps in a row had a loss or gradient that is not finite{listed}")
        self._pending = []


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

    Attributes:
        step: optimizer steps so far; names checkpoints and records, and seeds the random numbers of a step.
        epochs: progress of the run in epochs, which drives every schedule; the trainer sets it from its loader.
        total_steps: number of the last step, unless the settings change.
        optim: settings of the optimizer in absolute numbers, see `resolve`.
        batches: how many the next step has, as a rule `optim.accumulate`.
        clips: how many these have, over all processes; full batches are assumed until the trainer has counted them.
        change: how the clips per step differ from those of the checkpoint, in words; empty if they do not.
    """

    def __init__(
        self, config: PretrainConfig | FinetuneConfig, runtime: Runtime, network: nn.Module, optimizer: torch.optim.Optimizer,
        loader: ClipLoader,
    ) -> None:
        run, batch = config.run, config.run.batch_size * runtime.world_size
        optim = resolve(config.optim, batch, run.epochs)
        self.optim, self.run, self.runtime, self.network, self.optimizer = optim, run, runtime, network, optimizer
        self.loader = loader
        self.step = self.total_steps = 0
        self._find_place()
        self.per_step = {"batch_size": run.batch_size, "processes": runtime.world_size, "accumulate": optim.accumulate}
        self.reference_clips = math.prod(self.per_step.values())
        self.change = ""
        self.clips_in_interval = 0  # since the last record of the log, by this process
        self.clips_before = 0  # in that interval, before the run was resumed
        self.skipped_clips_before = 0  # in all of the run before it was resumed
        self.spent: dict[str, float] = {}  # seconds of that interval by part, before the run was resumed
        self.clock = StepClock(runtime.device)
        self.averages = Averages()
        self.guard = FiniteGuard(run.max_bad_steps, run.out, runtime.rank)
        self.statistics = Statistics(network)
        self.values: dict[str, float] = {}

    def begin(self) -> None:
        """Set the step's learning rate and random state. Call once its batches have been loaded."""
        self.clock.mark("data")
        lr = learning_rate(self.optim, float(self.epochs), self.run.epochs)
        set_learning_rate(self.optimizer, lr)
        self.values["lr"] = lr
        self.statistics.keep()
        seed_step(self.run.seed, self.step, self.runtime.rank)

    @property
    def epochs_done(self) -> int:
        """Whole passes over the training split."""
        return math.floor(self.epochs)

    @property
    def reference_steps_per_epoch(self) -> Fraction:
        """Optimizer steps in an epoch, of as many clips as in the steps that the run began with."""
        return Fraction(self.loader.clips_per_epoch, self.reference_clips)

    def plan(self) -> list[str]:
        """Lines for the log: what the run is about to do."""
        optim, epochs, clips = self.optim, self.run.epochs, self.loader.clips_per_epoch
        return [
            f"{epochs} epochs of {clips} clips, {self.total_steps} steps; clips per step: {_product(self.per_step)}",
            f"learning rate 0 to {optim.lr:g} in {optim.warmup_epochs:g} epochs, then down to {optim.min_lr:g}",
        ]

    def exchange(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context of a batch's forward and backward pass: gradients and buffers are exchanged in the step's last one only.

        The forward pass belongs inside, since DistributedDataParallel decides there what its backward pass does.
        """
        wait = isinstance(self.network, DistributedDataParallel) and not last
        return self.network.no_sync() if wait else contextlib.nullcontext()  # type: ignore[operator]

    def backward(self, loss: Tensor, clips: int) -> None:
        """Add a batch's share of the gradient: every clip of a step has the same weight, in a short batch, too.

        Gradients are averaged over processes, not summed: hence `world_size`.
        """
        (loss / (self.clips / (clips * self.runtime.world_size))).backward()
        self.clock.mark("backward")

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
        self.epochs += Fraction(self.batches, self.loader.batches_per_epoch)
        self._expect(self.optim.accumulate)
        self.clock.mark("optimizer")

    def counts(self) -> tuple[int, int]:
        """Clips since the last record of the log, and unusable clips that were replaced in the run so far.

        Both are sums over all processes, which must call this together.
        """
        here = torch.tensor([self.clips_in_interval, self.loader.stats.skipped_in_batches])
        clips, skipped = self.runtime.sum(here).tolist()
        return self.clips_before + clips, self.skipped_clips_before + skipped

    def take_record(self) -> dict[str, float]:
        """Averages, rates and shares of time since the last record; waits for the device once.

        Averages and counts are over all processes, which must call this together; times are of this process.
        """
        self.guard.read()
        seconds = self.clock.seconds()
        total = seconds.pop("total")
        clips, skipped = self.counts()
        record = {
            "epoch": float(self.epochs),
            **self.averages.take(self.runtime.sum),
            **self.values,
            "clips_per_second": clips / total,
            "skipped_steps": float(self.guard.skipped),
            "skipped_clips": float(skipped),
            **{f"seconds_{part}": spent for part, spent in seconds.items()},
            "seconds_total": total,
            "cpu_seconds": self.clock.cpu_seconds(),
        }
        if self.runtime.device.type == "cuda":
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.clips_in_interval = self.clips_before = 0
        self.clock.reset()
        return record

    def state_dict(self) -> dict[str, Any]:
        self.guard.read()
        clips, skipped = self.counts()
        interval = {"all_clips": clips, "spent": self.clock.spent(), "averages": self.averages.state_dict(self.runtime.sum)}
        return {
            "step": self.step, "skipped": self.guard.skipped, "in_a_row": self.guard.in_a_row, "values": self.values,
            "per_step": self.per_step, "reference_clips": self.reference_clips, "interval": interval,
            "skipped_clips": skipped,
        }

    def _find_place(self) -> None:
        """Read the run's progress from the loader. If the batches left do not fill whole steps, the next one is short."""
        self.epochs, left = self.loader.epochs_passed, self.loader.batches_until(self.run.epochs)
        self._expect(left % self.optim.accumulate or self.optim.accumulate)
        self.total_steps = self.step + math.ceil(left / self.optim.accumulate)

    def _expect(self, batches: int) -> None:
        """Set how many batches the next step has, and its clips if all are full."""
        self.batches, self.clips = batches, self.run.batch_size * self.runtime.world_size * batches

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after a step; the loader's state has to be loaded before.

        Schedules continue where they were, even if a step has another number of clips from here on.
        """
        self.step = state["step"]
        self.guard.skipped, self.guard.in_a_row = state["skipped"], state.get("in_a_row", 0)
        self.skipped_clips_before = state.get("skipped_clips", 0)
        if interval := state.get("interval"):
            if (clips := interval.get("all_clips")) is None:  # the first 0.3.0.dev0 kept those of one process
                clips = interval["clips"] * state["per_step"]["processes"]
            self.clips_before, self.spent = clips, interval["spent"]
            sums = interval["averages"] if self.runtime.is_main else dict.fromkeys(interval["averages"], (0.0, 0.0))
            self.averages.load_state_dict(sums, self.runtime.device)  # of all processes, so that one of them goes on with it
        values = state.get("values", {})  # 0.1.0 kept none, 0.2.0 also what it had found on the test split
        self.values = {name: value for name, value in values.items() if name not in ("test_top1", "best_test_top1")}
        self._find_place()
        passed = round(self.epochs * self.loader.clips_per_epoch)
        before = state.get("per_step") or {"clips": round(passed / max(self.step, 1))}  # 0.2.0 did not write it
        self.reference_clips = state.get("reference_clips", math.prod(before.values()))
        accumulate, now = self.optim.accumulate, self.per_step
        if math.prod(before.values()) != math.prod(now.values()) or before.get("accumulate", accumulate) != accumulate:
            self.change = f"clips per optimizer step {_product(before)} -> {_product(now)}"


def _product(per_step: dict[str, int]) -> str:
    """As in "8 (batch_size 2 x processes 2 x accumulate 2)"."""
    return f"{math.prod(per_step.values())} ({' x '.join(f'{name} {count}' for name, count in per_step.items())})"
