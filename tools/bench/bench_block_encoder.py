"""CPU time of packing a picture in blocks compared with a JPEG: one process, alternating pictures, median and minimum times.

    python tools/bench/bench_block_encoder.py [--files video.mp4 ...] [--out tools/results/block_encoder.json]

Uses synthetic pictures, noisy and smooth ones, and some pictures of each file. A JPEG's time depends on its content, that of
blocks does not; other programs' use of the processor's cache slows blocks down more.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from file_options import file_to_write, video_file

from svdata2vec.runs.cores import cpu_name
from svdata2vec.runs.provenance import save
from svdata2vec.shards.blocks import BlockFormat, Bytes
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.encode import BlockClipEncoder, Encoder, JpegEncoder
from svdata2vec.shards.ranges import Range
from svdata2vec.shards.video import VideoReader

SIDE = 320
PER_FILE = 12  # pictures


def made_pictures() -> dict[str, list[Bytes]]:
    """Structure at several scales with a little noise, and the same without the fine structure and noise."""
    generator = np.random.default_rng(0)
    noisy = []
    for _ in range(PER_FILE):
        picture = generator.normal(120, 4, (SIDE, SIDE, 1)).astype(np.float32)
        for cell, weight in ((64, 50), (16, 25), (4, 12)):
            coarse = generator.normal(0, weight, (SIDE // cell, SIDE // cell, 3)).astype(np.float32)
            picture = picture + cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        noisy.append(np.clip(picture, 0, 255).astype(np.uint8))
    return {"noisy": noisy, "smooth": [cv2.GaussianBlur(picture, (0, 0), 5).astype(np.uint8) for picture in noisy]}


def pictures_of(file: Path) -> list[Bytes]:
    """Squares from the middle of a video's first frames."""
    with VideoReader(file) as reader:
        side = min(reader.info.width, reader.info.height)
        squares = reader.crops((reader.info.width - side) // 2, (reader.info.height - side) // 2, side)
        return [cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
                for square in itertools.islice(squares, 0, 10 * PER_FILE, 10)]


def measure(pictures: list[Bytes], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each picture of every round, by encoder."""
    forms = {"blocks 3-2": BlockFormat(SIDE), "blocks 2-2": BlockFormat(SIDE, 2, 2)}
    times: dict[str, list[float]] = {"jpeg": [], **{name: [] for name in forms}}
    for _ in range(rounds):
        encoders: dict[str, Encoder] = {"jpeg": JpegEncoder(90, "420")}
        encoders |= {name: BlockClipEncoder(form) for name, form in forms.items()}
        for picture in pictures:
            for name, encoder in encoders.items():
                started = time.thread_time()
                encoder.add(picture)
                times[name].append(1e3 * (time.thread_time() - started))
    return times


def rows_of(name: str, pictures: list[Bytes], rounds: int) -> list[dict[str, Any]]:
    """Median and minimum milliseconds of each encoder for a picture of a set."""
    return [{"pictures": name, "encoder": encoder, "median_ms": statistics.median(found), "least_ms": min(found)}
            for encoder, found in measure(pictures, rounds).items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=video_file, nargs="+", default=[], help="videos whose pictures are packed, too")
    parser.add_argument("--rounds", type=Range(1).parser(int), default=30, help="how often each picture is packed (default 30)")
    parser.add_argument("--out", type=file_to_write, help="JSON file to write")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    rows: list[dict[str, Any]] = []
    try:
        films = {str(file): pictures_of(file) for file in given.files}
    except UserError as error:
        parser.error(str(error))
    for name, pictures in (made_pictures() | films).items():
        rows += (found := rows_of(name, pictures, given.rounds))
        for row in found:
            ratio = [row[time] / found[0][time] for time in ("median_ms", "least_ms")]
            sys.stdout.write(f"{name:22s} {row['encoder']:11s} median {row['median_ms']:.3f} ms, least {row['least_ms']:.3f}; "
                             f"of JPEG's {ratio[0]:.2f}, least {ratio[1]:.2f}\n")
    machine = {"cpu": cpu_name(), "cores": job_cores(), "load_1min": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
    sys.stdout.write(f"load average {machine['load_1min']:.1f}\n")
    if given.out:
        save({"machine": machine, "rounds": given.rounds, "side": SIDE, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
