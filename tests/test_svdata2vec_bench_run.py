"""`bench run` measures what it claims, in fair turns, and its verdict names the part that is slow."""

import dataclasses
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_factory import shard_set
from pretraining_step import Step, make_batch
from tiny import pretrain_config, student_config

from svdata2vec.bench import run as run_module
from svdata2vec.bench import stages as stages_module
from svdata2vec.bench.config import BenchConfig
from svdata2vec.bench.record import as_table, load_record
from svdata2vec.bench.run import bench_run
from svdata2vec.bench.stages import Stage, open_stages
from svdata2vec.cli import main as cli
from svdata2vec.config.schema import MaskConfig
from svdata2vec.model import video_encoder
from svdata2vec.model.video_encoder import Stem
from svdata2vec.pipeline import loader
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.blockupload import BlockUploader
from svdata2vec.pipeline.fetch import ClipFetcher
from svdata2vec.pipeline.graph import DaliDecoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.video import BlockClips
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.pretrain import Pretraining
from svdata2vec.training.stepper import Stepper


def small_bench(shards: Path, tmp_path: Path, **changes: Any) -> BenchConfig:
    base = BenchConfig.of(pretrain_config(shards, tmp_path / "run"))
    return dataclasses.replace(base, **{"rounds": 2, "seconds": 0.1, **changes})


@pytest.fixture(scope="module")
def record(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole benchmark on tiny shards, the original's way included; written to disk and read again."""
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "results" / "bench.json"
    bench_run(small_bench(tiny_shard_folder, folder, out=out, baseline="original-style"))
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert out.with_suffix(".html").read_text().startswith("<!doctype html>")
    assert not (folder / "run").exists()
    return load_record(out)


def test_the_record_is_consistent(record: dict[str, Any]) -> None:
    rates = {name: row["clips_per_s"] for name, row in record["stages"].items()}
    assert all(row["q20"] <= row["clips_per_s"] <= row["q80"] and len(row["rounds"]) == 2 for row in record["stages"].values())
    assert record["roofline"]["train"]["limit_clips_per_s"] == pytest.approx(min(rates["data"], rates["model"]))
    assert record["train_share_of_model"] == pytest.approx(rates["train"] / rates["model"])
    assert 0 < record["mfu"] < 1 and 0 <= record["data_wait_share"] < 1
    step = record["waterfall_ms_per_clip"]["step"]
    assert sum(step.values()) == pytest.approx(1e3 / rates["train"], rel=0.5)
    assert record["baseline"]["loss_difference"] < 1e-4
    assert record["baseline"]["model_speedup"] == pytest.approx(rates["model"] / rates["original model"])
    table = as_table(record)
    for name in (*rates, "MFU", record["verdict"]["text"]):
        assert name in table


def test_stored_bytes_are_those_of_the_files(record: dict[str, Any], tiny_shard_folder: Path) -> None:
    members = []
    for path in sorted(tiny_shard_folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [member.size for member in tar.getmembers()]
    clips = len(ShardSet.open(tiny_shard_folder))
    assert record["counts"]["stored_bytes_per_clip"] == pytest.approx(sum(members) / clips)
    assert record["counts"]["decoded_bytes_per_clip"] == 6 * 32 * 32 * 3


def test_the_decoder_comes_first(record: dict[str, Any]) -> None:
    rates = {name: row["clips_per_s"] for name, row in record["stages"].items()}
    seen = 2 * (12 / 15 + 14 / 15 + 1)  # of 6 frames; of 15 masks, which keep 2, so many have one within two frames of each
    assert record["decoding"] == {
        "codec": "jpeg", "pictures_per_clip": pytest.approx(seen), "sampled_per_clip": 6,
        "needed_pictures_per_s": pytest.approx(seen * rates["model"]),
        "given_pictures_per_s": pytest.approx(seen * rates["decode"]), "by": "decode", "seen_per_clip": pytest.approx(seen),
    }
    lines = as_table(record).splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("decoder, jpeg: ")]
    assert record["setting"]["masks"]["repeats"] == 1 and record["setting"]["target"]["top_layers"] == 2
    assert "clips of 5.47, of 6 those that masks let be seen; the model would take" in lines[first]
    assert lines[first + 1] == record["verdict"]["text"]


@pytest.mark.parametrize("slow", ["read", "decode", "model"])
def test_the_verdict_is_right_where_a_part_is_slowed_down(
    slow: str, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted pause must outweigh everything else, on a busy machine too: there it is tried again, four times as long.

    The pause alone does not grow with what others take of the cores.
    """
    parts = {"read": (ClipFetcher, "_planned"), "decode": (DaliDecoder, "decode"), "model": (Pretraining, "forward")}
    owner, name = parts[slow]
    work = getattr(owner, name)
    for seconds_per_clip in (0.05, 0.2, 0.8):
        pause = seconds_per_clip * 4  # per batch of four

        def slowed(*arguments: Any, pause: float = pause) -> Any:
            time.sleep(pause)
            return work(*arguments)

        monkeypatch.setattr(owner, name, slowed)
        record = bench_run(small_bench(tiny_shard_folder, tmp_path, rounds=1, seconds=0.5))
        rates = {name: row["clips_per_s"] for name, row in record["stages"].items()}
        assert rates[slow] <= 1.01 / seconds_per_clip and rates["train"] < 1.3 / seconds_per_clip
        waits = record["data_wait_share"] > 0.5
        if rates[slow] > 0.6 / seconds_per_clip and record["verdict"]["bound"] == slow and waits == (slow != "model"):
            break
    assert record["verdict"]["bound"] == slow, record["verdict"]["text"]
    assert waits == (slow != "model")


def test_batches_made_while_others_were_timed_do_not_count(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loader all that its queues, lanes and processes hold."""
    config = small_bench(tiny_shard_folder, tmp_path, rounds=1, baseline="original-style")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, readers=3, prefetch=2))
    monkeypatch.setattr(ClipLoader, "num_lanes", 2)
    untimed, time_round = [], Stage.time_round

    def noted(stage: Stage, device: torch.device, seconds: float, warm_up: int) -> None:
        untimed.append(warm_up)
        time_round(stage, device, 0, warm_up)

    monkeypatch.setattr(Stage, "time_round", noted)
    stages = bench_run(config)["stages"]
    ahead = dict.fromkeys(("data", "train", "original train"), 2 * (2 + 1) + 1 + 2)
    assert dict(zip(stages, untimed, strict=True)) == {**dict.fromkeys(stages, 2), "read": 3, **ahead}


