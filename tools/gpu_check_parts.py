"""The parts of `gpu_check.py`: each function checks one thing on a device and returns what it measured, or raises.

B clips, T frames, K kept frames, D width, H heads, L layers
"""

import importlib.util
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MIN_PSNR_DB = 33.0  # GPU decoders differ from the CPU's by a grey level or two
PACKED, SIZE = 256, 128  # NVDEC has a smallest picture of about 144 px
STEP_CLIPS = 32
Figures = dict[str, Any]

if importlib.util.find_spec("tyro") is None:  # configurations need it for the command line alone
    stand_in = types.ModuleType("tyro")
    stand_in.conf = types.SimpleNamespace(arg=lambda **_: None)  # type: ignore[attr-defined]
    sys.modules["tyro"] = stand_in


class CheckError(AssertionError):
    """What was computed is not what it should be."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def check_driver(device: str = "cuda") -> Figures:
    """The GPU multiplies, convolves and copies back what the CPU computes."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    error = ((a.to(device) @ b.to(device)).cpu() - a @ b).abs().max().item()
    require(error < 1e-2, f"a float32 matrix product is off by {error:.3g}, expected less than 0.01")
    picture, weight = torch.randn(2, 15, 32, 32, generator=generator), torch.randn(16, 15, 7, 7, generator=generator)
    found, expected = nn.functional.conv2d(picture.to(device), weight.to(device)).cpu(), nn.functional.conv2d(picture, weight)
    error = (found - expected).abs().max().item()
    require(error < 1e-2, f"a float32 convolution is off by {error:.3g}, expected less than 0.01")
    if device == "cpu":
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "memory_gib": properties.total_memory / 2**30,
        "capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda,
    }


def check_decoding(codec: str, device: str = "cuda") -> Figures:
    """DALI gives the wanted frames, not their neighbours, in order, cropped and mirrored as the reference decoder does."""
    import numpy as np

    from svdata2vec.pipeline.graph import DaliDecoder
    from svdata2vec.pipeline.reference import ReferenceDecoder, psnr

    frames = [59, 0, 1, 31, 30, 2, 0, 45]
    clip = encoded_clip(codec, 60, frames)
    whole = replace(clip, frames_T=np.arange(60))
    out = torch.zeros((1, len(frames), SIZE, SIZE, 3), dtype=torch.uint8, device=device)
    decoder = DaliDecoder(codec, SIZE, device=device)
    try:
        failed = decoder.decode([clip], out)
    finally:
        decoder.close()
    require(not failed, f"DALI cannot decode it: {failed.get(0)}")
    expected = torch.zeros((1, 60, SIZE, SIZE, 3), dtype=torch.uint8)
    ReferenceDecoder().decode([whole], expected)
    worst = float("inf")
    for found, wanted in zip(out[0].cpu(), frames, strict=True):
        scores = [psnr(found, other) for other in expected[0]]
        best = max(range(60), key=scores.__getitem__)
        require(best == wanted, f"frame {wanted} was wanted; what came is most like frame {best}")
        worst = min(worst, scores[wanted])
    require(worst >= MIN_PSNR_DB, f"PSNR against the reference decoder {worst:.1f} dB, expected {MIN_PSNR_DB} dB or more")
    return {"psnr_db": worst}


