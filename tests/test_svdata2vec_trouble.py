"""Runs in trouble: non-finite numbers, full disks, folders of other runs, and being ended at bad moments."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shards_data import damaged
from tiny import finetune_config, pretrain_config, stop_after

from svdata2vec.cli.main import main
from svdata2vec.config.files import to_json
from svdata2vec.config.schema import OptimConfig
from svdata2vec.runs.card import read_card
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.failures import SaveFailedError
from svdata2vec.runs.folder import is_finished, read_result
from svdata2vec.runs.metrics_log import Averages, MetricsLog, StepClock, read_lines, read_metrics
from svdata2vec.runs.published import load_published
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import StopRequested
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training import loop
from svdata2vec.training.finetune import Finetuning, finetune
from svdata2vec.training.optim import learning_rate
from svdata2vec.training.pretrain import Pretraining, pretrain
from svdata2vec.training.stepper import FiniteGuard, NotFiniteError, Statistics

CPU = Runtime(torch.device("cpu"), 0, 1, bf16=False)


def test_a_skipped_step_leaves_the_statistics_and_the_log_clean(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not finite inside the network reaches BatchNorm's running statistics before any gradient is known."""
    step = Finetuning.step
    seen: list[list[torch.Tensor]] = []

    def poison(run: Finetuning, batches: Any) -> None:
        bn = run.model.head.bn  # type: ignore[union-attr]
        conv = run.model.encoder.video_encoder.stem.conv
        before = [bn.running_mean.clone(), run.model.encoder.video_encoder.stem.bn.running_var.clone()]
        hook = conv.register_forward_hook(lambda *_: _[-1] * float("inf") if run.stepper.step == 1 else None)
        step(run, batches)
        hook.remove()
        seen.append([*before, bn.running_mean.clone(), run.model.encoder.video_encoder.stem.bn.running_var.clone()])

    monkeypatch.setattr(Finetuning, "step", poison)
    finetune(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=2, log_every=2))
    for number, (mean, var, mean_after, var_after) in enumerate(seen):
        assert torch.equal(mean, mean_after) == torch.equal(var, var_after) == (number == 1)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values() if tensor.is_floating_point())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["skipped_steps"] for record in records] == [1, 1, 1] and all(record["loss"] > 0 for record in records)


