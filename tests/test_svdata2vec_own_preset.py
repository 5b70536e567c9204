"""The preset `own`: splits, frames, batch, epochs and network fit the shards, and options take precedence."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import clip_parts, write_shards
from shards_data import annotation, packed, write_pickle, write_video
from tiny import MODEL

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.main import main
from svdata2vec.cli.options import read
from svdata2vec.config.presets import PAPER_FROM_CLIPS, SMALL_MODEL, own_finetune
from svdata2vec.config.schema import ModelConfig, PretrainConfig, TargetConfig
from svdata2vec.runs import own_preset
from svdata2vec.runs.card import model_card
from svdata2vec.runs.data import open_data
from svdata2vec.runs.published import publish
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.reading.parts import in_part, split_and_part
from svdata2vec.shards.reading.shardset import ShardSet

SMALL = [word for name in ("width", "depth", "decoder_depth", "heads", "stem_width")
         for word in (f"--model.{name.replace('_', '-')}", str(getattr(MODEL, name)))]


def shards(root: Path, count: int, frames: int = 26, splits: dict[str, list[str]] | None = None) -> Path:
    """Clips with skeletons, of five classes."""
    clips = [(f"clip{i:03d}", frames + i % 3, clip_parts(f"clip{i:03d}", frames + i % 3, size=64, label=i % 5, seed=i))
             for i in range(count)]
    write_shards(root, clips, clips_per_shard=50, size=64, splits=splits or {"train": [clip[0] for clip in clips]})
    return root


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 clips in one split."""
    return shards(tmp_path_factory.mktemp("fifty") / "mine", 50)


def options(*words: object) -> Any:
    return read([str(word) for word in words], COMMANDS, "svdata2vec", fit=True)[1]


def test_pretraining_and_fine_tuning_work_on_fifty_clips(fifty: Path, tmp_path: Path) -> None:
    short = ["--data.shards", str(fifty), "--run.epochs", "1", "--run.device", "cpu", "--data.size", "32"]
    assert main(["pretrain", "own", *short, *SMALL, "--run.out", str(tmp_path / "pre"), "--target.top-layers", "2"]) == 0
    log = json.loads((tmp_path / "pre" / "metrics.jsonl").read_text().splitlines()[-1])
    assert log["step"] == 5 and np.isfinite(log["loss"])
    words = [*short[:-2], "--from", str(tmp_path / "pre"), "--run.out", str(tmp_path / "rgb")]
    assert main(["finetune", "own", *words]) == 0
    card = json.loads((tmp_path / "rgb" / "model.json").read_text())
    assert card["trained_on"]["split"] == "train[:80%]" and card["trained_on"]["clips"] == 40
    assert card["evaluation"]["split"] == "train[80%:]" and card["evaluation"]["count"] == 10
    assert card["config"]["data"]["size"] == 32 and card["config"]["model"]["width"] == MODEL.width, "those of --from"
    words = ["--data.shards", str(fifty), "--from", str(tmp_path / "pre"), "--out", str(tmp_path / "probe"), "--device", "cpu"]
    assert main(["probe", "own", *words]) == 0


@pytest.mark.parametrize("size", [32, 64])
def test_a_study_takes_network_frames_and_size_of_its_first_run_as_fine_tuning_does(
    fifty: Path, tmp_path: Path, size: int
) -> None:
    for name, frames in (("first-0", 24), ("first-1", 24), ("second-0", 16)):
        data = dataclasses.replace(own_finetune().data, num_frames=frames, size=size, crop="joints")
        made = PretrainConfig(data=data, model=MODEL, target=TargetConfig(top_layers=2))
        publish(tmp_path / name, {"weight": torch.zeros(1)}, model_card("pretrain", made, num_joints=17))
    words = ["own", "--data.shards", fifty]
    tuned = options("finetune", *words, "--from", tmp_path / "first-0")
    study = options("label-efficiency", *words, "--from", f"a={tmp_path}/first-{{seed}}", f"b={tmp_path}/second-0")
    assert (study.data, study.model, study.optim) == (tuned.data, tuned.model, tuned.optim)
    assert (study.data.num_frames, study.data.size, study.model) == (24, size, MODEL)
    assert options("label-efficiency", *words, "--from", f"a={tmp_path}/second-0", "--data.size", 96).data.size == 96
    scratch = options("label-efficiency", *words, "--ways", "scratch").data
    assert (scratch.num_frames, scratch.size) == (8, own_finetune().data.size)


