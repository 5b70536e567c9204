#!/usr/bin/env python
"""Finds the persons in videos and writes the annotation pickle that `svdata2vec shard pyskl` takes.

    bash tools/pose/pose_env.sh
    .venv-pose/bin/python tools/pose/extract_poses.py VIDEOS --out poses/my_videos.pkl
    svdata2vec shard pyskl SHARDS --pickle-path poses/my_videos.pkl --videos VIDEOS

VIDEOS is a folder (class/video.mp4 or split/class/video.mp4 gives the labels), some files, or a CSV path,label,split.
RTMO finds boxes and joints (COCO-17) of all persons in one pass; `--model hrnet-w32 --boxes FOLDER` finds the joints in
given boxes. Their weights are downloaded from OpenMMLab. `--model mediapipe` only needs access to PyPI (`bash
tools/pose/pose_env.sh mediapipe`, then .venv-mediapipe/bin/python instead) and finds one person. After an interruption run the
same command again: finished videos are in the work folder. Every decoded frame is in the arrays, whether or not a person is
seen in it.
"""

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from pose_inputs import GivenBoxes, Video, VideoList, find_videos
from pose_work import VideoPoses, WorkFolder, annotation, check_output, write_pickle
from pose_zoo import MEDIAPIPE, MODELS, OPENMMLAB

from svdata2vec.pipeline.background import Prefetch
from svdata2vec.shards.errors import MachineError, UserError, reason_of, require_machine
from svdata2vec.shards.tracking import Detections, TrackingOptions, inside, track_persons
from svdata2vec.shards.video import VideoReader, silence_decoder

