"""Weak scaling: real processes do one training, their traffic is the network's size, and faults are found and named."""

import copy
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import record_schemas
import torch
from pipeline_factory import shard_set
from tiny import pretrain_config

from svdata2vec.bench import scale
from svdata2vec.bench.config import ScaleConfig
from svdata2vec.bench.scale_worker import Ticks, digest, epoch_rows, expected_keys, measure_rank
from svdata2vec.bench.verdict import notes
from svdata2vec.cli import main as cli
from svdata2vec.config.checked_json import faults
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.student import SVData2Vec
from svdata2vec.runs.data import open_data, taken_per_epoch
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.training.stepper import NotFiniteError, Stepper

BATCH = 2


def small_scale(shards: Path, folder: Path, **changes: Any) -> ScaleConfig:
    base = ScaleConfig.of(pretrain_config(shards, folder / "run", batch_size=BATCH))
    return dataclasses.replace(base, **{"processes": (1, 2), "steps": 4, "warm_up": 1, "rounds": 1, **changes})


@pytest.fixture(scope="module")
def record(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One and two real processes on tiny shards; written to disk and read again."""
    folder = tmp_path_factory.mktemp("scale")
    config = small_scale(tiny_shard_folder, folder, out=folder / "results" / "scale.json", processes=(2, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        returned = scale.bench_scale(config)
    assert not (folder / "run").exists()
    found = json.loads((folder / "results" / "scale.json").read_text())
    assert found == json.loads(json.dumps(returned))
    return found


def hand_count(width: int, depth: int, decoder_depth: int, stem: int, joints: int, frames: int) -> int:
    """Parameters of the student from the layers' shapes alone."""

    def block(d: int) -> int:
        return 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)

    video, channels = stem * 3 * 5 * 7 * 7 + 2 * stem + stem, stem
    for wide in (stem, 2 * stem, 4 * stem, 8 * stem):
        shortcut = channels * wide + 2 * wide if channels != wide else 0
        video += (9 * channels * wide + 9 * wide * wide + 2 * 2 * wide + 2 * wide) + shortcut
        video += 2 * 9 * wide * wide + 2 * 2 * wide + 2 * wide
        channels = wide
    video += channels * width + width
    skeleton = 2 * 2 * joints * width + width
    encoder = frames * width + depth * block(width) + 2 * width
    decoder = 2 * (width * width + width) + width + frames * width + decoder_depth * block(width) + 2 * width
    return video + skeleton + encoder + decoder


@pytest.mark.slow
def test_bytes_of_the_exchange_are_those_of_the_parameters(record: dict[str, Any]) -> None:
    one, two = record["worlds"]
    by_hand = 4 * hand_count(width=32, depth=2, decoder_depth=1, stem=16, joints=17, frames=6)
    assert one["gradient_bytes"] == two["gradient_bytes"] == two["allreduce_bytes_per_step"] == by_hand
    assert one["allreduce_bytes_per_step"] == one["allreduces_per_step"] == one["broadcast_bytes_per_step"] == 0
    assert two["allreduces_per_step"] >= 1 and two["backend"] == "gloo"
    channels = 16 + 4 * 16 + 5 * (32 + 64 + 128)  # mean and variance of each BatchNorm; a counter each; mean and std of pixels
    assert two["broadcast_bytes_per_step"] == 4 * 2 * channels + 8 * (1 + 4 + 3 * 5) + 2 * 3 * 4


def test_the_hand_count_holds_for_the_default_sizes() -> None:
    default = PretrainConfig()
    assert sum(p.numel() for p in SVData2Vec(default, 17).parameters()) == hand_count(256, 8, 3, 64, 17, 40)


@pytest.mark.slow
def test_two_processes_do_one_training(record: dict[str, Any]) -> None:
    assert record["wrong"] == []
    one, two = (row["checks"] for row in record["worlds"])
    assert (one["steps"], one["epochs"], one["clips"]) == ([5], 1, 10)  # one step of warm-up, then four
    assert (two["steps"], two["epochs"], two["clips"]) == ([6, 6], 2, 24)  # ... and on to the end of the epoch
    for found in (one, two):
        assert found["student_equal"] and found["teacher_equal"]
        assert found["twice"] == found["lost"] == found["foreign"] == found["skipped"] == 0


