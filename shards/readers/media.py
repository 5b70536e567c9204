"""Finds the files of every clip: its video in a folder or behind an fsspec URL, whatever its extension; its skeletons."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.urls import filesystem_of

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v")


def files_below(root: str | Path) -> Iterator[str]:
    """Paths (or URLs, if `root` is one) of all files below a folder; UserError if there is no such folder."""
    if "://" in str(root):
        system, path = filesystem_of(str(root))
        if not system.isdir(path):
            raise UserError(f"{root}: no such folder; expected the one with the videos")
        yield from (system.unstrip_protocol(name) for name in system.find(path))
        return
    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; expected the one with the videos")
    for folder, _, names in os.walk(root, followlinks=True):
        yield from (str(Path(folder, name)) for name in names)


def skeleton_files(root: str | Path, extension: str) -> dict[str, Path]:
    """Files with this extension below a folder, by name without it; UserError if there is no such folder or file."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected the one with the {extension} skeletons")
    files = {path.stem: path for path in sorted(root.rglob(f"*{extension}"))}
    if not files:
        raise UserError(f"{root}: no {extension} file in this folder")
    return files


def without_extension(name: str) -> str:
    """The name less a video's extension; other dots are part of the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_EXTENSIONS else name


class VideoFolder:
    """The videos below a folder, sub-folders included, by file name or by relative path, both without extension."""

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self._by_stem: dict[str, list[str]] = {}
        self._by_path: dict[str, list[str]] = {}
        for path in files_below(root):
            name = PurePosixPath(path)
            if name.suffix.lower() in VIDEO_EXTENSIONS:
                self._by_stem.setdefault(name.stem, []).append(path)
                for parent in (name.parent.name, "/".join(name.parent.parts[-2:])):
                    self._by_path.setdefault(f"{parent}/{name.stem}", []).append(path)
        if not self._by_stem:
            raise UserError(f"{self.root}: no video in this folder; expected {', '.join(VIDEO_EXTENSIONS)} files")

    def stems(self) -> Iterable[str]:
        """All names without extension, sorted."""
        return sorted(self._by_stem)

    def videos(self) -> Iterator[tuple[str, str]]:
        """(name without extension, path) of every video, by name. UserError if a name exists twice."""
        for stem in self.stems():
            path = self.find(stem)
            assert path is not None
            yield stem, path

    def find(self, *stems: str) -> str | None:
        """Path of the first of these names that exists, None if there is none. UserError if it exists twice.

        A name may have one or two folders in front (class/name, split/class/name).
        """
        for stem in stems:
            paths = self._by_path.get(stem) or self._by_stem.get(PurePosixPath(stem).name, [])
            if len(paths) > 1:
                first, second, *_ = sorted(paths)
                raise UserError(f"{first} and {second} have the same name; rename or remove one")
            if paths:
                return paths[0]
        return None
