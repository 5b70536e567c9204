"""Training runs: they learn, stop and resume bit for bit, survive damage, and agree between processes."""

import dataclasses
import json
import logging
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from preloaded import command, elastic, start
from safetensors.torch import load_file
from tiny import assert_same_weights, finetune_config, pretrain_config, stop_after
from tiny_command import command_words
from waiting import wait_for

from svdata2vec.config.schema import MaskConfig, Modality, OptimConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.data import build_loader, labelled_rows
from svdata2vec.runs.failures import REQUEUE_EXIT_CODE, SaveFailedError
from svdata2vec.runs.folder import write_config
from svdata2vec.runs.metrics_log import read_lines, read_metrics
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import StopRequested
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import Finetuning, finetune
from svdata2vec.training.loop import describe
from svdata2vec.training.pretrain import Pretraining, pretrain
from svdata2vec.training.stepper import NotFiniteError


@pytest.fixture(scope="module")
def finished(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run of six steps, never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(pretrain_config(tiny_shard_folder, out))
    return out


def test_a_run_leaves_configuration_metrics_weights_and_result(finished: Path) -> None:
    records = read_metrics(finished)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    wanted = {"loss", "target_std", "prediction_std", "lr", "grad_norm", "ema_decay", "clips_per_second"}
    wanted |= {"seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer", "seconds_total"}
    assert wanted <= set(records[-1])
    assert records[-1]["target_std"] > 0.1
    card = json.loads((finished / "model.json").read_text())
    assert card["kind"] == "pretrain" and {"step": card["step"], **card["metrics"]} == records[-1]
    assert json.loads((finished / "config.json").read_text()) == {"kind": "pretrain", **card["config"]}
    assert len(Checkpoints(finished, 2).paths()) == 2
    assert list((finished / "tensorboard").glob("events*"))


def test_the_line_of_a_record_says_how_long_the_run_will_take() -> None:
    stepper: Any = SimpleNamespace(step=4, total_steps=10)
    record = {"epoch": 1.5, "loss": 0.5, "lr": 1e-3, "clips_per_second": 3.0, "seconds_data": 5.0, "seconds_total": 20.0}
    assert describe(stepper, record, 2, time.perf_counter() - 3661) == (
        "step 4/10 epoch 1.50 loss 0.5 lr 1.00e-03 3.0 clips/s data wait 25 % ETA 0:01:00 elapsed 1:01:02"
    )


def test_a_finished_run_is_not_trained_again(finished: Path, tiny_shard_folder: Path) -> None:
    before = (finished / "model.safetensors").stat().st_mtime_ns
    result = pretrain(pretrain_config(tiny_shard_folder, finished))
    assert result["loss"] == json.loads((finished / "result.json").read_text())["loss"]
    assert (finished / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"finished run with other settings \(run.seed 0 -> 1\)"):
        pretrain(pretrain_config(tiny_shard_folder, finished, seed=1))
    with pytest.raises(UserError, match="holds a run already"):
        pretrain(pretrain_config(tiny_shard_folder, finished, resume="never"))


def test_the_loss_falls_on_a_few_clips(tiny_shard_folder: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=3e-3, min_lr=1e-3, warmup_epochs=1)
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, epochs=12))
    losses = [record["loss"] for record in read_metrics(tmp_path / "run")]
    assert sum(losses[-6:]) / 6 < 0.8 * sum(losses[:3]) / 3


