"""The command `svdata2vec`. Wrong input ends in one line on standard error and exit status 2, a failed run in one and 1.

Modules that take a second to import, or minutes from a cold disk, are imported inside `main`, where Ctrl+C is handled.
"""

import io
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from svdata2vec import __version__
from svdata2vec.runs.failures import REQUEUE_EXIT_CODE, told
from svdata2vec.shards.shown import shown

STDOUT = 1  # its file descriptor
RESUMABLE = ("pretrain", "finetune", "probe", "label-efficiency")  # started again, these resume interrupted work

# Messages of these loggers hold for all processes of a launch; only the first process shows them.
SHARED = (
    "svdata2vec.cli", "svdata2vec.runs", "svdata2vec.evaluation", "svdata2vec.kernels", "svdata2vec.shards.reading.joined",
    *(f"svdata2vec.training.{name}" for name in ("collapse", "finetune", "loop", "pretrain")),
)

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this process prints what holds for all of them. RANK without WORLD_SIZE is a leftover in a shell."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def is_shown(record: logging.LogRecord) -> bool:
    """Whether this process shows a log record. Of libraries only warnings: ONNX reports every node."""
    if not record.name.startswith("svdata2vec") and record.levelno < logging.WARNING:
        return False
    return is_first_process() or not record.name.startswith(SHARED)


class MessageFormatter(logging.Formatter):
    """Escapes control characters: messages contain untrusted names of files and classes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.message = shown(record.message)
        return super().formatMessage(record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status. A request for help raises SystemExit with status 0."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller, as by `>&-`
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # like standard error: class names in a locale without UTF-8
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MessageFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(is_shown)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("torch").setLevel(logging.WARNING)  # as PyTorch does, at the end of an import that may be interrupted
    # torch.distributed.launch passes the rank on the command line too, besides the environment.
    repeated = f"--local-rank={os.environ.get('LOCAL_RANK')}"
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if word.replace("_", "-") != repeated]
    try:
        try:
            with _requeued(words):
                _run(words)
        finally:
            sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_broken():
            return 128 + signal.SIGPIPE
        found = told(error)
        if found is None:
            raise
        log.debug("traceback of the error", exc_info=error)
        return _refuse(words, *found)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _run(words: list[str]) -> None:
    if words[:1] == ["--version"]:
        sys.stdout.write(f"svdata2vec {__version__}\n")
        return
    from svdata2vec.cli.commands import COMMANDS
    from svdata2vec.cli.options import read

    command, options = read(words, COMMANDS, "svdata2vec", fit=True)
    command.run(options)


@contextmanager
def _requeued(words: list[str]) -> Iterator[None]:
    """While modules load there is nothing to save: SIGTERM ends a resumable command with the status for "saved, requeue"."""
    if not words or words[0] not in RESUMABLE:
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(REQUEUE_EXIT_CODE))  # an exception could be lost in an import
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stdout_is_broken() -> bool:
    """Whether standard output is the broken pipe, as in `svdata2vec --help | head -1`; if so, further output is dropped."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return broken


def _refuse(words: list[str], status: int, message: str) -> int:
    from svdata2vec.cli.commands import COMMANDS

    name = " ".join(["svdata2vec", *(word for word in words[:1] if word in COMMANDS.commands)])
    sys.stderr.write(f"{name}: {shown(' '.join(message.split()))}\n")
    return status
