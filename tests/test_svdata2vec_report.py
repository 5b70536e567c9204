"""The report: one file that needs no network, with whole pictures and the runs' figures."""

import base64
import json
import re
import shutil
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from shards_data import edit_manifest
from tiny import finetune_config, pretrain_config

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.reports import report as reporting
from svdata2vec.reports.contact_sheet import contact_sheet, draw_frame
from svdata2vec.reports.inspection import inspect_shards
from svdata2vec.reports.label_curve import Point, caption, label_curve, points_on, read_record
from svdata2vec.reports.report import Run, curves, times, write_report
from svdata2vec.reports.result_tables import outcomes, results
from svdata2vec.reports.results import accuracies
from svdata2vec.runs.folder import write_config
from svdata2vec.runs.validation import choose_clips
from svdata2vec.shards.atomic import WriteFailedError
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


def label_record(**changes: Any) -> dict[str, Any]:
    cells = [{"labels": 12, "mean": 0.2, "interval": [0.1, 0.3]}, {"labels": 24, "mean": 0.6, "interval": None}]
    waiting = [{"labels": 24, "mean": None, "interval": None}]
    return {
        "kind": "label-efficiency", "metric": "top1", "seeds": [0, 1],
        "data": {"name": "factory", "fingerprint": "f", "classes": 5, "test_split": "all", "clips": {"all": 1200}},
        "rows": [{"title": "ours", "kind": "ours", "cells": cells}, {"title": "$rival", "kind": "rival", "cells": waiting}],
    } | changes


def test_label_curves_come_first_with_the_runs_as_points(tiny_shard_folder: Path, tmp_path: Path) -> None:
    finetune(finetune_config(tiny_shard_folder, tmp_path / "mine"))
    (tmp_path / "record.json").write_text(json.dumps(label_record()))
    write_report([tmp_path / "mine"], tmp_path / "r.html", tmp_path / "record.json")
    text = (tmp_path / "r.html").read_text()
    assert text.index("Accuracy over labels") < text.index("Results") and "means over 2 seeds on factory" in text
    assert "Of other clips of this name, whose test clips are counted here: mine (12); lines: 1,200" in text
    (tmp_path / "record.json").write_text(json.dumps(label_record(data={**label_record()["data"], "name": "motion-4"})))
    write_report([tmp_path / "mine"], tmp_path / "r.html", tmp_path / "record.json")
    text = (tmp_path / "r.html").read_text()
    assert "Not drawn, as they are of something else: mine (data set factory, lines: motion-4)" in text
    assert "Black marks" not in text and "Of other clips" not in text


def test_lines_and_points_are_drawn_with_chance() -> None:
    axes = label_curve(label_record(), [Point("mine", 24, 0.4)]).axes[0]
    drawn = {line.get_label(): [line.get_xdata(), line.get_ydata()] for line in axes.lines}
    np.testing.assert_allclose(drawn["ours"], [[12, 24], [20, 60]])
    np.testing.assert_allclose(drawn["mine"], [[24], [40]])
    np.testing.assert_allclose(drawn["chance"][1], [20, 20])
    assert "$rival" not in drawn, "no run of it is finished"
    bars = [line for line in axes.lines if str(line.get_label()).startswith("_")]
    np.testing.assert_allclose([bar.get_ydata() for bar in bars], [[10, 30]])
    wide = [{"labels": 12, "mean": 0.5, "interval": [-0.4, 1.4]}]
    axes = label_curve(label_record(rows=[{"title": "a", "kind": "ours", "cells": wide}])).axes[0]
    assert axes.get_ylim() == (0, 100), "no accuracy lies beyond"
    many = [{"title": str(number), "kind": "ours", "cells": [{"labels": 12, "mean": 0.5}]} for number in range(18)]
    *lines, chance = label_curve(label_record(rows=many)).axes[0].lines
    assert len({line.get_color() for line in lines}) == len(lines) == 18 and chance.get_label() == "chance"


