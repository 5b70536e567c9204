"""Reads a video's frames once, in order, as square RGB crops.

Frames come as a player shows them: one per coded picture whatever the time stamps say (variable frame rates become plain
frame numbers), less those that an edit list hides, turned and mirrored as the file says, with square pixels.
(`reading/decode.py` decodes stored clips.)
"""

import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any, cast

import av
import numpy as np
from av.stream import Disposition

from svdata2vec.shards.completeness import Completeness
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.orientation import Orientation
from svdata2vec.shards.times import Times
from svdata2vec.shards.urls import filesystem_of

# Formats that can be cut before the colour conversion: 8 bits, three planes, chroma halved both ways. (Pictures with an
# odd side are converted by another way of the library, which interpolates colours, and interlaced ones field by field:
# those are converted whole.)
_CUTTABLE = ("yuv420p", "yuvj420p")
_NUMBERED = re.compile(r"(?i)(?!\.)(.*\D|)(\d+)\.(jpe?g|png)")  # img_00001.jpg, 12.png; no hidden file
LEAST_ASPECT = 1 / 4  # of width and height of a pixel: files that state less, or more than 4, state nonsense


@dataclass(frozen=True)
class VideoInfo:
    """Facts of a video: size in pixels and nominal frames per second of what is shown; how the stored picture is turned.

    `stored_width`, `stored_height`: of the coded picture, before it is turned; `square_width` of it with square pixels.
    """

    width: int
    height: int
    fps: float
    orientation: Orientation
    stored_width: int
    stored_height: int
    square_width: int

    @property
    def kept_as_stored(self) -> bool:
        """Whether the stored picture is the one that is shown."""
        return self.orientation == Orientation() and self.square_width == self.stored_width


def open_bytes(path: str | Path) -> IO[bytes]:
    """A binary file from a path or an fsspec URL; of a folder of numbered pictures, these one after the other.

    UserError if it is no regular file, such as a pipe, which might never deliver anything.
    """
    if "://" in str(path):
        system, place = filesystem_of(str(path))
        return system.open(place, "rb")
    if Path(path).is_dir():
        return cast(IO[bytes], _Joined(numbered_pictures(path)))
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"{path}: is a pipe or a device; expected a file, or a folder of numbered pictures")
    return Path(path).open("rb")


class _Joined(io.RawIOBase):
    """Files one after the other, read forwards: the pictures of a long video fill gigabytes."""

    def __init__(self, paths: list[Path]) -> None:
        self._left, self._file = iter(paths), io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self._file.readinto(buffer)):
            if (path := next(self._left, None)) is None:
                return 0
            self._file = io.BytesIO(path.read_bytes())
        return count


