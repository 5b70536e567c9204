"""Who performs a clip: read off its name, or off its `subject` where shards lie on this machine.

n clips
"""

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np

from svdata2vec.config.schema import DataConfig
from svdata2vec.shards.readers import ntu, pku, smarthome, uav_human
from svdata2vec.shards.reading.joined import own_key
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.reading.shardset import ShardSet

# Names of clips, with the group of people in them: a performer, or the recording of a PKU-MMD clip (all its views).
PERFORMERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (ntu.NAME, lambda name: name[3]),
    (smarthome.NAME, lambda name: name[2]),
    (uav_human.NAME, lambda name: name[1]),
    (re.compile(rf"({pku.VIDEO_NAME.pattern})_\d+"), lambda name: name[1].partition("-")[0]),
)

log = logging.getLogger(__name__)


def performers(shards: ShardSet, rows_n: np.ndarray, keys: Sequence[str]) -> list[str] | None:
    """Who performs each clip, or in which recording it was cut out; None if that is not known of all of them.

    Args:
        keys: the clips' names (`ShardSet.names`); of several sets, in each of which others perform, with the set's.
    """
    places = [key.rpartition("/")[0] for key in keys]
    found = [""] * len(keys)
    for place in dict.fromkeys(places):
        members = [i for i, other in enumerate(places) if other == place]
        own = _named([own_key(keys[i]) for i in members]) or _noted(shards, rows_n[members])
        if own is None:
            return None
        for i, who in zip(members, own, strict=True):
            found[i] = f"{place}/{who}" if place else who
    return found or None


def _named(keys: Sequence[str]) -> list[str] | None:
    """Performers by names that all follow the pattern of one data set."""
    for pattern, group in PERFORMERS:
        names = [pattern.fullmatch(key.replace("-", ".") if pattern is smarthome.NAME else key) for key in keys]
        if all(names):
            return [group(name) for name in names if name is not None]
    return None


def _noted(shards: ShardSet, rows_n: np.ndarray) -> list[str] | None:
    """Performers by the clips' descriptions; a damaged clip, which a run leaves out, has one to itself."""
    found: list[str] = []
    for row in rows_n.tolist() if shards.tars else []:
        try:
            subject: int | str | None = ClipMeta.from_bytes(shards.read(row, ["json"])["json"], shards.where).subject
        except (ValueError, OSError):
            subject = f"of the damaged clip {row}"
        if subject is None:
            return None
        found.append(str(subject))
    return found or None


def warn_of_shared_people(shards: ShardSet, data: DataConfig, train_rows: np.ndarray, val_split: str | None = None) -> None:
    """Say in the log where a figure is not about new people, as far as they are known.

    Of the test split as a fact: protocols by view or set-up mean it. Of the validation split where the test is on new people.
    """
    train, test = _people(shards, train_rows), _people(shards, shards.rows(data.test_split))
    if both := train & test:
        if "[" not in data.test_split:  # of parts the preset `own`, which makes them, says more
            text = "%s: split %r shows %s who are trained on: it tests how they are recognised in other clips, not new people"
            log.info(text, shards.where, data.test_split, _some(both))
        return
    validated = set() if val_split is None else _people(shards, shards.rows(val_split))
    for split, others in ((data.train_split, train), (data.test_split, test)):
        if both := validated & others:
            log.warning(
                "%s: the validation split %r shows %s who are in %r too, while the test is on new people: it will choose a "
                "network that knows them; name another with --data.val-split", shards.where, val_split, _some(both), split,
            )


def _people(shards: ShardSet, rows_n: np.ndarray) -> set[str]:
    return set(performers(shards, rows_n, shards.names(rows_n)) or ())


def _some(people: set[str]) -> str:
    return f"{len(people)} performers ({', '.join(sorted(people)[:5])}{', ...' if len(people) > 5 else ''})"