def test_points_on_label_curves_are_of_the_same_set_and_test_split() -> None:
    about = {"dataset": "factory", "fingerprint": "f", "split": "all", "classes": [*"abcde"]}
    same = {**about, "count": 1200, "labels": 24, "top1": 0.5}
    results = [
        ("run", same),
        ("run", {**same, "top1": 0.25}),  # of another folder with this name
        ("fewer", {**same, "count": 700, "clips": 720}),
        ("made anew", {**same, "fingerprint": "g"}),
        ("other split", {**same, "split": "xset"}),
        ("other classes", {**same, "classes": [*"abc"], "dataset": "ntu"}),
        ("0.2.0", {name: same[name] for name in ("split", "classes", "count", "labels", "top1")}),
    ]
    points, left_out = points_on(label_record(), results)
    assert points == [
        Point("run", 24, 0.5), Point("run", 24, 0.25), Point("fewer", 24, 0.5, 720), Point("made anew", 24, 0.5, 1200)
    ]
    assert left_out == [
        "other split (test split xset, lines: all)", "other classes (data set ntu, lines: factory, classes 3, lines: 5)",
        "0.2.0 (data set unknown, lines: factory)",
    ]
    assert "Of other clips" not in caption(label_record(), points[:2])
    assert caption(label_record(), points).endswith("counted here: fewer (720), made anew (1,200); lines: 1,200")


@pytest.mark.parametrize(("content", "message"), [
    ("[]", r"r\.json: not a record of label efficiency; expected a file that `svdata2vec label-efficiency PRESET` wrote"),
    (json.dumps(label_record(metric="top9")), r"r\.json is damaged: metric is str 'top9'"),
    (json.dumps(label_record(rows=[{"title": "a", "kind": "ours", "cells": [{"labels": 0}]}])), "labels is int 0"),
    (json.dumps(label_record(rows=[{"title": "a", "kind": "ours", "cells": [{"labels": 1, "interval": [1.0]}]}])), "1 numbers"),
    (None, r"r\.json: no such file; expected a record written by"),
])
def test_a_file_that_is_no_record_is_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_record(tmp_path / "r.json")


def test_the_report_says_what_the_runs_found(report: str) -> None:
    for text in ("Results", "Training curves", "Where the time went", "Confusion: scratch", "Confusion: tuned", "Inputs",
                 "pretrained (pre)", "chance", "20.0 %", "collapse"):
        assert text in report


