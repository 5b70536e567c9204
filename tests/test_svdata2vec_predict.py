"""Recognising a video file: the same clip as from the loader, the same scores, and its output."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from shards_data import (
    HEIGHT,
    WIDTH,
    annotation,
    block_pose,
    frame_picture,
    rotate_flag,
    write_motion_set,
    write_pickle,
    write_video,
)
from tiny import MODEL

from svdata2vec.cli.main import main
from svdata2vec.cli.runs import parse_box
from svdata2vec.config.schema import DataConfig, FinetuneConfig, HeadConfig
from svdata2vec.evaluation.features import embed, load_encoder
from svdata2vec.evaluation.persons import find_persons
from svdata2vec.evaluation.predict import predict
from svdata2vec.evaluation.video_clip import read_clip
from svdata2vec.model.classifier import Classifier
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import psnr
from svdata2vec.runs.card import model_card
from svdata2vec.runs.published import load_classifier, publish
from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.video import VideoReader

T, SIZE = 6, 64
DATA = DataConfig(num_frames=T, size=SIZE)
CLASSES = ["stand", "walk", "run"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published RGB classifier with random weights."""
    config = FinetuneConfig(data=DATA, model=MODEL, head=HeadConfig(hidden=16))
    return publish_classifier(tmp_path_factory.mktemp("run"), config)


def publish_classifier(folder: Path, config: FinetuneConfig, shards: ShardSet | None = None) -> Path:
    torch.manual_seed(0)  # the same weights in each
    model = Classifier(config, 17, len(CLASSES))
    publish(folder, model.state_dict(), model_card("finetune", config, num_joints=17, classes=CLASSES, shards=shards))
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 15, seed=3)


def test_the_clip_is_the_one_that_the_loader_makes_of_the_packed_video(tmp_path: Path) -> None:
    annotations, videos = write_motion_set(tmp_path / "source", count=2, num_frames=15)
    pack(read_pyskl(annotations, videos, name="motion"), tmp_path / "shards", PackOptions(size=192, quality=95, workers=1))
    shards = ShardSet.open(tmp_path / "shards")
    with ClipLoader(shards, "half_val", PlanConfig(num_frames=T, size=SIZE, crop="boxes"), batch_size=1, train=False,
                    decoder="reference") as loader:
        batch = next(iter(loader))
    assert batch.video_BTHWC is not None
    key = batch.keys[0]
    boxes = shards.sample(int(shards.rows("half_val")[0]), video=False).box_T4
    box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    clip = read_clip(videos / f"{key}.mp4", DATA, box)  # type: ignore[arg-type]
    difference = clip.frames_NTSS3[0].astype(float) - batch.video_BTHWC[0].numpy()
    assert psnr(clip.frames_NTSS3[0], batch.video_BTHWC[0]) > 35
    shifted = np.roll(clip.frames_NTSS3[0], 1, axis=0).astype(float) - batch.video_BTHWC[0].numpy()
    assert np.square(shifted).mean() > 4 * np.square(difference).mean(), "the test must notice wrong frames"


def test_poses_without_anybody_show_what_their_packed_clip_shows(run: Path, tmp_path: Path) -> None:
    """Beside clips with persons: the whole picture, squeezed into a square. A network of whole pictures keeps their shape."""
    (tmp_path / "videos").mkdir()
    video = write_video(tmp_path / "videos" / "clip.mp4", 15)
    poses = write_pickle(tmp_path / "set.pkl", [annotation("clip", 0, 15, keypoint=np.zeros((1, 15, 17, 2)))])
    pack(read_pyskl(poses, tmp_path / "videos"), tmp_path / "shards", PackOptions(size=192, quality=95, workers=1))
    with ClipLoader(ShardSet.open(tmp_path / "shards"), "train", PlanConfig(num_frames=T, size=SIZE, crop="boxes"),
                    batch_size=1, train=False, decoder="reference") as loader:
        batch = next(iter(loader))
    assert batch.video_BTHWC is not None
    boxes = [find_persons(video, None, poses, False, trained_on_whole).box for trained_on_whole in (False, True)]
    seen, whole = (read_clip(video, DATA, box).frames_NTSS3[0] for box in boxes)
    assert psnr(seen, batch.video_BTHWC[0]) > 35 and psnr(whole, batch.video_BTHWC[0]) < 15
    assert np.array_equal(whole, read_clip(video, DATA).frames_NTSS3[0])
    said = predict(run, video, poses=poses, device="cpu")["did"][2]
    assert f"the whole picture, squeezed into a square, as nobody in {poses}, resized" in said


