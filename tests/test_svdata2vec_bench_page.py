"""The benchmark's page: one file without outside resources, its drawings to scale, every figure and remark on it."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from svdata2vec.bench.page import LABEL, PLOT, log_scale, rate_text, rates_drawing, waterfall_drawing, write_page
from svdata2vec.cli import main as cli

RECORD = Path(__file__).parent.parent / "tools" / "results" / "bench_run_cpu.json"


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text())


def parts(drawing: str, tag: str) -> list[dict[str, str]]:
    return [dict(element.attrib) for element in ElementTree.fromstring(drawing).iter(tag)]


def words(drawing: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing).iter("text")]


def test_the_page_is_one_file_that_says_everything(record: dict[str, Any], tmp_path: Path) -> None:
    record["machine"]["device"] = "<script>GPU & co</script>"
    record["doubts"] = ["doubtful: rounds differ"]
    write_page(record, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"<script|<link|<iframe|src=|href=|url\(|https?:", text) and text.count("<svg") == 2
    assert "&lt;script&gt;GPU &amp; co&lt;/script&gt;" in text
    for said in (record["verdict"]["text"], "doubtful: rounds differ", record["machine"]["cpu"], record["date"], "model.depth"):
        assert said in text
    for name, row in record["stages"].items():
        assert f"<td>{name}</td><td>{rate_text(row['clips_per_s'])}</td>" in text
    assert f"{record['baseline']['train_speedup']:.1f} times as fast" in text and "<td>MFU of train</td>" in text


def test_what_was_not_measured_leaves_nothing_behind(record: dict[str, Any], tmp_path: Path) -> None:
    record["baseline"] = None
    record["roofline"]["read"].update(limit_clips_per_s=None, efficiency=None)
    record["peak_memory_bytes"]["gpu"] = {"train": 3 * 2**30}
    write_page(record, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Against the original" not in text and ">None<" not in text
    assert "<td>peak memory of the GPU, train</td><td>3.00 GiB</td>" in text


def test_bars_are_to_scale(record: dict[str, Any]) -> None:
    for name, rate in (("read", 400.0), ("decode", 100.0), ("data", 50.0)):
        record["stages"][name].update(clips_per_s=rate, q20=rate, q80=rate)
    bars = dict(zip(record["stages"], (float(part["width"]) for part in parts(rates_drawing(record), "rect")), strict=True))
    assert bars["read"] - bars["decode"] == pytest.approx(2 * (bars["decode"] - bars["data"]), abs=0.05)  # 4x, then 2x
    red = [part for part in parts(rates_drawing(record), "line") if part["stroke"].startswith("#c")]
    limits = [roof["limit_clips_per_s"] for roof in record["roofline"].values()]
    assert len(red) == len(limits) and all(part["x1"] == part["x2"] for part in red)
    assert words(rates_drawing(record))[:2] == ["read", f"400 of {rate_text(limits[0])} ({40000 / limits[0]:.3g} %)"]
    assert [rate_text(rate) for rate in (0.365, 2.18, 76.33, 1269.03)] == ["0.36", "2.18", "76.3", "1,269"]
    top = max(*limits, *(row["q80"] for row in record["stages"].values()))
    assert max(float(part["x1"]) for part in red) <= LABEL + PLOT + 0.01
    place = log_scale([1.0, top])
    assert place(top) == pytest.approx(PLOT) and place(0.5) == pytest.approx(0)
    assert place(1.0) == pytest.approx(PLOT * math.log(2) / math.log(2 * top))


def test_the_waterfall_falls(record: dict[str, Any]) -> None:
    record["waterfall_ms_per_clip"] = {"step": {"data": 1.0, "forward": 3.0, "backward": 4.0}, "beside": {"decode": 6.0}}
    drawing = waterfall_drawing(record)
    wait, forward, backward, decode = ((float(part["x"]) - LABEL, float(part["width"])) for part in parts(drawing, "rect"))
    unit = PLOT / 8
    assert wait == pytest.approx((0, unit)) and forward == pytest.approx((unit, 3 * unit))
    assert backward == pytest.approx((4 * unit, 4 * unit)) and decode == pytest.approx((0, 6 * unit))
    assert words(drawing) == ["wait for data", "1.00 ms", "forward", "3.00 ms", "backward", "4.00 ms", "decode", "6.00 ms"]


def test_two_records_on_a_page(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(record)
    other["verdict"]["text"] = "decode-bound: another verdict"
    (tmp_path / "b.json").write_text(json.dumps(other))
    out = tmp_path / "pages" / "both.html"
    assert cli.main(["bench", "compare", str(RECORD), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    text = out.read_text()
    assert text.count("<svg") == 4 and "decode-bound: another verdict" in text and record["verdict"]["text"] in text
    assert "B / A" in text and "B / A" in capsys.readouterr().out
