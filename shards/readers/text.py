"""Text files as people have them: UTF-8 with or without a mark, UTF-16, Windows-1252; tables with any usual divider."""

import csv
import io
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from svdata2vec.shards.errors import UserError, require_file
from svdata2vec.shards.video import open_bytes

DIVIDERS = (",", ";", "\t", "|")
_BEFORE_HEADER = re.compile(r"(?i)(?:[ \t]*\n|\"?sep=.\"?[ \t]*\n)*")  # empty lines, and Excel's word on the divider

log = logging.getLogger(__name__)


def read_text(path: str | Path) -> str:
    """The text of a file or URL. What is not Unicode is read as Windows' latin-1, which the log says."""
    with open_bytes(path) as file:
        content = file.read()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        log.info("%s: not UTF-8, read as Windows-1252 (latin-1)", path)
        return content.decode("cp1252", errors="replace")


def spelled(name: str) -> str:
    """One spelling of a name: systems write an accent as a part of its letter or after it. Bytes that are not UTF-8 become
    `\\udcfc`, so that names that differ do so still."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()


def read_table(path: str | Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> stripped text) of every row that is not empty; columns are named in lower case.

    Raises:
        UserError: no such file, its first line does not name the `needed` columns, no row follows, or one cannot be read.
    """
    require_file(path, f"a table with {' and '.join(needed)}")
    text = re.sub(r"\r\n?", "\n", read_text(path))
    before = _BEFORE_HEADER.match(text)
    start = 0 if before is None else before.end()
    header = text[start:].split("\n", 1)[0].strip()
    columns: list[str] = []
    divider = ","
    for divider in DIVIDERS:
        columns = [name.strip().casefold() for name in next(csv.reader([header], delimiter=divider), [])]
        if set(needed) <= set(columns):
            break
    else:
        raise UserError(f"{path}: expected a header with {' and '.join(needed)}, divided by commas, semicolons or tabs, found "
                        f"{header[:80]!r}")
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=divider)
    first_line = text.count("\n", 0, start)
    try:
        next(reader)
        rows = [(first_line + reader.line_num, dict(zip(columns, (word.strip() for word in row), strict=False)))
                for row in reader if any(word.strip() for word in row)]
    except csv.Error as error:
        raise UserError(f"{path}, line {first_line + reader.line_num}: cannot be read ({error}); is a quotation mark left "
                        "open?") from error
    for line, row in rows:
        if any("\n" in word for word in row.values()):
            raise UserError(f"{path}: a field runs on over several lines up to line {line}; is a quotation mark left open?")
    if not rows:
        raise UserError(f"{path}: no line after the header {header[:80]!r}")
    return rows
