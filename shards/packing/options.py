"""How a data set is packed: the options of `svdata2vec shard`."""

from dataclasses import dataclass, field
from typing import Annotated

from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.encode import CODEC_QUALITY, JPEG_CHROMA, QUALITY_RANGE, VIDEO_CODECS
from svdata2vec.shards.ranges import Count, Range, Seed, check_fields, check_known, check_number

# Options that do not apply to other codecs. `chroma` may be 420, which video codecs and blocks have anyway.
OF_CODECS = {"luma_bits": ("blocks",), "chroma_bits": ("blocks",), "chroma": ("jpeg",), "gop": (*VIDEO_CODECS,),
             "size": ("jpeg", "blocks", *VIDEO_CODECS)}
WITHOUT_QUALITY = {"blocks": "has none but --luma-bits and --chroma-bits", "copy": "encodes nothing; leave it out"}


@dataclass(frozen=True)
class PackOptions:
    """How to pack: encoding, picture size, order, processes."""

    codec: str = "jpeg"
    """Encoding of the pictures: jpeg (random access, the default), blocks (read by a GPU without a decoder, three
    to four times the bytes), vp9, h264, hevc, mjpeg, or copy (original stream)."""
    quality: Annotated[int, Range(0, 100)] | None = None
    """JPEG quality, CRF, or qscale (mjpeg); None = the codec's own default."""
    luma_bits: Annotated[int, Range(2, 3)] = 3
    """Codec blocks: bits of a pixel's brightness between the two ends of its block; 2 saves a fifth of the bytes."""
    chroma_bits: Annotated[int, Range(2, 3)] = 2
    """Codec blocks: the same of its colour, which has half the resolution."""
    chroma: str = "420"
    """Colour resolution of JPEGs: 420, that of videos, or 444 for a fifth more bytes and two fifths more time to load."""
    gop: Annotated[int, Range(0, 10**6)] = 0
    """Frames between two key frames of a video codec; 0 = one key frame per clip."""
    size: Annotated[int, Range(32, 4096, multiple=32)] = 320
    """Side of the stored square, in pixels; a multiple of 32. Codec copy keeps the source's size, and has no such
    option."""
    clips_per_shard: Count = 128
    """Clips in one tar."""
    seed: Seed = 0
    """Seed of the order in which clips are packed."""
    pose_slack: Annotated[int, Range(0)] = 2
    """Frames at a clip's end that may lack a pose, or poses that may lack a frame; a clip with more is left out."""
    workers: Annotated[int, Range(1, 10_000)] = field(default_factory=job_cores)
    """Processes that decode and encode on this machine; by default one per core that this one may use."""
    cluster: str | None = None
    """Address of a dask scheduler that does the work instead, e.g. tcp://scheduler:8786."""
    resume: bool = False
    """Continue an unfinished folder; a finished one of the same data and options is kept."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_known("codec", self.codec, [*CODEC_QUALITY])
        check_known("chroma", self.chroma, [*JPEG_CHROMA])
        for name, codecs in OF_CODECS.items():
            if getattr(self, name) != getattr(PackOptions, name) and not self.has(name):
                raise UserError(f"{name} is {getattr(self, name)}: codec {self.codec} has no such option, {', '.join(codecs)} "
                                f"{'have' if len(codecs) > 1 else 'has'}; leave it out")
        if self.quality is not None and self.codec in WITHOUT_QUALITY:
            raise UserError(f"quality is {self.quality}: codec {self.codec} {WITHOUT_QUALITY[self.codec]}")
        if self.quality is not None:
            check_number(f"quality for codec {self.codec}", self.quality, *QUALITY_RANGE[self.codec])

    def has(self, name: str) -> bool:
        """Whether an option applies to the codec."""
        return self.codec in OF_CODECS.get(name, (self.codec,))

    @property
    def blocks(self) -> BlockFormat | None:
        """Layout of the pictures, codec blocks only."""
        return BlockFormat(self.size, self.luma_bits, self.chroma_bits) if self.codec == "blocks" else None

    @property
    def coding(self) -> dict[str, int]:
        """The codec's options, as the manifest has them."""
        if self.blocks is not None:
            return {"luma_bits": self.luma_bits, "chroma_bits": self.chroma_bits}
        coding = {"quality": self.coded_quality, "gop": self.gop}
        return coding | {"chroma": int(self.chroma)} if self.codec == "jpeg" else coding

    @property
    def packed_size(self) -> int:
        """Side of the stored square as the manifest has it; 0 for codec copy."""
        return 0 if self.codec == "copy" else self.size

    @property
    def coded_quality(self) -> int:
        """`quality`, or the codec's own default."""
        return CODEC_QUALITY[self.codec] if self.quality is None else self.quality
