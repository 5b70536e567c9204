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
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from svdata2vec.kernels import launch

POINTERS = {
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}


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


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Collect launches instead of starting them; results stay uninitialised."""
    launches: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], num_warps: int, constants: Any) -> None:
        launches.append(Launch(kernel, arguments, num_warps, dict(constants)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "start", record)
        yield launches


def record(call: Callable[[], object]) -> list[Launch]:
    """The launches of one call."""
    with recorded_launches() as launches:
        call()
    return launches


def compile_for(recorded: Launch, capability: int) -> Usage:
    """Compile as Triton's just-in-time path would: ones become constants, multiples of 16 are promised as such."""
    names = recorded.kernel.arg_names
    values = dict(zip(names, recorded.arguments, strict=False)) | recorded.constants
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    promises: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, name in enumerate(names):
        value = values[name]
        if name in recorded.constants or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            promises[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                promises[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=recorded.kernel, signature=signature, constexprs=constants, attrs=promises)
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": recorded.num_warps, "num_stages": launch.NUM_STAGES}
    compiled = triton.compile(source, target=target, options=options)
    return _usage(compiled.asm["cubin"], compiled.metadata.shared)


def _usage(cubin: bytes, dynamic_shared: int) -> Usage:
    """Read the resources out of the machine code with the cuobjdump that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, f"cuobjdump -res-usage has changed its format: {text}"
    registers, stack, shared, local = map(int, found.groups())
    return Usage(registers, stack + local, shared + dynamic_shared)
