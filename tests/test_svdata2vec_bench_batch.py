"""The batch-size finder: its search, its extrapolation of memory, its supervision of a process, and a real search on a CPU."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import record_schemas
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_factory import shard_set
from tiny import pretrain_config

from svdata2vec.bench import batch
from svdata2vec.bench import batch_worker as worker
from svdata2vec.bench.batch_search import (
    GPU_STEP,
    Trial,
    bytes_per_clip,
    expected_peak,
    granularity,
    recommend,
    search,
)
from svdata2vec.bench.config import BatchConfig
from svdata2vec.bench.machine import available_bytes, resident_bytes
from svdata2vec.cli import main as cli
from svdata2vec.config.checked_json import faults
from svdata2vec.pipeline.video import BlockClips, frames_of
from svdata2vec.runs.failures import RunFailedError, is_out_of_memory
from svdata2vec.shards import cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.pretrain import Pretraining
from svdata2vec.training.stepper import NotFiniteError, Stepper

# ---- the search -----------------------------------------------------------------------------------------------------


@given(limit=st.integers(1, 3000), largest=st.integers(1, 4096), gpu=st.booleans())
def test_the_search_finds_a_planted_limit(limit: int, largest: int, gpu: bool) -> None:
    tried: list[int] = []

    def step(size: int) -> Trial:
        known = max([one for one in tried if one <= limit], default=0)
        assert size <= max(2 * known, GPU_STEP if gpu else 1) and size <= largest
        tried.append(size)
        return Trial(size, size <= limit, size)

    trials = search(step, largest, gpu)
    assert [trial.size for trial in trials] == tried and len(set(tried)) == len(tried) <= 26
    found = recommend(trials)
    if found is None:
        assert limit < 1 or not [size for size in tried if size <= limit]
        return
    ceiling = min(limit, largest)
    assert found.largest <= ceiling < found.largest + granularity(found.largest, gpu) + (0 if limit < largest else 1)
    if limit >= largest:
        assert found.largest == largest


def test_the_sizes_of_a_search() -> None:
    def sizes(limit: int, gpu: bool, largest: int = 4096) -> list[int]:
        return [trial.size for trial in search(lambda n: Trial(n, n <= limit, n), largest, gpu)]

    assert sizes(100, gpu=True) == [8, 16, 32, 64, 128, 96, 112, 104]
    assert sizes(5, gpu=False) == [1, 2, 4, 8, 6, 5]
    assert sizes(100, gpu=False) == [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 104, 100]
    assert sizes(5, gpu=True) == [8, 4, 6, 5]
    assert sizes(1000, gpu=True, largest=24) == [8, 16, 24]
    for gpu, tried in ((True, [8, 4, 2]), (False, [2])):  # of settings that need two clips
        assert [trial.size for trial in search(lambda n: Trial(n, False, n), 4096, gpu, smallest=2)] == tried
    assert [trial.size for trial in search(lambda n: Trial(n, n < 4, n), 4096, False, smallest=2)] == [2, 4, 3]


@given(
    constant=st.integers(0, 10**9), per_clip=st.integers(1, 10**8), base=st.floats(0, 1), limit=st.integers(10**6, 10**11)
)
def test_no_size_beyond_the_limit_is_run(constant: int, per_clip: int, base: float, limit: int) -> None:
    """A machine whose memory is a constant and so much per clip: only the very first size may be found out by running it."""
    trials: list[Trial] = []

    def step(size: int) -> Trial:
        expected, true = expected_peak(trials, size), constant + per_clip * size
        assert expected is None or expected >= true - 1
        if expected is not None and expected > limit:
            trials.append(Trial(size, False, expected, ran=False))
        else:
            assert true <= limit or not trials
            trials.append(Trial(size, true <= limit, true, int(base * constant)))
        return trials[-1]

    search(step, 512, gpu=False)
    sizes = [trial.size for trial in trials if trial.fits]
    if len(sizes) > 1:
        assert bytes_per_clip(trials) == pytest.approx(per_clip)
    if sizes and max(sizes) < 512 and len(sizes) > 4:  # ... and not too careful: a tenth of the gap between known sizes
        assert constant + per_clip * 1.25 * max(sizes) > limit


def test_expected_memory_by_hand() -> None:
    one, two = Trial(4, True, 1000, 600), Trial(8, True, 1200, 600)
    assert expected_peak([], 4) is None and expected_peak([Trial(4, False, 9)], 4) is None
    assert expected_peak([one], 8) == 600 + 400 * 2
    assert expected_peak([one, two], 16) == 1200 + int(1.1 * 50 * 8)
    assert expected_peak([one, Trial(8, True, 990, 600)], 16) == 990  # never less than a smaller size took
    assert expected_peak([one, two, Trial(12, False, 10**6, ran=False)], 10) == 1200 + int(1.1 * 50 * 2)
    assert bytes_per_clip([one, two]) == 50 and bytes_per_clip([one]) is None


def test_the_smallest_batch_near_the_best_rate_is_recommended() -> None:
    rates = {8: 500.0, 16: 800.0, 32: 975.0, 64: 1000.0, 96: 990.0}
    trials = [Trial(size, True, size, clips_per_s=rate) for size, rate in rates.items()]
    found = recommend([*trials[::-1], Trial(128, False, 1)])
    assert found is not None and (found.recommended, found.fastest, found.largest) == (32, 64, 96)
    slower = recommend([dataclasses.replace(trial, clips_per_s=960.0) if trial.size == 32 else trial for trial in trials])
    assert slower is not None and slower.recommended == 64
    assert recommend([Trial(8, False, 1)]) is None


# ---- the watch ------------------------------------------------------------------------------------------------------


def test_a_process_that_takes_too_much_is_ended() -> None:
    program = "import time; taken = [bytearray(2**20) for _ in range(400) if not time.sleep(0.002)]; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program])
    started = time.monotonic()
    ended, peak = batch.watch(process.poll, lambda: resident_bytes(process.pid), 150 * 2**20, process.kill)
    assert ended and process.wait() == -9 and time.monotonic() - started < 30
    assert 150 * 2**20 < peak < 300 * 2**20
    assert resident_bytes(process.pid) == 0


def test_a_process_within_the_limit_is_waited_for() -> None:
    answers = iter([None, None, 0])
    memory = iter([5, 3])
    assert batch.watch(lambda: next(answers), lambda: next(memory), 5, lambda: pytest.fail("ended")) == (False, 5)


def test_memory_that_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 1024))
    membership = tmp_path / "cgroup"
    monkeypatch.setattr(cores, "MEMBERSHIP", membership)
    assert available_bytes() == 64 * 1024
    for line, folder, limit, usage, cached in (
        ("0::/", "", "memory.max", "memory.current", "inactive_file"),
        ("0::/slurm/job_7", "slurm", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:/docker/a", "memory/docker/a", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        groups = tmp_path / line.replace("/", "-")
        group = groups / folder
        group.mkdir(parents=True)
        membership.write_text(f"3:cpu,cpuacct:/\n{line}\n")
        monkeypatch.setattr(cores, "CONTROL_GROUPS", groups)
        (group / limit).write_text("max\n")
        (group / usage).write_text("1000\n")
        assert available_bytes() == 64 * 1024
        (group / limit).write_text("31000\n")
        assert available_bytes() == 30000
        (group / "memory.stat").write_text(f"anon 300\nactive_file 50\n{cached} 600\nslab 7\n")
        assert available_bytes() == 30600, "what is cached of files may be taken"
    monkeypatch.undo()
    assert 0 < available_bytes() < 2**50


def test_errors_about_memory_are_distinguished_from_others() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_few_clips_are_repeated_to_any_size() -> None:
    clips = {"video": torch.arange(2 * 3, dtype=torch.uint8).reshape(2, 1, 1, 1, 3), "joints": torch.rand(2, 2, 1, 17, 2),
             "label": torch.tensor([5, 6]), "keys": ("a", "b")}
    made = worker.repeated(clips, 5, torch.device("cpu"))
    assert made.keys == ("a", "b", "a", "b", "a") and made.label_B.tolist() == [5, 6, 5, 6, 5]
    assert made.video_BTHWC is not None and made.video_BTHWC[:, 0, 0, 0, 0].tolist() == [0, 3, 0, 3, 0]


def test_a_gpu_measures_clips_in_blocks_as_its_step_takes_them(tmp_path: Path) -> None:
    """Undecoded; a CPU those that its loader decodes."""
    shards = shard_set(tmp_path / "blocks", 3, codec="blocks", size=64)
    config, found = small_batch(tmp_path / "blocks", tmp_path), []
    for gpu in (True, False):
        clip_bytes = batch.save_clips(config, shards, tmp_path / "clips.pt", gpu=gpu)
        loaded = torch.load(tmp_path / "clips.pt", weights_only=False)
        found.append(worker.repeated(loaded, 5, torch.device("cpu")))
        assert shards.manifest.blocks is not None
        assert clip_bytes == (6 * shards.manifest.blocks.frame_bytes + 8 * (6 + 4) if gpu else 6 * 32 * 32 * 3)
    undecoded, decoded = (each.video_BTHWC for each in found)
    assert isinstance(undecoded, BlockClips) and isinstance(decoded, torch.Tensor) and found[0].keys == found[1].keys
    assert (frames_of(undecoded).int() - decoded.int()).abs().max() <= 1


def test_the_few_clips_of_weighted_sets_are_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a share of its clips an epoch takes of a set."""
    for first, name in enumerate("ab"):
        shard_set(tmp_path / name, 3, first_seed=10 * first, size=64)
    config = small_batch(tmp_path / "a", tmp_path)
    data = dataclasses.replace(config.data, shards=f"{tmp_path / 'a'},{tmp_path / 'b'}", weights=(0.5, 1.0))
    saved, save = [], batch.save_clips
    monkeypatch.setattr(batch, "save_clips", lambda *given, **more: saved.append(save(*given, **more)) or saved[0])
    monkeypatch.setattr(batch, "search", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        batch.bench_batch(dataclasses.replace(config, data=data))
    assert saved == [6 * 32 * 32 * 3]


# ---- a real search --------------------------------------------------------------------------------------------------


def small_batch(shards: Path, folder: Path, **changes: Any) -> BatchConfig:
    base = BatchConfig.of(pretrain_config(shards, folder / "run"))
    return dataclasses.replace(base, **{"rounds": 1, "seconds": 0.05, **changes})


@pytest.fixture(scope="module")
def record(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two sizes on tiny shards, each in a process of its own."""
    folder = tmp_path_factory.mktemp("batch")
    config = small_batch(tiny_shard_folder, folder, out=folder / "results" / "batch.json", largest=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(batch, "search", lambda step, *_: [step(size) for size in (1, 32)])
        batch.bench_batch(config)
    assert not (folder / "run").exists()
    return json.loads((folder / "results" / "batch.json").read_text())


def test_a_size_is_trained_as_a_run_of_that_size(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph is captured for batches of the run's size alone; the data set may have fewer clips."""
    config = small_batch(tiny_shard_folder, tmp_path)
    batch.save_clips(config, ShardSet.open(tiny_shard_folder), clips := tmp_path / "clips.pt", gpu=False)
    trained, step = [], Pretraining.step

    def noted(run: Pretraining, batches: Any) -> None:
        trained.append((run.config.run.batch_size, [len(one) for _, one in batches]))
        step(run, batches)

    monkeypatch.setattr(Pretraining, "step", noted)
    assert worker.measure_size(config, "20", str(clips))["fits"]
    assert {(size, *counts) for size, counts in trained} == {(20, 20)}


def test_the_record_is_consistent(record: dict[str, Any]) -> None:
    assert faults(record, record_schemas.BATCH) == [] and "batch_size" not in record["setting"]
    small, large = record["trials"]
    assert small["fits"] and large["fits"] and (small["size"], large["size"]) == (1, 32)
    assert 2**27 < small["base_bytes"] < small["peak_bytes"] < large["peak_bytes"] < record["limit_bytes"]
    # At the least, a clip's frames and the stem's output of its two kept frames, forward and gradient.
    assert record["bytes_per_clip"] > 6 * 32 * 32 * 3 + 2 * 2 * 16 * 16 * 16 * 4
    assert record["loader_bytes_per_clip"] == 2 * 6 * 32 * 32 * 3
    table = batch.as_table(record)
    assert f"take --run.batch-size {record['recommended']}: " in table and "a clip more takes" in table
    assert table.endswith(
        "--optim.lr 0.001 belongs to 128 clips per optimizer step, of all processes and --optim.accumulate together; for "
        "another number scale it with --optim.base-lr 0.002\n"
    )
    for silent in ({"lr_batch": 0}, {"lr_batch": record["recommended"]}):
        assert "optim" not in batch.as_table({**record, **silent})
    for slope in (-2.0**20, 0.0, None):
        assert "a clip more takes" not in batch.as_table({**record, "bytes_per_clip": slope})


@pytest.mark.parametrize(("optim", "lr_batch"), [({}, 128), ({"lr_batch": 0}, 0), ({"base_lr": 0.01}, 0)])
def test_the_record_tells_to_how_many_clips_the_rate_belongs(
    optim: dict[str, Any], lr_batch: int, tmp_path: Path, record: dict[str, Any]
) -> None:
    config = small_batch(tmp_path, tmp_path)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **optim))
    sizes = batch.Sizes(config, tmp_path, 2**33, 1, [Trial(2, True, 10, 5, 1.0)])
    sizes.answers[2] = {"setting": {**record["setting"], "batch_size": 2}, "machine": record["machine"], "timing": None}
    assert batch.make_record(config, sizes)["lr_batch"] == lr_batch


