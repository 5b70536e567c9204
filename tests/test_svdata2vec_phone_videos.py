"""A folder of phone videos becomes a classifier by the README's own commands, and prediction sees what evaluation saw."""

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import phone_videos
import pytest
import torch
from repository import ROOT

from svdata2vec.cli.main import main
from svdata2vec.evaluation.predict import predict
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.published import load_classifier
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.video import VideoReader

CLASSES = ("walking", "машет руками")
SMALL = {
    "shard": ["--size", "96", "--workers", "1", "--chroma", "444"],  # as near to the videos as `predict` is held to be
    "finetune": shlex.split(
        "--data.size 64 --run.epochs 60 --run.batch-size 4 --run.device cpu --optim.lr 2e-3 --head.hidden 64 --head.dropout 0 "
        "--head.drop-path 0 --model.width 64 --model.depth 2 --model.decoder-depth 1 --model.heads 2 --model.stem-width 16"
    ),
    "predict": ["--device", "cpu"],
}


def readme_commands() -> list[list[str]]:
    """The words of "from folder to classifier" after `svdata2vec`: shard, finetune, predict."""
    readme = (ROOT / "README.md").read_text()
    block = readme.split("# own videos, from folder to classifier")[1].split("\n# ...")[0]
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^svdata2vec .*$", block, re.MULTILINE)]


@pytest.mark.parametrize("container", phone_videos.CONTAINERS)
@pytest.mark.parametrize("matrix", phone_videos.ORIENTATIONS)
def test_a_video_is_seen_as_it_was_filmed(tmp_path: Path, container: str, matrix: tuple[int, int, int, int]) -> None:
    filmed = [np.zeros((32, 48, 3), np.uint8)] * 2
    filmed[0][:16, :12] = 200  # the upper left corner alone tells the eight from each other
    phone_videos.write_video(tmp_path / f"clip.{container}", filmed, matrix, 30)
    with VideoReader(tmp_path / f"clip.{container}") as reader:
        assert (reader.info.width, reader.info.height) == (48, 32)
        seen = next(reader.crops(0, 0, 48))[:32]
    assert np.abs(seen.astype(int) - filmed[0]).mean() < 4


@pytest.mark.slow
def test_a_folder_of_phone_videos_becomes_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = phone_videos.make_phone_videos(Path("my_videos"), 8, CLASSES, longer=128, seconds=1.0)
    assert Counter(path.suffix for path in made).keys() == {".mp4", ".mov", ".mkv"}
    first, *_ = made
    shutil.copy(first, "new_video.mp4")
    commands = readme_commands()
    assert [words[0] for words in commands] == [*SMALL]
    for words in commands:
        assert main([*words, *SMALL[words[0]]]) == 0
        said = capsys.readouterr().out
    assert "the whole picture, black beside it (as the network was trained)" in said
    summary = json.loads(Path("data/mine/summary.json").read_text())
    assert (summary["read"], summary["packed"], summary["view"]) == (16, 16, "picture")
    assert summary["splits"]["train"]["clips_per_class"] == dict.fromkeys(CLASSES, 8)

    run = Path("runs/mine")
    model, config, card = load_classifier(run)
    right, scores = 0, {}
    with ClipLoader(ShardSet.open("data/mine"), "train", config.data.plan(), batch_size=4, decoder="reference") as loader:
        for batch in loader:
            with torch.no_grad():
                scores |= dict(zip(batch.keys, model(batch.video_BTHWC, None).softmax(1).tolist(), strict=True))
    assert len(scores) == len(made)
    evaluated = sorted(np.round(values, 2).tolist() for values in scores.values())
    predicted = []
    for video, label in made.items():
        found = {each["name"]: each["probability"] for each in predict(run, video, device="cpu")["classes"]}
        right += max(found, key=lambda name: found[name]) == label
        predicted.append([found[name] for name in card["classes"]])
    np.testing.assert_allclose(sorted(predicted), evaluated, atol=0.05)
    assert right >= 12, f"{right} of {len(made)} videos are recognised, half of them would be chance"
