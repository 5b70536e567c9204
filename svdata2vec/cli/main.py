"""The command `svdata2vec`. Wrong input ends in one line on standard error and exit status 2, a failed run in one and 1."""

import logging
import sys
from collections.abc import Sequence

from svdata2vec import __version__
from svdata2vec.cli.commands import COMMANDS
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"svdata2vec {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        return _refuse("svdata2vec", f"unknown command {words[0]!r}; choose one of: {', '.join(COMMANDS)}")
    try:
        COMMANDS[words[0]].run(words[1:])
    except UserError as error:
        return _refuse(f"svdata2vec {words[0]}", str(error))
    except (RunFailedError, OSError) as error:
        log.debug("what led to it", exc_info=error)
        return _refuse(f"svdata2vec {words[0]}", str(error), status=1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _refuse(command: str, message: str, status: int = 2) -> int:
    sys.stderr.write(f"{command}: {' '.join(message.split())}\n")
    return status


def usage() -> str:
    """The overview of all sub-commands."""
    rows = "\n".join(f"  {name:10s} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: svdata2vec COMMAND ...\n\nSelf-supervised pretraining on video + skeletons.\n\n"
        f"{rows}\n\nsvdata2vec COMMAND --help explains every option, with its unit and default.\n"
    )
