"""The script for exported files: without this package it has the same pixels and scores as `svdata2vec predict`."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import phone_videos
import predict_exported
import pytest
import safetensors
from repository import ROOT
from shards_data import frame_picture, rotate_flag, with_cover, write_video
from tiny import MODEL

from svdata2vec.config.schema import DataConfig, FinetuneConfig, HeadConfig
from svdata2vec.evaluation.export import export
from svdata2vec.evaluation.predict import predict
from svdata2vec.evaluation.video_clip import read_clip
from svdata2vec.model.classifier import Classifier
from svdata2vec.pipeline.plan import make_plans
from svdata2vec.runs.card import model_card
from svdata2vec.runs.published import publish
from svdata2vec.shards.reading.sample import ClipMeta, Sample

CLASSES = ["sitzen", "стоять", "歩く"]
SCRIPT = ROOT / "tools" / "predict_exported.py"


def card_of(config: FinetuneConfig, stored: int) -> dict[str, Any]:
    card = model_card("finetune", config, num_joints=17, classes=CLASSES)
    card["preprocessing"] |= {"view": "picture", "stored_size": stored}
    return card


def settings(frame_draw: Any = "centre", views: int = 1) -> FinetuneConfig:
    data = DataConfig(num_frames=6, size=64, frame_draw=frame_draw, views=views)
    return FinetuneConfig(data=data, model=MODEL, head=HeadConfig(hidden=16))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "run"
    config = settings(views=2)
    publish(folder, Classifier(config, 17, 3).state_dict(), card_of(config, 96))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(run, path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 frames, held upright: the file says that it is turned."""
    path = write_video(tmp_path_factory.mktemp("video") / "Übung 1.mp4", 14, seed=3)
    path.write_bytes(rotate_flag(path.read_bytes()))
    return path


