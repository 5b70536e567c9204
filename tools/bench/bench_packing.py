"""Measure packing: frames per second of one core, share of each step, bytes, and how close the packed crops are.

    python tools/bench/bench_packing.py --out tools/results/packing_NAME.json                    # synthetic 960x540 H.264
    python tools/bench/bench_packing.py --files film1.mp4 film2.mp4 --out ...                    # real files, made-up boxes

Quality is measured on the model's input: the method's crop of 224x224 (box of 40 frames' joints, bilinear straight from the
source) against the same crop of the packed frames, as PSNR per clip. One process, one thread.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from file_options import file_to_write, motion_folder, video_file

from svdata2vec.bench.data_methods import padded_crop
from svdata2vec.pipeline import affine
from svdata2vec.pipeline.reference import psnr
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.runs.cores import cpu_name
from svdata2vec.runs.provenance import save, versions
from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.boxes import crop_square, joint_box
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing.pack import PackOptions, Progress, pack
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder
from svdata2vec.shards.reading.decode import decode_still
from svdata2vec.shards.reading.sample import Sample
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.video import VideoReader

SIZE = 224  # side of the model's picture
SAMPLED = 40  # frames a clip is sampled at
STEPS = ("decode", "convert", "resize", "encode", "write", "read")
# Centre and size of made-up people as shares of the picture: near, middle, far.
PEOPLE = ((0.5, 0.5, 0.5, 0.85), (0.4, 0.55, 0.3, 0.6), (0.6, 0.5, 0.15, 0.35))


def make_synthetic(folder: Path, clips: int) -> Path:
    """The folder with clips of tools/motion/make_motion_clips.py at 960x540."""
    tool = Path(__file__).parent.parent / "motion" / "make_motion_clips.py"
    subprocess.run([sys.executable, str(tool), str(folder), "--clips", str(clips), "--width", "960", "--height", "540",
                    "--preset", "medium", "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
    return folder


def file_set(files: list[Path]) -> DataSet:
    """Every file three times, each time with a person of another size."""
    clips = []
    for file in files:
        with VideoReader(file) as reader:
            info, count = reader.info, reader.count()
        for number, (x, y, width, height) in enumerate(PEOPLE):
            pose = np.zeros((1, count, 17, 2), np.float32)
            pose[:, :, 0] = (x - width / 2) * info.width, (y - height / 2) * info.height
            pose[:, :, 1] = (x + width / 2) * info.width, (y + height / 2) * info.height
            clips.append(ClipAnnotation(f"{file.stem}-{number}", 0, file, num_frames=count, pose_MTVC=pose))
    return DataSet("files", layout("coco17"), ("any",), {"all": [clip.key for clip in clips]}, clips)


def measure(dataset: DataSet, options: PackOptions, folder: Path) -> dict[str, Any]:
    """Pack once and describe the result."""
    last: list[Progress] = []
    start, cpu_start = time.perf_counter(), time.process_time()
    pack(dataset, folder, options, progress=lambda state: last.append(replace(state)))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    shards = ShardSet.open(folder)
    state = last[-1]
    total = state.step_seconds["total"]
    shares = {name: round(state.step_seconds.get(name, 0.0) / total, 4) for name in STEPS}
    videos = {clip.key: clip.video for clip in dataset.clips}
    psnr_db = [crop_psnr(shards.sample(row), videos) for row in range(len(shards))]
    frames = int(shards.index["frames"].sum())
    return {
        "codec": options.codec, "quality": options.coded_quality, "chroma": options.chroma, "gop": options.gop,
        **(options.coding if options.blocks else {}), "size": options.size,
        "by_default": options == PackOptions(options.codec, workers=options.workers),
        "clips": len(shards), "frames": frames, "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3), "frames_per_cpu_second": round(frames / cpu_seconds, 1),
        "kib_per_frame": round(state.bytes_done / frames / 1024, 2),
        "kib_per_clip": round(state.bytes_done / len(shards) / 1024, 1),
        "shares": shares, "own_share": round(1 - sum(shares.values()), 4),
        "psnr_db_mean": round(float(np.mean(psnr_db)), 2), "psnr_db_worst_clip": round(float(np.min(psnr_db)), 2),
    }


def crop_psnr(sample: Sample, videos: dict[str, Any]) -> float:
    """PSNR in dB of the evaluation crop of a clip, packed against source, over its sampled frames."""
    meta = sample.meta
    chosen = np.linspace(0, meta.num_frames - 1, min(SAMPLED, meta.num_frames)).astype(int)
    box = crop_square(joint_box(sample.pose_MTVC[:, chosen]), meta.width, meta.height)
    to_packed = affine.compose(affine.invert(meta.packed_to_source), affine.window_map(box, SIZE))
    wanted = set(chosen.tolist())
    found, expected = [], []
    pairs = zip(source_frames(videos[meta.key]), packed_frames(sample), strict=True)
    for number, (source, packed) in enumerate(pairs):
        if number in wanted:
            expected.append(cv2.resize(padded_crop(source, box), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))
            found.append(warp(packed, to_packed))
    return psnr(found, expected)


def source_frames(video: Any) -> Iterator[np.ndarray]:
    """RGB frames of a source video as a player shows them."""
    with VideoReader(video) as reader:
        for square in reader.crops(0, 0, max(reader.info.width, reader.info.height)):
            yield square[: reader.info.height, : reader.info.width]


def video_frames(video: BytesIO) -> Iterator[np.ndarray]:
    """RGB frames of a packed video."""
    with av.open(video, mode="r", metadata_errors="ignore") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def packed_frames(sample: Sample) -> Iterator[np.ndarray]:
    """RGB frames of a packed clip."""
    assert sample.video is not None
    if sample.offsets is None:
        yield from video_frames(BytesIO(sample.video))
        return
    video, blocks = np.frombuffer(sample.video, np.uint8), None if sample.blocks is None else BlockFrameDecoder(sample.blocks)
    for number, (start, end) in enumerate(itertools.pairwise(sample.offsets)):
        yield decode_still(video[start:end], number, blocks)


def warp(picture: np.ndarray, output_to_input: np.ndarray) -> np.ndarray:
    """The crop by bilinear sampling, as the loader takes it."""
    crop = np.empty((SIZE, SIZE, 3), np.uint8)
    Resampler(output_to_input, SIZE)(picture, 0, 0, crop)
    return crop


def variants() -> Iterator[PackOptions]:
    """The ways of packing to compare."""
    base = PackOptions(workers=1)
    for quality, chroma in ((None, "420"), (None, "444"), (85, "420"), (85, "444"), (95, "420")):
        yield replace(base, quality=quality, chroma=chroma)
    for luma, chroma_bits in ((3, 2), (2, 2), (3, 3)):
        yield replace(base, codec="blocks", luma_bits=luma, chroma_bits=chroma_bits)
    for codec in ("vp9", "h264", "hevc", "mjpeg", "copy"):
        yield replace(base, codec=codec)


def machine() -> dict[str, Any]:
    """Machine and versions, for the record."""
    return {"cpu": cpu_name(), "cores": job_cores(), "load_1min": os.getloadavg()[0], "python": versions()["python"],
            "av": av.__version__, "opencv": cv2.__version__, "date": time.strftime("%Y-%m-%d")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=file_to_write, required=True, help="JSON file to write")
    parser.add_argument("--clips", type=Range(36).parser(int), default=36, help="synthetic clips (default 36)")
    parser.add_argument("--motion", type=motion_folder, help="folder of make_motion_clips.py, instead of making one")
    parser.add_argument("--files", type=video_file, nargs="+", help="real video files instead of synthetic clips")
    given = parser.parse_args()
    try:
        source, rows = packed_in_all_ways(given)
    except UserError as error:
        parser.error(str(error))
    save({"machine": machine(), "source": source, "rows": rows}, given.out)


def packed_in_all_ways(given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """What was packed, and a row for each way. UserError for a video or annotations that cannot be read."""
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.files:
            dataset, source = file_set(given.files), ", ".join(file.name for file in given.files)
        else:
            made = given.motion or make_synthetic(folder / "source", given.clips)
            dataset = read_pyskl(made / "motion.pkl", made / "videos")
            source = f"{len(dataset.clips)} clips of make_motion_clips.py"
        for number, options in enumerate(variants()):
            row = measure(dataset, options, folder / f"packed{number}")
            rows.append(row)
            print(f"{row['codec']:6} q{row['quality']:<3} {row['chroma']}  {row['frames_per_cpu_second']:7.1f} "
                  f"frames/s  {row['kib_per_frame']:6.2f} KiB/frame  PSNR {row['psnr_db_mean']:.2f} (worst clip "
                  f"{row['psnr_db_worst_clip']:.2f}) dB  own {row['own_share']:.1%}  {row['shares']}", flush=True)
    return source, rows


if __name__ == "__main__":
    main()
