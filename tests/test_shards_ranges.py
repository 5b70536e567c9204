"""Every number that a user can set declares its range, and nothing outside of it is accepted."""

import argparse
import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from repository import ROOT

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.main import main
from svdata2vec.cli.options import Command, Group
from svdata2vec.cli.runs import PredictOptions
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range, check_fields

HUGE = 10**400
WRONG_WHOLE = (math.nan, math.inf, -math.inf, -1, HUGE, 1.5, True, "1", None)
WRONG_REAL = (math.nan, math.inf, -math.inf, -1.0, 1e300, HUGE, True, "1", None)


def option_kinds(group: Group = COMMANDS) -> dict[str, Any]:
    """Of every command an instance of its options where all have defaults, else their class; by the class's name."""
    kinds: dict[str, Any] = {}
    for name, found in group.commands.items():
        if isinstance(found, Group):
            kinds |= option_kinds(found)
        else:
            assert isinstance(found, Command)
            made = found.options if isinstance(found.options, type) else found.options()
            kind = made if isinstance(made, type) else type(made)
            kinds[f"{kind.__name__} {name}" if kind.__name__ == "Shard" else kind.__name__] = made
    return kinds


KINDS = option_kinds() | {"PlanConfig": PlanConfig()}


def example(kind: Any) -> Any:
    """An instance; what has no default is a text or a path."""
    if not isinstance(kind, type):
        return kind
    hints = typing.get_type_hints(kind)
    needed = [one for one in dataclasses.fields(kind)
              if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING]
    values = {str: "all", Path: Path("x"), tuple[Path, ...]: (Path("x"),)}
    return kind(**{one.name: values.get(hints[one.name], {"xsub": "x"} if "Mapping" in str(hints[one.name]) else "x")
                   for one in needed})


