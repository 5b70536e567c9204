"""The README says what the result files say, and its commands have the options they name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.options import read

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
LINES = [line.split(" #")[0].strip() for line in SHELL.splitlines() if line.strip() and not line.startswith("#")]
README_COMMANDS = [line for line in LINES if "svdata2vec " in line and not line.startswith("pip")]


def test_tables_are_what_the_files_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "results" / "render_results.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", README_COMMANDS)
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)
    read(words[words.index("svdata2vec") + 1 :], COMMANDS, "svdata2vec")


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:svdata2vec|pipeline|shards|kernels|tools|tests)/[\w./]+\.(?:py|sh|sbatch|json|md))`", README))
    assert len(named) > 8
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert missing == []


def test_the_first_two_commands_exist_and_parse() -> None:
    first = [shlex.split(line, comments=True) for line in LINES[:2]]
    assert first == [["bash", "tools/demo.sh"], ["bash", "tools/test.sh"]]
    for script in ("tools/demo.sh", "tools/test.sh", "tools/environment.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
