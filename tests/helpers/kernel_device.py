"""Where the Triton kernels are tested: on a GPU for real, or on the CPU in a process with TRITON_INTERPRET=1.

A test file for both begins with `pytestmark = triton_marks()`. In an ordinary process on a machine without a GPU it has
nothing to run and skips itself as a whole; `test_kernels_interpreter.py` starts the interpreting process there.
"""

import os

import pytest
import torch

from svdata2vec.kernels.dispatch import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"


def triton_marks() -> list[pytest.MarkDecorator]:
    """`gpu` where these tests need one; repairs the interpreter where it serves."""
    if INTERPRETED:
        from interpreter_repair import repair

        repair()
        return []
    if not torch.cuda.is_available() and os.environ.get("REQUIRE_GPU") != "1":
        pytest.skip("needs an NVIDIA GPU; test_kernels_interpreter.py runs this file without one", allow_module_level=True)
    return [pytest.mark.gpu]
