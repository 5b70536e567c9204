"""Parses the words of the command line into a command and its typed options. Wrong words are a UserError of one line."""

import difflib
import itertools
import logging
import pkgutil
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache, partial
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

# tyro's only ways to get its errors as data, and at its help texts. They may change with any version, so setup.cfg pins the one
# that this is tested with.
from tyro import _docstrings as tyro_docstrings
from tyro import _errors as tyro_errors

from svdata2vec.config.presets import describe
from svdata2vec.shards.errors import UserError

HELP = ("-h", "--help")
GENERAL_PRESET = "own"  # that fits any shards

log = logging.getLogger(__name__)

_field_texts = tyro_docstrings.parse_docstring_from_object


@lru_cache(maxsize=1024)
def _flowing_texts(kind: object) -> dict[str, str]:
    """Help texts of a dataclass's fields without the line breaks of its source, which tyro keeps in indented docstrings."""
    return {name: " ".join(text.split()) for name, text in _field_texts(kind).items()}


tyro_docstrings.parse_docstring_from_object = _flowing_texts


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        summary: its line in the overview.
        run: runs it with its options.
        options: the dataclass of its options, a function that makes that dataclass, or one that makes an instance whose
            values are the defaults.
        fit: makes, from the options that were read, defaults that fit the data they name; the words are then read again on
            top of these.
    """

    summary: str
    run: Callable[[Any], None]
    options: type | Callable[[], Any]
    fit: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Later:
    """A function of this package that is imported when it is called; named as in "training.pretrain:pretrain"."""

    name: str

    def __call__(self, options: Any) -> Any:
        return pkgutil.resolve_name(f"svdata2vec.{self.name}")(options)


FITS = {GENERAL_PRESET: Later("runs.own_preset:fit")}  # presets of a run whose values depend on its shards


@dataclass(frozen=True)
class Group:
    """Commands, one of which the next word names; `choice` says what that word is, e.g. "preset"."""

    summary: str
    choice: str
    commands: Mapping[str, "Command | Group"]


def preset_commands(
    summary: str,
    run: Callable[[Any], None],
    table: Mapping[str, Callable[[], Any]],
    kind: Callable[[Any], Any] | None = None,
    *,
    fits: Mapping[str, Callable[[Any], Any]],
) -> Group:
    """One command per preset, with the preset's values as defaults, converted into another `kind` of options if one is given.

    fits: `Command.fit` of the presets whose values depend on the data.
    """

    def defaults(make: Callable[[], Any]) -> Any:
        return make() if kind is None else kind(make())

    return Group(
        summary, "preset",
        {name: Command(describe(name), run, partial(defaults, make), fits.get(name)) for name, make in table.items()},
    )


def read(words: list[str], group: Group, prog: str, *, fit: bool = False) -> tuple[Command, Any]:
    """The command that the words name, and its options. Prints help and raises SystemExit if the words ask for it, or end
    before they name a command.

    Args:
        prog: the words that were read so far, for help and errors.
        fit: read the data that the options name if the command's defaults depend on it.
    """
    if not words or words[0] in HELP:
        sys.stdout.write(overview(group, prog))
        raise SystemExit(0)
    name = words[0]
    if name.startswith("-"):
        raise UserError(_first_word_missing(words, group, prog))
    prog = f"{prog} {name}"
    if name not in group.commands:
        raise UserError(f"unknown {group.choice} {name!r}; {_choices(group)}")
    found = group.commands[name]
    if isinstance(found, Group):
        return read(words[1:], found, prog, fit=fit)
    _refuse_unfinished(words[1:])
    options = parse(found.options, words[1:], prog)
    for option in _given_again(words[1:], type(options)):
        log.warning("%s is given more than once: the values of the last one count; give all of them behind one", option)
    if fit and found.fit is not None:
        options = parse(partial(found.fit, options), words[1:], prog)
    return found, options


def _refuse_unfinished(words: list[str]) -> None:
    """UserError for words that the shell did not expand as intended: as paths they would be folders in the current one."""
    for before, word in itertools.pairwise(["", *words]):
        name, separator, value = word.partition("=") if word.startswith("--") else (before, " ", word)
        if separator and not value:
            name = name if name.startswith("--") else "a word"
            raise UserError(f"{name} is empty; expected a value (is a shell variable not set?)")
        if value.startswith("~/"):
            raise UserError(f"{word!r}: the shell does not expand a ~ that is quoted or follows a =; write "
                            f"{value.replace('~', '$HOME', 1)}")


def _first_word_missing(words: list[str], group: Group, prog: str) -> str:
    """Error for words that begin with an option; shows them with the missing first word, if it is clear which one that is."""
    # A command that comes late; a name after an option may be the option's value.
    late = [place for place, word in enumerate(words) if word in group.commands and _is_no_value(words[place - 1])]
    first, example = words[late[0]] if late else GENERAL_PRESET, "e.g."
    if first not in group.commands:
        first, example = group.choice.split()[0].upper(), "as in"
    others = [word for place, word in enumerate(words) if place not in late[:1]]
    return f"a {group.choice} comes first, {example} `{shlex.join([*prog.split(), first, *others])}`; {_choices(group)}"


def _is_no_value(before: str) -> bool:
    """Whether the word after this one cannot be the value of an option."""
    return not before.startswith("-") or "=" in before


def _choices(group: Group) -> str:
    return f"choose one of: {', '.join(group.commands)}"


def overview(group: Group, prog: str) -> str:
    """Help text that lists the commands of a group, a line each."""
    width = max(len(name) for name in group.commands)
    rows = "\n".join(f"  {name:{width}s}  {found.summary}" for name, found in group.commands.items())
    usage = f"{prog} {group.choice.split()[0].upper()}"
    return (
        f"usage: {usage} ...\n\n{group.summary[0].upper()}{group.summary[1:]}.\n\n{rows}\n\n"
        f"{usage} --help explains every option, with its unit and default.\n"
    )


def parse(options: type | Callable[[], Any], words: list[str], prog: str) -> Any:
    """Read words into options as `Command.options` declares them."""
    made = options if isinstance(options, type) else options()
    kind = made if isinstance(made, type) else type(made)

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        if isinstance(event, tyro_errors.InstantiationFailure) and event.argument is None:
            raise UserError(_with_dashes(event.message, kind))  # of the options' own checks
        problem = _problem(event, words, kind)
        raise UserError(f"{problem}{' ' if problem.endswith('?') else '; '}`{prog} --help` lists the options")

    defaults: dict[str, Any] = {} if made is kind else {"default": made}
    with tyro_errors.on_parse_error(refuse):
        return tyro.cli(kind, args=words, prog=prog, **defaults)


def _problem(event: tyro_errors.ParseErrorEvent, words: list[str], kind: type) -> str:
    """Description of an error in the words: the option, what was found and what was expected."""
    match event:
        case tyro_errors.UnrecognizedArgs(tokens=[_, *_] as odd) | tyro_errors.MissingArgs(unrecognized_tokens=[_, *_] as odd):
            problems = [_unknown(token, words, kind) for token in odd if token.startswith("--")]
            problems = problems or [_unknown(odd[0], words, kind)]
            return " ".join(text if text.endswith("?") else f"{text};" for text in problems).removesuffix(";")
        case tyro_errors.MissingArgs(missing_arguments=missing):
            return f"missing: {', '.join(one.arg.get_invocation_text()[1].as_str_no_ansi() for one in missing)}"
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{_name(argument)} is {value!r}; expected one of {', '.join(choices)}"
        case tyro_errors.BadValue(argument=argument) if argument.is_positional() and (foreign := _foreign(words, kind)):
            return _unknown(foreign, words, kind)
        case tyro_errors.BadValue(argument=argument):
            return f"{_name(argument)} has too few values; expected {argument.lowered.metavar}"
        case tyro_errors.InstantiationFailure(argument=argument, message=message) if argument is not None:
            found = _given(argument, words) or message.splitlines()[0]
            return f"{_name(argument)} {found}; expected {argument.lowered.metavar}"
        case _:
            return "the options cannot be read"


def _with_dashes(message: str, kind: type) -> str:
    """A configuration's message, with the names of settings (`optim.lr`) replaced by their options (`--optim.lr`)."""
    options = {name.replace("-", "_"): f"--{name}" for name in option_names(kind)}
    return re.sub(r"\w+(\.\w+)+|^\w+|(?<=; )\w+(?= is )", lambda found: options.get(found[0], found[0]), message)


