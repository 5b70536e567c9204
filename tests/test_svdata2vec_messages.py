"""Messages of commands that cannot do what was requested: one line, which names only existing options."""

import ast
import dataclasses
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT
from shards_data import edit_manifest
from tiny import finetune_config, pretrain_config
from tiny_command import command_words

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.main import is_shown, main
from svdata2vec.cli.options import Command, Group, option_names
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime, announced_place
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import finetune

# Options of other programs that messages and help may name.
FOREIGN = {
    "--standalone", "--local-rank", "--log-dir", "--nproc-per-node", "--help", "--version", "--write_json", "--frame_first",
}


def commands(group: Group) -> Iterator[Command]:
    for each in group.commands.values():
        if isinstance(each, Group):
            yield from commands(each)
        else:
            yield each


def options() -> set[str]:
    """All options of all commands."""
    names: set[str] = set()
    for command in commands(COMMANDS):
        made = command.options if isinstance(command.options, type) else command.options()
        names |= {*option_names(made if isinstance(made, type) else type(made))}
    parts = [name.rpartition(".") for name in names]
    return {f"--{section}{dot}{no}{name}" for section, dot, name in parts for no in ("", "no-")}


def texts(path: Path) -> Iterator[str]:
    """The strings of a file, those with values in them piece by piece."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_option_that_is_named_exists() -> None:
    """In messages, help and docstrings of the product."""
    known, named = options() | FOREIGN, 0
    for folder in ("svdata2vec", "shards", "pipeline", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if any(parent.is_symlink() for parent in path.parents if parent != ROOT):
                continue
            for text in texts(path):
                found = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))
                named += len(found)
                assert found <= known, f"{path.relative_to(ROOT)}: {found - known} in {text!r}"
    assert named > 50


def said(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The last line of what the command says, which ends with this status."""
    capsys.readouterr()
    assert main(words) == status
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["finetune", "evaluate", "embed"])
def test_a_split_without_clips(
    command: str, tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = shutil.copytree(tiny_shard_folder, tmp_path / "shards")
    edit_manifest(shards, splits={"all": [f"clip{i:05d}" for i in range(12)], "none": []})
    config = finetune_config(shards, tmp_path / "run", epochs=1, batch_size=12)
    if command == "finetune":
        words = command_words(dataclasses.replace(config, data=dataclasses.replace(config.data, test_split="none")))[3:]
    else:
        assert main(command_words(config)[3:]) == 0
        words = [command, str(tmp_path / "run"), "--split", "none", "--device", "cpu"]
        words += ["--out", str(tmp_path / "x.npy")] if command == "embed" else []
    assert said(words, capsys).endswith("shards: split 'none' has no clips; splits that have some: 'all'")


def test_a_classifier_in_batches_of_one_clip(
    tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command_words(finetune_config(tiny_shard_folder, tmp_path / "run", batch_size=1))[3:]
    assert "--run.batch-size is 1; BatchNorm of the classifier needs 2 clips per process" in said(words, capsys)


def test_pretraining_in_batches_of_one_clip(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """They have no spread over a batch, which is no collapse."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", batch_size=1, epochs=1)
    assert main(command_words(dataclasses.replace(config, collapse_records=3))[3:]) == 0


@pytest.mark.parametrize("option", ["--local-rank=2", "--local_rank=2"])
def test_the_older_launcher_of_pytorch_may_pass_the_local_rank(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It puts the option before all others."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert main([option, "--version"]) == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main([option, "--version"]) == 2
    assert f"a command comes first, as in `svdata2vec COMMAND {option} --version`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"WORLD_SIZE": "2"}, "(WORLD_SIZE '2', no RANK, no MASTER_PORT, no MASTER_ADDR)"),
        ({"WORLD_SIZE": "many"}, "(WORLD_SIZE 'many', no RANK"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK '2', MASTER_PORT '1'"),
    ],
)
def test_an_environment_of_no_launcher(
    variables: dict[str, str], found: str, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = said(command_words(pretrain_config(tiny_shard_folder, tmp_path / "run"))[3:], capsys)
    assert found in line and line.endswith("start it with torchrun, or `unset WORLD_SIZE`")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert announced_place() == (0, 1)


@pytest.mark.parametrize(("module", "shown"), [
    ("training.pretrain", False), ("training.loop", False), ("training.collapse", False), ("training.finetune", False),
    ("shards.reading.joined", False), ("runs.data", False),
    ("training.stepper", True), ("pipeline.producer", True), ("shards.reading.remote", True),  # of this process's own clips
])
def test_of_many_processes_the_first_alone_shows_what_holds_for_all(
    module: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = logging.makeLogRecord({"name": f"svdata2vec.{module}", "levelno": logging.WARNING})
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("0", True), ("1", shown)):
        monkeypatch.setenv("RANK", rank)
        assert is_shown(record) == expected


def test_a_left_over_rank_hides_no_result(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1))
    monkeypatch.setenv("RANK", "1")
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "12 clips of split all" in capsys.readouterr().out


def test_the_reference_decoder_on_a_gpu(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, decoder="reference"))
    with pytest.raises(UserError, match=r"^--data\.decoder reference runs on a CPU; leave it out, or set the device to cpu"):
        build_loader(ShardSet.open(tiny_shard_folder), config, Runtime(torch.device("cuda", 0), 0, 1, True), train=True)


def test_more_processes_than_gpus(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, Callable[[], Any]] = {"is_available": lambda: True, "device_count": lambda: 2}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setenv("LOCAL_RANK", "2")
    words = command_words(pretrain_config(tiny_shard_folder, tmp_path / "run", device="cuda"))[3:]
    assert said(words, capsys).endswith("process 2 of this machine has no GPU of its own, there are 2; start fewer processes")
