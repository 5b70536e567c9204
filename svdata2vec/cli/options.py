"""Words of the command line -> typed options. Wrong words are a UserError of one line."""

import difflib
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, TypeVar

import tyro

from svdata2vec.config.presets import describe, preset
from svdata2vec.shards.errors import UserError

Options = TypeVar("Options")

_FRAME = "╭╮╰╯│─ "


def parse(kind: type[Options], words: list[str], prog: str, default: Options | None = None) -> Options:
    """Read words into the dataclass `kind`; `prog` is the command as the user wrote it, named in errors."""
    settings: dict[str, Any] = {} if default is None else {"default": default}
    said = StringIO()
    try:
        with redirect_stderr(said):
            options, unknown = tyro.cli(kind, args=words, prog=prog, return_unknown_args=True, **settings)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_first_sentence(said.getvalue())}; `{prog} --help` lists the options") from None
    if unknown:
        names = option_names(options)
        near = difflib.get_close_matches(unknown[0].lstrip("-").replace("-", "_"), names, n=1, cutoff=0.5)
        hint = f"did you mean --{near[0].replace('_', '-')}? " if near else ""
        raise UserError(f"unknown option {unknown[0]!r}; {hint}`{prog} --help` lists the options")
    return options


def _first_sentence(box: str) -> str:
    """What tyro says about an error, without the frame that it draws and the help that follows."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip(_FRAME)
        if not text and lines:
            break
        lines.append(text)
    return " ".join(lines) or "the options cannot be read"


def option_names(options: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields of nested dataclasses."""
    names: list[str] = []
    for name, value in vars(options).items():
        nested = hasattr(value, "__dataclass_fields__")
        names += option_names(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return names


def parse_preset(table: Mapping[str, Any], words: list[str], command: str) -> Any:
    """`PRESET [overrides]` -> the preset's configuration with its overrides."""
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:15s} {describe(name)}" for name in table)
        sys.stdout.write(
            f"usage: svdata2vec {command} PRESET [overrides]\n\npresets:\n{rows}\n\n"
            f"svdata2vec {command} PRESET --help explains every setting, with its unit and the preset's default.\n"
        )
        raise SystemExit(0)
    config = preset(table, words[0])
    return parse(type(config), words[1:], f"svdata2vec {command} {words[0]}", config)