def _name(argument: Any) -> str:
    return argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[0]


def _given(argument: Any, words: list[str]) -> str:
    """The value that the words give an option, for its error; empty for positional ones."""
    for place, word in reversed([*enumerate(words)]):  # the last one counts
        name, _, value = word.partition("=")
        if name.replace("_", "-") == _name(argument):
            values = [value] if value else itertools.takewhile(lambda word: not word.startswith("--"), words[place + 1 :])
            return f"is {' '.join(values)!r}"
    return ""


def _foreign(words: list[str], kind: type) -> str | None:
    """The first option that the command does not have: tyro only takes it as the end of the values before it."""
    known = {*HELP, *(f"--{name}" for name in _spellings(kind))}
    given = (word.partition("=")[0] for word in words if word.startswith("-"))
    return next((word for word in given if word.replace("_", "-") not in known), None)


def _unknown(token: str, words: list[str], kind: type) -> str:
    if not token.startswith("-"):
        place = words.index(token) if token in words else 0
        return f"unexpected {token!r}" + (f" after {words[place - 1]!r}" if place else "")
    wanted = token.partition("=")[0].lstrip("-").replace("_", "-")
    if wanted in option_names(kind, placed=True):
        return f"unknown option {token!r}: {wanted.upper()} is positional, give it without {token!r} before it"
    wanted = re.sub(r"^no-(.*\.)", r"\1no-", wanted)  # the switch of a section
    spellings = _spellings(kind)
    elsewhere = [name for name in spellings if name.rpartition(".")[2] == wanted.rpartition(".")[2]]  # --lr, --optim.epochs
    near = difflib.get_close_matches(wanted, elsewhere or spellings, n=1, cutoff=0.0 if elsewhere else 0.5)
    return f"unknown option {token!r}" + (f"; did you mean --{near[0]}?" if near else "")


