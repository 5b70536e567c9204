"""The small CNN from shards: fine-tuning's own clips and labels, a function of its arguments alone, its results and cost."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_motion_clips as make
import numpy as np
import pytest
import small_cnn
import torch
from pipeline_factory import kinect_set, shard_set
from shards_data import edit_manifest
from small_cnn import DEMO

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.evaluation.evaluate import score
from svdata2vec.evaluation.metrics import Metrics
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.data import build_loader, labelled_rows
from svdata2vec.runs.validation import hold_out
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet


def config(shards: Path | str, seed: int = 0, **data: Any) -> FinetuneConfig:
    """Half of the labels; `data`: further options of it."""
    small = replace(DEMO.data, shards=str(shards), num_frames=4, size=32, **data)
    return replace(DEMO, data=small, run=replace(DEMO.run, seed=seed, batch_size=24), label_fraction=0.5, eval_every=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    make.make_motion_clips(root / "clips", make.Options(clips=60, min_frames=24, max_frames=24, width=160, height=96))
    pack(read_pyskl(root / "clips" / "motion.pkl", root / "clips" / "videos"), root / "shards", PackOptions(workers=1, size=64))
    return root / "shards"


def test_it_is_a_function_of_its_arguments_and_says_what_it_cost(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first, again, other = (small_cnn.run(config(shards, seed), steps=3) for seed in (1, 1, 2))
    said = [text.split(",")[0] for text in caplog.messages if "step" in text]
    assert said == [f"small CNN: step {number}/3" for number in (1, 2, 3)] * 3
    costs = ("cpu_seconds", "cpu_seconds_test")
    assert {**first, **dict.fromkeys(costs)} == {**again, **dict.fromkeys(costs)}
    assert (first["labels"], first["steps"], first["clips_seen"]) == (24, 3, 72) and first["cpu_seconds"] > 0
    assert 0 <= other["score"] <= 1


def test_threads_are_restored_for_the_rest_of_the_process(shards: Path) -> None:
    """Rows of a study follow each other there, and their CPU seconds are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    try:
        small_cnn.run(config(shards), steps=1)
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> list[ClipLoader]:
    """The loaders that a run makes: of training, then of its test."""
    made: list[ClipLoader] = []

    def noted(*words: Any, **options: Any) -> ClipLoader:
        made.append(build_loader(*words, **options))
        return made[-1]

    monkeypatch.setattr(small_cnn, "build_loader", noted)
    return made


def test_it_trains_on_the_labels_and_pictures_of_fine_tuning(shards: Path, loaders: list[ClipLoader]) -> None:
    small_cnn.run(config(shards, 5, test_split="xsub_val"), steps=3)
    train, test = loaders
    opened = ShardSet.open(shards)
    np.testing.assert_array_equal(train.order.rows, labelled_rows(opened, "xsub_train", 0.5, 5))
    np.testing.assert_array_equal(np.sort(test.order.rows), np.sort(opened.rows("xsub_val")))
    assert config(shards).data.augment != AugmentConfig(), "what fine-tuning does to colours"
    assert train.plan == test.plan == config(shards, augment=AugmentConfig()).data.plan()
    assert train.plan.crop == "boxes" and train.plan.flip_probability == 0.5 and not train.joints


