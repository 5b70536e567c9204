"""What pretraining and fine-tuning share: the step, and the loop over batches with log, checkpoints, stopping and resuming."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from svdata2vec import __version__
from svdata2vec.config.files import from_dict, to_json, to_values, with_todays_names
from svdata2vec.config.openmp import SPINNING, waiting
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.card import other_start
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.data import require_same_clips
from svdata2vec.runs.failures import is_out_of_memory
from svdata2vec.runs.folder import (
    ADJUSTABLE,
    EVALUATION,
    TECHNICAL,
    changed_settings,
    require_same_folder,
    withdraw,
    write_config,
)
from svdata2vec.runs.metrics_log import MetricsLog, read_metrics
from svdata2vec.runs.provenance import UNKNOWN, commit
from svdata2vec.runs.published import publish
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import StopSignal
from svdata2vec.shards.errors import UserError
from svdata2vec.training.launch import require_launch
from svdata2vec.training.optim import build_optimizer, load_optimizer
from svdata2vec.training.stepper import Stepper

log = logging.getLogger(__name__)

# Entries of the card about how the run began and what changed since; stored in checkpoints, too.
ORIGIN = ("pretrained_on", "initialised_from", "history", "commits")
LATER_PARTS = ("collapse",)  # absent from checkpoints of 0.2.0
EpochBatch = tuple[int, ClipBatch]  # the epoch that a batch belongs to, and the batch


class TrainingRun:
    """A run, wired once: a network, its optimizer and the training step.

    Args:
        config: the resolved configuration.
        runtime: this process and its device.
        loader: training clips.
        model: what is trained and published; `network` is the same module, wrapped for this process.
        layers: depth and decay of layer-wise learning rates, see `build_optimizer`.
    """

    def __init__(
        self, config: PretrainConfig | FinetuneConfig, runtime: Runtime, loader: ClipLoader, model: nn.Module, **layers: Any
    ) -> None:
        require_launch(config, runtime)
        self.config, self.runtime, self.loader, self.model = config, runtime, loader, model
        self.network = runtime.wrap(model, config.run)
        self.optimizer = build_optimizer(model.named_parameters(), config.optim, **layers)
        self.stepper = Stepper(config, runtime, self.network, self.optimizer, loader)
        self.save_due = False  # save after this step, even if `run.checkpoint_every` does not ask for it

    def next_batches(self, stream: Iterator[EpochBatch]) -> list[EpochBatch]:
        """Take the next step's batches from `epoch_batches` and count their clips: an epoch may end with a short batch."""
        batches, clips = [], 0
        for _ in range(self.stepper.batches):
            batches.append(next(stream))
            clips += self.loader.step_clips
        self.stepper.clips = clips
        return batches

    def step(self, batches: list[EpochBatch]) -> None:
        """One optimizer step over `stepper.batches` batches."""
        stepper = self.stepper
        stepper.begin()
        self.network.train()
        for epoch, batch in batches:
            stepper.averages.add(self.differentiate(batch, epoch, last=batch is batches[-1][1]), len(batch))
        stepper.update([key for _, batch in batches for key in batch.keys])
        stepper.end(self.after_update())

    def differentiate(self, batch: ClipBatch, epoch: int, *, last: bool) -> dict[str, Tensor]:
        """Compute `figures` and add the batch's share of the gradient; `last`: it is the step's last batch."""
        with self.stepper.exchange(last=last):
            figures = self.figures(batch, epoch)
            self.stepper.clock.mark("forward")
            self.stepper.backward(figures["loss"], len(batch))
        return figures

    def figures(self, batch: ClipBatch, epoch: int) -> dict[str, Tensor]:
        """The loss of a batch (with gradient), under "loss", and scalars for the log."""
        raise NotImplementedError

    def after_update(self) -> dict[str, float]:
        """Called after the update of the weights; returns values for the log."""
        return {}

    def plan(self) -> list[str]:
        """Lines for the log: what the run is about to do."""
        lines = self.stepper.plan()
        if self.runtime.device.type == "cpu":
            lines.append(f"on {torch.get_num_threads()} threads per process, which wait for each other by {waiting()}")
            if self.runtime.bf16 and torch.get_num_threads() > 1:
                lines.append(f"bf16: {SPINNING}")
        return lines

    def epoch_end(self, epoch: int, before: int) -> dict[str, float]:
        """Called at the end of an epoch; `before`: the previous one that ended, since one step may span several.

        Returns values for the log; if there are any, this step is logged.
        """
        return {}

    def watch(self, record: dict[str, float]) -> None:
        """Check a record of the log; raises RunFailedError if there is no point in continuing."""

    @property
    def takes_last(self) -> bool:
        """Whether `train` publishes the network of the last step; otherwise the run itself publishes another one."""
        return True

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, by name: objects with `state_dict` and `load_state_dict`."""
        return {"optimizer": self.optimizer, "loader": self.loader, "stepper": self.stepper}


def train(run: TrainingRun, card: dict[str, Any]) -> dict[str, float]:
    """Train to the end, from the newest checkpoint if there is one; then publish the weights with their card (`takes_last`).

    Returns:
        The last record of the log. SIGTERM or SIGINT saves a checkpoint and raises StopRequested.
    """
    stepper, runtime, folder = run.stepper, run.runtime, run.stepper.run.out
    checkpoints = Checkpoints(folder, stepper.run.keep_checkpoints)
    _begin(run, checkpoints, card)
    metrics = MetricsLog(folder, stepper.step, runtime.is_main)
    stream = epoch_batches(run.loader)
    # The first process may not have removed the records of lost steps yet.
    record: dict[str, float] = next((row for row in reversed(read_metrics(folder)) if row["step"] <= stepper.step), {})
    recorded = record.get("step", 0)
    epochs_done = stepper.epochs_done
    started = time.perf_counter()
    stepper.clock.reset(stepper.spent)
    with StopSignal() as stop, contextlib.closing(stream):
        while stepper.step < stepper.total_steps:
            run.step(run.next_batches(stream))
            stepper.epochs = run.loader.epochs_passed
            done, news = stepper.step == stepper.total_steps, {}
            if done or stepper.epochs_done > epochs_done:
                before, epochs_done = epochs_done, stepper.run.epochs if done else stepper.epochs_done
                news = run.epoch_end(epochs_done, before)
            if done or news or stepper.step % stepper.run.log_every == 0:
                record = stepper.take_record() | news
                metrics.write(stepper.step, record, describe(stepper, record, stepper.step - recorded, started))
                recorded = stepper.step
                run.watch(record)
            due = done or run.save_due or stepper.step % stepper.run.checkpoint_every == 0
            if due:
                _save(checkpoints, run, card)
                run.save_due = False
            if stop.agreed(runtime) and not done:
                if not due:
                    _save(checkpoints, run, card)
                log.warning("asked to stop: saved step %d in %s; start again to go on", stepper.step, checkpoints.folder)
                raise stop.request()
    if runtime.is_main and run.takes_last:
        publish(folder, run.model.state_dict(), {**card, "step": stepper.step, "metrics": record})
    runtime.barrier()
    return record


def _begin(run: TrainingRun, checkpoints: Checkpoints, card: dict[str, Any]) -> None:
    """Resume from the newest checkpoint, if there is one, and log what the run is about to do."""
    require_same_clips(run.loader, run.runtime)
    state = checkpoints.load_newest()
    if state is not None:
        _resume(run, state, card)
    require_same_folder(run.config.run.out, run.runtime, (run.stepper.step, run.loader.state_dict()))
    card["commits"] = sorted({*card.get("commits", [] if state is None else [UNKNOWN]), commit() or UNKNOWN})
    if run.runtime.is_main:
        if run.stepper.step < run.stepper.total_steps:
            withdraw(run.config.run.out)
        write_config(run.config.run.out, run.config)
        for line in run.plan():
            log.info("%s", line)
        warn_of_rates(run)
    run.runtime.barrier()


def warn_of_rates(run: TrainingRun) -> None:
    """Warn where the schedule is not what the settings suggest."""
    given, used, clips = run.config.optim, run.stepper.optim, math.prod(run.stepper.per_step.values())
    if not given.base_lr and given.lr_batch not in (0, clips):
        log.warning(
            "optim.lr %g belongs to %d clips per step, this run has %d; scale it with --optim.base-lr %g, or keep it with "
            "--optim.lr-batch %d", given.lr, given.lr_batch, clips, given.lr * 256 / given.lr_batch, clips,
        )
    if run.stepper.total_steps == 1 and used.warmup_epochs:
        log.warning("the run's only step has rate 0, nothing is learned; set more --run.epochs or a smaller --run.batch-size")
    if not given.warmup_share and given.warmup_epochs != used.warmup_epochs:
        text = "optim.warmup_epochs %g is not below run.epochs %d: the warm-up takes %g epochs; set --optim.warmup-share"
        log.warning(text, given.warmup_epochs, run.config.run.epochs, used.warmup_epochs)


def _resume(run: TrainingRun, state: dict[str, Any], card: dict[str, Any]) -> None:
    """Load a checkpoint; the card takes over how its run began, and notes what has changed since.

    Raises UserError, which names the settings that differ, if it was made from other data or with settings that lead to other
    weights.
    """
    stepper, out, new = run.stepper, run.config.run.out, to_values(run.config)
    old = _settings(state, type(run.config)) or new
    fixed = _changes_refused(run.config, state.get("origin"), old, new)
    changes = ", ".join(fixed or changed_settings(old, new)) or "no setting differs"
    problem = (
        f"{out}: its checkpoint does not fit these settings ({changes}); choose another folder, or give the settings that the "
        "run began with"
    )
    if fixed:
        raise UserError(problem)
    try:
        _load(run, state)
        card.update(state.get("origin", {}))
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{problem} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    adjusted = changed_settings(old, new, (*TECHNICAL, *EVALUATION))
    place, epochs = f"{float(stepper.epochs):.2f}", run.config.run.epochs
    if stepper.epochs >= epochs and any(change.startswith("run.epochs ") for change in adjusted):
        raise UserError(f"{out} is at epoch {place} already, --run.epochs is {epochs} (it was {old['run']['epochs']}); choose "
                        f"more than {place} to go on")
    if text := "; ".join(filter(None, [stepper.change, *adjusted])):
        _note(card, stepper.step, text)
        log.warning("%s: continuing with other settings: %s; goes on at epoch %s of %d, the last step is now %d",
                    out, text, place, epochs, stepper.total_steps)
    if (version := state.get("version")) != __version__:
        text = _note(card, stepper.step, f"svdata2vec {version} -> {__version__}")
        log.warning("%s: %s; the run goes on where it was, but clips and masks may be drawn in another way (CHANGELOG.md)",
                    out, text)


def _changes_refused(
    config: PretrainConfig | FinetuneConfig, origin: Any, old: dict[str, Any], new: dict[str, Any]
) -> list[str]:
    """Changes that a run cannot continue with: of settings that must stay, or of the start that its `origin` names."""
    fixed = changed_settings(old, new, (*TECHNICAL, *EVALUATION, *ADJUSTABLE))
    began = origin if isinstance(origin, dict) else {}
    if config.model.init is not None and "initialised_from" not in began and not fixed:
        fixed = [f"model.init None -> {config.model.init}"]  # the run is older than that setting
    source = getattr(config, "pretrained", None)
    return [*fixed, f"{source} has been replaced since"] if other_start(source, began) else fixed


def _load(run: TrainingRun, state: dict[str, Any]) -> None:
    for name, part in run.parts().items():
        if part is run.optimizer:
            load_optimizer(run.optimizer, state[name])
        elif name in state or name not in LATER_PARTS:
            part.load_state_dict(state[name])


def _note(card: dict[str, Any], step: int, change: str) -> str:
    """Add a change to the card's history; returns the sentence written there."""
    text = f"from step {step} on: {change}"
    card["history"] = [*(card.get("history") or []), text]
    return text


