"""Ahead-of-time compilation of recorded launches for GPUs that aren't there, and what their assemblers say about them."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from svdata2vec.kernels import dispatch, launch


@dataclass(frozen=True)
class Launch:
    """One recorded start of a kernel, as its launcher would have done it on a GPU."""

    kernel: Any
    arguments: tuple[Any, ...]
    num_warps: int
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Usage:
    """Resources of one compiled kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    wide: bool  # some access to memory moves 16 bytes per thread


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Let ops launch their kernels for CPU tensors as for a GPU's, but collect the launches instead of starting them.

    Results stay uninitialised.
    """
    launches: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], num_warps: int, constants: Any) -> None:
        launches.append(Launch(kernel, arguments, num_warps, dict(constants)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "start", record)
        patch.setattr(dispatch, "INTERPRETED", True)
        yield launches


def record(call: Callable[[], object]) -> list[Launch]:
    """The launches of one call."""
    with recorded_launches() as launches:
        call()
    return launches


class AbsentGpu:
    """Stands in for Triton's driver: a GPU for which can be compiled but not launched."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> Any:
        return self.target.arch  # kernels are cached per device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(recorded: Launch, capability: int) -> Usage:
    """What a launch takes on an NVIDIA GPU."""
    compiled = _compiled(recorded, GPUTarget("cuda", capability, 32))
    registers, stack, shared = _resources(compiled.asm["cubin"])
    return Usage(registers, stack, shared + compiled.metadata.shared, "global.v4.b32" in compiled.asm["ptx"])


def amd_usage(recorded: Launch) -> Usage:
    """What a launch takes on an AMD MI300, as LLVM says in the assembler text."""
    compiled = _compiled(recorded, GPUTarget("hip", "gfx942", 64))
    text = compiled.asm["amdgcn"]
    registers, spilled, stack = (
        int(re.findall(rf"\.{name}: +(\d+)", text)[-1])
        for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    )
    return Usage(registers, 4 * spilled + stack, compiled.metadata.shared, "dwordx4" in text)


def _compiled(recorded: Launch, target: GPUTarget) -> Any:
    """Compile by Triton's own just-in-time path, which decides on types, constants and alignment from the arguments."""
    options = {"num_warps": recorded.num_warps, "num_stages": launch.NUM_STAGES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", AbsentGpu(target))
        return recorded.kernel.warmup(*recorded.arguments, grid=(1,), **recorded.constants, **options)


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack, static shared memory, read by the cuobjdump that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, f"cuobjdump -res-usage has changed its format: {text}"
    registers, stack, shared, local = map(int, found.groups())
    return registers, stack + local, shared
