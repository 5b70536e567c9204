"""Run folders as untrusted files: whatever they contain, a command works or says in one line which file is wrong."""

import copy
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from tiny import finetune_config, pretrain_config

from svdata2vec.bench.page import write_comparison, write_page
from svdata2vec.bench.record import as_table, compare, load_record
from svdata2vec.cli.main import main
from svdata2vec.config.checked_json import faults, read_sealed, sealed
from svdata2vec.reports.report import read_run, write_report
from svdata2vec.reports.result_tables import class_tables, outcomes, results
from svdata2vec.runs.card import read_card
from svdata2vec.runs.folder import is_finished, read_config, read_result, write_config
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.published import load_classifier, published_config
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

WRONG = (None, True, -7, 1.5, math.nan, math.inf, 10**400, "wrong", "\ud800", [], ["wrong"], {}, {"wrong": 1}, [[-1]])


@pytest.fixture(scope="module")
def finished(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small fine-tuning run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    finetune(finetune_config(tiny_shard_folder, out, epochs=1))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, without checkpoints."""
    (tmp_path / "run").mkdir()
    for name in ("config.json", "result.json", "model.json", "model.safetensors", "metrics.jsonl"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    return tmp_path / "run"


def test_a_run_is_not_written_into_a_data_set(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Its files were faults of the set, which `verify` advised to remove; a run that is there already goes on."""
    root = shutil.copytree(tiny_shard_folder, tmp_path / "shards")
    with pytest.raises(UserError, match=r"shards holds a data set \(manifest\.json\); choose another folder for the run"):
        finetune(finetune_config(root, root))
    assert {path.name for path in root.iterdir()} == {path.name for path in tiny_shard_folder.iterdir()}
    write_config(root, finetune_config(root, root))
    assert not is_finished(finetune_config(root, root))


@pytest.mark.parametrize("name", ["config.json", "result.json", "model.safetensors", "checkpoints/step-000000003.pt"])
def test_a_folder_with_a_part_of_a_run_is_not_taken_for_a_new_one(name: str, tmp_path: Path) -> None:
    """Where it is not to be continued; elsewhere there is something left to do."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"holds a run already \({name.split('/')[0]}\); choose another folder, or"):
        is_finished(finetune_config(tmp_path, tmp_path, resume="never"))
    if name == "model.safetensors":
        with pytest.raises(UserError, match=r"holds model\.safetensors, which was not trained in this folder; choose another"):
            is_finished(finetune_config(tmp_path, tmp_path))
    else:
        assert name == "config.json" or not is_finished(finetune_config(tmp_path, tmp_path))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON values; of long lists the first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


def with_value(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    if not path:
        return value
    changed = copy.copy(values)
    changed[path[0]] = with_value(values[path[0]], path[1:], value)
    return changed


def one_line_or_fine(read: Callable[[], Any], file: Path) -> bool:
    """True if what is read is taken; UserError must be one line that names the file."""
    try:
        read()
    except UserError as error:
        assert str(file) in str(error) and "\n" not in str(error), str(error)
        return False
    return True


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_config,
    "result.json": lambda run: read_result(run, "finetune"),
    "model.json": lambda run: published_config(read_card(run), run),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_with_one_byte_changed_is_one_line(name: str, run: Path) -> None:
    """Whichever byte it is, also where the file is JSON still."""
    path, rng = run / name, random.Random(0)
    whole = path.read_bytes()
    for number in range(120):
        content = bytearray(whole)
        place = rng.randrange(len(whole))
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(whole[:place] if number % 10 == 0 else b"" if number == 1 else content)
        if one_line_or_fine(lambda: READERS[name](run), path) and name != "config.json":  # settings may be changed by hand
            found, written = (json.loads(text) for text in (path.read_bytes(), whole))
            assert found == written or found.keys() != written.keys()  # of the word "sha256" alone


@pytest.mark.parametrize("name", READERS)
def test_values_of_other_types_are_one_line(name: str, run: Path) -> None:
    """Anywhere in the file; without its hash, as a file of an earlier version."""
    path = run / name
    values = read_sealed(path)
    refused = total = 0
    rng = random.Random(0)
    for place in places(values):
        for wrong in rng.sample(WRONG, 6):
            path.write_text(json.dumps(with_value(values, place, wrong)))
            refused += not one_line_or_fine(lambda: READERS[name](run), path)
            total += 1
    assert refused > total / 3


def test_a_report_is_written_or_the_file_is_named(run: Path, tmp_path: Path) -> None:
    """Of whatever the readers take: all tables, and a few times the whole page."""
    path = run / "result.json"
    values = {**read_sealed(path), "network": "best", "epoch": 1, "validation": {"split": "val"}}
    taken = 0
    for place in places(values):
        for wrong in WRONG:
            path.write_text(json.dumps(with_value(values, place, wrong)))
            if one_line_or_fine(lambda: read_run(run, run.name), path):
                found = read_run(run, run.name)
                assert found.result is not None
                assert results(outcomes("run", found.config, found.result)) and class_tables(found.result)
                if taken < 3:
                    write_report([run], tmp_path / "report.html")
                taken += 1
    assert taken > 3


LINES = [b'{"step": 1, "epo', b"", b"\xff\xfe", b"[]", b"3", b'{"step": "1"}', b'{"step": -1, "epoch": 1}', b"[" * 100_000,
         b'{"step": 3, "epoch": NaN, "clips_per_second": 1, "seconds_total": 1}', b'{"step": 1' + b"0" * 5000 + b"}"]


def test_damaged_lines_of_a_log_are_left_out_and_counted(run: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = run / "metrics.jsonl"
    good = read_metrics(run)
    assert len(good) == 3 and "left out" not in caplog.text
    path.write_bytes(b"\n".join([*LINES, path.read_bytes()]))
    assert read_metrics(run) == good
    assert f"{path}: left out {len(LINES)} of {len(LINES) + 3} lines, which are damaged" in caplog.text
    write_report([run], tmp_path / "report.html")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b"[]", b"null", b"[" * 100_000, b'{"kind": 3}'])
def test_commands_end_in_one_line(
    content: bytes, run: Path, tiny_shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that reads a run's folder, for each of its files."""
    (run / "result.json").rename(run / "kept.json")
    commands = {
        "model.json": [
            "evaluate RUN", "predict RUN a.mp4 --whole-picture", "embed RUN --split all --out RUN/a.npy",
            "export RUN RUN/a.pt2",
            "probe demo --from RUN --out RUN/probe", "finetune demo --from RUN --run.out RUN/new",
        ],
        "model.safetensors": [
            "evaluate RUN", "probe demo --from RUN --out RUN/probe", "finetune demo --from RUN --run.out RUN/new",
        ],
        "config.json": ["report RUN --out RUN/r.html", "finetune demo --run.out RUN"],
        "result.json": ["report RUN --out RUN/r.html"],
    }
    for name, lines in commands.items():
        before = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_bytes(content)
        for line in lines:
            words = [str(run) + word[3:] if word.startswith("RUN") else word for word in line.split()]
            if words[0] in ("probe", "finetune"):
                words += ["--data.shards", str(tiny_shard_folder), "--data.train-split", "all", "--data.test-split", "all"]
            status = main(words)
            said = capsys.readouterr().err.strip().splitlines()
            assert status == 2 and str(run / name) in said[-1], (line, said)
        (run / name).unlink()
        if before is not None:
            (run / name).write_bytes(before)


@pytest.mark.parametrize(("name", "value"), [("num_joints", 10_000), ("classes", []), ("classes", ["x"] * 7)])
def test_a_card_of_another_network_is_named(name: str, value: Any, run: Path) -> None:
    path = run / "model.json"
    path.write_text(json.dumps({**read_sealed(path), name: value}))
    taken = one_line_or_fine(lambda: load_classifier(run), path)
    assert taken == (name == "num_joints"), "a classifier of RGB alone has no joints"


def test_changes_of_a_sealed_file_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(sealed({"top1": 0.5, "classes": ["é", "b"]}))
    assert read_sealed(path) == {"top1": 0.5, "classes": ["é", "b"]}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match=r'x.json was changed after it was written; restore it, or remove its entry "sha256"'):
        read_sealed(path)
    path.write_text('{"top1": 0.6}')
    assert read_sealed(path) == {"top1": 0.6}