def test_sigterm_saves_and_the_next_start_resumes_bit_for_bit(
    finished: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(StopRequested) as stopped:
        stop_after(Pretraining, 3, patch)
        pretrain(config)
    assert stopped.value.code == REQUEUE_EXIT_CODE
    assert Checkpoints(tmp_path / "run", 2).paths()[-1].stem == "step-000000003"  # between two that are due
    assert not (tmp_path / "run" / "model.safetensors").exists()
    pretrain(config)
    assert_same_weights(finished, tmp_path / "run")
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_kill_at_a_random_moment_loses_nothing(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Against an undisturbed run that is a process of its own too."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    words = {path: command_words(pretrain_config(tiny_shard_folder, path, checkpoint_every=1))[3:] for path in (whole, out)}
    undisturbed = start(words[whole])
    undisturbed.join()
    for _ in range(3):
        process = start(words[out])
        wait_for(lambda process=process: (out / "config.json").exists() or not process.is_alive())
        time.sleep(random.SystemRandom().uniform(0.0, 2.0))
        process.kill()
        process.join()
    last = start(words[out])
    last.join()
    assert (undisturbed.exitcode, last.exitcode) == (0, 0)
    assert_same_weights(whole, out)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    finished: Path, tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoints").mkdir()
    for path in Checkpoints(finished, 2).paths():
        (out / "checkpoints" / path.name).write_bytes(path.read_bytes())
    newest = Checkpoints(out, 2).paths()[-1]
    (out / "checkpoints" / "step-000000007.pt.0123.tmp").write_bytes(b"left by a killed run")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    pretrain(pretrain_config(tiny_shard_folder, out))
    assert not list((out / "checkpoints").glob("*.tmp"))
    assert f"{newest} is damaged: its end is not that of a checkpoint; trying the checkpoint before it" in caplog.text
    assert_same_weights(finished, out)
    for path in Checkpoints(out, 2).paths():
        path.write_bytes(b"torn")
    with pytest.raises(UserError, match="none of the 2 checkpoints can be read"):
        Checkpoints(out, 2).load_newest()


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Pretraining.forward

    def poison(run: Pretraining, batch: object, epoch: int) -> object:
        output = forward(run, batch, epoch)  # type: ignore[arg-type]
        if run.stepper.step in poisoned:
            return dataclasses.replace(output, loss=output.loss * float("nan"))
        return output

    monkeypatch.setattr(Pretraining, "forward", poison)
    poisoned = {2}
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "one"))
    records = read_metrics(tmp_path / "one")
    assert records[-1]["skipped_steps"] == 1
    assert [row["step"] for row in read_lines(tmp_path / "one" / "not_finite.jsonl", {"step": int})] == [2]
    assert all(torch.isfinite(weight).all() for weight in load_file(tmp_path / "one" / "model.safetensors").values())
    poisoned = {2, 3, 4}
    with pytest.raises(NotFiniteError, match="3 steps in a row"):
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "many", max_bad_steps=3))
    rows = read_lines(tmp_path / "many" / "not_finite.jsonl", {"step": int})
    assert [row["step"] for row in rows] == [2, 3, 4] and all(len(row["keys"]) == 4 for row in rows)