def test_the_record_tells_a_share_where_it_was_the_limit(tmp_path: Path, record: dict[str, Any]) -> None:
    assert record["setting"]["memory_share"] == 0.5
    assert small_batch(tmp_path, tmp_path, memory_limit_gib=3.0).share(gpu=False) is None
    with pytest.raises(UserError, match=r"^memory_share is 0\.9 and memory_limit_gib 3\.0: either of them is"):
        small_batch(tmp_path, tmp_path, memory_limit_gib=3.0, memory_share=0.9)


def test_settings_that_need_two_clips_are_searched_from_two(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_batch(tiny_shard_folder, tmp_path)
    config = dataclasses.replace(config, target=dataclasses.replace(config.target, shuffle_skeletons=True))
    assert config.smallest() == 2 and small_batch(tiny_shard_folder, tmp_path).smallest() == 1
    batch.save_clips(config, ShardSet.open(tiny_shard_folder), clips := tmp_path / "clips.pt", gpu=False)
    assert worker.measure_size(config, "2", str(clips))["fits"]
    tried: list[int] = []
    monkeypatch.setattr(batch, "run_size", lambda _, size, *__: tried.append(size) or (None, 7))
    with pytest.raises(UserError, match=r"a batch of 2 takes more than 0\.00 GiB"):
        batch.bench_batch(config)
    assert tried == [2]
    with pytest.raises(UserError, match=r"^largest is 1, but these settings train on batches of 2 clips or more"):
        dataclasses.replace(config, largest=1)


def test_a_step_that_is_not_finite_writes_nothing(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's folder need not be there; what is said names no file."""
    config = small_batch(tiny_shard_folder, tmp_path)
    batch.save_clips(config, ShardSet.open(tiny_shard_folder), clips := tmp_path / "clips.pt", gpu=False)
    monkeypatch.setattr(Stepper, "backward", lambda stepper, loss, clips: (loss * float("nan")).backward())
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, max_bad_steps=1))
    with pytest.raises(NotFiniteError, match=r"^1 steps in a row had a loss or gradient that is not finite$"):
        worker.measure_size(config, "2", str(clips))
    assert not config.run.out.exists()


