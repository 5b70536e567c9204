"""Label efficiency: rows with the same labels and steps, a search that never sees the test split, figures that add up."""

import contextlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import shard_set
from shards_data import edit_manifest
from small_study import small_study, split_shards
from tiny import MODEL, NUM_CLIPS, pretrain_config, stop_after

from svdata2vec.cli.main import main
from svdata2vec.config.label_efficiency import LABEL_EFFICIENCY, SEARCHED, SearchConfig
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.probe import AttentiveConfig, ProbeConfig
from svdata2vec.config.schema import EmaConfig, TargetConfig
from svdata2vec.evaluation.features import load_encoder
from svdata2vec.evaluation.probe import split_features
from svdata2vec.model.step_cost import step_flops, step_layers
from svdata2vec.runs.card import weights_hash
from svdata2vec.runs.data import labelled_rows, open_data
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.provenance import UNKNOWN, commit
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import StopRequested
from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.cores import job_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.lock import folder_lock
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.studies import probe_rows, rows
from svdata2vec.studies.label_efficiency import about, label_efficiency, require_fit, rows_of, worth_in_clips
from svdata2vec.studies.probe_rows import ProbeRow, make_features, read_features
from svdata2vec.studies.rows import Cell, FinetuneRow, cell_path, made_of, run_cell
from svdata2vec.training import loop
from svdata2vec.training.finetune import Finetuning
from svdata2vec.training.pretrain import pretrain


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_shards(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def pretrained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two pretraining runs, one per seed."""
    folder = tmp_path_factory.mktemp("pretrained")
    for seed in (0, 1):
        config = pretrain_config(shards, folder / f"pre-{seed}", epochs=1, batch_size=3, seed=seed)
        pretrain(replace(config, data=replace(config.data, train_split="t_train")))
    return str(folder / "pre-{seed}")


# ---- labels and budgets -----------------------------------------------------------------------------------------------


def test_fewer_labels_are_part_of_more_and_every_class_has_one(tiny_shard_folder: Path) -> None:
    found = ShardSet.open(tiny_shard_folder)
    for seed in range(3):
        subsets = [set(labelled_rows(found, "all", fraction, seed).tolist()) for fraction in (0.01, 0.4, 0.7, 1.0)]
        assert all(less <= more for less, more in itertools.pairwise(subsets))
        assert [len(subset) for subset in subsets[::3]] == [5, NUM_CLIPS]
        assert set(found.index["label"][sorted(subsets[0])].tolist()) == set(range(5))
    assert labelled_rows(found, "all", 0.4, 0).tolist() != labelled_rows(found, "all", 0.4, 1).tolist()


@pytest.mark.parametrize(("fraction", "batch", "accumulate", "steps", "bonus"), [
    (1.0, 4, 1, 7, 0), (1.0, 2, 2, 5, 0), (0.01, 32, 1, 3, 0), (1.0, 4, 1, 7, 40), (1.0, 4, 0, 2, 0), (0.01, 2, 4, 3, 0),
])
def test_a_cell_has_the_steps_that_were_asked_for(
    fraction: float, batch: int, accumulate: int, steps: int, bonus: int, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    """Up to whole epochs; batches that few labels fill; what pretraining costs besides."""
    config = small_study(tiny_shard_folder, tmp_path, steps=steps)
    data = replace(config.data, train_split="all", test_split="all")
    base = replace(config, data=data).classifier()
    base = replace(base, run=replace(base.run, batch_size=batch), optim=replace(base.optim, accumulate=accumulate, lr_batch=8))
    row = FinetuneRow("row", "row", "rival", base, steps, bonus_clips=bonus)
    made = row.config(Cell(fraction, 0, (("lr", 0.25), ("drop_path", 0.125))), tmp_path / "run")
    labels = len(labelled_rows(ShardSet.open(tiny_shard_folder), "all", fraction, 0))
    per_step = made.run.batch_size * made.optim.accumulate
    per_epoch = labels // made.run.batch_size * made.run.batch_size
    wanted = steps * per_step + bonus
    assert wanted <= made.run.epochs * per_epoch < wanted + per_epoch
    assert made.run.batch_size == min(batch, labels) and per_step <= labels
    assert (made.optim.lr, made.head.drop_path, made.label_fraction) == (0.25, 0.125, fraction)
    assert made.optim.warmup_share == 0.5 and made.optim.lr_batch == 0  # one epoch of two; nobody is warned of a rate to scale
    for warmup, share in ((0.5, 0.25), (2.0, 0.5)):  # half of the steps at most
        other = replace(row, base=replace(base, optim=replace(base.optim, warmup_epochs=warmup)))
        assert other.config(Cell(fraction, 0), tmp_path / "run").optim.warmup_share == share


def test_scratch_may_have_the_compute_of_pretraining(shards: Path, pretrained: str, tmp_path: Path) -> None:
    config = small_study(shards, tmp_path, ways=("scratch_total",), pretrained=(f"pretrained={pretrained}",))
    (row,) = rows_of(config)
    pre = pretrain_config(shards, tmp_path)
    made = step_layers(replace(pre, encode="all_frames"), 17)
    video = step_flops([layer for layer in made if layer.part == "video"])
    worth = worth_in_clips(Path(pretrained.format(seed=0)), config.classifier(), ShardSet.open(shards))
    assert isinstance(row, FinetuneRow) and row.bonus_clips == worth
    # Six clips were seen; of a clip's six frames two were encoded then and are six now; the rest of a step costs less.
    assert 6 * step_flops(step_layers(pre, 17)) / (1.5 * video) < worth <= 6 * step_flops(step_layers(pre, 17)) / video
    assert row.config(Cell(1.0, 0), tmp_path).run.epochs == -(-(3 * 4 + worth) // 4)
    assert replace(row, bonus_clips=0).config(Cell(1.0, 0), tmp_path).run.epochs == 3


def test_compute_that_no_log_tells_is_not_none(shards: Path, pretrained: str, tmp_path: Path) -> None:
    """A converted checkpoint has no log: with nothing besides, scratch_total would be scratch under another title."""
    shutil.copytree(pretrained.format(seed=0), tmp_path / "pre", ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    config = small_study(shards, tmp_path / "study", ways=("scratch_total",), pretrained=(f"pre={tmp_path}/pre",))
    with pytest.raises(UserError, match=r"pre has no metrics\.jsonl that says how many clips .* leave it out of --ways"):
        rows_of(config)


@pytest.mark.parametrize(("blocks", "weights", "message"), [
    (0, (), r"^attentive\.blocks is 0, which is no attentive probe, and ways has attentive"),
    (1, (1.0, 0.5), r"^data\.weights is 1\.0 0\.5, but probes take every clip once; .* or linear and attentive out of ways"),
])
def test_options_that_probes_would_ignore_are_refused(
    blocks: int, weights: tuple[float, ...], message: str, shards: Path, tmp_path: Path
) -> None:
    config = small_study(shards, tmp_path, attentive=AttentiveConfig(blocks))
    config = replace(config, data=replace(config.data, weights=weights))
    with pytest.raises(UserError, match=message):
        replace(config, ways=("scratch", "linear", "attentive"))


# ---- the command ------------------------------------------------------------------------------------------------------


def test_all_rows_on_the_same_labels_and_the_record(shards: Path, pretrained: str, tmp_path: Path) -> None:
    ways = ("scratch", "scratch_total", "finetune", "linear", "attentive", "skeleton")
    config = small_study(shards, tmp_path / "study", ways=ways, pretrained=(f"pretrained={pretrained}",))
    record = label_efficiency(config)
    assert json.loads((tmp_path / "study" / "label_efficiency.json").read_text()) == record
    kinds = {row["name"]: row["kind"] for row in record["rows"]}
    assert kinds == {
        "scratch": "rival", "scratch_total": "rival", "pretrained": "ours", "pretrained_linear": "ours",
        "pretrained_attentive": "ours", "skeleton_supervised": "reference",
    }
    for row in record["rows"]:
        for cell in row["cells"]:
            assert cell["labels"] == {0.5: 5, 1.0: 6}[cell["fraction"]] and len(cell["scores"]) == 2
            assert cell["count"] == cell["clips"] == 4
            assert cell["mean"] == pytest.approx(np.mean(cell["scores"])) and cell["interval"][0] <= cell["mean"]
            assert all(seconds > 0 for seconds in cell["cpu_seconds"]) and cell["commits"] == [commit() or "unknown"]
        budgets = [(cell["steps"], cell["clips_seen"]) for cell in row["cells"]]
        if row["name"] in ("scratch", "pretrained", "skeleton_supervised"):
            assert budgets == [(3, 12), (3, 12)]
        if row["name"] == "pretrained_linear":
            assert budgets == [(0, 0), (0, 0)]
        if row["name"] == "pretrained_attentive":
            assert budgets == [(3, 15), (3, 18)]
    few, _ = record["rows"][1]["cells"]
    assert few["steps"] > 3
    (first, second) = record["rows"][2]["pretraining"]
    assert first["steps"] == second["steps"] == 2 and first["clips_seen"] == 6 and first["cpu_seconds"] > 0
    assert first["commits"] == second["commits"] == [commit() or UNKNOWN]
    assert record["seeds"] == [0, 1] and record["data"]["clips"] == {"t_train": 6, "t_val": 2, "t_test": 4}
    assert record["metric"] == "top1" and record["kind"] == "label-efficiency" and record["machine"]["cores"] == job_cores()
    pairs = {(each["row"], each["against"]) for each in record["differences"]}
    assert ("pretrained", "scratch_total") in pairs and ("pretrained", "pretrained_linear") in pairs
    assert not any(row in ("scratch", "skeleton_supervised") for row, _ in pairs)
    tokens = [json.loads(path.read_text()) for path in tmp_path.glob("study/features/*-t_train-*.json")]
    least = min(about["cpu_seconds"] / len(about["keys"]) for about in tokens)  # a clip's frozen tokens are part of the cost
    for row in record["rows"]:
        if row["name"].startswith("pretrained_"):
            assert all(seconds > least * cell["labels"] > 0 for cell in row["cells"] for seconds in cell["cpu_seconds"])
    assert not (tmp_path / "study" / "runs").exists() or not list((tmp_path / "study" / "runs").iterdir())


def test_probes_of_another_decoder_are_others(shards: Path, tmp_path: Path) -> None:
    """As fine-tuned runs are: pictures of the slow way may differ by a grey level."""
    places = set()
    for decoder in ("dali", "reference"):
        config = small_study(shards, tmp_path)
        base = ProbeConfig(data=replace(config.data, decoder=decoder))
        row = ProbeRow("row", "row", "ours", "linear", base, "pre", tmp_path / "features")
        places |= {cell_path(row, Cell(1.0, 0), tmp_path), probe_rows._place(base, Path("pre"), "t_train", row.features)}
    assert len(places) == 4


def test_cells_that_differ_little_have_files_of_their_own() -> None:
    """Names of cells with few digits are those that studies have had so far."""
    few = Cell(0.05, 3, (("lr", 1e-4), ("steps", 360), ("drop_path", 0.0)), validate=True)
    assert few.name == "0.05-3-lr0.0001-steps360-drop_path0-val" and Cell(1.0, 0).name == "1-0"
    close = [Cell(0.1234567, 0), Cell(0.1234568, 0), *(Cell(1.0, 0, (("steps", steps),)) for steps in (1234567, 1234568))]
    assert len({cell.name for cell in close}) == 4


def test_finished_runs_are_found_and_interrupted_ones_resumed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = small_study(shards, tmp_path / "study", keep_runs=True, fractions=(1.0,))
    first = label_efficiency(config)
    assert "study: 2 of 2 runs to do, 1 at a time" in caplog.text and "0 of" not in caplog.text
    (log,) = {path.parent.name: path for path in tmp_path.glob("study/runs/scratch-1-1-*/metrics.jsonl")}.values()
    assert [record["step"] for record in read_metrics(log.parent)] == [1, 2, 3]
    assert sum(record["cpu_seconds"] for record in read_metrics(log.parent)) == first["rows"][0]["cells"][0]["cpu_seconds"][1]
    with folder_lock(config.run.out, "running a study in"), pytest.raises(UserError, match="running a study in this folder"):
        label_efficiency(config)
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneRow, "run", lambda *_: pytest.fail("run again"))
        again = label_efficiency(config)
        assert again["rows"] == first["rows"]
        assert "study: all 2 runs are finished already" in caplog.text and "0 of" not in caplog.text
        with pytest.raises(UserError, match="no run is finished; start the study without --collect"):
            label_efficiency(replace(config, run=replace(config.run, out=tmp_path / "empty"), collect=True))
        more = label_efficiency(replace(config, seeds=3, fractions=(0.5, 1.0), collect=True))
    (cell,), (before,) = (found["rows"][0]["cells"] for found in (more, first))
    assert cell["scores"] == [*before["scores"], None] and cell["mean"] == before["mean"]
    (row,) = rows_of(config)
    other = FinetuneRow(row.name, row.title, row.kind, replace(config, model=replace(MODEL, depth=3)).classifier(), 3)
    assert not cell_path(other, Cell(1.0, 0), tmp_path / "study").exists()  # other settings are other runs
    technical = replace(config.classifier(), data=replace(config.data, threads=2, prefetch=2))
    assert cell_path(replace(row, base=technical), Cell(1.0, 0), tmp_path / "study").exists()  # type: ignore[type-var]


def test_a_cell_that_went_on_has_the_commits_of_all_its_code(
    shards: Path, pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was stopped, and of features that were made before."""
    ways = ("scratch", "linear")
    config = small_study(shards, tmp_path, ways=ways, pretrained=(f"a={pretrained}",), seeds=1, fractions=(1.0,))
    for made_by in ("first", "second"):
        for module in (loop, rows, probe_rows):
            monkeypatch.setattr(module, "commit", lambda made_by=made_by: made_by)
        if made_by == "first":
            with monkeypatch.context() as patch, pytest.raises(StopRequested):
                stop_after(Finetuning, 1, patch)
                label_efficiency(config)
    assert [row["cells"][0]["commits"] for row in label_efficiency(config)["rows"]] == [["first", "second"]] * 2


def test_the_chart_is_tried_before_the_runs(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "label_efficiency.png").mkdir()
    with pytest.raises(WriteFailedError, match=r"label_efficiency\.png could not be written: a folder has this name"):
        label_efficiency(small_study(shards, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["label_efficiency.png"]


def test_label_efficiency_command(shards: Path, pretrained: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["label-efficiency", "demo", "--data.shards", str(shards), "--data.train-split", "t_train", "--data.test-split",
             "t_test", "--data.num-frames", "6", "--data.size", "32", "--run.out", str(tmp_path / "out"), "--run.device", "cpu"]
    start = ["--from", f"pretrained={pretrained}", "--ways", "linear", "--seeds", "1", "--fractions", "0.5", "1"]
    assert main([*words, *start, "--search.weight-decay", "0.001", "0.1"]) == 0
    record = json.loads((tmp_path / "out" / "label_efficiency.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["pretrained_linear"] and len(record["search"]) == 2
    assert record["rows"][0]["cells"][0]["interval"] is None
    for wrong, said in (
        (["--from", "runs/pre"], "expected a name and a folder, as in pretrained=runs/pretrain-demo"),
        (["--ways", "scratch_total"], "which has the compute of the first run of --from; name one, or leave it out"),
        (["--from", f"a={tmp_path}"], "no model.safetensors; expected the folder of a finished run"),
        (["--ways", "finetune", "linear"], "--ways finetune linear: these start from pretraining runs; name one with --from"),
        ([*start, "--ways", "scratch", "finetune"], "has another network than the study; set --model.width 32 --model.depth 2"),
        ([*start, "--data.num-frames", "8"], "the encoder reads 6 frames of 32 pixels around boxes, the probe asks for 8"),
        (["--ways", "scratch", "--data.val-split", "t_train", "--search.lr", "0.1", "0.2"],
         "clips of the validation split 't_train' are in 't_train' too"),
        (["--fractions", "0.5", "0.5"], "fractions: expected one or more, each once"),
        (["--ways", "scratch", "--data.test-split", "t_val", "--fractions", "0.01", "1", "--search.lr", "0.1", "0.2"],
         "or search no share of the labels as small as 0.01 (--search.fractions)"),
        (["--ways", "scratch", "--data.weights", "0.2", "--fractions", "0.01", "1"], "of the labels an epoch takes 1 of 5"),
    ):
        capsys.readouterr()
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1] and len(list(tmp_path.glob("out/cells/*"))) == 6


def test_doubts_about_several_runs_are_printed_once(caplog: pytest.LogCaptureFixture) -> None:
    runs = {Path(f"pre-{seed}"): PRETRAIN["demo"]() for seed in range(3)}
    config = replace(LABEL_EFFICIENCY["demo"](), ways=("linear",))
    require_fit(runs, replace(config, data=replace(config.data, size=96)))
    (said,) = caplog.messages
    assert said.startswith("pre-0 and 2 more: the encoder reads 16 frames of 64 pixels around boxes")
    assert said.endswith("16 frames of 96 around boxes; its own are --data.size 64")


@pytest.mark.parametrize("preset", sorted(PRETRAIN.keys() & LABEL_EFFICIENCY.keys()))
def test_presets_of_pretraining_and_study_fit(preset: str, caplog: pytest.LogCaptureFixture) -> None:
    """RGB alone is cropped around boxes, also by an encoder whose pretraining was around joints; a study around joints is
    doubtful."""
    runs, config = {Path("pre"): PRETRAIN[preset]()}, LABEL_EFFICIENCY[preset]()
    assert (runs[Path("pre")].data.crop, config.data.crop) == ("joints", "boxes")
    require_fit(runs, config)
    assert not caplog.messages
    require_fit(runs, replace(config, data=replace(config.data, crop="joints")))
    assert caplog.messages[0].endswith("around joints; its own are --data.crop boxes")


def test_several_sets_are_studied_as_one(shards: Path, pretrained: str, tmp_path: Path) -> None:
    """Clips of equal names in two sets have features of their own."""
    shard_set(tmp_path / "more", NUM_CLIPS, size=64, first_seed=50)
    keys = [f"clip{i:05d}" for i in range(NUM_CLIPS)]
    edit_manifest(tmp_path / "more", splits={"t_train": keys[:6], "t_val": keys[6:8], "t_test": keys[8:]})
    config = small_study(shards, tmp_path / "study", ways=("linear",), pretrained=(f"pretrained={pretrained}",), seeds=1)
    config = replace(config, data=replace(config.data, shards=f"{shards},{tmp_path}/more"), fractions=(1.0,))
    (cell,) = label_efficiency(config)["rows"][0]["cells"]
    assert cell["labels"] == 12
    (row,) = rows_of(config)
    assert isinstance(row, ProbeRow)
    found = open_data(config.data)
    read = read_features(row.base, Path(pretrained.format(seed=0)), "t_train", row.features, found, found.rows("t_train"))
    assert read.keys == found.names(found.rows("t_train")) and not read.lost
    assert len(np.unique(read.features_nD, axis=0)) == 12


def test_results_of_other_weights_are_made_again(shards: Path, pretrained: str, tmp_path: Path, caplog) -> None:
    """A pretraining run that was started again in its folder is another run, though the folder's name is the same."""
    pre = tmp_path / "pre"
    shutil.copytree(pretrained.format(seed=0), pre)
    config = small_study(
        shards, tmp_path / "study", ways=("finetune", "linear"), pretrained=(f"pretrained={pre}",), seeds=1, fractions=(1.0,)
    )
    first = label_efficiency(config)
    features = [path.read_bytes() for path in sorted(tmp_path.glob("study/features/*.npy"))]
    shutil.rmtree(pre)
    shutil.copytree(pretrained.format(seed=1), pre)
    with pytest.raises(UserError, match="no run is finished; start the study without --collect"):
        label_efficiency(replace(config, collect=True))
    assert "its shards or its pretraining run have been replaced since; it does not count" in caplog.text
    second = label_efficiency(config)
    assert [cell["cpu_seconds"] for row in first["rows"] for cell in row["cells"]] != [
        cell["cpu_seconds"] for row in second["rows"] for cell in row["cells"]
    ]
    assert [path.read_bytes() for path in sorted(tmp_path.glob("study/features/*.npy"))] != features
    torn = [tmp_path / "study" / kind / "x.npy.1.tmp" for kind in ("features", "cells")]  # of a process that was killed
    for path in torn:
        path.touch()
    assert label_efficiency(replace(config, collect=True))["rows"] == second["rows"] and all(path.exists() for path in torn)
    assert label_efficiency(config)["rows"] == second["rows"] and not any(path.exists() for path in torn)


@pytest.mark.parametrize("steps", [2, None])
def test_a_run_of_other_weights_is_not_gone_on_with(
    steps: int | None, shards: Path, pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it was interrupted after some steps, nor where it is finished and its folder was kept."""
    pre = tmp_path / "pre"
    shutil.copytree(pretrained.format(seed=0), pre)
    config = small_study(
        shards, tmp_path / "study", ways=("finetune",), pretrained=(f"pretrained={pre}",), seeds=1, fractions=(1.0,),
        keep_runs=True,
    )
    with monkeypatch.context() as patch, pytest.raises(StopRequested) if steps else contextlib.nullcontext():
        stop_after(Finetuning, steps, patch)
        label_efficiency(config)
    shutil.rmtree(pre)
    shutil.copytree(pretrained.format(seed=1), pre)
    label_efficiency(config)
    label_efficiency(replace(config, run=replace(config.run, out=tmp_path / "fresh")))
    finished = tmp_path.glob("study/runs/*/result.json")
    newest = max(finished, key=lambda path: path.stat().st_mtime_ns).parent
    (fresh,) = tmp_path.glob("fresh/runs/*")
    assert weights_hash(newest) == weights_hash(fresh)


def test_a_search_on_other_classes_is_refused(shards: Path, pretrained: str, tmp_path: Path) -> None:
    """Class 0 of the validation split is another one than class 0 of the training split: a probe would choose by chance."""
    shutil.copytree(shards, tmp_path / "shards")
    edit_manifest(tmp_path / "shards", split_classes={"t_val": ["e", "d", "c", "b", "a"]})
    config = small_study(
        tmp_path / "shards", tmp_path / "study", ways=("linear",), pretrained=(f"pre={pretrained}",), seeds=1,
        search=SearchConfig(weight_decay=(0.001, 0.1)),
    )
    with pytest.raises(UserError, match=r"split 't_val' has other classes than split 't_train'"):
        label_efficiency(config)
    assert not (tmp_path / "study" / "features").exists()


def test_every_preset_can_be_studied() -> None:
    assert LABEL_EFFICIENCY.keys() == FINETUNE.keys()
    for name, make in LABEL_EFFICIENCY.items():
        assert make().classifier().data == FINETUNE[name]().data and "label-efficiency" in make().run.out.name


@pytest.mark.parametrize(("split", "said"), [("t_test", 0), ("t_some", 1)])
def test_test_clips_that_probes_are_fitted_to_are_reported(
    split: str, said: int, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A study of probes alone has no run that would say so."""
    root = shutil.copytree(shards, tmp_path / "shards")
    splits = {name: list(keys) for name, keys in ShardSet.open(shards).manifest.splits.items()}
    edit_manifest(root, splits={**splits, "t_some": [*splits["t_train"][4:], *splits["t_test"]]})
    config = small_study(root, tmp_path, ways=("linear",))
    about(replace(config, data=replace(config.data, test_split=split)), ShardSet.open(root))
    assert caplog.text.count("2 of 6 clips of the test split 't_some' are trained or validated on: its accuracy") == said


@pytest.mark.parametrize(("changes", "kind"), [
    ({}, "ours"), ({"target": TargetConfig(1)}, "ours"),
    ({"target": TargetConfig(2, shuffle_skeletons=True)}, "control"),
    ({"target": TargetConfig(2, teacher="encoder"), "ema": EmaConfig(1.0, 1.0)}, "control"),
    ({"target": TargetConfig(2, teacher="encoder")}, "rival"), ({"target": TargetConfig(2, kind="joints")}, "rival"),
])
def test_what_a_row_is_in_the_comparison_follows_from_its_targets(
    changes: dict[str, Any], kind: str, shards: Path, pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(pretrain_config(shards, tmp_path), **changes)
    monkeypatch.setattr("svdata2vec.studies.label_efficiency.published_config", lambda *_: made)
    (row,) = rows_of(small_study(shards, tmp_path, ways=("linear",), pretrained=(f"pretrained={pretrained}",)))
    assert row.kind == kind


def test_rows_of_one_name_are_refused(shards: Path, pretrained: str, tmp_path: Path) -> None:
    """The figures of one would stand for both."""
    for ways, names in ((("scratch", "finetune"), ("scratch",)), (("linear", "finetune"), ("a", "a_linear"))):
        starts = tuple(f"{name}={pretrained}" for name in names)
        with pytest.raises(UserError, match=rf"two rows of the study are named {names[-1]}; give the runs of --from other"):
            label_efficiency(small_study(shards, tmp_path, ways=ways, pretrained=starts))
    assert not (tmp_path / "cells").exists()


def test_images_are_the_start_of_what_has_no_other(shards: Path, pretrained: str, tmp_path: Path) -> None:
    """Another file of the same name is another start."""
    file = tmp_path / "resnet.pt"
    model = replace(MODEL, init=file)
    ways = ("scratch", "finetune", "skeleton")
    rows = rows_of(small_study(shards, tmp_path, ways=ways, model=model, pretrained=(f"pre={pretrained}",)))
    assert [row.base.model.init for row in rows if isinstance(row, FinetuneRow)] == [file, None, None]
    made = []
    for content in (b"one", b"another"):
        file.write_bytes(content)
        made.append([made_of(row, 0, "") for row in rows])
    assert [old == new for old, new in zip(*made, strict=True)] == [False, True, True]


def test_every_way_has_what_can_be_searched_for_it(shards: Path, pretrained: str, tmp_path: Path) -> None:
    for way in ("scratch", "scratch_total", "finetune", "linear", "attentive", "skeleton"):
        rows = rows_of(small_study(shards, tmp_path, ways=(way,), pretrained=(f"pretrained={pretrained}",)))
        assert [set(row.grid) for row in rows] == [{name for name, ways in SEARCHED.items() if way in ways}]


def test_validation_clips_are_held_out_where_there_is_no_split_for_them(
    shards: Path, pretrained: str, tmp_path: Path
) -> None:
    """The set's own split is tested on instead of the test split; elsewhere some labelled clips are, and not trained on."""
    own = small_study(shards, tmp_path)
    none = replace(own, data=replace(own.data, train_split="t_train", test_split="t_val"))
    cell = Cell(1.0, 0, validate=True)
    row = FinetuneRow("row", "row", "rival", own.classifier(), 3)
    config = row.config(cell, tmp_path / "run")
    assert (config.data.test_split, config.eval_every) == ("t_val", 0)
    other = replace(row, base=none.classifier())
    other = replace(other, base=replace(other.base, data=replace(none.data, val_fraction=0.2)))
    config = other.config(cell, tmp_path / "run")
    assert config.data.test_split == "t_val" and config.eval_every == config.run.epochs > 0
    assert config.data.val_fraction == 0.2 and other.config(replace(cell, validate=False), tmp_path).data.val_fraction == 0.1
    outcome = run_cell(other, cell, tmp_path)
    assert outcome["labels"] == 5 and outcome["steps"] == 3  # as many as asked for, of the clips that are left
    assert outcome["count"] == outcome["clips"] == 1  # that was held out; the test split has two
    filled = replace(other, base=replace(other.base, run=replace(other.base.run, batch_size=6)))
    assert filled.config(cell, tmp_path / "run").run.batch_size == outcome["labels"]
    for probed, count in ((own, 6), (none, outcome["labels"])):
        (probe,) = rows_of(replace(probed, ways=("linear",), pretrained=(f"pretrained={pretrained}",)))
        for job in probe.before([cell]):
            job()
        assert run_cell(probe, cell, tmp_path)["labels"] == count


def test_a_probe_sees_every_view_of_a_clip(shards: Path, pretrained: str, tmp_path: Path) -> None:
    config = small_study(shards, tmp_path, ways=("attentive",), pretrained=(f"pretrained={pretrained}",))
    (row,) = rows_of(replace(config, data=replace(config.data, views=2)))
    assert isinstance(row, ProbeRow)
    cell = Cell(1.0, 0)
    for job in row.before([cell]):
        job()
    outcome = run_cell(row, cell, tmp_path)
    assert outcome["labels"] == 6 and outcome["clips_seen"] == outcome["steps"] * 12 > 0


def test_features_are_those_of_a_probe(shards: Path, pretrained: str, tmp_path: Path) -> None:
    config = small_study(shards, tmp_path, ways=("attentive",), pretrained=(f"pretrained={pretrained}",))
    (row,) = rows_of(replace(config, data=replace(config.data, views=2)))
    assert isinstance(row, ProbeRow)
    start, found = Path(pretrained.format(seed=1)), ShardSet.open(shards)
    make_features(row.base, start, "t_train", row.features)
    rows = found.rows("t_train")[[4, 1]]
    read = read_features(row.base, start, "t_train", row.features, found, rows)
    runtime = Runtime(torch.device("cpu"), 0, 1, bf16=False)
    made = split_features(row.base, load_encoder(start), found, "t_train", rows, runtime)
    assert read.keys == made.keys == ["clip00004", "clip00001"] and read.labels_n.tolist() == made.labels_n.tolist()
    np.testing.assert_allclose(read.features_nD, made.features_nD, rtol=1e-4, atol=1e-5)
    assert read.tokens_nvTD is not None and made.tokens_nvTD is not None
    np.testing.assert_allclose(read.tokens_nvTD, made.tokens_nvTD, rtol=1e-4, atol=1e-5)
