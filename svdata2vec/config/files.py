"""Configurations written as JSON and read back strictly: unknown or missing names and values of a wrong type are errors."""

import contextlib
import dataclasses
import json
import os
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeVar

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.shown import public

Config = TypeVar("Config")

_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", Path: "a path"}


def to_json(config: Any, credentials: bool = False) -> str:
    """The configuration as JSON text; `from_dict` reads its values back. `credentials`: keep those in its URLs."""
    text = json.dumps(dataclasses.asdict(config), indent=2, default=os.fspath)
    return text if credentials else public(text)


def to_values(config: Any) -> dict[str, Any]:
    """The configuration as the values of a JSON object."""
    return json.loads(to_json(config))


def read_json(path: Path) -> Any:
    """Values of a JSON file; UserError names a file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); expected a file that svdata2vec wrote") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError for a repeated name, of which Python would silently take the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{json.dumps(twice)} occurs twice in one object")
    return values


def with_todays_names(values: Any) -> Any:
    """Settings of an earlier version under their current names: `launch` and `run.compile` are `run.launch` now."""
    if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
        return values
    values, run = dict(values), dict(values["run"])
    launch, compiled = values.pop("launch", None), run.pop("compile", False)
    if launch is not None or compiled:
        run.setdefault("launch", "compiled" if compiled is True else launch)
    return {**values, "run": run}


def from_dict(kind: type[Config], values: Any, source: str) -> Config:
    """Read a configuration back from JSON values.

    Args:
        kind: a dataclass of numbers, strings, choices, paths, tuples and other such dataclasses.
        values: as returned by `to_values`; omitted fields have their defaults.
        source: the file, for messages.

    Raises:
        UserError: names the file, the dotted field, what was found and what was expected.
    """
    try:
        return _read_fields(kind, values, "")
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _read_fields(kind: Any, values: Any, prefix: str) -> Any:
    """The dataclass `kind` from a JSON object; `prefix`: dotted name of the object and a dot, empty for the root."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise UserError(f"{_found(prefix[:-1], values)} expected an object with the settings {', '.join(fields)}")
    unknown = [prefix + name for name in sorted(set(values) - set(fields))]
    if unknown:
        raise UserError(f"unknown names {', '.join(unknown)}; {kind.__name__} has {', '.join(sorted(fields))}")
    nothing = dataclasses.MISSING
    needed = [name for name, field in fields.items() if field.default is nothing and field.default_factory is nothing]
    missing = [prefix + name for name in needed if name not in values]
    if missing:
        raise UserError(f"{', '.join(missing)} missing; {kind.__name__} has no default for it")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], value, prefix + name) for name, value in values.items()})


def _read(hint: Any, value: Any, name: str) -> Any:
    """`value` as an instance of the type `hint`; `name`: its dotted field."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _read_fields(hint, value, f"{name}.")
    if origin in (typing.Union, types.UnionType):
        (some,) = (part for part in parts if part is not type(None))
        return None if value is None else _read(some, value, name)
    if origin is tuple and isinstance(value, list):
        hints = parts[:1] * len(value) if parts[-1] is ... else parts
        if len(hints) == len(value):
            return tuple(_read(each, item, f"{name}[{i}]") for i, (each, item) in enumerate(zip(hints, value, strict=True)))
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in parts):
        return value
    accepted = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    if hint in _SCALARS and type(value) in accepted:
        with contextlib.suppress(OverflowError):  # an integer that is too large for a float
            return hint(value)
    raise UserError(f"{_found(name, value)} expected {_expected(hint)}")


def _found(name: str, value: Any) -> str:
    return f"{name or 'the whole'} is {json.dumps(value)[:80]};"


def _expected(hint: Any) -> str:
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(json.dumps(part) for part in parts)}"
    if typing.get_origin(hint) is tuple:
        return f"a list, each item {_expected(parts[0])}" if parts[-1] is ... else f"a list of {len(parts)}"
    return _SCALARS[hint]
