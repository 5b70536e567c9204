"""Tables of the speed records: every figure from its file, empty where there is none, remarks of a record printed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import render_results as render

from svdata2vec.bench import record as bench_record
from svdata2vec.bench import scale as bench_scale

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"

README = (ROOT / "README.md").read_text()


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results that the renderer reads."""
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["bench_run_cpu", "bench_run_demo_cpu"])
def test_committed_records_of_bench_run_are_sound(name: str) -> None:
    record = bench_record.load_record(RESULTS / f"{name}.json")
    assert not record["setting"]["shards"].startswith("/")
    assert "original train" in record["stages"]


def test_the_committed_record_of_scaling_is_sound() -> None:
    record = load("scaling_measured")
    assert bench_record.faults(record, bench_scale.SCHEMA) == [] and record["wrong"] == []
    assert [bench_record.faults(row, bench_scale.WORLD_SCHEMA) for row in record["worlds"]] == [[]] * 3
    assert [row["processes"] for row in record["worlds"]] == [1, 2, 4] and not record["setting"]["shards"].startswith("/")
    for row in record["worlds"]:
        checked = row["checks"]
        assert len(set(checked["steps"])) == 1 and len(checked["steps"]) == row["processes"]
        assert checked["clips"] == checked["steps"][0] * row["processes"] * record["setting"]["batch_size"]


@pytest.mark.parametrize("section", ["bench_run", "scaling_measured"])
def test_the_readme_has_the_tables(section: str) -> None:
    assert f"<!-- results:{section} -->\n{render.SECTIONS[section]()}<!-- /results -->" in README


def test_figures_of_bench_run_come_from_the_files(results: Path) -> None:
    record = load("bench_run_cpu")
    gpu = copy.deepcopy(record)
    gpu["machine"]["device"] = "GPU X"
    gpu["stages"]["train"]["clips_per_s"] = 1234.5
    gpu["roofline"]["read"].update(limit_clips_per_s=None, efficiency=None)
    gpu["baseline"], gpu["doubts"] = None, ["doubtful: too many cooks"]
    for name in ("original model", "original train"):
        del gpu["stages"][name]
    (results / "bench_run_cpu.json").write_text(json.dumps(record))
    alone = render.bench_run()
    (results / "bench_run_gpu.json").write_text(json.dumps(gpu))
    both = render.bench_run()
    lines = (line.split(" | ") for line in both.splitlines())
    cells = {first.strip("| "): [cell.strip("| ") for cell in rest] for first, *rest in lines}
    train = record["roofline"]["train"]
    rate = f"{record['stages']['train']['clips_per_s']:.2f}"
    assert cells["train"][:4] == [rate, f"{train['limit_clips_per_s']:.2f}", f"{100 * train['efficiency']:.3g} %", "1,234"]
    assert cells["read"][4:6] == ["", ""] and cells["the original's way: train"][3] == ""
    assert "GPU X, torch" in both and "Doubtful: too many cooks." in both and "GPU:" not in alone.replace("a GPU", "")
    assert both.count("times as fast") == alone.count("times as fast") == 1
    assert f"training {record['baseline']['train_speedup']:.1f} times as fast" in both


def test_rates_keep_three_digits() -> None:
    assert [render._rate(value) for value in (None, 0.365, 2.18, 76.33, 1269.03)] == ["", "0.36", "2.18", "76.3", "1,269"]


def test_no_speed_is_shown_where_processes_share_cores(results: Path) -> None:
    record = load("scaling_measured")
    record["machine"].update(usable_cores=2, device="cpu")
    record["worlds"][1]["checks"].update(student_equal=False, lost=3)
    record["notes"] = ["4 processes share 2 cores"]
    (results / "scaling_measured.json").write_text(json.dumps(record))
    text = render.scaling_measured()
    one, two, four = (line.split(" | ") for line in text.splitlines()[2:5])
    assert one[2] == "100.0 %" and one[5] == one[6] == "" and two[2] != "" and four[1] == four[2] == ""
    assert two[8] == "NO" and two[9].startswith(f"{record['worlds'][1]['checks']['clips'] - 3} of ")
    assert four[3] == f"{record['worlds'][2]['gradient_bytes'] / 1e6:.2f}" and "4 processes share 2 cores." in text
    record["machine"]["usable_cores"] = 4
    (results / "scaling_measured.json").write_text(json.dumps(record))
    four = render.scaling_measured().splitlines()[4].split(" | ")
    assert four[2] != "" and four[5] != "" and four[6] != ""
    record["notes"] = ["doubtful: the machine was busy before the first step"]
    (results / "scaling_measured.json").write_text(json.dumps(record))
    four = render.scaling_measured().splitlines()[4].split(" | ")
    assert four[1] == four[2] == four[5] == "" and four[6] != ""  # CPU time holds


def test_without_files_nothing_is_said(results: Path) -> None:
    assert render.scaling_measured() == "" and render.bench_run().count("\n") == 2
