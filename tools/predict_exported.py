"""A video's classes by an exported classifier, without svdata2vec: NumPy, OpenCV, PyAV, and ONNX Runtime or PyTorch.

    python predict_exported.py MODEL.onnx|MODEL.pt2 VIDEO [X1,Y1,X2,Y2] [--frames START STOP]

The file says how its clips are prepared (svdata2vec/README.md, "Exported files"). The scores are those of `svdata2vec predict`
with --box, without a box those of --whole-picture; --frames takes the frames START to STOP - 1 alone, counted from 0.
"""

import argparse
import hashlib
import json
import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np


class InputError(Exception):
    """What is wrong with a file or an option: what was found, what was expected."""


def load(model: Path) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
    """How clips are prepared, and the network: uint8 (B, T, S, S, 3) -> logits (B, classes)."""
    expected = "expected a file of `svdata2vec export`, .onnx or .pt2"
    if model.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{model}: ends in {model.suffix or 'nothing'}; {expected}")
    if not model.is_file():
        raise InputError(f"{model}: no such file; {expected}")
    try:
        return read(model)
    except ImportError as error:
        raise InputError(f"{model}: {error}; install ONNX Runtime for .onnx, PyTorch for .pt2") from error
    except Exception as error:  # each library has exceptions of its own for a damaged file
        raise InputError(f"{model}: cannot be read ({type(error).__name__}); {expected}") from error


def read(model: Path) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
    """`load`, with the exceptions of the libraries."""
    if model.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        card = session.get_modelmeta().custom_metadata_map["svdata2vec"]
        return json.loads(card), lambda clips: session.run(None, {"video_BTHWC": clips})[0]
    if not zipfile.is_zipfile(model):  # PyTorch would print a traceback besides
        raise zipfile.BadZipFile
    import torch

    texts = {"svdata2vec": ""}
    network = torch.export.load(model, extra_files=texts).module()
    return json.loads(texts["svdata2vec"]), lambda clips: network(torch.from_numpy(clips)).detach().numpy()


