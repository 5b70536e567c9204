"""The parts of `gpu_check.py` that check: each function checks one thing on a device and returns what it measured, or raises.

B clips, T frames, K kept frames, D width, H heads, L layers
"""

import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MIN_PSNR_DB = 33.0  # GPU decoders differ from the CPU's by a grey level or two, of 4:2:0 perhaps by more
PACKED, SIZE = 256, 128  # NVDEC has a smallest picture of about 144 px
NUM_FRAMES, WANTED = 60, (59, 0, 1, 31, 30, 2, 0, 45)  # of the clip that decoders are compared on
SOURCES = 48
Figures = dict[str, Any]

if importlib.util.find_spec("tyro") is None:  # configurations need it for the command line alone
    stand_in = types.ModuleType("tyro")
    stand_in.conf = types.SimpleNamespace(arg=lambda **_: None)  # type: ignore[attr-defined]
    sys.modules["tyro"] = stand_in


class CheckError(AssertionError):
    """A result is wrong."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def check_driver(device: str = "cuda") -> Figures:
    """Matrix product, convolution and copy on the GPU give the CPU's results."""
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
    """DALI returns the requested frames, not their neighbours, in order, cropped and mirrored like the reference decoder."""
    import numpy as np

    from svdata2vec.pipeline.graph import DaliDecoder
    from svdata2vec.pipeline.reference import ReferenceDecoder, psnr

    clip = encoded_clip(codec)
    whole = replace(clip, frames_T=np.arange(NUM_FRAMES))
    out = torch.zeros((1, len(WANTED), SIZE, SIZE, 3), dtype=torch.uint8, device=device)
    decoder = DaliDecoder(codec, SIZE, device=device)
    try:
        failed = decoder.decode([clip], out)
    finally:
        decoder.close()
    require(not failed, f"DALI cannot decode it: {failed.get(0)}")
    expected = torch.zeros((1, NUM_FRAMES, SIZE, SIZE, 3), dtype=torch.uint8)
    ReferenceDecoder().decode([whole], expected)
    worst = float("inf")
    for found, wanted in zip(out[0].cpu(), WANTED, strict=True):
        scores = [psnr(found, other) for other in expected[0]]
        best = max(range(NUM_FRAMES), key=scores.__getitem__)
        require(best == wanted, f"frame {wanted} was requested, but the result looks most like frame {best}")
        worst = min(worst, scores[wanted])
    require(worst >= MIN_PSNR_DB, f"PSNR against the reference decoder {worst:.1f} dB, expected {MIN_PSNR_DB} dB or more")
    return {"psnr_db": worst}


def check_blocks(device: str = "cuda") -> Figures:
    """Clips in blocks, one in page-locked memory, are uploaded and decoded as on a CPU, to within one grey level."""
    from svdata2vec.pipeline.blocksdecoder import BlockClipDecoder
    from svdata2vec.pipeline.blockupload import BlockUploader
    from svdata2vec.pipeline.frames import gathered, laid
    from svdata2vec.pipeline.video import frames_of

    clip = encoded_clip("blocks")
    assert clip.blocks is not None
    uploader, decoder = BlockUploader(clip.blocks, device), BlockClipDecoder(1)
    clips, expected = uploader.room(2, len(WANTED), SIZE), torch.zeros((2, len(WANTED), SIZE, SIZE, 3), dtype=torch.uint8)
    slabs = uploader.slabs(1, len(WANTED))
    _, places = slabs.take()
    ready = gathered(clip, clip.blocks)
    places[0, : ready.video.size] = ready.video
    locked = device != "cpu" and torch.from_numpy(places).is_pinned()
    failed = [uploader.decode([laid(ready, places[0]), clip], clips), decoder.decode([clip, clip], expected)]
    frames_BTHWC = frames_of(clips).cpu()
    slabs.close()
    decoder.close()
    require(failed == [{}, {}], f"clips cannot be decoded: {failed}")
    difference = (frames_BTHWC.int() - expected.int()).abs()
    require(int(difference.max()) <= 1, f"frames are off by {int(difference.max())} grey levels, expected 1 or less")
    share = float((difference > 0).float().mean())
    return {"largest_difference": int(difference.max()), "share_different": share, "page_locked": locked}


