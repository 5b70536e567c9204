"""Configurations of the tests as command lines of the real command."""

import dataclasses
import sys
from typing import Any

OTHER_NAMES = {"pretrained": "from"}  # of options


def command_words(config: Any) -> list[str]:
    """The command line that resolves to the test's configuration."""
    return [sys.executable, "-m", "svdata2vec", config.kind, "demo", *options_of(config)]


def options_of(values: Any, section: str = "--") -> list[str]:
    """Every setting of a configuration as options, sections within sections too."""
    words = []
    for field in dataclasses.fields(values):
        value, name = getattr(values, field.name), OTHER_NAMES.get(field.name, field.name.replace("_", "-"))
        if dataclasses.is_dataclass(value):
            words += options_of(value, f"{section}{name}.")
        elif isinstance(value, bool):
            words.append(f"{section}{name}" if value else f"{section}no-{name}")
        else:
            words += [f"{section}{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words
