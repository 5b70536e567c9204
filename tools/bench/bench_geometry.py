"""Decoding and geometry alternatives on the CPU: the table behind the choices in `pipeline/graph.py`.

    python tools/bench/bench_geometry.py --out tools/results/bench_geometry.json        # about a minute

One batch of packed clips (100 frames, 320 px, the benchmark's figure), 40 frames each, training crops, 224 px output.
Two threads. Alternatives take turns; medians over rounds. Every output is compared with the reference decoder first.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import cv2
import numpy as np
import torch
from file_options import file_to_write

from svdata2vec.bench.data_methods import DecodeOnly
from svdata2vec.bench.data_sources import CODECS, make_sources, packed
from svdata2vec.bench.machine import tree_usage
from svdata2vec.pipeline.frames import EncodedClip, jpeg_slices
from svdata2vec.pipeline.graph import DaliDecoder, Feed, RunClip
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.pyavdecoder import PyavDecoder
from svdata2vec.pipeline.reference import ReferenceDecoder, psnr
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.runs.provenance import machine, save
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.reading.shardset import ShardSet

THREADS, BATCH, SIZE = 2, 8, 224


class RunPerClip(DaliDecoder):
    """The default form, but every clip is a run of its own instead of pictures of a few clips forming a batch."""

    def clips_per_run(self, num_frames: int) -> int:
        return 1


class WholePictures(DaliDecoder):
    """The default form, but JPEGs are decoded whole instead of only the window that is sampled."""

    def inputs(self, clips: Sequence[EncodedClip]) -> list[Feed]:
        return [
            feed._replace(same={"anchor": np.zeros(2, np.int32),
                                "shape": np.array([clip.packed_height, clip.packed_width], np.int32)})
            for clip, feed in zip(clips, super().inputs(clips), strict=True)
        ]


class WholePicturesOnly(DecodeOnly, WholePictures):
    """Decoding of whole JPEGs by DALI, without geometry."""


class WarpOnly(DaliDecoder):
    """The default form, but every window is warped, as if it did not lie on whole packed pixels."""

    def inputs(self, clips: Sequence[EncodedClip]) -> list[Feed]:
        return super().inputs(list(map(between_pixels, clips)))

    def place(self, clips: list[RunClip], output: Any, out_BTSS3: torch.Tensor) -> None:
        super().place([run._replace(clip=between_pixels(run.clip)) for run in clips], output, out_BTSS3)


def between_pixels(clip: EncodedClip) -> EncodedClip:
    """The clip with its window moved by a thousandth of a pixel."""
    return replace(clip, output_to_packed=clip.output_to_packed + np.array([0, 0, 1e-3]))


class OpencvOnly:
    """OpenCV decodes and resamples; no DALI."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS)

    def decode(self, clips: list[EncodedClip], out_BTSS3: torch.Tensor) -> dict[int, str]:
        out = out_BTSS3.numpy()
        jobs = [
            (np.frombuffer(data, np.uint8), resampler, out[i, t])
            for i, (clip, jpegs) in enumerate(zip(clips, jpeg_slices(clips), strict=True))
            for resampler in [Resampler(clip.output_to_packed, SIZE)]
            for t, data in enumerate(jpegs.pictures)
        ]
        list(self._pool.map(self._one, jobs))
        return {}

    def _one(self, job: tuple[np.ndarray, Resampler, np.ndarray]) -> None:
        picture = cv2.imdecode(job[0], cv2.IMREAD_COLOR_RGB)
        assert picture is not None
        job[1](picture.astype(np.uint8, copy=False), 0, 0, job[2])

    def close(self) -> None:
        self._pool.shutdown()


