"""`svdata2vec bench data`: our loader in three steps (read, + decode, + geometry) against what one would use instead.

    svdata2vec bench data --out bench_data.json         # table, JSON and chart, seven minutes on two idle cores

The same clips for all: 100 frames of 960x540 H.264, 40 frames sampled, 224x224 crops, two threads or two
workers, one thread per decoder. All 40 are decoded, as for fine-tuning; in the row "pretraining" those that its masks let a
network see, which the other ways cannot tell. Every (method, round) is a fresh process; methods take turns; medians over
rounds. Outputs are compared before anything is timed. decord and torchcodec take part where they can be imported. On a machine
that does other work too, CPU time per clip is the figure to read.

Rates and CPU time are those of the steady state. Each method first delivers as many clips as any other, which do not
count: processes and threads start, and memory is fetched from the system for the first time. What those cost has a column
of its own.
"""

import json
import logging
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdata2vec.bench import data_methods as methods
from svdata2vec.bench.config import DataBenchOptions
from svdata2vec.bench.data_sources import CODECS, make_sources, packed, write_source_tars_once
from svdata2vec.bench.machine import tree_usage
from svdata2vec.bench.output import deliver
from svdata2vec.bench.start import broken, environment
from svdata2vec.bench.tune import tune
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import psnr
from svdata2vec.pipeline.sampling import draw_frames_original
from svdata2vec.pipeline.video import frames_of
from svdata2vec.runs.cores import MOST_THREADS, cpu_name
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.provenance import machine, versions
from svdata2vec.runs.stopping import TERMINATED_EXIT_CODE, stoppable
from svdata2vec.shards.annotations import DataSet
from svdata2vec.shards.atomic import beside, require_writable
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)

WARM_UP_CLIPS = 48  # until a heap that keeps what is freed has room for every batch
LOOK_SECONDS = 1.0  # a look at the memory costs milliseconds
MIN_PSNR_DB = 33.0
REFERENCE = "original style, decord"
FULL_COLOUR = "ours, jpeg 4:4:4"
OPTIONAL = {  # way -> module that it needs, and how it decodes
    REFERENCE: ("decord", methods.decode_decord),
    "original style, torchcodec": ("torchcodec.decoders", methods.decode_torchcodec),
}


Method = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class Sources:
    """The benchmark's clips in its folder; made, and packed, when they are first asked for."""

    folder: Path
    count: int

    @cached_property
    def dataset(self) -> DataSet:
        return make_sources(self.folder / "source", self.count)

    def shards(self, codec: str, **options: str) -> ShardSet:
        return packed(self.folder, self.dataset, codec, **options)


def method_table() -> dict[str, Callable[[Sources], Method]]:
    """The loaders, by the names of the report."""
    table = {
        "ours, jpeg: read only": _over_shards(methods.ours_read_only, "jpeg"),
        "ours, jpeg: + decode": _over_shards(methods.ours_decode, "jpeg"),
        "ours, jpeg": _over_shards(methods.ours, "jpeg"),
        "ours, jpeg, pretraining": _over_shards(partial(methods.ours, seen=methods.SEEN), "jpeg"),
        FULL_COLOUR: _over_shards(methods.ours, "jpeg", chroma="444"),
        "ours, blocks": _over_shards(methods.ours, "blocks"),
        "ours, vp9: + decode": _over_shards(methods.ours_decode, "vp9"),
        "ours, vp9": _over_shards(methods.ours, "vp9"),
        "ours, h264": _over_shards(methods.ours, "h264"),
        "original style, pyav": _over_sources(methods.decode_pyav),
        "original style, pyav, uint8": _over_sources(methods.decode_pyav, normalise=False),
        "plain webdataset + pyav": _over_tars,
    }
    if torch.cuda.is_available():  # nvJPEG and NVDEC; goal: 1000 clips/s on an H200
        table |= {f"ours, {codec}, GPU": partial(_on_gpu, codec=codec) for codec in CODECS}
    table |= {name: _over_sources(decode) for name, (_, decode) in OPTIONAL.items()}
    return table


