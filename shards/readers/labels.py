"""Turns the labels of a table or pickle into class numbers by one rule: names, or numbers that count from 0 or from 1.

A value that is not a label (empty, -1, a list, a name among numbers) leaves out only its own clip.
"""

import io
import logging
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdata2vec.shards.errors import UserError, require_file
from svdata2vec.shards.readers.text import read_text, spelled
from svdata2vec.shards.shown import some_of

LARGEST_LABEL = 99_999  # a larger number is a mistake, and would create that many classes
UNLABELLED = frozenset({"", "nan", "none", "null", "na", "n/a", "-"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """`of`: class number of each item, from 0, or the reason why it has none. `said`: one line on how they were read."""

    of: list[int | str]
    classes: tuple[str, ...]
    said: str


def read_labels(values: Sequence[Any], classes: Sequence[str] | None = None) -> Labels:
    """Class numbers of labels of one table or pickle.

    Args:
        values: the label of each item, of any type.
        classes: names in the order of the labels. None: the names that occur, sorted; for numbers `class_0`, `class_1`, ...

    The labels are numbers (3, "3", " 3", 3.0) unless more of them are names. Numbers count from 0, or from 1 if 0 does not
    occur but every number from 1 to the number of classes does. With `classes` a name must be one of them.
    """
    classes = None if classes is None else tuple(map(spelled, classes))
    known = set(classes or ())
    read = [_read(value, known) for value in values]
    numbers = [value for value in read if isinstance(value, int)]
    names = [value.name for value in read if isinstance(value, _Name)]
    if classes is not None and any(value.name in known for value in (_as_name(value) for value in read) if value is not None):
        return _by_name([_as_name(value) or value for value in read], classes)
    if len(names) > len(numbers):
        return _by_name(read, tuple(sorted(set(names))) if classes is None else classes)
    return _by_number(read, classes)


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(frozen=True)
class _Wrong:
    reason: str


def _read(value: Any, known: Collection[str]) -> int | _Name | _Wrong:
    """A label as a number, a name, or its fault. A `known` class may be called "none", or "01"."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a NumPy scalar
        value = value.item()
    if isinstance(value, str):
        text = spelled(value.strip())
        if text in known:
            return _Name(text)
        if text.casefold() in UNLABELLED:
            return _Wrong(f"label {value!r}: unlabelled" + "; name the classes if it is one" * bool(text))
        try:
            value = float(text)
        except ValueError:
            return _Name(text)
        if not text.lstrip("+-").replace(".", "").isdigit():  # "1e3", "inf", "1_000": not numbers of classes
            return _Name(text)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _Wrong(f"label {value}: unlabelled")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _Wrong(f"label {str(value)[:40]!r} is of type {type(value).__name__}, expected a number or a name")
    if not math.isfinite(value) or value != int(value):
        return _Wrong(f"label {value}: expected a whole number")
    if value < 0:
        return _Wrong(f"label {int(value)}: unlabelled")
    if value > LARGEST_LABEL:
        return _Wrong(f"label {int(value)}: expected at most {LARGEST_LABEL}")
    return int(value)


def _as_name(value: int | _Name | _Wrong) -> _Name | None:
    return _Name(str(value)) if isinstance(value, int) else value if isinstance(value, _Name) else None


def _by_name(read: Sequence[int | _Name | _Wrong], classes: tuple[str, ...]) -> Labels:
    number = {name: label for label, name in enumerate(classes)}
    of: list[int | str] = []
    for value in read:
        if isinstance(value, _Wrong):
            of.append(value.reason)
        elif isinstance(value, _Name):
            of.append(number.get(value.name, f"label {value.name!r} is not among the classes {some_of(classes, 10)}"))
        else:
            of.append(f"label {value} is a number, most others are names; name the classes if it is one")
    return Labels(of, classes, f"labels are names of {len(classes)} classes")


def _by_number(read: Sequence[int | _Name | _Wrong], classes: tuple[str, ...] | None) -> Labels:
    found = sorted({value for value in read if isinstance(value, int)})
    highest = found[-1] if found else -1
    first = int(len(found) > 1 and found == list(range(1, highest + 1)) and (classes is None or len(classes) == highest))
    count = highest + 1 - first if classes is None else len(classes)
    names = tuple(f"class_{label}" for label in range(first, first + count)) if classes is None else classes
    of: list[int | str] = []
    for value in read:
        if isinstance(value, _Wrong):
            of.append(value.reason)
        elif isinstance(value, _Name):
            of.append(f"label {value.name!r} is a name, most others are numbers")
        else:
            label = value - first
            of.append(label if label < count else f"label {value}, but there are {count} classes, from {first} on")
    absent = [str(label) for label in sorted(set(range(first, first + count)) - set(found))]
    without = f"; no clip of {some_of(absent)}" if absent and found else ""
    return Labels(of, names, f"labels are numbers of {count} classes, counted from {first}{without}")


def classes_beside(classes: str | Path | Sequence[str] | None, own: Sequence[Any] | None, values: Sequence[Any],
                   path: str | Path) -> tuple[str, ...] | None:
    """The given class names, else an annotation file's `own`, else those of `classes.txt` beside it; None if there are none.

    Raises:
        UserError: `classes.txt`, which the user did not name, has other names than `own`, or another number of names than the
            labels `values` have classes.
    """
    if classes is not None:
        return class_names(classes)
    beside = Path(str(path)).parent / "classes.txt"
    found = class_names(beside) if "://" not in str(path) and beside.is_file() else None
    remedy = f"if they are those of {path}, pass --classes {beside}, else move that file away"
    if own is not None:
        names = class_names([str(name) for name in own])
        if found not in (None, names):
            raise UserError(f"{beside}: other class names than those in {path}; {remedy}")
        return names
    if found is None:
        return None
    made = read_labels(values).classes
    if len(made) != len(found) and not set(made) <= set(found):
        raise UserError(f"{beside}: {len(found)} class names, but there are labels of {len(made)} classes; {remedy}")
    log.info("%s: class names from %s", path, beside)
    return found


def class_names(classes: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Class names from a list, or a file with one per line; UserError if one occurs twice, or there is no such file."""
    if not isinstance(classes, str | Path):
        names, where = tuple(map(spelled, classes)), "class names"
    else:
        require_file(classes, "the names of the classes, one per line")
        lines = io.StringIO(read_text(classes), newline=None)  # splitlines would also split at form feeds and the like
        names, where = tuple(spelled(line.strip()) for line in lines if line.strip()), str(classes)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        problem = f"{twice[0]!r} is listed twice" if twice else "there is none"
        raise UserError(f"{where}: {problem}; expected the name of every class once")
    return names
