"""Finds clips that crash the worker process that packs them: a fault in a decoder, or more memory than there is.

A worker leaves a note with its current clip. When a worker dies, these clips are packed again, each in its own process, and
those that crash again are left out. (A packing with one process dies with its worker: then the next run does this.)
"""

import contextlib
import json
import logging
from functools import partial
from pathlib import Path

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.atomic import read_object, write_atomically
from svdata2vec.shards.errors import UserError, WorkerDiedError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.packing.clip import ClipPacker
from svdata2vec.shards.packing.options import PackOptions
from svdata2vec.shards.video import silence_decoder

NOTE_SUFFIX = ".now"
REFUSED_NAME = "refused.json"
REASON = "crashes the process that decodes it (a fault in the decoder, or more memory than there is)"

log = logging.getLogger(__name__)


def load_refused(parts: Path) -> dict[str, str]:
    """Key -> reason of the clips found by earlier calls of `find_crashing_clips` for this folder."""
    return read_object(parts / REFUSED_NAME) or {}


def find_crashing_clips(parts: Path, dataset: DataSet, options: PackOptions, refused: dict[str, str]) -> bool:
    """Try the clips of the workers' notes; add those that crash again to `refused` and to the folder. False if none does.

    `parts`: the folder with the workers' notes.
    """
    found = False
    clips = {clip.key: clip for clip in dataset.clips}
    for note in sorted(parts.glob("*" + NOTE_SUFFIX)):
        try:
            key = note.read_text(encoding="ascii")
        except FileNotFoundError:  # a worker of a cluster, which is still running, has finished the clip
            continue
        note.unlink(missing_ok=True)
        if key in clips and key not in refused and _crashes(clips[key], len(dataset.layout.joints), options):
            log.warning("clip %s (%s) %s", key, clips[key].video, REASON)
            refused[key] = f"{clips[key].video}: {REASON}"
            found = True
    if found:
        write_atomically(parts / REFUSED_NAME, json.dumps(refused).encode())
    return found


def _crashes(clip: ClipAnnotation, num_joints: int, options: PackOptions) -> bool:
    """Whether the clip ends a process of its own."""
    try:
        list(run_tasks(partial(_try, num_joints=num_joints, options=options), [clip], workers=2))  # 1 would be this process
    except WorkerDiedError:
        return True
    except UserError:  # no process can start, as in a script without a guard: no clip is to blame
        return False
    return False


def _try(clip: ClipAnnotation, num_joints: int, options: PackOptions) -> None:
    """Pack the clip and discard the result; ordinary errors are ignored."""
    silence_decoder()
    with contextlib.suppress(Exception):
        ClipPacker(num_joints, options).pack(clip)
