"""The end of the demo: the training length of its rival from scratch, and the lines that compare them."""

import json
from dataclasses import replace
from pathlib import Path

import demo_summary
import equal_compute
import pytest
from tiny import finetune_config, pretrain_config

from svdata2vec.shards.errors import UserError
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain


def test_from_scratch_gets_the_computing_of_pretraining_besides(tiny_shard_folder: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "pretrain"))
    finetune(finetune_config(tiny_shard_folder, tmp_path / "pretrained", pretrained=tmp_path / "pretrain"))
    own = finetune_config(tiny_shard_folder, tmp_path / "pretrained").run.epochs
    epochs = equal_compute.equal_epochs(tmp_path / "pretrain", tmp_path / "pretrained")
    assert own < epochs < own + 4 * pretrain_config(tiny_shard_folder, tmp_path).run.epochs
    with pytest.raises(UserError, match="pretrain: not a fine-tuning run"):
        equal_compute.equal_epochs(tmp_path / "pretrain", tmp_path / "pretrain")


def test_its_epochs_are_of_the_clips_that_are_trained_on(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of those that are held out to validate on: of 12 clips an epoch takes two batches of 4."""
    config = replace(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=3, batch_size=4), eval_every=3)
    finetune(config)
    monkeypatch.setattr(equal_compute, "worth_in_clips", lambda *_: 8)
    assert equal_compute.equal_epochs(tmp_path / "pretrain", config.run.out) == 3 + 1


def demo_folder(root: Path, labels: int = 96) -> Path:
    record = {
        "epoch": 1, "step": 10, "loss": 1.5, "target_std": 0.9, "clips_per_second": 40.0, "seconds_total": 4.0,
        "cpu_seconds": 3.0,
    }
    for number, name in enumerate(("pretrain", "pretrained", "scratch")):
        (root / name).mkdir(parents=True)
        (root / name / "metrics.jsonl").write_text(json.dumps({**record, "step": 10 * (number + 1)}) + "\n")
        result = {"classes": [*"abcdefghijkl"], "count": 180, "labels": 96, "top1": 0.1 * (3 - number)}
        (root / name / "result.json").write_text(json.dumps(result))
    small = {"score": 0.5, "labels": labels, "steps": 7, "clips_seen": 70, "cpu_seconds": 12.0}
    (root / "small_cnn.json").write_text(json.dumps(small))
    return root


def test_the_demo_ends_with_all_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = demo_summary.summarise(demo_folder(tmp_path / "demo"))
    assert figures["costs"]["pretrained"] == {"steps": 30, "clips_seen": 320, "cpu_seconds": 6.0, "seconds": 8.0}
    chance, small, scratch, pretrained, note = demo_summary.lines(figures).splitlines()
    assert "8.3 %   12 classes, 180 test clips" in chance
    assert "50.0 %   43 to 57; 7 steps, 12 CPU seconds" in small
    assert "as many multiply-adds  10.0 %" in scratch and "30 steps" in scratch
    assert "20.0 %" in pretrained and "30 steps, 6 CPU seconds" in pretrained and "96 labelled clips for each" in note
    with pytest.raises(UserError, match="had not the same labels"):
        demo_summary.summarise(demo_folder(tmp_path / "other", labels=48))
    read = tmp_path / "demo" / "small_cnn.json"
    monkeypatch.setattr("sys.argv", ["demo_summary.py", str(tmp_path / "demo"), "--json", str(read)])
    assert demo_summary.main() == 2 and json.loads(read.read_text())["score"] == 0.5
    read.write_text("{")
    with pytest.raises(UserError, match=r"small_cnn.json holds no figures; run tools/demo.sh again"):
        demo_summary.summarise(tmp_path / "demo")
    (tmp_path / "demo" / "scratch" / "result.json").unlink()
    with pytest.raises(UserError, match=r"demo: scratch/result.json not found; `bash tools/demo.sh` leaves them"):
        demo_summary.summarise(tmp_path / "demo")
