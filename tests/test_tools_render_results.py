"""Tables of the speed records: every figure from its file, empty where there is none, remarks of a record printed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import record_schemas
import render_results as render
import result_cells as cells
import results_speed
import results_studies
from repository import ROOT

from svdata2vec.bench import record as bench_record
from svdata2vec.config.checked_json import faults
from svdata2vec.config.schema import PretrainConfig

RESULTS = ROOT / "tools" / "results"
PAGES = {page: (ROOT / page).read_text() for page in render.PAGES}
README_ALONE = {"recognition", "loading"}  # parts of tables of the pages
NOT_MEASURED_YET = {name for name, (_, (first, *_)) in render.SECTIONS.items() if not (RESULTS / f"{first}.json").exists()}
STUDIES = {"claim", "claim_differences", "claim_costs", "controls", "masks", "choices"}  # hours on two cores


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
    assert faults(record, record_schemas.SCALE) == [] and record["wrong"] == []
    assert [faults(row, record_schemas.WORLD) for row in record["worlds"]] == [[]] * 3
    assert [row["processes"] for row in record["worlds"]] == [1, 2, 4] and not record["setting"]["shards"].startswith("/")
    for row in record["worlds"]:
        checked = row["checks"]
        assert len(set(checked["steps"])) == 1 and len(checked["steps"]) == row["processes"]
        assert checked["clips"] == checked["steps"][0] * row["processes"] * record["setting"]["batch_size"]


def test_the_loaders_ratios_have_those_of_single_rounds_beside_them() -> None:
    record = load("bench_data")
    record["methods"] = {
        "ours, jpeg": {"clips_per_s": 40.0, "cpu_ms_per_clip": 25.0, "cpu_ms_of_rounds": [25.0, 20.0, 30.0]},
        "original style, decord": {"clips_per_s": 4.0, "cpu_ms_per_clip": 250.0, "cpu_ms_of_rounds": [250.0, 260.0, 240.0]},
    }
    ours, original, _, note = results_speed.loader(record).splitlines()[2:]
    assert "before rounding, in brackets those of single rounds." in note
    assert ours == "| ours, jpeg | 40.0 | 25.0 | 10.0x (8.0 to 13.0) |"
    assert original == "| original style, decord | 4.0 | 250.0 | 1.0x |"
    assert "of them; MB per clip: source 960x540 H.264 0.25, jpeg 2.40," in note
    for row in record["methods"].values():
        del row["cpu_ms_of_rounds"]  # as in older records
    ours, *_, note = results_speed.loader(record).splitlines()[2:]
    assert ours == "| ours, jpeg | 40.0 | 25.0 | 10.0x |" and "brackets" not in note


def test_steps_on_the_way_to_a_clip_are_not_compared_with_whole_ways_of_loading() -> None:
    rows = [cells_of(line) for line in results_speed.loader(load("bench_data")).splitlines()]
    ratios = {row[0]: row[3] for row in rows[2:] if row}
    assert {name for name, ratio in ratios.items() if not ratio} == {
        "ours, jpeg: read only", "ours, jpeg: + decode", "ours, vp9: + decode"
    }


@pytest.mark.parametrize(("name", "codec"), [("bench_host", "jpeg"), ("bench_host_blocks", "blocks")])
def test_committed_records_of_the_hosts_cost_are_sound(name: str, codec: str) -> None:
    record = load(name)
    assert faults(record, record_schemas.HOST) == [] and record["setting"]["codec"] == codec
    assert [(row["batch_size"], row["readers"]) for row in record["rows"]] == [(32, 0), (32, 1), (128, 0), (128, 1)]
    assert not record["setting"]["shards"].startswith("/") and record["setting"]["num_frames"] == 40


@pytest.mark.parametrize("name", render.SECTIONS)
def test_the_page_has_every_table_and_the_readme_the_headlines(name: str) -> None:
    written = f"<!-- results:{name} -->\n{render.section(name)}<!-- /results -->"
    in_readme, *in_results = (PAGES[page].count(written) for page in render.PAGES)
    assert (in_readme, sum(in_results)) == (name in README_ALONE, name not in README_ALONE)
    assert render.section(name).startswith(render.NOT_MEASURED) == (name in NOT_MEASURED_YET)


def test_only_studies_may_be_missing() -> None:
    assert NOT_MEASURED_YET <= STUDIES


def test_every_record_is_shown() -> None:
    shown = {record for _, records in render.SECTIONS.values() for record in records}
    assert {path.stem for path in RESULTS.glob("*.json")} - shown <= {"kernels_cpu", "kernels_cuda"}  # on a page of their own


def test_a_page_is_rendered_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "PAGES", ("README.md",))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results:index -->\nold\n<!-- /results -->\nafter\n")
    monkeypatch.setattr("sys.argv", ["render_results.py", "--check"])
    with pytest.raises(SystemExit, match=r"README\.md: not what .* say; run: python tools/results/render_results\.py"):
        render.main()
    assert "old" in page.read_text()
    monkeypatch.setattr("sys.argv", ["render_results.py"])
    render.main()
    assert page.read_text() == "before\n<!-- results:index -->\nNot measured yet.\n<!-- /results -->\nafter\n"
    page.write_text("<!-- results:nothing -->\n<!-- /results -->\n")
    with pytest.raises(SystemExit, match=r"README\.md: unknown results section 'nothing'; expected one of demo"):
        render.main()


def test_figures_of_bench_run_come_from_the_files(results: Path) -> None:
    record = load("bench_run_cpu")
    (results / "bench_run_cpu.json").write_text(json.dumps(record))
    text = render.section("bench_run")
    cells = {row[0]: row[1:] for row in map(cells_of, text.splitlines()) if row}
    train = record["roofline"]["train"]
    assert cells["train"] == [f"{record['stages']['train']['clips_per_s']:.2f}", f"{100 * train['efficiency']:.3g} %", "", ""]
    assert "hence empty: `demo` preset, CPU." in text
    assert f"training {record['baseline']['train_speedup']:.1f} times as fast" in text


def test_on_a_gpu_a_limit_that_is_exceeded_and_what_was_not_measured_are_empty(results: Path) -> None:
    gpu = load("bench_run_gpu")
    gpu["machine"]["device"], gpu["doubts"] = "GPU X", ["doubtful: too many cooks"]
    gpu["stages"]["train"]["clips_per_s"] = 1234.5
    gpu["roofline"]["read"].update(efficiency=1.2)
    gpu["roofline"]["train"].update(efficiency=1.04)
    gpu["roofline"]["model"].update(limit_clips_per_s=None, efficiency=None)
    (results / "bench_run_gpu.json").write_text(json.dumps(gpu))
    blocks = copy.deepcopy(gpu)
    blocks["baseline"] = None
    for name in ("original model", "original train"):
        del blocks["stages"][name]
    (results / "bench_run_gpu_blocks.json").write_text(json.dumps(blocks))
    text = render.section("bench_run_gpu")
    cells = {row[0]: row[1:] for row in map(cells_of, text.splitlines()) if row}
    assert cells["train"] == ["1,234", "104 %", "", "", "1,234", "104 %", "", ""]
    assert cells["read"][1] == cells["model"][1] == "" and cells["the original's way: train"][4:] == [""] * 4
    assert "GPU X, torch" in text and "Doubtful: too many cooks." in text and text.count("times as fast") == 1
    assert "hence empty: jpeg, batch 128, blocks, batch 128." in text


def test_pairs_of_clips_packed_again_are_marked() -> None:
    records = [load(name) for name in ("longer", "more_steps", "more_steps_scratch")]
    assert results_studies.at_one_share(*records).count("Their clips were packed anew.") == 1
    for record in records:
        record["data"]["fingerprint"] = "one"
    assert "packed anew" not in results_studies.at_one_share(*records)


def test_rows_lead_over_those_of_as_many_steps() -> None:
    """Skeletons have more steps alone, joints fewer alone; latents both, and in each column lead by its own difference."""
    longer, more = load("longer"), load("more_steps")
    mine = copy.deepcopy(next(row for row in longer["rows"] if row["name"] == "pretrained"))
    mine["cells"] = [{**cell, "scores": [0.99] * 3, "mean": 0.99, "steps": 2880} for cell in mine["cells"]]
    lines = results_studies.at_one_share(longer, more, {**more, "rows": [mine]}).splitlines()
    cells = {found[0]: found[1:] for line in lines if len(found := cells_of(line)) == 5}
    assert cells[""][0::2] == ["top-1 after 720 steps", "top-1 after 2,880 steps"]
    assert cells["small CNN, from scratch"][1::2] == ["**+6.5 (+5.3 to +7.7)**", "**+6.4 (+4.2 to +8.7)**"]
    assert cells["pretrained, fine-tuned"][1::2] == ["", ""] and cells["joint regression, fine-tuned"][2:] == ["", ""]
    assert cells["skeletons, from scratch"][:2] == ["", ""] and "not corrected for their number, 6." in lines[-1]


@pytest.mark.parametrize(("section", "names"), [
    ("label_efficiency", ["longer"]), ("at_one_share", ["longer"]), ("sides", ["controls"]), ("finetuning", ["finetuning"]),
    ("skeletons", ["skeletons", "skeletons_positions", "longer"]), ("more_steps", ["more_steps", "longer"]),
])
def test_tables_name_the_figure_of_their_record(section: str, names: list[str]) -> None:
    first, *others = [{**load(name), "metric": "mean_class"} for name in names]
    text = getattr(results_studies, section)(first, *others, **({"of_ours": ""} if section == "more_steps" else {}))
    assert "top-1" not in text.lower() and "mean over classes" in text.lower()


def test_a_row_of_other_steps_says_so_whatever_its_record() -> None:
    """The claim's rows have 720, with all labels some have 956: whole epochs. A search may choose others for every share."""
    longer, more = load("longer"), load("more_steps")
    lines = results_studies.at_one_share(longer, share=1.0).splitlines()
    shown = [cells_of(line)[1].partition(" (")[2] for line in lines if "± " in line]
    assert "after 720 steps" in lines[0] and shown == ["", "956 steps)", "956 steps)"]
    more["rows"][0]["cells"][1]["steps"] = 999
    steps = [cells_of(line)[1] for line in results_studies.more_steps(more, longer, of_ours="").splitlines()[2:5]]
    assert steps == ["999 and 2,880", "2,880", "720"]


