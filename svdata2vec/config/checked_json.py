"""Our JSON files, treated as untrusted: checked against a schema, and sealed with a hash if changes must be noticed.

A schema lists the required content. Later versions may add names to a file, but not remove any or change its meaning.

- a type, or a tuple of types: a value of it; numbers are finite, strings can be written as UTF-8
- a `Range`: a whole number in it. A set: one of these values.
- {"name": schema}: an object; "name?" may be missing or null; "*" stands for all other names
- [schema]: a list of such values
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from svdata2vec.config.files import read_json
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range, is_text

NUMBER = (int, float)
SEAL = "sha256"


def faults(value: Any, schema: Any, name: str = "") -> list[str]:
    """Differences between a value and its schema (missing entries, wrong types), one line each; empty if there are none."""
    if isinstance(schema, dict):
        return _faults_of_object(value, schema, name)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{name or 'the file'} is {_kind(value)}, expected a list"]
        return [fault for number, item in enumerate(value) for fault in faults(item, schema[0], f"{name}[{number}]")]
    if isinstance(schema, set):
        fits = isinstance(value, str) and value in schema
    elif isinstance(schema, Range):
        fits = type(value) is int and schema.low <= value <= schema.high
    else:
        fits = isinstance(value, schema) and (schema is bool or not isinstance(value, bool)) and _is_clean(value)
    return [] if fits else [f"{name or 'the file'} is {_kind(value)}"]


def _faults_of_object(value: Any, schema: dict[str, Any], name: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{name or 'the file'} is {_kind(value)}, expected an object"]
    prefix, found = f"{name}." if name else "", []
    for entry, kind in schema.items():
        word = entry.removesuffix("?")
        if entry == "*":
            continue
        if word not in value:
            found += [] if entry.endswith("?") else [f"no {prefix}{word}"]
        elif value[word] is not None or not entry.endswith("?"):
            found += faults(value[word], kind, f"{prefix}{word}")
    named = {entry.removesuffix("?") for entry in schema}
    if "*" in schema:
        for word in value.keys() - named:
            found += faults(value[word], schema["*"], f"{prefix}{word}")
    return found


def _is_clean(value: Any) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= 1e300 and math.isfinite(value)
    return is_text(value) if isinstance(value, str) else True


def _kind(value: Any) -> str:
    """Description of a value for a message: its type, and the value itself if it is short."""
    text = "" if isinstance(value, dict | list) else f" {value!r:.40}"
    return f"{type(value).__name__}{text}" if text.isprintable() else type(value).__name__


def check_record(value: Any, schema: Any, path: Path) -> Any:
    """The value, if it matches its schema. UserError names the file and the first differences."""
    wrong = faults(value, schema)
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong[:3])}; expected a file that svdata2vec wrote")
    return value


def sealed(values: dict[str, Any]) -> bytes:
    """File content for a JSON object, with the hash of its values added."""
    return json.dumps({**values, SEAL: values_hash(values)}, indent=2).encode()


def read_sealed(path: Path) -> Any:
    """Values of a JSON file, without the hash if `sealed` wrote it; earlier versions wrote no hash.

    Raises:
        UserError: the file is not JSON, or was changed after it was written.
    """
    values = read_json(path)
    if isinstance(values, dict) and SEAL in values and values.pop(SEAL) != values_hash(values):
        raise UserError(f'{path} was changed after it was written; restore it, or remove its entry "{SEAL}" to use it as it is')
    return values


def values_hash(values: Any) -> str:
    """SHA-256 of the values of a JSON file, whatever the order of its names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
