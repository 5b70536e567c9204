"""Chooses the decoder for a codec and device, and defines the protocol of all decoders.

B clips, T sampled frames, S output size.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch

from svdata2vec.pipeline.blocksdecoder import BlockClipDecoder
from svdata2vec.pipeline.blockupload import BlockUploader
from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.pyavdecoder import PyavDecoder
from svdata2vec.pipeline.reference import ReferenceDecoder
from svdata2vec.pipeline.video import Video
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import check_known

DecoderName = Literal["dali", "reference"]
DALI_CPU_CODECS = ("jpeg", "vp9", "mjpeg")  # DALI decodes H.264 and HEVC on a GPU only


class FrameDecoder(Protocol):
    """Turns encoded clips into frames. One object serves one thread at a time."""

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Any) -> dict[int, str]:
        """Write every clip's frames (uint8 RGB) into memory from `room`; returns clip number -> reason of those that failed.

        The rows of failed clips have arbitrary content; all other rows are right.
        """

    def close(self) -> None:
        """Release threads, processes and device memory; may be called twice."""


def check_device(name: str) -> None:
    """Raise UserError unless this is a device that exists on this machine."""
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if known is None:
        raise UserError(f"device is {name!r}: expected 'cpu', 'cuda' or 'cuda:n'")
    if str(name) != "cpu" and int(known[1] or 0) >= (count := torch.cuda.device_count()):
        others = "a lower number or " if count else ""
        raise UserError(f"device is {name!r}, but PyTorch finds {count} GPUs here: use {others}'cpu'")


def numbered(device: str) -> torch.device:
    """The device with its number; "cuda" is the current GPU of the calling thread, which other threads do not share."""
    place = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if place.type == "cuda" and place.index is None else place


def room(
    decoder: FrameDecoder, num_clips: int, num_frames: int, size: int, device: torch.device
) -> Video:
    """The memory that a decoder fills: for frames (B, T, S, S, 3), or for blocks that are decoded later."""
    if isinstance(decoder, BlockUploader):
        return decoder.room(num_clips, num_frames, size)
    return torch.empty((num_clips, num_frames, size, size, 3), dtype=torch.uint8, device=device)


def make_decoder(
    name: DecoderName, codec: str, size: int, device: str, num_threads: int, engine_share: float = 1.0,
    run_pictures: int | None = None, blocks: BlockFormat | None = None,
) -> FrameDecoder:
    """The decoder for a codec on a device, or the reference decoder if `name` says so.

    Codec blocks: NumPy on the CPU, an upload to the GPU. Other codecs: DALI if it decodes them on the device, else PyAV
    processes. DALI is imported only here, and only if it is used.

    Args:
        size: side of the output in pixels.
        engine_share, run_pictures: as in `ClipLoader`.
        blocks: layout of the pictures of codec blocks.

    Raises:
        UserError: an unknown decoder, or a codec or decoder that does not run on the device.
    """
    check_known("decoder", name, get_args(DecoderName))
    on_cpu = torch.device(device).type == "cpu"
    if name == "reference":
        if not on_cpu:
            raise UserError(f"decoder 'reference' runs on the CPU, not on {device!r}: use 'dali', or the device 'cpu'")
        return ReferenceDecoder()
    if codec == "blocks":
        if on_cpu:
            return BlockClipDecoder(num_threads)
        assert blocks is not None
        return BlockUploader(blocks, device)
    if on_cpu and codec not in DALI_CPU_CODECS:
        return PyavDecoder(num_threads)
    if not on_cpu and codec == "mjpeg":
        raise UserError("mjpeg is not decoded on a GPU: pack as jpeg (the same pictures), or use --run.device cpu")
    from svdata2vec.pipeline.graph import DaliDecoder

    return DaliDecoder(
        codec, size, device=device, num_threads=num_threads, engine_share=engine_share, run_pictures=run_pictures
    )
