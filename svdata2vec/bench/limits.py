"""Limits of the stages in clips per second: work of a clip, counted from shapes, against what device and disk reach."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from svdata2vec.bench.machine import synchronise
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.step_cost import clip_bytes, forward_macs, mask_layers, step_bytes, step_flops, step_layers
from svdata2vec.model.student import frames_seen
from svdata2vec.shards.reading.sample import BY_FRAME
from svdata2vec.shards.reading.shardset import ShardSet

REPETITIONS = 5  # of a copy or a product, after one that warms up
LONG_PRODUCT = 0.02  # seconds: what comes before and after the product itself no longer counts
READ_AT_MOST = 2**28  # bytes of shards
READ_CHUNK = 2**20

# ---- what this device and disk reach --------------------------------------------------------------------------------


def measure_ceilings(device: torch.device, shards: ShardSet, bf16: bool, readers: int) -> dict[str, Any]:
    """Bytes and FLOP per second that this device and disk reach at best; `readers` processes read clips, 0 = a thread."""
    single, half = (matmul_flops_per_second(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    return {
        "copy_bytes_per_s": copy_bytes_per_second(device),
        "matmul_fp32_flops_per_s": single, "matmul_bf16_flops_per_s": half,
        "matmul_flops_per_s": half if bf16 else single,
        "storage_bytes_per_s": storage_bytes_per_second(shards, max(readers, 1)),
        "upload_bytes_per_s": upload_bytes_per_second(device),
    }


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read plus bytes written by a large copy within the device's memory."""
    size = 2**30 if device.type == "cuda" else 2**26
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP of a square matrix product: the largest of four, or the first that takes long (a CPU may emulate bfloat16).

    float32 on a GPU: by TF32, as PyTorch's convolutions have it there, which are nearly all of a step.
    """
    largest = 8192 if device.type == "cuda" else 1024
    for side in (largest // 8, largest // 4, largest // 2, largest):
        factors = [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
        with _tf32(device):
            seconds = median_seconds(partial(torch.matmul, *factors), device)
        if seconds > LONG_PRODUCT:
            break
    return 2 * side**3 / seconds


@contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, the device's work included; one call warms up."""
    times = []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def upload_bytes_per_second(device: torch.device) -> float | None:
    """Bytes from page-locked memory to a GPU; None where there is none."""
    if device.type != "cuda":
        return None
    source, target = torch.zeros(2**28, dtype=torch.uint8).pin_memory(), torch.empty(2**28, dtype=torch.uint8, device=device)
    return source.numel() / median_seconds(lambda: target.copy_(source, non_blocking=True), device)


