"""The files that belong to the repository, for tests of its shape and of what is built from it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def repository_files() -> list[Path]:
    """Files and links relative to ROOT: tracked, or new and not ignored. Skips the test where there is no git clone."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs git, and the repository as a clone")
    found = {Path(name) for name in listed.split("\0") if name}
    return sorted(path for path in found if (ROOT / path).exists())
