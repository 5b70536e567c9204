"""`svdata2vec bench batch PRESET`: which batch size is fast enough, and which is the largest that fits into memory.

    svdata2vec bench batch ntu60-xsub --data.shards data/ntu60 --out batch.json

The training step runs on a batch in memory, each size in a process of its own (`batch_worker.py`). On a GPU a size
that does not fit ends with PyTorch's error. On a CPU memory must not run out: a size whose memory, extrapolated from
smaller ones, exceeds the limit is not run, and a process that exceeds it anyway is killed. The search itself
(`batch_search.py`) does not depend on any of this.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from svdata2vec.bench.batch_search import Trial, bytes_per_clip, expected_peak, recommend, search
from svdata2vec.bench.config import BatchConfig
from svdata2vec.bench.machine import available_bytes, resident_bytes
from svdata2vec.bench.output import deliver
from svdata2vec.bench.record import where_and_what
from svdata2vec.bench.start import open_preset_shards, worker
from svdata2vec.pipeline.blockupload import BlockUploader
from svdata2vec.pipeline.decoders import FrameDecoder
from svdata2vec.pipeline.handover import LANES_ON_GPU
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.provenance import head
from svdata2vec.runs.runtime import Runtime, pick_device
from svdata2vec.runs.stopping import TERMINATED_EXIT_CODE, stoppable
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)

FORMAT = "svdata2vec-bench-batch"
VERSION = 1
CLIPS_IN_MEMORY = 16  # a larger batch repeats them
WATCH_SECONDS = 0.02


@stoppable(TERMINATED_EXIT_CODE)
def bench_batch(config: BatchConfig) -> dict[str, Any]:
    """Search, print the table, write the file; returns the record. UserError if not even the smallest size fits."""
    require_writable(config.out)
    unweighted = replace(config, data=replace(config.data, weights=()))  # a few clips are no epoch of weighted sets
    shards = open_preset_shards(unweighted, "bench batch measures one process")
    gpu = pick_device(config.run.device).type == "cuda"
    with tempfile.TemporaryDirectory(prefix="svdata2vec-batch-") as folder:
        clips = Path(folder) / "clips.pt"
        clip_bytes = save_clips(config, shards, clips, gpu=gpu)
        sizes = Sizes(config, clips, None if gpu else machine_limit(config), clip_bytes)
        search(sizes.try_size, config.largest, gpu, config.smallest())
    record = make_record(config, sizes)
    deliver(record, as_table(record), config.out)
    return record


def machine_limit(config: BatchConfig) -> int:
    """Bytes of this machine's memory that a step on its CPU may take; the log says so."""
    free = available_bytes()
    limit = config.limit_bytes(free, gpu=False)
    log.info("a step may take %.2f GiB, of the machine's memory %.2f GiB are free; the search ends there (--memory-share, "
             "--memory-limit-gib)", limit / 2**30, free / 2**30)
    return limit


class UndecodedLoader(ClipLoader):
    """A loader that leaves clips in blocks as a GPU's step takes them."""

    def new_decoder(self) -> FrameDecoder:
        form = self.shards.manifest.blocks
        return super().new_decoder() if form is None else BlockUploader(form, self.device)


def save_clips(config: BatchConfig, shards: ShardSet, path: Path, *, gpu: bool) -> int:
    """Save a few clips of the preset as the step takes them; returns the bytes of one clip's video.

    They are decoded on the CPU: the GPU's memory stays free for what is measured.
    """
    rows = shards.rows(config.data.train_split)[:CLIPS_IN_MEMORY]
    config = replace(config, run=replace(config.run, batch_size=max(len(rows), config.smallest())))
    here = Runtime(torch.device("cpu"), 0, 1, bf16=False)
    loader_class = UndecodedLoader if gpu else ClipLoader
    with build_loader(shards, config, here, train=True, rows=rows, loader_class=loader_class) as loader:
        batch = next(iter(loader))
    assert batch.video_BTHWC is not None
    torch.save({"video": batch.video_BTHWC, "joints": batch.joints_BMTVC, "label": batch.label_B, "keys": batch.keys}, path)
    return batch.video_BTHWC.nbytes // len(batch)


@dataclass
class Sizes:
    """Tries sizes one after the other and keeps what their workers measured.

    limit_bytes: memory that a step may take; None on a GPU, where the first worker says how much there is. clip_bytes: of
    a clip's video.
    """

    config: BatchConfig
    clips: Path
    limit_bytes: int | None
    clip_bytes: int
    trials: list[Trial] = field(default_factory=list)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    def try_size(self, size: int) -> Trial:
        """Run the size in a process of its own, unless its memory is known to be too much."""
        self.trials.append(self._try(size))
        log.info("batch %d: %s", size, describe(self.trials[-1]))
        return self.trials[-1]

    def _try(self, size: int) -> Trial:
        if self.limit_bytes is not None:
            expected = expected_peak(self.trials, size)
            if expected is not None and expected > self.limit_bytes:
                return Trial(size, False, expected, ran=False, reason="not run: expected to exceed the limit")
        answer, peak = run_size(self.config, size, self.clips, self.limit_bytes)
        if answer is None:
            return Trial(size, False, peak, reason="ended: exceeded the limit")
        self.answers[size] = answer
        if not answer["fits"]:
            return Trial(size, False, answer["peak_bytes"], reason="out of memory")
        return Trial(size, True, answer["peak_bytes"], answer["base_bytes"], answer["timing"]["clips_per_s"])