def cells_of(line: str) -> list[str]:
    """Of a line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def test_the_hosts_cost_of_both_codecs_stands_in_one_table_against_its_goals(results: Path) -> None:
    record = load("bench_host")
    blocks = copy.deepcopy(record)
    blocks.update(host_ms_per_clip=1.234, training_process_ms_per_clip=0.199)
    blocks["rows"][1].update(ms_per_clip=0.199, reader_ms_per_clip=0.8)
    (results / "bench_host.json").write_text(json.dumps(record))
    alone = render.section("host")
    assert "hence empty: blocks." in alone and "| `blocks` |" not in alone
    (results / "bench_host_blocks.json").write_text(json.dumps(blocks))
    both = render.section("host")
    cells_of = [line.strip("| ").split(" | ") for line in both.splitlines() if line.startswith("| `")]
    assert [row[0] for row in cells_of] == ["`jpeg`"] * 4 + ["`blocks`"] * 4
    assert cells_of[5][:4] == ["`blocks`", "32", "1", "0.20"] and cells_of[5][-2:] == ["0.80", "1.00"]
    assert "`blocks`: 0.20 ms in the training process beside a reader process; goal at most 0.2: met." in both
    blocks["training_process_ms_per_clip"] = 0.2004
    (results / "bench_host_blocks.json").write_text(json.dumps(blocks))
    assert "goal at most 0.2: not met." in render.section("host")


def test_the_encoders_times_are_shares_of_a_jpegs(results: Path) -> None:
    record = {"machine": {"cpu": "C", "cores": 2, "load_1min": 1.0, "date": "2026-11-22"}, "rounds": 3, "side": 320, "rows": [
        {"pictures": name, "encoder": encoder, "median_ms": median, "least_ms": least}
        for name, encoder, median, least in (("a", "jpeg", 0.5, 0.4), ("a", "blocks 3-2", 0.4, 0.3),
                                             ("b", "jpeg", 1.0, 0.8), ("b", "blocks 3-2", 0.5, 0.2))]}
    (results / "block_encoder.json").write_text(json.dumps(record))
    lines = render.section("block_encoder").splitlines()
    assert lines[3] == "| a | blocks 3-2 | 0.40 | 0.80 | 0.30 | 0.75 |"
    assert lines[5] == "| b | blocks 3-2 | 0.50 | 0.50 | 0.20 | 0.25 |"


def test_rates_keep_three_digits() -> None:
    rates = [bench_record.rate_text(value) for value in (None, 0.365, 2.18, 76.33, 1269.03)]
    assert rates == ["", "0.36", "2.18", "76.3", "1,269"]


def test_no_speed_is_shown_where_processes_share_cores(results: Path) -> None:
    record = load("scaling_measured")
    record["machine"].update(usable_cores=2, device="cpu")
    record["worlds"][1]["checks"].update(student_equal=False, lost=3)
    record["notes"] = ["4 processes share 2 cores"]
    (results / "scaling_measured.json").write_text(json.dumps(record))
    text = render.section("scaling_measured")
    one, two, four = (line.split(" | ") for line in text.splitlines()[2:5])
    assert one[2] == "100.0 %" and one[5] == one[6] == "" and two[2] != "" and four[1] == four[2] == ""
    assert two[8] == "NO" and two[9].startswith(f"{record['worlds'][1]['checks']['clips'] - 3} of ")
    assert four[3] == f"{record['worlds'][2]['gradient_bytes'] / 1e6:.2f}" and "4 processes share 2 cores." in text
    record["machine"]["usable_cores"] = 4
    (results / "scaling_measured.json").write_text(json.dumps(record))
    four = render.section("scaling_measured").splitlines()[4].split(" | ")
    assert four[2] != "" and four[5] != "" and four[6] != ""
    record["notes"] = ["doubtful: the machine was busy before the first step"]
    (results / "scaling_measured.json").write_text(json.dumps(record))
    four = render.section("scaling_measured").splitlines()[4].split(" | ")
    assert four[1] == four[2] == four[5] == "" and four[6] != ""  # CPU time holds


def test_without_records_no_figure_is_shown(results: Path) -> None:
    assert {render.section(name) for name in render.SECTIONS} == {"Not measured yet.\n"}


@pytest.mark.parametrize(("record", "said"), [
    ({"machine": "2 CPU cores", "gpu": None, "versions": {"torch": "2.13"}, "date": "2026-11-22"},
     "2 CPU cores, torch 2.13, 2026-11-22."),
    ({"machine": "2 CPU cores", "gpu": "GPU X", "date": "2026-11-22"}, "GPU X, 2026-11-22."),
    ({"machine": {"cpu": "C", "cores": 2, "gpu": None}, "date": "2026-11-22", "load_average": 7.25},
     "2 CPU cores (C), 2026-11-22. Other work was running (load average 7.2): read the ratios."),
    ({"machine": {"device": "cpu", "cpu": "C", "cores": 4, "versions": {"torch": "2.13"}}, "date": "2026-11-22T19:45:41Z"},
     "4 CPU cores (C), torch 2.13, 2026-11-22."),
    ({"cores": 2, "date": "2026-11-22"}, "2 CPU cores, 2026-11-22."),
    ({"machine": {"cpu": "C", "cores": 2, "gpu": "GPU X"}, "date": "2026-11-22"}, "2 CPU cores (C) and GPU X, 2026-11-22."),
    ({"date": "2026-11-22", "machine": {"machine": "2 CPU cores (C)", "gpu": None, "versions": {"torch": "2.13"}}},
     "2 CPU cores (C), torch 2.13, 2026-11-22."),
])
def test_machine_and_date_come_from_every_kind_of_record(record: dict[str, Any], said: str) -> None:
    assert cells.measured(record) == said


def test_the_bound_of_blocks_is_bytes_over_rates() -> None:
    """Of 40 frames: 70.4 kB each read once, and the kept windows, 64 channels of 2 bytes at 115 x 115 places, written."""
    text = render.section("blocks_bound")
    row = next(line for line in text.splitlines() if line.startswith("| `blocks`, 3 and 2 bits |")).split(" | ")
    kept = int(40 * (1 - PretrainConfig().mask.video_ratio))
    read, written = 40 * 70_400, kept * 115 * 115 * 128
    assert row[1:5] == ["70.4", "2.8", f"{written / 1e6:.1f}", f"{40e12 / (read + written):,.0f}"]
    assert row[7] == f"{25e9 / 70_400:,.0f}" and "On paper" in text
