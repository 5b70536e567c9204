"""Make a synthetic action data set: H.264 videos, a skeleton pickle in the field's format, splits and class names.

    python tools/motion/make_motion_clips.py OUT --clips 600 --seed 0 --workers 2

writes OUT/videos/S001C001P001R001A001.mp4 ..., OUT/motion.pkl (`split`, `annotations` with COCO-17 keypoints in
pixels), OUT/classes.txt and OUT/motion.json (options, version; its "complete" becomes true last). The result depends on
the options alone, not on the number of workers. A second run with the same options makes only what is missing.

A clip goes through motion_actions.py (joints in three dimensions, from motion_stage.py and motion_bodies.py),
motion_scene.py (camera and looks; motion_scenery.py: what stands around), motion_drawing.py (frames) and
motion_detector.py (the annotated joints, with a detector's errors).
"""

import argparse
import json
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import av
import cv2
import numpy as np
from motion_actions import CLASSES, perform
from motion_bodies import FPS, make_body
from motion_detector import detect
from motion_drawing import render
from motion_scene import AZIMUTHS, Scene, make_camera, make_look, make_scene
from motion_scenery import EASY, HARD, Picture
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.ranges import Range, Seed, check_fields, check_number

VERSION = 4  # increase it whenever the same options give different bytes
SUBJECTS = {"train": range(1, 25), "val": range(25, 29), "test": range(29, 41)}  # nobody appears in two parts
TURNS = ("train", "test", "val", "train", "train", "test", "train", "train", "test", "train")  # of every ten clips of a class
SETUPS = 4
KEPT = "what is written so far is kept, run again to finish"
BODIES, CLOTHES, CLIP, EXTRAS = range(4)  # what a random stream is for


SHORTEST, LONGEST = 24, 100_000  # frames: an action needs so many to unfold
Length = Annotated[int, Range(SHORTEST, LONGEST)]
Side = Annotated[int, Range(96, 8192, multiple=2)]  # H.264 halves the colour planes


@dataclass(frozen=True)
class Options:
    """Options that determine the data set's content."""

    clips: Annotated[int, Range(3 * len(CLASSES))] = 600  # every class in every part
    seed: Seed = 0
    min_frames: Length = 40
    max_frames: Length = 70
    width: Side = 320
    height: Side = 180
    crf: Annotated[int, Range(0, 51)] = 20  # best .. worst
    preset: str = "ultrafast"
    plain: bool = False
    hard: bool = False

    def __post_init__(self) -> None:
        for frames in (self.min_frames, self.max_frames):  # one option
            check_number("--frames", frames, SHORTEST, LONGEST, whole=True)
        check_fields(self, "--")
        if self.min_frames > self.max_frames:
            raise UserError(f"--frames {self.min_frames}-{self.max_frames}: expected LOW-HIGH with LOW <= HIGH")


@dataclass(frozen=True)
class ClipSpec:
    """One clip to make; with the options and the seed it determines everything else."""

    index: int
    part: str
    label: int
    subject: int
    camera: int
    setup: int
    replication: int

    @property
    def name(self) -> str:
        return f"S{self.setup:03d}C{self.camera:03d}P{self.subject:03d}R{self.replication:03d}A{self.label + 1:03d}"