@pytest.mark.slow
def test_the_record_is_consistent(record: dict[str, Any]) -> None:
    assert faults(record, record_schemas.SCALE) == []
    assert [faults(row, record_schemas.WORLD) for row in record["worlds"]] == [[], []]
    one, two = record["worlds"]
    assert (one["processes"], two["processes"]) == (1, 2)  # ascending, however they were asked for
    assert one["efficiency"] == 1 and two["efficiency"] == pytest.approx(two["clips_per_s"] / (2 * one["clips_per_s"]))
    for row in (one, two):
        assert row["step_ms"]["q20"] <= row["step_ms"]["median"] <= row["step_ms"]["q80"]
        assert 0 <= row["data_wait_share"] < 1
        # The wall clock over all steps, against the median of one.
        assert 1e3 * BATCH * row["processes"] / row["clips_per_s"] == pytest.approx(row["step_ms"]["median"], rel=0.8)
    exchange = two["exchange_ms"]
    assert two["exchange_cpu_ms"]["alone"] > 0
    assert exchange["added"] == pytest.approx(exchange["synced"] - exchange["alone"]) and exchange["alone"] > 0
    assert record["machine"]["torch_threads"] == 1 and record["setting"]["batch_size"] == BATCH
    table = scale.as_table(record)
    assert "exchange adds, ms" in table and "2 processes: weights of student and teacher equal" in table


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def report(rank: int, keys: list[str], **changes: Any) -> dict[str, Any]:
    base = {
        "rank": rank, "backend": "gloo", "clips_per_step": 2, "steps": 2, "seen": [(0, key) for key in keys], "skipped": 0,
        "step_seconds": [0.1, 0.3], "wall_seconds": 0.5, "data_wait_seconds": 0.1, "student": "s", "teacher": "t",
        "synced_seconds": [0.2, 0.2], "alone_seconds": [0.15, 0.15], "synced_cpu": [0.3], "alone_cpu": [0.27],
        "allreduce_bytes": [60, 40], "broadcast_bytes": 8,
        "gradient_bytes": 100,
    }
    return {**base, **changes}


SOUND = [report(0, ["a", "b"]), report(1, ["c", "d"], wall_seconds=0.8)]


def due(epoch: int) -> list[str]:
    assert epoch == 0
    return ["a", "b", "c", "d"]


def test_figures_of_a_row_by_hand() -> None:
    row = scale.world_row(SOUND, due)
    assert row["clips_per_s"] == pytest.approx(2 * 2 * 2 / 0.8)  # the slowest process counts
    assert row["step_ms"]["median"] == pytest.approx(200)
    assert row["exchange_ms"] == {"synced": pytest.approx(200), "alone": pytest.approx(150), "added": pytest.approx(50)}
    assert row["exchange_cpu_ms"] == {"synced": pytest.approx(300), "alone": pytest.approx(270), "added": pytest.approx(30)}
    assert scale.world_row([SOUND[0]], lambda epoch: ["a", "b"])["exchange_ms"]["added"] == 0  # one process exchanges nothing
    assert row["data_wait_share"] == pytest.approx((0.1 / 0.5 + 0.1 / 0.8) / 2)
    assert row["allreduce_bytes_per_step"] == 100 and row["allreduces_per_step"] == 2
    assert scale.wrong(row) == []
    assert [r["efficiency"] for r in scale.with_efficiency([{"clips_per_s": 10.0, "processes": 2},
                                                            {"clips_per_s": 15.0, "processes": 4}])] == [1.0, 0.75]


