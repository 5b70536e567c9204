"""Official lists and splits. Long lists, such as class names, are in text files in data/."""

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

from svdata2vec.shards.errors import UserError


@cache
def lines(name: str) -> tuple[str, ...]:
    """Lines of data/`name` without comments and blank lines."""
    text = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def name_groups(name: str) -> frozenset[str]:
    """Names of data/`name`, in which `S001C001P001R001{A001,A002}` stands for two names."""
    found: set[str] = set()
    for word in " ".join(lines(name)).split():
        stem, brace, rest = word.partition("{")
        endings = rest.rstrip("}").split(",") if brace else [""]
        found.update(stem + ending for ending in endings)
    return frozenset(found)


def numbers(text: str) -> frozenset[int]:
    """`1,2,4-6` as a set; UserError if it is something else."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"{text!r}: expected numbers like 1,2,4-6")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def train_and_rest(keys: Collection[str], training: Mapping[str, Collection[str]], rest: str) -> dict[str, list[str]]:
    """Two splits per protocol: PROTOCOL_train with the keys of `training`, PROTOCOL_`rest` with all others."""
    return {f"{protocol}_{part}": [key for key in keys if (key in chosen) == (part == "train")]
            for protocol, chosen in training.items() for part in ("train", rest)}
