"""Types of the benchmarks' options that name files, which are looked at before anything is measured."""

import argparse
from pathlib import Path

from svdata2vec.shards.atomic import WriteFailedError, require_writable
from svdata2vec.shards.errors import UserError, require_file


def file_to_write(text: str) -> Path:
    """A file that can be written."""
    try:
        require_writable(Path(text))
    except WriteFailedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def video_file(text: str) -> Path:
    """A video that is there."""
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
