"""The command `svdata2vec`. Wrong input ends in one line on standard error and exit status 2, a failed run in one and 1."""

import logging
import sys
from collections.abc import Sequence

from svdata2vec import __version__
from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.options import read
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status. Help that is asked for ends in SystemExit, with status 0."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        sys.stdout.write(f"svdata2vec {__version__}\n")
        return 0
    name = f"svdata2vec {words[0]}" if words and words[0] in COMMANDS.commands else "svdata2vec"
    try:
        command, options = read(words, COMMANDS, "svdata2vec")
        command.run(options)
    except UserError as error:
        return _refuse(name, str(error))
    except (RunFailedError, OSError) as error:
        log.debug("what led to it", exc_info=error)
        return _refuse(name, str(error), status=1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _refuse(command: str, message: str, status: int = 2) -> int:
    sys.stderr.write(f"{command}: {' '.join(message.split())}\n")
    return status