@pytest.mark.parametrize(
    ("rank", "changes", "sentence"),
    [
        (1, {"student": "other"}, "the student's weights differ"),
        (1, {"teacher": "other"}, "the teacher's weights differ"),
        (1, {"steps": 3}, r"their numbers of steps are \[2, 3\]"),
        (1, {"seen": [(0, "c"), (0, "a")]}, "of 4 clips 1 were seen twice, 1 were lost, 0 do not belong there$"),
        (1, {"seen": [(0, "c"), (0, "z")], "skipped": 1}, r"1 were lost, 1 do not belong there \(1 could not be read"),
        (1, {"seen": [(0, "c")]}, "0 were seen twice, 1 were lost"),
        (0, {"allreduce_bytes": [60]}, "60 of 100 bytes of gradients were exchanged"),
    ],
)
def test_planted_faults_are_found(rank: int, changes: dict[str, Any], sentence: str) -> None:
    reports = copy.deepcopy(SOUND)
    reports[rank].update(changes)
    (found,) = scale.wrong(scale.world_row(reports, due))
    with pytest.raises(AssertionError, match=f"2 processes: .*{sentence}"):
        raise AssertionError(found)


def test_a_fault_is_written_and_then_an_error(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]
) -> None:
    keys = expected_keys(open_shards(str(tiny_shard_folder)), small_scale(tiny_shard_folder, tmp_path), 2, 0)
    reports = [report(0, keys[::2]), report(1, keys[1::2], student="other")]
    answer = {"reports": reports, "machine": record["machine"], "setting": record["setting"]}
    monkeypatch.setattr(scale, "launch", lambda *_: answer)
    config = small_scale(tiny_shard_folder, tmp_path, processes=(2,), out=tmp_path / "scale.json")
    with pytest.raises(UserError, match="did not do the same training: 2 processes: the student's weights differ"):
        scale.bench_scale(config)
    assert json.loads((tmp_path / "scale.json").read_text())["wrong"] == ["2 processes: the student's weights differ"]


def test_a_digest_sees_any_weight() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = digest(model)
    model[1].running_mean.add_(1.0)  # each process's own until the next broadcast
    assert digest(model) == before
    with torch.no_grad():
        model[0].bias[1] += 1e-7 + model[0].bias[1] * 1e-6
    assert digest(model) != before


def test_expected_clips_are_whole_steps_of_the_epoch(tiny_shard_folder: Path, tmp_path: Path) -> None:
    shards = open_shards(str(tiny_shard_folder))
    config = small_scale(tiny_shard_folder, tmp_path, steps=100)
    first, second = (expected_keys(shards, config, 4, epoch) for epoch in (0, 1))
    assert len(first) == len(set(first)) == 8 and set(first) != set(second)  # one step of four processes; 12 clips in all
    few = dataclasses.replace(config, steps=1, warm_up=0)
    assert len(expected_keys(shards, few, 3, 0)) == 3 * BATCH  # as many clips as the steps need


def test_a_part_of_the_clips_is_spread_over_the_sets(tmp_path: Path) -> None:
    """The first clips were mostly those of the first set."""
    for first, name in enumerate("ab"):
        shard_set(tmp_path / name, 12, first_seed=20 * first, size=64)
    config = small_scale(tmp_path / "a", tmp_path, steps=2, warm_up=1)  # 6 clips of a process
    for weights, counts in (((), (3, 3)), ((1.0, 1.0), (3, 3)), ((0.25, 0.5), (8, 8)), ((2.0, 1.0), (2, 2))):
        data = dataclasses.replace(config.data, shards=f"{tmp_path / 'a'},{tmp_path / 'b'}", weights=weights)
        weighted = dataclasses.replace(config, data=data)
        shards = open_data(data)
        rows = epoch_rows(shards, weighted, 1)
        assert len({*rows.tolist()}) == len(rows) and ((rows < 12).sum(), (rows >= 12).sum()) == counts
        assert rows.max() >= 18, "late ones, too"
        assert taken_per_epoch(shards, rows) >= 6 and len(expected_keys(shards, weighted, 1, 0)) in (6, 8)
        assert epoch_rows(shards, weighted, 20).tolist() == [*range(24)]


