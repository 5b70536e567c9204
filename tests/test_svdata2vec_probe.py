"""Probes and features of frozen encoders: the mathematics on made-up features, the commands on tiny runs."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preloaded import command, elastic
from shards_data import edit_manifest
from tiny import MODEL, NUM_CLIPS, finetune_config, pretrain_config, tiny_shards
from torch.nn import functional as F

from svdata2vec.cli.main import main
from svdata2vec.config.checked_json import read_sealed, sealed
from svdata2vec.config.presets import FINETUNE
from svdata2vec.config.probe import PROBE, AttentiveConfig, ProbeConfig
from svdata2vec.config.schema import Modality
from svdata2vec.evaluation import attentive
from svdata2vec.evaluation import probe as probing
from svdata2vec.evaluation.attentive import attentive_scores, fit_attentive
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.features import Features, embed, load_encoder
from svdata2vec.evaluation.probe import fit_linear, knn_scores, probe
from svdata2vec.model.classifier import Classifier
from svdata2vec.reports.report import write_report
from svdata2vec.reports.results import accuracies, by_probe
from svdata2vec.runs.card import model_card
from svdata2vec.runs.published import load_published, publish
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain


@pytest.fixture(scope="module")
def pretrained(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run of a few steps."""
    out = tmp_path_factory.mktemp("probe") / "pretrain"
    pretrain(pretrain_config(tiny_shard_folder, out, epochs=1))
    return out


def probe_config(shards: Path, out: Path, run: Path, **changes: Any) -> ProbeConfig:
    data = finetune_config(shards, out).data
    few = AttentiveConfig(steps=5)
    return ProbeConfig(data=data, pretrained=run, out=out, batch_size=5, device="cpu", neighbours=3, attentive=few, **changes)


def made_up(count: int, seed: int, classes: int = 3, width: int = 6, noise: float = 0.3) -> Features:
    """Clusters around one direction per class, far from zero and badly scaled."""
    rng = np.random.default_rng(seed)
    centres = np.eye(classes, width) * 2 + 5
    labels = np.arange(count) % classes
    features = (centres[labels] + noise * rng.normal(size=(count, width))) * np.array([1, 100, 0.01, 1, 1, 1])[:width]
    return Features([f"clip{i}" for i in range(count)], features.astype(np.float32), labels)


def test_linear_probe_is_the_minimum_of_the_convex_loss() -> None:
    train, weight_decay = made_up(60, seed=0), 1e-2
    linear = fit_linear(train, 3, weight_decay, 500)
    features, labels = torch.from_numpy(train.features_nD).double(), torch.from_numpy(train.labels_n)
    mean, std = features.mean(0), features.std(0, correction=0)
    weight = (linear.weight.double() * std).detach().requires_grad_()
    bias = (linear.bias.double() + linear.weight.double() @ mean).detach().requires_grad_()
    loss = F.cross_entropy((features - mean) / std @ weight.T + bias, labels) + weight_decay / 2 * weight.square().sum()
    loss.backward()
    assert loss.item() < 0.5 * math.log(3)
    assert weight.grad is not None and weight.grad.abs().max() < 1e-4
    assert bias.grad is not None and bias.grad.abs().max() < 1e-4


def test_linear_probe_recognises_separable_classes() -> None:
    linear = fit_linear(made_up(60, seed=0), 3, 1e-3, 200)
    test = made_up(30, seed=1)
    predicted = linear(torch.from_numpy(test.features_nD)).argmax(1).numpy()
    assert (predicted == test.labels_n).mean() > 0.9


def test_nearest_neighbours_vote_with_the_weight_of_their_cosine() -> None:
    train = Features(list("abcd"), np.array([[1, 0], [0, 2], [3, 3], [-1, 0]], np.float32), np.array([0, 1, 2, 1]))
    test = Features(["q"], np.array([[10, 1]], np.float32), np.array([0]))
    cosines = {0: 10 / math.sqrt(101), 2: 11 / math.sqrt(101) / math.sqrt(2), 1: 1 / math.sqrt(101)}
    votes = {label: math.exp(cosine / 0.5) for label, cosine in cosines.items()}
    expected = [votes[label] / sum(votes.values()) for label in range(3)]
    np.testing.assert_allclose(knn_scores(train, test, 3, 3, 0.5)[0], expected, rtol=1e-5)
    only_nearest = knn_scores(train, test, 3, 1, 0.5)[0]
    np.testing.assert_allclose(only_nearest, [1, 0, 0], atol=1e-6)


