"""The exception for what a user can cause, and its kind for what the machine does: one line, exit status 2, or 1."""

import errno
import mmap
from pathlib import Path

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)  # are open in the process, or on the machine
# Errors of a network file system while its server is unreachable, or for a file that the server has replaced.
SERVER_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN)
AGAIN = "copy the shard again, or pack again"  # what to do about bytes that are not those that were packed
LOOK = f"find all that is damaged with `svdata2vec verify`, then {AGAIN}"  # where a part alone was read
_SOME, _MUCH = 256 << 20, 2 << 30  # bytes that must be free for an error to be the file's: any error, one of memory


class UserError(ValueError):
    """Wrong input. The message is one line: which file or field, what was found, what was expected, what to do."""


class ItemError(UserError):
    """A fault of one item of a data set that lies in another file, `source`, than the one that the item was read from."""

    def __init__(self, message: str, source: str) -> None:
        super().__init__(message)
        self.source = source


class MachineError(UserError):
    """The input is right, the machine failed: memory, a driver, a process that was killed. Exit status 1."""


class WorkerDiedError(MachineError):
    """A worker process ended without an answer: it was killed, crashed, or ran out of memory."""


def require_file(path: str | Path, expected: str) -> None:
    """UserError unless there is a file, or a URL that is still to be opened; `expected`: what it should be."""
    if "://" not in str(path) and not Path(path).is_file():
        found = "is a folder" if Path(path).is_dir() else "no such file"
        raise UserError(f"{path}: {found}; expected {expected}")


def require_folder(path: str | Path, expected: str) -> None:
    """UserError unless there is a folder; `expected`: what it should be."""
    if not Path(path).is_dir():
        found = "is a file" if Path(path).exists() else "no such folder"
        raise UserError(f"{path}: {found}; expected {expected}")


def require_machine(error: Exception, where: object, *, passed: bool = False) -> None:
    """MachineError if the machine failed, not the file: clips that are left out for it could not be added to a finished set.

    `passed`: errors of a disk do not count; the caller has waited for them.
    """
    if isinstance(error, MachineError):
        raise error
    if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
        raise MachineError(f"{error.filename or where}: {error.strerror}; raise the limit (`ulimit -n`)") from error
    if isinstance(error, OSError) and error.errno in SERVER_ERRORS and not passed:
        raise MachineError(
            f"{error.filename or where}: cannot be read ({error.strerror}); its disk or server fails: run again when it works"
        ) from error
    require_memory(error, where)


def require_memory(error: Exception, where: object) -> None:
    """MachineError if `error` may come from missing memory, not from `where`, which was read.

    Readers and decoders fail in many ways without memory, and a damaged file may ask for more than any machine has. So what
    counts is whether this process can still get as much as a sound file needs.
    """
    needed = _MUCH if isinstance(error, MemoryError) or "allocate" in str(error) else _SOME
    try:
        mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE).close()
    except (OSError, MemoryError):
        raise MachineError(f"{where}: memory is running out ({_on_one_line(error)}); free some, raise the limit (`ulimit -v`), "
                           "or remove the file if it is damaged") from error


def readable(text: str) -> str:
    """Text that any program can read and write: bytes of file names that are not UTF-8 become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def reason_of(error: Exception, where: object) -> str:
    """Why one item (a clip, a file) is left out, in one line; `where` names its file unless the error does so itself."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or where}: cannot be read ({error.strerror or error})"
    return f"{where}: {type(error).__name__}: {_on_one_line(error)}"


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no message"
