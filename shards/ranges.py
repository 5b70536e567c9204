"""Ranges of settings: every field of a configuration declares its own, and `check_fields` holds it to them.

    epochs: Annotated[int, Range(1, 1000)] = 400
    shares: Annotated[tuple[float, float], Range(0, 1, rising=True)] = (0.1, 0.5)

The range is in the annotation, where the command line leaves it alone. A number without one is a TypeError as soon as its
configuration is made. The type is the range of everything else: choices (`Literal`), switches, paths and texts.
"""

import argparse
import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from svdata2vec.shards.errors import UserError

LARGEST = 10**9  # of a setting that has no limit of its own
ABOVE_0 = 1e-15  # smallest value of a setting that must not be 0
LARGEST_SEED = 2**63 - 1
READ_ALONE = "a file that is read and written down nowhere"  # Annotated[Path, READ_ALONE]: its name need not be UTF-8


@dataclass(frozen=True)
class Range:
    """The numbers that a field, or every item of a tuple, may have: finite, low <= number <= high.

    multiple: whole numbers divisible by it alone. rising: of a tuple, no item is smaller than the one before.
    """

    low: float
    high: float = LARGEST
    multiple: int = 1
    rising: bool = False

    def check(self, name: str, value: Any, *, whole: bool = False) -> None:
        """Raise UserError, which begins with the name, unless this number (a `whole` one) is in the range."""
        if self.multiple == 1:
            check_number(name, value, self.low, self.high, whole=whole)
        elif not _is_number(value, whole=True) or not self.low <= value <= self.high or value % self.multiple:
            raise UserError(f"{name} is {value!r}: expected a multiple of {self.multiple} from {self.low} to {self.high}")

    def parser(self, kind: type[int] | type[float]) -> Callable[[str], Any]:
        """The range as `type` of an argparse option: text -> a number in the range."""

        def read(text: str) -> Any:
            number = kind(text)
            try:
                self.check("the value", number, whole=kind is int)
            except UserError as error:
                raise argparse.ArgumentTypeError(str(error)) from None
            return number

        read.__name__ = kind.__name__  # argparse names it where the text is no number
        return read


Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, LARGEST_SEED)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(ABOVE_0, 1)]


def check_fields(config: Any, section: str = "") -> None:
    """Raise UserError, which names all fields that are wrong, unless every field is of its type and in its range.

    Args:
        config: instance of a dataclass; those in its fields are checked with it.
        section: what stands before a field's name in messages, as in "optim.".

    Raises:
        TypeError: a number declares no range, or a field is of a type that cannot be checked.
    """
    kind: Any = type(config)
    wrong = []
    for name, hint in _hints(kind).items():
        try:
            _check(f"{section}{name}", getattr(config, name), hint, None)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("; ".join(wrong))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Annotations of a dataclass's fields, ranges included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _check(name: str, value: Any, hint: Any, declared: Range | None) -> None:
    """Hold a value to its annotation; `declared`: the range that stands around `hint`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and READ_ALONE in parts:
        _expect(isinstance(value, Path) and "\0" not in str(value), name, value, "a path")
    elif origin is Annotated:
        _check(name, value, parts[0], next((mark for mark in parts[1:] if isinstance(mark, Range)), declared))
    elif origin in (typing.Union, types.UnionType):
        _check_any(name, value, parts, declared)
    elif origin is tuple:
        _check_tuple(name, value, parts, declared)
    elif origin in (Sequence, Mapping):
        _check_many(name, value, origin, parts, declared)
    elif origin is Literal:
        check_known(name, value, parts)
    elif dataclasses.is_dataclass(hint):
        _expect(isinstance(value, typing.cast("type", hint)), name, value, f"a {getattr(hint, '__name__', hint)}")
        check_fields(value, f"{name}.")
    elif hint in (int, float):
        if declared is None:
            raise TypeError(f"{name} declares no range; annotate it: Annotated[{hint.__name__}, Range(...)]")
        declared.check(name, value, whole=hint is int)
    elif hint is bool:
        _expect(isinstance(value, bool), name, value, "true or false")
    elif hint in (str, Path):
        _expect(isinstance(value, hint) and is_text(value), name, value, f"a {'path' if hint is Path else 'text'} in UTF-8")
    else:
        raise TypeError(f"{name}: a field of type {hint} cannot be checked; see {__name__}")


def _check_any(name: str, value: Any, hints: Sequence[Any], declared: Range | None) -> None:
    """Check a value of a union: None, or a value that one of its other types accepts."""
    others = [hint for hint in hints if hint is not types.NoneType]
    if value is None and len(others) < len(hints):
        return
    for hint in others[:-1]:
        try:
            return _check(name, value, hint, declared)
        except UserError:
            continue
    _check(name, value, others[-1], declared)


def _check_tuple(name: str, value: Any, parts: Sequence[Any], declared: Range | None) -> None:
    hints = [*parts[:1]] * len(value) if isinstance(value, tuple) and parts[-1] is ... else [*parts]
    _expect(isinstance(value, tuple) and len(value) == len(hints), name, value, f"{len(hints)} values")
    for item, hint in zip(value, hints, strict=True):
        _check(name, item, hint, declared)
    if declared is not None and declared.rising:
        _expect(list(value) == sorted(value), name, value, "smallest <= largest")


def _check_many(name: str, value: Any, kind: type, parts: Sequence[Any], declared: Range | None) -> None:
    _expect(isinstance(value, kind) and not isinstance(value, str), name, value, "several values")
    for items, hint in zip((value, value.values()) if kind is Mapping else (value,), parts, strict=True):
        for item in items:
            _check(name, item, hint, declared)


def _expect(fits: bool, name: str, value: Any, expected: str) -> None:
    if not fits:
        raise UserError(f"{name} is {value!r}: expected {expected}")


def is_text(value: str | Path) -> bool:
    """Whether this can be a file's name, and be written in UTF-8."""
    text = os.fspath(value)
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _is_number(value: Any, *, whole: bool) -> bool:
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, whole: bool = False) -> None:
    """Raise UserError unless `value` is a finite number, or a `whole` one, with low <= value <= high."""
    if not _is_number(value, whole=whole) or not low <= value <= high or value == math.inf:
        kind = "a whole number" if whole else "a number"
        bounds = f"above 0, {high} at most" if low == ABOVE_0 else f"from {low} to {high}"
        expected = f"{low} or more, {kind}" if high == math.inf else f"{kind} {bounds}"
        raise UserError(f"{name} is {value!r}: expected {expected}")


def check_known(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raise UserError unless `value` is one of the known ones."""
    if value not in known:
        raise UserError(f"{name} is {value!r}: expected {' or '.join(map(repr, known))}")