def numbered_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder that is a video in frames (img_00001.jpg, ...), by number; empty if it is none.

    Of several kinds in one folder (img_, flow_x_) those whose names do not begin with "flow" count, and of these the most.
    UserError if as many are of another kind, or two have one number: which is the video, or the frame, is not guessed. And if
    numbers are missing: all pictures after them would be too early for their poses. Every fifth number, or any first, is fine.
    """
    kinds = _most_pictures(folder)
    if len(kinds) > 1:
        first, second, *_ = (pictures[0][1].name for pictures in kinds)
        raise UserError(f"{folder}: as many numbered pictures like {first} as like {second}; expected more of one kind than of "
                        "any other: move what is not the video to another folder")
    pictures = kinds[0] if kinds else []
    for (number, path), (next_number, other) in pairwise(pictures):
        if number == next_number:
            raise UserError(f"{folder}: {path.name} and {other.name} are both picture {number}; expected every number once")
    steps = [after - number for (number, _), (after, _) in pairwise(pictures)]
    if steps and min(steps) == 1 < max(steps):
        gap = next(place for place, step in enumerate(steps) if step > 1)
        raise UserError(f"{folder}: after {pictures[gap][1].name} comes {pictures[gap + 1][1].name}; expected every number, or "
                        "a constant step: pictures are missing; copy or extract them again")
    return [path for _, path in pictures]


def holds_pictures(folder: str | Path) -> bool:
    """Whether a folder is a video in frames, though two kinds of pictures may keep it from being read."""
    return bool(_most_pictures(folder))


def _most_pictures(folder: str | Path) -> list[list[tuple[int, Path]]]:
    """Numbers and pictures of the kind with the most, at least two; where as many are of another kind, these as well."""
    kinds: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in Path(folder).iterdir():
        match = _NUMBERED.fullmatch(path.name)
        if match is not None and not path.name.lower().startswith("flow"):
            kinds[match[1], match[3].lower()].append((int(match[2]), path))
    most = max(map(len, kinds.values()), default=0)
    return [sorted(kinds[kind]) for kind in sorted(kinds) if len(kinds[kind]) == most > 1]


def holds_video(path: str | Path) -> bool:
    """Whether a file has a video stream, no cover picture, whose first picture can be decoded."""
    try:
        with open_bytes(path) as file, av.open(file, mode="r", metadata_errors="ignore") as container:
            name = container.format.name
            if name in ("tty", "image2") or name.endswith("_pipe"):  # a text or a still picture
                return False
            stream = _video_stream(container)
            return stream is not None and next(container.decode(stream), None) is not None
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def _video_stream(container: Any) -> Any:
    """The stream of a container that is its video; None if it has none that can be decoded, but perhaps a cover picture."""
    stream = container.streams.best("video")
    return None if stream is None or _is_cover(stream) else stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


class VideoReader:
    """Decodes one video, forwards only. `info` is there from the start; `position` is the next frame's number.

    Raises UserError naming the file if it has no readable video stream or a damaged frame.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._pictures = numbered_pictures(path) if Path(self.path).is_dir() else []
        if Path(self.path).is_dir() and not self._pictures:
            raise UserError(f"{self.path}: a folder without numbered pictures; expected a video")
        self._file = open_bytes(path)
        try:
            self._container = self._open_container()
            self._stream = _video_stream(self._container)
            self._stream.codec_context.thread_count = 1  # one process per core packs faster than threads
            self._completeness = Completeness(self._container, self._stream)
            decoded = self._decode()
            first = next(decoded)
            self.info = self._describe(first)
            self._frames = chain([first], decoded)
            self.position = 0
        except BaseException:
            self._file.close()
            raise

    def _open_container(self) -> Any:
        if not self._pictures:
            if not self._file.read(1):
                raise UserError(f"{self.path}: the file is empty")
            self._file.seek(0)
        with self._named():
            kind = None if not self._pictures else "png_pipe" if self._pictures[0].suffix.lower() == ".png" else "mjpeg"
            container = av.open(self._file, mode="r", format=kind, metadata_errors="ignore")
        if _video_stream(container) is None:
            kinds = ", ".join(sorted({"a cover picture" if _is_cover(stream) else stream.type for stream in container.streams}))
            raise UserError(f"{self.path}: no video stream that can be decoded (found {kinds or 'nothing'})")
        return container

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn the decoder's exceptions into one that names the file."""
        try:
            yield
        except av.error.FFmpegError as error:
            raise UserError(f"{self.path}: cannot be decoded ({error.strerror or error})") from error

    def _decode(self) -> Iterator[Any]:
        size = None
        with self._named():
            for number, frame in enumerate(self._decoded()):
                if frame.is_corrupt:
                    raise UserError(f"{self.path}: frame {number} is damaged")
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise UserError(f"{self.path}: the picture changes from {size[0]}x{size[1]} to "
                                    f"{frame.width}x{frame.height} at frame {number}; re-encode it to one size")
                yield frame
        if size is None:
            raise UserError(f"{self.path}: the video stream has no frame")

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux():  # of all streams: see `Completeness`
            self._completeness.add(packet)
            if packet.stream.index == self._stream.index:  # (`stream_index` is 0 in the packet at the end)
                yield from packet.decode()

    def _describe(self, frame: Any) -> VideoInfo:
        orientation = Orientation.of(frame)
        aspect = float(self._stream.sample_aspect_ratio or 1)
        square_width = round(frame.width * aspect) if LEAST_ASPECT <= aspect <= 1 / LEAST_ASPECT else frame.width
        width, height = (frame.height, square_width) if orientation.turns_sides else (square_width, frame.height)
        rate = None if self._pictures else self._stream.average_rate or self._stream.guessed_rate
        return VideoInfo(width, height, float(rate) if rate else 0.0, orientation, frame.width, frame.height, square_width)

    def cut_short(self) -> str | None:
        """After the last frame: why the file cannot be whole; None if nothing speaks against it."""
        if self._pictures and self.position != len(self._pictures):
            return f"{self.position} of {len(self._pictures)} pictures can be decoded"
        return self._completeness.problem()

    @property
    def stated_frames(self) -> int:
        """Number of frames as the file states it, before any is read; of a folder of pictures theirs; 0 if it is not stated."""
        return len(self._pictures) or self._completeness.stated_frames

    @property
    def is_first_stream(self) -> bool:
        """Whether the frames are those of the file's first video stream, which programs take that do not choose (DALI)."""
        return bool(self._stream.index == self._container.streams.video[0].index)

    @property
    def hides_frames(self) -> bool:
        """Whether frames read so far are stored but not shown (an edit list)."""
        return self._completeness.hidden_frames > 0

    def crops(self, x: int, y: int, side: int, start: int = 0, times: Times | None = None) -> Iterator[np.ndarray]:
        """uint8 (side, side, 3) RGB of the frames from `start` on: the square at (x, y) in upright pixels.

        Black outside the picture. The array is reused for the next frame. `start` must not lie before `position`;
        whoever stops early can call again for frames further on.
        """
        if start < self.position:
            raise ValueError(f"{self.path}: frame {start} was passed, the next one is {self.position}")
        canvas = np.zeros((side, side, 3), np.uint8)
        left, top = max(x, 0), max(y, 0)
        right, bottom = max(min(x + side, self.info.width), left), max(min(y + side, self.info.height), top)
        target = canvas[top - y : bottom - y, left - x : right - x]
        region = (left, top, right, bottom)
        cutter = _Cutter()
        times = times or Times()
        while True:
            with times.step("decode"):
                frame = self._next()
            if frame is None:
                return
            if self.position <= start:
                continue
            with times.step("convert"):
                if target.size:
                    target[:] = self._region(frame, region, cutter)
            yield canvas

    def count(self, most: int | None = None) -> int:
        """Number of frames, by decoding all of them, or `most` if that is fewer."""
        while self.position != most and self._next() is not None:
            pass
        return self.position

    def _next(self) -> Any:
        """The next frame, None at the end."""
        frame = next(self._frames, None)
        self.position += frame is not None
        return frame

    def _region(self, frame: Any, region: tuple[int, int, int, int], cutter: "_Cutter") -> np.ndarray:
        left, top, right, bottom = region
        if not self.info.kept_as_stored:
            return self.info.orientation.apply(_rgb(frame, self.info.square_width))[top:bottom, left:right]
        if frame.format.name in _CUTTABLE and not ((frame.width | frame.height) & 1 or frame.interlaced_frame):
            return cutter.rgb(frame, region)
        return _rgb(frame)[top:bottom, left:right]

    def close(self) -> None:
        """Close the file; further reading is an error."""
        self._container.close()
        self._file.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Cutter:
    """Cuts a region out of the planes and converts only that to RGB: same pixels as converting the whole frame."""

    def __init__(self) -> None:
        self._frame: Any = None

    def rgb(self, frame: Any, region: tuple[int, int, int, int]) -> np.ndarray:
        left, top, right, bottom = region
        even_left, even_top = left & ~1, top & ~1
        width, height = (right + 1 & ~1) - even_left, (bottom + 1 & ~1) - even_top
        if self._frame is None:
            self._frame = av.VideoFrame(width, height, frame.format.name)
        self._frame.colorspace, self._frame.color_range = frame.colorspace, frame.color_range
        for number, (source, target) in enumerate(zip(frame.planes, self._frame.planes, strict=True)):
            shift = 1 if number else 0
            y, x = even_top >> shift, even_left >> shift
            rows, columns = height >> shift, width >> shift
            _rows(target)[:rows, :columns] = _rows(source)[y : y + rows, x : x + columns]
        return _rgb(self._frame)[top - even_top : bottom - even_top, left - even_left : right - even_left]


def _rgb(frame: Any, width: int | None = None) -> np.ndarray:
    """uint8 (height, width, 3), by default of the frame's own width.

    One thread: by default the library starts some for every frame, which costs more.
    """
    return frame.reformat(width=width, format="rgb24", threads=1).to_ndarray()


def _rows(plane: Any) -> np.ndarray:
    """View (height, line size) of a plane's memory."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]


def silence_decoder() -> None:
    """Keep FFmpeg's own messages off the terminal: what matters comes as an exception or a skipped clip."""
    av.logging.set_level(av.logging.PANIC)