def encoded_clip(codec: str, num_frames: int, frames: list[int]) -> Any:
    """A still scene over which a bright bar moves, packed in a codec, with a mirrored window that leaves the picture."""
    import io

    import cv2
    import numpy as np

    from svdata2vec.pipeline import affine
    from svdata2vec.pipeline.frames import EncodedClip
    from svdata2vec.shards.packing.encode import VIDEO_CODECS, Encoder, JpegEncoder, VideoEncoder

    coarse = np.random.default_rng(0).integers(0, 200, (16, 16, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (PACKED, PACKED), interpolation=cv2.INTER_CUBIC)
    encoder: Encoder = JpegEncoder(90, "444")
    if codec != "jpeg":
        encoder = VideoEncoder(VIDEO_CODECS[codec], VIDEO_CODECS[codec].quality, 0, PACKED, 30.0)
    for number in range(num_frames):
        picture = scene.copy()
        picture[:, 3 * number : 3 * number + 8] = 255
        encoder.add(picture)
    parts = encoder.finish()
    offsets = np.load(io.BytesIO(parts.pop("offsets.npy"))) if codec == "jpeg" else None
    (video,) = parts.values()
    window = affine.compose(affine.window_map((-20, 10, 230, 250), SIZE), affine.mirror_map(SIZE))
    return EncodedClip("clip", np.frombuffer(video, np.uint8), offsets, np.array(frames, np.int64), window, PACKED, PACKED)


def check_kernel(op: str, device: str = "cuda", impl: str = "triton") -> Figures:
    """Results and gradients of an op against float64, for float32 and bfloat16: as close as plain PyTorch comes."""
    from kernel_inputs import CALLS, Draw, Sizes, values_and_gradients

    figures: Figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        call = CALLS[op](Sizes(), Draw(dtype, device, dtype))
        inputs = list(call.inputs.values())

        def evaluate(impl: Any, tensors: list[Tensor], call: Callable[..., Any] = call) -> list[list[Tensor]]:
            return list(values_and_gradients(partial(call, impl=impl), tensors))

        outcomes = evaluate(impl, inputs), evaluate("torch", inputs), evaluate("torch", [x.double() for x in inputs])
        worst = 0.0
        for kind, sets in zip(("the value", "the gradient"), zip(*outcomes, strict=True), strict=True):
            for number, (got, plain, exact) in enumerate(zip(*sets, strict=True)):
                worst = max(worst, compare(got, plain, exact, f"{kind} {number} in {dtype}"))
        figures[f"error_{str(dtype).removeprefix('torch.')}"] = worst
    return figures


def compare(got: Tensor, plain: Tensor, exact: Tensor, what: str) -> float:
    """Largest error relative to the truth's largest value; at most twice plain PyTorch's and a few roundings."""
    require(got.shape == exact.shape and bool(torch.isfinite(got).all()), f"{what} has holes or another shape")
    scale = max(exact.abs().max().item(), 1e-12)
    error, usual = ((x.double() - exact.double()).abs().max().item() for x in (got, plain))
    steps = 16 if got.dtype == torch.float32 else 1
    allowed = 2 * usual + steps * torch.finfo(got.dtype).eps * scale
    require(error <= allowed, f"{what} is off by {error:.3g}, expected {allowed:.3g} or less (plain PyTorch: {usual:.3g})")
    return error / scale


def small_config() -> Any:
    from svdata2vec.config.schema import DataConfig, ModelConfig, PretrainConfig, TargetConfig

    model = ModelConfig(width=64, depth=3, decoder_depth=2, heads=4, stem_width=16)
    return PretrainConfig(data=DataConfig(num_frames=12, size=64), model=model, target=TargetConfig(top_layers=3))


def check_training_step(device: str = "cuda") -> Figures:
    """Loss and gradients of a step with equal weights and data, on the device against the CPU, in float32."""
    from pretraining_step import Step, make_batch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = small_config()
    here, there = (Step(config, make_batch(config, 3, torch.device(place))) for place in ("cpu", device))
    losses, gradients = [], []
    for step in (here, there):
        loss = step.loss()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.cpu() for name, p in step.student.named_parameters() if p.grad is not None})
    difference = abs(losses[1] - losses[0]) / abs(losses[0])
    require(difference < 1e-3, f"the loss is {losses[1]:.6g}, on the CPU {losses[0]:.6g}")
    require(gradients[0].keys() == gradients[1].keys(), "not the same parameters have a gradient as on the CPU")
    worst = 0.0
    for name, expected in gradients[0].items():
        error = ((gradients[1][name] - expected).norm() / expected.norm().clamp_min(1e-8)).item()
        require(error < 2e-2, f"the gradient of {name} differs by {100 * error:.2g} %, expected less than 2 %")
        worst = max(worst, error)
    before = losses[1]
    after = [there.run().item() for _ in range(20)][-1]
    require(after < before, f"20 steps on one batch do not lower the loss: {before:.4g} -> {after:.4g}")
    return {"loss_difference": difference, "gradient_difference": worst}


def measure_step(device: str = "cuda", clips: int = STEP_CLIPS, repetitions: int = 10, config: Any = None) -> Figures:
    """Clips per second of the default preset's step on a batch in memory: ours, with fused blocks, these as a CUDA graph; all
    frames in float32."""
    from pretraining_step import Step, make_batch

    from svdata2vec.config.schema import PretrainConfig

    base, on_gpu = config or PretrainConfig(), device != "cpu"
    fused = replace(base, model=replace(base.model, fused_blocks=True))
    ways = {"ours": (base, on_gpu, False), "fused_blocks": (fused, on_gpu, False), "graph": (fused, on_gpu, on_gpu),
            "original_style": (replace(base, encode="all_frames", model=replace(base.model, impl="torch")), False, False)}
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
            figures[f"{name}_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        del step
    figures["fused_blocks_speedup"] = figures["fused_blocks_clips_per_s"] / figures["ours_clips_per_s"]
    figures["graph_speedup"] = figures["graph_clips_per_s"] / figures["ours_clips_per_s"]
    figures["speedup"] = figures["graph_clips_per_s"] / figures["original_style_clips_per_s"]
    return figures


def run_bench(preset: str = "ntu60-xsub", sources: int = 48, *more: str) -> Figures:
    """`svdata2vec bench run` on clips that it makes (960x540, packed as jpeg), decoding with every core."""
    import json
    import os

    from svdata2vec.bench.data_sources import make_sources, packed

    with tempfile.TemporaryDirectory() as folder:
        shards = packed(Path(folder), make_sources(Path(folder) / "source", sources), "jpeg")
        out = Path(folder) / "bench.json"
        words = ["--data.shards", str(shards.root), "--data.train-split", "all", "--out", str(out)]
        words += ["--data.threads", str(len(os.sched_getaffinity(0)))]
        command = [sys.executable, "-m", "svdata2vec", "bench", "run", preset, *words, "--baseline", "original-style", *more]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        require(done.returncode == 0, f"svdata2vec bench run ended with {done.returncode}: {done.stderr[-300:]}")
        record = json.loads(out.read_text())
    rates = {f"{name.replace(' ', '_')}_clips_per_s": row["clips_per_s"] for name, row in record["stages"].items()}
    return {**rates, "mfu": record["mfu"], "data_wait_share": record["data_wait_share"], "verdict": record["verdict"]["text"],
            "record": record}