# name -> (codec, maker, whether the output is complete)
FORMS: dict[str, tuple[str, Callable[[], Any], bool]] = {
    "jpeg: DALI decodes the sampled window, no geometry": ("jpeg", lambda: DecodeOnly("jpeg", SIZE), False),
    "jpeg: DALI decodes whole pictures, no geometry": ("jpeg", lambda: WholePicturesOnly("jpeg", SIZE), False),
    "jpeg: DALI window + OpenCV (default)": ("jpeg", lambda: DaliDecoder("jpeg", SIZE), True),
    "jpeg: DALI window + OpenCV, windows between pixels": ("jpeg", lambda: WarpOnly("jpeg", SIZE), True),
    "jpeg: DALI window + OpenCV, a run per clip": ("jpeg", lambda: RunPerClip("jpeg", SIZE), True),
    "jpeg: DALI whole + OpenCV": ("jpeg", lambda: WholePictures("jpeg", SIZE), True),
    "jpeg: OpenCV decode + OpenCV": ("jpeg", OpencvOnly, True),
    "jpeg: DALI slice + resize from a window": ("jpeg", lambda: DaliDecoder("jpeg", SIZE, geometry="resize"), True),
    "jpeg: DALI warp_affine": ("jpeg", lambda: DaliDecoder("jpeg", SIZE, geometry="warp"), True),
    "vp9: DALI decode, no geometry": ("vp9", lambda: DecodeOnly("vp9", SIZE), False),
    "vp9: DALI + OpenCV (default)": ("vp9", lambda: DaliDecoder("vp9", SIZE), True),
    "vp9: DALI slice + resize, sequences": ("vp9", lambda: DaliDecoder("vp9", SIZE, geometry="resize"), True),
    "vp9: DALI warp_affine, sequences": ("vp9", lambda: DaliDecoder("vp9", SIZE, geometry="warp"), True),
    "h264: PyAV processes + OpenCV (default)": ("h264", lambda: PyavDecoder(THREADS), True),
}


def encoded_batch(shards: ShardSet) -> list[EncodedClip]:
    """One training batch, planned but not decoded."""
    loader = ClipLoader(shards, "all", PlanConfig(), batch_size=BATCH, train=True)
    clips = next(loader.make_producer().read(0, 0)).clips
    return [clip.encoded for clip in clips if clip.encoded is not None]


def run(folder: Path, rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Form -> CPU and wall milliseconds per clip, and PSNR to the reference decoder."""
    dataset = make_sources(folder / "source", 12)
    batches = {codec: encoded_batch(packed(folder, dataset, codec)) for codec in CODECS}
    out = torch.empty((BATCH, 40, SIZE, SIZE, 3), dtype=torch.uint8)
    references = {}
    for codec, batch in batches.items():
        references[codec] = torch.empty_like(out[:1])
        ReferenceDecoder().decode(batch[:1], references[codec])
    decoders = {name: make() for name, (_, make, _) in FORMS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}
    quality = {}
    for name, decoder in decoders.items():
        codec, _, complete = FORMS[name]
        assert not decoder.decode(batches[codec], out)
        if complete:
            quality[name] = psnr(out[:1], references[codec])
            assert quality[name] >= 35, f"{name}: {quality[name]:.1f} dB from the reference decoder"
    for _ in range(rounds):
        for name, decoder in decoders.items():
            wall, (cpu, _) = time.perf_counter(), tree_usage()
            for _ in range(repeats):
                decoder.decode(batches[FORMS[name][0]], out)
            per_clip = 1e3 / (repeats * BATCH)
            times[name].append(((tree_usage()[0] - cpu) * per_clip, (time.perf_counter() - wall) * per_clip))
    for decoder in decoders.values():
        decoder.close()
    return {
        name: {
            "cpu_ms_per_clip": statistics.median(cpu for cpu, _ in found),
            "wall_ms_per_clip": statistics.median(wall for _, wall in found),
            **({"psnr_db_to_reference": quality[name]} if name in quality else {}),
        }
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=file_to_write)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "svdata2vec-bench-data")
    parser.add_argument("--rounds", type=Range(1).parser(int), default=5)
    parser.add_argument("--repeats", type=Range(1).parser(int), default=3)
    options = parser.parse_args()
    rows = run(options.folder, options.rounds, options.repeats)
    print("| form | CPU ms/clip | wall ms/clip | PSNR to reference |\n|---|---|---|---|")
    for name, row in rows.items():
        quality = f"{row['psnr_db_to_reference']:.0f} dB" if "psnr_db_to_reference" in row else "-"
        print(f"| {name} | {row['cpu_ms_per_clip']:.1f} | {row['wall_ms_per_clip']:.1f} | {quality} |")
    if options.out:
        save({**machine(), "threads": THREADS, "forms": rows}, options.out)


if __name__ == "__main__":
    main()
