"""Checkpoints that survive a kill at any moment, and whose damage is noticed.

A checkpoint is one file of `torch.save`, written beside its final name and renamed; the newest good one is continued from.
The comment of its zip archive is "sha256=" and the hash of the file as it was before the comment.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from svdata2vec import __version__
from svdata2vec.runs.failures import SaveFailedError, first_line
from svdata2vec.runs.torch_file import read_torch_file
from svdata2vec.shards.atomic import atomic_file
from svdata2vec.shards.errors import MachineError, UserError, require_machine

COMMENT = b"sha256="
BLOCK = 1 << 24  # bytes

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, `<run>/checkpoints/step-000000123.pt`.

    Args:
        folder: the run's folder.
        keep: number of newest checkpoints that stay on disk.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Remove torn checkpoints, write that of `step`, then remove the oldest beyond `keep`.

        Raises:
            SaveFailedError: the file system refused; the checkpoints before it are still there.
        """
        path = self.folder / f"step-{step:09d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for torn in self.folder.glob("step-*.tmp"):  # of killed runs, whose room a full disk may need
                torn.unlink()
            with atomic_file(path) as file:
                write_hashed({**state, "step": step, "version": __version__}, file)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise SaveFailedError(
                f"{path} could not be written ({reason}); the run stops, older ones are kept"
            ) from error
        up_to_here = [each for each in self.paths() if each.name <= path.name]  # later ones could not be read
        for old in up_to_here[: -self.keep]:
            old.unlink()
        return path

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.folder.glob(f"step-{9 * '[0-9]'}.pt"))

    def load_newest(self) -> dict[str, Any] | None:
        """The newest good checkpoint (damaged ones are skipped with a warning), or None if there is none at all.

        Raises MachineError as `read_checkpoint`: the file may be good, and continuing from another one would discard it.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                state = read_checkpoint(path)
            except MachineError:
                raise
            except UserError as error:
                log.warning("%s; trying the checkpoint before it", error)
                continue
            log.info("continuing from %s", path)
            return state
        if paths:
            raise UserError(f"{self.folder}: none of the {len(paths)} checkpoints can be read; move it away to start over")
        return None


def has_checkpoints(folder: Path) -> bool:
    """Whether a run's folder holds checkpoints that the run can continue from."""
    return bool(Checkpoints(folder, 1).paths())


class _HashingWriter:
    """A file for `torch.save` that hashes what passes through it. PyTorch's own error hides why a write failed: `error`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_hashed(content: Any, file: BinaryIO) -> None:
    """Write `content` as `torch.save` does, with the file's hash as the comment of its archive.

    Raises:
        OSError: the file system refused.
    """
    writer = _HashingWriter(file)
    try:
        torch.save(content, writer)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise writer.error or error from error
    comment = COMMENT + writer.hash.hexdigest().encode()
    file.seek(-2, 2)  # the last two bytes of an archive without a comment are the comment's length
    file.write(len(comment).to_bytes(2, "little") + comment)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. One of an earlier version has no hash; its archive's checksums must do.

    Raises:
        UserError: the file is damaged, or is no checkpoint of this step.
        MachineError: the disk or its server fails, or memory is running out.
    """
    try:
        with path.open("rb") as file:
            _check_hash(file)
            state = read_torch_file(file)
    except (UserError, OSError) as error:
        require_machine(error, path)
        raise UserError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(state, dict) or type(state.get("step")) is not int or path.stem != f"step-{state['step']:09d}":
        raise UserError(f"{path} is damaged: it does not say that it is of this step")
    return state


def _check_hash(file: BinaryIO) -> None:
    """UserError if the hash in the comment is not that of the file."""
    length = len(COMMENT) + hashlib.sha256().digest_size * 2
    size = file.seek(0, 2)
    file.seek(max(size - length - 2, 0))
    tail = file.read()
    if not re.fullmatch(re.escape((length).to_bytes(2, "little") + COMMENT) + b"[0-9a-f]{64}", tail):
        if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0":  # the end of an archive without a comment
            return
        raise UserError("its end is not that of a checkpoint")
    found = hashlib.sha256()
    file.seek(0)
    left = size - len(tail)
    while left:
        left -= len(block := file.read(min(left, BLOCK)))
        found.update(block)
    found.update(b"\0\0")
    if found.hexdigest().encode() != tail[2 + len(COMMENT) :]:
        raise UserError("its bytes are not those that were written (sha256)")
