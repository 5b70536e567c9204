"""All code that a training step may run waits for a device or another process only in the places listed here.

The tests of the hot path run steps on a device that stands in for a GPU and miss code that only runs on "cuda". These tests
search the source for it, and test the clock with stand-ins for CUDA's events.
"""

import ast
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from repository import ROOT

from svdata2vec.runs.metrics_log import StepClock

VALUES = {"item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "is_nonzero", "equal", "elapsed_time"}
STREAMS = {"synchronize", "wait_stream", "wait_event"}
PROCESSES = {"all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier"}
OF_A_RUNTIME = {"sum", "gather", "require_same"}  # some are names that tensors have, too
RUN_BY_A_STEP = (
    "svdata2vec/training/*.py", "svdata2vec/model/*.py", "kernels/*.py", "svdata2vec/runs/metrics_log.py",
    "svdata2vec/runs/runtime.py", "svdata2vec/runs/stopping.py", "pipeline/batch.py", "pipeline/handover.py",
    "pipeline/loader.py", "pipeline/video.py",
)
ALLOWED = {
    # Once in a log interval, for a record or a checkpoint.
    "runs/metrics_log.py Ticks.seconds": "synchronize elapsed_time",
    "runs/metrics_log.py Averages.state_dict": "tolist",
    "training/stepper.py FiniteGuard.read": "tolist",
    "training/stepper.py Stepper.counts": "runtime.sum tolist",
    "training/stepper.py Stepper.take_record": "runtime.sum",
    "training/stepper.py Stepper.state_dict": "runtime.sum",
    "training/loop.py _save": "barrier",
    # After so many steps that it costs nothing.
    "runs/stopping.py StopSignal.agreed": "runtime.sum tolist",
    # Once in a run, before its first step or behind its last one.
    "training/loop.py _begin": "barrier",
    "training/loop.py train": "barrier",
    "training/finetune.py Finetuning.take_best": "runtime.gather",
    "training/finetune.py Finetuning._best_so_far": "runtime.gather",  # beside a validation
    "training/graph.py CapturedPass._warm_up": "wait_stream wait_stream",
    # In a thread of the loader, for its own stream; where it fails, too.
    "pipeline/handover.py Lane.work": "synchronize synchronize",
    # Of masks that are drawn, on the CPU.
    "model/masking.py Masks.given": "numpy numpy",
    # The statistics of all processes are what --run.sync-batchnorm asks for.
    "model/sync_batchnorm.py _SumOverProcesses.forward": "all_reduce",
    # The exchanges themselves; those who call them are named above.
    "runs/runtime.py Runtime.sum": "all_reduce cpu",
    "runs/runtime.py Runtime.gather": "all_gather_object",
    "runs/runtime.py Runtime.share_buffers": "broadcast",
    "runs/runtime.py Runtime.share_weights": "broadcast",
    "runs/runtime.py Runtime.barrier": "barrier",
}


def waits(node: ast.AST, place: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(Class.function, name) of all that waits, whether it is called, passed on or imported."""
    names: list[str] = []
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        place = (*place, node.name)
    elif isinstance(node, ast.Attribute):
        of_a_runtime = node.attr in OF_A_RUNTIME and ast.unparse(node.value).endswith("runtime")
        names = [f"runtime.{node.attr}" if of_a_runtime else node.attr]
    elif isinstance(node, ast.ImportFrom):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to":
        names = [str(inner.value) for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    for name in names:
        if name in VALUES | STREAMS | PROCESSES or name.startswith("runtime."):
            yield ".".join(place), name
    for child in ast.iter_child_nodes(node):
        yield from waits(child, place)


def test_code_of_a_step_waits_nowhere_else() -> None:
    found: dict[str, list[str]] = {}
    paths = [[*ROOT.glob(pattern)] for pattern in RUN_BY_A_STEP]
    assert all(paths)
    for path in itertools.chain(*paths):
        file = path.relative_to(ROOT).as_posix().removeprefix("svdata2vec/")
        for place, name in waits(ast.parse(path.read_text())):
            found.setdefault(f"{file} {place}", []).append(name)
    assert {place: sorted(names) for place, names in found.items()} == {
        place: sorted(names.split()) for place, names in ALLOWED.items()
    }


@pytest.mark.parametrize("line", [
    "if bad.is_cuda: torch.cuda.synchronize()", "rate = float(loss.item())", "flags = list(map(Tensor.tolist, bad))",
    "norm = norm.to('cpu')", "norm = norm.to(device='cpu')", "total = self.runtime.sum(norm)", "event.synchronize()",
    "from torch.cuda import synchronize", "dist.all_reduce(norm)", "values = loss.detach().cpu().numpy()",
])
def test_a_wait_is_found_in_a_source(line: str) -> None:
    found = list(waits(ast.parse(f"class Stepper:\n    def update(self):\n        {line}\n")))
    assert found and {place for place, _ in found} == {"Stepper.update"}
    assert not list(waits(ast.parse("total = norm.sum()\nfor name, value in record.items(): row = value.to(device)")))


def test_the_clock_waits_for_the_device_where_it_is_read_and_at_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def __getattr__(self, name: str) -> Any:
            return lambda *_: asked.append(name) or 250.0  # milliseconds, if it is a time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: asked.append("synchronize"))
    clock = StepClock(torch.device("cuda"))
    for part in ("data", "forward", "data"):
        clock.mark(part)
    assert asked == 4 * ["record"]
    spent = clock.seconds()
    assert (spent["data"], spent["forward"]) == (0.5, 0.25)
    assert asked[4:] == ["synchronize", *3 * ["elapsed_time"]]
