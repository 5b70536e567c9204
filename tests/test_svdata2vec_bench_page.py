"""The benchmark's page: one file without outside resources, its chart to scale, every figure and remark on it."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle
from repository import ROOT

from svdata2vec.bench.page import RED, run_chart, write_page
from svdata2vec.bench.record import rate_text
from svdata2vec.cli import main as cli
from svdata2vec.reports.html_page import figure_image

RECORD = ROOT / "tools" / "results" / "bench_run_cpu.json"


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text())


def outside(text: str) -> list[str]:
    """What a page would fetch or run: everything but pictures that are inside it."""
    return re.findall(r"<script|<link|<iframe|src=\"(?!data:image/png;base64,)|href=|url\(|https?:", text)


def test_the_page_is_one_file_that_says_everything(record: dict[str, Any], tmp_path: Path) -> None:
    record["machine"]["device"] = "<script>GPU & co</script>"
    record["doubts"] = ["doubtful: rounds differ"]
    write_page(record, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not outside(text) and text.count("<img") == 1
    assert "&lt;script&gt;GPU &amp; co&lt;/script&gt;" in text
    for said in (record["verdict"]["text"], "doubtful: rounds differ", record["machine"]["cpu"], record["date"], "model.depth"):
        assert said in text
    for name, row in record["stages"].items():
        assert f"<td>{name}</td><td>{rate_text(row['clips_per_s'])}</td>" in text
    assert f"{record['baseline']['train_speedup']:.1f} times as fast" in text and "<td>MFU of train</td>" in text


def test_parts_that_were_not_measured_are_absent(record: dict[str, Any], tmp_path: Path) -> None:
    record["baseline"] = None
    record["roofline"]["read"].update(limit_clips_per_s=None, efficiency=None)
    record["peak_memory_bytes"]["gpu"] = {"train": 3 * 2**30}
    write_page(record, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Against the original" not in text and ">None<" not in text
    assert "<td>peak memory of the GPU, train</td><td>3.00 GiB</td>" in text


def test_the_chart_is_to_scale(record: dict[str, Any]) -> None:
    for name, rate in (("read", 400.0), ("decode", 100.0), ("data", 50.0)):
        record["stages"][name].update(clips_per_s=rate, q20=rate, q80=rate)
    axes = run_chart(record).axes[0]
    bars = dict(zip(record["stages"], (bar for bar in axes.patches if isinstance(bar, Rectangle)), strict=True))
    assert axes.get_xscale() == "log" and [bars[name].get_width() for name in ("read", "decode", "data")] == [400, 100, 50]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(bars) and axes.yaxis_inverted()
    red = [line.get_xdata()[0] for line in axes.lines if line.get_color() == RED]
    assert red == [roof["limit_clips_per_s"] for roof in record["roofline"].values()]
    low, high = axes.get_xlim()
    assert low < min(bar.get_width() for bar in bars.values()) and max(red) < high
    assert axes.texts[0].get_text() == "400"
    assert [rate_text(rate) for rate in (0.365, 2.18, 76.33, 1269.03)] == ["0.36", "2.18", "76.3", "1,269"]


def test_rates_are_plain_numbers_on_the_page(record: dict[str, Any]) -> None:
    """As powers of ten they were formulas, which a page shows as they are written: $\\mathdefault{10^{2}}$."""
    figure = run_chart(record)
    figure_image(figure, "")
    axes = figure.axes[0]
    assert {"1", "100", "1,000"} <= {label.get_text() for label in axes.get_xticklabels()}
    assert not [label.get_text() for label in axes.get_xticklabels(which="both") if "$" in label.get_text()]


def test_the_waterfall_falls(record: dict[str, Any]) -> None:
    record["waterfall_ms_per_clip"] = {"step": {"data": 1.0, "forward": 3.0, "backward": 4.0}, "beside": {"decode": 6.0}}
    axes = run_chart(record).axes[1]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches if isinstance(bar, Rectangle)]
    assert bars == [(0, 1), (1, 3), (4, 4), (0, 6)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["wait for data", "forward", "backward", "decode"]
    assert [text.get_text() for text in axes.texts] == ["1.00 ms", "3.00 ms", "4.00 ms", "6.00 ms"]
    record["waterfall_ms_per_clip"]["step"]["other"] = 0.0
    assert run_chart(record).axes[1].get_xlim() == axes.get_xlim() == pytest.approx((0, 10.4))  # there is room for labels


def test_a_page_is_the_same_every_time(record: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_page(record, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_two_records_on_a_page(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(record)
    other["verdict"]["text"] = "decode-bound: another verdict"
    (tmp_path / "b.json").write_text(json.dumps(other))
    out = tmp_path / "pages" / "both.html"
    assert cli.main(["bench", "compare", str(RECORD), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    text = out.read_text()
    assert not outside(text) and text.count("<img") == 2
    assert "decode-bound: another verdict" in text and record["verdict"]["text"] in text
    assert "B / A" in text and "B / A" in capsys.readouterr().out


def test_a_page_replaces_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_bytes(RECORD.read_bytes())
    (tmp_path / "link.json").symlink_to("b.json")
    for out in ("a.json", "b.json", "../" + tmp_path.name + "/b.json", "link.json"):
        words = [str(tmp_path / name) for name in ("a.json", "b.json")]
        assert cli.main(["bench", "compare", *words, "--out", str(tmp_path / out)]) == 2
        assert "json, a record that is compared and would be lost: give the page another name" in capsys.readouterr().err
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes() == RECORD.read_bytes()