def run_size(config: BatchConfig, size: int, clips: Path, limit_bytes: int | None) -> tuple[dict[str, Any] | None, int]:
    """What the worker measured, or None if it was killed for its memory; and the most memory that it was seen to hold."""
    with worker("batch_worker", config, str(size), str(clips)) as (process, answer):
        ended, peak = watch(process.poll, lambda: resident_bytes(process.pid), limit_bytes, process.kill)
        if ended or process.wait() == -9:  # by the limit here, or by the system when memory ran out
            return None, peak
        return answer(f"bench batch: batch size {size}"), peak


def watch(
    poll: Callable[[], int | None], resident: Callable[[], int], limit_bytes: int | None, kill: Callable[[], None]
) -> tuple[bool, int]:
    """Wait for a process, and kill it as soon as it holds more than the limit. Returns (was it killed, most bytes seen)."""
    peak = 0
    while poll() is None:
        peak = max(peak, resident())
        if limit_bytes is not None and peak > limit_bytes:
            kill()
            return True, peak
        time.sleep(WATCH_SECONDS)
    return False, peak


def make_record(config: BatchConfig, sizes: Sizes) -> dict[str, Any]:
    """What goes into the JSON. UserError if nothing fits."""
    trials = sizes.trials
    found, first = recommend(trials), next(iter(sizes.answers.values()), None)
    limit = sizes.limit_bytes or (first["limit_bytes"] if first else 0)
    if found is None or first is None:
        room = "raise --memory-limit-gib" if config.memory_limit_gib else "free some memory, raise --memory-share"
        raise UserError(
            f"bench batch: a batch of {trials[-1].size} takes {memory_text(asdict(trials[-1]))} GiB, the limit is "
            f"{limit / 2**30:.2f} GiB; {room}, or take --model.checkpoint-activations, fewer --data.num-frames"
        )
    timings = {size: answer["timing"] for size, answer in sizes.answers.items()}
    setting = {**first["setting"], "rounds": config.rounds, "seconds": config.seconds,
               "memory_share": config.share(gpu=sizes.limit_bytes is None)}
    del setting["batch_size"]  # what is looked for
    lanes = LANES_ON_GPU if sizes.limit_bytes is None else 1  # each may hold a batch besides those in the queue
    return {
        **head(FORMAT, VERSION), "machine": first["machine"], "setting": setting, "limit_bytes": limit,
        "trials": [{**asdict(trial), "timing": timings.get(trial.size)} for trial in sorted(trials, key=lambda t: t.size)],
        "bytes_per_clip": bytes_per_clip(trials), **asdict(found), "preset_batch_size": config.run.batch_size,
        "loader_bytes_per_clip": (config.data.prefetch + lanes) * sizes.clip_bytes,
        "lr": config.optim.lr, "lr_batch": 0 if config.optim.base_lr else config.optim.lr_batch,
    }


def memory_text(trial: dict[str, Any]) -> str:
    """A trial's memory in GiB; only a lower bound if it had to be killed."""
    ended = trial["ran"] and not trial["fits"]
    return f"{'more than ' if ended else ''}{trial['peak_bytes'] / 2**30:.2f}"


def describe(trial: Trial) -> str:
    """A size in a few words."""
    memory = f"{memory_text(asdict(trial))} GiB"
    return f"{trial.clips_per_s:.1f} clips/s, {memory}" if trial.fits else f"{memory}; {trial.reason}"


def as_table(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    lines = [
        f"{where_and_what(record)}; limit {record['limit_bytes'] / 2**30:.2f} GiB",
        "",
        f"{'batch':>6s}{'clips/s':>10s}{'20-80 %':>20s}{'peak, GiB':>16s}",
    ]
    for row in record["trials"]:
        peak = memory_text(row)
        if row["fits"]:
            spread = f"{row['timing']['q20']:.1f} to {row['timing']['q80']:.1f}"
            lines.append(f"{row['size']:6d}{row['clips_per_s']:10.1f}{spread:>20s}{peak:>16s}")
        else:
            lines.append(f"{row['size']:6d}{'':30s}{peak:>16s}  {row['reason']}")
    return "\n".join([*lines, "", *closing(record), ""])


def closing(record: dict[str, Any]) -> list[str]:
    """The recommendation, in words."""
    rates = {row["size"]: row["clips_per_s"] for row in record["trials"]}
    chosen, fastest = record["recommended"], record["fastest"]
    share = 100 * rates[chosen] / rates[fastest]
    lines = [
        f"take --run.batch-size {chosen}: {share:.0f} % of the best rate ({rates[fastest]:.1f} clips/s at {fastest}), the "
        f"smallest that comes near it; the largest tried that fits is {record['largest']}"
    ]
    if (record["bytes_per_clip"] or 0) > 0:  # of few clips it may drown in the difference between two processes
        waiting = record["loader_bytes_per_clip"] / 2**20
        lines.append(
            f"a clip more takes {record['bytes_per_clip'] / 2**20:.1f} MiB in the step; the loader's waiting batches take "
            f"another {waiting:.1f} MiB per clip"
        )
    if record["lr_batch"] not in (0, chosen):
        lines.append(
            f"--optim.lr {record['lr']:g} belongs to {record['lr_batch']} clips per optimizer step, of all processes and "
            f"--optim.accumulate together; for another number scale it with "
            f"--optim.base-lr {record['lr'] * 256 / record['lr_batch']:g}"
        )
    return lines
