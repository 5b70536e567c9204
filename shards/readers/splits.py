"""Splits for data sets that have none: a share of the clips for validation, drawn by subject, camera, set-up or clip."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

from svdata2vec.shards.annotations import ClipAnnotation
from svdata2vec.shards.errors import UserError

SHARE = 0.2
RULES = ("subject", "camera", "setup", "random")
HELP = "expected subject, camera, setup or random, perhaps with a share for validation, as in random:0.2"
# The numbers in names of NTU RGB+D, Toyota Smarthome and UAV-Human, for pickles that do not have them as fields.
_NAMES = [re.compile(pattern) for pattern in (
    r"S(?P<setup>\d{3})C(?P<camera>\d{3})P(?P<subject>\d{3})R\d{3}A\d{3}", r".*_p(?P<subject>\d+)_r\d+_v\d+_c(?P<camera>\d+)",
    r"P(?P<subject>\d+)S(?P<setup>\d+)G\d+B\d+H\d+UC.*")]


def split_by(rule: str, clips: Sequence[ClipAnnotation]) -> dict[str, list[str]]:
    """Two splits, train and val: `rule` is one of RULES, alone or with the share of clips for val (`subject:0.3`).

    Groups (all clips of one subject; for `random`, of one video) go to val in the order of a hash of their number or name
    until the share is reached. So an added clip moves no other group.

    Raises:
        UserError: another rule, clips without that number, or fewer than two groups.
    """
    name, _, text = rule.partition(":")
    try:
        share = float(text) if text else SHARE
    except ValueError:
        share = -1.0
    if name not in RULES or not 0 < share < 1:
        raise UserError(f"--split-by {rule}: {HELP}")
    groups: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        groups[_group(clip, name)].append(clip.key)
    if "" in groups:
        raise UserError(f"--split-by {rule}: {len(groups[''])} clips have no {name}, e.g. {groups[''][0]}; add its number to "
                        "the annotations, or split by random")
    if len(groups) < 2:
        raise UserError(f"--split-by {rule}: all clips belong together (one {name}); expected two groups or more")
    chosen: set[str] = set()
    order = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())
    for group in order[:-1]:
        if len(chosen) >= share * len(clips):
            break
        chosen.update(groups[group])
    keys = [clip.key for clip in clips]
    return {"train": [key for key in keys if key not in chosen], "val": [key for key in keys if key in chosen]}


def _group(clip: ClipAnnotation, rule: str) -> str:
    """Name of the group that must not be divided between train and val; empty if it is not known."""
    if rule == "random":
        return clip.key if clip.end_frame is None else clip.key.rpartition("_")[0]
    number = getattr(clip, rule)
    if number is None:
        found = next((match for match in (name.match(clip.key) for name in _NAMES) if match), None)
        number = int(found[rule]) if found and rule in found.groupdict() else None
    return "" if number is None else str(number)
