"""Settings as files: they are read back as they were written, and values of a wrong type are refused."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdata2vec.bench.batch_worker import BatchConfig
from svdata2vec.bench.scale_worker import ScaleConfig
from svdata2vec.config.files import from_dict, read_json, to_json, to_values
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.probe import PROBE
from svdata2vec.runs.folder import read_config, write_config
from svdata2vec.shards.errors import UserError


@dataclass(frozen=True)
class Inner:
    """One field of each kind that settings have."""

    share: float
    count: int = 1
    on: bool = False
    name: str = "x"
    choice: Literal["a", "b", 3] = "a"
    place: Annotated[Path | None, "an option's own name"] = None
    pair: tuple[float, int] = (0.5, 1)
    many: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    kind: ClassVar[str] = "no field"
    other: Inner = field(default_factory=lambda: Inner(0.25))


INNER = st.builds(
    Inner,
    share=st.floats(allow_nan=False), count=st.integers(), on=st.booleans(), name=st.text(),
    choice=st.sampled_from(["a", "b", 3]), place=st.none() | st.sampled_from([Path("a/b"), Path("/x")]),
    pair=st.tuples(st.floats(allow_nan=False), st.integers()), many=st.lists(st.integers()).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
PRESETS = [
    *(make() for table in (PRETRAIN, FINETUNE, PROBE) for make in table.values()),  # type: ignore[attr-defined]
    BatchConfig(), ScaleConfig(processes=(1, 2), out=Path("scale.json")),
]
WRONG = (None, True, 7, 1.5, "wrong", [], ["wrong"], {}, {"wrong": 1})


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all settings that are not sections."""
    found = []
    for name, value in values.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found


def changed(config: Any, name: str, value: Any) -> dict[str, Any]:
    """The configuration's values with one of them replaced."""
    values = to_values(config)
    *sections, last = name.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[last] = value
    return values


@given(INNER, INNER)
def test_files_are_read_back_as_written(inner: Inner, other: Inner) -> None:
    config = Outer(inner, other=other)
    assert from_dict(Outer, json.loads(to_json(config)), "x.json") == config


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: type(config).__name__)
def test_every_preset_is_read_back_the_same(config: Any) -> None:
    assert from_dict(type(config), to_values(config), "x.json") == config


@given(st.sampled_from(leaves(to_values(Outer(Inner(0.5))))), JSON)
def test_a_value_is_of_its_type_or_an_error_that_names_it(name: str, value: Any) -> None:
    """Whatever stands there: it is kept, or refused with file and field; no other exception."""
    try:
        config = from_dict(Outer, changed(Outer(Inner(0.5)), name, value), "x.json")
    except UserError as error:
        assert str(error).startswith(f"x.json: {name}") and "; expected " in str(error)
        return
    for part in name.split("."):
        config = getattr(config, part)
    kept = [*config] if isinstance(config, tuple) else str(config) if isinstance(config, Path) else config
    assert kept == value or value != value or isinstance(config, Path)


@pytest.mark.parametrize("config", [PRESETS[0], FINETUNE["demo"](), PROBE["demo"](), PRESETS[-1]],
                         ids=lambda config: type(config).__name__)
