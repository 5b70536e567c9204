"""Accuracies with their intervals: against simulations and closed forms; the output of `evaluate`; scores that are NaN."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shards_data import damaged, edit_manifest, write_video
from tiny import NUM_CLIPS, finetune_config

from svdata2vec.cli.main import main
from svdata2vec.config.presets import FINETUNE
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.evaluation.evaluate import check_lost, evaluate_run, over_split
from svdata2vec.evaluation.features import embed
from svdata2vec.evaluation.metrics import measure
from svdata2vec.evaluation.predict import predict
from svdata2vec.evaluation.probe import probe
from svdata2vec.model.classifier import Classifier
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.reports.report import write_report
from svdata2vec.reports.results import class_rows, confusion_rows, summary
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import labelled_rows
from svdata2vec.runs.intervals import NORMAL, STUDENT, mean_of_shares, mean_over_seeds, wilson
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.manifest import Manifest
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import finetune


@pytest.fixture(scope="module")
def classifier(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "run"
    finetune(replace(finetune_config(tiny_shard_folder, out, epochs=1, seed=5), modality="skeleton"))
    return out


def test_wilson_s_interval_holds_the_shares_whose_score_test_passes() -> None:
    """Its bounds are the two shares p with |hits/count - p| = 1.96 standard errors of p itself."""
    for hits, count in ((0, 10), (7, 10), (10, 10), (823, 1000)):
        for bound in wilson(hits, count):
            expected = NORMAL * math.sqrt(bound * (1 - bound) / count)
            assert abs(hits / count - bound) == pytest.approx(expected, abs=1e-7)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # a table's values


@pytest.mark.parametrize(
    ("shares", "counts", "most"),
    [
        ((0.83,), (152,), 0.97),
        ((0.1, 0.3, 0.5, 0.8, 0.9), (10, 30, 11, 100, 20), 0.975),
        ((0.02, 0.5, 1.0), (4, 7, 3), 1.0),  # few clips, and classes at the ends: rather too wide than too narrow
    ],
)
def test_intervals_hold_the_truth_in_95_of_100_draws(
    shares: tuple[float, ...], counts: tuple[int, ...], most: float
) -> None:
    draws = np.random.default_rng(0).binomial(counts, shares, size=(4000, len(counts))).tolist()
    found = [mean_of_shares(list(zip(hits, counts, strict=True))) for hits in draws]
    held = np.mean([low <= np.mean(shares) <= high for low, high in found])
    assert 0.935 < held <= most
    if len(counts) == 1:
        assert found[0] == pytest.approx(wilson(draws[0][0], counts[0]))


def test_the_interval_over_seeds_is_student_s() -> None:
    mean, (low, high) = mean_over_seeds([0.70, 0.72, 0.77])
    error = np.std([0.70, 0.72, 0.77], ddof=1) / math.sqrt(3)
    assert mean == pytest.approx(0.73) and (high - low) / 2 == pytest.approx(4.3027 * error)
    for freedom in (*range(1, 31), 40, 300):  # by integration of the density
        values = [0.0, *([1.0] * freedom)]
        mean, (low, _) = mean_over_seeds(values)
        quantile = (mean - low) / (np.std(values, ddof=1) / math.sqrt(len(values)))
        x = np.linspace(0, quantile, 20_001)
        log_norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        density = np.exp(log_norm - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
        assert np.trapezoid(density, x) == pytest.approx(0.475, abs=2e-4)
    assert len(STUDENT) == 30


def test_the_figures_of_an_evaluation_have_intervals() -> None:
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    scores = np.eye(4)[[0, 0, 0, 1, 1, 2, 1, 1, 1, 0]]
    metrics = measure(scores, labels, clips=12)
    assert (metrics.count, metrics.clips, metrics.top1) == (10, 12, 0.6)
    assert metrics.intervals["top1"] == pytest.approx(wilson(6, 10))
    assert metrics.intervals["mean_class"] == pytest.approx(mean_of_shares([(3, 6), (3, 3), (0, 1)]))
    assert metrics.intervals["mean_class"][0] < metrics.mean_class == 0.5 < metrics.intervals["mean_class"][1]
    result = {**metrics.to_dict(), "classes": ["a", "b", "c", "d"]}
    assert [row[:2] for row in class_rows(result)] == [("c", "1"), ("a", "6"), ("b", "3"), ("d", "0")]
    assert confusion_rows(result) == [("a", "b", "2 of 6"), ("a", "c", "1 of 6"), ("c", "a", "1 of 1")]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_no_class_0(value: float) -> None:
    scores = np.eye(3)
    scores[1, 2] = value
    with pytest.raises(UserError, match=r"^the network's outputs are not finite for 1 of 3 clips: its weights are damaged"):
        measure(scores, np.zeros(3, int))


def test_a_network_of_nan_is_one_line_that_names_a_clip(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In an evaluation and in features alike."""
    weights = load_file(classifier / "model.safetensors")
    weights["encoder.norm.weight"][3] = torch.nan
    (tmp_path / "run").mkdir()
    save_file(weights, tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "model.json").write_bytes((classifier / "model.json").read_bytes())
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f"not finite for {NUM_CLIPS} of {NUM_CLIPS} clips, the first is clip00000: " in told.err
    with pytest.raises(UserError, match="not finite for 12 of 12 clips, the first is clip00000"):
        embed(tmp_path / "run", "all", tmp_path / "features.npy", device="cpu")