def test_poses_show_the_size_at_which_packing_stores_them(tmp_path: Path) -> None:
    """The stored square is put around joints that the crop leaves out for their scores, too."""
    (tmp_path / "videos").mkdir()
    video = write_video(tmp_path / "videos" / "clip.mp4", 8, height=180, width=320)
    doubtful = annotation("clip", 0, img_shape=(180, 320))
    doubtful["keypoint"][0, :, 16] = (300, 160)  # type: ignore[index]
    doubtful["keypoint_score"][0, :, 16] = 0.05  # type: ignore[index]
    poses = write_pickle(tmp_path / "set.pkl", [doubtful])
    options = PackOptions(size=64, quality=100, chroma="444", workers=1)
    pack(read_pyskl(poses, tmp_path / "videos"), tmp_path / "shards", options)
    data, shards = replace(DATA, crop="boxes", train_split="train"), ShardSet.open(tmp_path / "shards")
    run = publish_classifier(tmp_path / "run", FinetuneConfig(data=data, model=MODEL), shards)
    with ClipLoader(shards, "train", data.plan(), batch_size=1, train=False, decoder="reference") as loader:
        packed_NTSS3 = next(iter(loader)).video_BTHWC
    persons, (model, _, card) = find_persons(video, None, poses, False), load_classifier(run)
    seen_NTSS3 = read_clip(video, DATA, persons.box, card, held=persons.held).frames_NTSS3
    assert psnr(seen_NTSS3, packed_NTSS3) > 40
    with torch.no_grad():
        expected_C = model(torch.from_numpy(seen_NTSS3), None).softmax(1)[0]
    found = predict(run, video, poses=poses, device="cpu")["classes"]
    assert [best["probability"] for best in found] == pytest.approx(sorted(expected_C.tolist(), reverse=True))


