"""Types of the benchmarks' options that name files, which are checked before anything is measured."""

import argparse
from pathlib import Path

from svdata2vec.shards.atomic import read_object, require_writable
from svdata2vec.shards.errors import UserError, require_file


def file_to_write(text: str) -> Path:
    """A record that can be written: an earlier record may be replaced, another file, such as a video, may not."""
    file = Path(text)
    try:
        require_writable(file)
        earlier = file.exists() and file.stat().st_size > 0
        if earlier and read_object(file) is None:
            raise argparse.ArgumentTypeError(f"{file} holds no record and would be lost; give the record another name")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return file


def video_file(text: str) -> Path:
    """An existing video."""
    return _existing(Path(text), "a video")


def motion_folder(text: str) -> Path:
    """A folder of tools/motion/make_motion_clips.py."""
    return _existing(Path(text) / "motion.pkl", "the annotations of make_motion_clips.py").parent


def _existing(file: Path, expected: str) -> Path:
    try:
        require_file(file, expected)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return file
