"""Runs the tests of the Triton kernels in Triton's interpreter, in a separate process.

Triton decides at import whether kernels are interpreted or compiled, and `test_kernels_compile.py` needs them compiled.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "at_least"),
    [
        pytest.param(("test_kernels_triton.py",), 250, id="masked core"),
        pytest.param(("test_kernels_fused.py", "test_kernels_training_step.py"), 125, id="fused blocks"),
    ],
)
def test_every_kernel_under_the_interpreter(files: tuple[str, ...], at_least: int) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not gpu", "--tb=short"]
    done = subprocess.run(
        [*command, *(str(TESTS / name) for name in files)],
        cwd=TESTS.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(done.stdout)  # pytest shows it on failure: the inner report is the diagnosis
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
    assert done.returncode == 0, summary
    passed = re.search(r"(\d+) passed", summary)
    assert passed and int(passed[1]) >= at_least, f"too few tests ran: {summary}"
    assert "skipped" not in summary, summary