LEAST_SCORE = 0.1  # detections are stored down to this score, so that --min-score can change without another pass


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="a folder, a CSV path,label,split, or video files")
    parser.add_argument("--out", type=Path, required=True, help="the pickle to write, NAME.pkl; classes.txt goes beside it")
    parser.add_argument("--work", type=Path, help="folder for finished videos (default: NAME.work beside the pickle)")
    parser.add_argument("--model", choices=(*MODELS, MEDIAPIPE), default="rtmo-m",
                        help="rtmo-t (fast) to rtmo-l (exact), hrnet-w32 in given boxes, mediapipe for one person (default "
                             "rtmo-m)")
    parser.add_argument("--boxes", type=Path, help="for hrnet-w32: folder with NAME.csv (frame,x1,y1,x2,y2) or NAME.npz of "
                                                   "an earlier run's work folder")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", help="file or URL of the weights (default: OpenMMLab's)")
    weights.add_argument("--random-weights", action="store_true", help="for tests only: the detections are meaningless")
    parser.add_argument("--trust-checkpoint", action="store_true",
                        help="load a checkpoint that holds more than weights, though unpickling it could run code")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    parser.add_argument("--batch", type=int, default=16, help="frames (hrnet: boxes) per step of the model (default 16)")
    parser.add_argument("--input-size", type=int, help="side of RTMO's input in pixels, a multiple of 32: less is faster")
    parser.add_argument("--min-score", type=float, default=0.3, help="detections below this are ignored (default 0.3)")
    parser.add_argument("--persons", type=int, choices=(1, 2), default=2, help="main persons to keep (default 2)")
    parser.add_argument("--max-gap", type=int, default=15, help="frames that a track bridges by overlap (default 15)")
    parser.add_argument("--part", default="0/1", help="I/N: do every N-th video only, from the I-th, and write no pickle; "
                                                      "several processes can share the work folder so")
    given = parser.parse_args(arguments)
    given.part = _part(given.part)
    _check(given)
    given.work = given.work or given.out.with_suffix(".work")
    return given


def _part(text: str) -> tuple[int, int]:
    numbers = text.split("/")
    if len(numbers) == 2 and all(number.isdigit() for number in numbers) and int(numbers[0]) < int(numbers[1]):
        return int(numbers[0]), int(numbers[1])
    raise UserError(f"--part {text}: expected I/N with I below N, e.g. 0/4 to 3/4")


def _check(given: argparse.Namespace) -> None:
    if given.batch < 1:
        raise UserError(f"--batch {given.batch}: expected at least 1")
    if given.max_gap < 0:
        raise UserError(f"--max-gap {given.max_gap}: expected 0 or more")
    if not 0 <= given.min_score <= 1:
        raise UserError(f"--min-score {given.min_score}: expected 0 to 1")
    if (given.model == "hrnet-w32") != (given.boxes is not None):
        raise UserError("--model hrnet-w32 finds joints in given boxes: pass their folder with --boxes"
                        if given.boxes is None else f"--boxes: {given.model} finds boxes itself; use --model hrnet-w32")
    if given.model == MEDIAPIPE and (given.checkpoint or given.random_weights or given.input_size or given.device == "cuda"):
        raise UserError("--model mediapipe runs on the CPU with the weights and the input size of its package; leave out "
                        "--checkpoint, --random-weights, --input-size and --device cuda")


def extract(given: argparse.Namespace) -> int:
    """Run the command line; returns the exit status. UserError for wrong input."""
    videos = find_videos(given.videos)
    check_output(given.out, videos.classes)
    boxes = GivenBoxes(given.boxes) if given.boxes else None
    work = WorkFolder(given.work, settings_of(given), boxes)
    first, parts = given.part
    todo = videos.videos[first::parts]
    unfinished = [video for video in todo if not work.is_finished(video)]
    print(f"{len(videos.videos)} videos of {len(videos.classes)} classes; {len(todo) - len(unfinished)} finished before")
    skipped: dict[str, str] = {}
    if unfinished:
        skipped = extract_videos(unfinished, load_model(given), work, boxes)
    if parts > 1:
        print(f"part {first}/{parts} done, {len(skipped)} skipped; run once without --part to write the pickle")
        return 0
    return finish(given, videos, work, skipped)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Settings that a finished video's detections depend on."""
    weights = "random" if given.random_weights else given.checkpoint or MEDIAPIPE * (given.model == MEDIAPIPE) or "openmmlab"
    if given.checkpoint and Path(given.checkpoint).is_file():
        with Path(given.checkpoint).open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {"model": given.model, "weights": weights, "input_size": given.input_size,
            "least_score": min(given.min_score, LEAST_SCORE), "boxes": str(given.boxes.resolve()) if given.boxes else None}


def load_model(given: argparse.Namespace) -> Any:
    """The pose model with its weights on the device."""
    if given.model == MEDIAPIPE:
        from pose_mediapipe import MediaPipeModel

        return MediaPipeModel(given.batch)
    from pose_models import PoseModel, choose_device

    device = choose_device(given.device)
    model = PoseModel(given.model, device, input_size=given.input_size, batch=given.batch,
                      min_score=min(given.min_score, LEAST_SCORE))
    if given.random_weights:
        model.draw_weights()
        print(f"{given.model} with random weights on {device}: the detections are meaningless")
    elif given.checkpoint:
        model.load_weights(given.checkpoint, trust=given.trust_checkpoint)
    else:
        model.load_weights(OPENMMLAB + MODELS[given.model].weights, trust=True)
    return model


def extract_videos(videos: Sequence[Video], model: Any, work: WorkFolder, boxes: GivenBoxes | None) -> dict[str, str]:
    """Detect in every video and store the result; returns video -> reason for videos that cannot be used.

    Raises MachineError if the model or the machine fails: no video is to blame.
    """
    skipped: dict[str, str] = {}
    progress = Progress(len(videos))
    for video in videos:
        try:
            poses = detect(video, model, boxes, progress.frames)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - one bad video must not stop the others
            require_machine(error, video.path)
            skipped[video.path] = reason_of(error, video.path)
        else:
            work.save(video, poses)
        progress.video(skipped=len(skipped))
    progress.end()
    return skipped


def detect(video: Video, model: Any, boxes: GivenBoxes | None, report: Callable[[int], None]) -> VideoPoses:
    """Detections of every frame. Decoding and scaling run one step ahead of the model, in a thread."""
    given = boxes.read(video.name) if boxes else None
    frames: list[Detections] = []
    with VideoReader(video.path) as reader:
        width, height = reader.info.width, reader.info.height
        with closing(Prefetch(_prepared(reader, model, given), depth=2, name="frames")) as steps:
            for prepared in steps:
                frames += [inside(found, width, height) for found in _predicted(model, prepared, video)]
                report(len(prepared))
        problem = reader.cut_short()
    if problem is not None:
        raise UserError(f"{video.path}: cut short, {problem}")
    wrong = [number for number in given or {} if not 0 <= number < len(frames)]
    if wrong:
        raise UserError(f"{video.path}: has {len(frames)} frames, but there are boxes for frame {wrong[0]}")
    return VideoPoses(frames, width, height)


def _predicted(model: Any, prepared: list[Any], video: Video) -> list[Detections]:
    """The model's detections. What it is given has one form whatever the video: a failure is that of the machine."""
    try:
        found: list[Detections] = model.predict(prepared)
    except RuntimeError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise MachineError(f"{video.path}: the model failed ({said})") from error
    return found


def _prepared(reader: VideoReader, model: Any, given: dict[int, np.ndarray] | None) -> Iterator[list[Any]]:
    """The model's inputs of `model.batch` frames at a time, for all frames in order."""
    width, height = reader.info.width, reader.info.height
    nobody = np.zeros((0, 4), np.float32)

    def prepare(number: int, canvas_rgb: np.ndarray) -> Any:
        frame_bgr = np.ascontiguousarray(canvas_rgb[:height, :width, ::-1])
        return model.prepare(frame_bgr, None if given is None else given.get(number, nobody))

    prepared = itertools.starmap(prepare, enumerate(reader.crops(0, 0, max(width, height))))
    while batch := list(itertools.islice(prepared, model.batch)):
        yield batch


class Progress:
    """Rate and expected end: one line that changes on a terminal, a line every half minute elsewhere."""

    def __init__(self, num_videos: int) -> None:
        self.num_videos, self.num_done, self.num_frames, self.skipped = num_videos, 0, 0, 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._every_seconds = 1.0 if self._terminal else 30.0

    def frames(self, count: int) -> None:
        """Count finished frames."""
        self.num_frames += count
        self._show()

    def video(self, skipped: int) -> None:
        """Count a finished video."""
        self.num_done += 1
        self.skipped = skipped
        self._show()

    def end(self) -> None:
        """Print the last state."""
        self._every_seconds = 0.0
        self._show()
        if self._terminal:
            print()

    def line(self, seconds: float) -> str:
        """The state after the given number of seconds."""
        rate = self.num_frames / max(seconds, 1e-9)
        left = seconds / self.num_done * (self.num_videos - self.num_done) if self.num_done else None
        expected = "unknown" if left is None else f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}"
        return (f"{self.num_done}/{self.num_videos} videos, {self.num_frames} frames, {rate:.1f} frames/s, "
                f"{self.skipped} skipped, {expected} left")

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown >= self._every_seconds:
            self._shown = now
            text = self.line(now - self._start)
            print(f"\r{text:<100}" if self._terminal else text, end="" if self._terminal else "\n", flush=True)


