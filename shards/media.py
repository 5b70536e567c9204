"""Finds the video file of every clip in a folder, whatever its extension."""

import os
from collections.abc import Iterable
from pathlib import Path

from svdata2vec.shards.errors import UserError

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v")


class VideoFolder:
    """The videos below a folder by file name without extension (sub-folders included)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; expected the one with the videos")
        self._by_stem: dict[str, list[str]] = {}
        for folder, _, names in os.walk(self.root, followlinks=True):
            for name in names:
                path = Path(folder, name)
                if path.suffix.lower() in VIDEO_EXTENSIONS:
                    self._by_stem.setdefault(path.stem, []).append(str(path))
        if not self._by_stem:
            raise UserError(f"{self.root}: no video in this folder; expected {', '.join(VIDEO_EXTENSIONS)} files")

    def __len__(self) -> int:
        return len(self._by_stem)

    def stems(self) -> Iterable[str]:
        """All names without extension, sorted."""
        return sorted(self._by_stem)

    def find(self, *stems: str) -> str | None:
        """Path of the first of these names that exists, None if there is none. UserError if it exists twice."""
        for stem in stems:
            paths = self._by_stem.get(stem, [])
            if len(paths) > 1:
                first, second, *_ = sorted(paths)
                raise UserError(f"{first} and {second} have the same name; rename or remove one")
            if paths:
                return paths[0]
        return None
