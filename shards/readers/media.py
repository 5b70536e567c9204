"""Finds the files of every clip: its video with any extension, in a folder or behind an fsspec URL; others by name."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from svdata2vec.shards.annotations import Skipped, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.text import spelled
from svdata2vec.shards.readers.walk import Walk, walk
from svdata2vec.shards.shown import some_of
from svdata2vec.shards.video import holds_pictures, holds_video

# Files with these extensions are taken for videos without opening them; others are videos if PyAV can decode them.
VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".asf", ".ts", ".mts",
                    ".m2ts", ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".f4v", ".divx", ".rm", ".rmvb", ".gif")
_NO_VIDEO = (".txt", ".csv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".log", ".srt", ".vtt", ".npy",
             ".npz", ".pkl", ".pt", ".pth", ".mat", ".h5", ".skeleton", ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff",
             ".webp", ".heic", ".heif", ".hif", ".avif", ".dng", ".aae", ".wav", ".mp3", ".m4a", ".zip", ".tar", ".gz", ".db",
             ".ini", ".thm", ".part", ".tmp")

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png")

log = logging.getLogger(__name__)


def is_video(path: str) -> bool:
    """Whether a file is a video: by its extension, or because its first picture can be decoded."""
    extension = PurePosixPath(path).suffix.lower()
    return extension in VIDEO_EXTENSIONS or (extension not in _NO_VIDEO and holds_video(path))


def video_files(root: str | Path) -> Walk:
    """The videos below a folder or URL; the number of other files is logged. UserError: no such folder, or no video."""
    found = walk(root, "the videos")
    files, found.files = found.files, []
    for path in files:
        (found.files if is_video(path) else found.others).append(path)
    if "://" not in str(root):
        _add_frame_folders(found)
    others = [found.relative(path) for path in found.others]
    if others:
        log.info("%s: files that are no videos: %s", root, some_of(others))
    if not found.files:
        why = f"; {found.left_out[0].reason}" if found.left_out else f"; found {some_of(others)}" if others else ""
        raise UserError(f"{root}: no video in this folder; expected {', '.join(VIDEO_EXTENSIONS[:4])} files or the like{why}")
    return found


def _add_frame_folders(found: Walk) -> None:
    """Folders of numbered pictures, without a video beside them, are videos; their pictures leave `others`."""
    with_video = {str(Path(path).parent) for path in found.files}
    places = {str(Path(path).parent) for path in found.others if Path(path).suffix.lower() in PICTURE_EXTENSIONS}
    found.frame_folders |= {folder for folder in places - with_video - {found.root} if holds_pictures(folder)}
    found.files += sorted(found.frame_folders)
    found.others = [path for path in found.others if str(Path(path).parent) not in found.frame_folders]


def files_by_name(root: str | Path, holds: str, extension: str, skipped: list[Skipped], *others: str) -> dict[str, Path]:
    """Files with this extension, or one of `others`, below a folder, by name without it. `holds`: their kind, for messages.

    Unreadable entries, and the second of two files with one name, are added to `skipped`. UserError if there is no such folder
    or file.
    """
    found = walk(root, f"the {extension} {holds}")
    skipped += found.left_out
    files: dict[str, Path] = {}
    for path in map(Path, found.files):
        ending = next((ending for ending in (extension, *others) if path.name.endswith(ending)), None)
        if ending is not None:
            first = files.setdefault(path.name.removesuffix(ending), path)
            if first is not path:
                skipped.append(Skipped(found.relative(str(path)), f"{path} has the name of another file, '{first}'; that one "
                                       "is read", str(path)))
    if not files:
        raise UserError(f"{root}: no {extension} file in this folder")
    return files


def without_video(files: Mapping[str, Path], folder: "VideoFolder", names: re.Pattern[str]) -> list[Skipped]:
    """The `files`, by name of their video, for which the folder has no video, if `names` matches that name."""
    stems = set(folder.stems())
    return [Skipped(safe_key(stem), f"no video '{stem}' below {folder.root}", str(path))
            for stem, path in files.items() if stem not in stems and names.fullmatch(stem)]


def without_extension(name: str) -> str:
    """The name without a video's extension; other dots are part of the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_EXTENSIONS else name