def option_names(kind: type, *, placed: bool = False) -> list[str]:
    """Names of a dataclass's options on the command line, without leading dashes; those of nested ones with dots.

    placed: return the names of positional arguments instead.
    """
    return [name for name, _, by_place in _options(kind) if by_place is placed]


def _spellings(kind: type) -> list[str]:
    """`option_names`, and those that turn a switch off, like model.no-fused-blocks."""
    off = [re.sub(r"([^.]+)$", r"no-\1", name) for name, hint, by_place in _options(kind) if hint is bool and not by_place]
    return [*option_names(kind), *off]


def _options(kind: type, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Name and type of each option, and whether it is positional."""
    hints = get_type_hints(kind, include_extras=True)
    for name, hint in ((field.name, hints[field.name]) for field in fields(kind)):
        inner, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(inner):
            yield from _options(inner, prefix if tyro.conf.OmitArgPrefixes in marks else f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            given = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
            yield f"{prefix}{given}".replace("_", "-"), inner, tyro.conf.Positional in marks


def _given_again(words: Sequence[str], kind: type) -> list[str]:
    """Options with any number of values that occur more than once in the words, as in `--from a=x --from b=y`."""
    lists = {f"--{name}" for name, hint, by_place in _options(kind) if not by_place and _takes_any_number(hint)}
    counts = Counter(word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--"))
    return [name for name, count in counts.items() if count > 1 and name in lists]


def _takes_any_number(hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple:
        return Ellipsis in parts
    return origin in (Sequence, Mapping, list, dict) or (origin in (Union, UnionType) and any(map(_takes_any_number, parts)))
