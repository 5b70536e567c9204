"""Cores that a process may use, how its loader divides them, GPUs that PyTorch does not see, and the garbage collector."""

import gc
import os
import re
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from svdata2vec.cli.datasets import VerifyOptions
from svdata2vec.config.schema import DataConfig, RunConfig
from svdata2vec.runs import cores as runs_cores
from svdata2vec.runs import runtime
from svdata2vec.runs.cores import fit_loader, usable_cores
from svdata2vec.runs.provenance import hardware
from svdata2vec.runs.runtime import pick_device, running
from svdata2vec.shards import cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.options import PackOptions


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """Sixteen cores, one process, no control groups but those that a test writes."""
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.usefixtures("machine")
def test_affinity_alone():
    assert usable_cores() == 16


@pytest.mark.parametrize(("inner", "outer", "expected"), [
    ("max 100000", "max 100000", 16), ("400000 100000", "max 100000", 4), ("max 100000", "250000 100000", 2),
    ("400000 100000", "100000 100000", 1), ("50000 100000", "max 100000", 1), ("3200000 100000", "max 100000", 16),
])
def test_quota_of_version_2_of_the_group_and_those_around_it(machine, inner, outer, expected):
    write(machine / "cgroup", "0::/slurm/job_7\n")
    write(machine / "groups/slurm/job_7/cpu.max", inner + "\n")
    write(machine / "groups/slurm/cpu.max", outer + "\n")
    assert usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("600000", 6)])
def test_quota_of_version_1(machine, quota, expected):
    write(machine / "cgroup", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n")
    write(machine / "groups/cpu,cpuacct/docker/a/cpu.cfs_quota_us", quota + "\n")
    write(machine / "groups/cpu,cpuacct/docker/a/cpu.cfs_period_us", "100000\n")
    assert usable_cores() == expected


@pytest.mark.usefixtures("machine")
def test_processes_of_a_launch_share(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert usable_cores() == 2
    for nonsense in ("0", "-2", "x", ""):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", nonsense)
        assert usable_cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert usable_cores() == 1


@pytest.mark.parametrize(("device", "count", "threads", "readers"), [
    ("cpu", 2, 2, 0), ("cpu", 1, 1, 0), ("cpu", 64, 16, 0), ("cuda", 16, 12, 4), ("cuda", 8, 6, 2), ("cuda", 2, 2, 0),
    ("cuda", 208, 16, 4),
])
def test_a_loader_takes_what_there_is(device, count, threads, readers):
    fitted = fit_loader(DataConfig(), device, count)
    assert (fitted.threads, fitted.readers) == (threads, readers)


def test_requested_settings_are_kept():
    fitted = fit_loader(DataConfig(threads=5, readers=1), "cuda", 16)
    assert (fitted.threads, fitted.readers) == (5, 1)
    assert fit_loader(DataConfig(readers=0), "cuda", 16).threads == 16


def test_this_machine():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_packing_verify_and_records_take_the_cores_of_their_job(machine: Path) -> None:
    """Of a cluster's node or of a container, not those of the machine, which others use."""
    write(machine / "cgroup", "0::/slurm/job_7\n")
    write(machine / "groups/slurm/job_7/cpu.max", "350000 100000\n")
    assert PackOptions().workers == VerifyOptions("set").workers == hardware(torch.device("cpu"))["cores"] == 3


def test_a_gpu_that_only_the_driver_sees_is_an_error(tmp_path, monkeypatch):
    """With PyTorch's build for CPUs, say. Never a silent run on the CPU, unless somebody asks for one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runtime, "DRIVER_GPUS", tmp_path / "gpus")
    assert pick_device("auto").type == "cpu"
    for number in range(2):
        (tmp_path / f"gpus/0000:0{number}:00.0").mkdir(parents=True)
    for name in ("auto", "cuda"):
        with pytest.raises(UserError, match=rf"driver shows 2 GPUs, but PyTorch {re.escape(torch.__version__)} sees none"):
            pick_device(name)
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize(("given", "cores", "chosen"), [(None, 1, [1]), (None, 16, [4]), ("3", 1, [])])
def test_a_run_computes_on_no_more_threads_than_it_may_use(monkeypatch, given, cores, chosen) -> None:
    """PyTorch would start one for every core of the machine; what a user has set in the environment stays."""
    asked: list[int] = []
    monkeypatch.setattr(runtime, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    with running(RunConfig(device="cpu")):
        assert asked == chosen


def test_a_run_on_a_gpu_measures_convolutions_once(monkeypatch) -> None:
    chosen: list[torch.device] = []
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(runtime, "pick_device", lambda name: gpu)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    with running(RunConfig(device="cuda")) as here:
        assert here.device == gpu and here.bf16 and chosen == [gpu]
        assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_a_gpu_without_bfloat16_computes_in_float32(monkeypatch, caplog, precision) -> None:
    """Before compute capability 8.0 cuDNN has no convolution in bfloat16; PyTorch finds it supported, by emulation."""
    monkeypatch.setattr(runtime, "pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with running(RunConfig(device="cuda", precision=precision)) as here:
        assert not here.bf16
    assert [record.getMessage() for record in caplog.records].count(runtime.WITHOUT_BF16) == (precision != "fp32")


@pytest.mark.parametrize(("end", "left"), [(None, 1), (SystemExit(75), 1), (UserError("damaged"), 0), (KeyboardInterrupt(), 0)])
def test_a_process_that_fails_waits_for_no_other(monkeypatch, end, left) -> None:
    """NCCL's groups end on all processes together; a stop is agreed on, a failure may be one's own."""
    called: list[str] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", called.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: called.append("left"))
    with pytest.raises(type(end)) if end else nullcontext(), running(RunConfig(device="cpu")) as here:
        assert here.world_size == 2
        if end:
            raise end
    assert called == ["gloo", *left * ["left"]] and gc.get_freeze_count() == 0


def test_the_garbage_collector_leaves_what_was_imported_alone_while_a_run_lasts() -> None:
    with running(RunConfig(device="cpu")):
        assert gc.get_freeze_count() > 50_000 > len(gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_what_an_earlier_run_of_a_process_has_left_is_not_frozen() -> None:
    """Its networks and captured graph, in a cycle, kept their memory for all of the next run."""
    class Left:
        itself: object

    left = Left()
    left.itself = left
    gone = weakref.ref(left)
    gc.disable()
    try:
        del left
        with running(RunConfig(device="cpu")):
            assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("features", "lacking"), [
    ("flags\t\t: fpu avx2 f16c\nbugs\t\t: spectre_v1 bf16\n", True), ("flags\t\t: avx2 avx512f avx512_bf16\n", False),
    ("flags\t\t: avx2 amx_bf16 amx_tile\n", False), ("Features\t: fp asimd bf16 i8mm\n", False),
    ("Features\t: fp asimd\n", True), ("model name\t: of a kernel that lists none\n", False), (None, False),
])
@pytest.mark.parametrize("precision", ["bf16", "fp32", "auto"])
def test_a_processor_that_emulates_bfloat16_is_named(tmp_path, monkeypatch, caplog, features, lacking, precision):
    monkeypatch.setattr(runs_cores, "CPU_INFO", tmp_path / "cpuinfo")
    if features is not None:
        write(tmp_path / "cpuinfo", f"processor\t: 0\n{features}\n")
    with running(RunConfig(device="cpu", precision=precision)):
        pass
    assert [record.getMessage() for record in caplog.records].count(runtime.EMULATED) == (lacking and precision == "bf16")
