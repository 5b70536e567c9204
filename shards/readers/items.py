"""Turns the items of a data set (annotations, files, lines) into clips one by one: a faulty item is left out alone."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from svdata2vec.shards.annotations import ClipAnnotation, Skipped
from svdata2vec.shards.errors import ItemError, reason_of, require_machine

Item = TypeVar("Item")


def clips_of(items: Iterable[Item], make: Callable[[Item], ClipAnnotation], name: Callable[[Item], tuple[str, str]],
             skipped: list[Skipped]) -> list[ClipAnnotation]:
    """The clips that `make` returns for `items`.

    An item for which it raises is added to `skipped` under `name(item)`, its key and file; an `ItemError` has its own file. So
    is the second of two clips with one key; the reason names both videos. An entry whose key is also that of a clip gets the
    key `KEY (again)`. Raises MachineError if the machine failed, not the item.
    """
    clips: dict[str, ClipAnnotation] = {}
    left_out: list[Skipped] = []
    for item in items:
        try:
            clip = make(item)
        except Exception as error:  # noqa: BLE001 - any error: one item must never end the packing
            key, source = name(item)
            source = error.source if isinstance(error, ItemError) else source
            require_machine(error, source)
            left_out.append(Skipped(key, reason_of(error, source), source))
            continue
        first = clips.setdefault(clip.key, clip)
        if first is not clip:
            reason = (f"{clip.video} is listed twice" if str(first.video) == str(clip.video)
                      else f"{clip.video} has the name of another video, '{first.video}'; rename one")
            left_out.append(Skipped(clip.key, reason, str(clip.video)))
    skipped += [replace(entry, key=f"{entry.key} (again)") if entry.key in clips else entry for entry in left_out]
    return list(clips.values())
