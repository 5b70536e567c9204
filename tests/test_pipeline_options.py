"""The pipeline's options from the command line to the loader: augmentation, evaluation views, remote shards."""

import json
import re
import subprocess
import sys
from types import ModuleType

import fsspec
import numpy as np
import pytest
import torch
from pipeline_factory import shard_set

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.options import read
from svdata2vec.config.files import from_dict, to_json
from svdata2vec.config.presets import demo_pretrain
from svdata2vec.config.schema import DataConfig, PretrainConfig, RunConfig
from svdata2vec.evaluation.evaluate import predict_split
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.decoders import make_decoder
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.data import build_loader, open_data
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.joined import JoinedShards
from svdata2vec.shards.reading.remote import RemoteShardSet
from svdata2vec.shards.reading.shardset import ShardSet

DATA = DataConfig("unused", "all", "all", num_frames=4, size=32)
HERE = Runtime(torch.device("cpu"), 0, 1, bf16=False)


def test_augmentation_comes_from_the_command_line():
    words = ["pretrain", "demo", "--data.augment.brightness", "0.4", "--data.augment.temporal-crop", "0.5", "0.9",
             "--data.augment.erase-probability", "0.25"]
    _, config = read(words, COMMANDS, "svdata2vec")
    assert config.data.plan().augment == AugmentConfig((0.5, 0.9), brightness=0.4, erase_probability=0.25)
    assert from_dict(type(config), json.loads(to_json(config)), "saved") == config
    assert DATA.plan() == PlanConfig(num_frames=4, size=32), "off by default"


@pytest.mark.parametrize(
    ("option", "values", "found"),
    [
        ("data.num_frames", ["0"], "is 0: expected a whole number from 1 to 10000"),
        ("data.size", ["0"], "is 0: expected a multiple of 32 from 32 to 2880"),
        ("data.size", ["48"], "is 48: expected a multiple of 32"),
        ("data.crop", ["middle"], "is 'middle'; expected one of"),
        ("data.frame_draw", ["random"], "is 'random'; expected one of"),
        ("data.views", ["0"], "is 0: expected a whole number from 1 to 1000"),
        ("data.views", ["2", "--data.frame-draw", "original"], "is 2 with frame_draw 'original'.* set frame_draw to 'fixed'"),
        ("data.augment.temporal_crop", ["0.9", "0.5"], r"is \(0\.9, 0\.5\): expected smallest <= largest"),
        ("data.augment.brightness", ["1.5"], r"is 1\.5: expected a number from 0 to 1"),
        ("data.augment.contrast", ["-1"], r"is -1\.0: expected a number from 0 to 1"),
        ("data.augment.saturation", ["nan"], "is nan: expected a number from 0 to 1"),
        ("data.augment.hue", ["0.7"], r"is 0\.7: expected a number from 0 to 0\.5"),
        ("data.augment.erase_probability", ["2"], r"is 2\.0: expected a number from 0 to 1"),
        ("data.augment.erase_area", ["0", "0.2"], r"is 0\.0: expected a number above 0, 1 at most"),
        ("model.persons", ["0"], "is 0: expected a whole number from 1 to 100"),
    ],
)
def test_a_wrong_value_is_refused_under_the_name_of_its_option(option, values, found):
    """Before any shard is opened; in a saved configuration as on the command line."""
    with pytest.raises(UserError) as caught:
        read(["pretrain", "demo", f"--{option.replace('_', '-')}", *values], COMMANDS, "svdata2vec")
    message = str(caught.value)
    assert re.search(found, message) and re.search(rf"(?<![\w.]){option.replace('_', '[_-]')}(?![\w.])", message), message


def test_the_configuration_needs_no_torch():
    """The command line's help must not wait for importing it or DALI."""
    program = "import sys, svdata2vec.config.schema; sys.exit(bool({'torch', 'nvidia.dali', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_inspect_names_its_own_options():
    with pytest.raises(UserError, match=r"^--num-frames is 0: expected a whole number from 1 to 10000"):
        read(["inspect", "no-shards", "--split", "all", "--num-frames", "0"], COMMANDS, "svdata2vec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": "middle"}, r'^config\.json: data\.crop is "middle"; expected one of "joints", "boxes"'),
        ({"frame_draw": "random"}, r'data\.frame_draw is "random"; expected one of "fixed", "original"'),
        ({"augment": {"hue": 0.7}}, r"data\.augment\.hue is 0\.7"),
    ],
)
def test_a_saved_configuration_names_the_field_too(change, message):
    values = json.loads(to_json(demo_pretrain()))
    with pytest.raises(UserError, match=message):
        from_dict(PretrainConfig, {**values, "data": {**values["data"], **change}}, "config.json")


class Mean(torch.nn.Module):
    """Two scores computed from a clip's pixels."""

    def forward(self, video_BTHWC, joints_BMTVC):
        grey_B = video_BTHWC.float().mean((1, 2, 3, 4)) / 255
        return torch.stack([grey_B * 9, 4 - grey_B], dim=1)


def test_scores_are_the_mean_of_the_views(tiny_shard_folder):
    shards, config = ShardSet.open(tiny_shard_folder), PretrainConfig(data=DATA, run=RunConfig(batch_size=5))
    with build_loader(shards, config, HERE, train=False, views=3) as loader:
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for place, seed in (("options", 0), ("more", 100)):
        shard_set(tmp_path / place, 2, size=64, first_seed=seed)
        for path in (tmp_path / place).iterdir():
            store.pipe_file(f"/{place}/{path.name}", path.read_bytes())
    remote = open_data(DataConfig("memory://options", remote_fetch="shards", remote_cache_gb=0.5))
    assert isinstance(remote, RemoteShardSet) and remote.cache.max_bytes == 500_000_000
    remote.sample(0)
    assert remote.cache.folder.is_relative_to(tmp_path / "cache" / "svdata2vec")
    assert [path.name.partition("-")[2] for path in remote.cache.folder.glob("*.tar")] == ["shard-000000.tar"]
    joined = open_data(DataConfig("memory://options,memory://more", remote_cache_gb=0.5))
    assert isinstance(joined, JoinedShards)
    assert [each.cache.max_bytes for each in joined.sets] == [250_000_000] * 2  # type: ignore[attr-defined]
    for place in ("options", "more"):
        store.rm(f"/{place}", recursive=True)


def test_without_a_home_shards_behind_a_url_ask_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the machine does not know
    with pytest.raises(UserError, match="memory://nobody: you have no home folder for its cache; set XDG_CACHE_HOME to"):
        open_data(DataConfig("memory://nobody"))
    code = "import pwd; pwd.getpwuid = {}.__getitem__; import svdata2vec.runs.data"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("installed", [None, ModuleType("nvidia.dali")], ids=["missing", "broken"])
def test_without_dali_one_line_says_what_to_do(installed: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", installed)
    for name in ("nvidia.dali.fn", "svdata2vec.pipeline.graph"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=r"NVIDIA DALI cannot be imported .*nvidia\.dali.*cuda13.*--data\.decoder reference"):
        make_decoder("dali", "jpeg", 32, "cpu", 1)
    assert make_decoder("reference", "jpeg", 32, "cpu", 1) is not None