def test_neighbours_on_the_other_side_vote_too() -> None:
    """Cosines of -0.6 at the lowest temperature: exp(-160), which float32 does not hold."""
    angles = np.array([0.0, 0.002, 0.004]) + math.acos(-0.6)
    train = Features(list("abc"), np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), np.array([0, 1, 1]))
    votes = np.exp((np.cos(angles) + 0.6) / 0.01)
    scores_c = knn_scores(train, Features(["q"], np.array([[1, 0]], np.float32), np.array([1])), 2, 3, 0.01)[0]
    np.testing.assert_allclose(scores_c, np.array([votes[0], votes[1] + votes[2]]) / votes.sum(), rtol=1e-3)


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (3, 0.07), (3, 0.01)])
def test_classes_without_a_vote_follow_by_their_nearest_clip(neighbours: int, temperature: float) -> None:
    """Whatever their numbers; one without a clip comes last. Votes that underflow are as good as none."""
    rng = np.random.default_rng(0)
    train, test = (Features([], rng.normal(size=(n, 6)).astype(np.float32), np.arange(n) % 8) for n in (40, 30))
    unit, units = (each.features_nD / np.linalg.norm(each.features_nD, axis=1, keepdims=True) for each in (train, test))
    for scores_c, cosine_N in zip(knn_scores(train, test, 9, neighbours, temperature), units @ unit.T, strict=True):
        closest = [cosine_N[train.labels_n == label].max(initial=-2) for label in range(9)]
        voted = set(train.labels_n[np.argsort(-cosine_N)[:neighbours]])
        ranked = np.argsort(-scores_c, kind="stable").tolist()
        assert set(ranked[: len(voted)]) == voted and ranked[-1] == 8
        assert ranked[len(voted) :] == sorted(set(range(9)) - voted, key=lambda label: -closest[label])


def test_more_neighbours_than_clips_and_equal_cosines_are_no_trouble() -> None:
    train = Features(list("ab"), np.ones((2, 4), np.float32), np.array([0, 1]))
    scores = knn_scores(train, train, 2, 20, 0.07)
    np.testing.assert_allclose(scores, 0.5, atol=1e-6)
    nobody: Any = None
    few = ProbeConfig(attentive=AttentiveConfig(blocks=0), neighbours=20)
    _, found = probing.measure_probes(few, made_up(7, 0), made_up(4, 1), 3, 4, nobody, nobody)
    assert [how for how, _ in by_probe(found)] == ["linear probe", "nearest neighbour", "7 nearest neighbours"]


@pytest.mark.parametrize("modality", ["rgb", "skeleton", "both"])
def test_probe_writes_results_and_a_classifier(
    pretrained: Path, tiny_shard_folder: Path, tmp_path: Path, modality: Modality
) -> None:
    config = probe_config(tiny_shard_folder, tmp_path / "probe", pretrained, modality=modality)
    result = probe(config)
    assert read_sealed(config.out / "result.json") == result
    assert result["kind"] == "probe" and result["count"] == NUM_CLIPS and result["labels"] == NUM_CLIPS
    assert 0 <= result["top1"] <= result["top5"] == 1.0  # five classes
    assert np.array(result["knn"]["confusion"]).sum() == NUM_CLIPS
    weights, card = load_published(config.out)
    assert card["kind"] == "probe" and card["modality"] == modality and card["evaluation"]["top1"] == result["top1"]
    assert card["pretrained_on"]["dataset"] == "factory" and card["pretrained_on"]["clips"] == NUM_CLIPS
    assert weights["head.fc.weight"].shape == (5, 32)
    before, _ = load_published(pretrained)
    for name, tensor in weights.items():
        if name.startswith("encoder."):
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    again = evaluate_run(config.out, device="cpu")
    assert (again["top1"], again["confusion"]) == (result["top1"], result["confusion"])