def test_going_on_needs_the_first_run_no_more(fifty: Path, tmp_path: Path) -> None:
    short = ["--data.shards", str(fifty), "--run.epochs", "1", "--run.device", "cpu", "--target.top-layers", "2"]
    assert main(["pretrain", "own", *short, *SMALL, "--data.size", "32", "--run.out", str(tmp_path / "pre")]) == 0
    words = ["finetune", "own", *short[:-2], "--from", str(tmp_path / "pre"), "--run.out", str(tmp_path / "rgb")]
    assert main(words) == 0
    shutil.rmtree(tmp_path / "pre")
    (tmp_path / "rgb" / "result.json").unlink()
    assert main(words) == 0 and (tmp_path / "rgb" / "result.json").is_file()


def test_the_rate_is_that_of_the_network_however_it_is_computed(fifty: Path, tmp_path: Path) -> None:
    """A pretraining with `--model.fused-blocks`, as the README has it for a GPU, is of the paper's network too."""
    for fused in (False, True):
        made = PretrainConfig(model=ModelConfig(fused_blocks=fused))
        publish(tmp_path / "pre", {"weight": torch.zeros(1)}, model_card("pretrain", made, num_joints=17))
        fitted = options("finetune", "own", "--data.shards", fifty, "--from", tmp_path / "pre")
        assert fitted.optim.lr == own_preset.LARGE_LR and fitted.model.fused_blocks is fused


def test_values_fit_the_set_and_the_words_stand_above_them(fifty: Path) -> None:
    config = options("pretrain", "own", "--data.shards", fifty)
    assert (config.data.train_split, config.data.test_split) == ("train[:80%]", "train[80%:]")
    assert config.data.num_frames == 8 and config.data.frame_draw == "centre" and config.model == SMALL_MODEL
    assert config.run.batch_size == 8 and config.run.epochs == 200 and config.optim.warmup_share == 0.1
    assert config.ema.anneal_share == 0.5 and config.target.top_layers == SMALL_MODEL.depth
    config = options("pretrain", "own", "--data.shards", fifty, "--run.batch-size", 4, "--data.num-frames", 24)
    assert config.run.batch_size == 4 and config.data.num_frames == 24 and config.data.train_split == "train[:80%]"
    assert options("finetune", "own", "--data.shards", fifty).data.crop == "boxes"


@pytest.mark.parametrize("benchmark", ["run", "scale", "batch", "host"])
def test_a_benchmark_measures_the_run_that_would_be_trained(fifty: Path, benchmark: str) -> None:
    trained = options("pretrain", "own", "--data.shards", fifty)
    measured = options("bench", benchmark, "own", "--data.shards", fifty)
    for part in ("data", "model", "target", "run"):
        assert getattr(measured, part) == getattr(trained, part)
    assert options("bench", benchmark, "own", "--data.shards", fifty, "--data.num-frames", 24).data.num_frames == 24


def test_batches_fit_the_clips_that_an_epoch_takes(fifty: Path, tmp_path: Path) -> None:
    """Of 40 by their weight, or by the share that is labelled; runs of whole epochs keep their steps."""
    for command, words, expected in (
        ("pretrain", (), (8, 200)), ("pretrain", ("--data.weights", 0.25), (2, 200)),
        ("pretrain", ("--data.weights", 4), (16, 200)),
        ("finetune", (), (8, 60)), ("finetune", ("--label-fraction", 0.2), (2, 60)),
    ):
        config = options(command, "own", "--data.shards", fifty, *words)
        assert (config.run.batch_size, config.run.epochs) == expected, words
    short = ["--data.shards", str(fifty), "--data.size", "32", "--run.epochs", "1", "--run.device", "cpu", *SMALL]
    assert main(["finetune", "own", *short, "--label-fraction", "0.1", "--run.out", str(tmp_path / "rgb")]) == 0


