"""Reads text files in common encodings (UTF-8 with or without a byte-order mark, UTF-16, Windows-1252), and tables."""

import csv
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdata2vec.shards.errors import UserError, require_file
from svdata2vec.shards.video import open_bytes

DIVIDERS = (",", ";", "\t", "|")
MOST_SHOWN = 10  # unreadable lines of a table that are listed
_BEFORE_HEADER = re.compile(r"(?i)(?:[ \t]*\n|\"?sep=.\"?[ \t]*\n)*")  # empty lines, and Excel's line that names the separator

log = logging.getLogger(__name__)


def read_text(path: str | Path) -> str:
    """The text of a file or URL. Text that is not Unicode is read as Windows-1252, which is logged."""
    with open_bytes(path) as file:
        content = file.read()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        log.info("%s: not UTF-8, read as Windows-1252", path)
        return content.decode("cp1252", errors="replace")


def stamp(path: str) -> int:
    """Time of the last change of a file, or of a folder's list of files, as a key for caches; 0 for a URL."""
    return Path(path).stat().st_mtime_ns if Path(path).exists() else 0


def spelled(name: str) -> str:
    """A name in its canonical spelling: some systems write an accented letter as one character, others as two.

    Bytes that are not UTF-8 become `\\udcfc`, so that different names stay different.
    """
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()


def existing_spelling(path: str, folder: Path) -> str:
    """The path below `folder` in the spelling of the existing file; unchanged if there is none.

    The spelling may differ in how accents are written, or be that of Windows (run\\001.mp4).
    """
    dividers = (path, path.replace("\\", "/"))
    spellings = (path, *(unicodedata.normalize(form, spelling) for spelling in dividers for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if os.path.exists(folder / spelling)), path)  # noqa: PTH110 - never raises


def read_table(path: str | Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> stripped text) of every row that is not empty; columns are named in lower case.

    Raises:
        UserError: there is no such file, its header lacks one of the `needed` columns or names a column twice, no row
            follows, or some cannot be read.
    """
    require_file(path, f"a table with {' and '.join(needed)}")
    text = re.sub(r"\r\n?", "\n", read_text(path))
    before = _BEFORE_HEADER.match(text)
    start = 0 if before is None else before.end()
    header = text[start:].split("\n", 1)[0].strip()[: csv.field_size_limit()]
    for divider in DIVIDERS:
        columns = [name.strip().casefold() for name in next(csv.reader([header], delimiter=divider), [])]
        if set(needed) <= set(columns):
            break
    else:
        raise UserError(f"{path}: expected a header with {' and '.join(needed)}, divided by commas, semicolons, tabs or |, "
                        f"found {header[:80]!r}")
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise UserError(f"{path}: the header names column {twice[0]!r} twice; expected it once, rename or remove one")
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=divider)
    rows, wrong = _rows(reader, columns, text.count("\n", 0, start))
    if wrong:
        more = f"; and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
        raise UserError(f"{path}: cannot be read: {'; '.join(wrong[:MOST_SHOWN])}{more}. Is a quotation mark left open?")
    if len(rows) == 1:
        raise UserError(f"{path}: no line after the header {header[:80]!r}")
    return rows[1:]


def _rows(reader: Any, columns: Sequence[str], before: int) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """(line number, column -> text) of every row, and the faults of lines. `before`: lines before those of the reader."""
    rows: list[tuple[int, dict[str, str]]] = []
    wrong: list[str] = []
    while True:
        first = before + reader.line_num + 1
        try:
            row = [word.strip() for word in next(reader)]
        except StopIteration:
            return rows, wrong
        except csv.Error as error:
            wrong.append(f"line {before + reader.line_num}: {error}")
            continue
        line = before + reader.line_num
        if any("\n" in word for word in row):
            wrong.append(f"lines {first} to {line}: a field extends over them")
        if beyond := [word for word in row[len(columns) :] if word]:
            wrong.append(f"line {line}: {beyond[0]!r} is in a column that the header does not name")
        if any(row):
            rows.append((line, dict(zip(columns, row, strict=False))))