@pytest.mark.parametrize("frame_draw", ["fixed", "centre"])
def test_the_mean_over_the_views_that_the_run_is_evaluated_with(frame_draw: str, tmp_path: Path) -> None:
    """Scores and features of a video are those of its packed clip, of three views each."""
    annotations, videos = write_motion_set(tmp_path / "source", count=2, num_frames=15)
    pack(read_pyskl(annotations, videos, name="motion"), tmp_path / "shards", PackOptions(size=192, quality=95, workers=1))
    data = replace(DATA, shards=str(tmp_path / "shards"), frame_draw=frame_draw, crop="boxes")  # type: ignore[arg-type]
    runs = {views: publish_classifier(tmp_path / f"run{views}", FinetuneConfig(data=replace(data, views=views), model=MODEL))
            for views in (1, 3)}
    shards = ShardSet.open(tmp_path / "shards")
    row = int(shards.rows("half_val")[0])
    key, box_T4 = shards.sample(row, video=False).key, shards.sample(row, video=False).box_T4
    box = (*box_T4[:, :2].min(0).tolist(), *box_T4[:, 2:].max(0).tolist())
    encoder, video = load_encoder(runs[3], device="cpu"), videos / f"{key}.mp4"
    views_NTSS3 = read_clip(video, encoder.config.data, box, encoder.card).frames_NTSS3  # type: ignore[arg-type]
    plan = PlanConfig(num_frames=T, size=SIZE, crop="boxes", frame_draw=frame_draw, views=3)  # type: ignore[arg-type]
    with ClipLoader(shards, "half_val", plan, batch_size=3, train=False, decoder="reference", limit=np.array([row])) as loader:
        packed_NTSS3 = next(iter(loader)).video_BTHWC
    assert views_NTSS3.shape == (3, T, SIZE, SIZE, 3) and psnr(views_NTSS3, packed_NTSS3) > 35
    assert psnr(np.roll(views_NTSS3, 1, axis=0), packed_NTSS3) < psnr(views_NTSS3, packed_NTSS3) - 3, "other views are noticed"

    model, _, _ = load_classifier(runs[3])
    with torch.no_grad():
        expected_C = model(torch.from_numpy(views_NTSS3), None).softmax(1).mean(0)
    result = predict(runs[3], video, box=box, device="cpu")  # type: ignore[arg-type]
    assert [best["probability"] for best in result["classes"]] == pytest.approx(sorted(expected_C.tolist(), reverse=True))
    assert f"took the mean over 3 views: each {T} frames" in result["did"][1]
    feature_D = encoder.video_features(video, box)  # type: ignore[arg-type]
    torch.testing.assert_close(feature_D, encoder.features(torch.from_numpy(views_NTSS3)).mean(0))
    embedded = {views: embed(run, "half_val", tmp_path / "a.npy", device="cpu") for views, run in runs.items()}
    ours = embedded[3].features_nD[embedded[3].keys.index(key)]
    assert np.abs(ours - feature_D.numpy()).max() < 0.5 * np.abs(embedded[1].features_nD - embedded[3].features_nD).max()

    asked = predict(runs[1], video, box=box, views=3, device="cpu")  # type: ignore[arg-type]
    assert asked == result
    asked_for = embed(runs[1], "half_val", tmp_path / "a.npy", views=3, device="cpu")
    assert np.array_equal(asked_for.features_nD, embedded[3].features_nD)


def test_without_a_box_the_whole_picture_is_seen(video: Path) -> None:
    clip = read_clip(video, DATA)
    assert clip.num_frames == 15 and (clip.info.width, clip.info.height) == (WIDTH, HEIGHT)
    for seen, number in zip(clip.frames_NTSS3[0], clip.plan.frames_T.tolist(), strict=True):
        black = round((WIDTH - HEIGHT) / 2 * SIZE / WIDTH)
        expected = cv2.resize(frame_picture(3, number), (SIZE, SIZE - 2 * black), interpolation=cv2.INTER_LINEAR)
        difference = np.abs(seen[black:-black].astype(float) - expected)[2:-2, 2:-2]
        assert difference.mean() < 4 and seen[: black - 1].max() < 3 > seen[1 - black :].max(), f"frame {number}"


def test_a_box_is_padded_made_square_and_black_outside(video: Path) -> None:
    clip = read_clip(video, DATA, (0, 0, 100, 40))  # centre (50, 20), side 110: 35 rows above the picture
    black = round((55 - 20) / 110 * SIZE)
    assert clip.frames_NTSS3[0][:, : black - 2].max() < 3
    assert clip.frames_NTSS3[0][:, black + 2 :, 8:].min() > 15


