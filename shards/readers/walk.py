"""The walk through folders that all readers share.

Links are followed, except a link to a folder above itself. Hidden files, files that other systems leave behind (`._a.mp4`,
`__MACOSX`, `@eaDir`) and anything but plain files are skipped, but not silently: entries that might have been data are in
`Walk.left_out` with a reason, the rest is counted in one line of the log.
"""

import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from svdata2vec.shards.annotations import Skipped
from svdata2vec.shards.errors import UserError, reason_of, require_folder, require_machine
from svdata2vec.shards.shown import some_of
from svdata2vec.shards.urls import filesystem_of

# Folders that file systems, archivers and Python create beside the data.
NO_DATA = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__"})

log = logging.getLogger(__name__)


@dataclass
class Walk:
    """The files below `root`.

    Attributes:
        files: paths or URLs, sorted folder by folder; after `media.video_files` only the videos.
        folders: folders on this machine that were entered.
        others: after `media.video_files` the files that are not videos.
        left_out: entries that could not be read, and why.
        passed: hidden names, relative to `root`.
        frame_folders: after `media.video_files` those of `files` that are folders of numbered pictures.
    """

    root: str
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    left_out: list[Skipped] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    frame_folders: set[str] = field(default_factory=set)

    def relative(self, path: str) -> str:
        """A file's path below `root`, with `/` between folders."""
        return path[len(self.root) :].lstrip("/")


def walk(root: str | Path, holds: str) -> Walk:
    """All files below a folder or URL; UserError if there is no such folder. `holds`: the expected files, for messages."""
    if "://" in str(root):
        found = _walk_url(str(root), holds)
    else:
        require_folder(root, f"the one with {holds}")
        found = Walk(os.path.normpath(root))
        _enter(found, found.root, ())
    if found.passed:
        log.info("%s: hidden files and folders are skipped: %s", root, some_of(found.passed))
    return found


def _walk_url(root: str, holds: str) -> Walk:
    system, path = filesystem_of(root)
    if not system.isdir(path):
        raise UserError(f"{root}: no such folder; expected the one with {holds}")
    found = Walk(system.unstrip_protocol(path))
    for url in sorted(system.unstrip_protocol(name) for name in system.find(path)):
        hidden = any(_is_hidden(part) for part in found.relative(url).split("/"))
        (found.passed if hidden else found.files).append(url)
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_DATA


def _enter(found: Walk, folder: str, above: tuple[tuple[int, int], ...]) -> None:
    """Add a folder's files, then those of its folders. `above`: (device, inode) of its parent folders."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        here = Path(folder).stat()
    except OSError as error:
        require_machine(error, folder)
        found.left_out.append(Skipped(found.relative(folder) or folder, reason_of(error, folder), folder))
        return
    found.folders.append(folder)
    chain = (*above, (here.st_dev, here.st_ino))
    for entry in entries:
        if _is_hidden(entry.name):
            found.passed.append(found.relative(entry.path))
            continue
        reason = _add(found, entry, chain)
        if reason is not None:
            found.left_out.append(Skipped(found.relative(entry.path), f"{entry.path}: {reason}", entry.path))


def _add(found: Walk, entry: os.DirEntry[str], chain: tuple[tuple[int, int], ...]) -> str | None:
    """Add a file, or enter a folder; returns the reason if neither is possible."""
    try:
        if entry.is_file():
            found.files.append(entry.path)
            return None
        facts = entry.stat()
    except OSError as error:
        require_machine(error, entry.path)
        with suppress(OSError):  # not a link, or one that cannot be read either
            return f"a link to {Path(entry.path).readlink()}, which cannot be reached ({error.strerror})"
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISDIR(facts.st_mode):
        return "neither a file nor a folder"
    if (facts.st_dev, facts.st_ino) in chain:
        return "a link to a folder above it, whose files are read there"
    _enter(found, entry.path, chain)
    return None
