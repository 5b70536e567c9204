"""Untrusted text (names of files, classes, URLs) made fit for a terminal, for pages and for records."""

import re
from collections.abc import Sequence
from itertools import islice

_USER = re.compile(r"(?<=://)[^/?#\s\"]+@")  # a password may have an @ or ' in it
_SECRETS = r"[\w.-]*(?:signature|credential|token|secret|password|passwd)|sig|key|api[_-]?key|awsaccesskeyid|googleaccessid"
_QUERY = re.compile(rf"([?&](?:{_SECRETS})=)[^&\s\"'#]+", re.IGNORECASE)


def public(text: str) -> str:
    """The text without the user names, passwords, keys and signatures of the URLs in it."""
    return _QUERY.sub(r"\1***", _USER.sub("", text))


def shown(text: str) -> str:
    """One line that a terminal only prints: `public`, with escapes for what is not printable (control codes, line breaks)."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in public(text))


def shown_lines(text: str) -> str:
    """`shown` for every line of a text."""
    return "\n".join(map(shown, text.split("\n")))


def some_of(names: Sequence[str], count: int = 3) -> str:
    """`5, among them a, b, c`, or just the names if these are all."""
    listed = ", ".join(islice(names, count))
    return listed if len(names) <= count else f"{len(names)}, among them {listed}"