def storage_bytes_per_second(shards: ShardSet, at_once: int) -> float | None:
    """Bytes per second of the tars read in order, by `at_once` readers of one part each (256 MiB of it at most); None for
    shards behind a network.

    Cached pages are read from memory: on a training machine with less memory than data, drop the system's caches first
    (or read a larger set).
    """
    if not shards.tars:
        return None
    sizes = [tar.stat().st_size for tar in shards.tars]
    part = -(-sum(sizes) // at_once)
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        starts = range(0, sum(sizes), part)
        done = sum(pool.map(lambda start: _read_part(shards.tars, sizes, start, min(part, READ_AT_MOST)), starts))
    return done / (time.perf_counter() - started)


def _read_part(tars: Sequence[Path], sizes: Sequence[int], start: int, length: int) -> int:
    """Read `length` bytes of the concatenated tars from `start` on; returns how many there were. Releases the GIL."""
    buffer, done = memoryview(bytearray(READ_CHUNK)), 0
    for tar, size in zip(tars, sizes, strict=True):
        if start < size and done < length:
            with tar.open("rb", buffering=0) as file:
                file.seek(start)
                while done < length and (count := file.readinto(buffer[: length - done])):
                    done += count
        start = max(start - size, 0)
    return done


# ---- limits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Clips per second of each stage.

    read: storage, parsing, plans. decode: decoding and geometry of clips that are in memory (blocks on a GPU: their
    upload). data: the loader without a training step beside it. model: the training step on one batch in memory. train:
    everything.
    """

    read: float
    decode: float
    data: float
    model: float
    train: float


def count(config: PretrainConfig, shards: ShardSet, bf16: bool) -> dict[str, float]:
    """Work of a clip, from shapes and from the index."""
    layers = step_layers(config, len(shards.manifest.layout.joints))
    rows, form = shards.rows(config.data.train_split), shards.manifest.blocks
    pictures = coded_pictures(shards, rows, config)
    return {
        "forward_macs_per_clip": forward_macs(layers, ("video", "skeleton", "encoder", "decoder")),
        "flops_per_clip": step_flops(layers),
        "flops_per_mask": step_flops(mask_layers(config)),
        "step_bytes_per_clip": step_bytes(layers, config, 2 if bf16 else 4),
        "stored_bytes_per_clip": mean_taken(shards, rows, shards.index["size"][rows].sum(axis=1, dtype="int64")),
        "decoded_bytes_per_clip": clip_bytes(config),
        "coded_pictures_per_clip": pictures,
        **({"uploaded_bytes_per_clip": pictures * form.frame_bytes} if form else {}),
        "read_bytes_per_clip": read_bytes(shards, rows, config),
    }


def mean_taken(shards: ShardSet, rows: NDArray[np.int64], values_N: NDArray[Any]) -> float:
    """Mean of a value over the clips of a split, weighted by how often an epoch takes them."""
    weights_N = np.ones(len(rows))
    for places, weight in shards.shares(rows):
        weights_N[places] = weight
    return float(np.average(values_N, weights=weights_N))


def coded_pictures(shards: ShardSet, rows: NDArray[np.int64], config: PretrainConfig) -> float:
    """Mean number of pictures per clip that are decoded: those that are seen, each once, if a codec decodes them alone; else
    all, since a video's pictures depend on those before."""
    frames_N = shards.index["frames"][rows]
    if shards.manifest.codec not in BY_FRAME:
        return mean_taken(shards, rows, frames_N)
    return mean_taken(shards, rows, np.minimum(most_pictures(config), frames_N))


def most_pictures(config: PretrainConfig) -> float:
    """Sampled pictures that a run looks at in a clip that is long enough."""
    seen = frames_seen(config)
    return float(config.data.num_frames) if seen is None else seen.mean


def read_bytes(shards: ShardSet, rows: NDArray[np.int64], config: PretrainConfig) -> float:
    """Mean bytes per clip that are read from the shards: those of the pictures that are seen, or of the whole clip."""
    stored = shards.index["size"][rows].sum(axis=1, dtype="int64")
    if shards.manifest.codec not in BY_FRAME:
        return mean_taken(shards, rows, stored)
    return mean_taken(shards, rows, stored * np.minimum(most_pictures(config) / shards.index["frames"][rows], 1))


def decoding_need(rates: Rates, codec: str, pictures: float, config: PretrainConfig) -> dict[str, Any]:
    """What decoding costs and bounds: pictures of a clip, per second as the model takes them, and as the decoder gives them.

    seen_per_clip: sampled pictures that masks let be seen, where a decoder takes those alone.
    """
    num_frames = config.data.num_frames
    return {
        "codec": codec, "pictures_per_clip": pictures, "sampled_per_clip": num_frames,
        "seen_per_clip": most_pictures(config) if codec in BY_FRAME else num_frames,
        "needed_pictures_per_s": pictures * rates.model, "given_pictures_per_s": pictures * rates.decode,
    }


def roofline(rates: Rates, counts: dict[str, float], ceilings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per stage: the limit in clips/s, where it comes from, and the share of it that is reached.

    Reading is set against the tars read in order, decoding against the frames copied once (blocks that go to a GPU: against
    the bytes of a clip uploaded), loading against its slower half, the model against the slower of its multiply-adds and its
    bytes, training against the slower of loader and model.
    """
    compute = ceilings["matmul_flops_per_s"] / counts["flops_per_clip"]
    memory = ceilings["copy_bytes_per_s"] / counts["step_bytes_per_clip"]
    storage, upload = ceilings["storage_bytes_per_s"], ceilings.get("upload_bytes_per_s")
    decode = ceilings["copy_bytes_per_s"] / (2 * counts["decoded_bytes_per_clip"]), "frames copied once"
    if upload and "uploaded_bytes_per_clip" in counts:
        decode = upload / counts["uploaded_bytes_per_clip"], "bytes uploaded"
    limits: dict[str, tuple[float | None, str]] = {
        "read": (storage and storage / counts["read_bytes_per_clip"], "tars read in order"),
        "decode": decode,
        "data": min((rates.read, "read alone"), (rates.decode, "decode alone")),
        "model": min((compute, "matrix products"), (memory, "memory traffic")),
        "train": min((rates.data, "data alone"), (rates.model, "model alone")),
    }
    return {
        name: {"limit_clips_per_s": limit, "limited_by": source,
               "efficiency": getattr(rates, name) / limit if limit else None}
        for name, (limit, source) in limits.items()
    }