def frame_numbers(rule: dict[str, Any], name: str, n: int, view: int) -> np.ndarray:
    """The T frames that a view sees of n: one of each of T equal segments, from its middle or drawn by the video's name."""
    count, views, kind = rule["num_frames"], rule.get("views", 1), rule["frame_draw"]
    if kind == "centre":
        if n < count:
            return (view * n // views + np.arange(count)) % n
        return (2 * (views * np.arange(count) + view) + 1) * n // (2 * views * count)
    if kind != "fixed":
        raise InputError(f"the model's frames are drawn by the rule {kind}, which this script lacks; expected centre or fixed")
    parts = (b"s", "evaluate"), (b"i", str(rule["frame_seed"])), (b"s", name), (b"i", str(view))
    text = b"".join(kind + len(part.encode()).to_bytes(4, "little") + part.encode() for kind, part in parts)
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    draw = np.random.Generator(np.random.Philox(key=key))
    if n < count:
        return (draw.integers(n) + np.arange(count)) % n
    if n < 2 * count:
        skipped = np.isin(np.arange(count + 1), draw.permutation(count + 1)[: n - count])
        return np.arange(count) + np.cumsum(skipped)[:-1]
    bounds = np.arange(count + 1) * n // count
    return bounds[:-1] + draw.integers(np.diff(bounds))


def upright(frame: Any, aspect: float) -> np.ndarray:
    """The picture as a player shows it: square pixels, mirrored and turned as the display matrix says."""
    picture = frame.reformat(width=round(frame.width * aspect), format="rgb24", threads=1).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    if a * d < b * c:
        picture, a, b = picture[:, ::-1], -a, -b
    return np.rot90(picture, -round(np.degrees(np.arctan2(b, a)) / 90))


def prepare(picture: np.ndarray, box: list[float] | None, rule: dict[str, Any]) -> np.ndarray:
    """uint8 (S, S, 3): a square reduced to the size at which clips are stored (cubic), of it the crop (bilinear)."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = np.array(box or (0, 0, width, height), np.float32)
    half, x, y = max(x2 - x1, y2 - y1) / 2, (x1 + x2) / 2, (y1 + y2) / 2
    if box:
        half *= np.float32(1 + rule["padding"])
        x1, y1, x2, y2 = crop = [int(edge) for edge in (x - half, y - half, x + half, y + half)]
    else:  # the whole picture in a square
        crop = [x - half, y - half, x + half, y + half]
    grow = rule["stored_margin"] * max(x2 - x1, y2 - y1)
    left, top, right, bottom = np.clip((x1 - grow, y1 - grow, x2 + grow, y2 + grow), 0, (width, height, width, height))
    side = int(max(np.ceil(right) - np.floor(left), np.ceil(bottom) - np.floor(top), rule["stored_size"]))
    x, y = round((left + right) / 2 - side / 2), round((top + bottom) / 2 - side / 2)
    padded = np.pad(picture, ((side, side), (side, side), (0, 0)))[y + side : y + 2 * side, x + side : x + 2 * side]
    stored = cv2.resize(padded, [rule["stored_size"] or side] * 2, interpolation=cv2.INTER_CUBIC).astype(float)
    for low, high in ((crop[1] - y, crop[3] - y), (crop[0] - x, crop[2] - x)):  # rows, then columns
        centres = (low + (np.arange(rule["size"]) + 0.5) * (high - low) / rule["size"]) * len(stored) / side
        weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(len(stored)) - 0.5))
        stored = np.tensordot(stored, weights, axes=(0, 1))  # what was first is last: (W, 3, S), then (3, S, S)
    return np.clip(np.rint(stored.transpose(1, 2, 0)), 0, 255).astype(np.uint8)


def pictures(video: Path) -> Iterator[tuple[Any, float]]:
    """The frames of a video as they are stored, and how wide their pixels are for their height."""
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise InputError(f"{video}: no pictures in this file; expected a video")
            for frame in container.decode(video=0):
                yield frame, float(container.streams.video[0].sample_aspect_ratio or 1)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{video}: {error.strerror}; expected a video") from error


def part_of(video: Path, frames: Sequence[int] | None) -> tuple[int, int]:
    """The first frame, and the one behind the last: those that are asked for, or all."""
    count = sum(1 for _ in pictures(video))
    if not count:
        raise InputError(f"{video}: no frame can be decoded; expected a video")
    start, stop = frames or (0, count)
    if not 0 <= start < stop <= count:
        raise InputError(f"--frames {start} {stop}: expected 0 <= START < STOP <= {count}, the frames of {video}")
    return start, stop


def recognise(model: Path, video: Path, box: list[float] | None, frames: Sequence[int] | None) -> list[tuple[str, float]]:
    """The classes of a video with their scores, best first."""
    card, logits_of = load(model)
    rule, (start, stop) = card["preprocessing"], part_of(video, frames)
    numbered = (frame_numbers(rule, video.stem, stop - start, view) for view in range(rule.get("views", 1)))
    views = [(start + numbers_T).tolist() for numbers_T in numbered]
    wanted, seen = {number for numbers in views for number in numbers}, {}
    for number, (frame, aspect) in enumerate(pictures(video)):
        if number in wanted:
            seen[number] = prepare(upright(frame, aspect), box, rule)
    logits = logits_of(np.array([[seen[number] for number in numbers] for numbers in views])).astype(float)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (likely / likely.sum(axis=1, keepdims=True)).mean(axis=0)
    return [(card["classes"][place], float(scores[place])) for place in np.argsort(-scores)]


def edges(text: str) -> list[float]:
    """A box as the command line has it."""
    try:
        x1, y1, x2, y2 = box = [float(edge) for edge in text.split(",")]
    except ValueError:
        x1 = x2 = y1 = y2 = math.nan
    if not (x1 < x2 and y1 < y2):
        raise argparse.ArgumentTypeError(f"{text!r}; expected four numbers of pixels with X1 < X2 and Y1 < Y2")
    return box


def main(words: Sequence[str] | None = None) -> int:
    """Print the classes of a video with their scores in per cent, best first; wrong input is one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="file of `svdata2vec export`: .onnx or .pt2")
    parser.add_argument("video", type=Path, metavar="VIDEO", help="video file")
    parser.add_argument("box", type=edges, nargs="?", metavar="X1,Y1,X2,Y2", help="around the persons, in pixels as played")
    parser.add_argument("--frames", type=int, nargs=2, metavar=("START", "STOP"), help="a part of the video (default: all)")
    options = parser.parse_intermixed_args(words)  # the box may stand behind --frames
    try:
        found = recognise(**vars(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, score in found:
        print(f"{100 * score:6.2f} %  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
