"""Runs on several shard sets: exact resume, weights, a joint mapping on two processes; and every command on them."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noted_command import launch, notes
from pipeline_factory import kinect_set, shard_set
from shards_data import edit_manifest
from tiny import assert_same_weights, finetune_config, pretrain_config
from tiny_command import command_words

from svdata2vec.bench.config import ScaleConfig
from svdata2vec.bench.scale_worker import epoch_rows, expected_keys
from svdata2vec.cli.main import main
from svdata2vec.config.files import from_dict, to_values
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import DataConfig, PretrainConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.features import embed
from svdata2vec.evaluation.probe import probe
from svdata2vec.pipeline.order import entries_per_epoch
from svdata2vec.reports.report import write_report
from svdata2vec.runs.card import model_card, read_card
from svdata2vec.runs.data import build_loader, open_data
from svdata2vec.runs.folder import changed_settings, read_result
from svdata2vec.runs.own_preset import fit
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

FIRST, SECOND = 6, 9  # clips


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> str:
    """Two folders, of COCO-17 and of Kinect-25, with clips of equal names."""
    folder = tmp_path_factory.mktemp("sets")
    shard_set(folder / "coco", FIRST, size=64)
    kinect_set(folder / "kinect", SECOND, size=64)
    return f"{folder}/coco,{folder}/kinect"


def on(sets: str, config: Any, **changes: Any) -> Any:
    settings = {"shards": sets, "layout": "coco17"} | changes
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **settings))


@pytest.mark.slow
def test_two_processes_on_two_weighted_sets_resume_bit_for_bit_and_elastically(sets: str, tmp_path: Path) -> None:
    """Killed within the second epoch and started again; and killed, then on one process."""
    weights, epochs = (1.5, 0.6), 3
    per_epoch = entries_per_epoch(FIRST, 1.5) + entries_per_epoch(SECOND, 0.6)
    assert per_epoch == 14

    def words(name: str, batch: int) -> list[str]:
        config = pretrain_config(Path("x"), tmp_path / name, batch_size=batch, epochs=epochs, checkpoint_every=1)
        return command_words(on(sets, config, weights=weights))

    launch(tmp_path, "whole", words("whole", 2), 2, -1)
    launch(tmp_path, "killed", words("killed", 2), 2, 5)
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    launch(tmp_path, "again", words("killed", 2), 2, -1)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert min(row["step"] for row in notes(tmp_path, "again")) > 3

    launch(tmp_path, "second", words("other", 4), 1, -1)
    following = min(row["step"] for row in notes(tmp_path, "second"))
    rows = [row for row in notes(tmp_path, "killed") if row["step"] < following] + notes(tmp_path, "second")
    seen = Counter((epoch, key) for row in rows for epoch, key in row["clips"])
    assert set(seen.values()) == {1}, "no clip is seen twice at its place, whatever the number of processes"
    for epoch in (1, 2):  # the first epoch drops what makes no step of four
        mine = [key for at, key in seen if at == epoch]
        assert len(mine) in (per_epoch, per_epoch // 4 * 4)
        assert {key.partition("/")[0] for key in mine} == {"coco", "kinect"}


@pytest.fixture(scope="module")
def runs(sets: str, tmp_path_factory) -> Path:
    """A pretraining run on both sets, and what is built on it."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain(on(sets, pretrain_config(Path("x"), folder / "pre", epochs=1), weights=(2.0, 0.5)))
    finetune(on(sets, finetune_config(Path("x"), folder / "fine", pretrained=folder / "pre", epochs=1, batch_size=2)))
    return folder


def test_a_card_says_what_sets_a_network_was_trained_on(runs: Path, sets: str) -> None:
    card = read_card(runs / "pre")
    said = card["trained_on"]
    assert card["num_joints"] == 17 and said["layout"] == "coco17" and said["dataset"] == "factory + factory"
    facts = [(each["layout"], each["clips"], each["weight"]) for each in said["sets"]]
    assert facts == [("coco17", 6, 2), ("kinect25", 9, 0.5)]
    config = from_dict(PretrainConfig, card["config"], "card")
    assert (config.data.shards, config.data.weights, config.data.layout) == (sets, (2.0, 0.5), "coco17")
    assert read_card(runs / "fine")["trained_on"]["clips"] == FIRST + SECOND
    for changes in ({"layout": None, "weights": (0.5,)}, {"layout": "coco17", "weights": ()}):  # one set, not as it is stored
        one = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=sets.split(",")[1], **changes))
        (said,) = model_card("pretrain", one, num_joints=17, shards=open_data(one.data))["trained_on"]["sets"]
        assert (said["layout"], said["clips"]) == ("kinect25", 9)