def test_a_planted_limit_stops_before_it_is_reached(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]
) -> None:
    """64 MiB per clip, and room for eleven and a half more than one: sizes beyond twelve are not even tried."""
    small, _ = record["trials"]
    per_clip = 64 * 2**20
    limit = small["peak_bytes"] + per_clip * 23 // 2
    where = {"limit_bytes": None, "machine": record["machine"], "setting": {**record["setting"], "batch_size": 1}}
    ran = []

    def run_size(config: Any, size: int, clips: Path, limit_bytes: int | None) -> tuple[dict[str, Any], int]:
        ran.append(size)
        peak = small["peak_bytes"] + per_clip * (size - 1)
        assert limit_bytes is not None and limit_bytes == pytest.approx(limit, abs=1) and peak < limit_bytes
        return {**where, "fits": True, "base_bytes": small["base_bytes"], "peak_bytes": peak, "timing": small["timing"]}, 0

    monkeypatch.setattr(batch, "run_size", run_size)
    found = batch.bench_batch(small_batch(tiny_shard_folder, tmp_path, memory_limit_gib=limit / 2**30))
    assert ran == [1, 2, 4, 8, 12] and found["largest"] == 12 and found["bytes_per_clip"] == pytest.approx(per_clip)
    refused = [row for row in found["trials"] if not row["fits"]]
    assert refused and all(row["reason"] == "not run: expected to exceed the limit" and not row["ran"] for row in refused)


