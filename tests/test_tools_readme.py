"""The result pages say what their records say, and the commands on them have the options they name."""

import re
import shlex
import subprocess
import sys

import pytest
import render_results as render
from repository import ROOT

from svdata2vec.cli.commands import COMMANDS
from svdata2vec.cli.options import read

README = (ROOT / "README.md").read_text()
RESULTS = "".join((ROOT / page).read_text() for page in render.PAGES[1:])


def shell_lines(page: str) -> list[str]:
    """The commands of a page's bash blocks, without comments."""
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in shell.splitlines() if line.strip() and not line.startswith("#")]


LINES = shell_lines(README)
ALL_LINES = LINES + shell_lines(RESULTS)
PAGE_COMMANDS = [line for line in ALL_LINES if "svdata2vec " in line and not line.startswith("pip")]
SCRIPTS = [command for line in ALL_LINES for command in line.split(" && ") if "python tools/" in command]


def test_tables_are_what_the_files_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "results" / "render_results.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_have_the_options_that_they_are_given(line: str) -> None:
    _, script, *words = shlex.split(line)
    assert (ROOT / script).is_file()
    source = "".join(path.read_text() for path in (ROOT / script).parent.glob("*.py"))  # some share their options
    named = [word for word in words if word.startswith("--") and " " not in word]  # with one it is a text of options
    if script.endswith("profile_training.py"):  # takes those of `bench run`
        read(["bench", "run", *words], COMMANDS, "svdata2vec")
        return
    assert [word for word in named if f'"{word}"' not in source] == []


@pytest.mark.parametrize("line", PAGE_COMMANDS)
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)
    read(words[words.index("svdata2vec") + 1 :], COMMANDS, "svdata2vec")


def test_the_first_two_commands_exist_and_parse() -> None:
    first = [shlex.split(line, comments=True) for line in LINES[:2]]
    assert first == [["bash", "tools/demo.sh"], ["bash", "tools/test.sh"]]
    for script in ("tools/demo.sh", "tools/test.sh", "tools/environment.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_the_page_about_tools_lists_every_script() -> None:
    page = (ROOT / "tools" / "README.md").read_text()
    scripts = {path.name for suffix in ("py", "sh", "sbatch") for path in (ROOT / "tools").rglob(f"*.{suffix}")}
    assert set(re.findall(r"`(\w+\.(?:py|sh|sbatch))`", page)) == scripts
