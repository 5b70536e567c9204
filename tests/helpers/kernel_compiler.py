"""Ahead-of-time compilation of recorded launches for NVIDIA GPUs that aren't there, and what ptxas says about them."""

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
    """Stands in for Triton's driver: a GPU of some compute capability, for which can be compiled but not launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached per device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(recorded: Launch, capability: int) -> Usage:
    """Compile by Triton's own just-in-time path, which decides on types, constants and alignment from the arguments."""
    options = {"num_warps": recorded.num_warps, "num_stages": launch.NUM_STAGES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", AbsentGpu(capability))
        compiled = recorded.kernel.warmup(*recorded.arguments, grid=(1,), **recorded.constants, **options)
    registers, stack, shared = _resources(compiled.asm["cubin"])
    return Usage(registers, stack, shared + compiled.metadata.shared, "global.v4.b32" in compiled.asm["ptx"])


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
