"""The layout of the repository: fixed folders, symlinks, allowed imports, and links in documents."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest
from repository import ROOT, repository_files

PROJECT = {"shards", "pipeline", "kernels", "svdata2vec", "tools", "tests"}
FOLDERS = ("shards", "pipeline", "kernels", "svdata2vec")
# Every room with the rooms that its files may import, besides themselves. The rooms of `svdata2vec/` stand in one row: each
# may import all those before it.
SHARDS = ("shards", "shards.reading", "shards.readers", "shards.packing")
ROW = ("config", "model", "runs", "reports", "original", "evaluation", "training", "studies", "bench", "cli")
BELOW = {*SHARDS, "pipeline", "kernels", "svdata2vec"}
ALLOWED: dict[str, set[str]] = {
    "shards": set(),
    "shards.reading": {"shards"},
    "shards.readers": {"shards"},
    "shards.packing": {"shards", "shards.reading"},
    "pipeline": {"shards", "shards.reading", "kernels"},  # frames in blocks are decoded by a kernel (pipeline/video.py)
    "kernels": set(),
    "svdata2vec": {*BELOW, *ROW},  # the version and the public names, which come from any room
    **{room: {*BELOW, *ROW[:number]} for number, room in enumerate(ROW)},
}
FORBIDDEN_LIBRARIES = {"shards": {"torch", "nvidia", "triton"}, "kernels": {"nvidia", "cv2", "av", "webdataset"}}


def sources(folder: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*.py") if not (path.parent.is_symlink() or path.is_symlink())]
    return [path for path in found if not any(parent.is_symlink() for parent in path.parents if parent != ROOT)]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str | None:
    """Room of this project that a module, or a name in it, lies in; None for a library."""
    parts = module.split(".")
    if parts[0] != "svdata2vec":
        return parts[0] if parts[0] in {"tools", "tests"} else None
    if len(parts) > 2 and f"{parts[1]}.{parts[2]}" in ALLOWED:
        return f"{parts[1]}.{parts[2]}"
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "svdata2vec"


def room_of_file(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = room_of(".".join(parts if parts[0] == "svdata2vec" else ("svdata2vec", *parts)))
    assert room is not None
    return room


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    assert sources(folder), f"{folder} has no source files"
    for path in sources(folder):
        room = room_of_file(path)
        for module in imported_modules(path):
            target = room_of(module)
            known = target is None or target == room or target in ALLOWED[room] or module == "svdata2vec.__version__"
            assert known, f"{path.relative_to(ROOT)} imports {module}"
            library = module.split(".")[0]
            assert library not in FORBIDDEN_LIBRARIES.get(folder, set()), f"{path.relative_to(ROOT)} imports {module}"
            assert library not in PROJECT - {"svdata2vec"}, f"{path.relative_to(ROOT)}: import {module} as svdata2vec.{module}"


def test_every_room_exists_and_is_installed() -> None:
    """Each room is a folder with files, and `setup.cfg` lists exactly these packages."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    packages = set(settings["options"]["packages"].split())
    found = {room_of_file(path) for folder in FOLDERS for path in sources(folder)}
    assert found == set(ALLOWED)
    assert packages == {"svdata2vec", *(f"svdata2vec.{room}" for room in ALLOWED if room != "svdata2vec")}


def test_dali_is_imported_in_one_file_of_the_library() -> None:
    importing = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sources(folder)
        if any(module.startswith("nvidia.dali") for module in imported_modules(path))
    }
    assert importing == {"pipeline/graph.py"}


def test_pools_of_processes_are_made_in_one_file() -> None:
    """The one of the standard library leaves its processes behind where its program is killed."""
    users = [path for folder in (*FOLDERS, "tools") for path in sources(folder) if "ProcessPoolExecutor" in path.read_text()]
    assert {path.relative_to(ROOT).as_posix() for path in users} == {"shards/executors.py", "svdata2vec/studies/jobs.py"}


@pytest.mark.parametrize("folder", ["kernels", "pipeline", "shards"])
def test_folders_are_reached_through_relative_symlinks(folder: str) -> None:
    link = ROOT / "svdata2vec" / folder
    assert link.is_symlink() and link.readlink() == Path("..") / folder
    assert not list((ROOT / folder).rglob("__init__.py")), "a top-level package would collide with other projects' names"


@pytest.mark.parametrize("room", ROW)
def test_a_room_says_what_it_is_for(room: str) -> None:
    """In one or two lines at the top of its `__init__.py`, which holds nothing else."""
    tree = ast.parse((ROOT / "svdata2vec" / room / "__init__.py").read_text())
    assert len(ast.get_docstring(tree) or "") > 20 and len(tree.body) == 1


@pytest.mark.parametrize("folder", [*FOLDERS, "tools/results"])
def test_a_folder_explains_itself(folder: str) -> None:
    assert (ROOT / folder / "README.md").read_text().startswith("# ")


def test_links_between_documents_lead_to_files_and_headings() -> None:
    """Relative links in Markdown, with the heading after a #."""
    documents = [path for path in repository_files() if path.suffix == ".md"]
    assert Path("README.md") in documents
    broken = []
    for document in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(ROOT / document)):
            name, _, heading = target.partition("#")
            file = ROOT / document.parent / name if name else ROOT / document
            if "://" not in target and not (file.exists() and (not heading or heading in headings(file))):
                broken.append(f"{document}: {target}")
    assert broken == []


def test_files_that_documents_name_exist() -> None:
    """In text and commands, by their path from the root. The changelog may name what is gone."""
    named = re.compile(r"(?<![\w/.])(?:svdata2vec|pipeline|shards|kernels|tools|tests)/[\w./-]+\.(?:py|sh|sbatch|json|md)\b")
    documents = [path for path in repository_files() if path.suffix == ".md" and path.name != "CHANGELOG.md"]
    found = {(str(path), name) for path in documents for name in named.findall((ROOT / path).read_text())}
    assert len(found) > 8
    assert sorted(entry for entry in found if not (ROOT / entry[1]).exists()) == []


def without_code(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def headings(document: Path) -> set[str]:
    """The names that links to a document's headings use."""
    titles = re.findall(r"^#+ (.+)$", without_code(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_no_path_of_one_machine_is_in_the_repository() -> None:
    paths = re.compile(rb"(?<![\w.\-])/(?:work|root|home|Users|mnt|tmp)/\w")
    texts = [path for path in repository_files() if path.suffix != ".png" and (ROOT / path).is_file()]
    assert [str(path) for path in texts if paths.search((ROOT / path).read_bytes())] == []


def test_the_tests_share_code_through_their_helpers_alone() -> None:
    names = {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert {name for name in names if not name.startswith("test_")} == {"conftest"}
    for path in (ROOT / "tests").rglob("*.py"):
        assert not names & {module.split(".")[0] for module in imported_modules(path)}, path.name


def test_no_tool_hides_a_module_of_the_standard_library() -> None:
    names = {path.stem for path in (ROOT / "tools").rglob("*.py")}
    assert not names & set(sys.stdlib_module_names)


def test_no_file_or_function_has_outgrown_its_reader() -> None:
    """Files up to 500 lines; functions up to 60, kernels (and their launches) aside."""
    for folder in FOLDERS:
        for path in sources(folder):
            text = path.read_text()
            assert text.count("\n") <= 500, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines"
            if folder == "kernels":
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    assert length <= 60, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"
