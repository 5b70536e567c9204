"""Progress of long work: a bar with rate and remaining time on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from svdata2vec.shards.packing.pack import Progress

SECONDS_BETWEEN_LINES = 10.0

log = logging.getLogger(__name__)


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback for `pack` that shows its progress."""
    if not sys.stderr.isatty():
        yield _line_writer()
        return
    columns = TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    with Bar(*columns) as bar:
        task = bar.add_task("packing", total=None, rate="")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.clips_read, total=progress.clips_total, rate=_describe(progress))

        yield show


def checked_shards() -> Callable[[int, int], None]:
    """A callback for `verify` that logs a line now and then."""
    last = time.monotonic()

    def write(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("checked %d/%d shards", done, total)

    return write


def _line_writer() -> Callable[[Progress], None]:
    last = 0.0

    def write(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < SECONDS_BETWEEN_LINES and progress.clips_read < progress.clips_total:
            return
        last = time.monotonic()
        remaining = progress.remaining_seconds
        left = "" if remaining is None else f", {remaining:.0f} s left"
        log.info("%d of %d clips: %s%s", progress.clips_read, progress.clips_total, _describe(progress), left)

    return write


def _describe(progress: Progress) -> str:
    left_out = f", {progress.clips_skipped} left out" if progress.clips_skipped else ""
    rate = f"{progress.frames_per_second:.0f} frames/s, {progress.bytes_done / 2**20:.0f} MiB"
    return f"{progress.clips_done} packed{left_out}, {rate}"
