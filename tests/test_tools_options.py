"""Options of the scripts in tools/: each has a help text; files that they name are checked before anything is measured."""

import ast
import importlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import file_options
import pytest
from repository import ROOT

BENCHMARKS = {path.stem: path.read_text() for path in sorted((ROOT / "tools" / "bench").glob("*.py"))}

SCRIPTS = [path for path in sorted((ROOT / "tools").rglob("*.py")) if "__main__" in path.read_text()]
MODULES = {path.stem: path for path in (ROOT / "tools").rglob("*.py")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_a_help_and_refuses_unknown_options(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, status in ((["--help"], 0), (["--no-such-option", "x"], 2)):
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", [script.name, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == status
        shown = capsys.readouterr()
        assert (shown.err if status else shown.out).startswith(f"usage: {script.name} ")


def imported(script: Path) -> Iterator[str]:
    """Names of the packages that a script imports at its top, in order, with those of the modules of tools/ that it imports."""
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                sibling = MODULES.get(module)
                yield from [module.split(".")[0]] if sibling is None else imported(sibling)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_imports_this_package_before_pytorch(script: Path) -> None:
    """Else PyTorch has loaded OpenMP's library before svdata2vec/config/openmp.py bounds how long its threads spin."""
    names = [*imported(script)]
    assert "svdata2vec" not in names or "torch" not in names[: names.index("svdata2vec")]


def refused(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what a benchmark says that ends with status 2."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", [name for name, text in BENCHMARKS.items() if 'argument("--out"' in text])
def test_an_output_is_tried_before_anything_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(name, ["--out", str(tmp_path)], monkeypatch, capsys)
    assert said == f"{name}.py: error: argument --out: {tmp_path} could not be written: a folder has this name"


def test_a_record_replaces_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A video that is measured, say, or the record that a calculation rests on."""
    video, packing = tmp_path / "a.mp4", ROOT / "tools" / "results" / "packing_real_h264.json"
    video.write_bytes(b"\x00\x00\x00\x20ftypisom")
    said = refused("bench_packing", ["--files", str(video), "--out", str(video)], monkeypatch, capsys)
    assert said.endswith(f"argument --out: {video} holds no record and would be lost; give the record another name")
    assert video.stat().st_size == 12
    said = refused("scaling_model", ["--out", str(packing)], monkeypatch, capsys)
    assert said.endswith(f"argument --out: {packing} is read here and would be lost; give the file to write another name")
    for text in ("", '{"rows": []}'):
        (tmp_path / "record.json").write_text(text)
        assert file_options.file_to_write(str(tmp_path / "record.json")) == tmp_path / "record.json"


@pytest.mark.parametrize("name", [name for name, text in BENCHMARKS.items() if 'argument("--files"' in text])
def test_a_video_that_is_not_there_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(name, ["--files", str(tmp_path / "a.mp4")], monkeypatch, capsys)
    assert said == f"{name}.py: error: argument --files: {tmp_path}/a.mp4: no such file; expected a video"


@pytest.mark.parametrize("name", ["bench_packing", "bench_block_encoder"])
def test_a_video_that_cannot_be_read_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cv2.setNumThreads", lambda count: None)  # of the tests' process
    (tmp_path / "a.mp4").write_bytes(b"no video")
    said = refused(name, ["--files", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "out.json")], monkeypatch, capsys)
    assert said.startswith(f"{name}.py: error: ") and "a.mp4" in said
    assert not (tmp_path / "out.json").exists()


def test_a_set_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("bench_packing", ["--motion", str(tmp_path)], monkeypatch, capsys)
    assert said.endswith(f"--motion: {tmp_path}/motion.pkl: no such file; expected the annotations of make_motion_clips.py")


def test_a_folder_of_records_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("render_kernels", ["--folder", str(tmp_path / "none")], monkeypatch, capsys)
    assert said.endswith(f"--folder: {tmp_path}/none: no such folder; expected one with files of bench_kernels.py")
