"""`svdata2vec bench run PRESET`: how fast each stage of pretraining is on this machine, what bounds it, what to change.

    svdata2vec bench run demo --out bench.json       # table; JSON, a plot and a page beside it

Stages: read (storage, parsing, plans), decode (clips in memory), data (the loader), model (the training step on a batch in
memory), train (everything). Limits are counted from shapes and measured on the same device (`bench_counts.py`,
`bench_limits.py`).
"""

import json
import logging
import os
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from svdata2vec import __version__
from svdata2vec.bench.counts import clip_bytes, forward_macs, step_bytes, step_flops, step_layers
from svdata2vec.bench.limits import copy_bytes_per_second, matmul_flops_per_second, storage_bytes_per_second
from svdata2vec.bench.record import FORMAT, VERSION, as_table, doubts
from svdata2vec.bench.stages import Timing, open_stages, time_stages
from svdata2vec.bench.verdict import Rates, Surroundings, as_dict, judge
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchConfig(PretrainConfig):
    """A pretraining preset, and how to measure it. Nothing of the run itself is written."""

    out: Path | None = None
    """JSON file to write; a plot (.png) and a page (.html) are written beside it."""
    rounds: int = 5
    """Rounds; the stages take turns in each, medians over rounds are reported."""
    seconds: float = 2.0
    """Seconds per stage and round, warm-up not counted."""
    baseline: Literal["none", "original-style"] = "none"
    """Also measure, in the same run, training as the authors' code does it: all frames encoded, fp32, a wait in each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.seconds <= 0:
            raise UserError(f"rounds is {self.rounds}, seconds is {self.seconds}; expected at least 1 round of more than 0 s")
        if self.optim.accumulate != 1:
            raise UserError("optim.accumulate: a benchmark's step takes one batch; leave it at 1")


def bench_config(preset: PretrainConfig) -> BenchConfig:
    """The preset with the benchmark's own settings."""
    return BenchConfig(**{field.name: getattr(preset, field.name) for field in fields(PretrainConfig)})


def bench_run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print the table, write the files; returns the record."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("bench run measures one process; start it without torchrun")
    shards = open_preset_shards(config)
    with running(config.run) as runtime:
        record = measure(config, runtime, shards)
    sys.stdout.write(as_table(record))
    if config.out is not None:
        from svdata2vec.bench.page import write_page
        from svdata2vec.bench.plot import plot

        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(record, indent=1) + "\n")
        plot(record, config.out.with_suffix(".png"))
        write_page(record, config.out.with_suffix(".html"))
    return record


def open_preset_shards(config: PretrainConfig) -> ShardSet:
    """The preset's shards; where there are none, the error says how to get some."""
    try:
        return open_shards(config.data.shards)
    except UserError as error:
        raise UserError(
            f"{error}. `bash tools/demo.sh` makes the demo's shards, `svdata2vec shard` packs a data set, "
            "--data.shards FOLDER names others"
        ) from error


def measure(config: BenchConfig, runtime: Runtime, shards: ShardSet) -> dict[str, Any]:
    """The whole benchmark; returns what goes into the JSON."""
    device = runtime.device
    baseline = config.baseline == "original-style"
    with open_stages(config, runtime, shards, baseline=baseline) as (stages, difference):
        log.info("%d rounds of %s, %.0f s each", config.rounds, ", ".join(stages), config.seconds)
        drained = 2 * config.data.prefetch + 2  # what the loader had prepared while others were timed

        def warm_up(name: str) -> int:
            return drained if name == "data" or name.endswith("train") else 2

        timings = time_stages(stages, device, config.rounds, config.seconds, warm_up)
        ceilings = measure_ceilings(device, shards, runtime.bf16)
    counts = count(config, runtime, shards)
    rates = Rates(**{field.name: timings[field.name].median for field in fields(Rates)})
    wait = timings["train"].parts["data"] / timings["train"].parts["total"]
    where = Surroundings(device.type, os.cpu_count() or 1, shards.manifest.codec, runtime.bf16)
    return {
        "format": FORMAT, "version": VERSION, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(device),
        "setting": {**setting(config, runtime, shards), "rounds": config.rounds, "seconds": config.seconds},
        "stages": {name: timing.as_dict() for name, timing in timings.items()},
        "counts": counts, "ceilings": ceilings,
        "roofline": roofline(rates, counts, ceilings),
        "mfu": counts["flops_per_clip"] * rates.train / ceilings["matmul_flops_per_s"],
        "mfu_model": counts["flops_per_clip"] * rates.model / ceilings["matmul_flops_per_s"],
        "train_share_of_model": rates.train / rates.model,
        "data_wait_share": wait,
        "waterfall_ms_per_clip": waterfall(timings),
        "peak_memory_bytes": peak_memory(timings),
        "verdict": as_dict(judge(rates, wait, config, where)),
        "doubts": doubts({name: timing.as_dict() for name, timing in timings.items()}),
        "baseline": compare_baseline(timings, difference),
    }