def test_a_wrong_type_anywhere_is_refused(config: Any) -> None:
    """Each setting of real configurations with values of every JSON type: at most two of them fit it."""
    names = leaves(to_values(config))
    assert len(names) > 15
    for name in names:
        before: Any = to_values(config)
        for part in name.split("."):
            before = before[part]
        taken = 0
        for value in WRONG:
            try:
                from_dict(type(config), changed(config, name, value), "x.json")
                taken += 1
            except UserError as error:
                assert str(error).startswith("x.json: ")
        assert taken <= 2, name  # a number: two of them; an optional path: null and a string
        with pytest.raises(UserError, match=rf"x\.json: {name.replace('.', '[.]')} is .*; expected "):
            from_dict(type(config), changed(config, name, {"wrong": 1}), "x.json")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.width", "256", 'model.width is "256"; expected a whole number'),
        ("model.width", 256.0, "model.width is 256.0; expected a whole number"),
        ("model.width", True, "model.width is true; expected a whole number"),
        ("model.impl", "cuda", 'model.impl is "cuda"; expected one of "auto", "triton", "torch"'),
        ("model.fused_blocks", 1, "model.fused_blocks is 1; expected true or false"),
        ("optim.lr", "1e-3", 'optim.lr is "1e-3"; expected a number'),
        ("optim.betas", [0.9], "optim.betas is [0.9]; expected a list of 2"),
        ("optim.betas", [0.9, None], "optim.betas[1] is null; expected a number"),
        ("run.out", 3, "run.out is 3; expected a path"),
        ("data.shards", None, "data.shards is null; expected a string"),
        ("data", [], "data is []; expected an object with the settings shards, "),
        ("data.size", 33, "data.size is 33: expected a multiple of 32"),
        ("data.colour", 1, "unknown names data.colour; DataConfig has "),
    ],
)
def test_messages_name_file_field_found_and_expected(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(type(PRESETS[0]), changed(PRESETS[0], name, value), "x.json")
    assert str(caught.value).startswith(f"x.json: {message}")


def test_a_missing_setting_without_a_default_is_named() -> None:
    with pytest.raises(UserError, match=r"x.json: inner.share missing; Inner has no default for it"):
        from_dict(Outer, {"inner": {}}, "x.json")
    assert from_dict(Outer, {"inner": {"share": 1}}, "x.json").inner == Inner(1.0)


@pytest.mark.parametrize("config", [PRETRAIN["demo"](), FINETUNE["demo"](), PROBE["demo"]()], ids=lambda config: config.kind)
def test_a_folder_says_of_which_kind_its_run_is(config: Any, tmp_path: Path) -> None:
    write_config(tmp_path / "run", config)
    assert read_json(tmp_path / "run" / "config.json") == {"kind": config.kind, **to_values(config)}
    assert read_config(tmp_path / "run") == config and type(read_config(tmp_path / "run")) is type(config)


@pytest.mark.parametrize("content", ["{}", '{"kind": "train"}', '{"kind": ["probe"]}', "[]"])
def test_a_configuration_without_a_kind_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r'config.json: "kind" is .*; add .*: one of pretrain, finetune, probe$'):
        read_config(tmp_path)


def test_a_torn_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "pre')
    with pytest.raises(UserError, match=r"config.json is not JSON .*; expected a file that svdata2vec wrote"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config.json is not JSON .*; expected a file that svdata2vec wrote"):
        read_config(tmp_path)


def test_a_setting_that_is_there_twice_is_named(tmp_path: Path) -> None:
    write_config(tmp_path, PRETRAIN["demo"]())
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"epochs":', '"epochs": 5, "epochs":'))
    with pytest.raises(UserError, match=r'config.json is not JSON \("epochs" occurs twice in one object\)'):
        read_config(tmp_path)


def test_settings_check_themselves() -> None:
    for config, name, value, message in (
        (PRETRAIN["demo"](), "run.epochs", 0, "run.epochs is 0: expected a whole number from 1 to 1000000000"),
        (FINETUNE["demo"](), "label_fraction", 1.5, "label_fraction is 1.5: expected a number above 0, 1 at most"),
        (PROBE["demo"](), "neighbours", 0, "neighbours is 0: expected a whole number from 1 to 1000000000"),
    ):
        with pytest.raises(UserError, match=message):
            from_dict(type(config), changed(config, name, value), "x.json")
    assert dataclasses.replace(PROBE["demo"](), label_fraction=1.0).label_fraction == 1.0


def numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the settings that are numbers, or tuples of them, and their values."""
    for name in (one.name for one in dataclasses.fields(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | tuple) and not isinstance(value, bool):
            yield prefix + name, (1.0,) if value == () else value  # data.weights


@pytest.mark.parametrize("config", [PRETRAIN["demo"](), FINETUNE["demo"](), PROBE["demo"]()], ids=lambda config: config.kind)
def test_no_number_is_without_bounds(config: Any) -> None:
    """Also those that are added later: what is not finite, negative or beyond all measure is an error of one line."""
    found = dict(numbers(config))
    assert len(found) >= 16
    for name, value in found.items():
        first = value[0] if isinstance(value, tuple) else value
        for wrong in (-1, 10**400) if isinstance(first, int) else (-1.0, float("nan"), float("inf"), 1e300):
            values = [wrong] * len(value) if isinstance(value, tuple) else wrong
            with pytest.raises(UserError, match=name.split(".")[-1]):
                from_dict(type(config), changed(config, name, values), "x.json")
    with pytest.raises(UserError, match=r"x.json: (optim.lr|weight_decay) is 10*; expected a number"):
        from_dict(type(config), changed(config, "weight_decay" if config.kind == "probe" else "optim.lr", 10**400), "x.json")
