"""A folder of videos as phones leave them: moving figures in eight orientations, three containers, names in two scripts.

Who knows the class knows neither the container nor the orientation: these take turns within every class.
"""

from collections.abc import Callable
from itertools import cycle
from math import pi, sin
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

# Display matrices of the eight orientations, to store a picture so that a player shows it upright: (a, b, c, d) of
# `shards/orientation.py`, and how the upright picture is stored.
ORIENTATIONS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda shown: shown,
    (0, 1, -1, 0): lambda shown: np.rot90(shown, 1),
    (-1, 0, 0, -1): lambda shown: np.rot90(shown, 2),
    (0, -1, 1, 0): lambda shown: np.rot90(shown, 3),
    (-1, 0, 0, 1): lambda shown: shown[:, ::-1],
    (1, 0, 0, -1): lambda shown: shown[::-1],
    (0, 1, 1, 0): lambda shown: np.rot90(shown, 1)[::-1],
    (0, -1, -1, 0): lambda shown: np.rot90(shown, 3)[::-1],
}
CONTAINERS = ("mp4", "mov", "mkv")
UNIT = 1 << 16  # of a, b, c, d; the last number of the matrix has 2^30

Move = Callable[[float], tuple[float, float, float]]  # seconds -> shift right, shift up (in body heights), raised arms 0..1

CLASSES: dict[str, Move] = {
    "walking": lambda t: (0.7 * t - 0.7, 0.0, 0.0),
    "jumping jacks": lambda t: (0.0, 0.12 * abs(sin(2 * pi * t)), abs(sin(2 * pi * t))),
    "приседания": lambda t: (0.0, -0.3 * abs(sin(pi * t)), 0.0),  # squats
    "машет руками": lambda t: (0.0, 0.0, 0.5 + 0.5 * sin(4 * pi * t)),  # waves both arms
}
RATE = 30  # frames per second
NAMES = ("IMG_{0:04d}", "видео {0}", "walk in the park ({0})", "запись-{0:02d}.финал")


def make_phone_videos(
    root: Path, per_class: int, classes: tuple[str, ...], *, longer: int, seconds: float
) -> dict[Path, str]:
    """Write root/CLASS/NAME.EXTENSION; returns the class of every file. Half of the videos are upright pictures."""
    made: dict[Path, str] = {}
    number = 0
    for place, label in enumerate(classes):
        matrices = cycle(ORIENTATIONS)
        for index in range(per_class):
            number += 1
            container = CONTAINERS[(index + place) % len(CONTAINERS)]
            path = root / label / f"{NAMES[number % len(NAMES)].format(number)}.{container}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shorter = longer * 9 // 16 // 2 * 2
            shape = (longer, shorter) if index % 2 else (shorter, longer)
            shown = _pictures(CLASSES[label], shape, int(seconds * RATE), RATE, number)
            write_video(path, shown, next(matrices), RATE)
            made[path] = label
    return made


def _pictures(move: Move, shape: tuple[int, int], count: int, rate: int, seed: int) -> list[np.ndarray]:
    """uint8 (H, W, 3) pictures of a figure before a still scene, each video with its own colours, size, place and tempo."""
    draw = np.random.default_rng(seed)
    height, width = shape
    scene = cv2.resize(draw.integers(60, 200, (6, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    colour = tuple(int(c) for c in draw.integers(0, 60, 3) + (180 if draw.random() < 0.5 else 0))
    body = draw.uniform(0.45, 0.6) * min(height, width)
    x, y = width * draw.uniform(0.42, 0.58), height * draw.uniform(0.55, 0.65)
    start, tempo = draw.uniform(0, 1), draw.uniform(0.85, 1.15)
    pictures = []
    for number in range(count):
        right, up, arms = move(start * 0.3 + tempo * number / rate)
        picture = scene.copy()
        _figure(picture, x + right * body, y - up * body, body, arms, right, colour)
        pictures.append(np.minimum(picture + draw.integers(0, 8, picture.shape), 255).astype(np.uint8))
    return pictures


def _figure(picture: np.ndarray, x: float, y: float, body: float, arms: float, stride: float, colour: tuple[int, ...]) -> None:
    """Head, trunk, legs and arms; (x, y) are the hips. Arms hang at 0 and point up at 1."""
    def limb(x1: float, y1: float, x2: float, y2: float) -> None:
        start, end = ((round(x + a * body), round(y + b * body)) for a, b in ((x1, y1), (x2, y2)))
        cv2.line(picture, start, end, colour, max(round(0.07 * body), 2), cv2.LINE_AA)

    limb(0, 0, 0, -0.4)
    swing = 0.15 * sin(12 * stride) if stride else 0.12
    for side in (-1, 1):
        limb(0, 0, side * swing, 0.45)
        limb(0, -0.36, side * 0.3 * (1 - abs(arms - 0.5)), -0.36 + 0.3 * (1 - 2 * arms))
    cv2.circle(picture, (round(x), round(y - 0.5 * body)), max(round(0.1 * body), 2), colour, -1, cv2.LINE_AA)


def write_video(path: Path, shown: list[np.ndarray], matrix: tuple[int, int, int, int], rate: int) -> None:
    """H.264 of pictures (H, W, 3) that are stored so that a player who heeds the display matrix shows them as they are."""
    store = ORIENTATIONS[matrix]
    a, b, c, d = (UNIT * part for part in matrix)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = store(shown[0]).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if matrix != (1, 0, 0, 1):
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        for picture in shown:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(store(picture)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