def test_several_sets_of_other_joints_weights_views_and_figure(
    tmp_path: Path, loaders: list[ClipLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `data` says of a fine-tuning holds for its rival."""
    shard_set(tmp_path / "a", 12)
    kinect_set(tmp_path / "b", 12)
    both = {"shards": f"{tmp_path / 'a'},{tmp_path / 'b'}", "train_split": "all", "test_split": "all"}
    with pytest.raises(UserError, match=r"--data\.layout coco17"):
        small_cnn.run(config(**both), steps=1)
    figures: list[Metrics] = []
    monkeypatch.setattr(small_cnn, "score", lambda *words: figures.append(score(*words)) or figures[-1])
    found = small_cnn.run(config(**both, layout="coco17", weights=(1.0, 0.5), views=2, metric="mean_class"), steps=2)
    train, test = loaders
    assert len(train.order.rows) == 12 and train.order.num_entries == 9, "of the second set every other clip"
    assert (found["labels"], found["clips_seen"]) == (12, 18) and test.plan.views == 2 and test.num_clips == 24
    assert found["score"] == figures[0].mean_class != figures[0].top1


def test_validation_is_on_the_clips_of_fine_tuning(shards: Path, loaders: list[ClipLoader]) -> None:
    opened = ShardSet.open(shards)
    small_cnn.run(config(shards, test_split="xsub_test"), steps=1, validate=True)
    assert loaders[1].split == "xsub_val"
    again = config(shards, test_split="xsub_val", val_fraction=0.3)
    small_cnn.run(again, steps=1, validate=True)  # no split of the set's own
    rows = labelled_rows(opened, "xsub_train", 0.5, 0)
    held = hold_out(opened, rows, 0.3, 0)
    np.testing.assert_array_equal(loaders[2].order.rows, rows[~held])
    np.testing.assert_array_equal(np.sort(loaders[3].order.rows), rows[held])


def test_training_shows_other_colours_and_evaluation_none(monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.zeros(8, 2, 4, 4, 3, dtype=torch.uint8)
    video[..., 0], video[..., 1] = 128, 64
    plain = small_cnn.show(video, train=False)
    assert plain.shape == (8, 2, 3, 4, 4) and plain[:, :, 0].eq(0).all() and plain[:, :, 1].eq(-1).all()
    torch.manual_seed(0)
    shown = small_cnn.show(video, train=True)
    order = {tuple(clip[0, :, 0, 0].argsort().tolist()) for clip in shown}
    assert len(order) > 2, "colours are exchanged"
    assert (shown[:, 0] == shown[:, 1]).all(), "alike in all frames of a clip"


def test_it_learns_what_differs_in_motion_alone() -> None:
    """Two classes of the same frames in opposite order."""
    torch.manual_seed(0)
    place_T = torch.arange(6)
    clips = torch.full((16, 6, 3, 32, 32), -1.0)
    label_N = torch.arange(16) % 2
    for clip, label in zip(clips, label_N, strict=True):
        for time, place in enumerate(place_T if label else place_T.flip(0)):
            clip[time, :, 8:20, 4 * place:4 * place + 6] = 1.0
    net = small_cnn.ClipNet(small_cnn.FrameNet(16), 16, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(clips), label_N).backward()
        optimizer.step()
    with torch.inference_mode():
        assert (net.eval()(clips).argmax(1) == label_N).float().mean() > 0.9
        assert net(clips[:, :1]).shape == (16, 2)


def test_command_writes_its_figures_and_names_a_split_that_is_not_there(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["small_cnn.py", str(shards), "--fraction", "0.1", "--steps", "1", "--json", str(tmp_path / "cnn.json")]
    monkeypatch.setattr(sys, "argv", words)
    assert small_cnn.main() == 0
    record = json.loads((tmp_path / "cnn.json").read_text())
    assert record["fingerprint"] == ShardSet.open(shards).manifest.fingerprint
    assert record["options"]["fraction"] == 0.1 and record["labels"] == 12 and record["versions"]["torch"]
    assert "% of xsub_test, 12 labelled clips, 1 steps, 12 clips seen" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--test-split", "nowhere"])
    assert small_cnn.main() == 2
    assert "no split 'nowhere'" in capsys.readouterr().err
    with pytest.raises(UserError):
        small_cnn.run(config(tmp_path / "none"))


def test_a_run_is_found_again_where_options_and_clips_are_the_same(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the demo asks for it; others train in any case."""
    runs: list[int] = []

    def counted(config: FinetuneConfig, *, steps: int, **options: float) -> dict[str, Any]:
        runs.append(steps)
        return {"score": 0.01 * len(runs), "labels": 12, "steps": steps, "clips_seen": 12, "cpu_seconds": 1.0}

    def said(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["small_cnn.py", str(folder), "--json", str(tmp_path / "cnn.json"), *words])
        assert small_cnn.main() == 0
        return capsys.readouterr().out.split(" %")[0]

    folder = shutil.copytree(shards, tmp_path / "shards")
    monkeypatch.setattr(small_cnn, "run", counted)
    assert said("--reuse") == said("--reuse") == "small CNN: 1.0"
    assert said("--reuse", "--steps", "7") == said("--reuse", "--steps", "7") == "small CNN: 2.0"
    assert said("--steps", "7") == "small CNN: 3.0" and runs == [400, 7, 7]
    edit_manifest(folder, fingerprint="made anew")
    assert said("--reuse", "--steps", "7") == "small CNN: 4.0"