def test_the_script_imports_nothing_of_this_package() -> None:
    tree = ast.parse(SCRIPT.read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules - sys.stdlib_module_names - {"collections.abc"} == {"av", "cv2", "numpy", "onnxruntime", "torch"}


@pytest.mark.parametrize(("stored", "frame_draw"), [(96, "centre"), (320, "centre"), (0, "centre"), (96, "original")])
@pytest.mark.parametrize("box", [None, (50.0, 30.0, 110.0, 90.0), (0.0, 0.0, 100.5, 40.0)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_script_sees_the_same_pixels(tmp_path: Path, stored: int, frame_draw: str, box: Any, turned: bool) -> None:
    path = write_video(tmp_path / "clip.mp4", 9, seed=2)
    if turned:
        path.write_bytes(rotate_flag(path.read_bytes()))
    config = settings(frame_draw)
    card = card_of(config, stored)
    clip = read_clip(path, config.data, box, card)
    with predict_exported.av.open(str(path)) as container:
        frames = [predict_exported.upright(frame, 1.0) for frame in container.decode(video=0)]
    rule = card["preprocessing"]
    for seen, number in zip(clip.frames_NTSS3[0], predict_exported.frame_numbers(rule, "clip", 9, 0), strict=True):
        np.testing.assert_allclose(predict_exported.prepare(frames[number], box, rule), seen, atol=1)


@pytest.mark.parametrize("matrix", phone_videos.ORIENTATIONS)
def test_the_script_turns_videos_as_players_do(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    filmed = [frame_picture(1, 0), frame_picture(1, 1)]
    phone_videos.write_video(tmp_path / "clip.mov", filmed, matrix, 30)
    with predict_exported.av.open(str(tmp_path / "clip.mov")) as container:
        for frame, expected in zip(container.decode(video=0), filmed, strict=True):
            assert np.abs(predict_exported.upright(frame, 1.0).astype(int) - expected).mean() < 4
            assert predict_exported.upright(frame, 2.0).shape != expected.shape, "pixels that are not square are made so"


@pytest.mark.parametrize(("frame_draw", "views"), [("centre", 1), ("centre", 3), ("fixed", 1), ("fixed", 3), ("original", 1)])
@pytest.mark.parametrize("count", [1, 4, 6, 9, 12, 31])
def test_the_script_takes_the_same_frames(frame_draw: str, count: int, views: int) -> None:
    config = settings(frame_draw, views)
    rule, plan = card_of(config, 0)["preprocessing"], config.data.plan(views=views)
    boxes = np.tile(np.float32((0, 0, 64, 64)), (count, 1))
    meta = ClipMeta("größe", 0, count, 30.0, 64, 64, 64, 64, np.eye(2, 3))
    clip = Sample(meta.key, 0, None, None, np.zeros((1, count, 1, 2), np.float32), None, boxes, meta)
    expected = make_plans([clip] * views, plan, train=False, seed=0, epoch=0, views=range(views)).frames_BT
    found = [predict_exported.frame_numbers(rule, "größe", count, view) for view in range(views)]
    assert np.array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_the_script_gives_the_scores_of_predict(
    run: Path, exported: Path, video: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture
) -> None:
    """Once from outside, where nothing of the package can be imported."""
    model = exported
    if model.suffix != ending:
        model = tmp_path / f"model{ending}"
        export(run, model)
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([], {"whole_picture": True}), (["20,30,100,150"], {"box": (20, 30, 100, 150)}),
        (["--frames", "5", "9", "20,30,100,150"], {"box": (20, 30, 100, 150), "frames": (5, 9)}),
    ]
    for words, options in cases if ending == ".onnx" else cases[::2]:
        if words:
            assert predict_exported.main([str(model), str(video), *words]) == 0
            said = capsys.readouterr().out
        else:
            command = [sys.executable, "-I", str(SCRIPT), str(model), str(video)]
            said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
        scores = {line.split("%  ")[1]: float(line.split(" %")[0]) for line in said.splitlines()}
        expected = {each["name"]: 100 * each["probability"] for each in predict(run, video, device="cpu", **options)["classes"]}
        assert scores == pytest.approx(expected, abs=0.02) and set(scores) == set(CLASSES)


def test_the_script_refuses_what_predict_refuses(exported: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture
                                                 ) -> None:
    """A box outside the picture, or too small to crop around; a video whose pictures change their size."""
    assert predict_exported.main([str(exported), str(video), "700,400,900,500"]) == 2
    assert "outside the picture of " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict_exported.main([str(exported), str(video), "10,10,19,90"])
    assert "at least 10 from edge to edge" in capsys.readouterr().err
    with predict_exported.av.open(str(video)) as container:
        frame = next(container.decode(video=0))
    assert predict_exported.upright(frame, 9.0).shape == predict_exported.upright(frame, 1.0).shape, "pixels of nonsense"


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (-1, 3), (2, 15)])
def test_the_script_refuses_frames_that_are_not_there(
    video: Path, start: int, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_exported, "load", lambda model: ({"preprocessing": {}}, None))
    with pytest.raises(ValueError, match=f"--frames {start} {stop}: expected 0 <= START < STOP <= 14"):
        predict_exported.scores_of("model.onnx", str(video), None, (start, stop))


def test_the_script_takes_no_cover_picture_for_the_video(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_exported, "load", lambda model: ({"preprocessing": {}}, None))
    with pytest.raises(ValueError, match="expected 0 <= START < STOP <= 14"):
        predict_exported.scores_of("model.onnx", str(with_cover(video, tmp_path / "cover.mkv")), None, (0, 15))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch.onnx", "VIDEO"], "nosuch.onnx: no such file; expected one that `svdata2vec export` wrote"),
        ([str(SCRIPT), "VIDEO"], "predict_exported.py"),
        (["MODEL", "nosuch.mp4"], "No such file or directory: 'nosuch.mp4'"),
        (["MODEL", str(SCRIPT)], "Invalid data found"),
        (["MODEL", "VIDEO", "-5,0,50,60", "--frames", "-1", "3"], "--frames -1 3: expected 0 <= START < STOP <= 14"),
    ],
)
def test_the_script_says_in_a_line_what_is_wrong(
    exported: Path, video: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    named = {"MODEL": str(exported), "VIDEO": str(video)}
    assert predict_exported.main([named.get(word, word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(("words", "status", "said"), [(["--help"], 0, "X1,Y1,X2,Y2"), (["a.onnx"], 2, "required: video"),
                                                       (["a.onnx", "b.mp4", "1,2,3"], 2, "1,2,3: expected X1,Y1,X2,Y2"),
                                                       (["a.onnx", "b.mp4", "nan,0,5,5"], 2, "nan,0,5,5: expected X1,Y1")])
def test_the_script_explains_itself(capsys: pytest.CaptureFixture, words: list[str], status: int, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        predict_exported.main(words)
    assert ended.value.code == status and said in "".join(capsys.readouterr())


def test_published_weights_say_what_they_are(run: Path) -> None:
    with safetensors.safe_open(run / "model.safetensors", "np") as file:
        inside = json.loads(file.metadata()["svdata2vec"])
    assert len(inside.pop("sha256")) == 64
    card = json.loads((run / "model.json").read_text())
    assert inside == {name: card[name] for name in inside}
    assert inside["classes"] == CLASSES and inside["preprocessing"]["mean"] == [123.675, 116.28, 103.53]
    view = {"view", "crop", "padding", "size", "stored_size", "stored_margin", "resize"}
    assert {*view, "num_frames", "frame_draw", "frame_seed", "views"} < set(inside["preprocessing"])
