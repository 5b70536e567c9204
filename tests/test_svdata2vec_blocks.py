"""The whole workflow on shards of codec blocks: every command that packs, checks, shows, trains, tests and measures."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from shards_data import write_motion_set

from svdata2vec.cli.main import main
from svdata2vec.pipeline import loader
from svdata2vec.pipeline.blockupload import BlockUploader

SMALL = shlex.split(
    "--data.train-split train --data.test-split half_val --data.num-frames 4 --data.size 32 --data.threads 1 --model.width 32 "
    "--model.depth 4 --model.decoder-depth 1 --model.heads 2 --model.stem-width 16 --run.batch-size 3 --run.device cpu"
)


@pytest.mark.slow
def test_the_whole_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pickle, videos = write_motion_set(tmp_path / "source", 9)

    def run(line: str, *words: str) -> str:
        assert main([*shlex.split(line), *words]) == 0, line
        return capsys.readouterr().out

    said = run(f"shard pyskl shards --pickle-path {pickle} --videos {videos} --size 64 --workers 1",
               "--codec", "blocks", "--luma-bits", "2")
    assert "packed          9 clips" in said
    manifest = json.loads(Path("shards/manifest.json").read_text())
    assert (manifest["codec"], manifest["codec_options"]) == ("blocks", {"luma_bits": 2, "chroma_bits": 2})
    assert "no fault found" in run("verify shards")
    run("inspect shards --split train --out pictures")
    assert len(list(Path("pictures").glob("*.png"))) == 3
    run("pretrain demo --data.shards shards --run.out pre --run.epochs 1", *SMALL)
    run("finetune demo --data.shards shards --run.out rgb --from pre --run.epochs 1", *SMALL, "--label-fraction", "1.0")
    assert "top" in run("evaluate rgb --device cpu")
    assert run(f"predict rgb {videos}/S001C001P001R001A001.mp4 --device cpu").strip()
    run("report pre rgb --out report.html")
    run("embed pre --split train --shards shards --out features.npy --device cpu")
    run("bench run demo --data.shards shards --out bench.json --rounds 1 --seconds 0.5", *SMALL)
    record = json.loads(Path("bench.json").read_text())
    assert record["setting"]["codec"] == "blocks"


@pytest.mark.slow
def test_commands_take_clips_that_the_model_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's road on the CPU: with reader processes, changed pixels, several views, blended clips; features as by decoding."""
    monkeypatch.chdir(tmp_path)
    pickle, videos = write_motion_set(tmp_path / "source", 9)

    def run(line: str, *words: str) -> None:
        assert main([*shlex.split(line), *words]) == 0, line

    run(f"shard pyskl shards --pickle-path {pickle} --videos {videos} --size 64 --workers 1 --codec blocks")
    real = loader.make_decoder
    monkeypatch.setattr(loader, "make_decoder", lambda *given: BlockUploader(given[-1], "cpu"))
    run("pretrain demo --data.shards shards --run.out pre --run.epochs 1 --data.readers 2", *SMALL)
    run("pretrain demo --data.shards shards --run.out changed --run.epochs 1 --data.augment.brightness 0.3 "
        "--data.augment.erase-probability 0.5", *SMALL)
    run("finetune demo --data.shards shards --run.out rgb --from pre --run.epochs 1 --label-fraction 1.0 --eval-every 1 "
        "--data.views 2 --head.mixup 0.4", *SMALL)
    embed = "embed pre --split train --shards shards --device cpu --out"
    run(f"{embed} uploaded.npy")
    monkeypatch.setattr(loader, "make_decoder", real)
    run(f"{embed} decoded.npy")
    uploaded, decoded = np.load("uploaded.npy"), np.load("decoded.npy")
    assert 0 < np.abs(uploaded - decoded).max() < 0.05 * np.abs(decoded).mean()  # a grey level here and there
