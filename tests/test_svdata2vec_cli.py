"""The command line: wrong input ends in one clear line and status 2; help and overrides work."""

import dataclasses
import io
import itertools
import json
import logging
import pickle
import pkgutil
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from shards_data import annotation, write_motion_set, write_pickle, write_video
from tiny import finetune_config
from tyro._docstrings import get_field_docstring

from svdata2vec.cli import progress
from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.main import main
from svdata2vec.cli.options import Command, Group, Later, read
from svdata2vec.config.files import from_dict, to_json
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.manifest import Manifest
from svdata2vec.shards.reading.shardset import ShardSet


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail: status 2, nothing on standard output, one line on standard error."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # a name that does not exist
        ("fly", "svdata2vec: unknown command 'fly'; choose one of: shard, verify, inspect"),
        ("pretrain ntu61", "svdata2vec pretrain: unknown preset 'ntu61'; choose one of: ntu60-xsub"),
        ("finetune ntu61", "svdata2vec finetune: unknown preset 'ntu61'"),
        ("pretrain --data.shards my/shards", "svdata2vec pretrain: a preset comes first, e.g. `svdata2vec pretrain own "
         "--data.shards my/shards`; choose one of: ntu60-xsub"),
        ("probe --from runs/a own", "svdata2vec probe: a preset comes first, e.g. `svdata2vec probe own --from runs/a`; "),
        ("bench run --data.shards x", "bench: a preset comes first, e.g. `svdata2vec bench run own --data.shards x`; "),
        ("pretrain --data.shards demo", "a preset comes first, e.g. `svdata2vec pretrain own --data.shards demo`"),
        ("bench --data.shards x", "bench: a benchmark comes first, as in `svdata2vec bench BENCHMARK --data.shards x`"),
        ("shard --table a.csv", "shard: a kind of data set comes first, as in `svdata2vec shard KIND --table a.csv`; "),
        ("--run.out a", "svdata2vec: a command comes first, as in `svdata2vec COMMAND --run.out a`; choose one of: shard"),
        ("shard ntu6 out", "svdata2vec shard: unknown kind of data set 'ntu6'; choose one of: ntu60, ntu120"),
        ("bench data --method fly", "unknown method 'fly'; choose one of: ours, jpeg: read only; ours, jpeg: + decode; "),
        ("bench fly", "svdata2vec bench: unknown benchmark 'fly'; choose one of: run, compare, scale, batch, host, data"),
        ("pretrain demo --optim.lrr 1", "unknown option '--optim.lrr'; did you mean --optim.lr? `svdata2vec pretrain demo"),
        ("pretrain demo --optim.min_lrr 1", "unknown option '--optim.min_lrr'; did you mean --optim.min-lr?"),
        ("pretrain demo --run.epoch 3 --data.shard x", "did you mean --run.epochs? unknown option '--data.shard'"),
        ("finetune demo --lr 1 --optim.epochs 3", "did you mean --optim.lr? unknown option '--optim.epochs'; did you mean "
         "--run.epochs?"),
        ("finetune demo --fron runs/a", "unknown option '--fron'; did you mean --from?"),
        ("shard pyskl out --sizes 64", "unknown option '--sizes'; did you mean --size? `svdata2vec shard pyskl --help`"),
        ("inspect shards --splitt all", "unknown option '--splitt'; did you mean --split?"),
        ("inspect shards --split all --no-trian", "unknown option '--no-trian'; did you mean --no-train?"),
        ("pretrain demo --no-model.fused-blocks", "did you mean --model.no-fused-blocks?"),
        ("verify shards --zzzz", "svdata2vec verify: unknown option '--zzzz'; `svdata2vec verify --help` lists the options"),
        ("shard pyskl a b --out c", "unknown option '--out': OUT is positional, give it without '--out' before it"),
        ("verify --shards=a", "unknown option '--shards': SHARDS is positional, give it without"),
        # a word too many, or too few
        ("verify shards more", "svdata2vec verify: unexpected 'more' after 'shards'; `svdata2vec verify --help`"),
        ("pretrain demo --run.sync-batchnorm yes", "unexpected 'yes' after '--run.sync-batchnorm'"),
        ("pretrain demo --launch graph", "unknown option '--launch'; did you mean --run.launch?"),
        ("pretrain demo --optim.lr 1 2", "unexpected '2' after '1'"),
        ("shard pyskl out", "svdata2vec shard: missing: --pickle-path PATH, --videos PATH; `svdata2vec shard pyskl"),
        ("inspect", "svdata2vec inspect: missing: SHARDS, --split STR; `svdata2vec inspect --help` lists the options"),
        ("bench compare a.json", "svdata2vec bench: missing: B.json"),
        ("pretrain demo --optim.betas 0.9", "--optim.betas has too few values; expected FLOAT FLOAT"),
        ("pretrain demo --run.out", "--run.out has too few values; expected PATH"),
        # a value of another type, or none of the choices
        ("pretrain demo --optim.lr fast", "svdata2vec pretrain: --optim.lr is 'fast'; expected FLOAT; `svdata2vec"),
        ("pretrain demo --data.num_frames=1.5", "--data.num-frames is '1.5'; expected INT"),
        ("pretrain demo --optim.betas 0.9 x --run.epochs 2", "--optim.betas is '0.9 x'; expected FLOAT FLOAT"),
        ("convert a out --heads many", "--heads is 'many'; expected {None}|INT"),
        ("bench scale demo --processes 1 two", "--processes is '1 two'; expected [INT [INT ...]]"),
        ("pretrain demo --run.device gpu", "--run.device is 'gpu'; expected one of auto, cpu, cuda"),
        # a value that the options' own checks refuse
        ("pretrain demo --data.size 4096", "--data.size is 4096: expected a multiple of 32 from 32 to 2880"),
        ("pretrain demo --mask.video-ratio 0 --mask.skeleton-ratio 0",
         "--mask.video-ratio 0.0 and --mask.skeleton-ratio 0.0 hide nothing"),
        ("pretrain demo --target.scored video --mask.video-ratio 0",
         "--mask.video-ratio 0.0 hides no frame, and --target.scored video predicts those that are hidden; raise it"),
        ("pretrain demo --mask.repeats 2 --mask.skeleton-ratio 1",
         "--mask.repeats is 2, but the masks of a clip would all be equal: they keep the same 5 frames and show the skeletons"),
        ("pretrain demo --mask.video-ratio 0.99", "--mask.video-ratio 0.99 keeps none of --data.num-frames 16 frames"),
        ("pretrain demo --target.top-layers 9", "--target.top-layers is 9, --model.depth is 4: expected 1 to --model.depth"),
        ("pretrain demo --model.stem-width 8", "--model.stem-width is 8: expected a multiple of 16 from 16 to 4096"),
        ("finetune demo --label-fraction 0", "finetune: --label-fraction is 0.0: expected a number above 0, 1 at most"),
        ("pretrain demo --run.device cuda", "device is cuda, but PyTorch finds no NVIDIA GPU here"),
        ("pretrain demo --optim.lr inf", "--optim.lr is inf: expected a number above 0, 1000 at most"),
        ("finetune demo --head.dropout nan", "--head.dropout is nan: expected a number from 0 to 0.999"),
        ("pretrain demo --optim.betas 0.9 3", "--optim.betas is 3.0: expected a number from 0 to 0.999999999999999"),
        ("verify shards --workers 0", "svdata2vec verify: --workers is 0: expected a whole number from 1 to 10000"),
        ("inspect shards --split all --clips 0", "inspect: --clips is 0: expected a whole number from 1 to"),
        ("embed run --split all --out a.npy --batch-size 0", "svdata2vec embed: --batch-size is 0: expected"),
        ("convert a out --size 33", "svdata2vec convert: --size is 33: expected a multiple of 32"),
        ("convert a out --coordinates 0", "svdata2vec convert: --coordinates is 0: expected"),
        ("probe demo --temperature nan", "probe: --temperature is nan: expected a number from 0.01 to 1000"),
        # what a shell has left
        ("pretrain demo --run.out=", "svdata2vec pretrain: --run.out is empty; expected a value (is a shell variable not set"),
        ("pretrain demo --run.out=~/runs/pre", "'--run.out=~/runs/pre': the shell does not expand a ~ that is "
         "quoted or follows a =; write $HOME/runs/pre"),
        # the option that is named is the one that is wrong
        ("pretrain demo --kind x", "unknown option '--kind'; did you mean --target.kind?"),
        ("pretrain demo --run.epochs 3 --run.epochs x", "--run.epochs is 'x'; expected INT"),
        ("evaluate --nope", "svdata2vec evaluate: unknown option '--nope'; `svdata2vec evaluate --help` lists"),
        ("export run --device x", "svdata2vec export: unknown option '--device'"),
        # what the options name is not there
        ("report", "svdata2vec report: no run given; expected one or more run folders"),
        ("report nowhere", "report: nowhere: no such folder; expected the folder of a run (pretrain, finetune or probe)"),
        ("evaluate nowhere", "nowhere: no such folder; expected the folder of a finished run (pretrain, finetune or probe)"),
        ("evaluate nowhere/model.safetensors", "evaluate: nowhere: no such folder; expected the folder of a finished run"),
        ("export nowhere out.pt2", "export: nowhere: no such folder; expected the folder of a finished run"),
        ("predict nowhere a.mp4", "predict: nowhere: no such folder; expected the folder of a finished run"),
        ("embed nowhere --split all --out a.npy", "embed: nowhere: no such folder; expected the folder of a finished run"),
        ("probe demo --from nowhere", "probe: nowhere: no such folder; expected the folder of a finished run"),
        ("label-efficiency demo --from a=nowhere", "label-efficiency: nowhere: no such folder; expected the folder of a "),
        ("verify nowhere", "verify: nowhere: no such folder; expected one made by `svdata2vec shard`"),
        ("inspect nowhere --split all", "nowhere: no such folder; expected one made by `svdata2vec shard`"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    if "device cuda" in words and __import__("torch").cuda.is_available():
        pytest.skip("this machine has the GPU that the message misses")
    assert message in refused(capsys, *words.split())


def test_a_file_and_an_empty_folder_in_place_of_a_run_or_shards(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: is a file; expected the folder of a run" in refused(capsys, "report", tmp_path / "file")
    assert f"{tmp_path / 'file'}: is a file; expected the folder of a fin" in refused(capsys, "evaluate", tmp_path / "file")
    assert f"{tmp_path / 'file'}: is a file; expected one made by `svdata2v" in refused(capsys, "verify", tmp_path / "file")
    assert f"{tmp_path}: no config.json; expected the folder of a run" in refused(capsys, "report", tmp_path)
    assert f"{tmp_path}: no model.safetensors; expected the folder of a fin" in refused(capsys, "evaluate", tmp_path)
    assert f"{tmp_path}/manifest.json: does not exist; expected a folder ma" in refused(capsys, "verify", tmp_path)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_missing_shards(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    words = [command, "demo", "--data.shards", tmp_path / "gone", "--run.out", tmp_path / "run", "--run.device", "cpu"]
    assert f"{tmp_path / 'gone'}: no such folder; expected one made by `svdata2vec shard`" in refused(capsys, *words)


def test_a_split_that_does_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_shard_folder: Path) -> None:
    words = ["pretrain", "demo", "--data.shards", tiny_shard_folder, "--run.out", tmp_path / "run", "--run.device", "cpu"]
    assert "no split 'xsub_train'; it has all" in refused(capsys, *words)
    words = ["inspect", tiny_shard_folder, "--split", "val"]
    assert "no split 'val'; it has all" in refused(capsys, *words)


def test_a_split_smaller_than_a_batch(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_shard_folder: Path) -> None:
    words = ["pretrain", "demo", "--data.shards", tiny_shard_folder, "--data.train-split", "all", "--run.out", tmp_path / "run",
             "--run.batch-size", "64", "--run.device", "cpu"]
    assert "split 'all': 12 of 12 clips are used, one step takes 64; set a smaller --run.batch-size" in refused(capsys, *words)


def test_pickles_that_cannot_be_packed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4")
    path = tmp_path / "x.pkl"
    words = ["shard", "pyskl", tmp_path / "out", "--videos", videos, "--pickle-path", path]
    assert f"{path}: no such file; expected the annotation pickle" in refused(capsys, *words)
    path.write_bytes(b"")
    assert f"{path}: not a readable pickle" in refused(capsys, *words)
    path.write_bytes(pickle.dumps({"split": {}, "annotations": []}))
    assert f"{path}: 'annotations' is empty" in refused(capsys, *words)
    write_pickle(path, [annotation("a", 0)])
    assert "nope: no such file; expected the names of the classes" in refused(capsys, *words, "--classes", "nope")
    words[4] = tmp_path / "no-videos"
    assert str(tmp_path / "no-videos") in refused(capsys, *words)


@pytest.mark.parametrize(("words", "option"), [
    ("label-efficiency demo --from a=x --seeds 2 --from=b=y", "--from"), ("finetune demo --data.weights 1 --data.weights 2 3",
    "--data.weights"), ("inspect s --split all --keys a --keys b", "--keys"), ("finetune demo --run.seed 1 --run.seed 2", None),
    ("shard pku-mmd o --videos v --labels l --skeletons s --splits xsub a --splits xview b", "--splits"),
    ("shard csv o --table a.csv --classes walk --classes run", "--classes"), ("label-efficiency demo --from a=x b=y", None),
])
def test_a_list_that_is_given_twice_is_warned_of(words: str, option: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """The last one counts, and what stood behind the first would be missing without a word."""
    read(words.split(), COMMANDS, "svdata2vec")
    said = f"{option} is given more than once: the values of the last one count; give all of them behind one"
    assert caplog.messages == ([said] if option else [])


def test_libraries_tell_no_more_than_warnings() -> None:
    """Without a test's own handlers."""
    code = ("import logging; from svdata2vec.cli.main import main; main(['--version'])\n"
            "for name in ('svdata2vec.bench', 'onnx_ir', 'torch'):\n"
            "    for level in ('info', 'warning'): getattr(logging.getLogger(name), level)('%s of %s', level, name)")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    said = [line.split(" ", 1)[1] for line in done.stderr.splitlines()]
    assert said == ["info of svdata2vec.bench", *(f"warning of {name}" for name in ("svdata2vec.bench", "onnx_ir", "torch"))]


def test_shard_verify_and_inspect_a_small_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    caplog.set_level(logging.INFO)
    pickle_path, videos = write_motion_set(tmp_path / "set", count=3)
    shards = tmp_path / "shards"
    words = ["shard", "pyskl", shards, "--pickle-path", pickle_path, "--videos", videos, "--size", "64", "--workers", "1"]
    assert main([str(word) for word in words]) == 0
    assert len(ShardSet.open(shards)) == 3
    assert main(["verify", str(shards), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "no fault found" in said and "published" not in said
    assert [record.getMessage() for record in caplog.records if "checked" in record.getMessage()] == ["checked 1/1 shards"]
    manifest = Manifest.load(shards)
    dataclasses.replace(manifest, published={"train": 40091}).save(shards)
    assert main(["verify", str(shards), "--workers", "1"]) == 0
    found = len(manifest.splits["train"])
    said = capsys.readouterr().out
    assert f"split train: {found} clips, published are 40091 ({found - 40091})" in said and "no fault found" in said
    out = tmp_path / "pictures"
    assert main(["inspect", str(shards), "--split", "train", "--out", str(out), "--num-frames", "4", "--size", "64"]) == 0
    names = ["000-stand.png", "001-walk.png", "002-run.png", "index.html", "statistics.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    text = (out / "index.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and "Missing joints" in text and "l_wrist" in text
    words = ["inspect", str(shards), "--split", "half_val", "--out", str(tmp_path / "one"), "--num-frames", "4", "--size", "64"]
    assert main([*words, "--keys", "S001C001P001R001A001"]) == 0
    assert (tmp_path / "one" / "S001C001P001R001A001.png").exists()
    capsys.readouterr()
    assert "clip 'S001C001P001R001A002' is not in split 'half_val'" in refused(capsys, *words, "--keys", "S001C001P001R001A002")
    next(shards.glob("*.tar")).write_bytes(b"damaged")
    assert main(["verify", str(shards), "--workers", "1"]) == 2


def test_nobody_has_to_read_what_is_printed() -> None:
    """Standard output that is closed, or a pipe that nobody reads any more, is no error of the command."""
    command = f"{shlex.quote(sys.executable)} -m svdata2vec"
    for line, status in ((f"{command} --help >&-", 0), (f"set -o pipefail; {command} pretrain demo --help | true", 141)):
        done = subprocess.run(["bash", "-c", line], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (status, "")


def test_a_locale_without_a_letter_is_no_error_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("svdata2vec.cli.main._run", lambda words: sys.stdout.write("Öl …"))
    assert main([]) == 0
    assert stream.buffer.getvalue() == b"\xd6l \\u2026"  # type: ignore[attr-defined]


def every_command(group: Group = COMMANDS, prog: str = "svdata2vec") -> Iterator[tuple[str, Group | Command]]:
    """(words, what they name) of the whole command line."""
    yield prog, group
    for name, found in group.commands.items():
        if isinstance(found, Group):
            yield from every_command(found, f"{prog} {name}")
        else:
            yield f"{prog} {name}", found


def help_of(capsys: pytest.CaptureFixture[str], prog: str) -> str:
    return printed(capsys, [*prog.split()[1:], "--help"])


def printed(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """Help that a command prints, and nothing else."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_overviews_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {prog: found for prog, found in every_command() if isinstance(found, Group)}
    assert {"svdata2vec", "svdata2vec shard", "svdata2vec pretrain", "svdata2vec bench", "svdata2vec bench run"} <= set(groups)
    for prog, group in groups.items():
        text = help_of(capsys, prog)
        assert text.startswith(f"usage: {prog} {group.choice.split()[0].upper()} ...")
        for name, found in group.commands.items():
            assert found.summary and f"  {name} " in text and f"  {found.summary}\n" in text
        assert printed(capsys, prog.split()[1:]) == text  # as where the word is missing


def fields_without_help(kind: type, prefix: str = "") -> list[str]:
    """Names of a dataclass's fields that its help page leaves unexplained; nested dataclasses are explained as a whole, too."""
    missing = []
    for field in dataclasses.fields(kind):
        hint = get_type_hints(kind, include_extras=True)[field.name]
        inner, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if dataclasses.is_dataclass(inner):
            missing += fields_without_help(inner, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        elif not (get_field_docstring(kind, field.name, ()) or any(getattr(mark, "help", None) for mark in marks)):
            missing.append(prefix + field.name)
    return missing + ([] if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(") else [f"{prefix}: no docstring"])


def test_every_option_of_every_command_is_explained() -> None:
    kinds = {}
    for prog, found in every_command():
        if isinstance(found, Command):
            made = found.options if isinstance(found.options, type) else found.options()
            kinds[made if isinstance(made, type) else type(made)] = prog
    assert len(kinds) > 10
    assert {prog: missing for kind, prog in kinds.items() if (missing := fields_without_help(kind))} == {}


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    page = " ".join(help_of(capsys, "svdata2vec pretrain ntu60-xsub").replace("│", " ").split())
    assert "Learning rate at the end of the run. (default: 0.0005)" in page
    assert "in pixels, a multiple of 32: the encoder halves the picture five times. (default: 224)" in page
    page = help_of(capsys, "svdata2vec predict")
    assert page.startswith("usage: svdata2vec predict [-h] [OPTIONS] RUN VIDEO\n") and "(default: None)" in page


def early_breaks(page: str, columns: int) -> list[str]:
    """Lines of a page's help texts that end although the next word would have fitted in them."""
    inside = [line[2:-2] if len(line) == columns and line[0] in "│ " else "" for line in page.splitlines()]  # of the boxes
    texts = [line.rstrip() if line.startswith(" ") else "" for line in inside]  # without the options' names
    return [line for line, after in itertools.pairwise(texts)
            if line and after and len(f"{line} {after.split()[0]}") <= columns - 4]


@pytest.mark.parametrize("columns", [80, 110])
def test_help_texts_fill_their_lines(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ("pretrain demo", "shard pyskl", "predict", "label-efficiency demo"):
        assert early_breaks(help_of(capsys, f"svdata2vec {words}"), columns) == []


@pytest.mark.parametrize(("table", "command"), [(PRETRAIN, "pretrain"), (FINETUNE, "finetune")])
def test_every_preset_resolves_and_takes_overrides(table: dict, command: str) -> None:
    protocols = {"ntu60-xsub", "ntu60-xview", "ntu120-xsub", "ntu120-xset", "smarthome-cs", "smarthome-cv1", "smarthome-cv2"}
    assert protocols | {"demo"} <= set(table)
    for name in table:
        words = [command, name, "--optim.lr", "0.25", "--data.shards", "elsewhere"]
        _, config = read(words, COMMANDS, "svdata2vec")
        assert config.optim.lr == 0.25 and config.data.shards == "elsewhere"
        assert config.optim.weight_decay == table[name]().optim.weight_decay


def test_the_default_preset_is_the_papers() -> None:
    config = PRETRAIN["ntu60-xsub"]()
    assert (config.data.num_frames, config.data.size, config.run.epochs, config.run.batch_size) == (40, 224, 400, 32)
    optim, head = config.optim, FINETUNE["ntu60-xsub"]().head
    assert (optim.lr, optim.min_lr, optim.warmup_epochs, optim.betas) == (1e-3, 5e-4, 20, (0.9, 0.95))
    assert (config.ema.start, config.ema.end, config.ema.anneal_steps) == (0.999, 0.99999, 50_000)
    tuned = FINETUNE["ntu60-xsub"]()
    assert (tuned.optim.lr, tuned.optim.min_lr, tuned.optim.warmup_epochs, tuned.run.epochs) == (3e-4, 1e-5, 5, 100)
    assert (head.dropout, head.drop_path, head.label_smoothing, head.layer_decay) == (0.3, 0.3, 0.1, 0.8)
    assert tuned.data.crop == "boxes"


def test_configurations_survive_the_way_through_json(tmp_path: Path) -> None:
    for config in (PRETRAIN["demo"](), finetune_config(tmp_path, tmp_path, pretrained=tmp_path / "run")):
        assert from_dict(type(config), json.loads(to_json(config)), "test") == config
    with pytest.raises(UserError, match=r"x.json: unknown names colour; PretrainConfig has .*data, ema"):
        from_dict(PretrainConfig, {"colour": 1}, "x.json")


def later(group: Group) -> Iterator[Later]:
    """What the commands of a group import when they run."""
    for found in group.commands.values():
        if isinstance(found, Group):
            yield from later(found)
        elif isinstance(found.run, Later):
            yield found.run


def test_modules_imported_later_are_available() -> None:
    names = {run.name for run in later(COMMANDS)}
    assert {"training.pretrain:pretrain", "bench.data:bench_data"} <= names
    assert all(callable(pkgutil.resolve_name(f"svdata2vec.{name}")) for name in names)
