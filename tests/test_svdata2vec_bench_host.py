"""`bench host`: all of the host's work for a batch, without decoding."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_factory import shard_set
from tiny import data_config, pretrain_config

from svdata2vec.bench.config import HostConfig
from svdata2vec.bench.host import FORMAT, PARTS, bench_host
from svdata2vec.cli import main as cli
from svdata2vec.pipeline import graph, plan, producer
from svdata2vec.pipeline.augment import AugmentConfig, PixelAugment
from svdata2vec.pipeline.graph import DaliDecoder, InputOnlyDecoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet


def test_the_record_holds_what_was_measured(tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "host.json"
    config = replace(HostConfig.of(pretrain_config(tiny_shard_folder, tmp_path)), batches=(4, 16), rounds=3, out=out)
    record = bench_host(config)
    assert json.loads(out.read_text()) == json.loads(json.dumps(record)) and record["format"] == FORMAT
    assert [(row["batch_size"], row["readers"]) for row in record["rows"]] == [(4, 0), (4, 1), (16, 0), (16, 1)]
    for row in record["rows"]:
        assert set(row["parts"]) == set(PARTS) and all(value >= 0 for value in row["parts"].values())
        assert row["q20"] <= row["ms_per_clip"] <= row["q80"]
        assert (row["reader_ms_per_clip"] > 0) is (row["readers"] == 1)
        assert all(low <= row["parts"][part] <= high for part, (low, high) in row["parts_q20_q80"].items())
    assert record["host_ms_per_clip"] == record["rows"][0]["ms_per_clip"]  # all of it, on one thread
    assert record["training_process_ms_per_clip"] == record["rows"][1]["ms_per_clip"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"training process beside reader processes: {record['rows'][1]['ms_per_clip']:.3f} ms per clip"
    assert "Nothing is decoded" in lines[0] and lines[-1] == f"host: {record['host_ms_per_clip']:.3f} ms per clip"
    assert not list(tmp_path.glob("run*"))


def test_dali_is_fed_as_on_a_gpu(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JPEGs and maps that reach the graph are those that the decoding graph takes."""
    shards = ShardSet.open(tiny_shard_folder)
    with ClipLoader(shards, "all", data_config(tiny_shard_folder).plan(), batch_size=4, train=True) as loader:
        clips = [clip.encoded for clip in next(loader.make_producer().read(0, 0)).clips]
    fed: list[dict[str, list[np.ndarray]]] = []
    for decoder in (InputOnlyDecoder(32), DaliDecoder("jpeg", 32, geometry="warp")):
        real = decoder._built

        def recording(*arguments, decoder: DaliDecoder = decoder, real=real):
            fed.append({name: [np.asarray(value) for value in values] for name, values in decoder._fed.items()})
            return real(*arguments)

        monkeypatch.setattr(decoder, "_built", recording)
        assert decoder.decode(clips, torch.empty((4, 6, 32, 32, 3), dtype=torch.uint8)) == {}
        decoder.close()
    assert set(fed[0]) == {"data", "matrix"} and len(fed[0]["data"]) == 4 * 6
    for name in fed[0]:
        for one, two in zip(fed[0][name], fed[1][name], strict=True):
            np.testing.assert_array_equal(one, two)
    assert InputOnlyDecoder(32).clips_per_run(40) == graph.FRAMES_PER_RUN["cuda"] // 40


def test_blocks_are_placed_and_uploaded(tmp_path: Path) -> None:
    shard_set(tmp_path / "blocks", 4, codec="blocks", size=64)
    config = replace(HostConfig.of(pretrain_config(tmp_path / "blocks", tmp_path)), batches=(4,), rounds=2)
    config = replace(config, data=replace(config.data, train_split="all"))
    record = bench_host(config)
    assert [row["readers"] for row in record["rows"]] == [0, 1] and record["setting"]["codec"] == "blocks"
    assert all(row["parts"]["feed"] > 0 for row in record["rows"])


@pytest.mark.parametrize("codec", ["jpeg", "blocks"])
def test_pixels_are_left_to_the_gpu(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is changed in them is drawn, as for training, and not carried out, and the table says so."""
    shard_set(tmp_path / codec, 4, codec=codec, size=64)
    drawn: list[PixelAugment | None] = []
    draw = plan.draw_pixel_augment
    monkeypatch.setattr(plan, "draw_pixel_augment", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    monkeypatch.setattr(producer, "apply_pixel_augment", lambda *_: pytest.fail("pixels were changed"))
    config = replace(HostConfig.of(pretrain_config(tmp_path / codec, tmp_path)), batches=(4,), readers=(0,), rounds=1)
    config = replace(config, data=replace(config.data, train_split="all", augment=AugmentConfig(brightness=0.3)))
    assert bench_host(config)["setting"]["pixels_left_out"] and drawn and None not in drawn
    assert "Changes of pixels are drawn and not carried out: a GPU does that" in capsys.readouterr().out


def test_other_codecs_are_refused(tmp_path: Path) -> None:
    shard_set(tmp_path / "vp9", 4, codec="vp9", size=64)
    config = HostConfig.of(pretrain_config(tmp_path / "vp9", tmp_path))
    with pytest.raises(UserError, match="codec vp9"):
        bench_host(config)


def test_sets_with_small_weights_fill_a_batch(tmp_path: Path) -> None:
    folders = ",".join(str(tmp_path / name) for name in "ab")
    for first, name in enumerate("ab"):
        shard_set(tmp_path / name, 3, first_seed=10 * first)
    config = replace(HostConfig.of(pretrain_config(tmp_path / "a", tmp_path)), batches=(5,), rounds=1)
    record = bench_host(replace(config, data=replace(config.data, shards=folders, weights=(0.1, 0.1), train_split="all")))
    assert record["rows"][0]["batch_size"] == 5


@pytest.mark.parametrize("name", ["batches", "readers"])
def test_nothing_to_measure_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "host", "demo", "--data.shards", "nowhere", f"--{name}"]) == 2
    assert capsys.readouterr().err.startswith(f"svdata2vec bench: --{name} has no values: expected one ")


def test_a_device_that_would_not_be_used_is_refused(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = HostConfig.of(pretrain_config(tiny_shard_folder, tmp_path))
    with pytest.raises(UserError, match=r"^--run\.device cuda: bench host measures the host alone"):
        bench_host(replace(config, run=replace(config.run, device="cuda")))