def test_no_loader_works_while_another_stage_is_timed(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `data` and `train` make ahead, slowly here, is made before `model` and `read` have their turns."""
    decode, decoded = DaliDecoder.decode, []

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        decoded.append(1)
        return decode(*arguments)

    monkeypatch.setattr(DaliDecoder, "decode", slow)
    runtime, shards = Runtime(torch.device("cpu"), 0, 1, False), ShardSet.open(tiny_shard_folder)
    counts: dict[str, list[int]] = {"read": [], "decode": [], "data": [], "model": [], "train": []}
    with open_stages(small_bench(tiny_shard_folder, tmp_path), runtime, shards, baseline=False) as (stages, _):
        for _ in range(2):
            for name, stage in stages.items():
                before = len(decoded)
                stage.time_round(runtime.device, 0.01, 1)
                counts[name].append(len(decoded) - before)
    assert counts["read"] == counts["model"] == [0, 0] and counts["decode"] == [2, 2]
    assert all(counts[name][0] > 2 for name in ("data", "train"))  # the two that are taken, and those ahead


def test_the_authors_way_takes_a_conv3d_on_a_gpu_too(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There all frames of other networks go through gathered windows."""
    config, cpu, seen = small_bench(tiny_shard_folder, tmp_path), torch.device("cpu"), []
    monkeypatch.setattr(video_encoder, "gathers_all_frames", lambda device: True)
    for way in ("forward_all", "forward_windows"):
        real = getattr(Stem, way)

        def noted(stem: Stem, video: torch.Tensor, way: str = way, real: Any = real, **options: bool) -> torch.Tensor:
            seen.append(way)
            return real(stem, video, **options)

        monkeypatch.setattr(Stem, way, noted)
    with open_stages(config, Runtime(cpu, 0, 1, False), ShardSet.open(tiny_shard_folder), baseline=True) as (stages, _):
        for name in ("model", "original model"):
            seen.clear()
            next(stages[name].batches)
            assert seen == ["forward_windows" if name == "model" else "forward_all"]
    settings = student_config(encode="all_frames")
    for encoded, way in (("all_frames", "forward_all"), ("kept_frames", "forward_windows")):
        seen.clear()
        settings = dataclasses.replace(settings, encode=encoded)
        Step(settings, make_batch(settings, 2, cpu)).loss()
        assert seen == [way]


def test_no_stage_writes_into_the_folder_of_a_run(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even which clips a step had that was not finite."""
    config = small_bench(tiny_shard_folder, tmp_path, mask=MaskConfig(repeats=3, encoded_frames=4))
    backward = Stepper.backward
    monkeypatch.setattr(Stepper, "backward", lambda stepper, loss, clips: backward(stepper, loss * float("nan"), clips))
    with open_stages(config, Runtime(torch.device("cpu"), 0, 1, False), ShardSet.open(tiny_shard_folder), baseline=True) as (
        stages, _,
    ):
        for name in ("model", "model, one mask", "train", "original model", "original train"):
            next(stages[name].batches)
            assert stages[name].training.stepper.guard.skipped > 0
    assert not config.run.out.exists()


def test_the_files_of_two_names_that_end_alike_are_two(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "measure", lambda *_: record)
    monkeypatch.setattr(run_module, "open_preset_shards", lambda *_: None)
    for name in ("rates.v1", "rates.v2", "rates", "other.json"):
        bench_run(small_bench(tmp_path, tmp_path, out=tmp_path / name))
    beside = [f"{name}{ending}" for name in ("rates.v1", "rates.v2", "rates", "other") for ending in (".png", ".html")]
    assert {path.name for path in tmp_path.iterdir()} == {"rates.v1", "rates.v2", "rates", "other.json", *beside}


def test_every_loader_is_fitted_to_its_own_device(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's decodes on the CPU: it gets what the user chose, and nothing that was fitted to a GPU before."""
    made, build = [], stages_module.build_loader

    def noted(shards: ShardSet, config: BenchConfig, place: Runtime, *, train: bool) -> ClipLoader:
        made.append((config.encode, config.data))
        return build(shards, config, place, train=train)

    monkeypatch.setattr(stages_module, "build_loader", noted)
    monkeypatch.setattr(Stage, "time_round", lambda *_: 1 // 0)
    config = small_bench(tiny_shard_folder, tmp_path, baseline="original-style")
    data = dataclasses.replace(config.data, threads=None, prefetch=2)
    with pytest.raises(ZeroDivisionError):
        bench_run(dataclasses.replace(config, data=data))
    assert made == [("kept_frames", data)] * 4 + [("all_frames", data)]


def test_the_authors_way_reads_frames_where_ours_reads_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, for which the CPU stands here."""
    shards = shard_set(tmp_path / "blocks", 8, codec="blocks", num_frames=lambda i: 10, size=64)
    form, taken = shards.manifest.blocks, []
    assert form is not None
    monkeypatch.setattr(loader, "make_decoder", lambda *_: BlockUploader(form, "cpu"))
    inputs = Pretraining.inputs

    def noted(run: Pretraining, batch: ClipBatch, epoch: int) -> tuple[torch.Tensor, ...]:
        taken.append((run.config.encode, type(batch.video_BTHWC)))
        return inputs(run, batch, epoch)

    monkeypatch.setattr(Pretraining, "inputs", noted)
    runtime = Runtime(torch.device("cpu"), 0, 1, False)
    with open_stages(small_bench(tmp_path / "blocks", tmp_path), runtime, shards, baseline=True) as (stages, difference):
        taken.clear()
        next(stages["model"].batches)
        next(stages["original model"].batches)
    assert taken == [("kept_frames", BlockClips), ("all_frames", torch.Tensor)]
    assert difference is not None and difference < 1e-3


def test_networks_that_disagree_are_not_timed(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Pretraining.forward

    def wrong(run: Pretraining, batch: Any, epoch: int) -> Any:
        output = forward(run, batch, epoch)
        return dataclasses.replace(output, loss=output.loss * (1.5 if run.config.encode == "all_frames" else 1.0))

    monkeypatch.setattr(Pretraining, "forward", wrong)
    monkeypatch.setattr(Stage, "time_round", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match="the same weights give the loss"):
        bench_run(small_bench(tiny_shard_folder, tmp_path, baseline="original-style"))


def test_a_missing_data_set_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "run", "demo", "--data.shards", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err
    assert "none: no such folder" in message and "`bash tools/demo.sh` makes the demo's shards" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "unknown benchmark 'fly'"),
        (["run", "nope"], "unknown preset 'nope'"),
        (["run", "demo", "--round", "3"], "did you mean --rounds"),
        (["run", "demo", "--rounds", "0"], "rounds is 0"),
        (["run", "demo", "--optim.accumulate", "2"], "optim.accumulate"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