def finish(given: argparse.Namespace, videos: VideoList, work: WorkFolder, skipped: dict[str, str]) -> int:
    """Track the persons of all finished videos, write the pickle and print a summary."""
    options = TrackingOptions(min_score=given.min_score, persons=given.persons, max_gap=given.max_gap)
    annotations, empty = [], []
    for video in videos.videos:
        if video.path in skipped:
            continue
        poses = work.load(video)
        persons = track_persons(poses.frames, options=options)
        annotations.append(annotation(video, poses, persons))
        if not persons.box_T5.any():
            empty.append(video.name)
    skipped = videos.left_out | skipped
    listed = work.write_skipped(skipped)
    if not annotations:
        first = next(iter(skipped.values()))
        raise UserError(f"none of {len(videos.videos)} videos can be used, see {listed}; the first: {first}")
    write_pickle(given.out, videos, annotations, settings_of(given) | {"min_score": given.min_score})
    pairs = sum(entry["keypoint"].shape[0] == 2 for entry in annotations)
    print(f"{given.out}: {len(annotations)} videos, {pairs} of them with two persons")
    if empty:
        print(f"nobody found in {len(empty)} videos, e.g. {', '.join(itertools.islice(empty, 3))}: their joints are all zero")
    if skipped:
        print(f"{len(skipped)} videos could not be used, listed in {listed}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the machine failed (no space, no memory, a server), 2 wrong input, 130 interrupted."""
    silence_decoder()
    try:
        return extract(parse(arguments))
    except (MachineError, OSError) as error:
        print(f"error: {error}; finished videos are kept, run again to continue", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: {str(error) or 'out of memory'}; use a smaller --batch and run again to continue", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