def test_many_clips_get_the_network_of_the_paper(fifty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAPER_FROM_CLIPS > 1000
    monkeypatch.setattr(own_preset, "PAPER_FROM_CLIPS", 30)
    config = options("pretrain", "own", "--data.shards", fifty)
    assert config.model == ModelConfig() and config.data.size == 224 and config.target.top_layers == 8
    assert config.optim.lr == own_preset.LARGE_LR


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "val"), ("train", "val")), (("train", "val", "test"), ("train", "test")),
        (("xsub_train", "xsub_val"), ("xsub_train", "xsub_val")), (("all",), ("all[:80%]", "all[80%:]")),
        (("train", "other"), ("train[:80%]", "train[80%:]")), (("Train", "Test"), ("Train", "Test")),
        (("train", "TEST"), ("train", "TEST")), (("Train", "Val", "train", "val"), ("train", "val")),
    ],
)
def test_splits_are_found_or_made(tmp_path: Path, names: tuple[str, ...], expected: tuple[str, str]) -> None:
    keys = [f"clip{i:03d}" for i in range(12)]
    made = ShardSet.open(shards(tmp_path / "set", 12, 8, {name: keys[i :: len(names)] for i, name in enumerate(names)}))
    assert own_preset.choose_splits(made, own_finetune().data) == expected


@pytest.mark.parametrize(
    ("splits", "words", "unused", "meant"),
    [
        ({"train": 8, "val": 2, "tset": 2}, (), "tset (2 clips)", "2 clips of split 'tset' are not used; did you mean 'test'"),
        ({"train": 8, "val": 2, "test": 2}, (), "val (2 clips)", None),
        ({"train": 8, "val": 2, "test": 2}, ("--eval-every", 1), None, None),
        ({"train": 8, "test": 2, "extra": 2}, (), "extra (2 clips)", None),
        ({"train": 8, "test": 2}, (), None, None),
    ],
)
def test_splits_that_are_not_used_are_named(
    tmp_path: Path, splits: dict[str, int], words: tuple, unused: str | None, meant: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = iter(f"clip{i:03d}" for i in range(12))
    listed = {name: [next(keys) for _ in range(count)] for name, count in splits.items()}
    folder = shards(tmp_path / "set", 12, 8, {**listed, "all": listed["train"]})
    with caplog.at_level("INFO"):
        options("finetune", "own", "--data.shards", folder, *words)
    assert [text for text in caplog.messages if "not used here" in text] == (
        [] if unused is None else [f"{folder}: splits with clips that are not used here: {unused}"])
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "split" in record.msg]
    assert [meant in text for text in warnings] == [True] if meant else warnings == []