def encoded_clip(codec: str) -> Any:
    """A still scene over which a bright bar moves, packed in a codec, with a mirrored window that leaves the picture."""
    import io

    import cv2
    import numpy as np

    from svdata2vec.pipeline import affine
    from svdata2vec.pipeline.frames import EncodedClip
    from svdata2vec.shards.blocks import BlockFormat
    from svdata2vec.shards.packing.encode import VIDEO_CODECS, BlockClipEncoder, Encoder, JpegEncoder, VideoClipEncoder
    from svdata2vec.shards.reading.sample import block_offsets

    blocks = BlockFormat(PACKED) if codec == "blocks" else None
    coarse = np.random.default_rng(0).integers(0, 200, (16, 16, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (PACKED, PACKED), interpolation=cv2.INTER_CUBIC)
    encoder: Encoder = JpegEncoder(90, "420")
    if blocks is not None:
        encoder = BlockClipEncoder(blocks)
    elif codec != "jpeg":
        encoder = VideoClipEncoder(VIDEO_CODECS[codec], VIDEO_CODECS[codec].quality, 0, PACKED, 30.0)
    for number in range(NUM_FRAMES):
        picture = scene.copy()
        picture[:, 3 * number : 3 * number + 8] = 255
        encoder.add(picture)
    parts = encoder.finish()
    offsets = np.load(io.BytesIO(parts.pop("offsets.npy"))) if codec == "jpeg" else None
    offsets = offsets if blocks is None else block_offsets(blocks, NUM_FRAMES)
    (video,) = parts.values()
    window = affine.compose(affine.window_map((-20, 10, 230, 250), SIZE), affine.mirror_map(SIZE))
    content, numbers_T = np.frombuffer(video, np.uint8), np.array(WANTED, np.int64)
    return EncodedClip("clip", content, offsets, numbers_T, window, PACKED, PACKED, blocks)


def check_kernel(name: str, device: str = "cuda", impl: str = "triton") -> Figures:
    """Results and gradients of an op's call against float64, for float32 and bfloat16: about as close as plain PyTorch."""
    from kernel_inputs import CALLS, Draw, Sizes, values_and_gradients

    figures: Figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        call = CALLS[name](Sizes(), Draw(dtype, device, dtype))
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
    """Check the largest error relative to the truth's largest value: at most twice plain PyTorch's and a few roundings."""
    require(got.shape == exact.shape and bool(torch.isfinite(got).all()), f"{what} is not finite or has a wrong shape")
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
    require(gradients[0].keys() == gradients[1].keys(), "other parameters have a gradient than on the CPU")
    worst = 0.0
    for name, expected in gradients[0].items():
        error = ((gradients[1][name] - expected).norm() / expected.norm().clamp_min(1e-8)).item()
        require(error < 2e-2, f"the gradient of {name} differs by {100 * error:.2g} %, expected less than 2 %")
        worst = max(worst, error)
    before = losses[1]
    after = [there.run().item() for _ in range(20)][-1]
    require(after < before, f"20 steps on one batch do not lower the loss: {before:.4g} -> {after:.4g}")
    return {"loss_difference": difference, "gradient_difference": worst}


def check_bf16_step(device: str = "cuda") -> Figures:
    """A whole step in bfloat16, with plain and with fused blocks, against the same step in float32 on the same device."""
    from pretraining_step import Step, make_batch

    config = small_config()
    figures: Figures = {}
    batch = make_batch(config, 8, torch.device(device))
    exact = gradients_of(Step(config, batch))
    for name, fused in (("plain", False), ("fused", True)):
        settings = replace(config, model=replace(config.model, fused_blocks=fused))
        rough = gradients_of(Step(settings, batch, bf16=True))
        difference = abs(rough[0] - exact[0]) / abs(exact[0])
        require(difference < 3e-2, f"{name} blocks: the loss is {rough[0]:.5g} in bf16, {exact[0]:.5g} in float32")
        cosine = nn.functional.cosine_similarity(rough[1], exact[1], dim=0).item()
        require(cosine > 0.97, f"{name} blocks: the bf16 gradient has a cosine of {cosine:.3f} with the float32 one, not 0.97")
        figures |= {f"{name}_loss_difference": difference, f"{name}_gradient_cosine": cosine}
    return figures


def gradients_of(step: Any) -> tuple[float, Tensor]:
    """The loss, and all gradients in one vector."""
    loss = step.loss()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().double() for p in step.student.parameters() if p.grad is not None])


