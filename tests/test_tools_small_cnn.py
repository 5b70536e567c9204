"""The small CNN from shards: fine-tuning's own clips and labels, a function of its arguments, what it learns and costs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_motion_clips as make
import numpy as np
import pytest
import small_cnn
import torch

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.data import labelled_rows
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet

SMALL: dict[str, Any] = {"fraction": 0.5, "steps": 3, "num_frames": 4, "size": 32}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    make.make_motion_clips(root / "clips", make.Options(clips=60, min_frames=24, max_frames=24, width=160, height=96))
    pack(read_pyskl(root / "clips" / "motion.pkl", root / "clips" / "videos"), root / "shards", PackOptions(workers=1, size=64))
    return root / "shards"


def test_it_is_a_function_of_its_arguments_and_says_what_it_cost(shards: Path) -> None:
    first, again, other = (small_cnn.run(shards, seed=seed, **SMALL) for seed in (1, 1, 2))
    costs = ("cpu_seconds", "cpu_seconds_test")
    assert {**first, **dict.fromkeys(costs)} == {**again, **dict.fromkeys(costs)}
    assert (first["labels"], first["steps"], first["clips_seen"]) == (24, 3, 72) and first["cpu_seconds"] > 0
    assert 0 <= other["score"] <= 1


def test_it_trains_on_the_labels_and_pictures_of_fine_tuning(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders: list[ClipLoader] = []

    def noted(*words: Any, **options: Any) -> ClipLoader:
        loaders.append(ClipLoader(*words, **options))
        return loaders[-1]

    monkeypatch.setattr(small_cnn, "ClipLoader", noted)
    small_cnn.run(shards, seed=5, test_split="xsub_val", **SMALL)
    train, test = loaders
    opened = ShardSet.open(shards)
    np.testing.assert_array_equal(train.order.rows, labelled_rows(opened, "xsub_train", 0.5, 5))
    np.testing.assert_array_equal(np.sort(test.order.rows), np.sort(opened.rows("xsub_val")))
    assert train.plan == test.plan == replace(small_cnn.DATA, num_frames=4, size=32).plan()
    assert train.plan.crop == "boxes" and train.plan.flip_probability == 0.5 and not train.joints


def test_training_shows_other_colours_and_evaluation_none(monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.zeros(8, 2, 4, 4, 3, dtype=torch.uint8)
    video[..., 0], video[..., 1] = 128, 64
    batch = ClipBatch(video, None, torch.zeros(8, dtype=torch.int64), tuple("abcdefgh"))
    plain = small_cnn.show(batch, train=False)
    assert plain.shape == (8, 2, 3, 4, 4) and plain[:, :, 0].eq(0).all() and plain[:, :, 1].eq(-1).all()
    torch.manual_seed(0)
    shown = small_cnn.show(batch, train=True)
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
    assert record["options"]["fraction"] == 0.1 and record["labels"] == 12 and record["versions"]["torch"]
    assert "% of xsub_test, 12 labelled clips, 1 steps, 12 clips seen" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--test-split", "nowhere"])
    assert small_cnn.main() == 2
    assert "no split 'nowhere'" in capsys.readouterr().err
    with pytest.raises(UserError):
        small_cnn.run(tmp_path / "none", **SMALL)