def test_the_card_keeps_its_hash_when_it_is_completed(run: Path) -> None:
    assert "evaluation" in read_card(run) and "sha256" not in read_card(run)
    assert "sha256" in json.loads((run / "model.json").read_text())


def test_schemas_say_what_is_wrong() -> None:
    schema = {"a": int, "b?": [str], "c": {"*": (int, float)}, "kind": {"x", "y"}, "n": Range(0, 5)}
    good = {"a": 1, "c": {"q": 1.5}, "kind": "x", "n": 5, "more": object}
    assert faults(good, schema) == [] and faults({**good, "b": None}, schema) == []
    assert faults({**good, "a": True, "b": ["u", 3], "c": {"q": math.inf}, "kind": "z", "n": 6}, schema) == [
        "a is bool True", "b[1] is int 3", "c.q is float inf", "kind is str 'z'", "n is int 6",
    ]
    assert faults([], schema) == ["the file is list, expected an object"] and faults({}, schema)[0] == "no a"


def test_a_damaged_benchmark_is_one_line(tmp_path: Path) -> None:
    """Any value of any type anywhere: `bench compare` prints both and writes its page, or names the file."""
    record = json.loads((ROOT / "tools" / "results" / "bench_run_cpu.json").read_text())
    path, rng, taken = tmp_path / "a.json", random.Random(0), 0
    for place in places(record):
        for wrong in rng.sample(WRONG, 4):
            path.write_text(json.dumps(with_value(record, place, wrong)))
            if one_line_or_fine(lambda: load_record(path), path):
                found = load_record(path)
                as_table(found)
                compare(found, record)
                if rng.random() < 0.02:
                    write_page(found, tmp_path / "a.html")
                    write_comparison(found, record, tmp_path / "b.html")
                    taken += 1
    assert taken > 1


@pytest.mark.parametrize("damage", ["newest", "all"])
def test_resuming_takes_the_newest_good_checkpoint(damage: str, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    whole = pretrain(config)
    paths = sorted((tmp_path / "run" / "checkpoints").iterdir())
    (tmp_path / "run" / "result.json").unlink()
    for path in paths[-1:] if damage == "newest" else paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if damage == "newest":
        again = pretrain(config)
        assert again["loss"] == whole["loss"]
    else:
        with pytest.raises(UserError, match="none of the 2 checkpoints can be read"):
            pretrain(config)
