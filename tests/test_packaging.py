"""Wheel and sdist are complete, contain nothing else, and work when installed away from the checkout.

Built and installed with this environment's setuptools and libraries: no network, no compiler.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePath

import pytest
from repository import ROOT, repository_files
from shards_data import write_motion_set

import svdata2vec

pytestmark = pytest.mark.installs

LINKED = ("kernels", "pipeline", "shards")  # svdata2vec/NAME is a symlink to NAME
PIP = (sys.executable, "-m", "pip")
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation")
# What is set here about packages must not reach the fresh environments: the checkout is on no path of theirs.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
WHERE = """
import svdata2vec, svdata2vec.kernels.attention, svdata2vec.pipeline.graph, svdata2vec.shards.packing.pack
for module in svdata2vec, svdata2vec.kernels.attention, svdata2vec.pipeline.graph, svdata2vec.shards.packing.pack:
    print(module.__file__)
"""
TINY_RUN = [
    "--data.train-split", "train", "--data.num-frames", "6", "--data.size", "32", "--data.threads", "1",
    "--model.width", "32", "--model.depth", "2", "--model.decoder-depth", "1", "--model.heads", "2", "--model.stem-width", "16",
    "--target.top-layers", "2", "--run.epochs", "1", "--run.batch-size", "2", "--run.device", "cpu", "--run.precision", "fp32",
]


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel that pip builds of a folder or an sdist."""
    folder.mkdir()
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with its symlinks: builds leave folders behind and would take up what older ones left."""
    copy = tmp_path_factory.mktemp("source")
    for path in repository_files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(source, tmp_path_factory.mktemp("built") / "wheel")


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def installed(artifact: Path, folder: Path) -> Path:
    """The `bin` folder of a fresh environment with the artifact; it sees this one's libraries, not its editable install."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Python reads no .pth file of a folder named by a .pth file, so the editable install in there stays unknown.
    (Path(packages) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*PIP, "--python", python, "install", *OFFLINE, "--ignore-installed", artifact, cwd=folder)
    return folder / "bin"


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    inside = {str("svdata2vec" / path if path.parts[0] in LINKED else path) for path in repository_files()}
    expected = {name for name in inside if re.fullmatch(r"svdata2vec/(.+\.py|py\.typed|shards/readers/data/.+)", name)}
    samples = {"svdata2vec/py.typed", "svdata2vec/kernels/attention.py", "svdata2vec/shards/readers/data/ntu_classes.txt"}
    assert samples < expected
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert f"svdata2vec-{svdata2vec.__version__}.dist-info/licenses/LICENSE" in names


def test_sdist_holds_what_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """The files behind the symlinks are in it as files."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    inside = {PurePath(*PurePath(member.name).parts[1:]) for member in members if member.isfile()}
    assert {path.parts[0] for path in inside} == {
        "svdata2vec", "svdata2vec.egg-info", "pyproject.toml", "setup.cfg", "MANIFEST.in", "PKG-INFO",
        "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE",
    }
    again = wheel_of(sdist, tmp_path / "again")
    contents = [{info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()} for path in (wheel, again)]
    assert contents[0] == contents[1]


def test_the_installed_wheel_packs_and_trains(wheel: Path, tmp_path: Path) -> None:
    here = installed(wheel, tmp_path / "environment")
    command, elsewhere = here / "svdata2vec", tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = run(here / "python", "-c", WHERE, cwd=elsewhere).split()
    assert len(found) == 4 and all(Path(file).is_relative_to(tmp_path / "environment") for file in found), found
    assert run(command, "--version", cwd=elsewhere) == f"svdata2vec {svdata2vec.__version__}\n"
    assert "pretrain" in run(command, "--help", cwd=elsewhere)
    assert "--pickle-path" in run(command, "shard", "pyskl", "--help", cwd=elsewhere)
    pickle_path, videos = write_motion_set(elsewhere)
    run(command, "shard", "pyskl", "shards", "--pickle-path", pickle_path, "--videos", videos, "--size", 64, "--workers", 2,
        cwd=elsewhere)
    run(command, "pretrain", "demo", "--data.shards", "shards", "--run.out", "run", *TINY_RUN, cwd=elsewhere)
    assert (elsewhere / "run" / "model.safetensors").exists()


def test_the_version_is_one_fact() -> None:
    """In the package, at the top of the changelog, and in the citation."""
    changelog = re.search(r"^## ([^\s,]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert changelog is not None and citation is not None
    assert changelog[1] == citation[1] == svdata2vec.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", svdata2vec.__version__)


def test_a_release_has_its_number_alone() -> None:
    """An entry of the changelog that is not a release's says so: its `.dev0` is what tells its shards and checkpoints apart."""
    top, *released = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top == svdata2vec.__version__ + (", not released yet" if ".dev" in svdata2vec.__version__ else "")
    assert released and svdata2vec.__version__ not in released and not any(".dev" in version for version in released)


def test_every_dependency_says_why_it_stays() -> None:
    """In setup.cfg, each line of `install_requires` stands below a comment of its own."""
    text = (ROOT / "setup.cfg").read_text()
    block = re.search(r"^install_requires =\n((?:    .*\n)+)", text, re.MULTILINE)
    assert block is not None
    lines = [line.strip() for line in block[1].splitlines()]
    requirements = [number for number, line in enumerate(lines) if not line.startswith("#")]
    assert len(requirements) > 10
    assert [lines[number] for number in requirements if number == 0 or not lines[number - 1].startswith("#")] == []


def test_the_installed_sdist_starts(sdist: Path, tmp_path: Path) -> None:
    here = installed(sdist, tmp_path / "environment")
    assert "pretrain" in run(here / "svdata2vec", "--help", cwd=tmp_path)