def settings(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names of all fields, also of nested configurations, with their bare types."""
    found: list[tuple[str, Any]] = []
    hints = typing.get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        found += settings(value, f"{prefix}{one.name}.") if dataclasses.is_dataclass(value) else [
            (prefix + one.name, hints[one.name])
        ]
    return found


def test_all_wrong_values_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "demo", "--neighbours", "0", "--label-fraction", "2", "--iterations", "5"]) == 2
    said = capsys.readouterr().err
    assert "probe: --label-fraction is 2.0: expected a number above 0, 1 at most; --neighbours is 0: expected a whole" in said
    assert "iterations" not in said


def changed(config: Any, name: str, value: Any) -> Any:
    """The configuration with one field, named with dots, replaced; made again, so that it checks itself."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


def wrong_values(hint: Any) -> list[Any]:
    """Values that no field of this type may have, whatever its range."""
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        count = 2 if parts[-1] is ... else len(parts)
        return [*((wrong,) * count for wrong in wrong_values(parts[0])), 1, "x", None]
    if type(None) in parts:
        return [wrong for wrong in wrong_values(next(part for part in parts if part is not type(None))) if wrong is not None]
    if hint in (int, float):
        return [*(WRONG_WHOLE if hint is int else WRONG_REAL)]
    if get_origin(hint) is Literal:
        return [math.nan, -1, "no such choice", None]
    others: dict[Any, list[Any]] = {bool: [0, "yes", None], Path: ["x", 1, None, Path("a\0b")], str: [1, "a\0b", "\udcff"]}
    return others.get(hint, [])


@pytest.mark.parametrize("name", KINDS)
def test_no_field_takes_what_is_not_of_its_type_or_range(name: str) -> None:
    """Every field of every command's options: an error of one line that names the field, or the value is fine."""
    config = example(KINDS[name])
    found = settings(config)
    tried = 0
    for field, hint in found:
        for wrong in wrong_values(hint):
            with pytest.raises(UserError) as caught:
                changed(config, field, wrong)
            assert "\n" not in str(caught.value) and field.split(".")[-1] in str(caught.value), field
            tried += 1
        for unusual in (0, 0.0) if hint in (int, float) else ():
            try:
                assert changed(config, field, type(unusual)(unusual)) is not None
            except UserError as error:
                assert "\n" not in str(error) and field.split(".")[-1] in str(error)
    assert tried >= len(found) / 2


def numbers(kind: Any) -> int:
    """How many ranges a dataclass declares, nested ones included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return sum(numbers(hint) if dataclasses.is_dataclass(hint) else "Range(" in str(hint) for hint in hints.values())


def test_configurations_declare_their_ranges() -> None:
    assert numbers(type(PRETRAIN["demo"]())) >= 40 and numbers(type(FINETUNE["demo"]())) >= 40


def test_a_number_without_a_range_is_a_fault_of_the_program() -> None:
    @dataclass(frozen=True)
    class Undeclared:
        size: int = 1

    @dataclass(frozen=True)
    class Uncheckable:
        anything: object = None

    with pytest.raises(TypeError, match="size declares no range"):
        check_fields(Undeclared())
    with pytest.raises(TypeError, match="anything: a field of type"):
        check_fields(Uncheckable())


@dataclass(frozen=True)
class Every:
    """One field of each kind."""

    side: Annotated[int, Range(32, 96, multiple=32)] = 64
    pair: Annotated[tuple[float, float], Range(0, 1, rising=True)] = (0.1, 0.2)
    many: Annotated[tuple[int, ...], Range(1, 9)] = ()
    maybe: Annotated[int, Range(1, 9)] | None = None
    both: tuple[Annotated[int, Range(0, 1)], Annotated[float, Range(5, 6)]] = (0, 5.0)
    place: str | Path = "x"
    names: Sequence[str] | None = None
    files: Mapping[str, str | Path] | None = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 33}, "x.side is 33: expected a multiple of 32 from 32 to 96"),
        ({"side": 128}, "x.side is 128: expected a multiple of 32 from 32 to 96"),
        ({"pair": (0.3, 0.2)}, "x.pair is (0.3, 0.2): expected smallest <= largest"),
        ({"pair": (0.3,)}, "x.pair is (0.3,): expected 2 values"),
        ({"pair": (0.3, 1.5)}, "x.pair is 1.5: expected a number from 0 to 1"),
        ({"many": (1, 10)}, "x.many is 10: expected a whole number from 1 to 9"),
        ({"maybe": 0}, "x.maybe is 0: expected a whole number from 1 to 9"),
        ({"both": (1, 4.0)}, "x.both is 4.0: expected a number from 5 to 6"),
        ({"place": 3}, "x.place is 3: expected a path in UTF-8"),
        ({"names": "abc"}, "x.names is 'abc': expected several values"),
        ({"names": ["a", 1]}, "x.names is 1: expected a text in UTF-8"),
        ({"files": {"a": 1}}, "x.files is 1: expected a path in UTF-8"),
    ],
)
def test_messages_name_the_field_and_the_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_fields(dataclasses.replace(Every(), **change), "x.")
    assert str(caught.value) == message


def test_values_in_range_are_accepted() -> None:
    check_fields(Every(32, (0.2, 0.2), (1, 9), 9, (1, 6.0), Path("a"), ["a"], {"a": Path("b")}))


@pytest.mark.parametrize("box", ["1e30,0,1e31,5", "nan,0,1,1", "0,0,inf,1", "-1e7,0,1,1", "1,2,3", "a,b,c,d", ""])
def test_a_box_is_four_pixels_of_some_picture(box: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--box is"):
        PredictOptions(Path("run"), Path("a.mp4"), box=box)
    assert main(["predict", "run", "a.mp4", f"--box={box}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_options_of_tools_have_ranges_too(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="tool")
    parser.add_argument("--steps", type=Range(1, 10).parser(int))
    assert parser.parse_args(["--steps", "3"]).steps == 3
    for value, problem in (("0", "is 0: expected a whole number from 1 to 10"), ("x", "invalid int value: 'x'")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--steps", value])
        assert problem in capsys.readouterr().err
    bare = re.compile(r"type=(int|float)\b")
    found = {path.name for path in (ROOT / "tools").rglob("*.py") if bare.search(path.read_text())}
    alone = {"make_motion_clips.py", "extract_poses.py", "predict_exported.py"}
    assert found == alone, "those that check their options themselves"