def test_a_turned_video_is_turned_upright(tmp_path: Path) -> None:
    plain = write_video(tmp_path / "plain.mp4", 8, seed=1)
    turned = tmp_path / "plain" / "plain.mp4"  # the same file name: the same frames are sampled
    turned.parent.mkdir()
    turned.write_bytes(rotate_flag(plain.read_bytes()))
    upright = read_clip(turned, DATA)
    assert (upright.info.width, upright.info.height) == (HEIGHT, WIDTH) and upright.info.orientation.rotation
    flat = read_clip(plain, DATA)
    assert upright.plan.frames_T.tolist() == flat.plan.frames_T.tolist()
    expected = np.rot90(flat.frames_NTSS3[0], upright.info.orientation.rotation // 90, axes=(1, 2))
    assert np.abs(upright.frames_NTSS3[0].astype(float) - expected)[:, 2:-2, 2:-2].mean() < 3


def test_prediction_is_the_networks_and_every_step_is_described(run: Path, video: Path, tmp_path: Path) -> None:
    result = predict(run, video, box=(50, 30, 110, 90), top=2, picture=tmp_path / "out" / "seen.png", device="cpu")
    model, config, _ = load_classifier(run)
    frames = torch.from_numpy(read_clip(video, config.data, (50, 30, 110, 90)).frames_NTSS3)
    with torch.no_grad():
        scores = model(frames, None).softmax(1)[0]
    assert [best["name"] for best in result["classes"]] == [CLASSES[i] for i in scores.argsort(descending=True)[:2]]
    assert [best["probability"] for best in result["classes"]] == pytest.approx(sorted(scores.tolist(), reverse=True)[:2])
    said = "\n".join(result["did"])
    assert f"decoded 15 frames of {WIDTH}x{HEIGHT}" in said and "took 6 frames" in said
    assert "the square around the box that was given, 47,27,113,93" in said
    picture = cv2.imread(str(tmp_path / "out" / "seen.png"))
    assert picture.shape[1] == 6 * 3 * SIZE and picture[: 3 * SIZE].std() > 10
    assert np.ptp(picture[3 * SIZE :]) > 150, "the classes are written below the frames"


def test_the_same_file_gives_the_same_answer(run: Path, video: Path) -> None:
    assert predict(run, video, device="cpu") == predict(run, video, device="cpu")


def test_the_path_of_the_picture_is_checked_first(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--picture .*seen\.jpg: expected a file name that ends in \.png"):
        predict(run, tmp_path / "none.mp4", picture=tmp_path / "seen.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(WriteFailedError, match=r"file could not be written: .*file is no folder"):
        predict(run, tmp_path / "none.mp4", picture=tmp_path / "file" / "seen.png")
    for video, picture in ((tmp_path, tmp_path / "0001.png"), (tmp_path / "x.png", tmp_path / "x.png")):
        with pytest.raises(UserError, match=r"--picture .*\.png: it would lie among the pictures of the video; choose another"):
            predict(run, video, picture=picture)


def test_a_video_shorter_than_the_sample_repeats(run: Path, tmp_path: Path) -> None:
    result = predict(run, write_video(tmp_path / "short.mp4", 4), device="cpu")
    assert "the video has fewer: they repeat" in result["did"][1]
    result = predict(run, tmp_path / "short.mp4", whole_picture=True, device="cpu")
    assert "nothing: the whole picture, black beside it (looked for nobody)" in result["did"][2]


def test_a_video_that_is_cut_short_is_reported(run: Path, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", 120, options={"g": "12"})
    assert "cut" not in predict(run, whole, device="cpu")["did"][0]
    (tmp_path / "part.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    said = predict(run, tmp_path / "part.mkv", device="cpu")["did"][0]
    assert re.search(r"the file is cut short \(it ends after [12]\.\d+ of 4\.00 s\): what is lost was not seen", said)


@pytest.fixture(scope="module")
def long_and_cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A video of 40 frames, and one of its frames 12 to 27 alone, of the same name (by which frames are drawn), lossless."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "cut").mkdir()
    lossless = {"qp": "0", "bf": "2"}
    return (write_video(folder / "clip.mp4", 40, seed=3, options=lossless),
            write_video(folder / "cut" / "clip.mp4", 16, seed=3, options=lossless, first=12))


@pytest.mark.parametrize("how", ["moves", "box", "whole", "poses", "views"])
def test_a_part_of_a_video_is_seen_as_a_video_cut_to_it(how: str, run: Path, long_and_cut: tuple[Path, Path],
                                                         tmp_path: Path) -> None:
    long, cut = long_and_cut
    keypoint = block_pose(40)
    given: list[dict[str, Any]] = [{}, {}]
    if how == "box":
        given = [{"box": (50, 30, 130, 90)}] * 2
    elif how == "whole":
        given = [{"whole_picture": True}] * 2
    elif how == "poses":
        boxes = np.array([[60 + t, 40, 84 + t, 80] for t in range(40)], np.float32)
        parts = [{"keypoint": keypoint, "keypoint_score": np.ones((1, 40, 17)), "bboxes": boxes},
                 {"keypoint": keypoint[:, 12:28], "keypoint_score": np.ones((1, 16, 17)), "bboxes": boxes[12:28]}]
        given = [{"poses": write_pickle(tmp_path / f"{number}.pkl", [annotation("clip", 0, count) | part])}
                 for number, (count, part) in enumerate(zip((40, 16), parts, strict=True))]
    elif how == "views":
        run = publish_classifier(tmp_path, FinetuneConfig(data=replace(DATA, views=3), model=MODEL))
    part = predict(run, long, frames=(12, 28), device="cpu", **given[0])
    alone, whole = predict(run, cut, device="cpu", **given[1]), predict(run, long, device="cpu", **given[0])
    assert part["classes"] == alone["classes"] != whole["classes"]
    assert part["did"][0] == f"decoded 16 frames of {WIDTH}x{HEIGHT}, 12 to 27" and part["did"][1].startswith("took ")
    assert part["did"][2].replace("0.pkl", "1.pkl") == alone["did"][2]
    assert (part["did"][2] == whole["did"][2]) == (how in ("box", "whole")), "what is cropped around is looked for in the part"


@pytest.mark.parametrize("given", [{}, {"box": (50, 30, 130, 90)}])
def test_a_part_is_decoded_twice_at_most(
    given: dict[str, Any], run: Path, long_and_cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that lies before it, too: to see that the video has it and where somebody moves, then to see it."""
    decoded: list[int] = []
    following = VideoReader._next
    monkeypatch.setattr(VideoReader, "_next", lambda reader: decoded.append(reader.position) or following(reader))
    predict(run, long_and_cut[0], frames=(12, 28), device="cpu", **given)
    assert decoded.count(0) == decoded.count(11) == 2 and max(decoded) == 27


def test_features_of_a_part_of_a_video(run: Path, long_and_cut: tuple[Path, Path]) -> None:
    long, cut = long_and_cut
    encoder = load_encoder(run, device="cpu")
    part_D = encoder.video_features(long, frames=(12, 28))
    assert torch.equal(part_D, encoder.video_features(cut)) and not torch.equal(part_D, encoder.video_features(long))
    with pytest.raises(UserError, match="frames 12 to 41 are no part of its 40 frames"):
        encoder.video_features(long, frames=(12, 41))


@pytest.mark.parametrize("frames", [(5, 5), (6, 5), (-1, 5), (0, 16), (14, 16), (20, 30), (0, 10**12)])
def test_frames_that_a_video_does_not_have(frames: tuple[int, int], run: Path, video: Path) -> None:
    message = rf"{video}: frames {frames[0]} to {frames[1]} are no part of its 15 frames; expected .* <= 15, STOP excluded"
    with pytest.raises(UserError, match=message):
        predict(run, video, frames=frames, device="cpu")


def test_a_part_with_fewer_frames_than_are_sampled_repeats(run: Path, video: Path) -> None:
    said = predict(run, video, frames=(11, 15), device="cpu")["did"]
    assert said[0].endswith("11 to 14") and "spread over the part (the part has fewer: they repeat)" in said[1]


@pytest.mark.parametrize(("poses", "message"), [(14, "it has 14 frames; expected frames 5 to 15"),
                                                (30, "it has 30 frames, the video 15: it belongs to another one, or .* rate")])
def test_poses_of_other_frames_are_refused(run: Path, video: Path, tmp_path: Path, poses: int, message: str) -> None:
    path = write_pickle(tmp_path / "poses.pkl", [annotation("clip", 0, poses)])
    if poses == 14:
        assert predict(run, video, poses=path, device="cpu")["classes"]
    else:
        with pytest.raises(UserError, match=message):
            predict(run, video, poses=path, device="cpu")
    with pytest.raises(UserError, match=rf"poses\.pkl: the annotation of clip cannot be used \({message}\)"):
        predict(run, video, poses=path, frames=(5, 15), device="cpu")


def test_the_command_takes_a_part(run: Path, video: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", str(run), str(video), "--frames", "3", "12", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"decoded 9 frames of {WIDTH}x{HEIGHT}, 3 to 11"
    for words, message in ((["3"], "--frames is '3'; expected START STOP"),
                           (["a", "b"], "--frames is 'a b'; expected START STOP"),
                           (["-3", "12"], "--frames is -3: expected a whole number from 0"),
                           (["3", "16"], "frames 3 to 16 are no part of its 15 frames")):
        assert main(["predict", str(run), str(video), "--frames", *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--frames START STOP" in shown and "from 0" in shown and "excluded" in shown


def test_a_name_that_is_not_utf8(run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    odd = tmp_path / os.fsdecode(b"gr\xfc\xdf.mp4")
    shutil.copy(video, odd)
    assert main(["predict", str(run), str(odd), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("decoded 15 frames")
    assert main(["predict", str(run), f"{odd}.none", "--device", "cpu"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_folder_of_pictures_is_a_video(run: Path, tmp_path: Path) -> None:
    for number in range(8):
        cv2.imwrite(str(tmp_path / f"img_{number:05d}.jpg"), frame_picture(0, number))
    assert predict(run, tmp_path, device="cpu")["did"][0] == f"decoded 8 frames of {WIDTH}x{HEIGHT}"


def test_frames_are_drawn_by_the_name_however_a_path_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's whole name, and a link's own."""
    for folder in ("walk.1", "walk.2"):
        (tmp_path / folder).mkdir()
        for number in range(40):
            cv2.imwrite(str(tmp_path / folder / f"{number:05d}.png"), frame_picture(0, number))
    (tmp_path / "link").symlink_to("walk.1")
    monkeypatch.chdir(tmp_path / "walk.1")
    drawn = {text: tuple(read_clip(Path(text), DATA).plan.frames_T)
             for text in (".", "../walk.1", str(tmp_path / "walk.1"), "../walk.2", "../link")}
    assert len(set(drawn.values())) == 3
    assert drawn["."] == drawn["../walk.1"] == drawn[str(tmp_path / "walk.1")]


def test_persons_that_are_too_small_to_crop_around(run: Path, video: Path, tmp_path: Path) -> None:
    """Clips with such boxes show the whole picture squeezed, which nobody wants who names one."""
    for box in ((40, 10, 46, 80), np.float32([40, 10, 90, 19.5])):
        with pytest.raises(UserError, match=r"^box 40,10,.* has a side below 10 pixels; expected one around a person"):
            predict(run, video, box=box, device="cpu")
    tiny = annotation("clip", 0, 15) | {"keypoint": np.full((1, 15, 17, 2), 50.0)}
    tiny["keypoint"][..., :2, 0] += 6
    poses = write_pickle(tmp_path / "poses.pkl", [tiny])
    said = predict(run, video, poses=poses, device="cpu")["did"][2]
    assert f": the whole picture, squeezed into a square, as the persons in {poses} are below 10 pixels, " in said
    (small := tmp_path / "small").mkdir()
    for number in range(12):
        picture = np.full((90, 120, 3), 90, np.uint8)
        picture[40:46, 30:36] = 250 if number < 3 else 90
        cv2.imwrite(str(small / f"{number:04d}.png"), picture)
    assert "(what moves is below 10 pixels)" in predict(run, small, device="cpu")["did"][2]


def test_a_box_or_a_part_of_another_kind_is_one_line(run: Path, video: Path) -> None:
    encoder = load_encoder(run, device="cpu")
    same = [encoder.video_features(video, box=box) for box in ((50, 30, 110, 90), np.array([50, 30, 110, 90]))]
    assert torch.equal(*same)
    for box in ((1, 2, 3), "1,2,3,4", 5):
        with pytest.raises(UserError, match=r"expected four numbers, x1, y1, x2, y2 in pixels"):
            encoder.video_features(video, box=box)
    for frames in ((2.0, 7.0), (1, 2, 3), 4):
        with pytest.raises(UserError, match="expected two whole numbers, START and STOP"):
            encoder.video_features(video, frames=frames)


def test_features_are_of_pictures_as_a_loader_gives_them(run: Path) -> None:
    encoder = load_encoder(run, device="cpu")
    shape = (2, DATA.num_frames, DATA.size, DATA.size, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert encoder.features(video).shape == (2, MODEL.width)
    for wrong in (video / 255, video[:, 1:], video.movedim(-1, 2), video.numpy(), video[0]):
        with pytest.raises(ValueError, match=rf"expected a tensor of uint8 RGB, 0 to 255, \(B, {DATA.num_frames}, H, W, 3\)"):
            encoder.features(wrong)


def test_the_command_prints_classes(run: Path, video: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", str(run), str(video), "--box", "50,30,110,90", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("decoded 15 frames") and len(lines) == 4 + len(CLASSES)
    assert sum(float(line.split("%")[0]) for line in lines[4:]) == pytest.approx(100, abs=0.1)


def test_without_a_box_the_clip_is_cropped_around_what_moves(run: Path, video: Path) -> None:
    said = predict(run, video, device="cpu")["did"][2]
    assert said.startswith("cropped the square around what moves, ")
    x1, y1, x2, y2 = (float(value) for value in said.split(", ")[1].split(","))
    assert x1 < 62 and x2 > 96 and y1 < 42 and y2 > 78 and x2 - x1 < 60, "the block walks from x = 60 to 98, y = 40 to 80"


def test_ways_of_finding_persons_exclude_each_other(run: Path, video: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        predict(run, video, box=(50, 30, 110, 90), whole_picture=True, device="cpu")


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", ""])
def test_a_box_of_another_form_is_refused(box: str) -> None:
    with pytest.raises(UserError, match="expected four numbers x1,y1,x2,y2 in pixels"):
        parse_box(box)


def test_wrong_input_is_named(run: Path, video: Path, tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    far = ((1, 2, 3e300, 4e300), (-inf, 2, 9, 9), (1, -1e6, 9, 9))
    for box in ((50, 50, 50, 60), (500, 10, 600, 90), (10, 10, nan, 90), *far):
        with pytest.raises(UserError, match=rf"is empty, outside the {WIDTH}x{HEIGHT} picture of .*clip.mp4, or far larger"):
            predict(run, video, box=box, device="cpu")
    for top in (0, 10**30):
        with pytest.raises(UserError, match=f"--top is {top}: expected a whole number from 1 to"):
            predict(run, video, top=top, device="cpu")
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder without numbered pictures; expected a video"):
        predict(run, tmp_path)
    with pytest.raises(UserError, match=r"none\.mp4: no such file"):
        predict(run, tmp_path / "none.mp4", device="cpu")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"text\.mp4: cannot be decoded"):
        predict(run, tmp_path / "text.mp4", device="cpu")
    skeletons = FinetuneConfig(data=DATA, model=MODEL, head=HeadConfig(hidden=16), modality="skeleton")
    (tmp_path / "skeletons").mkdir()
    with pytest.raises(UserError, match=r"needs skeletons \(modality skeleton\); predict takes a run with modality rgb"):
        predict(publish_classifier(tmp_path / "skeletons", skeletons), video, device="cpu")


def test_audio_only_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(UserError, match=r"sound\.wav: no video stream"):
        read_clip(path, DATA)
