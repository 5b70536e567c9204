"""How a data set is packed: the options of `svdata2vec shard`."""

import os
from dataclasses import dataclass, field

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.encode import CODEC_QUALITY, JPEG_CHROMA


@dataclass(frozen=True)
class PackOptions:
    """How to pack: encoding, picture size, order, processes."""

    codec: str = "jpeg"
    """Encoding of the pictures: jpeg (random access, the default), vp9, h264, hevc, mjpeg, or copy (original stream)."""
    quality: int | None = None
    """JPEG quality, CRF, or qscale (mjpeg); None = the codec's own default."""
    chroma: str = "444"
    """Colour resolution of JPEGs: 444, or 420 for smaller files (video codecs always have 420)."""
    gop: int = 0
    """Frames between two key frames of a video codec; 0 = one key frame per clip."""
    size: int = 320
    """Side of the stored square, in pixels; a multiple of 32."""
    clips_per_shard: int = 128
    """Clips in one tar."""
    seed: int = 0
    """Seed of the order in which clips are packed."""
    pose_slack: int = 2
    """Frames at a clip's end that may lack a pose, or poses that may lack a frame; a clip with more is left out."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that decode and encode on this machine."""
    cluster: str | None = None
    """Address of a dask scheduler that does the work instead, e.g. tcp://scheduler:8786."""
    resume: bool = False
    """Go on with an unfinished folder; a finished one of the same data and options is kept."""

    def __post_init__(self) -> None:
        if self.codec not in CODEC_QUALITY:
            raise UserError(f"unknown codec {self.codec!r}: expected one of {', '.join(CODEC_QUALITY)}")
        if self.size % 32 or not 32 <= self.size <= 4096:
            raise UserError(f"size {self.size}: expected a multiple of 32 between 32 and 4096")
        if self.chroma not in JPEG_CHROMA:
            raise UserError(f"chroma {self.chroma!r}: expected one of {', '.join(JPEG_CHROMA)}")
        low, high = (1, 100) if self.codec == "jpeg" else (0, 63)
        if self.quality is not None and not low <= self.quality <= high:
            raise UserError(f"quality {self.quality}: expected {low}..{high} for codec {self.codec}")
        for name in ("gop", "pose_slack", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 or more")
        if self.clips_per_shard < 1:
            raise UserError(f"clips_per_shard {self.clips_per_shard}: expected 1 or more")

    @property
    def coded_quality(self) -> int:
        """`quality`, or the codec's own default."""
        return CODEC_QUALITY[self.codec] if self.quality is None else self.quality
