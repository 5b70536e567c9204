"""`svdata2vec bench host`: what a clip costs the host that feeds a GPU, with a decoder that decodes nothing.

    svdata2vec bench host ntu60-xsub --data.shards data/ntu60 --out host.json      # under a minute

The loader's own reader, planner, checks and feeding run one after the other in this thread, timed by its processor clock:
waiting and sleeping do not count. Masks are those of a training step. Epoch after epoch, page cache warm. The figure is the
whole cost on one thread, whose inverse is the most that it can feed; beside it are what is left to the training process where
reader processes read, and what they take. Clips in blocks are put into slabs and their uploads started as for a GPU. Not
included: what a driver takes to start a copy, one per clip, and changes of pixels (`data.augment`), drawn but left to the GPU.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psutil

from svdata2vec.bench.config import HostConfig
from svdata2vec.bench.limits import mean_taken
from svdata2vec.bench.machine import cpu_seconds, quantiles
from svdata2vec.bench.output import deliver
from svdata2vec.bench.start import open_preset_shards, setting
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.student import frames_seen
from svdata2vec.pipeline.blockupload import BlockUploader
from svdata2vec.pipeline.decoders import FrameDecoder
from svdata2vec.pipeline.frames import changed
from svdata2vec.pipeline.graph import InputOnlyDecoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.producer import Producer, Read
from svdata2vec.runs.provenance import hardware, head
from svdata2vec.runs.runtime import running
from svdata2vec.runs.stopping import TERMINATED_EXIT_CODE, stoppable
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

FORMAT, VERSION = "svdata2vec-bench-host", 2
PARTS = ("read", "feed", "batch", "masks")
WARM_UP = 3  # batches


@stoppable(TERMINATED_EXIT_CODE)
def bench_host(config: HostConfig) -> dict[str, Any]:
    """Measure, print the table, write the file; returns the record."""
    require_writable(config.out)
    shards = open_preset_shards(config, "bench host measures one process")
    if not shards.manifest.by_frame:
        raise UserError(f"{shards.where}: codec {shards.manifest.codec}; bench host measures jpeg and blocks only")
    if config.run.device not in ("auto", "cpu"):
        raise UserError(f"--run.device {config.run.device}: bench host measures the host alone, without a GPU; leave it out")
    with running(replace(config.run, device="cpu")) as runtime:
        rows = [measure(config, shards, batch, readers) for batch in config.batches for readers in config.readers]
        setup = setting(config, runtime, shards) | {"batches": list(config.batches), "rounds": config.rounds}
        setup["pixels_left_out"] = config.data.augment.changes_pixels
    shown = min(rows, key=lambda row: (row["readers"], row["batch_size"]))
    beside = min((row for row in rows if row["readers"]), key=lambda row: (row["batch_size"], row["readers"]), default=None)
    record = {
        **head(FORMAT, VERSION), "machine": hardware(runtime.device), "setting": setup, "rows": rows,
        "host_ms_per_clip": shown["ms_per_clip"] + shown["reader_ms_per_clip"],
        "training_process_ms_per_clip": None if beside is None else beside["ms_per_clip"],
    }
    deliver(record, as_table(record), config.out)
    return record


def measure(config: HostConfig, shards: ShardSet, batch: int, readers: int) -> dict[str, Any]:
    """One row: milliseconds per clip of this thread, by part, and of the reader processes."""
    split = shards.rows(config.data.train_split)
    entries = math.ceil(max(len(split), batch) / min((1, *config.data.weights)))  # a small set's clips several times
    with FeedingLoader(
        shards, config.data.train_split, config.data.plan(config.model.persons), batch_size=batch, train=True,
        seed=config.run.seed, num_readers=readers, prefetch=config.data.prefetch, decoder="reference",
        limit=np.resize(split, entries),
        seen=frames_seen(config),
    ) as loader:
        producer = loader.make_producer()
        steps = steps_of(producer, config)
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(WARM_UP):
            next(steps)
        before, clips = _children_seconds(), 0
        for _ in range(config.rounds):
            for part, seconds in next(steps).items():
                times[part].append(1e3 * seconds / batch)
            clips += batch
        others = 1e3 * (_children_seconds() - before) / clips
        producer.close()
    total = [sum(parts) for parts in zip(*times.values(), strict=True)]
    median, low, high = quantiles(total)
    return {
        "batch_size": batch, "readers": readers, "ms_per_clip": median, "q20": low, "q80": high,
        "parts": {part: statistics.median(values) for part, values in times.items()},
        "parts_q20_q80": {part: quantiles(values)[1:] for part, values in times.items()}, "reader_ms_per_clip": others,
        "bytes_per_clip": mean_taken(shards, split, shards.index["size"][split].sum(axis=1, dtype="int64")),
    }


class FeedingLoader(ClipLoader):
    """A loader whose decoder takes its input and decodes nothing."""

    def new_decoder(self) -> FrameDecoder:
        form = self.shards.manifest.blocks
        if form is None:
            return InputOnlyDecoder(self.plan.size)
        return BlockUploader(form, "meta")  # starts the copies that a GPU would make out of page-locked memory


def pixels_left_alone(reads: Iterable[Read]) -> Generator[Read]:
    """Clips without the pixel augmentation that was drawn for them, which a GPU would apply, not the CPU."""
    for read in reads:
        yield replace(read, clips=[changed(clip, augment=None) for clip in read.clips])


def steps_of(producer: Producer, config: HostConfig) -> Iterator[dict[str, float]]:
    """CPU seconds of this thread per part, batch after batch, without end."""
    lane, reads = producer.turns.lanes[0], producer.read(0, 0)
    if config.data.augment.changes_pixels:
        reads = pixels_left_alone(reads)
    while True:
        marks = [time.thread_time()]
        read = next(reads)
        marks.append(time.thread_time())
        decoded = producer.decode_step(lane, read)
        marks.append(time.thread_time())
        batch = producer.batch(read, decoded, lane)
        marks.append(time.thread_time())
        assert batch is not None
        draw_masks(batch.keys, config.data.num_frames, config.mask, config.run.seed, read.epoch)
        marks.append(time.thread_time())
        yield dict(zip(PARTS, np.diff(marks).tolist(), strict=True))


def _children_seconds() -> float:
    """CPU seconds of this process's children."""
    return sum(cpu_seconds(child.pid) for child in psutil.Process().children())


def as_table(record: dict[str, Any]) -> str:
    """The record for a terminal; its last line is the host's whole cost, on one thread where that was measured."""
    lines = ["Nothing is decoded: the decoder takes its input and gives none. Processor ms per clip."]
    if record["setting"]["pixels_left_out"]:
        lines.append("Changes of pixels are drawn and not carried out: a GPU does that; what starting it takes is not in here.")
    lines.append("")
    lines.append(f"{'batch':>6s}{'readers':>9s}{'host':>8s}{'20-80 %':>18s}" + "".join(f"{part:>8s}" for part in PARTS)
                 + f"{'in readers':>12s}")
    for row in record["rows"]:
        spread = f"{row['q20']:.3f} to {row['q80']:.3f}"
        lines.append(
            f"{row['batch_size']:>6d}{row['readers']:>9d}{row['ms_per_clip']:>8.3f}{spread:>18s}"
            + "".join(f"{row['parts'][part]:>8.3f}" for part in PARTS) + f"{row['reader_ms_per_clip']:>12.3f}"
        )
    beside = record["training_process_ms_per_clip"]
    if beside is not None:
        lines.append(f"training process beside reader processes: {beside:.3f} ms per clip")
    return "\n".join([*lines, f"host: {record['host_ms_per_clip']:.3f} ms per clip", ""])
