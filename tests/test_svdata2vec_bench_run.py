"""The benchmark counts right, measures what it says, and its verdict names the part that is slow."""

import copy
import dataclasses
import itertools
import json
import re
import tarfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import shard_set
from pretraining_step import Step, make_batch
from tiny import pretrain_config, student_config
from torch.utils.flop_counter import FlopCounterMode

from svdata2vec.bench import limits
from svdata2vec.bench.advice import Surroundings
from svdata2vec.bench.config import BenchConfig
from svdata2vec.bench.limits import Rates, forward_macs, roofline, step_bytes, step_flops, step_layers
from svdata2vec.bench.record import SCHEMA, as_table, compare, decoding_line, load_record
from svdata2vec.bench.run import bench_run
from svdata2vec.bench.stages import Stage, open_stages
from svdata2vec.bench.verdict import doubts, judge
from svdata2vec.cli import main as cli
from svdata2vec.config.records import faults
from svdata2vec.config.schema import DataConfig, ModelConfig, PretrainConfig
from svdata2vec.model import video_encoder
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
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

STUDENT = ("video", "skeleton", "encoder", "decoder")
DEFAULT = PretrainConfig()
ALL_FRAMES = dataclasses.replace(DEFAULT, encode="all_frames")


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


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_multiply_adds_of_the_default_preset_by_hand() -> None:
    stem = 112 * 112 * 64 * (3 * 5 * 7 * 7)
    first = 4 * 56 * 56 * 64 * (9 * 64)
    stages = ((28, 128), (14, 256), (7, 512))
    later = sum(side * side * wide * (9 * wide // 2 + 3 * 9 * wide + wide // 2) for side, wide in stages)
    frame = stem + first + later + 512 * 256
    block = 12 * 256 * 256
    encoder = 8 * (13 * block + 2 * 13 * 13 * 256)
    decoder = 3 * (40 * block + 2 * 40 * 40 * 256) + (13 + 40) * 256 * 256
    skeleton = 40 * (2 * 2 * 17) * 256
    for config, frames, stated in ((DEFAULT, 13, 29.9), (ALL_FRAMES, 40, 91.6)):
        counted = forward_macs(step_layers(config, 17), STUDENT)
        assert counted == frames * frame + encoder + decoder + skeleton
        assert counted / 1e9 == pytest.approx(stated, abs=0.05)


def test_flop_of_a_step_by_hand() -> None:
    layers = step_layers(DEFAULT, 17)
    student, teacher = forward_macs(layers, STUDENT), forward_macs(layers, ["teacher"])
    without_input_gradient = 13 * 112 * 112 * 64 * 735 + 40 * 68 * 256
    assert step_flops(layers) == 2 * (3 * student - without_input_gradient + teacher)
    assert teacher == 8 * (40 * 12 * 256 * 256 + 2 * 40 * 40 * 256)


@pytest.mark.parametrize(("encode", "joint_motion"), [("kept_frames", 0.0), ("all_frames", 0.0), ("kept_frames", 2.0)])
def test_counts_agree_with_what_pytorch_executes(encode: Any, joint_motion: float) -> None:
    """Forward and backward of student and teacher, counted by PyTorch from the calls themselves."""
    model = ModelConfig(width=32, depth=3, decoder_depth=2, heads=2, stem_width=16, impl="torch", joint_motion=joint_motion)
    config = PretrainConfig(
        data=DataConfig(num_frames=10, size=64), model=model, encode=encode,
        target=dataclasses.replace(DEFAULT.target, top_layers=3),
    )
    student = SVData2Vec(config, 17)
    teacher = Teacher(student.encoder.blocks)
    masks = draw_masks(["a"], 10, config.mask, 0, 0)
    with FlopCounterMode(display=False) as forward:
        output = student(torch.zeros(1, 10, 64, 64, 3, dtype=torch.uint8), torch.rand(1, 2, 10, 17, 2), masks)
    with FlopCounterMode(display=False) as backward:
        output.prediction_NTD.sum().backward()
    with FlopCounterMode(display=False) as teaching:
        teacher(output.teacher_tokens_BTD, config.target, "torch")
    layers = step_layers(config, 17)
    assert forward.get_total_flops() == 2 * forward_macs(layers, STUDENT)
    assert teaching.get_total_flops() == 2 * forward_macs(layers, ["teacher"])
    whole = sum(counter.get_total_flops() for counter in (forward, backward, teaching))
    assert whole == pytest.approx(step_flops(layers), rel=0.01)


def test_bytes_of_a_step() -> None:
    layers = step_layers(DEFAULT, 17)
    big = dataclasses.replace(DEFAULT, run=dataclasses.replace(DEFAULT.run, batch_size=64))
    weights = 4 * sum(layer.weights * (4 if layer.part == "teacher" else 10) for layer in layers)
    assert step_bytes(layers, DEFAULT, 2) - step_bytes(layers, big, 2) == pytest.approx(weights / 32 - weights / 64)
    clip = 40 * 224 * 224 * 3
    activations = step_bytes(layers, DEFAULT, 2) - weights / 32 - clip
    assert step_bytes(layers, DEFAULT, 4) - weights / 32 - clip == pytest.approx(2 * activations)
    parameters = sum(p.numel() for p in SVData2Vec(DEFAULT, 17).parameters())
    counted = sum(layer.weights for layer in layers if layer.part != "teacher")
    assert counted == pytest.approx(parameters, rel=0.005)  # biases, norms, embeddings are left out


def test_stored_bytes_are_those_of_the_files(record: dict[str, Any], tiny_shard_folder: Path) -> None:
    members = []
    for path in sorted(tiny_shard_folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [member.size for member in tar.getmembers()]
    clips = len(ShardSet.open(tiny_shard_folder))
    assert record["counts"]["stored_bytes_per_clip"] == pytest.approx(sum(members) / clips)
    assert record["counts"]["decoded_bytes_per_clip"] == 6 * 32 * 32 * 3


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_readers_read_every_byte_of_the_tars_once(
    tiny_shard_folder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, seen = ShardSet.open(tiny_shard_folder), []
    real = limits._read_part

    def noted(tars: Sequence[Path], sizes: Sequence[int], start: int, length: int) -> int:
        seen.append((start, done := real(tars, sizes, start, length)))
        return done

    monkeypatch.setattr(limits, "_read_part", noted)
    assert (limits.storage_bytes_per_second(shards, at_once) or 0) > 0
    whole = sum(tar.stat().st_size for tar in shards.tars)
    parts = sorted(seen)
    assert len(parts) == at_once and sum(done for _, done in parts) == whole
    assert [start for start, _ in parts] == [0, *itertools.accumulate(done for _, done in parts[:-1])]
    assert real(shards.tars, [tar.stat().st_size for tar in shards.tars], whole - 5, 100) == 5


def test_of_pictures_alone_those_are_read_that_are_seen() -> None:
    """Two clips of 10 and 3 frames, of which 5 are seen: half of one, all of the other; of videos all."""
    config = dataclasses.replace(DEFAULT, encode="all_frames", data=dataclasses.replace(DEFAULT.data, num_frames=5))
    index = np.array([([600, 400], 10), ([90, 0], 3)], dtype=[("size", "i8", 2), ("frames", "i8")])
    for codec, expected in (("jpeg", (500 + 90) / 2), ("blocks", (500 + 90) / 2), ("vp9", (1000 + 90) / 2)):
        shards: Any = types.SimpleNamespace(index=index, manifest=types.SimpleNamespace(codec=codec))
        assert limits.read_bytes(shards, np.arange(2), config) == expected


# ---- the record -----------------------------------------------------------------------------------------------------


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


def test_records_are_checked(record: dict[str, Any], tmp_path: Path) -> None:
    assert faults(record, SCHEMA) == []
    broken = copy.deepcopy(record)
    del broken["stages"]["train"]["q80"]
    broken["mfu"] = "high"
    assert faults(broken, SCHEMA) == ["no stages.train.q80", "mfu is str 'high'"]
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="no such file; expected one written by"):
        load_record(path)
    for content, message in (
        ("{", "not JSON"), ("[]", "not a record"), (json.dumps({**record, "format": "other"}), "not a record"),
        (json.dumps({**record, "version": 99}), "version 99, this program reads 1"),
        (json.dumps(broken), r"a.json is damaged: no stages.train.q80, mfu is str"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_record(path)


def test_compare_says_what_changed(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(record)
    other["stages"]["train"] = {name: 2 * record["stages"]["train"][name] for name in ("clips_per_s", "q20", "q80")}
    other["stages"]["train"]["rounds"] = []
    other["setting"]["batch_size"] = 99
    other["machine"]["device"] = "another GPU"
    lines = compare(record, other).splitlines()
    assert lines[0].startswith("different machines: cpu") and "another GPU" in lines[0]
    assert lines[1] == "different settings: batch_size 4 | 99"
    (train,) = (line for line in lines if line.startswith("train "))
    assert train.split()[-1] == "2.00"
    (model,) = (line for line in lines if line.startswith("model "))
    assert model.endswith("1.00  within the spread")
    for name, one in (("a", record), ("b", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert capsys.readouterr().out == compare(record, other)


@pytest.mark.parametrize(
    ("setting", "launch"),
    [
        ({"compile": True}, "compiled"), ({"compile": True, "launch": "eager"}, "compiled"), ({"launch": "graph"}, "graph"),
        ({"compile": False, "launch": "graph"}, "graph"), ({"launch": "eager"}, "eager"), ({"compile": False}, "eager"),
        ({}, "eager"),
    ],
)
def test_compare_says_which_was_launched_in_another_way(setting: dict[str, Any], launch: str, record: dict[str, Any]) -> None:
    """Records of earlier versions too, which have `compile`."""
    other = copy.deepcopy(record)
    del other["setting"]["launch"]
    other["setting"] |= setting
    said = [line for line in compare(record, other).splitlines() if line.startswith("different")]
    assert said == ([] if launch == "eager" else [f"different settings: launch eager | {launch}"])


def test_figures_that_cannot_be_trusted_are_named() -> None:
    def row(low: float, middle: float, high: float) -> dict[str, Any]:
        return {"q20": low, "clips_per_s": middle, "q80": high}

    quiet = {"data": row(99, 100, 101), "model": row(49, 50, 51), "train": row(47, 48, 50)}
    assert doubts(quiet, {}) == []
    beyond = {"read": {"efficiency": 7.5, "limited_by": "tars read in order"}, "model": {"efficiency": None, "limited_by": ""},
              "data": {"efficiency": 1.05, "limited_by": "read alone"}}
    assert doubts(quiet, beyond) == [
        "doubtful: read reaches 7.5 times its limit (tars read in order), which is therefore left out"
    ]
    (spread,) = doubts({**quiet, "model": row(30, 50, 54)}, {})
    assert "the rounds of model go from 30.0 to 54.0" in spread
    (changed,) = doubts({**quiet, "train": row(70, 72, 73)}, {})
    assert "train (72.0 clips/s) is faster than its slower half (51.0)" in changed


def test_limits_come_from_counts_and_ceilings() -> None:
    counts = {"flops_per_clip": 100.0, "step_bytes_per_clip": 10.0, "read_bytes_per_clip": 5.0, "decoded_bytes_per_clip": 2}
    ceilings = {"matmul_flops_per_s": 1000.0, "copy_bytes_per_s": 200.0, "storage_bytes_per_s": 500.0}
    found = roofline(Rates(read=50, decode=25, data=20, model=5, train=4), counts, ceilings)
    limits = {name: (row["limit_clips_per_s"], row["limited_by"], row["efficiency"]) for name, row in found.items()}
    assert limits == {
        "read": (100, "tars read in order", 0.5), "decode": (50, "frames copied once", 0.5), "data": (25, "decode alone", 0.8),
        "model": (10, "matrix products", 0.5), "train": (5, "model alone", 0.8),
    }
    blocks = {**counts, "uploaded_bytes_per_clip": 4.0}
    uploaded = roofline(Rates(50, 25, 20, 5, 4), blocks, {**ceilings, "upload_bytes_per_s": 400.0})["decode"]
    assert (uploaded["limit_clips_per_s"], uploaded["limited_by"]) == (100, "bytes uploaded")
    assert roofline(Rates(50, 25, 20, 5, 4), blocks, {**ceilings, "upload_bytes_per_s": None})["decode"] == found["decode"]
    slow_memory = roofline(Rates(50, 25, 20, 5, 4), counts, {**ceilings, "copy_bytes_per_s": 80.0, "storage_bytes_per_s": None})
    assert slow_memory["model"]["limited_by"] == "memory traffic" and slow_memory["model"]["limit_clips_per_s"] == 8
    assert slow_memory["read"]["limit_clips_per_s"] is None and slow_memory["read"]["efficiency"] is None


# ---- the verdict ----------------------------------------------------------------------------------------------------

CPU, GPU = Surroundings("cpu", 8, "h264", False), Surroundings("cuda", 8, "jpeg", False)
JPEG_CPU = Surroundings("cpu", 8, "jpeg", False)
BLOCKS_GPU = Surroundings("cuda", 8, "blocks", False, luma_bits=3)


@pytest.mark.parametrize(
    ("rates", "where", "bound", "advice"),
    [
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, storage=2000.0), "read",
         "could give 2000.0, reading and planning are the limit: read in more processes, --data.readers 2"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, storage=12.0), "read", "the storage is the limit: keep the"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, remote=True), "read", "the network is the limit: copy"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(JPEG_CPU, storage=12.0), "read", "in memory, or pack as vp9"),
        (Rates(900, 10, 10, 500, 9.9), GPU, "decode", "try `svdata2vec bench data --tune`, or pack pictures smaller than"),
        (Rates(900, 10, 10, 500, 9.9), dataclasses.replace(GPU, storage=32.0), "decode", "--size`), or pack as blocks, which"),
        (Rates(900, 10, 10, 500, 9.9), dataclasses.replace(CPU, codec="blocks"), "decode", "a GPU, which reads blocks undec"),
        (Rates(900, 10, 10, 500, 9.9), BLOCKS_GPU, "upload",
         "upload alone reaches 10.0; try pack with 2 bits (`shard KIND --luma-bits 2`), or pack pictures smaller than 320 px"),
        (Rates(900, 10, 10, 500, 9.9), dataclasses.replace(BLOCKS_GPU, luma_bits=2, packed_size=224), "upload",
         "upload alone reaches 10.0; the upload is this machine's limit"),
        (Rates(760, 835, 509, 1029, 415), BLOCKS_GPU, "loader", "read alone reaches 760.0, upload alone 835.0, both"),
        (Rates(900, 10, 10, 500, 9.9), CPU, "decode", "pack as jpeg, which decodes the wanted frames only, or --data"),
        (Rates(900, 800, 700, 100, 98), GPU, "model", "--run.precision bf16, or --run.launch graph"),
        (Rates(900, 120, 110, 100, 52), CPU, "overlap", "the same 8 cores"),
        (Rates(760, 835, 509, 1029, 415), GPU, "loader",
         "both together 509.0; its threads share one Python interpreter: read in more processes, --data.readers 2"),
        (Rates(90, 80, 50, 500, 49), CPU, "loader", "its threads share the same 8 cores"),
        (Rates(900, 800, 700, 600, 300), GPU, "overlap", "share one interpreter: --run.launch graph with --model.fused-blocks"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, storage=2000.0, readers=4), "read", "--data.readers 6"),
    ],
)
def test_the_verdict_names_the_bound_and_what_to_change(rates: Rates, where: Surroundings, bound: str, advice: str) -> None:
    verdict = judge(rates, 0.5, DEFAULT, where)
    assert verdict.bound == bound
    assert verdict.text.startswith(f"{bound}-bound: train {rates.train:.1f}") and advice in verdict.text


def test_what_a_graph_still_lacks() -> None:
    """Fused blocks, and JPEGs that wait for their decoder beside the step: as an H100 had them."""
    rates, where = Rates(7775, 940, 681, 1338, 503), Surroundings("cuda", 16, "jpeg", True, storage=5000.0, readers=4)
    run = dataclasses.replace(DEFAULT.run, launch="graph")
    plain = dataclasses.replace(DEFAULT, run=run)
    fused = dataclasses.replace(plain, model=dataclasses.replace(DEFAULT.model, fused_blocks=True))
    assert "pack as blocks, which need no decoder; or look for waits" in judge(rates, 0.4, fused, where).text
    slower = Rates(7775, 940, 900, 500, 498)
    assert "go faster try --model.fused-blocks, or a larger" in judge(slower, 0.0, plain, where).text
    assert "--model.fused-blocks" not in judge(slower, 0.0, fused, where).text


RATES = (
    Rates(10, 900, 10, 500, 9.9), Rates(10, 12, 9, 500, 8.9), Rates(900, 10, 10, 500, 9.9), Rates(900, 120, 110, 100, 52),
    Rates(90, 80, 50, 500, 49), Rates(900, 800, 700, 100, 98), Rates(900, 800, 700, 600, 300), Rates(900, 800, 110, 100, 40),
)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("codec", ["jpeg", "blocks", "vp9", "h264"])
def test_nothing_is_advised_that_cannot_help(device: str, codec: str) -> None:
    """Over all combinations of rates, cores and settings."""
    settings = itertools.product(
        RATES, (1, 8), (None, 1, 8, 16), (0, 6), (None, 12.0, 5000.0), ("eager", "graph"), (False, True)
    )
    for rates, cores, threads, readers, storage, launch, other in settings:
        tuned = {"engine_share": 0.75, "run_pictures": 900} if other else {"engine_share": 1.0}
        data = dataclasses.replace(DEFAULT.data, threads=threads, readers=readers, **tuned)  # type: ignore[arg-type]
        run = dataclasses.replace(DEFAULT.run, launch=launch)
        config = dataclasses.replace(DEFAULT, data=data, run=run, encode="kept_frames" if other else "all_frames")
        where = Surroundings(
            device, cores, codec, other, 224 if other else 320, storage, remote=storage is None, readers=readers
        )
        verdict = judge(rates, 0.5, config, where)
        text = verdict.text
        assert "prefetch" not in text
        assert not ("decod" in text and codec == "blocks" and device == "cuda"), "the step decodes"
        more_threads = re.search(r"--data\.threads (\d+)", text)
        assert not more_threads or (int(more_threads[1]) <= cores and int(more_threads[1]) > (threads or 0))
        if device == "cuda" and data.engine_share == 1:
            assert not more_threads, "engines need two threads"
        more_readers = re.search(r"--data\.readers (\d+)", text)
        assert not more_readers or readers < int(more_readers[1]) < cores
        assert not (more_readers and verdict.bound == "read" and storage != 5000.0), "storage or network is the limit"
        fewer = "fewer --data.threads" in text
        assert not fewer or ((threads or 0) > 1 and rates.data > rates.model)
        assert ("pack as jpeg" in text) <= (codec in ("vp9", "h264"))
        assert ("vp9" in text) <= (codec == "jpeg" and device == "cpu")
        assert ("pack as blocks" in text) <= (codec == "jpeg" and device == "cuda" and storage is not None)
        assert not ("pack as blocks" in text and (storage or 0) < 3 * rates.decode), "the disk would be the limit"
        assert ("nvJPEG" in text) <= (codec != "blocks")
        assert not ("vp9" in text and rates.decode < 2.5 * rates.read)
        assert ("bench data --tune" in text) <= (verdict.bound == "decode" and device == "cuda" and not other)
        assert ("smaller than" in text) <= (not other) and ("kept_frames" in text) <= (config.encode == "all_frames")
        assert ("a GPU" in text) <= (device == "cpu") and ("bf16" in text) <= (not other)
        assert ("--run.launch graph" in text) <= (launch == "eager" and device == "cuda")
        assert ("--model.fused-blocks" in text) <= (device == "cuda"), "on a CPU they are the reference"


def test_the_decoder_comes_first(record: dict[str, Any]) -> None:
    rates = {name: row["clips_per_s"] for name, row in record["stages"].items()}
    seen = 2 * (12 / 15 + 14 / 15 + 1)  # of 6 frames; of 15 masks, which keep 2, so many have one within two frames of each
    assert record["decoding"] == {
        "codec": "jpeg", "pictures_per_clip": pytest.approx(seen), "sampled_per_clip": 6,
        "needed_pictures_per_s": pytest.approx(seen * rates["model"]),
        "given_pictures_per_s": pytest.approx(seen * rates["decode"]), "by": "decode",
    }
    lines = as_table(record).splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("decoder, jpeg: ")]
    assert "clips of 5.47, of 6 those that masks let be seen; the model would take" in lines[first]
    assert lines[first + 1] == record["verdict"]["text"]
    whole = {**record["decoding"], "codec": "vp9", "pictures_per_clip": 100.0, "given_pictures_per_s": 500.0,
             "needed_pictures_per_s": 1000.0}
    assert decoding_line(whole) == (
        "decoder, vp9: 500 pictures/s, 5.00 clips of 100, all of its pictures for 6; the model would take 1,000 pictures/s, "
        "and the decoder gives 0.5 times that"
    )
    uploaded = decoding_line({**whole, "codec": "blocks", "by": "upload"})
    assert uploaded.startswith("upload, blocks: 500") and uploaded.endswith("and the upload gives 0.5 times that")
    assert decoding_line({name: value for name, value in whole.items() if name != "by"}) == decoding_line(whole)
    assert load_schema_without_decoding(record) == []


def load_schema_without_decoding(record: dict[str, Any]) -> list[str]:
    """Records of earlier versions say nothing of it."""
    return faults({name: value for name, value in record.items() if name != "decoding"}, SCHEMA)


def test_nothing_is_advised_that_would_be_refused() -> None:
    compiled, graph = (
        dataclasses.replace(DEFAULT, run=dataclasses.replace(DEFAULT.run, launch=launch)) for launch in ("compiled", "graph")
    )
    for rates in (Rates(900, 800, 700, 100, 98), Rates(900, 800, 700, 600, 300)):
        assert "--run.launch graph" in judge(rates, 0.5, DEFAULT, GPU).text
        assert "--run.launch graph" not in judge(rates, 0.5, compiled, GPU).text
        assert "torchrun" not in judge(rates, 0.5, graph, GPU).text


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


# ---- refusals -------------------------------------------------------------------------------------------------------


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


def test_what_was_made_while_others_were_timed_is_not_counted(
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


def test_networks_that_disagree_are_not_timed(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Pretraining.forward

    def wrong(run: Pretraining, batch: Any, epoch: int) -> Any:
        output = forward(run, batch, epoch)
        return dataclasses.replace(output, loss=output.loss * (1.5 if run.config.encode == "all_frames" else 1.0))

    monkeypatch.setattr(Pretraining, "forward", wrong)
    monkeypatch.setattr(Stage, "time_round", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match="the same weights give the loss"):
        bench_run(small_bench(tiny_shard_folder, tmp_path, baseline="original-style"))
