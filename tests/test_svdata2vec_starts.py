"""Runs that another one starts from: what they have seen, how they were shown clips, and whether seeds share them."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from shards_data import edit_manifest
from small_study import small_study, split_shards
from tiny import finetune_config, pretrain_config

from svdata2vec.config.probe import AttentiveConfig, ProbeConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.probe import probe
from svdata2vec.reports.label_curve import caption
from svdata2vec.reports.report import write_report
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.studies.label_efficiency import label_efficiency, rows_of
from svdata2vec.studies.probe_rows import ProbeRow, make_features
from svdata2vec.studies.study import differences
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

SEEN = "4 of 4 clips of the test split 't_test' are of split 't_test', which {} was trained on: its accuracy says little"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_shards(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def pretrained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by the split that they were pretrained on."""
    folder = tmp_path_factory.mktemp("pretrained")
    for split in ("t_train", "t_test"):
        config = pretrain_config(shards, folder / split, epochs=1, batch_size=2)
        pretrain(replace(config, data=replace(config.data, train_split=split)))
    return {split: folder / split for split in ("t_train", "t_test")}


def probe_of(shards: Path, start: Path, out: Path) -> ProbeConfig:
    study = small_study(shards, out)
    return ProbeConfig(data=study.data, pretrained=start, out=out, attentive=AttentiveConfig(0), batch_size=4, device="cpu")


@pytest.mark.parametrize(("split", "said"), [("t_train", 0), ("t_test", 1)])
def test_test_clips_that_the_start_was_trained_on_are_reported(
    split: str, said: int, shards: Path, pretrained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By fine-tuning, its evaluation, a probe and a study."""
    start = pretrained[split]
    config = finetune_config(shards, tmp_path / "run", epochs=1, pretrained=start)
    finetune(replace(config, data=replace(config.data, train_split="t_train", test_split="t_test")))
    assert caplog.text.count(SEEN.format(start)) == said
    caplog.clear()
    evaluate_run(tmp_path / "run", device="cpu")
    assert caplog.text.count(SEEN.format(f"the run that {tmp_path}/run began from")) == said
    caplog.clear()
    probe(probe_of(shards, start, tmp_path / "probe"))
    assert caplog.text.count(SEEN.format(start)) == said
    caplog.clear()
    rows_of(small_study(shards, tmp_path / "study", ways=("linear",), pretrained=(f"pre={start}",), seeds=1))
    assert caplog.text.count(SEEN.format(start)) == said and "for all" not in caplog.text


def test_probes_say_that_clips_are_shown_otherwise(
    shards: Path, pretrained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shutil.copytree(shards, tmp_path / "whole")
    edit_manifest(whole, view="picture")
    text = f"the run was trained on crops around persons, {whole} holds whole pictures"
    probe(probe_of(whole, pretrained["t_train"], tmp_path / "probe"))
    assert text in caplog.text
    caplog.clear()
    study = small_study(whole, tmp_path / "study", ways=("linear",), pretrained=(f"pre={pretrained['t_train']}",))
    rows_of(study)
    assert text in caplog.text


def test_seeds_that_share_a_start_have_no_interval_where_nothing_differs(
    shards: Path, pretrained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A linear probe with all labels of one pretraining run was said to be certain to 0.0 points."""
    start = str(pretrained["t_train"])
    with caplog.at_level(logging.INFO, logger="svdata2vec"):
        record = label_efficiency(
            small_study(shards, tmp_path / "study", ways=("linear",), pretrained=(f"pre={start}",), fractions=(1.0,))
        )
    assert f"{start}: one run for all 2 seeds, so that the intervals do not say how much pretraining runs differ" in caplog.text
    (row,) = record["rows"]
    (cell,) = row["cells"]
    assert len(cell["scores"]) == 2 and len(set(cell["scores"])) == 1 and cell["interval"] is None
    assert "2 seeds, which share one pretraining run on" in caption(record, [])
    settings = {**record["settings"], "pretrained": ["pre=runs/pre-{seed}"]}
    assert "share" not in caption({**record, "settings": settings}, [])


@pytest.mark.parametrize(("ours", "theirs", "interval"), [
    (None, None, False), (None, [0.2, 0.3], True), ([0.4, 0.6], None, True), ([0.4, 0.6], [0.2, 0.3], True),
])
def test_differences_of_rows_that_no_seed_changes_have_no_interval(
    ours: list[float] | None, theirs: list[float] | None, interval: bool
) -> None:
    rows = [
        {"name": name, "kind": kind, "cells": [{"fraction": 1.0, "scores": [score] * 3, "interval": found}]}
        for name, kind, score, found in (("ours", "ours", 0.5, ours), ("joints", "rival", 0.25, theirs))
    ]
    (found,) = differences(rows)
    assert found["mean"] == 0.25 and found["seeds"] == 3 and (found["interval"] is not None) == interval


def test_features_of_a_split_in_a_folder_and_features_that_were_removed(
    shards: Path, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    """A split's name may have a slash; without the array, what is beside it does not count."""
    root = shutil.copytree(shards, tmp_path / "shards")
    keys = ShardSet.open(shards).manifest.splits
    edit_manifest(root, splits={**{name: list(of) for name, of in keys.items()}, "fold1/train": list(keys["t_train"])})
    config = small_study(root, tmp_path / "study", ways=("linear",), pretrained=(f"pre={pretrained['t_train']}",))
    (row,) = rows_of(replace(config, data=replace(config.data, train_split="fold1/train")))
    assert isinstance(row, ProbeRow)
    make_features(row.base, pretrained["t_train"], "fold1/train", row.features)
    (array,), (about,) = row.features.glob("*.npy"), row.features.glob("*.json")
    made = array.read_bytes()
    array.unlink()
    make_features(row.base, pretrained["t_train"], "fold1/train", row.features)
    assert array.read_bytes() == made and len(json.loads(about.read_text())["keys"]) == 6


def test_probes_of_one_run_are_no_seeds_of_each_other(shards: Path, pretrained: dict[str, Path], tmp_path: Path) -> None:
    """With all labels nothing but the attentive probe draws by the seed: the others had three equal figures and an interval."""
    for seed in (0, 1):
        config = probe_of(shards, pretrained["t_train"], tmp_path / f"probe{seed}")
        probe(replace(config, seed=seed, attentive=AttentiveConfig(1, steps=2)))
    write_report([tmp_path / "probe0", tmp_path / "probe1"], tmp_path / "r.html")
    group = (tmp_path / "r.html").read_text().split("<h2>Over seeds</h2>")[1].split("</table>")[0]
    assert group.count("<tr>") == 2 and "attentive probe" in group