def plain_name(video: str | Path) -> str:
    """A video's path without any extension; a folder of pictures has none."""
    return str(video if Path(video).is_dir() else PurePosixPath(video).with_suffix(""))


def identity(video: str) -> str:
    """An identifier that is the same for two spellings of one file, and for links to it."""
    try:
        facts = Path(video).stat()
    except OSError:  # a URL, or a missing file, which packing will report
        return video
    return f"{facts.st_dev} {facts.st_ino}"


def folders_of(names: Iterable[str]) -> set[tuple[int, str]]:
    """The parent folders in names, each with its level; 0 is the folder of the file itself."""
    return {place for name in names for place in enumerate(PurePosixPath(name).parent.parts[::-1])}


def strange_folder(asked: str, found: Iterable[str], shared: Collection[tuple[int, str]]) -> str | None:
    """The folder that shows that a file of the right name belongs to another clip; None if it may be this clip's.

    `asked`: name of the clip. `found`: path of the file, or all paths that it may have. `shared`: `folders_of` both sides, in
    common. The name is enough if one side has no folders, or only folders of its own (poses/001.json for run/001.mp4). But
    walk/001 and run/001 are two clips if walk or run is a folder of both sides.
    """
    wanted = PurePosixPath(asked).parent.parts[::-1]
    paths = [PurePosixPath(name).parent.parts[::-1] for name in found]
    agreed = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path, wanted, strict=False))) for path in paths]
    depth = max(agreed)
    deepest = [path for path, count in zip(paths, agreed, strict=True) if count == depth < min(len(path), len(wanted))]
    return next((path[depth] for path in deepest if (depth, path[depth]) in shared or (depth, wanted[depth]) in shared), None)


def _different(paths: Sequence[str]) -> list[str]:
    """The paths, sorted; only the first of those that lead to the same file."""
    return sorted({identity(path): path for path in sorted(paths, reverse=True)}.values()) if len(paths) > 1 else [*paths]


class VideoFolder:
    """The videos below a folder, sub-folders included, by file name or by relative path, both without extension.

    `left_out`: entries below the folder that could not be read. `relative`: returns a video's path below the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self._by_stem: dict[str, list[str]] = {}
        self._by_path: dict[str, list[str]] = {}
        found = video_files(root)
        self.left_out = found.left_out
        self.relative = found.relative
        for path in found.files:
            name = PurePosixPath(spelled(path))
            stem = name.name if path in found.frame_folders else name.stem
            self._by_stem.setdefault(stem, []).append(path)
            for parent in (name.parent.name, "/".join(name.parent.parts[-2:])):
                self._by_path.setdefault(f"{parent}/{stem}", []).append(path)

    def folders(self) -> set[tuple[int, str]]:
        """`folders_of` the videos, below the folder."""
        return folders_of(spelled(self.relative(path)) for paths in self._by_stem.values() for path in paths)

    def stems(self) -> Iterable[str]:
        """All names without extension, sorted."""
        return sorted(self._by_stem)

    def videos(self) -> Iterator[tuple[str, str]]:
        """(name without extension, path) of every video, by name and path; a name may occur twice."""
        for stem in self.stems():
            for path in _different(self._by_stem[stem]):
                yield stem, path

    def name_of(self, name: str) -> str:
        """A clip's name without its video's extension; `a.mov` keeps it if there is a video `a.mov.mp4`."""
        return name if PurePosixPath(spelled(name)).name in self._by_stem else without_extension(name)

    def find(self, *names: str) -> str | None:
        """Path of the video that has one of these names, None if there is none. UserError if there are several.

        A name may have folders in front (class/name, split/class/name). A video in the last two of them is preferred to one in
        the last one, which is preferred to one that has only the name.
        """
        places = [PurePosixPath(spelled(name)) for name in names]
        levels = [[self._by_path.get("/".join((*place.parent.parts[-count:], place.name)), []) for place in places]
                  for count in (2, 1)]
        levels.append([self._by_stem.get(place.name, []) for place in places])
        paths = next((found for level in levels if (found := _different([path for paths in level for path in paths]))), [])
        if len(paths) > 1:
            first, second, *_ = paths
            raise UserError(f"{first} and {second} both fit {' or '.join(names)}; rename or remove one")
        return paths[0] if paths else None