def test_a_finished_probe_is_not_repeated_and_other_settings_are_refused(
    pretrained: Path, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    config = probe_config(tiny_shard_folder, tmp_path / "probe", pretrained, modality="skeleton")
    first = probe(config)
    written = (config.out / "model.safetensors").stat().st_mtime_ns
    assert probe(config) == first
    assert (config.out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"holds a finished run with other settings \(neighbours 3 -> 4\)"):
        probe(replace(config, neighbours=4))


def test_a_share_of_the_labels_is_a_share_of_the_clips(pretrained: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = probe_config(tiny_shard_folder, tmp_path / "p", pretrained, modality="skeleton", label_fraction=0.4)
    result = probe(config)
    assert result["labels"] == 5 and result["count"] == NUM_CLIPS
    assert load_published(config.out)[1]["trained_on"]["clips"] == 5


def test_probing_needs_a_run_that_fits(pretrained: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = probe_config(tiny_shard_folder, tmp_path / "probe", pretrained)
    with pytest.raises(UserError, match="give its folder with --from RUN"):
        probe(replace(config, pretrained=None))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        probe(replace(config, pretrained=tmp_path))
    with pytest.raises(UserError, match=r"the encoder reads 6 frames of 32 pixels around boxes.*asks for 7 frames of 32"):
        probe(replace(config, data=replace(config.data, num_frames=7)))
    with pytest.raises(UserError, match=r"; set --data\.num-frames 6 --data\.size 32 --data\.crop boxes$"):
        probe(replace(config, data=replace(config.data, num_frames=7, size=64)))
    with pytest.raises(UserError, match=r"^--data\.weights is 0\.5, but probes take every clip once; leave it out$"):
        probe(replace(config, data=replace(config.data, weights=(0.5,))))
    with pytest.raises(UserError, match=r"temperature is 0: expected a number from 0\.01"):
        replace(config, temperature=0)
    assert not config.out.exists()


def test_every_fine_tuning_preset_has_a_probe() -> None:
    assert PROBE.keys() == FINETUNE.keys()
    for name in PROBE:
        assert PROBE[name]().data == FINETUNE[name]().data
        assert "probe" in PROBE[name]().out.name


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_attentive_probe_finds_what_the_mean_hides(blocks: int) -> None:
    """One token of each clip says its class and the one of another clip's class opposite: their mean says nothing."""
    def clips(count: int, seed: int) -> Features:
        rng = np.random.default_rng(seed)
        labels_n = np.arange(count) % 3
        tokens_nvTD = 0.1 * rng.normal(size=(count, 2, 6, 16)).astype(np.float32)
        for number, label in enumerate(labels_n):
            tokens_nvTD[number, :, rng.integers(3), label] += 3  # with a mark, ...
            tokens_nvTD[number, :, :3, 15] += 3 * (tokens_nvTD[number, :, :3, :3].max(-1) > 1)
            tokens_nvTD[number, :, 3 + rng.integers(3), :3] += 3 * (np.arange(3) != label)  # ... the others without
        return Features([str(i) for i in range(count)], tokens_nvTD.mean((1, 2)), labels_n, (), tokens_nvTD)

    train, test = clips(120, 0), clips(60, 1)
    config, model, device = AttentiveConfig(blocks, steps=150, lr=3e-3), replace(MODEL, width=16), torch.device("cpu")
    head = fit_attentive(train, 3, config, model, 0, device)
    scores_nc = attentive_scores(head, test, device)
    assert (scores_nc.argmax(1) == test.labels_n).mean() > 0.95
    linear = fit_linear(train, 3, 1e-3, 200)(torch.from_numpy(test.features_nD)).argmax(1).numpy()
    assert (linear == test.labels_n).mean() < 0.6
    np.testing.assert_allclose(scores_nc.sum(1), 1, rtol=1e-5)
    again = attentive_scores(fit_attentive(train, 3, config, model, 0, device), test, device)
    np.testing.assert_array_equal(again, scores_nc)
    other = attentive_scores(fit_attentive(train, 3, config, model, 1, device), test, device)
    assert not np.array_equal(other, scores_nc)


def test_the_attentive_probe_draws_its_batches_by_the_seed_and_lowers_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each view of each clip once before any comes again. A weight without a gradient tells rates and weight decay."""
    batches: list[list[float]] = []

    class Noted(torch.nn.Module):
        def __init__(self, *_: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
            batches.append(tokens_BTD.flatten().tolist())
            return (0 * self.weight).expand(len(tokens_BTD), 3)

    monkeypatch.setattr(attentive, "AttentiveHead", Noted)
    tokens_nvTD = np.arange(8, dtype=np.float32).reshape(4, 2, 1, 1)
    train = Features(list("abcd"), tokens_nvTD.mean((1, 2)), np.arange(4) % 3, (), tokens_nvTD)
    config = AttentiveConfig(steps=20, batch_size=4, lr=0.5, weight_decay=0.1)
    rates = [0.25, 0.5, *(0.25 * (1 + math.cos(math.pi * step / 19)) for step in range(18))]
    for seed in (0, 1):
        head = fit_attentive(train, 3, config, MODEL, seed, torch.device("cpu"))
        assert head.weight.item() == pytest.approx(math.prod(1 - 0.1 * rate for rate in rates))
    orders = [(*first, *second) for first, second in zip(batches[::2], batches[1::2], strict=True)]
    assert len(set(orders)) == 20 and all(sorted(order) == [*range(8)] for order in orders)


def test_probes_average_over_views(pretrained: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Features are the mean of those of the views, the attentive probe's scores the mean of its scores."""
    base = probe_config(tiny_shard_folder, tmp_path / "probe", pretrained)
    config = replace(base, data=replace(base.data, views=3))
    trained, shards = load_encoder(pretrained), ShardSet.open(tiny_shard_folder)
    runtime = Runtime(torch.device("cpu"), 0, 1, bf16=False)
    several = probing.split_features(config, trained, shards, "all", None, runtime)
    assert several.tokens_nvTD is not None and several.tokens_nvTD.shape == (NUM_CLIPS, 3, 6, 32)
    one = probing.split_features(base, trained, shards, "all", None, runtime)
    assert one.tokens_nvTD is not None and several.keys == one.keys == list(shards.manifest.splits["all"])
    np.testing.assert_allclose(several.tokens_nvTD[:, 0], one.tokens_nvTD[:, 0], rtol=1e-4, atol=1e-5)
    assert np.abs(several.tokens_nvTD[:, 1] - several.tokens_nvTD[:, 0]).max() > 1e-3
    np.testing.assert_allclose(several.features_nD, several.tokens_nvTD.mean((1, 2)), rtol=1e-4, atol=1e-5)
    head = fit_attentive(several, 5, AttentiveConfig(steps=2), MODEL, 0, runtime.device)
    single = [
        attentive_scores(head, replace(several, tokens_nvTD=several.tokens_nvTD[:, view : view + 1]), runtime.device)
        for view in range(3)
    ]
    np.testing.assert_allclose(attentive_scores(head, several, runtime.device), np.mean(single, axis=0), rtol=1e-4)


def test_a_probe_of_an_earlier_version_is_still_shown(pretrained: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Its result has no nearest neighbour and no attentive probe, its settings say nothing of one."""
    config = probe_config(tiny_shard_folder, tmp_path / "probed", pretrained, modality="skeleton")
    found = {name: value for name, value in probe(config).items() if name not in ("nearest", "attentive")}
    (config.out / "result.json").write_bytes(sealed(found))
    settings = json.loads((config.out / "config.json").read_text())
    del settings["attentive"]
    (config.out / "config.json").write_text(json.dumps(settings))
    assert probe(replace(config, attentive=AttentiveConfig())) == found
    write_report([config.out], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "3 nearest neighbours" in page and "attentive probe" not in page


def test_the_command_shows_a_finished_probe_of_0_2_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its result has neither intervals nor the number of clips that the split has."""
    figures = {"count": 4, "top1": 0.5, "top5": 1.0, "mean_class": 0.25, "confusion": [[2, 0], [2, 0]]}
    monkeypatch.setattr(probing, "run_once", lambda *_: {**figures, "knn": {**figures, "neighbours": 20}})
    assert main(["probe", "demo", "--from", "runs/pre", "--out", str(tmp_path / "probe")]) == 0
    wanted = {name: figures[name] for name in ("count", "top1", "top5", "mean_class")}
    assert json.loads(capsys.readouterr().out) == {"run": str(tmp_path / "probe"), "linear": wanted, "knn": wanted}


def test_probe_command(pretrained: Path, tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["probe", "demo", "--from", str(pretrained), "--out", str(tmp_path / "probe"), "--device", "cpu"]
    data = ["--data.shards", str(tiny_shard_folder), "--data.train-split", "all", "--data.test-split", "all"]
    sizes = ["--data.num-frames", "6", "--data.size", "32", "--modality", "skeleton", "--label-fraction", "1"]
    assert main([*words, *data, *sizes]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {name: figures["count"] for name, figures in shown.items() if name != "run"} == dict.fromkeys(
        ("linear", "knn", "nearest", "attentive"), NUM_CLIPS
    )


@pytest.mark.parametrize("name", ["index.npy", "sums.npy"])
def test_embed_does_not_replace_files_of_packed_shards(name: str, tiny_shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name}: packed shards have a file of this name, which it would replace"):
        embed(tmp_path / "run", "all", tiny_shard_folder / name)
    with pytest.raises(UserError, match="run: no such folder"):
        embed(tmp_path / "run", "all", tmp_path / name)


@pytest.mark.parametrize("modality", [None, "both"])
def test_embed_writes_features_in_the_order_of_the_split(
    pretrained: Path, tiny_shard_folder: Path, tmp_path: Path, modality: Modality | None
) -> None:
    out = tmp_path / "features.npy"
    options = [] if modality is None else ["--modality", modality]
    words = ["embed", str(pretrained), "--split", "all", "--out", str(out), "--device", "cpu", "--batch-size", "5"]
    assert main([*words, *options]) == 0
    features_nD, index = np.load(out), json.loads(out.with_name("features.npy.json").read_text())
    assert features_nD.shape == (NUM_CLIPS, 32) and features_nD.dtype == np.float32
    shards = ShardSet.open(tiny_shard_folder)
    assert index["keys"] == list(shards.manifest.splits["all"]) and index["labels"] == [i % 5 for i in range(NUM_CLIPS)]
    # One clip by itself, straight through the encoder, gives the same vector.
    alone = embed(pretrained, "all", tmp_path / "alone.npy", modality=modality, batch_size=1, device="cpu")
    np.testing.assert_allclose(alone.features_nD, features_nD, rtol=1e-4, atol=1e-5)
    assert features_nD.std(axis=0).max() > 1e-3
    assert load_encoder(pretrained, modality).modality == (modality or "rgb")


def test_embed_and_probe_see_the_same_crops(
    pretrained: Path, tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RGB alone around the stored boxes, after a pretraining whose clips were cropped around joints."""
    trained = load_encoder(pretrained)
    assert trained.plan.crop == "boxes" and load_encoder(pretrained, "both").plan.crop == "joints"
    base = probe_config(tiny_shard_folder, tmp_path / "probe", pretrained)
    config = replace(base, data=replace(base.data, crop="boxes"))
    features = embed(pretrained, "all", tmp_path / "a.npy", batch_size=5, device="cpu").features_nD
    runtime, shards = Runtime(torch.device("cpu"), 0, 1, bf16=False), ShardSet.open(tiny_shard_folder)
    seen = probing.split_features(config, trained, shards, "all", None, runtime).features_nD
    np.testing.assert_array_equal(features, seen)
    other = probing.split_features(base, trained, shards, "all", None, runtime).features_nD
    assert np.abs(features - other).max() > 1e-3
    probe(config)
    assert "around joints" not in caplog.text
    probe(replace(base, out=tmp_path / "joints"))
    assert "reads 6 frames of 32 pixels around boxes, the probe asks for 6 frames of 32 around joints" in caplog.text


@pytest.mark.parametrize(("trained", "seen", "crop"), [
    ("both", "rgb", "boxes"), ("both", "both", "joints"), ("skeleton", "skeleton", "joints"), ("rgb", "rgb", "joints"),
])
def test_a_classifiers_encoder_sees_crops_around_joints_where_it_sees_joints(
    trained: Modality, seen: Modality, crop: str, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    """Or where the classifier, of RGB alone, was trained on such crops."""
    config = replace(finetune_config(tiny_shard_folder, tmp_path / "tune"), modality=trained)
    publish(tmp_path / "tune", Classifier(config, 17, 5).state_dict(), model_card("finetune", config, num_joints=17))
    assert load_encoder(tmp_path / "tune", seen).plan.crop == crop


def test_two_processes_write_the_same_features_in_the_same_order(pretrained: Path, tmp_path: Path) -> None:
    words = ["embed", str(pretrained), "--split", "all", "--out", str(tmp_path / "two.npy"), "--batch-size", "5"]
    succeeded, said = elastic(tmp_path, 2, command, [*words, "--modality", "skeleton", "--device", "cpu"])
    assert succeeded and said.count("attention: PyTorch reference on cpu") == 1, "what holds for both is said once"
    one = embed(pretrained, "all", tmp_path / "one.npy", modality="skeleton", device="cpu")
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), one.features_nD, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "two.npy.json").read_text() == (tmp_path / "one.npy.json").read_text()


def test_embed_names_what_it_cannot_do(
    pretrained: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"features.txt: expected a file name that ends in .npy or .parquet"):
        embed(pretrained, "all", tmp_path / "features.txt")
    with pytest.raises(UserError, match="no split 'nothing'; it has all"):
        embed(pretrained, "nothing", tmp_path / "features.npy", device="cpu")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"writing Parquet needs pyarrow: pip install 'svdata2vec\[parquet\]'"):
        embed(pretrained, "all", tmp_path / "features.parquet")


def test_embed_parquet(pretrained: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    features = embed(pretrained, "all", tmp_path / "features.parquet", modality="skeleton", device="cpu")
    table = parquet.read_table(tmp_path / "features.parquet")
    assert table.column("key").to_pylist() == features.keys
    np.testing.assert_array_equal(np.array(table.column("feature").to_pylist(), np.float32), features.features_nD)
    assert table.column("class").to_pylist()[:3] == ["a", "b", "c"]


def test_a_classifier_can_be_embedded_and_its_card_tells_its_story(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = replace(finetune_config(tiny_shard_folder, tmp_path / "tune", epochs=1), modality="skeleton")
    result = finetune(config)
    card = load_published(tmp_path / "tune")[1]
    assert card["classes"] == list("abcde") and card["modality"] == "skeleton" and card["version"]
    assert card["trained_on"]["dataset"] == "factory" and card["trained_on"]["clips"] == NUM_CLIPS
    assert card["trained_on"]["split"] == "all" and card["trained_on"]["layout"] == "coco17"
    assert card["preprocessing"]["num_frames"] == 6 and card["preprocessing"]["size"] == 32
    assert card["preprocessing"]["std"] == [58.395, 57.12, 57.375]
    assert card["evaluation"].items() <= result.items()
    assert {"split", "date", "count", "clips", "top1", "top5", "mean_class", "intervals"} < card["evaluation"].keys()
    features = embed(tmp_path / "tune", "all", tmp_path / "f.npy", device="cpu")
    assert features.features_nD.shape == (NUM_CLIPS, 32)
    with pytest.raises(UserError, match="weights of the encoder are missing: video_encoder"):
        load_encoder(tmp_path / "tune", "rgb")


def test_the_report_shows_both_probes(pretrained: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = probe_config(tiny_shard_folder, tmp_path / "probed", pretrained, modality="skeleton")
    result = probe(config)
    write_report([pretrained, config.out], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert [how for how, _ in by_probe(result)] == [
        "linear probe", "attentive probe", "nearest neighbour", "3 nearest neighbours"
    ]
    for how, figures in by_probe(result):
        shares = accuracies(figures)
        cells = [f"pretrained (pretrain), {how}", str(NUM_CLIPS), shares["top1"], shares["top5"]]
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    write_report([config.out], tmp_path / "alone.html")
    assert "Confusion: probed" in (tmp_path / "alone.html").read_text()


def test_outputs_are_named_by_the_classes_of_the_split(pretrained: Path, tmp_path: Path) -> None:
    """A split may have fewer classes than the data set, or others in their order: labels follow the split's own list."""
    root = tiny_shards(tmp_path / "shards")
    edit_manifest(root, split_classes={"all": list("edcba")})
    result = probe(probe_config(root, tmp_path / "probed", pretrained, modality="skeleton"))
    assert result["classes"] == list("edcba")
    stored = ShardSet.open(root).index["label"]
    per_class = np.bincount(4 - stored, minlength=5)
    np.testing.assert_array_equal(np.array(result["confusion"]).sum(1), per_class)
    assert evaluate_run(tmp_path / "probed", device="cpu")["confusion"] == result["confusion"]
    tuned = replace(finetune_config(root, tmp_path / "tuned", epochs=1), modality="skeleton")
    np.testing.assert_array_equal(np.array(finetune(tuned)["confusion"]).sum(1), per_class)
    assert load_published(tmp_path / "tuned")[1]["classes"] == list("edcba")