@pytest.mark.parametrize("alike", [True, False])
def test_made_splits_that_share_videos_or_people_are_reported(
    tmp_path: Path, alike: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Five clips, four to train on and one to test on: copies of one video of one person, or nothing of the kind."""
    (tmp_path / "videos").mkdir()
    for number in range(5):
        write_video(tmp_path / "videos" / f"v{number}.mp4", 4, 0 if alike else number)
    entries = [annotation(f"v{number}", 0, 4, subject=7 if alike else number) for number in range(5)]
    pickle_path = write_pickle(tmp_path / "set.pkl", entries, {"train": [f"v{number}" for number in range(5)]})
    packed(open_dataset("pyskl", pickle_path=pickle_path, videos=tmp_path / "videos"), tmp_path)
    with caplog.at_level("WARNING"):
        options("finetune", "own", "--data.shards", tmp_path / "packed")
    if not alike:
        assert not caplog.text
        return
    assert "train[:80%] and train[80%:]: 1 clips in both: v" in caplog.text and "(same bytes); remove one" in caplog.text
    assert "show the same people (7), so the test" in caplog.text and "--split-by subject" in caplog.text


def test_a_damaged_clip_is_left_to_the_run(tmp_path: Path) -> None:
    """Made splits are compared by descriptions; one that is damaged ended the command, though a run leaves its clip out."""
    root = shards(tmp_path, 10)
    whole = options("finetune", "own", "--data.shards", root)
    opened = ShardSet.open(root)
    row = int(opened.rows("train")[0])
    offset = int(opened.index["offset"][row, opened.manifest.components.index("json")])
    with opened.tars[int(opened.index["shard"][row])].open("r+b") as file:
        file.seek(offset)
        file.write(b"#")
    with pytest.raises(ValueError, match="json"):
        ShardSet.open(root).sample(row)
    assert options("finetune", "own", "--data.shards", root) == whole


def test_splits_that_are_not_clear_are_asked_for(tmp_path: Path) -> None:
    keys = [f"clip{i:03d}" for i in range(4)]
    root = shards(tmp_path / "set", 4, 8, {"xsub_train": keys[:2], "xview_train": keys[2:]})
    with pytest.raises(UserError, match="which split to train on is not clear; it has xsub_train, xview_train; name one with"):
        options("finetune", "own", "--data.shards", root)
    named = ["finetune", "own", "--data.shards", root, "--data.train-split"]
    with pytest.raises(UserError, match=r"no split to test on; name one .* or parts: --data.train-split 'xview_train\[:80%\]'"):
        options(*named, "xview_train")
    with pytest.raises(UserError, match="no split 'xview_trian'; it has"):  # no part would mend it
        options(*named, "xview_trian")
    config = options(*named, "xview_train[:50%]", "--data.test-split", "xview_train[50%:]")
    assert (config.data.train_split, config.data.test_split) == ("xview_train[:50%]", "xview_train[50%:]")
    with pytest.raises(UserError, match="no split 'nope'; it has"):
        options(*named, "nope", "--data.test-split", "xsub_train")


@pytest.mark.parametrize(
    ("frames", "expected"), [([10], 8), ([24, 24, 500], 8), ([48], 16), ([90], 24), ([150], 40), ([9000], 40), ([], 8)]
)
def test_number_of_frames(frames: list[int], expected: int) -> None:
    assert own_preset.frames_of(np.array(frames, np.int32)) == expected


@pytest.mark.parametrize(
    ("clips", "kind", "expected"),
    [(1, "finetune", (2, 60)), (7, "finetune", (2, 60)), (40, "finetune", (8, 60)), (1000, "finetune", (16, 33)),
     (50_000, "finetune", (16, 20)), (50_000, "pretrain", (16, 50))],
)
def test_batch_and_epochs(clips: int, kind: str, expected: tuple[int, int]) -> None:
    assert own_preset.batch_and_epochs(clips, kind, 16) == expected


def test_parts_of_a_split_are_disjoint_whole_and_fair() -> None:
    labels = np.array([0] * 20 + [1] * 7 + [2] * 2 + [3])
    keys = [f"clip{i}".encode() for i in range(len(labels))]
    cuts = [split_and_part(f"train{text}")[1] for text in ("[:80%]", "[80%:]")]
    assert cuts == [(0, 80), (80, 100)] and split_and_part("train") == ("train", None)
    first, rest = (in_part(labels, keys, cut) for cut in cuts if cut)
    assert (first ^ rest).all(), "each clip is in one of the two"
    assert np.bincount(labels[rest], minlength=4).tolist() == [4, 1, 1, 0]
    thirds = [in_part(labels, keys, cut) for cut in ((0, 30), (30, 70), (70, 100))]
    assert (np.sum(thirds, axis=0) == 1).all()
    order = np.random.default_rng(0).permutation(len(labels))
    assert (in_part(labels[order], [keys[i] for i in order], (80, 100)) == rest[order]).all(), "by names alone"


@pytest.mark.parametrize("name", ["train[:80]", "train[:33.3%]", "train[-20%:]"])
def test_parts_written_in_another_form_are_explained(fifty: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no split 'train\[.*\]'; it has train; a part is written as in train\[:80%\]$"):
        ShardSet.open(fifty).rows(name)


@pytest.mark.parametrize("name", ["train[80%:20%]", "train[:0%]", "train[:101%]", "train[50%:50%]"])
def test_parts_that_cannot_be_are_refused(fifty: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"expected a part like train\[:80%\] or train\[80%:\]"):
        open_data(dataclasses.replace(own_finetune().data, shards=str(fifty))).rows(name)