def check_finetuning(device: str = "cuda") -> Figures:
    """The classifier's loss and gradients on the device against the CPU, in float32; then 20 steps that must lower the loss."""
    from svdata2vec.config.schema import FinetuneConfig, HeadConfig
    from svdata2vec.model.classifier import Classifier

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    small = small_config()
    config = FinetuneConfig(data=small.data, model=small.model, head=HeadConfig(hidden=64, dropout=0.0, drop_path=0.0))
    generator = torch.Generator().manual_seed(0)
    size, frames = config.data.size, config.data.num_frames
    video = torch.randint(0, 256, (6, frames, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(6) % 3
    losses, gradients, networks = [], [], []
    for place in ("cpu", device):
        torch.manual_seed(0)
        network = Classifier(config, 17, 3).to(place)
        loss = nn.functional.cross_entropy(network(video.to(place), None).float(), labels.to(place))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]))
        networks.append(network)
    difference = abs(losses[1] - losses[0]) / abs(losses[0])
    require(difference < 1e-3, f"the loss is {losses[1]:.6g}, on the CPU {losses[0]:.6g}")
    error = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    require(error < 2e-2, f"the gradients differ by {100 * error:.2g} % from the CPU's, expected less than 2 %")
    optimizer, after = torch.optim.AdamW(networks[1].parameters(), 1e-3), losses[1]
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(networks[1](video.to(device), None).float(), labels.to(device))
        loss.backward()
        optimizer.step()
        after = loss.item()
    require(after < losses[1], f"20 steps on one batch do not lower the loss: {losses[1]:.4g} -> {after:.4g}")
    return {"loss_difference": difference, "gradient_difference": error, "loss_after_20_steps": after}


def check_graph(device: str = "cuda", graph: bool = True) -> Figures:
    """Six steps as one CUDA graph against six that are launched kernel by kernel: the same losses, plain and fused blocks."""
    from pretraining_step import Step, make_batch

    config, worst = small_config(), 0.0
    batch = make_batch(config, 8, torch.device(device))
    for fused in (False, True):
        settings = replace(config, model=replace(config.model, fused_blocks=fused))
        steps = [Step(settings, batch, bf16=device != "cpu", graph=captured) for captured in (False, graph)]
        for number in range(6):
            eager, replayed = (step.run().item() for step in steps)
            difference = abs(replayed - eager) / abs(eager)
            require(difference < 1e-2, f"step {number}: the graph's loss is {replayed:.6g}, launched one by one {eager:.6g}")
            worst = max(worst, difference)
    return {"loss_difference": worst}


def check_collectives(device: str = "cuda", count: int | None = None) -> Figures:
    """NCCL with a process on every GPU of this machine: sums, broadcasts, and the average of gradients that training needs."""
    count = torch.cuda.device_count() if count is None else count
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(collect, (count, device, f"file://{folder}/meeting"), nprocs=count)
    return {"gpus": count} if device == "cuda" else {"processes": count}


def collect(rank: int, count: int, device: str, meeting: str) -> None:
    """One process of `check_collectives`."""
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=meeting, rank=rank, world_size=count)
    total = torch.full((1 << 20,), float(rank + 1), device=place)
    dist.all_reduce(total)
    require(bool((total == count * (count + 1) / 2).all()), f"process {rank}: a sum over {count} processes is wrong")
    first = torch.full((1000,), float(rank), device=place)
    dist.broadcast(first, 0)
    require(bool((first == 0).all()), f"process {rank}: what process 0 sent did not arrive")
    torch.manual_seed(0)
    network = nn.parallel.DistributedDataParallel(nn.Linear(64, 64).to(place))
    network(torch.full((4, 64), float(rank + 1), device=place)).sum().backward()
    grad = network.module.weight.grad
    require(grad is not None and torch.allclose(grad, torch.full_like(grad, 2.0 * (count + 1))),
            f"process {rank}: the average of the gradients of {count} processes is wrong")
    dist.destroy_process_group()


def make_clips(sources: int = SOURCES) -> Figures:
    """The clips that are decoded and trained on when speed is measured: 960x540, packed as jpeg and as blocks."""
    figures: Figures = {}
    for codec in ("jpeg", "blocks"):
        shards = bench_clips(sources, codec)
        figures |= {"clips": len(shards), f"{codec}_bytes_per_clip": float(shards.index["size"].sum(axis=1).mean())}
    return figures


def bench_clips(sources: int, codec: str = "jpeg") -> Any:
    """The clips, made unless another part has already made them."""
    from svdata2vec.bench.data_sources import make_sources, packed

    folder = Path(os.environ.get("SVDATA2VEC_GPU_CHECK") or tempfile.mkdtemp())
    return packed(folder, make_sources(folder / "source", sources), codec)
