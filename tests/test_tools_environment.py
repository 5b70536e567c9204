"""The scripts that make environments: what they install and when, with an interpreter that only records its calls."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT

STUB = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
"-m venv --clear "*)
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo "command = $0 $*" > "$4/pyvenv.cfg" ;;
*base_prefix*) tail -n 1 "$0" ;;
*pytest*) echo "$TMPDIR" > scratch ;;
*--editable*) env > installing; [ -z "${ENDS:-}" ] || exit "$ENDS"; sleep "${TAKES:-0}"; touch .venv/whole ;;
*'version("svdata2vec")') [ -f .venv/whole ]; exit ;;
*sysconfig*) echo . ;;
esac
exit 0
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what decides on an environment, and a Python that notes its calls."""
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("PYTHON", str(a_python(tmp_path / "stub")))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("SVDATA2VEC_CUDA", "SVDATA2VEC_TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def a_python(path: Path, text: str = STUB) -> Path:
    path.write_text(f"{text}# {path.name}")
    path.chmod(0o755)
    return path


def copy_tools(folder: Path, *names: str) -> None:
    for name in ("environment.sh", *names):
        (folder / "tools" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tools" / name, folder / "tools" / name)


def start(folder: Path) -> "subprocess.Popen[str]":
    words = ["bash", "-c", f"set -euo pipefail; source '{ROOT}/tools/environment.sh'; make_environment; echo $python"]
    environment = {**os.environ, "PWD": str(folder)}  # with its links, as a shell has it
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def made(folder: Path) -> tuple[int, str]:
    """Status and errors of making the environment."""
    process = start(folder)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def times_made(folder: Path, name: str = ".venv") -> int:
    return (folder / "calls").read_text().splitlines().count(f"-m venv --clear {name}")


@pytest.mark.parametrize("cuda", ["cuda13", "cuda12"])
def test_the_builds_of_one_cuda_version_are_installed(cuda: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For CUDA 12 PyTorch comes first, from its own index, in the versions of setup.cfg: PyPI's build is for CUDA 13."""
    monkeypatch.setenv("SVDATA2VEC_CUDA", cuda)
    for _ in range(2):  # the second time nothing is left to do
        assert made(checkout) == (0, "")
    calls = (checkout / "calls").read_text().splitlines()
    pip, *installs = [call.split(" pip install --quiet --disable-pip-version-check ")[1] for call in calls if " pip " in call]
    assert pip == "--upgrade pip"
    (torch,) = (line.strip() for line in (ROOT / "setup.cfg").read_text().splitlines() if line.strip().startswith("torch>"))
    first = [f"--no-compile --index-url https://download.pytorch.org/whl/cu126 {torch}"] if cuda == "cuda12" else []
    assert installs == [*first, f"--no-compile --editable .[{cuda},test]"]
    if cuda == "cuda12":
        assert f"pip install '{torch}' --index-url https://download.pytorch.org/whl/cu126" in (ROOT / "README.md").read_text()


def test_two_at_once_install_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would clear the environment in the middle of the first one's installation."""
    monkeypatch.setenv("TAKES", "0.3")
    processes = [start(checkout) for _ in range(2)]
    ends = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [status for _, _, status in ends] == [0, 0] and times_made(checkout) == 1


def test_a_folder_behind_a_link_is_the_same(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("link") / "checkout"
    link.symlink_to(checkout)
    for folder in (checkout, link):
        assert made(folder) == (0, "")
    assert times_made(checkout) == 1


def test_another_python_rebuilds_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PYTHON, or with the environment's own, what is there stays."""
    first, another = os.environ["PYTHON"], str(a_python(checkout / "another"))
    for python, times in ((first, 1), (another, 2), ("", 2), (str(checkout / ".venv/bin/python"), 2)):
        monkeypatch.setenv("PYTHON", python)
        assert made(checkout) == (0, "") and times_made(checkout) == times


def test_an_interpreter_that_does_not_run_is_replaced(checkout: Path) -> None:
    """As after an update of the system's Python."""
    assert made(checkout) == (0, "")
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nonexistent/python3.11")
    assert made(checkout) == (0, "") and times_made(checkout) == 2


def test_variables_of_another_python_do_not_reach_pip(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip takes what PYTHONPATH holds for installed: the environment lacks it later. The others have it install elsewhere."""
    names = ["PYTHONPATH", "PYTHONHOME", "PIP_PREFIX", "PIP_TARGET", "PIP_USER"]
    for name in (*names, "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "elsewhere")
    assert made(checkout) == (0, "")
    seen = {line.split("=")[0] for line in (checkout / "installing").read_text().splitlines()}
    assert "PIP_FIND_LINKS" in seen and not seen & set(names)


def test_a_failed_installation_is_not_taken_for_complete(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what was whole before: going back to the earlier setup.cfg installs again."""
    assert made(checkout) == (0, "")
    text = (checkout / "setup.cfg").read_text()
    (checkout / "setup.cfg").write_text(text + "\n")
    monkeypatch.setenv("ENDS", "1")
    status, errors = made(checkout)
    assert status == 2 and errors.count("\n") == 1
    assert "could not be installed (see above): this needs PyPI or a mirror of it, once" in errors
    (checkout / "setup.cfg").write_text(text)
    monkeypatch.delenv("ENDS")
    assert made(checkout) == (0, "") and times_made(checkout) == 3


def test_an_interrupted_clearing_leaves_no_stamp(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(checkout) == (0, "")
    monkeypatch.setenv("PYTHON", str(a_python(checkout / "another", STUB.replace("rm -rf \"$4\" &&", "exit 1;"))))
    assert made(checkout)[0] == 1 and not (checkout / ".venv/installed").exists()


@pytest.mark.parametrize("variable, value, message", [
    ("PYTHON", "/none", "PYTHON=/none: expected a Python 3.11 or newer with venv; name one, or unset PYTHON"),
    ("SVDATA2VEC_CUDA", "12", "SVDATA2VEC_CUDA=12: expected cuda12 or cuda13 (the default)"),
])
def test_wrong_variables_are_named(variable: str, value: str, message: str, checkout: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """pip installs without DALI for an extra that it does not know."""
    assert made(checkout) == (0, "")
    monkeypatch.setenv(variable, value)
    assert made(checkout) == (2, message + "\n")


def test_an_environment_of_the_users_own_is_not_cleared(checkout: Path) -> None:
    own = checkout / ".venv"
    own.mkdir()
    (own / "pyvenv.cfg").write_text("command = /usr/bin/python3 -m venv .venv\n")
    status, errors = made(checkout)
    assert status == 2 and errors == f"{own}: not made by this script, which would clear it; move it away or remove it\n"
    assert list(own.iterdir()) == [own / "pyvenv.cfg"]


@pytest.mark.parametrize("option", ["exec", "noexec"])
def test_scratch_is_in_memory_where_programs_run_from_there(option: str, checkout: Path) -> None:
    """Tests install commands and compile libraries in it; a container's /dev/shm is mounted `noexec`."""
    copy_tools(checkout, "test.sh")
    mount = f"mount --bind . /srv && mount -t tmpfs -o size=9g,{option} tmpfs /dev/shm"  # where the checkout may lie
    if subprocess.run(["unshare", "-rm", "bash", "-c", mount], cwd=checkout, capture_output=True).returncode:
        pytest.skip("needs namespaces for users and mounts")
    environment = {**os.environ, "PYTHON": "/srv/stub", "CALLS": "/srv/calls"}
    environment.pop("TMPDIR", None)
    words = ["unshare", "-rm", "bash", "-c", f"{mount} && cd /srv && bash tools/test.sh --version"]
    subprocess.run(words, cwd=checkout, env=environment, check=True, capture_output=True)
    assert (checkout / "scratch").read_text().startswith("/dev/shm/") == (option == "exec")


def test_the_pose_environment_needs_a_whole_one_below_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose installation failed is made again, as is its own where its Python does not run."""
    copy_tools(checkout, "pose/pose_env.sh")
    monkeypatch.setenv("ENDS", "1")
    assert made(checkout)[0] == 2
    monkeypatch.delenv("ENDS")
    for damaged, times in ((False, 1), (False, 1), (True, 2)):
        if damaged:
            (checkout / ".venv-pose/bin/python").unlink()
        subprocess.run(["bash", "tools/pose/pose_env.sh"], cwd=checkout, check=True, capture_output=True)
        assert times_made(checkout) == 2 and times_made(checkout, ".venv-pose") == times
