"""Configurations as files: JSON text of one, and one read back from its values."""

import dataclasses
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from svdata2vec.shards.errors import UserError

Config = TypeVar("Config")


def to_json(config: Any) -> str:
    """The configuration as JSON text; `from_dict` reads its values back."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=os.fspath)


def from_dict(kind: type[Config], values: dict[str, Any], source: str) -> Config:
    """Read a configuration back from JSON values; unknown names are an error that lists them and names `source`."""
    return _build(kind, values, source)


def _build(kind: Any, values: dict[str, Any], source: str) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{source}: unknown names {', '.join(unknown)}; {kind.__name__} has {', '.join(sorted(known))}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, f"{source}: {name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, source: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if hint is Path:
        return Path(value)
    return tuple(value) if typing.get_origin(hint) is tuple else value
