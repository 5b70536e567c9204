"""The pipeline's options from the command line to the loader: augmentation, evaluation views, remote shards."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from tiny import tiny_shards

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.options import read
from svdata2vec.config.files import from_dict, to_json
from svdata2vec.config.schema import AugmentConfig, DataConfig, RunConfig
from svdata2vec.evaluation.evaluate import predict_split
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.data import build_loader, open_data, plan_config
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import RemoteShardSet
from svdata2vec.shards.reading.shardset import ShardSet

DATA = DataConfig("unused", "all", "all", num_frames=4, size=32)
HERE = Runtime(torch.device("cpu"), 0, 1, bf16=False)


def test_augmentation_comes_from_the_command_line():
    words = ["pretrain", "demo", "--data.augment.brightness", "0.4", "--data.augment.temporal-crop", "0.5", "0.9",
             "--data.augment.erase-probability", "0.25"]
    _, config = read(words, COMMANDS, "svdata2vec")
    plan = plan_config(config.data, 2)
    assert (plan.brightness, plan.temporal_crop, plan.erase_probability, plan.hue) == (0.4, (0.5, 0.9), 0.25, 0.0)
    assert from_dict(type(config), json.loads(to_json(config)), "saved") == config
    assert plan_config(DATA, 2) == PlanConfig(num_frames=4, size=32), "off by default"
    with pytest.raises(UserError, match=r"data\.augment\.hue 0\.7.*expected hue in 0\.\.0\.5"):
        plan_config(DataConfig("x", augment=AugmentConfig(hue=0.7)), 2)
    with pytest.raises(UserError, match=r"data\.views is 2 with data\.frame_draw original"):
        DataConfig("x", views=2, frame_draw="original")


class Mean(torch.nn.Module):
    """Two scores out of a clip's pixels."""

    def forward(self, video_BTHWC, joints_BMTVC):
        grey_B = video_BTHWC.float().mean((1, 2, 3, 4)) / 255
        return torch.stack([grey_B * 9, 4 - grey_B], dim=1)


def test_scores_are_the_mean_of_the_views(tiny_shard_folder):
    shards, run = ShardSet.open(tiny_shard_folder), RunConfig(batch_size=5)
    with build_loader(shards, DATA, run, HERE, 2, train=False, views=3) as loader:
        mean = predict_split(Mean(), loader, HERE)
        batches = list(loader)
    single: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for key, score in zip(batch.keys, Mean()(batch.video_BTHWC, None).softmax(1).numpy(), strict=True):
            single.setdefault(key, []).append(score)
    assert mean.keys == list(single) and all(len(scores) == 3 for scores in single.values())
    np.testing.assert_allclose(mean.scores_nc, [np.mean(scores, axis=0) for scores in single.values()], rtol=1e-6)
    assert mean.labels_n.tolist() == shards.index["label"][shards.find(mean.keys)].tolist()
    assert max(np.ptp(scores, axis=0).max() for scores in single.values()) > 0, "views differ"


def test_remote_options_reach_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("svdata2vec.shards.reading.remote.DEFAULT_CACHE", tmp_path / "cache")
    folder, store = tiny_shards(tmp_path / "shards"), fsspec.filesystem("memory")
    for path in Path(folder).iterdir():
        store.pipe_file(f"/options/{path.name}", path.read_bytes())
    remote = open_data(DataConfig("memory://options", remote_fetch="shards", remote_cache_gb=0.5))
    assert isinstance(remote, RemoteShardSet) and remote.cache.max_bytes == 500_000_000
    remote.sample(0)
    assert [path.name for path in remote.cache.folder.glob("*.tar")] == ["shard-000000.tar"]
    store.rm("/options", recursive=True)