def _settings(state: dict[str, Any], kind: type[PretrainConfig | FinetuneConfig]) -> dict[str, Any]:
    """The settings that a checkpoint was written with; empty if it holds none that can be read.

    Settings that its version did not have take their defaults.
    """
    try:
        values = json.loads(state["config"])
    except (LookupError, TypeError, ValueError, RecursionError):
        return {}
    try:
        return to_values(from_dict(kind, with_todays_names(values), "its settings"))
    except UserError:  # some are unknown today, or out of today's ranges
        return values if isinstance(values, dict) else {}


def _save(checkpoints: Checkpoints, run: TrainingRun, card: dict[str, Any]) -> None:
    origin = {name: card[name] for name in ORIGIN if name in card}
    state = {name: part.state_dict() for name, part in run.parts().items()}
    if run.runtime.is_main:
        checkpoints.save(run.stepper.step, {"kind": run.config.kind, "config": to_json(run.config), "origin": origin, **state})
    run.runtime.barrier()


def epoch_batches(loader: ClipLoader) -> Generator[EpochBatch]:
    """Batches with their epoch, without end, from the loader's position on."""
    while True:
        epoch = loader.epoch
        for batch in loader:
            yield epoch, batch


def describe(stepper: Stepper, record: dict[str, float], steps: float, started: float) -> str:
    """One line for the terminal: progress, losses, speed, time left.

    Args:
        steps: how many the record covers.
        started: `time.perf_counter()` when training began.
    """
    names = ("loss", "accuracy", "val_top1", "val_mean_class", "target_std", "prediction_std", "grad_norm")
    shown = [f"{name} {record[name]:.4g}" for name in names if name in record]
    wait = record.get("seconds_data", 0.0) / max(record["seconds_total"], 1e-9)
    remaining = (stepper.total_steps - stepper.step) * record["seconds_total"] / steps
    return (
        f"step {stepper.step}/{stepper.total_steps} epoch {record['epoch']:.2f} {' '.join(shown)} lr {record['lr']:.2e} "
        f"{record['clips_per_second']:.1f} clips/s data wait {100 * wait:.0f} % "
        f"ETA {_clock(remaining)} elapsed {_clock(time.perf_counter() - started)}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
