"""Source clips for the loader benchmark: 960x540 H.264 of a textured figure in front of a still, slightly noisy scene."""

from pathlib import Path

import av
import cv2
import numpy as np

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.atomic import atomic_file, make_folder, npy_bytes, write_atomically
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.reading.manifest import MANIFEST_NAME
from svdata2vec.shards.reading.shardset import ShardSet

WIDTH, HEIGHT, NUM_FRAMES = 960, 540, 100
FIGURE_HEIGHT, FIGURE_WIDTH = 260, 110
SENSOR_NOISE = 2.0  # grey levels
SOURCE_TARS = 2
CODECS = ("jpeg", "blocks", "vp9", "h264")


def _texture(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Structure at several scales, like a photograph."""
    total = np.full((height, width, 3), 120.0, np.float32)
    for cell, weight in ((96, 55), (24, 30), (6, 15)):
        coarse = generator.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return total


def _joints(generator: np.random.Generator, corner_F2: np.ndarray) -> np.ndarray:
    """float32 (1, F, 17, 2): joints spread over the figure, a twentieth of them missing."""
    inside = generator.uniform(0.05, 0.95, (1, 1, 17, 2)) * (FIGURE_WIDTH, FIGURE_HEIGHT)
    pose = corner_F2[None, :, None] + inside + generator.normal(0, 1, (1, NUM_FRAMES, 17, 2))
    pose[generator.random(pose.shape[:-1]) < 0.05] = 0
    return pose.astype(np.float32)


def _write_clip(video: tuple[Path, int]) -> None:
    """One video, by its path and seed, and its joints beside it; each file appears whole."""
    path, seed = video
    generator = np.random.default_rng(seed)
    scene, figure = _texture(generator, HEIGHT, WIDTH), _texture(generator, FIGURE_HEIGHT, FIGURE_WIDTH)
    start, drift = generator.uniform((250, 120), (500, 200)), generator.uniform(-60, 60)
    steps = np.linspace(0, 1, NUM_FRAMES)
    corner_F2 = np.stack([start[0] + drift * steps, start[1] + 20 * np.sin(6 * steps)], axis=1).round()
    with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "20", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for x, y in corner_F2.astype(int).tolist():
            picture = scene.copy()
            picture[y : y + FIGURE_HEIGHT, x : x + FIGURE_WIDTH] = figure
            noise = generator.normal(0, SENSOR_NOISE, (HEIGHT, WIDTH, 1)).astype(np.float32)
            frame = np.clip(picture + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    write_atomically(path.with_suffix(".npy"), npy_bytes(_joints(generator, corner_F2)))


def make_sources(folder: Path, num_clips: int) -> DataSet:
    """The annotated source clips, written to `folder` unless they are there already."""
    make_folder(folder)
    videos = [folder / f"clip{number:03d}.mp4" for number in range(num_clips)]
    wanted = [
        (video, number) for number, video in enumerate(videos)
        if not (video.exists() and video.with_suffix(".npy").exists())
    ]
    for _ in run_tasks(_write_clip, wanted, _workers(len(wanted)), after_death="start the benchmark again"):
        pass
    clips = [
        ClipAnnotation(video.stem, number % 4, video, NUM_FRAMES, WIDTH, HEIGHT, np.load(video.with_suffix(".npy")))
        for number, video in enumerate(videos)
    ]
    return DataSet("bench", COCO17, ("a", "b", "c", "d"), {"all": [clip.key for clip in clips]}, clips)


def _workers(tasks: int) -> int:
    return min(job_cores(), tasks)


def packed(folder: Path, dataset: DataSet, codec: str, chroma: str = PackOptions.chroma) -> ShardSet:
    """The same clips packed with a codec's default quality at 320 px, in a folder for so many clips.

    Those that lie there already are taken; UserError if they were packed otherwise.
    """
    root = folder / f"packed-{codec}{'' if chroma == PackOptions.chroma else chroma}-{len(dataset.clips)}"
    options = PackOptions(codec=codec, chroma=chroma, workers=_workers(len(dataset.clips)), resume=True)
    if not (root / MANIFEST_NAME).exists():
        pack(dataset, root, options)
    shards = ShardSet.open(root)
    if shards.manifest.codec_options != options.coding:
        raise UserError(f"{root}: packed with {shards.manifest.codec_options}, expected {options.coding}; delete the folder")
    return shards


def write_source_tars_once(dataset: DataSet, folder: Path) -> list[str]:
    """Plain WebDataset tars of the source videos and joints."""
    import webdataset  # is not to count as the other loaders' memory

    names = [folder / f"source-{len(dataset.clips)}-{number}.tar" for number in range(SOURCE_TARS)]
    for number, name in enumerate(names):
        if name.exists():
            continue
        with atomic_file(name) as file, webdataset.TarWriter(file) as tar:
            for clip in dataset.clips[number::SOURCE_TARS]:
                tar.write({"__key__": clip.key, "mp4": Path(clip.video).read_bytes(), "pose.npy": clip.pose_MTVC})
    return [str(name) for name in names]
