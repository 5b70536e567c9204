"""The result pages say what their records say, and the commands of both pages have the options they name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from svdata2vec.bench.batch import batch_config
from svdata2vec.bench.data import BenchDataOptions
from svdata2vec.bench.run import bench_config
from svdata2vec.bench.scale import scale_config
from svdata2vec.cli import commands
from svdata2vec.cli import run_commands as model_commands
from svdata2vec.cli.options import parse, parse_preset
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.probe import PROBE

ROOT = Path(__file__).parent.parent
README, RESULTS = ((ROOT / name).read_text() for name in ("README.md", "tools/results/README.md"))


def shell_lines(page: str) -> list[str]:
    """The commands of a page's bash blocks, without comments."""
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in shell.splitlines() if line.strip() and not line.startswith("#")]


LINES = shell_lines(README)
COMMANDS = [line for line in LINES + shell_lines(RESULTS) if "svdata2vec " in line and not line.startswith("pip")]
SCRIPTS = [command for line in LINES + shell_lines(RESULTS) for command in line.split(" && ") if "python tools/" in command]
PRESETS = {"pretrain": PRETRAIN, "finetune": FINETUNE, "probe": PROBE}
BENCHES = {"run": bench_config, "scale": scale_config, "batch": batch_config}
OPTIONS = {
    "verify": commands.VerifyOptions, "inspect": commands.InspectOptions, "evaluate": commands.EvaluateOptions,
    "report": commands.ReportOptions, "embed": model_commands.EmbedOptions, "predict": model_commands.PredictOptions,
    "convert": model_commands.ConvertOptions, "export": model_commands.ExportOptions,
}


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
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("svdata2vec") + 1 :]
    command, rest = words[0], words[1:]
    assert command in commands.COMMANDS
    if command in PRESETS:
        parse_preset(PRESETS[command], rest, command)
    elif command == "shard":
        assert rest[0] in commands.SOURCES
        parse(commands._shard_options(rest[0]), rest[1:], f"svdata2vec shard {rest[0]}")
    elif command == "bench" and rest[0] in BENCHES:
        configured = BENCHES[rest[0]]
        table = {name: (lambda make=make: configured(make())) for name, make in PRETRAIN.items()}
        parse_preset(table, rest[1:], f"bench {rest[0]}")
    elif (command, rest[0]) == ("bench", "compare"):
        parse(commands.CompareOptions, rest[1:], "svdata2vec bench compare")
    elif (command, rest[0]) == ("bench", "data"):
        parse(BenchDataOptions, rest[1:], "svdata2vec bench data")
    elif command in OPTIONS:
        parse(OPTIONS[command], rest, f"svdata2vec {command}")
    else:
        pytest.fail(f"a page uses {command}, which this test does not know how to parse")


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


def test_the_page_about_tools_lists_every_script() -> None:
    page = (ROOT / "tools" / "README.md").read_text()
    scripts = {path.name for suffix in ("py", "sh", "sbatch") for path in (ROOT / "tools").rglob(f"*.{suffix}")}
    assert set(re.findall(r"`(\w+\.(?:py|sh|sbatch))`", page)) == scripts