def test_predict_names_no_class_where_there_is_no_number(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1))
    write_video(tmp_path / "video.mp4", 8)
    monkeypatch.setattr(Classifier, "forward", lambda *_: torch.full((1, 5), torch.nan))
    with pytest.raises(UserError, match=r"not finite for 1 of 1 clips, the first is .*video\.mp4"):
        predict(tmp_path / "run", tmp_path / "video.mp4", whole_picture=True, device="cpu")


def test_a_result_says_what_it_is_about(classifier: Path, tiny_shard_folder: Path) -> None:
    result = json.loads((classifier / "result.json").read_text())
    manifest = Manifest.load(tiny_shard_folder)
    about = {"dataset": manifest.dataset, "fingerprint": manifest.fingerprint, "split": "all", "seed": 5, "metric": "top1"}
    again = evaluate_run(classifier, device="cpu")
    for found in (result, again, read_card(classifier)["evaluation"]):
        assert {name: found[name] for name in about} == about and found["date"].startswith("20")
        assert found["count"] == found["clips"] == NUM_CLIPS and found["intervals"] == result["intervals"]


def test_trained_clips_and_missing_shards_are_reported(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A test's figures have no such remark; a run whose shards have moved says which option names them."""
    shutil.copytree(tiny_shard_folder, tmp_path / "shards")
    config, run = finetune_config(tmp_path / "shards", tmp_path / "run", epochs=1), tmp_path / "run"
    data = replace(config.data, train_split="all[:50%]", test_split="all[50%:]")
    finetune(replace(config, data=data, label_fraction=0.5))
    assert evaluate_run(run, device="cpu")["count"] and "trained or validated on" not in caplog.text
    evaluate_run(run, split="all", device="cpu")
    halves = [len(ShardSet.open(tiny_shard_folder).rows(split)) for split in ("all[:50%]", "all[50%:]")]
    known = len(labelled_rows(ShardSet.open(tiny_shard_folder), "all[:50%]", 0.5, config.run.seed))
    assert 0 < known < halves[0]
    assert f"{known} of {NUM_CLIPS} clips of the test split 'all' are trained or validated on: its accuracy" in caplog.text
    (tmp_path / "shards").rename(tmp_path / "moved")
    gone = rf"shards: no such folder; expected the shards that {run} was trained on: .* say with --shards where they are"
    for look in (lambda: evaluate_run(run), lambda: embed(run, "all", tmp_path / "a.npy", device="cpu")):
        with pytest.raises(UserError, match=gone):
            look()
    assert evaluate_run(run, str(tmp_path / "moved"), device="cpu")["count"] == halves[1]


def test_evaluate_prints_what_fits_a_terminal(
    classifier: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["evaluate", str(classifier), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    result = evaluate_run(classifier, device="cpu")
    assert all(len(line) <= 70 for line in text.splitlines() if str(classifier) not in line)
    low, high = (100 * bound for bound in result["intervals"]["top1"])
    assert f"top-1           {100 * result['top1']:.1f} % ({low:.1f} to {high:.1f})" in text
    assert f"{NUM_CLIPS} clips of split all" in text and "seed 5" in text and "Wilson" in text
    assert main(["evaluate", str(classifier), "--device", "cpu", "--json"]) == 0
    lines = capsys.readouterr().out
    assert json.loads(lines) == result and len(lines.splitlines()) == len(result) + 2


def test_evaluate_averages_over_as_many_views_as_it_is_asked_for(
    classifier: Path, tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As a run does that was trained alike and tests with them."""
    config = replace(finetune_config(tiny_shard_folder, tmp_path, epochs=1, seed=5), modality="skeleton")
    tested = finetune(replace(config, data=replace(config.data, views=3)))
    found = {views: evaluate_run(classifier, views=views, device="cpu") for views in (None, 1, 3)}
    assert found[3]["confusion"] == tested["confusion"] and found[3]["views"] == 3
    assert found[None] == found[1] and found[1]["views"] == 1
    assert main(["evaluate", str(classifier), "--device", "cpu", "--views", "3"]) == 0
    assert "mean of 3 views of a clip" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(classifier), "--views", "0"]) == 2
    assert "views is 0" in capsys.readouterr().err


def test_a_summary_of_many_classes_stays_short() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(0, 3, (155, 155))
    names = [f"an action with a very long name, number {number}" for number in range(155)]
    labels, predicted = (np.repeat(indices.ravel(), count.ravel()) for indices in np.indices((155, 155)))
    about = {"run": "runs/rgb", "dataset": "uav", "fingerprint": "f" * 64, "split": "test", "seed": 0, "date": "2026-01-01"}
    result: dict[str, Any] = {**about, "views": 1, "classes": names, **measure(np.eye(155)[predicted], labels).to_dict()}
    text = summary(result, 80)
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) < 50
    assert "and 140 more classes: --json has all" in text and "more confusions" in text


def test_a_protocol_has_its_metric() -> None:
    metrics = {name: preset().data.metric for name, preset in FINETUNE.items()}
    assert {name for name, metric in metrics.items() if metric == "mean_class"} == {
        "smarthome-cs", "smarthome-cv1", "smarthome-cv2"
    }


def test_lost_clips_are_reported_with_every_result(
    tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """By fine-tuning, evaluation, probe and features; on the card and in the report."""
    root = damaged(tiny_shard_folder, tmp_path / "shards", 7)
    base = finetune_config(root, tmp_path / "run", epochs=1)
    result = finetune(base)
    assert (result["count"], result["clips"]) == (11, 12)
    assert "split 'all': 1 of 12 clips are left out, they could not be read" in caplog.messages
    found = probe(ProbeConfig(data=base.data, pretrained=base.run.out, out=tmp_path / "probe", device="cpu", neighbours=3))
    assert [(figures["count"], figures["clips"]) for figures in (found, found["knn"])] == [(11, 12)] * 2
    assert found["labels"] == 11  # of the training clips one is lost too
    for folder in (base.run.out, tmp_path / "probe"):
        card = read_card(folder)["evaluation"]
        assert (card["count"], card["clips"]) == (11, 12)
        assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
        assert "11 of 12 clips" in capsys.readouterr().out
    write_report([base.run.out, tmp_path / "probe"], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<td>11 of 12</td>") == 5  # classifier, and four of the probe
    words = ["embed", str(base.run.out), "--split", "all", "--out", str(tmp_path / "a.npy"), "--device", "cpu"]
    assert main(words) == 0
    shown, index = json.loads(capsys.readouterr().out), json.loads((tmp_path / "a.npy.json").read_text())
    assert shown["lost"] == index["lost"] == ["clip00007"] and shown["clips"] == len(index["keys"]) == 11


def test_too_many_lost_clips_are_no_result(
    classifier: Path, tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = damaged(tiny_shard_folder, tmp_path / "shards", 3, 7)
    words = ["evaluate", str(classifier), "--shards", str(root), "--device", "cpu"]
    assert main(words) == 2
    assert "2 of 12 clips are unusable, more than the allowed 1.00%" in capsys.readouterr().err


def test_a_run_whose_test_clips_are_lost_is_tested_when_more_are_allowed(
    tiny_shard_folder: Path, tmp_path: Path
) -> None:
    """It was trained to its end: nothing is trained again."""
    root = damaged(tiny_shard_folder, tmp_path / "shards", 3, 7)
    base = finetune_config(root, tmp_path / "run", epochs=1)
    splits = replace(base.data, train_split="train", test_split="test")
    edit_manifest(root, splits={"train": ["clip00000", "clip00001", "clip00002", "clip00004"],
                                "test": ["clip00003", "clip00005", "clip00007"]})
    with pytest.raises(UserError, match="2 of 3 clips are unusable"):
        finetune(replace(base, data=splits))
    assert not (base.run.out / "result.json").exists()
    before = (base.run.out / "metrics.jsonl").read_bytes()
    result = finetune(replace(base, data=replace(splits, max_bad_rate=0.7)))
    assert (result["count"], result["clips"]) == (1, 3) and (base.run.out / "metrics.jsonl").read_bytes() == before


def test_the_limit_holds_over_all_processes_together(tiny_shard_folder: Path) -> None:
    """Each lost a clip, which alone it may; the gathered split lacks two."""
    with ClipLoader(ShardSet.open(tiny_shard_folder), "all", batch_size=4, world_size=2) as loader:
        check_lost(loader, 12)
        check_lost(loader, 11)
        with pytest.raises(UserError, match=r"^split 'all': 2 of 12 clips are unusable, more than the allowed 1.00%; run"):
            check_lost(loader, 10)


def test_views_that_are_lost_are_no_clips(tiny_shard_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ClipLoader(ShardSet.open(tiny_shard_folder), "all", PlanConfig(views=3)) as loader:
        check_lost(loader, 33)
        assert caplog.messages[-1] == "split 'all': 3 of 36 views of clips are left out, they could not be read"
        with pytest.raises(UserError, match=r"6 of 36 views of clips are unusable, more than the allowed 1\.00%"):
            check_lost(loader, 30)


def test_processes_that_find_other_clips_measure_nothing(
    tiny_shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clips would count twice, and as many not at all."""
    monkeypatch.setattr(Runtime, "gather", lambda _, mine: [mine, "of another packing"])
    runtime = Runtime(torch.device("cpu"), 0, 2, bf16=False)
    with (
        ClipLoader(ShardSet.open(tiny_shard_folder), "all", batch_size=4, world_size=2) as loader,
        pytest.raises(UserError, match=r"the processes find different clips there; pack them once, and copy the folder"),
    ):
        over_split(loader, runtime, lambda batch: batch.label_B)
