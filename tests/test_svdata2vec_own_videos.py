"""Own videos: without skeletons nothing is trained on zeros; few clips, one split and finished folders get clear messages."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import clip_parts, write_shards
from shards_data import annotation, edit_manifest, write_pickle, write_video
from tiny import NUM_CLIPS, finetune_config, pretrain_config

from svdata2vec.cli.main import main
from svdata2vec.config.label_efficiency import LabelEfficiencyConfig
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import RunConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.features import embed
from svdata2vec.evaluation.probe import probe
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.data import build_loader, open_data, require_skeletons
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.studies.label_efficiency import label_efficiency
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

NO_SKELETONS = r"split 'train' has no skeletons.*tools/pose/extract_poses.py, or fine-tune with --modality rgb"
KEYS = ("jump-a", "jump-b", "walk-a", "walk-b")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """class/video.mp4."""
    root = tmp_path_factory.mktemp("own") / "videos"
    for number, key in enumerate(KEYS):
        path = root / key.replace("-", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path.with_suffix(".mp4"), seed=number)
    return root


@pytest.fixture(scope="module")
def rgb(videos: Path) -> Path:
    """Shards of the videos alone."""
    out = videos.parent / "rgb"
    assert main(["shard", "folder", str(out), "--root", str(videos), "--size", "64", "--workers", "1"]) == 0
    return out


def poses(videos: Path, out: Path, seen: tuple[int, ...], missing: float = 0) -> ShardSet:
    """Shards with a person in every clip, whose joints are all `missing` but in the clips of these numbers."""
    entries = [annotation(key.replace("-", "/"), number // 2) for number, key in enumerate(KEYS)]
    for number, entry in enumerate(entries):
        if number not in seen:
            entry["keypoint"] = np.full((1, 8, 17, 2), missing, np.float16)
    out.mkdir()
    (out / "classes.txt").write_text("jump\nwalk\n")
    pickle_path = write_pickle(out / "poses.pkl", entries)
    words = ["--pickle-path", str(pickle_path), "--videos", str(videos), "--size", "64", "--workers", "1"]
    assert main(["shard", "pyskl", str(out / "shards"), *words]) == 0
    return ShardSet.open(out / "shards")


def own(config: Any, **changes: Any) -> Any:
    """The configuration for these shards."""
    data = dataclasses.replace(config.data, train_split="train", test_split="train", num_frames=4)
    return dataclasses.replace(config, data=data, **changes)


def test_pretraining_without_skeletons_is_refused(rgb: Path, tmp_path: Path) -> None:
    config = own(pretrain_config(rgb, tmp_path / "pre"))
    with pytest.raises(UserError, match=NO_SKELETONS):
        pretrain(config)
    assert not (tmp_path / "pre").exists()


def uncounted(shards: ShardSet) -> ShardSet:
    """As packed before manifests counted clips without joints."""
    assert shards.manifest.without_joints is not None
    edit_manifest(shards.root, without_joints=None)
    return ShardSet.open(shards.root)


@pytest.mark.parametrize("missing", [0, np.nan, np.inf])
def test_joints_that_are_all_missing_are_no_skeletons(
    videos: Path, tmp_path: Path, missing: float, caplog: pytest.LogCaptureFixture
) -> None:
    none = poses(videos, tmp_path / "none", (), missing)
    assert none.manifest.without_joints == (0, 1, 2, 3)
    for shards in (none, uncounted(none)):
        with pytest.raises(UserError, match=NO_SKELETONS):
            require_skeletons(shards, "train")
    last = poses(videos, tmp_path / "last", (3,), missing)
    seen = [last.index["key"][row].decode() for row in range(4) if row not in (last.manifest.without_joints or ())]
    assert [key for key in seen if key.startswith("walk") and key.endswith("b")] == seen and len(seen) == 1
    require_skeletons(last, "train")
    assert "3 of 4 clips of split 'train' (75 %) have no joint" in caplog.text
    caplog.clear()
    require_skeletons(uncounted(last), "train")  # a person in each clip, and somebody has joints
    assert not caplog.records


def test_clips_without_persons_are_counted_in_old_sets_too(
    videos: Path, rgb: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ShardSet.open(rgb).manifest.without_joints == ()  # there are no persons
    with pytest.raises(UserError, match=NO_SKELETONS):
        require_skeletons(uncounted(ShardSet.open(shutil.copytree(rgb, tmp_path / "rgb"))), "train")
    clips = [(key, 8, clip_parts(key, 8, size=64, persons=persons)) for key, persons in (("a", 1), ("b", 0))]
    require_skeletons(write_shards(tmp_path / "one", clips, size=64), "all")
    assert "1 of 2 clips of split 'all' (50 %) have no joint" in caplog.text


def test_wrong_rows_without_joints_are_refused(videos: Path, tmp_path: Path) -> None:
    shards = poses(videos, tmp_path / "none", ())
    for wrong in ({"train": 4}, ["0"], [-1], [True], 4):
        edit_manifest(shards.root, without_joints=wrong)
        with pytest.raises(UserError, match=r"manifest.json: field missing or wrong"):
            ShardSet.open(shards.root)


def test_a_damaged_clip_is_left_to_the_loader(tiny_shard_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_shard_folder, tmp_path / "copy")
    shards = ShardSet.open(tmp_path / "copy")
    for tar in shards.tars:
        tar.write_bytes(bytes(tar.stat().st_size))
    require_skeletons(shards, "all")


def test_only_what_reads_skeletons_needs_them(rgb: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    for modality in ("both", "skeleton"):
        with pytest.raises(UserError, match=NO_SKELETONS):
            finetune(own(finetune_config(rgb, tmp_path / modality), modality=modality))
    data = own(finetune_config(rgb, tmp_path)).data
    with pytest.raises(UserError, match=NO_SKELETONS):
        label_efficiency(LabelEfficiencyConfig(data=data, run=RunConfig(tmp_path / "study"), ways=("scratch", "skeleton")))
    assert not (tmp_path / "study" / "runs").exists()
    out = tmp_path / "classifier"
    result = finetune(own(finetune_config(rgb, out, epochs=1)))
    assert result["count"] == 4
    video = own(pretrain_config(rgb, tmp_path / "pre", epochs=1), encode="all_frames")
    pretrain(dataclasses.replace(video, target=dataclasses.replace(video.target, teacher_input="rgb")))
    assert embed(out, "train", tmp_path / "a.npy", device="cpu").features_nD.shape == (4, 32)
    with pytest.raises(UserError, match=NO_SKELETONS):
        embed(tmp_path / "pre", "train", tmp_path / "b.npy", modality="both", device="cpu")
    with pytest.raises(UserError, match=NO_SKELETONS):
        probe(ProbeConfig(data=video.data, pretrained=tmp_path / "pre", out=tmp_path / "probe", modality="both", device="cpu"))
    skeletons = dataclasses.replace(finetune_config(tiny_shard_folder, tmp_path / "both", epochs=1), modality="both")
    finetune(skeletons)
    with pytest.raises(UserError, match="has no skeletons"):
        evaluate_run(tmp_path / "both", shards=str(rgb), split="train", device="cpu")


def test_a_test_split_that_is_trained_on_is_reported(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    finetune(dataclasses.replace(config, label_fraction=0.5))
    assert "7 of 12 clips of the test split 'all' are trained or validated on: its accuracy says little" in caplog.text
    caplog.clear()
    probe(ProbeConfig(data=config.data, pretrained=tmp_path / "run", out=tmp_path / "probe", device="cpu", neighbours=3))
    assert "12 of 12 clips of the test split 'all' are trained or validated on" in caplog.text


def test_splits_without_a_common_clip_are_not_reported(
    rgb: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = tmp_path / "rgb"
    shutil.copytree(rgb, shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    names = manifest["splits"]["train"]
    manifest["splits"] = {"train": names[::2], "val": names[1::2]}
    edit_manifest(shards, splits=manifest["splits"])
    config = finetune_config(shards, tmp_path / "run", epochs=1, batch_size=2)
    data = dataclasses.replace(config.data, train_split="train", test_split="val", num_frames=4)
    assert finetune(dataclasses.replace(config, data=data))["count"] == 2
    assert "validated on" not in caplog.text


@pytest.mark.parametrize(
    ("world_size", "used", "message"),
    [
        (1, 3, r"^split 'all': 3 of 12 clips are used \(--label-fraction 0.25\), one step takes 16; set a smaller "
               r"--run.batch-size \(clips per process\), or a larger --label-fraction$"),
        (2, None, "^split 'all': 12 of 12 clips are used, one step takes 32; set a smaller --run.batch-size"),
    ],
)
def test_fewer_clips_than_one_step(tiny_shard_folder: Path, world_size: int, used: int | None, message: str) -> None:
    config = dataclasses.replace(finetune_config(tiny_shard_folder, Path("run"), batch_size=16), label_fraction=0.25)
    shards, runtime = ShardSet.open(tiny_shard_folder), Runtime(torch.device("cpu"), 0, world_size, bf16=False)
    rows = None if used is None else shards.rows("all")[:used]
    with pytest.raises(UserError, match=message):
        build_loader(shards, config, runtime, train=True, modality="rgb", rows=rows)


def test_weights_that_take_fewer_clips_than_one_step(tiny_shard_folder: Path) -> None:
    config = finetune_config(tiny_shard_folder, Path("run"), batch_size=8)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, weights=(0.5,)))
    runtime = Runtime(torch.device("cpu"), 0, 1, bf16=False)
    said = r"^split 'all': an epoch takes 6 of 12 clips by --data.weights, one step takes 8; set a smaller --run.batch-size"
    with pytest.raises(UserError, match=said):
        build_loader(open_data(config.data), config, runtime, train=True, modality="rgb")


def test_weights_may_take_a_clip_several_times_in_a_step(tiny_shard_folder: Path) -> None:
    config = finetune_config(tiny_shard_folder, Path("run"), batch_size=16)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, weights=(2.0,)))
    runtime = Runtime(torch.device("cpu"), 0, 1, bf16=False)
    with build_loader(open_data(config.data), config, runtime, train=True, modality="rgb") as loader:
        assert len(next(iter(loader)).keys) == 16


def test_the_loader_speaks_of_its_own_arguments(tiny_shard_folder: Path) -> None:
    shards = ShardSet.open(tiny_shard_folder)
    with pytest.raises(UserError, match=rf"^split 'all': {NUM_CLIPS} clips, fewer than one step with batch_size=8 and "
                                        r"world_size=2; use a smaller batch_size, or last_batch='partial'"):
        ClipLoader(shards, "all", batch_size=8, world_size=2, train=True)
    shards.manifest.splits["empty"] = []
    with pytest.raises(UserError, match=r"^split 'empty' has no clips; take another split$"):
        ClipLoader(shards, "empty", batch_size=8)


def test_inspect_tells_the_set_from_the_split(rgb: Path, tmp_path: Path) -> None:
    words = ["--split", "train", "--out", str(tmp_path), "--num-frames", "4", "--size", "64"]
    assert main(["inspect", str(rgb), *words]) == 0
    page = (tmp_path / "index.html").read_text()
    assert f"{rgb}: figures of the whole set, pictures of split train" in page
    assert "Clips of split train: training crops at 64 px" in page


def test_a_finished_folder_is_reported_as_kept(videos: Path, rgb: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    words = ["shard", "folder", str(rgb), "--root", str(videos), "--size", "64", "--workers", "1", "--resume"]
    assert main(words) == 0
    assert f"{rgb}: finished already, kept" in caplog.text


def test_a_codec_that_cannot_keep_the_files_leaves_the_folder_free(videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos" / "jump"
    source.mkdir(parents=True)
    shutil.copy(videos / "jump" / "a.mp4", source / "a.mov")
    words = ["shard", "folder", str(tmp_path / "out"), "--root", str(tmp_path / "videos"), "--workers", "1"]
    assert main([*words, "--codec", "copy"]) == 2
    assert main([*words, "--size", "64"]) == 0