def test_one_pretraining_run_alone_makes_a_report(tiny_shard_folder: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(tiny_shard_folder, tmp_path / "pre"))
    write_report([tmp_path / "pre"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "<h2>Results</h2>" not in page and "runs: pre</p>" in page
    config = (tmp_path / "pre" / "config.json")
    config.write_text(config.read_text().replace('"train_split": "all"', '"train_split": "gone"'))
    write_report([tmp_path / "pre"], tmp_path / "r.html")
    assert "No pictures: " in (tmp_path / "r.html").read_text() and "no split" in (tmp_path / "r.html").read_text()
    with pytest.raises(UserError, match="no run given"):
        write_report([], tmp_path / "r.html")


@pytest.mark.parametrize(("share", "every"), [(0.34, 0), (1.0, 1)])
def test_pictures_are_of_clips_that_were_trained_on(
    share: float, every: int, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of those whose labels are not used, nor of those that are validated on."""
    base = finetune_config(tiny_shard_folder, tmp_path / "run", batch_size=5)
    config = replace(base, data=replace(base.data, val_fraction=0.5), label_fraction=share, eval_every=every)
    write_config(tmp_path / "run", config)
    pictured: list[str] = []

    def noted(batch: ClipBatch, *about: Any) -> np.ndarray:
        pictured.extend(batch.keys)
        return contact_sheet(batch, *about)

    monkeypatch.setattr(reporting, "contact_sheet", noted)
    write_report([tmp_path / "run"], tmp_path / "r.html")
    shards = ShardSet.open(tiny_shard_folder)
    trained_on = shards.names(choose_clips(shards, config).train_rows)
    assert len(pictured) == 5 and set(pictured) <= set(trained_on) and len(trained_on) < 7
    assert "runs: run (not finished)</p>" in (tmp_path / "r.html").read_text()


def test_runs_of_other_seeds_are_one_row_with_student_s_interval(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """From scratch, and each from a pretraining run of its own, whose seeds differ likewise; other settings stay apart.

    A comma in the name of such a run is no part of what was done with it.
    """
    found: dict[str, list[float]] = {"scratch": [], "tuned": []}
    folders = []
    for seed in (0, 1):
        pre = tmp_path / f"pre, {seed}"
        pretrain(pretrain_config(tiny_shard_folder, pre, epochs=1, seed=seed))
        for name, source in (("scratch", None), ("tuned", pre)):
            out = tmp_path / f"{name}{seed}"
            config = finetune_config(tiny_shard_folder, out, epochs=1, seed=seed, pretrained=source)
            found[name].append(finetune(replace(config, modality="skeleton"))["top1"])
            folders.append(out)
    finetune(replace(finetune_config(tiny_shard_folder, tmp_path / "other", epochs=2, seed=3), modality="skeleton"))
    shutil.copytree(tmp_path / "scratch0", tmp_path / "a copy")  # is no further seed
    write_report([*folders, tmp_path / "a copy", tmp_path / "other"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    group = page.split("<h2>Over seeds</h2>")[1].split("</table>")[0]
    assert group.count("<tr>") == 3 and "other" not in group
    for name, values in found.items():
        half = 12.7062 * statistics.stdev(values) / 2**0.5
        low, high = (100 * min(max(statistics.mean(values) + side * half, 0), 1) for side in (-1, 1))
        start = "scratch" if name == "scratch" else "pretrained (pre, 0)"
        row = [f"{name}0, {name}1", start, "2", f"{100 * statistics.mean(values):.1f} % ({low:.1f} to {high:.1f})"]
        assert "".join(f"<td>{cell}</td>" for cell in row) in group
    write_report([folders[0]], tmp_path / "one.html")
    assert "Over seeds" not in (tmp_path / "one.html").read_text()


def test_runs_after_other_clips_are_no_seeds_of_each_other(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Nor copies, if their seeds are equal: the data set of their pretraining is another."""
    other = tmp_path / "other clips"
    shutil.copytree(tiny_shard_folder, other)
    edit_manifest(other, fingerprint="other")
    folders = []
    for name, shards, seed in (("a", tiny_shard_folder, 0), ("b", other, 1)):
        pretrain(pretrain_config(shards, tmp_path / f"pre-{name}", epochs=1, seed=seed))
        config = finetune_config(tiny_shard_folder, tmp_path / name, epochs=1, seed=seed, pretrained=tmp_path / f"pre-{name}")
        finetune(replace(config, modality="skeleton"))
        folders.append(tmp_path / name)
    write_report(folders, tmp_path / "r.html")
    assert "Over seeds" not in (tmp_path / "r.html").read_text()


def test_the_report_says_what_figures_are_of(report: str, tiny_shard_folder: Path) -> None:
    about = report.split("<th>network</th>")[1].split("</table>")[0]
    assert about.count("<td>factory</td><td>all</td><td>factory</td>") == 2 and about.count("<td>last</td>") == 2
    assert report.count("Accuracy per class") == 2 and "Wilson" in report
    assert re.search(r"<td>\d+\.\d % \(\d+\.\d to \d+\.\d\)</td>", report)


def test_a_report_of_results_of_0_2_0(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """They say neither how many clips there were nor what they are about; their intervals follow from the confusion matrix."""
    finetune(replace(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1), modality="skeleton"))
    path = tmp_path / "run" / "result.json"
    new = json.loads(path.read_text())
    names = ("split", "labels", "classes", "count", "top1", "top5", "mean_class", "per_class", "confusion")
    path.write_text(json.dumps({name: new[name] for name in names}))
    write_report([tmp_path / "run"], tmp_path / "r.html")
    for found in accuracies(new).values():
        assert f"<td>{found}</td>" in (tmp_path / "r.html").read_text()


def test_a_curve_of_one_record_is_a_dot_with_its_value() -> None:
    config = finetune_config(Path("shards"), Path("run"))
    runs = [
        Run("one", config, [{"epoch": 2.0, "loss": 1.25, "val_top1": 0.5}], None),
        Run("many", config, [{"epoch": float(epoch), "loss": 2.0 - 0.5 * epoch} for epoch in (1, 2, 3)], None),
        Run("none", config, [], None),
    ]
    for chosen, last in ((runs, 3.0), (runs[:1], 2.0)):
        figure = curves(chosen, {"loss": "loss", "val_top1": "validation"})
        assert figure is not None
        loss, validation = figure.axes
        for axes, value in ((loss, 1.25), (validation, 0.5)):
            line = axes.lines[0]
            assert line.get_marker() == "o" and line.get_ydata() == [value]  # type: ignore[comparison-overlap]
            assert [text.get_text() for text in axes.texts] == [f"{value:.3g}"]
            assert axes.get_xlim() == pytest.approx((0, 1.05 * last)) and axes.get_ylim()[0] == 0 < axes.get_ylim()[1]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [run.name for run in chosen]


def test_curves_of_many_runs_are_distinguished_and_have_room() -> None:
    """A legend of thirty names inside the first of them left strips of the others."""
    config = finetune_config(Path("shards"), Path("run"))
    runs = [Run(f"run {n}", config, [{"epoch": 1.0, "loss": 1.0}, {"epoch": 2.0, "loss": 1.0 + n}], None) for n in range(50)]
    figure = curves(runs, {"loss": "loss"})
    assert figure is not None
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_position().height > 0.6 and axes.get_window_extent().x1 < figure.legends[0].get_window_extent().x0
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 50


def test_runs_of_one_name_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert reporting.names_of([Path(), Path("../other/"), Path("../a/..")]) == ["run", "other", tmp_path.name]
    folders = [Path("/x/a/best"), Path("/y/a/best"), Path("/y/b"), Path("/y/a/best/"), Path("/best")]
    assert reporting.names_of(folders) == ["x/a/best", "y/a/best", "b", "y/a/best", "/best"]


def test_a_name_with_an_underscore_in_front_is_in_the_legend() -> None:
    """Matplotlib leaves such labels out."""
    record = {"epoch": 1.0, "loss": 1.0}
    figure = curves([Run("_run", finetune_config(Path("shards"), Path("run")), [record], None)], {"loss": "loss"})
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _run"]


def test_letters_that_the_font_lacks_are_escapes_in_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As boxes all names of one length looked alike; tables have them as they are."""
    names, figures = ["\u559d\u6c34", "\u5403\u996d", "\u043f\u0438\u0442\u044c caf\u00e9"], []
    monkeypatch.setattr(reporting, "figure_image", lambda figure, _: figures.append(figure) or "")
    config, result = finetune_config(Path("shards"), Path("run")), {
        "confusion": np.eye(3, dtype=int).tolist(), "classes": names, "count": 3
    }
    section = reporting._confusion(Run("run", config, [], result))
    shown = ["\\u559d\\u6c34", "\\u5403\\u996d", names[2]]
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == shown and f"<td>{names[0]}</td>" in section
    record = {"epoch": 1.0, "loss": 1.0, "clips_per_second": 1.0, "seconds_total": 1.0}
    runs = [Run(name, config, [record], None) for name in names]
    lines, bars = curves(runs, {"loss": "loss"}), times(runs)
    assert lines is not None and [text.get_text() for text in lines.legends[0].get_texts()] == shown
    assert bars is not None and [label.get_text() for label in bars.axes[0].get_yticklabels()] == shown


@pytest.mark.parametrize(("classes", "side", "names"), [(12, 6.1, 12), (1000, 50.5, None)])
def test_a_confusion_matrix_of_many_classes_fits_into_memory(
    classes: int, side: float, names: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 classes it was 33,000 pixels wide; the table below it has the names."""
    drawn = []
    monkeypatch.setattr(reporting, "figure_image", lambda figure, _: drawn.append(figure) or "")
    result = {
        "confusion": np.eye(classes, dtype=int).tolist(), "classes": [f"class {i}" for i in range(classes)], "count": classes
    }
    section = reporting._confusion(Run("run", finetune_config(Path("shards"), Path("run")), [], result))
    (figure,) = drawn
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert figure.get_size_inches()[0] == pytest.approx(side) and f"<td>class {classes - 1}</td>" in section
    assert labels == result["classes"] if names else "class 1" not in labels


def test_the_path_of_the_report_is_checked_first(tmp_path: Path) -> None:
    """And no file of a run is one."""
    for name in ("metrics.jsonl", "config.json", "model.safetensors", "report"):
        with pytest.raises(UserError, match=rf"{name}: expected a file name that ends in \.html"):
            write_report([tmp_path / "run"], tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(WriteFailedError, match=r"file could not be written: .*file is no folder"):
        write_report([tmp_path / "run"], tmp_path / "file" / "r.html")


def test_times_are_those_of_the_whole_run() -> None:
    """Of 100 clips in 4 seconds, one of which was spent beside the steps; of a run whose parts are timed by a GPU's clock."""
    config = finetune_config(Path("shards"), Path("run"))
    parts = {"seconds_data": 0.5, "seconds_forward": 0.75, "seconds_backward": 0.25}
    slow = {"clips_per_second": 25.0, "seconds_total": 2.0, **parts}
    fast = {"clips_per_second": 50.0, "seconds_total": 1.0, "seconds_graph": 1.01}
    figure = times([Run("slow", config, [slow, slow], None), Run("fast", config, [fast], None)])
    assert figure is not None
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["data", "forward", "backward", "graph", "other"]  # no part that no run has
    widths = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert widths == pytest.approx([10, 15, 5, 0, 10, 0, 0, 0, 20.2, -0.2])
    assert [text.get_text() for text in axes.texts] == [" 25.0 clips/s", " 50.0 clips/s"]
    for backward in (0.25, 0.75):  # then nothing is left beside the steps
        alone = times([Run("run", config, [{**slow, "seconds_backward": backward}], None)])
        assert alone is not None and alone.axes[0].get_xlim() == pytest.approx((0, 1.15 * 40))  # there is room for the rate


def test_contact_sheet_has_a_row_per_clip_and_marks_joints(tiny_shard_folder: Path) -> None:
    shards = ShardSet.open(tiny_shard_folder)
    with ClipLoader(shards, "all", PlanConfig(num_frames=9, size=32), batch_size=3, train=False) as loader:
        batch = next(iter(loader))
    sheet = contact_sheet(batch, COCO17, shards.manifest.classes, clips=2)
    assert sheet.shape == (2 * (96 + 18), 8 * 96, 3)
    twice = replace(batch, keys=[batch.keys[0], batch.keys[2], batch.keys[2]])
    assert contact_sheet(twice, COCO17, shards.manifest.classes, clips=3).shape == sheet.shape, "which stood in for another"


def test_chance_is_that_of_each_number_of_classes(tmp_path: Path) -> None:
    """Of runs on different sets."""
    found = []
    for name, classes in (("few", 2), ("many", 8), ("too", 8)):
        result = {"classes": [*map(str, range(classes))], "confusion": np.eye(classes, dtype=int).tolist(), "count": classes,
                  "top1": 1.0, "top5": 1.0, "mean_class": 1.0, "labels": 9}
        found += outcomes(name, finetune_config(tmp_path, tmp_path / name), result)
    page = results(found)
    assert "<td>chance, 2 classes</td><td></td><td></td><td></td><td>50.0 %</td><td>100.0 %</td><td>50.0 %</td>" in page
    assert "<td>chance, 8 classes</td><td></td><td></td><td></td><td>12.5 %</td><td>62.5 %</td><td>12.5 %</td>" in page
    assert results(found[1:]).count("<td>chance</td>") == 1


def test_clips_that_cannot_be_read_have_no_picture(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the crops of training too, where nothing can take their place; the others have theirs, and the page is written."""
    shutil.copytree(tiny_shard_folder, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    entry, column = shards.index[2], shards.manifest.components.index("jpegs")
    with (tmp_path / "shards" / shards.manifest.shards[int(entry["shard"])].name).open("r+b") as tar:
        tar.seek(int(entry["offset"][column]))
        tar.write(bytes(int(entry["size"][column])))
    plan, out, keys = PlanConfig(num_frames=2, size=32), tmp_path / "out", ("clip00002", "clip00003")
    assert inspect_shards(str(tmp_path / "shards"), "all", out, plan, train=True, clips=1, keys=keys) == 1
    assert any(message.startswith("clip00002: no picture, clip clip00002: ") for message in caplog.messages)
    assert {path.name for path in out.iterdir()} == {"clip00003.png", "index.html", "statistics.json"}


def test_missing_joints_are_not_drawn() -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    joints = np.zeros((1, 17, 2), np.float32)
    assert not draw_frame(frame, joints, COCO17, scale=3).any()
    joints[0, 5] = (16, 8)
    drawn = draw_frame(frame, joints, COCO17, scale=3)
    ys, xs = np.nonzero(drawn.any(-1))
    assert abs(ys.mean() - (8 * 3 - 0.5)) < 1 and abs(xs.mean() - (16 * 3 - 0.5)) < 1
