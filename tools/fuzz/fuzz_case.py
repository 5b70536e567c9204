"""The interface of the fuzzer's areas, and the rule that judges the outcome of a case.

A case passes with a clean error (one line, status 1 or 2), a counted skip, or an unchanged result. A traceback, a signal, a
hang, or a changed result from damaged bytes fails. The result may only change if the input is crafted or has no checksum
(a table, a video).
"""

import contextlib
import hashlib
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from svdata2vec.cli.main import main

GOOD = ("same", "error", "skipped", "other")  # outcomes that the rule allows


@dataclass(frozen=True)
class Damage:
    """What was done to a folder. `crafted`: the result may change. `must_fail`: the command must report the damage."""

    what: str
    crafted: bool = False
    must_fail: bool = False


@dataclass(frozen=True)
class Result:
    """Part -> hash of its result, and the number of parts that were reported as left out."""

    parts: dict[str, str] = field(default_factory=dict)
    skipped: int = 0


class CleanError(Exception):
    """A command ended as documented for wrong input."""


class Area(Protocol):
    """One kind of input."""

    def prepare(self, folder: Path) -> None:
        """Make a good input in an empty folder."""

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """Damage a copy of it."""

    def run(self, folder: Path) -> Result:
        """Read it as users do. Raises CleanError, or what the program raises."""


def judge(damage: Damage, clean: Result, found: Result) -> str:
    """The outcome of a case that ended without an error."""
    changed = {name for name, value in found.parts.items() if clean.parts.get(name) != value}
    lost = clean.parts.keys() - found.parts.keys()
    if damage.must_fail:
        return "unnoticed"
    if damage.crafted:
        return "other" if changed or lost else "same"
    if changed:
        return f"changed in silence: {', '.join(sorted(changed)[:3])}"
    if len(lost) > found.skipped:
        return f"lost in silence: {', '.join(sorted(lost)[:3])}"
    return "skipped" if lost else "same"


def command(*words: object) -> str:
    """Standard output of `svdata2vec WORDS`; CleanError if it ends with status 1 or 2 and its line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:  # help
            status = end.code if isinstance(end.code, int) else 3
    if status == 0:
        return out.getvalue()
    last = err.getvalue().splitlines()[-1:]
    if status not in (1, 2) or not last or not last[0].startswith("svdata2vec"):
        raise AssertionError(f"status {status}, and at the end: {last}")
    if any(not character.isprintable() for character in last[0]):
        raise AssertionError(f"a message with characters that a terminal obeys: {last[0]!r}")
    raise CleanError(last[0])


def digest(*contents: bytes) -> str:
    """A hash of several contents."""
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:16]


def digest_folder(folder: Path) -> str:
    """A hash of the names and contents of the files of a folder."""
    return digest(*(f"{path.name}".encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()))