@pytest.mark.parametrize(("given", "taken"), [("2,1", "2"), ("3", "3"), ("", "1"), ("0", "1"), ("many", "1")])
def test_openmp_s_threads_are_read_as_it_writes_them(
    given: str, taken: str, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is one number per level of nesting; what is no number leaves each process its share of the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(scale, "usable_cores", lambda: 1)
    threads: list[int] = []
    monkeypatch.setattr(scale, "launch", lambda *words: threads.append(words[2]) or 1 // 0)
    with pytest.raises(ZeroDivisionError):
        scale.bench_scale(small_scale(tiny_shard_folder, tmp_path))
    assert threads == [int(taken)]


def test_a_step_that_is_not_finite_writes_nothing(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_scale(tiny_shard_folder, tmp_path)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, max_bad_steps=1))
    monkeypatch.setattr(Stepper, "backward", lambda stepper, loss, clips: (loss * float("nan")).backward())
    with pytest.raises(NotFiniteError, match=r"^1 steps in a row had a loss or gradient that is not finite$"):
        measure_rank(config, Runtime(torch.device("cpu"), 0, 1, bf16=False), open_data(config.data))
    assert not config.run.out.exists()


def test_ticks_are_durations() -> None:
    ticks = Ticks(torch.device("cpu"))
    assert ticks.seconds() == []
    for _ in range(3):
        ticks.tick()
    assert len(ticks.seconds()) == 2 and all(value >= 0 for value in ticks.seconds())


# ---- words and refusals ---------------------------------------------------------------------------------------------


def test_the_meaning_of_shared_cores_is_explained() -> None:
    assert notes([1, 2, 4], cores=64, threads=1, decoding=2, load=3.0, on_cpu=True) == []
    assert notes([1, 2, 4], cores=2, threads=1, decoding=2, load=0.0, on_cpu=False) == []
    (busy,) = notes([1, 2, 4], cores=64, threads=1, decoding=2, load=30.0, on_cpu=True)
    assert busy == "doubtful: the machine was busy before the first step (load 30.0 on 64 cores); measure again"
    crowded, tight = notes([1, 2, 4], cores=2, threads=1, decoding=2, load=0.0, on_cpu=True)
    assert crowded.startswith("4 processes share 2 cores: clips/s, step time and efficiency say nothing about speed there")
    assert tight.startswith("2 processes of 1 computing and 2 decoding threads each on 2 cores")


def test_numbers_of_processes() -> None:
    assert scale.choose_processes((), None) == (1, 2, 4)
    assert scale.choose_processes((), 6) == (1, 2, 4) and scale.choose_processes((), 1) == (1,)
    assert scale.choose_processes((4, 1, 4), 8) == (1, 4)
    assert scale.choose_processes((16,), None) == (16,)  # a CPU's cores can be shared
    with pytest.raises(UserError, match=r"4 asked for, but PyTorch finds 1 GPU here .* take 1 or fewer, or --run.device cpu"):
        scale.choose_processes((1, 4), 1)


def test_a_worker_that_refuses_is_heard(tmp_path: Path, tiny_shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no folder of torchrun's is left behind."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    config = small_scale(tiny_shard_folder, tmp_path)
    unknown = dataclasses.replace(config, data=dataclasses.replace(config.data, train_split="none"))
    with pytest.raises(UserError, match=r"'none'.*all"):
        scale.launch(unknown, 1, threads=1)
    assert not [*(tmp_path / "temporary").glob("torchelastic*"), *(tmp_path / "temporary").glob("svdata2vec*")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "unknown preset 'nope'"),
        (["demo", "--processes", "0"], "--processes is 0: expected a whole number from 1 to"),
        (["demo", "--steps", "0"], "steps is 0"),
        (["demo", "--optim.accumulate", "2"], "optim.accumulate"),
        (["demo", "--data.shards", "nowhere"], "`bash tools/demo.sh` makes the demo's shards"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "scale", *words]) == 2
    assert message in capsys.readouterr().err


def test_too_few_clips_and_torchrun_are_refused(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_scale(tiny_shard_folder, tmp_path, processes=(1, 7))
    with pytest.raises(UserError, match="split 'all' has 12 clips, but one step of 7 processes with 2 clips each needs 14"):
        scale.bench_scale(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        scale.bench_scale(config)