def test_every_command_takes_joined_sets(runs: Path, sets: str, tmp_path: Path) -> None:
    result = evaluate_run(runs / "fine")
    assert result["count"] == FIRST + SECOND == read_result(runs / "fine", "finetune")["count"]
    found = embed(runs / "pre", "all", tmp_path / "features.npy")
    assert sorted(found.keys) == [f"coco/clip{i:05d}" for i in range(FIRST)] + [f"kinect/clip{i:05d}" for i in range(SECOND)]
    assert np.load(tmp_path / "features.npy").shape[0] == FIRST + SECOND and not found.lost
    alone = embed(runs / "pre", "all", tmp_path / "one.npy", shards=sets.split(",")[1])  # weights are those of training
    both = dict(zip(found.keys, found.features_nD, strict=True))
    for key, row in zip(alone.keys, alone.features_nD, strict=True):
        np.testing.assert_allclose(row, both[f"kinect/{key}"], rtol=1e-4, atol=1e-5)
    data = dataclasses.replace(pretrain_config(Path("x"), tmp_path).data, shards=sets, layout="coco17", crop="boxes")
    figures = probe(ProbeConfig(data=data, pretrained=runs / "pre", out=tmp_path / "probe", iterations=5, device="cpu"))
    assert figures["labels"] == FIRST + SECOND
    write_report([runs / "pre", runs / "fine"], tmp_path / "report.html")
    assert "No pictures: " not in (page := (tmp_path / "report.html").read_text()) and "factory + factory" in page


def test_the_own_preset_and_the_benchmarks_read_joined_sets(sets: str, tmp_path: Path) -> None:
    config = on(sets, pretrain_config(Path("x"), tmp_path / "run"))
    data = DataConfig(shards=sets, layout="coco17", train_split="all", test_split="all")
    fitted = fit(dataclasses.replace(config, data=data))
    assert fitted.run.batch_size == 2 and fitted.data.num_frames == 8
    data = dataclasses.replace(config.data, weights=(2, 1))
    scale = ScaleConfig(data=data, model=config.model, target=config.target, run=config.run, warm_up=1, steps=2)
    shards = open_data(scale.data)
    wanted = expected_keys(shards, scale, 1, 0)
    with build_loader(shards, scale, Runtime(torch.device("cpu"), 0, 1, bf16=False), train=True,
                      rows=epoch_rows(shards, scale, 1)) as loader:
        assert [key for batch in loader for key in batch.keys] == wanted


def test_sets_of_other_classes_are_pretrained_on_and_nothing_else(runs: Path, sets: str, tmp_path: Path) -> None:
    one, two = sets.split(",")
    shutil.copytree(two, tmp_path / "two")
    edit_manifest(tmp_path / "two", classes=list("vwxyz"))
    mixed = f"{one},{tmp_path}/two"
    pretrain(on(mixed, pretrain_config(Path("x"), tmp_path / "pre", epochs=1)))
    refused = "have other classes than each other in split 'all'"
    with pytest.raises(UserError, match=refused):
        finetune(on(mixed, finetune_config(Path("x"), tmp_path / "fine")))
    with pytest.raises(UserError, match=refused):
        evaluate_run(runs / "fine", shards=mixed)
    data = dataclasses.replace(pretrain_config(Path("x"), tmp_path).data, shards=mixed, layout="coco17", crop="boxes")
    with pytest.raises(UserError, match=refused):
        probe(ProbeConfig(data=data, pretrained=runs / "pre", out=tmp_path / "probe", device="cpu"))


def test_the_command_reads_weights_and_refuses_what_does_not_fit(sets: str, tmp_path: Path, capsys) -> None:
    words = command_words(on(sets, pretrain_config(Path("x"), tmp_path / "run", epochs=1), weights=(2.0,)))[3:]
    assert main(words) == 2
    assert "--data.weights has 1 numbers, --data.shards 2 sets" in capsys.readouterr().err
    assert main(["inspect", sets, "--split", "all", "--out", str(tmp_path / "pictures")]) == 2
    assert "several sets, where one is expected" in capsys.readouterr().err


def test_settings_of_sets_are_compared_by_their_paths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = (to_values(DataConfig(shards=name, weights=(1, 2))) for name in ("a,b", f"{tmp_path}/a, {tmp_path}/b"))
    assert changed_settings(old, new) == []
    assert changed_settings(old, to_values(DataConfig(shards="b,a", weights=(1, 2))))
    assert changed_settings(old, to_values(DataConfig(shards="a,b", weights=(1, 1))))
    assert from_dict(DataConfig, old, "file").weights == (1, 2)
