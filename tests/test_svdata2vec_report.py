"""The report: one file that needs no network, with whole pictures and the runs' figures."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny import finetune_config, pretrain_config

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.reports.contact_sheet import contact_sheet, draw_frame
from svdata2vec.reports.report import write_report
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain


class Page(HTMLParser):
    """Collects pictures, headings, and everything that would need a network."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.pictures.append(value or "")
            elif name in ("src", "href"):
                self.links.append(value or "")


@pytest.fixture(scope="module")
def report(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report")
    pretrain(pretrain_config(tiny_shard_folder, root / "pre"))
    finetune(finetune_config(tiny_shard_folder, root / "scratch"))
    finetune(finetune_config(tiny_shard_folder, root / "tuned", pretrained=root / "pre"))
    write_report([root / "pre", root / "scratch", root / "tuned"], root / "out" / "report.html")
    return (root / "out" / "report.html").read_text()


def test_every_picture_is_inside_the_file_and_whole(report: str) -> None:
    page = Page()
    page.feed(report)
    assert page.links == [] and not re.search(r"https?://|@import|url\(", report)
    assert len(page.pictures) == 6  # curves, spread, times, two confusion matrices, contact sheet
    for source in page.pictures:
        assert source.startswith("data:image/png;base64,")
        png = np.frombuffer(base64.b64decode(source.split(",", 1)[1], validate=True), np.uint8)
        picture = cv2.imdecode(png, cv2.IMREAD_COLOR)
        assert picture is not None and picture.std() > 5


def test_the_report_says_what_the_runs_found(report: str) -> None:
    for text in ("Results", "Training curves", "Where the time went", "Confusion: scratch", "Confusion: tuned", "Inputs",
                 "pretrained (pre)", "chance", "20.0 %", "collapse"):
        assert text in report


def test_one_pretraining_run_alone_makes_a_report(tiny_shard_folder: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "pre"))
    write_report([tmp_path / "pre"], tmp_path / "r.html")
    assert "<h2>Results</h2>" not in (tmp_path / "r.html").read_text()
    config = (tmp_path / "pre" / "config.json")
    config.write_text(config.read_text().replace('"train_split": "all"', '"train_split": "gone"'))
    write_report([tmp_path / "pre"], tmp_path / "r.html")
    assert "No pictures: " in (tmp_path / "r.html").read_text() and "no split" in (tmp_path / "r.html").read_text()
    with pytest.raises(UserError, match="no run given"):
        write_report([], tmp_path / "r.html")


def test_contact_sheet_has_a_row_per_clip_and_marks_joints(tiny_shard_folder: Path) -> None:
    shards = ShardSet.open(tiny_shard_folder)
    with ClipLoader(shards, "all", PlanConfig(num_frames=6, size=32), batch_size=3, train=False) as loader:
        batch = next(iter(loader))
    sheet = contact_sheet(batch, COCO17, shards.manifest.classes, clips=2, frames=4)
    assert sheet.shape == (2 * (96 + 18), 4 * 96, 3)


def test_missing_joints_are_not_drawn() -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    joints = np.zeros((1, 17, 2), np.float32)
    assert not draw_frame(frame, joints, COCO17, scale=3).any()
    joints[0, 5] = (16, 8)
    drawn = draw_frame(frame, joints, COCO17, scale=3)
    ys, xs = np.nonzero(drawn.any(-1))
    assert abs(ys.mean() - (8 * 3 - 0.5)) < 1 and abs(xs.mean() - (16 * 3 - 0.5)) < 1
