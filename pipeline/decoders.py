"""Which decoder serves which codec on which device, and what every decoder promises.

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
DALI_CPU_CODECS = ("jpeg", "vp9", "mjpeg")  # H.264 and HEVC it decodes on a GPU only


class FrameDecoder(Protocol):
    """Turns encoded clips into frames. One object serves one thread at a time."""

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Any) -> dict[int, str]:
        """Write every clip's frames (uint8 RGB) where `room` said and return {number of a clip that cannot be decoded: why}.

        The rows of failed clips hold anything; all other rows are right.
        """

    def close(self) -> None:
        """Give threads, processes and device memory back; may be called twice."""


def check_device(name: str) -> None:
    """Raise UserError unless batches can arrive there on this machine."""
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if known is None:
        raise UserError(f"device is {name!r}: expected 'cpu', 'cuda' or 'cuda:n'")
    if str(name) != "cpu" and int(known[1] or 0) >= (count := torch.cuda.device_count()):
        others = "a lower number or " if count else ""
        raise UserError(f"device is {name!r}, but PyTorch finds {count} GPUs here: use {others}'cpu'")


def numbered(device: str) -> torch.device:
    """A device by its number: "cuda" is the current GPU of the thread that calls, which no other thread knows."""
    place = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if place.type == "cuda" and place.index is None else place


def room(
    decoder: FrameDecoder, num_clips: int, num_frames: int, size: int, device: torch.device
) -> Video:
    """What a decoder fills: memory for frames (B, T, S, S, 3), or for what is decoded later."""
    if isinstance(decoder, BlockUploader):
        return decoder.room(num_clips, num_frames, size)
    return torch.empty((num_clips, num_frames, size, size, 3), dtype=torch.uint8, device=device)


def make_decoder(
    name: DecoderName, codec: str, size: int, device: str, num_threads: int, engine_share: float = 1.0,
    run_pictures: int | None = None, blocks: BlockFormat | None = None,
) -> FrameDecoder:
    """For blocks NumPy, on a GPU an upload; else DALI for what it decodes on the device, PyAV processes for the rest; or the
    reference.

    size: output pixels. engine_share, run_pictures: as `ClipLoader` has them. blocks: how the pictures of codec blocks are laid
    out. DALI is imported here alone, and only if it is used. Raises UserError for another decoder or device.
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