def test_a_record_is_of_its_whole_interval_where_a_run_was_stopped_within_it(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's averages are those of a run without a stop; no clip that was seen, and no second, is missing in its rate."""
    whole, config = (pretrain_config(tiny_shard_folder, tmp_path / name, log_every=2) for name in ("whole", "stopped"))
    pretrain(whole)
    steps: list[int] = []
    monkeypatch.setattr(loop, "describe", lambda stepper, record, since, started: str(steps.append(since)))
    with monkeypatch.context() as patch, pytest.raises(StopRequested):
        stop_after(Pretraining, 3, patch)
        patch.setattr(StepClock, "spent", lambda clock: dict.fromkeys(("data", "total", "cpu"), 1000.0))
        pretrain(config)
    pretrain(config)
    assert steps == [2, 2, 2]
    expected, found = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    assert [record["step"] for record in found] == [2, 4, 6]
    for name in ("seconds_total", "cpu_seconds"):
        assert [record[name] > 1000 for record in found] == [False, True, False]
    for name in ("loss", "target_std", "prediction_std", "grad_norm", "lr"):
        assert [record[name] for record in found] == [record[name] for record in expected]
    assert [round(record["clips_per_second"] * record["seconds_total"]) for record in found] == [8, 8, 8]
    for record in found:
        parts = sum(record[f"seconds_{part}"] for part in ("data", "forward", "backward", "optimizer"))
        assert record["cpu_seconds"] > 0 and parts <= record["seconds_total"]


@pytest.mark.parametrize("kind", [Pretraining, Finetuning])
def test_clips_that_could_not_be_used_are_counted_over_a_stop(
    kind: Any, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as often as it was met, and none for what was only prefetched when the run was stopped."""
    shards = damaged(tiny_shard_folder, tmp_path / "shards", 7)
    make, begin = (pretrain_config, pretrain) if kind is Pretraining else (finetune_config, finetune)
    config = make(shards, tmp_path / "run", epochs=3)
    before = {}
    for step in (2, 5):
        with monkeypatch.context() as patch, pytest.raises(StopRequested):
            stop_after(kind, step, patch)
            begin(config)
        before[step] = read_metrics(tmp_path / "run")[-1]["skipped_clips"]
    result = begin(config)
    assert result["skipped_clips"] == read_result(tmp_path / "run", config.kind)["skipped_clips"] == 3
    assert before[2] <= 1 <= before[5] <= 2
    counts = [record["skipped_clips"] for record in read_metrics(tmp_path / "run")]
    assert [counts[step] - (counts[step - 3] if step > 2 else 0) for step in (2, 5, 8)] == [1, 1, 1]


def test_bad_steps_in_a_row_are_counted_over_a_stop(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", max_bad_steps=3)
    stop_after(Pretraining, 2, monkeypatch, bad=True)
    with pytest.raises(StopRequested):
        pretrain(config)
    with pytest.raises(NotFiniteError, match="3 steps in a row"):
        pretrain(config)
    written = read_lines(tmp_path / "run" / "not_finite.jsonl", {"step": int, "keys": [str]})
    assert [line["step"] for line in written] == [0, 1, 2]


def test_statistics_are_put_back_only_after_a_bad_step() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    statistics = Statistics(network)
    for bad in (False, True):
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        statistics.keep()
        network(torch.randn(4, 3, 2, 2) / (0.0 if bad else 1.0))
        statistics.put_back_if(torch.tensor(bad))
        for name in ("0.running_mean", "0.running_var", "2.running_mean", "2.running_var"):
            assert torch.equal(network.get_buffer(name), before[name]) == bad


def test_averages_leave_out_what_is_not_finite() -> None:
    averages = Averages()
    for value in (1.0, float("nan"), 3.0, float("inf")):
        averages.add({"loss": torch.tensor(value), "bad": torch.tensor(float("nan"))})
    assert averages.take() == {"loss": 2.0}
    averages.add({"loss": torch.tensor(5.0)})
    assert averages.take() == {"loss": 5.0}


def test_averages_are_over_the_batches_of_all_processes() -> None:
    """Also over those before a stop, which a checkpoint holds; what one process alone finds finite counts alone."""
    mine, theirs = Averages(), Averages()
    for averages, values in ((mine, (1.0, 3.0)), (theirs, (5.0, float("nan")))):
        for value in values:
            averages.add({"loss": torch.tensor(value), "grad_norm": torch.tensor(2.0)})
    other = torch.tensor([*theirs.state_dict().values()])
    saved = mine.state_dict(lambda sums: sums + other)
    assert saved == {"loss": [9.0, 3.0], "grad_norm": [8.0, 4.0]}
    assert mine.take(lambda sums: sums + other) == {"loss": 3.0, "grad_norm": 2.0}


def test_every_clip_counts_the_same_in_averages_of_a_short_batch(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Of nine clips that other batches have left of an epoch, in one step: two batches of four, and one of one."""
    config = pretrain_config(tiny_shard_folder, tmp_path, batch_size=4)
    with build_loader(ShardSet.open(tiny_shard_folder), config, CPU, train=True) as loader:
        run = Pretraining(config, CPU, loader)
        loader.load_state_dict(loader.state_dict() | {"position": 3})
        clips: dict[int, float] = {4: 2.0, 1: 11.0}
        run.differentiate = lambda batch, epoch, last: {"loss": torch.tensor(clips[len(batch)])}  # type: ignore[method-assign]
        run.step([(0, batch) for batch in loader])
    assert run.stepper.averages.take()["loss"] == (8 * 2 + 1 * 11) / 9


def test_the_clock_includes_time_spent_before_a_stop() -> None:
    clock, before = StepClock(CPU.device), {"data": 100.0, "total": 300.0, "cpu": 200.0}
    clock.reset(before)
    clock.mark("data")
    clock.mark("forward")
    spent = clock.spent()
    assert spent.keys() == {*before, "forward"}
    assert all(0 <= seconds - before.get(part, 0.0) < 50 for part, seconds in spent.items())
    clock.reset()
    assert max(clock.spent().values()) < 50


def test_one_process_resumes_with_the_averages_of_all(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config, found = pretrain_config(tiny_shard_folder, tmp_path, batch_size=2), []
    with build_loader(ShardSet.open(tiny_shard_folder), config, CPU, train=True) as loader:
        stepper = Pretraining(config, CPU, loader).stepper
        stepper.averages.add({"loss": torch.tensor(3.0)})
        state = stepper.state_dict()
        for rank in (0, 1):
            stepper.runtime = dataclasses.replace(CPU, rank=rank)
            stepper.load_state_dict(state)
            found.append(stepper.averages.state_dict())
    assert found == [{"loss": [3.0, 1.0]}, {"loss": [0.0, 0.0]}]


def test_every_process_writes_down_its_own_clips(tmp_path: Path) -> None:
    """Of every skipped step, also where the run goes on after it."""
    for rank, name in ((0, "not_finite.jsonl"), (3, "not_finite-rank3.jsonl")):
        guard = FiniteGuard(2, tmp_path, rank)
        for step, bad in ((4, True), (5, False), (7, True)):
            guard.add(step, [f"{step}-{rank}"], torch.tensor(bad))
        with pytest.raises(NotFiniteError, match=rf"2 steps in a row .* listed in .*{name}"):
            guard.add(8, [f"8-{rank}"], torch.tensor(True))
        written = read_lines(tmp_path / name, {"step": int, "keys": [str]})
        assert written == [{"step": step, "keys": [f"{step}-{rank}"]} for step in (4, 7, 8)]
        assert guard.skipped == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")])
def test_a_full_disk_ends_the_run_with_one_line_and_keeps_what_was_saved(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save, saved = torch.save, []

    def fill(*args: Any) -> None:
        if saved:
            raise error
        saved.append(save(*args))

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(SaveFailedError, match=r"000000004.pt could not be written \(.*(No space|failed writing).*older ones"):
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002.pt"]
    assert Checkpoints(tmp_path / "run", 2).load_newest() is not None


def test_a_folder_that_cannot_be_made_is_one_line(
    tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = ["pretrain", "demo", "--data.shards", str(tiny_shard_folder), "--data.train-split", "all", "--run.batch-size", "4"]
    assert main([*words, "--run.device", "cpu", "--run.out", str(tmp_path / "file" / "run")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "file/run could not be written: " in said and "file is no folder" in said


def test_the_folder_of_another_kind_of_run_is_refused(tiny_shard_folder: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1))
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match="holds a pretrain run, this is a finetune run; choose another folder"):
        finetune(finetune_config(tiny_shard_folder, tmp_path / "run"))


def test_an_unfinished_run_of_another_network_is_refused_and_left_alone(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    pretrain(config)
    (tmp_path / "run" / "result.json").unlink()
    before = (tmp_path / "run" / "config.json").read_bytes()
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, width=64))
    with pytest.raises(UserError, match=r"does not fit these settings \(model.width 32 -> 64\); choose another folder"):
        pretrain(wider)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    reseeded = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=5))
    with pytest.raises(UserError, match=r"run.seed 0 -> 5"):
        pretrain(reseeded)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_resumes_from_a_checkpoint_of_0_1_0(kind: str, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """It knew no last values of the log."""
    begin, made = (pretrain, pretrain_config) if kind == "pretrain" else (finetune, finetune_config)
    config: Any = made(tiny_shard_folder, tmp_path / "run", epochs=2, checkpoint_every=4)
    begin(config)  # type: ignore[operator]
    expected = load_file(tmp_path / "run" / "model.safetensors")
    first = tmp_path / "run" / "checkpoints" / "step-000000004.pt"
    state = torch.load(first, weights_only=True)
    del state["stepper"]["values"]
    old = {"config": to_json(config), "version": "0.1.0", "step": 4}
    torch.save({**state, **old}, first)
    for path in ("result.json", "checkpoints/step-000000006.pt"):
        (tmp_path / "run" / path).unlink()
    begin(config)  # type: ignore[operator]
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("teacher"), r"\(no setting differs\); choose another folder.*\(KeyError: 'teacher'\)"),
        (lambda state: [state.pop("config"), state.pop("loader")], r"\(no setting differs\); .*\(KeyError: 'loader'\)"),
        (lambda state: state.update(optimizer=None), r"\(no setting differs\); .*TypeError"),
    ],
)
def test_a_checkpoint_of_another_shape_is_one_line(
    damage: Any, message: str, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    pretrain(config)
    (tmp_path / "run" / "result.json").unlink()
    path = Checkpoints(tmp_path / "run", 2).paths()[-1]
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    with pytest.raises(UserError, match=f"its checkpoint does not fit these settings {message}"):
        pretrain(config)


def test_memory_that_a_resume_lacks_is_no_fault_of_the_settings(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    pretrain(config)
    (tmp_path / "run" / "result.json").unlink()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "load_optimizer", full)
    with pytest.raises(torch.OutOfMemoryError):
        pretrain(config)


def test_a_finished_run_is_the_same_under_every_spelling_of_its_paths(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pretrain(pretrain_config(tiny_shard_folder, Path("pre"), epochs=1))
    made = finetune_config(tiny_shard_folder, Path("fine"), pretrained=Path("pre"), epochs=1)
    finetune(made)
    (tmp_path / "link").symlink_to(tmp_path / "pre")
    for out, pretrained, shards in (
        (tmp_path / "fine", Path("pre"), str(tiny_shard_folder)),
        (Path("fine"), tmp_path / "pre", os.path.relpath(tiny_shard_folder)),
        (Path("pre/../fine"), Path("link"), f"{tiny_shard_folder}/"),
    ):
        run, data = dataclasses.replace(made.run, out=out), dataclasses.replace(made.data, shards=shards)
        assert is_finished(dataclasses.replace(made, run=run, pretrained=pretrained, data=data))
    with pytest.raises(UserError, match=r"finished run with other settings \(pretrained pre -> other\)"):
        is_finished(dataclasses.replace(made, pretrained=Path("other")))
    elsewhere = dataclasses.replace(made.data, shards="s3://bucket/pre")
    with pytest.raises(UserError, match=r"data\.shards .* -> s3://bucket/pre"):
        is_finished(dataclasses.replace(made, data=elsewhere))


def test_a_run_that_died_after_its_last_checkpoint_is_completed(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    result = pretrain(config)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("result.json", "model.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = pretrain(config)
    assert again["loss"] == result["loss"] and again["epoch"] == 2.0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_weights_published_before_a_run_was_extended_are_not_its_end(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a run that was killed before its figures were written, and was then given more epochs."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    pretrain(config)
    (tmp_path / "run" / "config.json").unlink()  # so that weights, card and figures are there
    longer = dataclasses.replace(config, run=dataclasses.replace(config.run, epochs=3))
    stop_after(Pretraining, 7, monkeypatch)
    with pytest.raises(SystemExit):
        pretrain(longer)
    with pytest.raises(UserError, match="its run is not finished"):
        read_card(tmp_path / "run")
    assert pretrain(longer)["epoch"] == 3.0 and load_published(tmp_path / "run")[1]["config"]["run"]["epochs"] == 3


def test_records_of_lost_steps_may_still_be_in_the_log(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process removes them, perhaps after another one has looked for the last record."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", log_every=2)
    pretrain(config)
    for name in ("result.json", f"checkpoints/{Checkpoints(tmp_path / 'run', 2).paths()[-1].name}"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.setattr(MetricsLog, "__init__", lambda log, *_: setattr(log, "enabled", False))
    assert pretrain(config)["epoch"] == 2.0


def test_accumulated_batches_that_straddle_epochs_follow_the_schedule(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches per epoch, two per step: the first of five steps takes the one that is over."""
    ended: list[int] = []
    monkeypatch.setattr(Pretraining, "epoch_end", lambda run, epoch, before: ended.append(epoch) or {})
    optim = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1, accumulate=2)
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, epochs=3))
    records = read_metrics(tmp_path / "run")
    assert [record["epoch"] for record in records] == pytest.approx([1 / 3, 1, 5 / 3, 7 / 3, 3])
    rates = [learning_rate(optim, batch / 3, 3) for batch in (0, 1, 3, 5, 7)]  # by batches
    assert [record["lr"] for record in records] == pytest.approx(rates)
    assert ended == [1, 2, 3]


def test_a_step_of_more_batches_than_the_run_has_ends_with_the_run(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optim = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1, accumulate=10)
    assert pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, epochs=2))["epoch"] == 2
    assert "the run's only step has rate 0, nothing is learned" in caplog.text


def test_missing_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch's own errors, as a network or a batch that is too large ends in; other faults stay tracebacks."""
    def on_gpu(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore about it")

    for fail, reason in (
        (lambda _: torch.empty(2**62, dtype=torch.uint8), "(can't allocate memory: you tried to allocate"),
        (on_gpu, "(CUDA out of memory. Tried to allocate 9 GiB.)"),
        (lambda _: np.empty(2**62, np.uint8), "(Unable to allocate"),
    ):
        monkeypatch.setattr("svdata2vec.training.pretrain.pretrain", fail)
        assert main(["pretrain", "demo"]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"svdata2vec pretrain: out of memory {reason}") and line.endswith("batch, picture or network")
    monkeypatch.setattr("svdata2vec.training.pretrain.pretrain", lambda _: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main(["pretrain", "demo"])