def test_half_of_the_free_memory_is_left_to_others_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch, "available_bytes", lambda: 20 * 2**30)
    config = BatchConfig.of(pretrain_config(Path("nowhere"), Path("run")))
    with caplog.at_level("INFO"):
        assert batch.machine_limit(config) == 10 * 2**30
    assert "a step may take 10.00 GiB, of the machine's memory 20.00 GiB are free; the search ends there" in caplog.text
    assert batch.machine_limit(dataclasses.replace(config, memory_share=0.25)) == 5 * 2**30
    assert batch.machine_limit(dataclasses.replace(config, memory_limit_gib=3.0)) == 3 * 2**30
    assert config.limit_bytes(1000, gpu=True) == 900


def test_a_size_that_exceeds_the_limit_while_it_runs_is_ended(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "save_clips", lambda config, shards, path, gpu: path.write_bytes(b""))
    config = small_batch(tiny_shard_folder, tmp_path, memory_limit_gib=0.08)  # PyTorch alone takes more
    with pytest.raises(UserError, match=r"a batch of 1 takes more than 0\.\d+ GiB, the limit is 0\.08 GiB; raise --memory-l"):
        batch.bench_batch(config)


def test_memory_of_a_size_that_was_ended_is_a_lower_bound() -> None:
    ended = Trial(4, False, 2**30, reason="ended: exceeded the limit")
    refused = Trial(4, False, 2**30, ran=False, reason="not run")
    assert batch.describe(ended) == "more than 1.00 GiB; ended: exceeded the limit"
    assert batch.describe(refused) == "1.00 GiB; not run"
    assert batch.describe(Trial(4, True, 2**30, clips_per_s=2.0)) == "2.0 clips/s, 1.00 GiB"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "unknown preset 'nope'"),
        (["demo", "--memory-share", "1.5"], "--memory-share is 1.5"),
        (["demo", "--largest", "0"], "largest is 0"),
        (["demo", "--optim.accumulate", "2"], "optim.accumulate"),
        (["demo", "--data.shards", "nowhere"], "`bash tools/demo.sh` makes the demo's shards"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "batch", *words]) == 2
    assert message in capsys.readouterr().err


def test_torchrun_and_broken_workers_are_errors(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_batch(tiny_shard_folder, tmp_path)
    (tmp_path / "clips.pt").write_bytes(b"not clips")
    with pytest.raises(RunFailedError, match="batch size 2 ended with status 1; see its output above"):
        batch.run_size(config, 2, tmp_path / "clips.pt", None)
    assert "UnpicklingError" in caplog.text
    unknown = dataclasses.replace(config, data=dataclasses.replace(config.data, train_split="none"))
    with pytest.raises(UserError, match="'none'"):
        batch.run_size(unknown, 2, tmp_path / "clips.pt", None)
    for number in ("2", "two", ""):
        monkeypatch.setenv("WORLD_SIZE", number)
        with pytest.raises(UserError, match=f"but WORLD_SIZE is '{number}'; start it without torchrun, or `unset WORLD_SIZE`"):
            batch.bench_batch(config)
    assert "RANK" not in os.environ
