"""Videos without persons' boxes: the whole picture, undistorted, from packing to prediction; sets with persons keep theirs."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import shard_set
from shards_data import edit_manifest, write_video
from tiny import finetune_config

from svdata2vec.cli.main import main
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.predict import predict
from svdata2vec.evaluation.video_clip import read_clip
from svdata2vec.pipeline import affine
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig, make_plans
from svdata2vec.pipeline.reference import psnr
from svdata2vec.pipeline.sampling import spread_frames
from svdata2vec.runs.card import read_card
from svdata2vec.runs.published import load_classifier
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import finetune

SIZES = {"wide": (320, 176), "high": (176, 320), "small": (64, 48)}  # width, height


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """class/video.mp4 of three shapes; one is smaller than what is stored."""
    root = tmp_path_factory.mktemp("view") / "videos"
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        (root / ("lie", "stand")[number % 2]).mkdir(parents=True, exist_ok=True)
        write_video(root / ("lie", "stand")[number % 2] / f"{name}.mp4", 14, number, width=width, height=max(height, 96))
    return root


@pytest.fixture(scope="module")
def shards(videos: Path) -> Path:
    out = videos.parent / "shards"
    words = ["--root", str(videos), "--size", "128", "--workers", "1", "--quality", "95"]
    assert main(["shard", "folder", str(out), *words]) == 0
    return out


def own(shards: Path, out: Path, **run: Any) -> Any:
    config = finetune_config(shards, out, **{"epochs": 2, "batch_size": 2, **run})
    data = dataclasses.replace(
        config.data, train_split="train", test_split="train", size=64, crop="boxes", frame_draw="centre", decoder="reference"
    )
    return dataclasses.replace(config, data=data)


@pytest.fixture(scope="module")
def run(shards: Path) -> Path:
    """A classifier that was trained on the shards."""
    out = shards.parent / "run"
    finetune(own(shards, out))
    return out


def test_prediction_sees_the_pixels_that_evaluation_sees_and_names_the_same_class(
    run: Path, shards: Path, videos: Path
) -> None:
    model, config, card = load_classifier(run)
    assert card["preprocessing"]["view"] == "picture" and card["preprocessing"]["stored_size"] == 128
    with ClipLoader(ShardSet.open(shards), "train", config.data.plan(), batch_size=1, decoder="reference") as loader:
        batches = list(loader)
    assert len(batches) == len(SIZES)
    for batch in batches:
        assert batch.video_BTHWC is not None
        video = videos / f"{batch.keys[0].replace('%2F', '/')}.mp4"
        (frames_TSS3,) = read_clip(video, config.data, card=card).frames_NTSS3
        seen = batch.video_BTHWC[0].numpy()
        assert psnr(frames_TSS3, seen) > 33, "but for what JPEG costs"
        assert psnr(np.roll(frames_TSS3, 1, axis=0), seen) < psnr(frames_TSS3, seen) - 3, "other frames are noticed"
        with torch.no_grad():
            scores = model(batch.video_BTHWC, None).softmax(1)[0]
        best = predict(run, video, device="cpu")
        assert best["classes"][0]["name"] == card["classes"][int(scores.argmax())]
        assert best["classes"][0]["probability"] == pytest.approx(float(scores.max()), abs=0.02)
        assert "nothing: the whole picture, black beside it (as the network was trained)" in best["did"][2]


def test_the_shape_of_the_picture_stays_and_nothing_is_cut(shards: Path) -> None:
    opened = ShardSet.open(shards)
    assert opened.manifest.view == "picture"
    for crop in ("joints", "boxes"):
        for row in range(len(opened)):
            sample = opened.sample(row, video=False)
            config = PlanConfig(crop=crop, size=64)
            plan = make_plans([sample], config, train=False, seed=0, epoch=0, views=[0], shows=opened.manifest.view)[0]
            width, height = sample.meta.width, sample.meta.height
            scale_x, scale_y = plan.output_to_source[0, 0], plan.output_to_source[1, 1]
            assert scale_x == scale_y == max(width, height) / 64, "neither squeezed nor smaller than it could be"
            centre = affine.apply(plan.output_to_source, np.array([[32.0, 32.0]]))
            assert centre.tolist() == [[width / 2, height / 2]]


def test_sets_with_persons_keep_their_plans(tmp_path: Path) -> None:
    opened = shard_set(tmp_path / "persons", 3, size=64)
    assert opened.manifest.view == "persons"
    edit_manifest(tmp_path / "persons", view=None)  # as 0.2.0 wrote it
    assert ShardSet.open(tmp_path / "persons").manifest.view == "persons"


def test_a_set_that_is_seen_otherwise_than_intended_is_reported(
    run: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate_run(run, device="cpu")
    assert "the run was trained on" not in caplog.text and "squeezed" not in caplog.text
    old = tmp_path / "old"
    shutil.copytree(shards, old)
    edit_manifest(old, view=None)
    evaluate_run(run, shards=str(old), device="cpu")
    assert "split 'train' shows nobody, its whole pictures are squeezed into a square; pack the videos again" in caplog.text
    card = read_card(run)
    card["preprocessing"]["view"] = "persons"
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model.json").write_text(json.dumps(card))
    evaluate_run(tmp_path / "run", device="cpu")
    assert f"the run was trained on crops around persons, {shards} holds whole pictures" in caplog.text


def test_an_unknown_view_is_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "odd")
    edit_manifest(tmp_path / "odd", view="sideways")
    with pytest.raises(UserError, match="view is 'sideways', expected one of persons, picture"):
        ShardSet.open(tmp_path / "odd")


@pytest.mark.parametrize(
    ("frames", "clip", "view", "views", "expected"),
    [
        (4, 8, 0, 1, [1, 3, 5, 7]), (4, 4, 0, 1, [0, 1, 2, 3]), (3, 10, 0, 1, [1, 5, 8]), (4, 3, 0, 1, [0, 1, 2, 0]),
        (2, 8, 0, 2, [1, 5]), (2, 8, 1, 2, [3, 7]), (4, 2, 1, 2, [1, 0, 1, 0]), (1, 1, 0, 1, [0]),
    ],
)
def test_frames_without_a_draw(frames: int, clip: int, view: int, views: int, expected: list[int]) -> None:
    assert spread_frames(frames, clip, view, views).tolist() == expected


def test_no_frame_number_leaves_the_clip() -> None:
    for clip in range(1, 90):
        for frames in (1, 7, 40):
            numbers = spread_frames(frames, clip)
            assert numbers.min() >= 0 and numbers.max() < clip
            assert clip < frames or (np.diff(numbers) > 0).all()