def test_a_failed_save_fails_the_run(tiny_shard_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(SaveFailedError, match=r"step-000000002.pt could not be written .*File exists"):
        pretrain(pretrain_config(tiny_shard_folder, out))


def test_accumulated_batches_make_one_step(tiny_shard_folder: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1, accumulate=3)
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, epochs=4))
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_finetuning_takes_the_pretrained_encoder_and_is_evaluated(
    finished: Path, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "classifier"
    result = finetune(finetune_config(tiny_shard_folder, out, pretrained=finished, epochs=3))
    assert result["count"] == 12 and result["labels"] == 12 and len(result["confusion"]) == 5
    again = evaluate_run(out, device="cpu")
    assert {name: again[name] for name in ("top1", "top5", "confusion")} == {
        name: result[name] for name in ("top1", "top5", "confusion")
    }
    with pytest.raises(UserError, match="no split 'nope'"):
        evaluate_run(out, split="nope")
    with pytest.raises(UserError, match="pretrain run without a classifier"):
        evaluate_run(finished)


def test_a_classifier_begins_as_pretraining_ended_with_rates_by_depth_and_smoothed_labels(
    finished: Path, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    """From scratch every layer has the full rate."""
    runtime, shards = Runtime(torch.device("cpu"), 0, 1, bf16=False), ShardSet.open(tiny_shard_folder)
    card = {"num_joints": 17, "classes": list("abcde")}
    for pretrained, scales in ((finished, {1.0, 0.8**1, 0.8**2, 0.8**3}), (None, {1.0})):
        config = finetune_config(tiny_shard_folder, tmp_path, pretrained=pretrained)
        with build_loader(shards, config, runtime, train=True, modality="rgb") as loader:
            run, batch = Finetuning(config, runtime, loader, None, card), next(iter(loader))
        given, found = load_file(finished / "model.safetensors"), run.model.encoder.state_dict()
        same = all(torch.equal(tensor, given[f"encoder.{name}"]) for name, tensor in found.items())
        assert same == (pretrained is not None)
        assert {group["scale"] for group in run.optimizer.param_groups} == scales
        run.model.eval()
        logits_BC = run.model(batch.video_BTHWC, None)
        smoothed = torch.nn.functional.cross_entropy(logits_BC, batch.label_B, label_smoothing=0.1)
        torch.testing.assert_close(run.figures(batch, 0)["loss"], smoothed)


@pytest.mark.parametrize(("modality", "changes", "wanted"), [
    ("rgb", {"width": 64}, "--model.width 32"),
    ("rgb", {"depth": 1}, "--model.depth 2"),  # all that is left has the same shape
    ("rgb", {"heads": 4}, "--model.heads 2"),  # as all there is
    ("skeleton", {"joint_motion": 1, "stem_width": 32}, "--model.joint-motion 0.0"),  # no video is read
])
def test_finetuning_another_network_is_refused(
    modality: Any, changes: dict[str, int], wanted: str, finished: Path, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    config = finetune_config(tiny_shard_folder, tmp_path / "x", pretrained=finished)
    other = dataclasses.replace(config, modality=modality, model=dataclasses.replace(config.model, **changes))
    with pytest.raises(UserError, match=f"another network than the classifier; set {wanted}$"):
        finetune(other)
    assert not (tmp_path / "x" / "result.json").exists()


@pytest.mark.parametrize("modality", ["both", "skeleton", "rgb"])
def test_joints_of_another_crop_are_warned_of(
    modality: Modality, finished: Path, tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are pixels of it: another size is another scale."""
    config = finetune_config(tiny_shard_folder, tmp_path / "x", pretrained=finished, epochs=1)
    finetune(dataclasses.replace(config, modality=modality, data=dataclasses.replace(config.data, size=64)))
    said = [text for text in caplog.messages if text.endswith("around joints; its own are --data.size 32")]
    assert len(said) == (modality != "rgb")
    assert not said or "reads 6 frames of 32 pixels around joints, the classifier asks for 6 frames of 64" in said[0]


def test_finetuning_from_runs_that_do_not_fit_is_refused(finished: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = finetune_config(tiny_shard_folder, tmp_path / "x", pretrained=finished)
    longer = dataclasses.replace(config, data=dataclasses.replace(config.data, num_frames=config.data.num_frames + 1))
    with pytest.raises(UserError, match="weights have another shape"):
        finetune(longer)
    with pytest.raises(UserError, match=r"no model.safetensors; expected the folder of a finished run"):
        finetune(dataclasses.replace(config, pretrained=tmp_path))
    write_config(tmp_path / "begun", config)
    with pytest.raises(UserError, match=r"its run is not finished; start that run again to go on$"):
        finetune(dataclasses.replace(config, pretrained=tmp_path / "begun"))


def test_label_fractions_are_stratified_and_seeded(tiny_shard_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet.open(tiny_shard_folder)
    with caplog.at_level(logging.INFO):
        rows = labelled_rows(shards, "all", 0.5, seed=1)
    assert caplog.messages == ["split 'all': 7 of 12 clips labelled"]
    assert len(rows) == 7 and set(shards.index["label"][rows]) == {0, 1, 2, 3, 4}
    assert (rows == labelled_rows(shards, "all", 0.5, seed=1)).all()
    assert any((rows != labelled_rows(shards, "all", 0.5, seed=s)).any() for s in range(2, 6))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [MaskConfig(), MaskConfig(repeats=3, encoded_frames=4)], ids=["one mask", "three masks"])
def test_two_processes_agree_with_one_on_the_same_global_batch(
    mask: MaskConfig, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    optim = OptimConfig(lr=1e-4, min_lr=1e-5, warmup_epochs=1)  # at a higher rate rounding grows tenfold from step to step
    # Seed 1: with seed 0 a tie is decided by rounding (in one process, too, weights that differ by 2e-7 move the norm by 1e-4).
    one, two = (
        dataclasses.replace(base, mask=mask, run=dataclasses.replace(base.run, seed=1))
        for name, size in (("one", 4), ("two", 2))
        for base in [
            pretrain_config(tiny_shard_folder, tmp_path / name, optim=optim, batch_size=size, sync_batchnorm=size == 2)
        ]
    )
    pretrain(one)
    succeeded, said = elastic(tmp_path, 2, command, command_words(two)[3:])
    assert succeeded, said[-2000:]
    for figure in ("grad_norm", "loss"):
        found = [[r[figure] for r in read_metrics(tmp_path / name)] for name in ("one", "two")]
        assert found[1] == pytest.approx(found[0], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_training_from_a_url_is_training_from_the_folder(finished: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=f"file://{tiny_shard_folder}"))
    pretrain(config)
    assert_same_weights(finished, tmp_path / "run")


def test_a_continued_classifier_remembers_its_best(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch: the log that it leaves says the same figures as that of a run without a stop."""
    rows = {}
    for name in ("whole", "stopped"):
        config = finetune_config(tiny_shard_folder, tmp_path / name, epochs=2, batch_size=2)
        config = dataclasses.replace(config, eval_every=1)
        if name == "stopped":
            with monkeypatch.context() as patch, pytest.raises(StopRequested):
                stop_after(Finetuning, 7, patch)
                finetune(config)
        finetune(config)
        rows[name] = [
            {key: row[key] for key in ("step", "loss", "lr", "val_top1", "val_mean_class", "best_val_top1") if key in row}
            for row in read_metrics(tmp_path / name)
        ]
    assert rows["stopped"] == rows["whole"] and [row["step"] for row in rows["whole"] if "val_top1" in row] == [5, 10]
    assert (tmp_path / "stopped" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
