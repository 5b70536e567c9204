"""A run's card describes what the run was started with; one process at a time works in its folder."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preloaded import start
from shards_data import edit_manifest
from tiny import finetune_config, pretrain_config
from tiny_command import command_words
from waiting import wait_for

from svdata2vec.cli.main import main
from svdata2vec.cli.options import option_names
from svdata2vec.config.checked_json import read_sealed
from svdata2vec.config.probe import AttentiveConfig, ProbeConfig
from svdata2vec.config.schema import HeadConfig, OptimConfig, PretrainConfig
from svdata2vec.evaluation.probe import probe
from svdata2vec.runs import folder, provenance
from svdata2vec.runs.folder import claimed, is_finished
from svdata2vec.runs.provenance import UNKNOWN, commit, machine
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import StopRequested
from svdata2vec.shards.errors import UserError
from svdata2vec.training import loop
from svdata2vec.training.finetune import Finetuning, finetune
from svdata2vec.training.pretrain import Pretraining, pretrain


def stopped_after_one_step(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, begin = (Pretraining, pretrain) if config.kind == "pretrain" else (Finetuning, finetune)
    step = kind.step

    def stop(run: Any, batches: list) -> None:
        step(run, batches)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "step", stop)
        with pytest.raises(StopRequested):
            begin(config)  # type: ignore[operator]


@pytest.fixture(scope="module")
def parents(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished pretraining runs, `a` and `b`; the card of `a` says another data set."""
    root = tmp_path_factory.mktemp("parents")
    pretrain(pretrain_config(tiny_shard_folder, root / "a", epochs=1, batch_size=12))
    shutil.copytree(root / "a", root / "b")
    card = read_sealed(root / "a" / "model.json")
    card["trained_on"]["dataset"] = "of a"
    (root / "a" / "model.json").write_text(json.dumps(card))
    return root


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", None), (None, "b")])
def test_another_parent_is_refused_in_one_line(
    first: str | None, second: str | None, parents: Path, tiny_shard_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where both have the same parameter groups, as with a layer decay of 1."""
    config = finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    config = dataclasses.replace(config, head=HeadConfig(hidden=16, layer_decay=1.0))
    made = {name: dataclasses.replace(config, pretrained=name and parents / name) for name in (first, second)}
    stopped_after_one_step(made[first], monkeypatch)
    with pytest.raises(UserError, match=r"run: its checkpoint does not fit these settings \(pretrained .* -> .*\); choose"):
        finetune(made[second])
    if second is not None:
        capsys.readouterr()
        assert main(command_words(made[second])[3:]) == 2
        assert "(pretrained " in capsys.readouterr().err.splitlines()[-1]


def test_going_on_needs_no_parent_any_more(
    parents: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(parents / "a", tmp_path / "a")
    config = finetune_config(tiny_shard_folder, tmp_path / "run", pretrained=tmp_path / "a", epochs=1)
    stopped_after_one_step(config, monkeypatch)
    shutil.rmtree(tmp_path / "a")
    finetune(config)
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["pretrained_on"]["dataset"] == "of a" and card["config"]["pretrained"] == str(tmp_path / "a")
    with pytest.raises(UserError, match=r"no such folder; expected the folder of a"):  # a run that begins does need it
        finetune(dataclasses.replace(config, run=dataclasses.replace(config.run, out=tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_run_made_again_is_another_parent(
    parents: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In its folder of the same name: a run that it began neither goes on nor is taken for finished. Nor after other shards."""
    shards, pre = tmp_path / "shards", tmp_path / "pre"
    shutil.copytree(tiny_shard_folder, shards)
    shutil.copytree(parents / "a", pre)
    runs = {name: finetune_config(shards, tmp_path / name, pretrained=pre, epochs=1) for name in ("half", "whole")}
    data = dataclasses.replace(runs["whole"].data, crop="boxes")
    probing = ProbeConfig(data, pre, tmp_path / "probe", batch_size=4, device="cpu", attentive=AttentiveConfig(0))
    stopped_after_one_step(runs["half"], monkeypatch)
    figures = finetune(runs["whole"]), probe(probing)
    again = lambda: (finetune(runs["whole"]), probe(probing))  # noqa: E731
    caplog.set_level("INFO")
    assert again() == figures and caplog.text.count("is finished already; nothing to do") == 2
    shutil.rmtree(pre)
    assert again() == figures  # it may be gone
    pretrain(pretrain_config(tiny_shard_folder, pre, epochs=1, batch_size=12, seed=1))
    assert caplog.messages[-1] == f"{pre}: pretrained; next: svdata2vec finetune PRESET --from {pre}"
    caplog.clear()
    for config, begin in ((runs["whole"], finetune), (probing, probe)):
        with pytest.raises(UserError, match=r"finished run whose inputs have been replaced since \(run .*pre\); choose"):
            begin(config)  # type: ignore[operator]
    assert "nothing to do" not in caplog.text
    with pytest.raises(UserError, match=r"does not fit these settings \(.*pre has been replaced since\)"):
        finetune(runs["half"])
    edit_manifest(shards, fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"\(shards .*shards, run .*pre\)"):
        finetune(runs["whole"])
    shutil.rmtree(shards)
    shutil.rmtree(pre)
    assert again() == figures


def test_settings_that_decide_the_weights_stay_and_the_others_are_on_the_card(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    made_by = iter(["b", "a", *[None] * 9])
    monkeypatch.setattr(loop, "commit", lambda: next(made_by))
    stopped_after_one_step(config, monkeypatch)
    for changes, message in (
        ({"optim": OptimConfig(lr=2e-3, min_lr=1e-4, warmup_epochs=1)}, r"\(optim.lr 0.001 -> 0.002\)"),
        ({"mask": dataclasses.replace(config.mask, video_ratio=0.5)}, r"\(mask.video_ratio 0.66 -> 0.5\)"),
        ({"encode": "all_frames"}, r"\(encode kept_frames -> all_frames\)"),
        ({"run": dataclasses.replace(config.run, seed=3)}, r"\(run.seed 0 -> 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(dataclasses.replace(config, **changes))
    stopped_after_one_step(dataclasses.replace(config, run=dataclasses.replace(config.run, batch_size=2)), monkeypatch)
    pretrain(dataclasses.replace(config, run=dataclasses.replace(config.run, batch_size=2, epochs=2, log_every=7)))
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    first, second = card["history"]
    assert card["commits"] == ["a", "b", UNKNOWN]
    assert first.startswith("from step 1 on: clips per optimizer step 4 (") and first.endswith("; run.batch_size 4 -> 2")
    assert second == "from step 2 on: run.epochs 1 -> 2"
    assert "continuing with other settings: run.epochs 1 -> 2" in caplog.text and "log_every" not in caplog.text


def test_settings_that_do_not_decide_figures_leave_a_finished_run_finished(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1, batch_size=12)
    pretrain(config)
    run = dataclasses.replace(config.run, log_every=9, device="auto", launch="graph")
    data = dataclasses.replace(config.data, threads=3, prefetch=4)
    assert is_finished(dataclasses.replace(config, run=run, data=data))
    with pytest.raises(UserError, match=r"with other settings \(run.epochs 1 -> 2\)"):
        is_finished(dataclasses.replace(config, run=dataclasses.replace(run, epochs=2)))
    with pytest.raises(UserError, match=r"with other settings \(optim.lr_batch 128 -> 16\)"):  # clips per step, perhaps
        is_finished(dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr_batch=16)))


def test_every_setting_that_may_change_exists() -> None:
    names = {name.replace("-", "_") for kind in folder.KINDS.values() for name in option_names(kind)}
    for beginning in (*folder.TECHNICAL, *folder.EVALUATION, *folder.ADJUSTABLE):
        assert any(name.startswith(beginning) for name in names), beginning


# ---- one process at a time --------------------------------------------------------------------------------------------


@pytest.fixture
def busy(tiny_shard_folder: Path, tmp_path: Path) -> Iterator[tuple[PretrainConfig, Any]]:
    """A run of the command that has begun and goes on until it is stopped, in a process of its own."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=10_000, checkpoint_every=1)
    process = start(command_words(config)[3:])
    wait_for(lambda: list((tmp_path / "run").glob("checkpoints/*.pt")) or not process.is_alive())
    assert process.is_alive()
    yield config, process
    process.kill()
    process.join()


def test_a_second_process_in_the_folder_ends_in_one_line_until_the_first_is_dead(
    busy: tuple[PretrainConfig, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config, process = busy
    assert main(command_words(config)[3:]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"run: process {process.pid} on " in said
    assert said.endswith("is training in this folder; wait for it or choose another folder")
    process.kill()
    process.join()
    with claimed(config.run, Runtime(torch.device("cpu"), 0, 1, False)):
        pass
    assert not list(config.run.out.glob(".lock"))


def test_a_probe_holds_its_folder_while_it_works(
    parents: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of other settings would leave the figures of one beside the weights of the other."""
    data = finetune_config(tiny_shard_folder, tmp_path).data
    config = ProbeConfig(data, parents / "a", tmp_path / "probe", batch_size=4, device="cpu", attentive=AttentiveConfig(0))

    def second(*_: Any) -> None:
        with pytest.raises(UserError, match="is training in this folder"):
            probe(dataclasses.replace(config, weight_decay=0.5))
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("svdata2vec.evaluation.probe.load_encoder", second)
        probe(config)
    assert not (tmp_path / "probe").exists()
    assert probe(config)["kind"] == "probe"


def test_only_the_first_of_many_processes_takes_the_lock(tiny_shard_folder: Path, tmp_path: Path) -> None:
    run = pretrain_config(tiny_shard_folder, tmp_path / "run").run
    first, second = (Runtime(torch.device("cpu"), rank, 2, False) for rank in (0, 1))
    with claimed(run, first), claimed(run, second), pytest.raises(UserError, match="is training in this folder"):
        claimed(run, first).__enter__()


def test_a_lock_that_is_a_link_is_not_followed(tiny_shard_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"run/\.lock is a link"):
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run"))
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(("changed", "ending"), [
    (None, ""), ("tools/results/a.json", ""), ("tools/results/a.png", ""), ("tools/results/page.py", "-dirty"),
    ("tools/a.json", "-dirty"), ("svdata2vec/code.py", "-dirty"),
])
def test_a_commit_is_changed_by_code_and_not_by_records(
    changed: str | None, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["tools/results/a.json", "tools/results/a.png", "tools/results/page.py", "tools/a.json", "svdata2vec/code.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout[:12]
    if changed:
        (tmp_path / changed).write_text("two")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "svdata2vec" / "code.py"))
    assert commit.__wrapped__() == head + ending


def test_a_process_is_of_the_commit_at_which_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = commit()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    assert commit() == began


def test_a_record_names_a_gpu_only_where_the_work_ran_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    assert machine()["gpu"] is None, "beside work on the CPU"
    assert machine(torch.device("cuda", 1))["gpu"] == "GPU cuda:1"
