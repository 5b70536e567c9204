"""tools/environment.sh: what it installs for either CUDA version, with an interpreter that only notes what it was asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT

STUB = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
if [ "$1 $2" = "-m venv" ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
exit 0
"""


@pytest.mark.parametrize("cuda", ["cuda13", "cuda12"])
def test_the_builds_of_one_cuda_version_are_installed(cuda: str, tmp_path: Path) -> None:
    """For CUDA 12 PyTorch comes first, from its own index, in the versions of setup.cfg: PyPI's build is for CUDA 13."""
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "stub"), "CALLS": str(tmp_path / "calls"), "SVDATA2VEC_CUDA": cuda}
    for _ in range(2):  # the second time nothing is left to do
        words = ["bash", "-c", f"source '{ROOT}/tools/environment.sh' && make_environment"]
        subprocess.run(words, cwd=tmp_path, env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    pip, *installs = [call.split(" pip install --quiet --disable-pip-version-check ")[1] for call in calls if " pip " in call]
    assert pip == "--upgrade pip"
    (torch,) = (line.strip() for line in (ROOT / "setup.cfg").read_text().splitlines() if line.strip().startswith("torch>"))
    first = [f"--no-compile --index-url https://download.pytorch.org/whl/cu126 {torch}"] if cuda == "cuda12" else []
    assert installs == [*first, f"--no-compile --editable .[{cuda},test]"]
    if cuda == "cuda12":
        assert f"pip install '{torch}' --index-url https://download.pytorch.org/whl/cu126" in (ROOT / "README.md").read_text()
