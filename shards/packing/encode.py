"""Encodes the packed frames of one clip into its video component(s).

An encoder's `add` takes uint8 RGB frames (size, size, 3) one by one (the array may be reused afterwards), its `finish`
returns component name -> bytes. All run on one thread and write nothing that depends on time or machine, so that equal
input gives equal bytes.
"""

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from svdata2vec.shards.atomic import npy_bytes
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.blockencoder import BlockFrameEncoder
from svdata2vec.shards.reading.sample import OFFSETS

# 4:4:4 keeps 2 to 3 dB more of the model's crop, for 20 to 40 % more bytes (tools/results/packing_*.json) and 40 % more time to
# load (bench_data.json). Videos are 4:2:0 too, but of larger pictures.
JPEG_CHROMA = {"444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}


class JpegEncoder:
    """One blob of baseline JPEGs and an int64 (F + 1,) table of offsets: frame f is blob[offsets[f]:offsets[f + 1]]."""

    def __init__(self, quality: int, chroma: str) -> None:
        self._options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, JPEG_CHROMA[chroma]]
        self._parts: list[bytes] = []

    def add(self, frame_HWC: np.ndarray) -> None:
        ok, coded = cv2.imencode(".jpg", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), self._options)
        if not ok:
            raise UserError(f"a frame of shape {frame_HWC.shape} cannot be written as JPEG")
        self._parts.append(coded.tobytes())

    def finish(self) -> dict[str, bytes]:
        offsets = np.cumsum([0, *(len(part) for part in self._parts)], dtype=np.int64)
        return {"jpegs": b"".join(self._parts), OFFSETS: npy_bytes(offsets)}


class BlockClipEncoder:
    """A header, followed by frames of one size (`shards/blocks.py`)."""

    def __init__(self, layout: BlockFormat) -> None:
        self._layout, self._encode = layout, BlockFrameEncoder(layout)
        self._parts: list[bytes] = []

    def add(self, frame_HWC: np.ndarray) -> None:
        self._parts.append(self._encode(frame_HWC).tobytes())

    def finish(self) -> dict[str, bytes]:
        return {"blocks": b"".join([self._layout.header(len(self._parts)), *self._parts])}


BT601_MATRIX = 6  # AVCOL_SPC_SMPTE170M; PyAV's `Colorspace` counts as the scaling library does


@dataclass(frozen=True)
class VideoCodec:
    """Settings of a codec: FFmpeg's encoder, pixel format, name and default of its quality option, other options.

    `tagged`: whether the stream states its colour space. (JPEG has only one.)
    """

    encoder: str
    pixel_format: str
    quality_option: str
    quality: int
    options: tuple[tuple[str, str], ...] = ()
    tagged: bool = True


VIDEO_CODECS = {
    "vp9": VideoCodec("libvpx-vp9", "yuv420p", "crf", 24, (
        ("b", "0"), ("deadline", "good"), ("cpu-used", "4"), ("row-mt", "0"), ("tile-columns", "0"))),
    # x264's macroblock tree gives different bytes from call to call (its AVX-512 code; not without assembler)
    "h264": VideoCodec("libx264", "yuv420p", "crf", 18, (("preset", "medium"), ("mbtree", "0"))),
    "hevc": VideoCodec("libx265", "yuv420p", "crf", 18, (
        ("preset", "fast"), ("x265-params", "log-level=error:pools=none:frame-threads=1:info=0"))),
    "mjpeg": VideoCodec("mjpeg", "yuvj420p", "qscale", 3, tagged=False),
}

QUALITY_RANGE = {"jpeg": (1, 100), "vp9": (0, 63), "h264": (0, 51), "hevc": (0, 51), "mjpeg": (1, 63)}  # the encoders' own
CODEC_QUALITY = {"jpeg": 90, "blocks": 0, **{name: codec.quality for name, codec in VIDEO_CODECS.items()}, "copy": 0}


class VideoClipEncoder:
    """An MP4 with constant frame rate; `gop` frames between key frames, 0 = one key frame per clip."""

    def __init__(self, codec: VideoCodec, quality: int, gop: int, size: int, fps: float) -> None:
        self._buffer = io.BytesIO()
        # The frame rate only affects time stamps; videos without one get 30.
        rate = Fraction(fps if fps > 0 else 30.0).limit_denominator(1001)
        self._container = av.open(self._buffer, "w", format="mp4", container_options={"fflags": "+bitexact"})
        self._stream = cast(Any, self._container.add_stream(codec.encoder, rate=rate))
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = codec.pixel_format
        context = self._stream.codec_context
        context.thread_count = 1
        context.gop_size = gop or 1_000_000
        context.flags |= av.codec.context.Flags.bitexact
        if codec.tagged:
            context.color_range, context.colorspace = ColorRange.MPEG, BT601_MATRIX  # how the pictures are converted
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709  # those of nearly all cameras
        options = dict(codec.options)
        if codec.quality_option == "qscale":
            context.qmin = context.qmax = quality
        else:
            options[codec.quality_option] = str(quality)
        self._stream.options = options
        self._codec = codec
        self._count = 0

    def add(self, frame_HWC: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24").reformat(format=self._codec.pixel_format, threads=1)
        frame.pts = self._count
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> dict[str, bytes]:
        for packet in self._stream.encode():
            # FFmpeg's x265 reads decoding times from uninitialised memory if there are fewer than three frames.
            if self._codec.encoder == "libx265" and self._count < 3:
                packet.dts = packet.pts
            self._container.mux(packet)
        self._container.close()
        return {"mp4": self._buffer.getvalue()}


Encoder = JpegEncoder | BlockClipEncoder | VideoClipEncoder
