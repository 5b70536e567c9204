"""The loaders that `bench data` compares. Each yields the number of clips it delivered, batch by batch, without end.

Ours runs in this process with two threads; the others in two DataLoader workers, as their users run them.
"""

import io
import itertools
from collections.abc import Callable, Iterator

import av
import cv2
import numpy as np
import torch

from svdata2vec.kernels.functional import IMAGENET_MEAN, IMAGENET_STD
from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.graph import DaliDecoder
from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig, draw_resized_crop
from svdata2vec.pipeline.sampling import draw_frames
from svdata2vec.pipeline.seen import FramesSeen
from svdata2vec.pipeline.video import frames_of
from svdata2vec.runs.runtime import keep_freed_memory
from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.boxes import crop_square, joint_box
from svdata2vec.shards.reading.shardset import ShardSet

WORKERS, BATCH = 2, 4
PLAN = PlanConfig()
SEEN = FramesSeen(PLAN.num_frames, encoded=13, reach=2, seed=0)  # as the method's masks have it
DecodeFrames = Callable[[bytes | str, np.ndarray], list[np.ndarray]]


# ---- ours ---------------------------------------------------------------------------------------------------------


def ours(
    shards: ShardSet, device: str = "cpu", batch_size: int = BATCH, threads: int = WORKERS, seen: FramesSeen | None = None
) -> Iterator[int]:
    """Read, plan, decode, geometry: what training gets. Blocks, which the model decodes on a GPU, are decoded here.

    seen: the frames that pretraining sees; None: all, as fine-tuning does.
    """
    keep_freed_memory()  # as a training process does
    options = {"batch_size": batch_size, "device": device, "num_threads": threads, "seen": seen}
    with ClipLoader(shards, "all", PLAN, train=True, last_batch="partial", **options) as loader:  # type: ignore[arg-type]
        while True:
            for batch in loader:
                assert batch.video_BTHWC is not None
                frames_of(batch.video_BTHWC)
                yield len(batch)


def _read(shards: ShardSet) -> Iterator[list[EncodedClip]]:
    producer = ClipLoader(shards, "all", PLAN, batch_size=BATCH, train=True).make_producer()
    for read in producer.read(0, 0):
        yield [clip.encoded for clip in read.clips if clip.encoded is not None]


def ours_read_only(shards: ShardSet) -> Iterator[int]:
    """Storage, parsing and plans; every byte that is wanted has been compared with its checksum, nothing is decoded."""
    yield from map(len, _read(shards))


class DecodeOnly(DaliDecoder):
    """DALI's part of the loader's decoding."""

    def place(self, *_: object) -> None:
        """No geometry."""


def ours_decode(shards: ShardSet) -> Iterator[int]:
    """The same and DALI's decoding, without geometry."""
    decoder = DecodeOnly(shards.manifest.codec, PLAN.size, num_threads=WORKERS)
    out = torch.empty((BATCH, PLAN.num_frames, PLAN.size, PLAN.size, 3), dtype=torch.uint8)
    for clips in _read(shards):
        decoder.decode(clips, out)
        yield len(clips)


# ---- what a user would do instead -----------------------------------------------------------------------------------


def decode_pyav(video: bytes | str, frames_T: np.ndarray) -> list[np.ndarray]:
    """The wanted frames of a whole picture, by PyAV on one thread."""
    wanted = set(frames_T.tolist())
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else video, "r", metadata_errors="ignore") as container:
        container.streams.video[0].thread_count = 1
        found = {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number in wanted
        }
    return [found[number] for number in frames_T.tolist()]


def decode_decord(video: bytes | str, frames_T: np.ndarray) -> list[np.ndarray]:
    """By decord on one thread."""
    import decord

    reader = decord.VideoReader(io.BytesIO(video) if isinstance(video, bytes) else video, num_threads=1)
    return list(reader.get_batch(frames_T).asnumpy())


def decode_torchcodec(video: bytes | str, frames_T: np.ndarray) -> list[np.ndarray]:
    """By torchcodec on one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(video, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="approximate")
    return list(decoder.get_frames_at(frames_T.tolist()).data.numpy())


def original_chain(
    pictures: list[np.ndarray], joints_MTVC: np.ndarray, generator: np.random.Generator, train: bool = True
) -> np.ndarray:
    """uint8 (T, 224, 224, 3): square crop with black outside, 256, random-resized crop, 224, mirror, frame by frame."""
    height, width = pictures[0].shape[:2]
    box = crop_square(joint_box(joints_MTVC), width, height)
    window = draw_resized_crop(generator, 256, PLAN) if train else None
    flip = train and generator.random() < 0.5
    out = np.empty((len(pictures), 224, 224, 3), np.uint8)
    for t, picture in enumerate(pictures):
        square = padded_crop(picture, box)
        if window is not None:
            square = cv2.resize(square, (256, 256))[window[1] : window[3], window[0] : window[2]]
        resized = cv2.resize(square, (224, 224))
        out[t] = resized[:, ::-1] if flip else resized
    return out


def padded_crop(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box x1, y1, x2, y2 out of the picture, black outside."""
    x1, y1, x2, y2 = box
    height, width = picture.shape[:2]
    crop = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    crop[top - y1 : bottom - y1, left - x1 : right - x1] = picture[top:bottom, left:right]
    return crop


def normalised(frames_THWC: np.ndarray) -> torch.Tensor:
    """float32, mean and deviation as the original applies them in its workers."""
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return torch.from_numpy((frames_THWC.astype(np.float32) - mean) / std)


class SourceClips(torch.utils.data.Dataset):
    """The original's way: decode the whole source picture in a DataLoader worker."""

    def __init__(self, clips: list[ClipAnnotation], decode: DecodeFrames, normalise: bool) -> None:
        self.clips, self.decode, self.normalise = clips, decode, normalise

    def __getitem__(self, number: int) -> torch.Tensor:
        clip = self.clips[number % len(self.clips)]
        assert clip.pose_MTVC is not None
        cv2.setNumThreads(1)
        generator = keyed_generator("bench", number)
        frames_T = draw_frames(generator, PLAN.num_frames, clip.pose_MTVC.shape[1])
        out = original_chain(self.decode(str(clip.video), frames_T), clip.pose_MTVC[:, frames_T], generator)
        return normalised(out) if self.normalise else torch.from_numpy(out)


def source_clips(dataset: DataSet, decode: DecodeFrames, normalise: bool) -> Iterator[int]:
    """Batches of `SourceClips` from two workers."""
    clips = SourceClips(dataset.clips, decode, normalise)
    numbers = itertools.count()
    yield from map(len, torch.utils.data.DataLoader(clips, sampler=numbers, batch_size=BATCH, num_workers=WORKERS))


def _from_tar(sample: dict) -> torch.Tensor:
    cv2.setNumThreads(1)
    generator = keyed_generator("bench", sample["__key__"])
    joints = np.load(io.BytesIO(sample["pose.npy"]))
    frames_T = draw_frames(generator, PLAN.num_frames, joints.shape[1])
    return normalised(original_chain(decode_pyav(sample["mp4"], frames_T), joints[:, frames_T], generator))


def plain_webdataset(urls: list[str]) -> Iterator[int]:
    """webdataset + PyAV over tars of the source videos, two workers."""
    import webdataset

    clips = webdataset.WebDataset(urls, shardshuffle=False).map(_from_tar).repeat()
    batches = clips.batched(BATCH, collation_fn=torch.stack)
    yield from map(len, torch.utils.data.DataLoader(batches, batch_size=None, num_workers=WORKERS))
