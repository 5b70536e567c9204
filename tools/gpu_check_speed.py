"""The parts of `gpu_check.py` that measure: limits of the GPU, and rates of a run. Each returns its figures.

B clips, T frames
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_check_parts import SOURCES, Figures, bench_clips, require

STEP_CLIPS = 32
FRAMES = 40
PRESET = "ntu60-xsub"
FASTEST = ("--run.launch", "graph", "--model.fused-blocks")  # as one would train on a GPU


def measure_decoder(device: str = "cuda", rounds: int = 2, seconds: float = 0.7) -> Figures:
    """Pictures per second of the loader's decoders, by threads and by the share of the GPU's engines."""
    from svdata2vec.bench.tune import in_turns
    from svdata2vec.runs.tuned import Tuned

    cores = len(os.sched_getaffinity(0))
    threads = sorted({2, min(8, cores), min(16, cores)})
    shards = bench_clips(SOURCES)
    shares = (1.0, 0.75, 0.0) if device != "cpu" else (1.0,)
    settings = {f"share_{share:g}_threads_{count}": Tuned(count, share) for share in shares for count in threads}
    rates = in_turns({name: (shards, one) for name, one in settings.items()}, torch.device(device), rounds, seconds)
    figures = {f"{name}_pictures_per_s": sorted(found)[len(found) // 2] for name, found in rates.items()}
    best = max(figures, key=lambda name: figures[name])
    return {"best": best.removesuffix("_pictures_per_s"), "best_clips_per_s": figures[best] / FRAMES, **figures}


def measure_device(device: str = "cuda") -> Figures:
    """Bytes that a copy moves, and operations of large matrix products, per second."""
    from svdata2vec.bench.limits import copy_bytes_per_second, matmul_flops_per_second

    place = torch.device(device)
    return {
        "copy_gb_per_s": copy_bytes_per_second(place) / 1e9,
        "matmul_bf16_tflops": matmul_flops_per_second(place, torch.bfloat16) / 1e12,
        "matmul_fp32_tflops": matmul_flops_per_second(place, torch.float32) / 1e12,
    }


def run_bench() -> Figures:
    """`svdata2vec bench run` against the authors' way; overlap: how much of the shorter half hides behind the longer."""
    record = bench_record("jpeg", "--baseline", "original-style")
    return {**bench_figures(record), "train_speedup": record["baseline"]["train_speedup"], "record": record}


def run_bench_blocks() -> Figures:
    """The same on the same clips in blocks, which are uploaded as they are stored."""
    record = bench_record("blocks")
    return {**bench_figures(record), "record": record}


def bench_record(codec: str, *more: str) -> dict[str, Any]:
    """The record of `bench run` on the clips of `make_clips`."""
    shards = bench_clips(SOURCES, codec)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        words = ["--data.shards", str(shards.root), "--data.train-split", "all", "--out", str(out), "--rounds", "3"]
        words += FASTEST if torch.cuda.is_available() else ()
        command = [sys.executable, "-m", "svdata2vec", "bench", "run", PRESET, *words, "--seconds", "1.5", *more]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        require(done.returncode == 0, f"svdata2vec bench run ended with {done.returncode}: {done.stderr[-300:]}")
        return json.loads(out.read_text())


def bench_figures(record: dict[str, Any]) -> Figures:
    """Its rates and verdict."""
    rates = {f"{name.replace(' ', '_')}_clips_per_s": row["clips_per_s"] for name, row in record["stages"].items()}
    return {
        **rates, "mfu": record["mfu"], "data_wait_share": record["data_wait_share"], "hidden_share": hidden_share(*(
            record["stages"][name]["clips_per_s"] for name in ("data", "model", "train")
        )), "verdict": record["verdict"]["text"],
    }


def hidden_share(data: float, model: float, train: float) -> float:
    """Share of the shorter of loading and training a clip that overlaps the longer: 1 = all, 0 = one after the other."""
    return (1 / data + 1 / model - 1 / train) / min(1 / data, 1 / model)


def measure_overlap() -> Figures:
    """A short profile of training with concurrent decoding."""
    from profile_training import profiled

    from svdata2vec.bench.config import BenchConfig
    from svdata2vec.config.presets import PRETRAIN

    base = BenchConfig.of(PRETRAIN[PRESET]())
    base = replace(base, run=replace(base.run, launch="graph"), model=replace(base.model, fused_blocks=True))
    shards = str(bench_clips(SOURCES).root)
    return overlap_of(profiled(replace(base, data=replace(base.data, shards=shards, train_split="all")), steps=8))


def overlap_of(profile: dict[str, Any]) -> Figures:
    """Share of the loader's streams' busy time (all but training's) in which training is busy too."""
    loading = profile["other_streams_ms"]
    require(loading > 0, "the profile shows one busy stream: decoding has none of its own")
    return {
        "overlap": profile["both_at_once_ms"] / loading, "training_busy_share": profile["training_stream_busy_share"],
        "step_ms": profile["wall_ms"], "loading_ms": loading,
    }


def measure_step(device: str = "cuda", clips: int = STEP_CLIPS, repetitions: int = 10, config: Any = None) -> Figures:
    """Clips per second of the default preset's step on a batch in memory: plain and fused blocks, launched one by one and as a
    CUDA graph; all frames in float32. `verdict`: where fused blocks pay."""
    from pretraining_step import Step, make_batch

    from svdata2vec.bench.machine import peak_gpu_bytes
    from svdata2vec.config.schema import PretrainConfig

    base, on_gpu = config or PretrainConfig(), device != "cpu"
    fused = replace(base, model=replace(base.model, fused_blocks=True))
    ways = {
        "eager": (base, on_gpu, False), "eager_fused": (fused, on_gpu, False), "graph": (base, on_gpu, on_gpu),
        "graph_fused": (fused, on_gpu, on_gpu),
        "original_style": (replace(base, encode="all_frames", model=replace(base.model, impl="torch")), False, False),
    }
    figures: Figures = {"batch": clips}
    for name, (settings, bf16, graph) in ways.items():
        step = Step(settings, make_batch(settings, clips, torch.device(device)), bf16=bf16, graph=graph)
        for _ in range(3):
            step.run()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repetitions):
            started = time.perf_counter()
            step.run()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        figures[f"{name}_clips_per_s"] = clips / sorted(times)[len(times) // 2]
        if on_gpu:
            taken = peak_gpu_bytes(torch.device(device), None if step.captured is None else step.captured.graph)
            figures[f"{name}_peak_gib"] = taken / 2**30
        del step
        gc.collect()  # a graph and its step hold each other
        if on_gpu:
            torch.cuda.empty_cache()
    gains = {launch: figures[f"{launch}_fused_clips_per_s"] / figures[f"{launch}_clips_per_s"] for launch in ("eager", "graph")}
    figures |= {f"{launch}_fused_gain": gain for launch, gain in gains.items()}
    figures["speedup"] = max(figures[f"{name}_clips_per_s"] for name in list(ways)[:4]) / figures["original_style_clips_per_s"]
    figures["verdict"] = fused_verdict(gains)
    return figures


def fused_verdict(gains: dict[str, float]) -> str:
    """The ways to launch for which fused blocks make a step faster by more than the noise of 3 %."""
    paying = [launch for launch, gain in gains.items() if gain > 1.03]
    text = "; ".join(f"{launch} {gain:.2f} times" for launch, gain in gains.items())
    if not paying:
        return f"fused blocks do not pay ({text})"
    return f"fused blocks pay with --run.launch {' and '.join(paying)} ({text})"
