"""The end of every experiment script: its result, or one line that says why there is none."""

import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.stopping import INTERRUPTED_EXIT_CODE
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.errors import MachineError, UserError


def require_no_input(file: Path, reads: Iterable[Path]) -> None:
    """UserError if there is such a file, and it is one of `reads` or lies in one."""
    place = file.resolve()
    if place.exists() and not {place, *place.parents}.isdisjoint(read.resolve() for read in reads):
        raise UserError(f"{file} is read here and would be lost; give the file to write another name")


def reported(work: Callable[[], str], *files: Path | None, reads: Iterable[Path] = ()) -> int:
    """Print the result of `work`, or its error in one line; returns the exit status.

    Args:
        files: files that it will write at the end, None = not requested; if one cannot be written, the work is not started.
        reads: files and folders that it reads; a file that would replace something there is refused, too.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        for file in files:
            require_writable(file)
            if file is not None:
                require_no_input(file, reads)
        said = work()
    except (UserError, RunFailedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) and not isinstance(error, MachineError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    sys.stdout.write(said)
    return 0
