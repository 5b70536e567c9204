"""Items of a data set (annotations, files, lines) become clips one by one: a fault in one leaves out only that one."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from svdata2vec.shards.annotations import ClipAnnotation, Skipped
from svdata2vec.shards.errors import ItemError, reason_of

Item = TypeVar("Item")


def clips_of(items: Iterable[Item], make: Callable[[Item], ClipAnnotation], name: Callable[[Item], tuple[str, str]],
             skipped: list[Skipped]) -> list[ClipAnnotation]:
    """The clips that `make` makes of `items`. Whatever it raises goes to `skipped`, under `name(item)`: key and file. The file
    is that of an `ItemError`, where it is one.

    So does the second of two clips with one key; the reason names both videos. What is left out beside a clip of its key is
    `KEY (again)`: that clip is there.
    """
    clips: dict[str, ClipAnnotation] = {}
    left_out: list[Skipped] = []
    for item in items:
        try:
            clip = make(item)
        except Exception as error:  # noqa: BLE001 - whatever it is: one item never ends the work of all
            key, source = name(item)
            source = error.source if isinstance(error, ItemError) else source
            left_out.append(Skipped(key, reason_of(error, source), source))
            continue
        first = clips.setdefault(clip.key, clip)
        if first is not clip:
            reason = (f"{clip.video} is listed twice" if str(first.video) == str(clip.video)
                      else f"{clip.video} has the name of another video, '{first.video}'; rename one")
            left_out.append(Skipped(clip.key, reason, str(clip.video)))
    skipped += [replace(entry, key=f"{entry.key} (again)") if entry.key in clips else entry for entry in left_out]
    return list(clips.values())