def measure_ceilings(device: torch.device, shards: ShardSet, bf16: bool) -> dict[str, Any]:
    """Bytes and FLOP per second that this device and disk reach at best."""
    single, half = (matmul_flops_per_second(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    return {
        "copy_bytes_per_s": copy_bytes_per_second(device),
        "matmul_fp32_flops_per_s": single, "matmul_bf16_flops_per_s": half,
        "matmul_flops_per_s": half if bf16 else single,
        "storage_bytes_per_s": storage_bytes_per_second(shards),
    }


def count(config: PretrainConfig, runtime: Runtime, shards: ShardSet) -> dict[str, float]:
    """Work of a clip, from shapes and from the index."""
    layers = step_layers(config, len(shards.manifest.layout.joints))
    rows = shards.rows(config.data.train_split)
    return {
        "forward_macs_per_clip": forward_macs(layers, ("video", "skeleton", "encoder", "decoder")),
        "flops_per_clip": step_flops(layers),
        "step_bytes_per_clip": step_bytes(layers, config, 2 if runtime.bf16 else 4),
        "stored_bytes_per_clip": float(shards.index["size"][rows].sum(axis=1, dtype="int64").mean()),
        "decoded_bytes_per_clip": clip_bytes(config),
    }


def roofline(rates: Rates, counts: dict[str, float], ceilings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per stage: the limit in clips/s, where it comes from, and the share of it that is reached.

    Reading is set against the tars read in order, loading against its slower half, the model against the slower of its
    multiply-adds and its bytes, training against the slower of loader and model.
    """
    compute = ceilings["matmul_flops_per_s"] / counts["flops_per_clip"]
    memory = ceilings["copy_bytes_per_s"] / counts["step_bytes_per_clip"]
    storage = ceilings["storage_bytes_per_s"]
    limits: dict[str, tuple[float | None, str]] = {
        "read": (storage and storage / counts["stored_bytes_per_clip"], "tars read in order"),
        "decode": (ceilings["copy_bytes_per_s"] / (2 * counts["decoded_bytes_per_clip"]), "frames copied once"),
        "data": min((rates.read, "read alone"), (rates.decode, "decode alone")),
        "model": min((compute, "matrix products"), (memory, "memory traffic")),
        "train": min((rates.data, "data alone"), (rates.model, "model alone")),
    }
    return {
        name: {"limit_clips_per_s": limit, "limited_by": source,
               "efficiency": getattr(rates, name) / limit if limit else None}
        for name, (limit, source) in limits.items()
    }


def waterfall(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Milliseconds per clip: of the step, part by part; and of the loader's halves, which run beside it."""
    train = timings["train"]
    parts = {name: 1e3 * value / train.clips for name, value in train.parts.items() if name != "total"}
    parts["other"] = max(1e3 * train.parts["total"] / train.clips - sum(parts.values()), 0.0)
    beside = {name: 1e3 / timings[name].median for name in ("read", "decode")}
    return {"step": parts, "beside": beside}


def peak_memory(timings: dict[str, Timing]) -> dict[str, Any]:
    """Bytes: of the GPU per stage that trains, and of the process since its start."""
    gpu = {name: timing.peak_bytes for name, timing in timings.items() if timing.peak_bytes}
    return {"gpu": gpu, "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def compare_baseline(timings: dict[str, Timing], difference: float | None) -> dict[str, float] | None:
    """How much faster than the original's way; None if that was not measured."""
    if difference is None:
        return None
    return {
        "loss_difference": difference,
        "model_speedup": timings["model"].median / timings["original model"].median,
        "train_speedup": timings["train"].median / timings["original train"].median,
    }


def setting(config: PretrainConfig, runtime: Runtime, shards: ShardSet) -> dict[str, Any]:
    """What was measured: everything that a comparison must know."""
    return {
        "shards": config.data.shards, "dataset": shards.manifest.dataset, "codec": shards.manifest.codec,
        "packed_size": shards.manifest.packed_size, "split": config.data.train_split,
        "batch_size": config.run.batch_size, "precision": "bf16" if runtime.bf16 else "fp32",
        "encode": config.encode, "num_frames": config.data.num_frames, "size": config.data.size,
        "threads": config.data.threads, "prefetch": config.data.prefetch, "decoder": config.data.decoder,
        "compile": config.run.compile, "model": asdict(config.model),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, and how busy the machine was with other things."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(), "load_average": os.getloadavg()[0],
        "versions": {
            "svdata2vec": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
    }