def clip_specs(clips: int) -> list[ClipSpec]:
    """Spread the clips evenly over classes, parts, subjects, cameras and setups; a larger set begins with a smaller one."""
    specs = []
    for index in range(clips):
        label, turn = index % len(CLASSES), index // len(CLASSES)
        rounds, place = divmod(turn, len(TURNS))
        part = TURNS[place]
        count = rounds * TURNS.count(part) + TURNS[:place].count(part)  # clips of this class and part so far
        subjects = SUBJECTS[part]
        replication = count // len(subjects)
        subject = subjects[(count + 5 * label) % len(subjects)]
        camera = (count + replication + label) % len(AZIMUTHS)
        setup = (subject + label // 3 + replication) % SETUPS
        specs.append(ClipSpec(index, part, label, subject, camera + 1, setup + 1, replication + 1))
    return specs


def splits(specs: Sequence[ClipSpec]) -> dict[str, list[str]]:
    """By subject, as NTU RGB+D's xsub, with subjects for validation as well."""
    return {f"xsub_{part}": [s.name for s in specs if s.part == part] for part in SUBJECTS}


def build_scene(spec: ClipSpec, options: Options) -> Scene:
    """Choreography, camera and looks of one clip."""
    seed, difficulty = options.seed, HARD if options.hard else EASY
    rng = np.random.default_rng([seed, CLIP, spec.index])
    num_frames = int(rng.integers(options.min_frames, options.max_frames + 1))
    pair = (spec.subject, int(rng.choice([s for s in SUBJECTS[spec.part] if s != spec.subject])))
    setup_rng = np.random.default_rng([seed, EXTRAS, spec.setup, spec.camera])
    azimuth = AZIMUTHS[spec.camera - 1] + setup_rng.uniform(-0.12, 0.12) + rng.uniform(-0.04, 0.04)
    camera = make_camera(azimuth, rng, num_frames, options.width, options.height, difficulty)
    bodies = [make_body(np.random.default_rng([seed, BODIES, s])) for s in pair]
    own = (spec.index,) if difficulty.own_clothes else ()
    looks = [make_look(np.random.default_rng([seed, BODIES, s, 1]),
                       np.random.default_rng([seed, CLOTHES, s, spec.setup, *own])) for s in pair]
    cast = perform(spec.label, rng, num_frames, (bodies[0], bodies[1]), azimuth)
    return make_scene(cast, tuple(looks[:len(cast.bodies)]), camera, options.width, options.height,
                      (seed, CLIP, spec.index), difficulty, plain=options.plain)


def annotation(spec: ClipSpec, keypoint: NDArray[np.float16], score: NDArray[np.float16], options: Options) -> dict[str, Any]:
    """The clip's entry in the pickle, built in one process so that the pickle's bytes are always the same."""
    size = (options.height, options.width)
    return {
        "frame_dir": spec.name,
        "label": spec.label,
        "img_shape": size,
        "original_shape": size,
        "total_frames": keypoint.shape[1],
        "keypoint": np.array(keypoint.tolist(), dtype=np.float16),
        "keypoint_score": np.array(score.tolist(), dtype=np.float16),
    }


def encode(frames: Iterator[Picture], path: Path, options: Options) -> None:
    """Write the frames as H.264; the file gets its name only when it is complete."""
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = options.width, options.height, "yuv420p"
        # one thread: the bytes must not depend on the machine
        stream.options = {"crf": str(options.crf), "preset": options.preset, "threads": "1"}
        for picture in frames:
            planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    part.replace(path)


# Number of the clip; its keypoints (M, T, V, 2) and scores (M, T, V), zeros where a joint is missing; frames drawn.
Made = tuple[int, NDArray[np.float16], NDArray[np.float16], int]


def make_clip(spec: ClipSpec, options: Options, folder: Path) -> Made:
    """Make one clip, without drawing it if its video exists."""
    cv2.setNumThreads(1)
    scene = build_scene(spec, options)
    path = folder / "videos" / f"{spec.name}.mp4"
    drawn = 0
    if not path.exists():
        encode(render(scene, plain=options.plain), path, options)
        drawn = scene.num_frames
    keypoint, score = detect(scene, np.random.default_rng([options.seed, CLIP, spec.index, 9]))
    return spec.index, keypoint.astype(np.float16), score.astype(np.float16), drawn


def check_folder(folder: Path, options: Options) -> bool:
    """True if the folder already holds this complete data set; UserError if it holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder; choose another name")
    state_path = folder / "motion.json"
    if not state_path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty and has no motion.json, so this tool did not make it; "
                            "choose a new folder")
        return False
    try:
        state = json.loads(state_path.read_text())
        found = {"hard": False, **state["options"], "version": state["version"]}  # older sets do not have it
        complete = bool(state["complete"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state_path}: cannot be read as the description of a motion data set ({error!r}); "
                        "delete the folder or choose another") from error
    wanted = {**asdict(options), "version": VERSION}
    different = [f"{key} {found.get(key)!r} instead of {value!r}" for key, value in wanted.items()
                 if found.get(key) != value]
    if different:
        raise UserError(f"{folder}: holds a data set made with {', '.join(different)}; "
                        "delete the folder, choose another, or ask for the same options")
    names = [folder / "motion.pkl", folder / "classes.txt"]
    names += [folder / "videos" / f"{spec.name}.mp4" for spec in clip_specs(options.clips)]
    return complete and all(name.exists() for name in names)


def write_state(folder: Path, options: Options, *, complete: bool, frames: int = 0) -> None:
    state = {"format": "svdata2vec-motion-clips", "version": VERSION, "options": asdict(options), "classes": list(CLASSES),
             "complete": complete, "frames": frames}
    write_atomically(folder / "motion.json", (json.dumps(state, indent=1) + "\n").encode())


def make_motion_clips(folder: Path, options: Options, workers: int = 1) -> int | None:
    """Make or finish the data set in `folder`; returns how many frames were drawn, None if it was complete."""
    if workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")
    if check_folder(folder, options):
        return None
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    write_state(folder, options, complete=False)
    specs = clip_specs(options.clips)
    annotations: dict[int, dict[str, Any]] = {}
    drawn = 0
    results = run_tasks(partial(make_clip, options=options, folder=folder), specs, workers, after_death=KEPT)
    for index, keypoint, score, frames in track(results, "making clips", len(specs), console=Console(stderr=True)):
        annotations[index] = annotation(specs[index], keypoint, score, options)
        drawn += frames
    content = {"name": f"motion-{VERSION}{'-hard' if options.hard else ''}", "split": splits(specs), "classes": list(CLASSES),
               "annotations": [annotations[spec.index] for spec in specs]}
    write_atomically(folder / "motion.pkl", pickle.dumps(content, protocol=4))
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES).encode())
    total = sum(entry["total_frames"] for entry in annotations.values())
    write_state(folder, options, complete=True, frames=total)
    return drawn


def frame_range(text: str) -> tuple[int, int]:
    """'40-70' -> (40, 70)."""
    low, dash, high = text.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise UserError(f"--frames {text}: expected LOW-HIGH, for example 40-70")
    return int(low), int(high) if dash else int(low)


def parse(arguments: Sequence[str] | None) -> tuple[Path, Options, int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--clips", type=int, default=600, help="how many videos (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", default="40-70", help="shortest and longest clip in frames (default 40-70)")
    parser.add_argument("--width", type=int, default=320, help="pixels (default 320)")
    parser.add_argument("--height", type=int, default=180, help="pixels (default 180)")
    parser.add_argument("--crf", type=int, default=20, help="H.264 quality, 0 best to 51 worst (default 20)")
    parser.add_argument("--preset", default="ultrafast", choices=("ultrafast", "superfast", "veryfast", "medium"),
                        help="H.264 effort (default ultrafast)")
    parser.add_argument("--plain", action="store_true", help="figures alone on grey: for looking at the joints")
    parser.add_argument("--hard", action="store_true",
                        help="busier scenes: more that moves, sways and flickers, and clothes of each clip's own")
    parser.add_argument("--workers", type=int, default=job_cores(), help="processes (default: one per core of this job)")
    given = vars(parser.parse_args(arguments))
    folder, workers, (low, high) = given.pop("out"), given.pop("workers"), frame_range(given.pop("frames"))
    return folder, Options(min_frames=low, max_frames=high, **given), workers


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    try:
        folder, options, workers = parse(arguments)
        frames = make_motion_clips(folder, options, workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, MachineError) else 2
    except OSError as error:
        print(f"error: {folder}: {error}; {KEPT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run again with the same options to finish", file=sys.stderr)
        return 130
    if frames is None:
        print(f"{folder}: complete with these options, kept as it is")
        return 0
    seconds = time.monotonic() - start
    print(f"{folder}: {options.clips} clips of {len(CLASSES)} classes; drew {frames} frames in {seconds:.1f} s "
          f"with {workers} workers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