def _over_shards(loader: Callable[[ShardSet], Iterator[int]], codec: str, **options: str) -> Callable[[Sources], Method]:
    return lambda sources: partial(loader, sources.shards(codec, **options))


def _over_sources(decode: methods.DecodeFrames, normalise: bool = True) -> Callable[[Sources], Method]:
    return lambda sources: partial(methods.source_clips, sources.dataset, decode, normalise=normalise)


def _over_tars(sources: Sources) -> Method:
    return partial(methods.plain_webdataset, write_source_tars_once(sources.dataset, sources.folder))


def _on_gpu(sources: Sources, codec: str) -> Method:
    threads = min(job_cores(), MOST_THREADS)
    return partial(methods.ours, sources.shards(codec), device="cuda", batch_size=min(32, sources.count), threads=threads)


def leave_out_lacking(table: dict[str, Any]) -> None:
    """Drop the methods whose module cannot be imported, and log why."""
    for name in OPTIONAL:
        why = lacking(name)
        if why is not None:
            log.warning("left out: %s (%s)", name, why)
            del table[name]


def lacking(name: str) -> str | None:
    """Why the module of a way cannot be imported, tried in a process of its own; None if it can, or the way needs none."""
    if name not in OPTIONAL:
        return None
    tried = subprocess.run(
        [sys.executable, "-c", f"import {OPTIONAL[name][0]}"], capture_output=True, text=True, errors="replace", check=False
    )
    errors = re.findall(r"^\w*(?:Error|Exception)\b.*", tried.stderr, re.MULTILINE)
    return None if tried.returncode == 0 else errors[-1] if errors else f"its import ended with status {tried.returncode}"


def measure(method: Method, num_clips: int) -> dict[str, float]:
    """One run in this process: the first clips, start-up included, then the steady state."""
    (began, _), batches = tree_usage(), method()
    warm = 0
    while warm < WARM_UP_CLIPS:
        warm += next(batches)
    _await_gpu()
    clips, peak, started, (cpu_before, _) = 0, 0, time.perf_counter(), tree_usage()
    next_look = started + LOOK_SECONDS
    for count in batches:
        clips += count
        if clips >= num_clips:
            break
        if time.perf_counter() > next_look:
            peak, next_look = max(peak, tree_usage()[1]), time.perf_counter() + LOOK_SECONDS
    _await_gpu()
    seconds, (cpu_after, last) = time.perf_counter() - started, tree_usage()
    return {
        "clips_per_s": clips / seconds, "cpu_ms_per_clip": 1e3 * (cpu_after - cpu_before) / clips,
        "first_cpu_ms_per_clip": 1e3 * (cpu_before - began) / warm, "rss_mb": max(peak, last) / 2**20,
    }


