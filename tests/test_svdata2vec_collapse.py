"""Runs that learn nothing stop: targets or predictions that are the same for every clip, record after record."""

import dataclasses
import math
from pathlib import Path

import pytest
from pipeline_factory import clip_parts, write_shards
from tiny import pretrain_config, stop_after

from svdata2vec.cli.main import main
from svdata2vec.config.schema import OptimConfig, PretrainConfig
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.stopping import StopRequested
from svdata2vec.shards.errors import UserError
from svdata2vec.training import pretrain as pretraining
from svdata2vec.training.collapse import HIGH, LOW, NEAR_0, CollapsedError, CollapseGuard
from svdata2vec.training.pretrain import Pretraining, pretrain


@pytest.fixture(scope="module")
def empty_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of eight clips in which nobody was found."""
    root = tmp_path_factory.mktemp("empty") / "shards"
    parts = [clip_parts(f"clip{i}", 10, size=64, label=i % 5, persons=0, seed=i) for i in range(8)]
    write_shards(root, [(f"clip{i}", 10, part) for i, part in enumerate(parts)], size=64)
    return root


@pytest.fixture
def empty_run(empty_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """A run of eight steps over clips without skeletons, which nothing keeps from beginning."""
    monkeypatch.setattr(pretraining, "require_skeletons", lambda *arguments: None)
    return pretrain_config(empty_shards, tmp_path / "run", epochs=4)


def test_a_run_on_empty_skeletons_is_ended(empty_run: PretrainConfig) -> None:
    with pytest.raises(CollapsedError, match=r"^target_std was below 0.001 in 3 records .*--collapse-records 0"):
        pretrain(dataclasses.replace(empty_run, collapse_records=3))
    records = read_metrics(empty_run.run.out)
    assert [record["target_std"] for record in records] == [0, 0, 0]
    assert not (empty_run.run.out / "result.json").exists()


def test_records_in_a_row_are_counted_over_a_stop(empty_run: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three before it and three behind it end the run."""
    config = dataclasses.replace(empty_run, collapse_records=6)
    with monkeypatch.context() as patch, pytest.raises(StopRequested):
        stop_after(Pretraining, 3, patch)
        pretrain(config)
    with pytest.raises(CollapsedError, match=r"^target_std was below 0.001 in 6 records"):
        pretrain(config)
    assert [record["step"] for record in read_metrics(config.run.out)] == [1, 2, 3, 4, 5, 6]


def test_warnings_are_not_repeated_after_a_stop(caplog: pytest.LogCaptureFixture) -> None:
    first, second = CollapseGuard(2), CollapseGuard(2)
    for _ in range(2):
        first.check({"target_std": 0.2, "loss": 2 * HIGH})
    assert len(caplog.records) == 2
    second.load_state_dict(first.state_dict())
    second.check({"target_std": 0.2, "loss": 2 * HIGH})
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("records", "batch_size", "epochs"), [(0, 4, 4), (9, 4, 4), (3, 1, 1)])
def test_a_run_may_be_left_alone(empty_run: PretrainConfig, records: int, batch_size: int, epochs: int) -> None:
    """Switched off, not so many records, or a spread over one clip, which is 0 without a meaning."""
    run = dataclasses.replace(empty_run.run, epochs=epochs, batch_size=batch_size)
    pretrain(dataclasses.replace(empty_run, run=run, collapse_records=records))
    assert read_metrics(run.out)[-1]["step"] == 8


def test_the_command_ends_in_one_line(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pretraining, "watch", lambda run, record: run.collapse.check({"prediction_std": 0.0}))
    words = f"--data.shards {tiny_shard_folder} --data.train-split all --run.out {tmp_path / 'run'} --collapse-records 1"
    words += " --run.batch-size 4 --run.log-every 1 --run.device cpu --data.num-frames 6 --data.size 32"
    assert main(["pretrain", "demo", *words.split()]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "prediction_std was below 0.001 in 1 records" in last and "--optim.lr" in last


def test_records_in_a_row_are_counted_apart() -> None:
    guard = CollapseGuard(2)
    for spreads in (
        {"target_std": 0.0, "prediction_std": 1.0}, {"target_std": 1.0, "prediction_std": 0.0},
        {"target_std": 0.0, "prediction_std": 2 * NEAR_0}, {"target_std": math.nan, "prediction_std": 0.0}, {},
        {"target_std": 0.0, "prediction_std": 0.5 * NEAR_0},
    ):
        guard.check(spreads)
    with pytest.raises(CollapsedError, match=r"^prediction_std"):
        guard.check({"target_std": 0.9, "prediction_std": 0.0})


def test_targets_that_become_alike_raise_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    guard = CollapseGuard(3)
    for target_std in (0.1, 0.2, LOW, 0.1, 0.2):
        guard.check({"target_std": target_std, "prediction_std": 0.01})
    assert not caplog.records, "0.3 is not low, and restarted the count"
    for _ in range(4):
        guard.check({"target_std": 0.2, "prediction_std": 0.01})
    [record] = caplog.records
    assert "target_std was below 0.3 in 3 records" in record.getMessage() and "--ema.start" in record.getMessage()
    caplog.clear()
    CollapseGuard(0).check({"target_std": 0.2})
    CollapseGuard(1).check({"loss": math.inf})
    assert not caplog.records


def test_a_run_that_diverges_is_warned_of_once(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its numbers stay finite, so that nothing else would say it; a run at a usual rate is silent."""
    usual = pretrain_config(tiny_shard_folder, tmp_path / "usual", epochs=3)
    pretrain(dataclasses.replace(usual, collapse_records=2))
    assert "diverged" not in caplog.text
    rates = OptimConfig(lr=10.0, min_lr=5.0, warmup_epochs=1)
    hot = pretrain_config(tiny_shard_folder, tmp_path / "hot", epochs=6, optim=rates)
    pretrain(dataclasses.replace(hot, collapse_records=2))
    losses = [record["loss"] for record in read_metrics(hot.run.out)]
    assert losses[0] < HIGH and all(map(math.isfinite, losses))
    [record] = [record for record in caplog.records if "diverged" in record.message]
    assert record.message.startswith("loss was above 10 in 2 records of the log in a row") and "--optim.lr" in record.message
    caplog.clear()
    plain = dataclasses.replace(hot.target, normalise_layer="none")  # whose loss may be of any size
    hot = dataclasses.replace(hot, target=plain, run=dataclasses.replace(hot.run, out=tmp_path / "plain"))
    pretrain(dataclasses.replace(hot, collapse_records=2))
    assert read_metrics(hot.run.out)[-1]["loss"] > HIGH and "diverged" not in caplog.text


def test_the_number_of_records_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="collapse_records is -1"):
        PretrainConfig(collapse_records=-1)
