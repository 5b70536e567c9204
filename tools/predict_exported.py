"""A video's classes by an exported classifier, without svdata2vec: NumPy, OpenCV, PyAV, and ONNX Runtime or PyTorch.

    python predict_exported.py MODEL.onnx|MODEL.pt2 VIDEO [X1,Y1,X2,Y2] [--frames START STOP]

The file says how its clips are prepared (svdata2vec/README.md, "Exported files"). The scores are those of `svdata2vec predict`
with --box, without a box those of --whole-picture; --frames takes the frames START to STOP - 1 alone, counted from 0.
"""

import argparse
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np


def load(model: str) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
    """How clips are prepared, and the network: uint8 (B, T, S, S, 3) -> logits (B, classes)."""
    if not Path(model).is_file():
        raise ValueError(f"{model}: no such file; expected one that `svdata2vec export` wrote, .onnx or .pt2")
    try:
        if model.endswith(".onnx"):
            import onnxruntime

            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            card = session.get_modelmeta().custom_metadata_map["svdata2vec"]
            return json.loads(card), lambda clips: session.run(None, {"video_BTHWC": clips})[0]
        import torch

        logging.getLogger("torch.export").setLevel(logging.ERROR)  # it logs the traceback of what it raises
        texts = {"svdata2vec": ""}
        network = torch.export.load(model, extra_files=texts).module()
        return json.loads(texts["svdata2vec"]), lambda clips: network(torch.from_numpy(clips)).detach().numpy()
    except Exception as error:
        raise ValueError(f"{model}: cannot be loaded ({error}); expected a file that `svdata2vec export` wrote") from error


def frame_numbers(rule: dict[str, Any], name: str, n: int, view: int) -> np.ndarray:
    """The T frames that a view sees of n: one of each of T equal segments, from its middle or drawn by the video's name."""
    count, views, kind = rule["num_frames"], rule.get("views", 1), rule["frame_draw"]
    if kind == "centre":
        if n < count:
            return (view * n // views + np.arange(count)) % n
        return (2 * (views * np.arange(count) + view) + 1) * n // (2 * views * count)
    if kind == "original":
        old = np.random.RandomState(255)
        old.rand()
        old.randint(1)
        if n < count:
            return np.arange(count) % n
        return spread(count, n, lambda slots: old.choice(slots, n - count, replace=False), old.randint)
    if kind != "fixed":
        raise ValueError(f"frame_draw {kind} is not known to this script; take the one of the package that exported the file")
    parts = (b"s", "evaluate"), (b"i", str(rule["frame_seed"])), (b"s", name), (b"i", str(view))
    text = b"".join(kind + len(part.encode()).to_bytes(4, "little") + part.encode() for kind, part in parts)
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    draw = np.random.Generator(np.random.Philox(key=key))
    if n < count:
        return (draw.integers(n) + np.arange(count)) % n
    return spread(count, n, lambda slots: draw.permutation(slots)[: n - count], draw.integers)


def spread(count: int, n: int, gaps: Callable[[int], np.ndarray], below: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """One frame of each segment; of fewer than two per segment all in order but those at some gaps."""
    if n < 2 * count:
        return np.arange(count) + np.cumsum(np.isin(np.arange(count + 1), gaps(count + 1)))[:-1]
    bounds = np.arange(count + 1) * n // count
    return bounds[:-1] + below(np.diff(bounds))


def upright(frame: Any, aspect: float) -> np.ndarray:
    """The picture as a player shows it: square pixels, mirrored and turned as the display matrix says."""
    wide = frame.width * (aspect if 1 / 4 <= aspect <= 4 else 1)  # files that state others state nonsense
    picture = frame.reformat(width=round(wide), format="rgb24", threads=1).to_ndarray()
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
    if box and not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0):
        raise ValueError(f"box {box}: outside the picture of {width}x{height} pixels")
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
        places = (low + (np.arange(rule["size"]) + 0.5) * (high - low) / rule["size"]) * len(stored) / side - 0.5
        shares = (places - np.floor(places))[:, None, None]  # of the pixel behind each place, in black at the borders
        first = np.clip(np.floor(places), -2, len(stored)).astype(int) + 2
        bordered = np.pad(stored, ((2, 2), (0, 0), (0, 0)))
        mixed = (1 - shares) * bordered[first] + shares * bordered[first + 1]
        stored = np.moveaxis(mixed, 0, 2)  # what was first is last: (W, 3, S), then (3, S, S)
    return np.clip(np.rint(stored.transpose(1, 2, 0)), 0, 255).astype(np.uint8)


def scores_of(model: str, video: str, box: list[float] | None, part: tuple[int, int] | None) -> list[tuple[float, str]]:
    """The classes of a video with their scores, best first. part: its first frame and the one behind its last."""
    card, logits_of = load(model)
    rule = card["preprocessing"]
    with av.open(video, metadata_errors="ignore") as container:
        stream: Any = container.streams.best("video")  # no cover picture
        if stream is None:
            raise ValueError(f"{video}: no video in it")
        decoded = [(frame.width, frame.height, frame.is_corrupt) for frame in container.decode(stream)]
    if len({(width, height) for width, height, _ in decoded}) > 1 or any(corrupt for *_, corrupt in decoded):
        raise ValueError(f"{video}: frames are damaged, or change their size")
    count = len(decoded)
    start, stop = part or (0, count)
    if not 0 <= start < stop <= count:
        raise ValueError(f"--frames {start} {stop}: expected 0 <= START < STOP <= {count}, the frames of {video}")
    numbered = (frame_numbers(rule, Path(video).stem, stop - start, view) for view in range(rule.get("views", 1)))
    views = [(start + numbers_T).tolist() for numbers_T in numbered]
    wanted, seen = {number for numbers in views for number in numbers}, {}
    with av.open(video, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                aspect = float(stream.sample_aspect_ratio or 1)
                seen[number] = prepare(upright(frame, aspect), box, rule)
    logits = logits_of(np.array([[seen[number] for number in numbers] for numbers in views])).astype(float)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (likely / likely.sum(axis=1, keepdims=True)).mean(axis=0)
    return [(float(scores[place]), card["classes"][place]) for place in np.argsort(-scores)]


def edges(text: str) -> list[float]:
    """X1,Y1,X2,Y2."""
    try:
        x1, y1, x2, y2 = map(float, text.split(","))
        if -1e6 < x1 <= x2 - 10 < 1e6 and -1e6 < y1 <= y2 - 10 < 1e6:
            return [x1, y1, x2, y2]
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: expected X1,Y1,X2,Y2 in pixels, at least 10 from edge to edge")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the classes with their scores in per cent; 2 where model or video is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file that `svdata2vec export` wrote")
    parser.add_argument("video")
    parser.add_argument("box", nargs="?", type=edges, metavar="X1,Y1,X2,Y2", help="around the persons, in pixels")
    parser.add_argument("--frames", nargs=2, type=int, metavar=("START", "STOP"))
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_intermixed_args([f" {word}" if re.match(r"-[\d.]", word) else word for word in words])  # no option
    try:
        for score, name in scores_of(options.model, options.video, options.box, options.frames):
            print(f"{100 * score:6.2f} %  {name}")
    except (OSError, ValueError, LookupError, av.FFmpegError) as error:
        sys.stderr.write(f"predict_exported: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