def _await_gpu() -> None:
    """Wait for the GPU, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def check_outputs(sources: Sources) -> dict[str, float]:
    """PSNR of our evaluation frames against the original chain; RunFailedError if one is below 33 dB."""
    clip = sources.dataset.clips[0]
    assert clip.pose_MTVC is not None
    frames_T = draw_frames_original(40, clip.pose_MTVC.shape[1])
    pictures = methods.decode_pyav(str(clip.video), frames_T)
    wanted = methods.original_chain(pictures, clip.pose_MTVC[:, frames_T], np.random.default_rng(0), train=False)
    found = {}
    for codec in CODECS:
        shards = sources.shards(codec)
        rows = shards.find([clip.key])
        with ClipLoader(shards, "all", PlanConfig(frame_draw="original"), batch_size=1, train=False, limit=rows) as loader:
            video = next(iter(loader)).video_BTHWC
        assert video is not None
        found[codec] = psnr(frames_of(video)[0], wanted)
    bad = {codec: value for codec, value in found.items() if value < MIN_PSNR_DB}
    if bad:
        raise RunFailedError(f"frames differ from the original chain: PSNR {bad}, expected {MIN_PSNR_DB} dB or more")
    return found


def clip_bytes(sources: Sources) -> dict[str, int]:
    """Mean bytes of a clip: the source file, and packed with everything that belongs to it."""
    source = round(statistics.mean(Path(clip.video).stat().st_size for clip in sources.dataset.clips))
    sizes = {codec: round(float(sources.shards(codec).index["size"].sum(axis=1).mean())) for codec in CODECS}
    return {"source 960x540 H.264": source, **sizes}


def run(sources: Sources, num_clips: int, rounds: int) -> dict[str, Any]:
    """The whole benchmark; returns what goes into the JSON."""
    table = method_table()
    leave_out_lacking(table)
    for way in table.values():
        way(sources)  # its shards are made here, so that no measuring process packs
    likeness = check_outputs(sources)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in table}
    for _ in range(rounds):
        for name in table:
            command = [sys.executable, "-m", "svdata2vec", "bench", "data", "--folder", str(sources.folder), "--clips",
                       str(num_clips), "--sources", str(sources.count), "--method", name]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment(threads=1))
            if result.returncode:
                raise broken(f"bench data: {name}", result.returncode)
            runs[name].append(json.loads(result.stdout.splitlines()[-1]))
            log.info("%s: %s", name, runs[name][-1])
    rows: dict[str, dict[str, Any]] = {
        name: {key: statistics.median(r[key] for r in found) for key in found[0]} for name, found in runs.items()
    }
    for name, row in rows.items():
        row["cpu_ms_of_rounds"] = [found["cpu_ms_per_clip"] for found in runs[name]]
    where, gpu = machine(), torch.cuda.get_device_name() if torch.cuda.is_available() else None  # some ways run on one
    return {
        "machine": {"cpu": cpu_name(), "cores": where["cores"], "python": versions()["python"], "gpu": gpu},
        "load_average": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"), "commit": where["commit"],
        "rounds": rounds, "first_clips": WARM_UP_CLIPS, "clips_per_round": num_clips,
        "frames_sampled": 40, "frames_seen_in_pretraining": methods.SEEN.mean,
        "bytes_per_clip": clip_bytes(sources), "psnr_db_against_original_chain": likeness, "methods": rows,
    }


def as_table(result: dict) -> str:
    """Markdown, least CPU time first; the last column is CPU time relative to the original style."""
    rows = result["methods"]
    reference = rows.get(REFERENCE) or rows["original style, pyav"]
    head = (
        f"| loader | CPU ms/clip | clips/s | CPU ms/clip of the first {WARM_UP_CLIPS} | RSS MB | times the original style, per "
        "core |"
    )
    lines = [head, "|" + "---|" * 6]
    for name, row in sorted(rows.items(), key=lambda entry: entry[1]["cpu_ms_per_clip"]):
        ratio = reference["cpu_ms_per_clip"] / row["cpu_ms_per_clip"]
        lines.append(
            f"| {name} | {row['cpu_ms_per_clip']:.1f} | {row['clips_per_s']:.1f} "
            f"| {row['first_cpu_ms_per_clip']:.1f} | {row['rss_mb']:.0f} | {ratio:.1f} |"
        )
    return "\n".join(lines)


@stoppable(TERMINATED_EXIT_CODE)
def bench_data(options: DataBenchOptions) -> None:
    """Run the benchmark; the table goes to standard output."""
    if options.tune:
        tune(options)
        return
    sources = Sources(options.folder, options.sources)
    if options.method is not None:
        table = method_table()
        if options.method not in table:
            raise UserError(f"unknown method {options.method!r}; choose one of: {'; '.join(table)}")
        if (why := lacking(options.method)) is not None:
            raise UserError(f"{options.method}: cannot be measured here ({why})")
        sys.stdout.write(json.dumps(measure(table[options.method](sources), options.clips)) + "\n")
        sys.stdout.flush()
        os._exit(0)  # workers may still prefetch; nothing is left to be saved
    require_writable(options.out, ".png")
    result = run(sources, options.clips, options.rounds)
    deliver(result, as_table(result) + "\n", options.out)
    if options.out is not None:
        from svdata2vec.bench.page import data_chart  # brings matplotlib, which is not to count as the loaders' memory
        from svdata2vec.reports.html_page import save_figure

        save_figure(data_chart(result), beside(options.out, ".png"))
