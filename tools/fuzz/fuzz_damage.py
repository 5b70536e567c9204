"""Ways to damage or craft a file: bytes, text, JSON values, arrays. All are functions of a random generator."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ODD_NUMBERS = (0, -1, 1, 2**31, 2**32 - 1, 2**63, 2**64, 10**400, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"),
               float("-inf"))
ODD_TEXTS = ("", " ", "x", "0", "NaN", "a" * 5000, "../../../x", "/x", ".", "a/b", "a\\b", "$x^{", "\x1b]0;title\x07\x1b[31m",
             "line\nline", "\u202egnirts", "\ud800", "\0", "\u00e9\u0301", "-1", "1e999", "None", "{}", "%s%n")


def odd_value(rng: random.Random) -> Any:
    """An unexpected value."""
    return rng.choice([rng.choice(ODD_NUMBERS), rng.choice(ODD_TEXTS), None, True, [], {}, [[]], {"a": {}}, [0] * 1000])


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Damage bytes as disks, networks and interrupted copies do."""
    data, size = bytearray(content), len(content)
    if not size:
        return rng.randbytes(rng.randrange(1, 50))
    place = rng.choice([rng.randrange(size), min(rng.randrange(64), size - 1), max(size - 1 - rng.randrange(64), 0)])
    length = rng.choice([1, 2, 8, 64, 512, 4096])
    kind = rng.randrange(9)
    if kind < 2:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(size)] = rng.randrange(256)
    elif kind == 3:
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == 4:
        data[place : place + length] = rng.randbytes(len(data[place : place + length]))
    elif kind == 5:
        del data[rng.choice([place, 0, size // 2]) :]
    elif kind == 6:
        del data[place : place + length]
    elif kind == 7:
        data[place:place] = rng.randbytes(length)
    else:
        other = rng.randrange(size)
        data[place : place + length], data[other : other + length] = data[other : other + length], data[place : place + length]
    return bytes(data)


def damage_text(rng: random.Random, content: bytes) -> bytes:
    """Damage a table or a file of numbers as people and programs do, or sometimes as a disk does."""
    if rng.random() < 0.2:
        return damage_bytes(rng, content)
    lines = content.split(b"\n")
    row, kind = rng.randrange(len(lines)), rng.randrange(7)
    odd = str(rng.choice([rng.choice(ODD_NUMBERS[:7]), *ODD_NUMBERS[8:], rng.choice(ODD_TEXTS)])).encode(errors="surrogatepass")
    if kind == 0:
        del lines[row]
    elif kind == 1:
        lines.insert(row, lines[rng.randrange(len(lines))])
    elif kind == 2:
        lines[row] = odd
    elif kind == 3:
        for mark in (b",", b" ", b";"):
            words = lines[row].split(mark)
            if len(words) > 1:
                words[rng.randrange(len(words))] = odd
                lines[row] = mark.join(words)
                break
    elif kind == 4:
        lines[row] += rng.choice([b",", b" 1", b"\r", b"\0", b"\xff\xfe", b'"', b"\t"])
    elif kind == 5:
        return rng.choice([b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content.replace(b",", b"\t"), b"",
                           b"\n" * 50])
    else:
        lines = lines[: row + 1]
    return b"\n".join(lines)


def damage_value(rng: random.Random, value: Any) -> Any:
    """A JSON value (or one of a pickle) with one part of it replaced, removed, repeated or renamed."""
    value = copy.deepcopy(value)
    place: Any = value
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.75:
            place = place[key]
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif kind == 1 and isinstance(place, dict):
            place[str(rng.choice(ODD_TEXTS))] = place.pop(key)
        else:
            place[key] = odd_value(rng)
        return value
    return odd_value(rng)


def damage_rows(rng: random.Random, rows: np.ndarray) -> np.ndarray:
    """A structured array with one number of one row changed, or with rows lost, repeated or reordered."""
    rows = np.array(rows)
    kind = rng.randrange(6)
    if kind == 0:
        return rows[: rng.randrange(len(rows))]
    if kind == 1:
        return rows[rng.sample(range(len(rows)), len(rows))]
    if kind == 2:
        return rng.choice([rows[:, None], rows.view(np.uint8), np.concatenate([rows, rows]), rows[["key", "label"]].copy()])
    assert rows.dtype.names is not None
    name, row = rng.choice(rows.dtype.names), rng.randrange(len(rows))
    if name == "key":
        odd_keys = [b"", b"../../../x", b"a\nb", b"\x1b[31m", b"\xff\xfe", bytes(rows[name][row - 1]), b"a.b"]
        rows[name][row] = rng.choice(odd_keys)
        return rows
    limits = np.iinfo(rows.dtype[name].base)
    odd = [limits.max, limits.min, 0, 1, limits.max // 2, 77, int(rows[name][row].flat[0]) + rng.choice([-1, 1, 512])]
    rows[name][row] = min(max(rng.choice(odd), int(limits.min)), int(limits.max))
    return rows


def replace_file(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Damage a whole file, as by deleting or exchanging it; returns what was done."""
    kind = rng.choice(["removed", "emptied", "folder", "link", "loop", "other"])
    content = path.read_bytes()
    path.unlink()
    if kind == "emptied":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        aside = path.with_name(path.name + ".aside")
        aside.write_bytes(content)
        path.symlink_to(aside.name)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "other":
        path.write_bytes(rng.choice(others).read_bytes() if others else b"")
    return kind


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's content."""
    path.write_bytes(change(path.read_bytes()))
