"""The synthetic action data set: same bytes for any number of workers, true joints, honest splits, clear messages."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import check_motion_clips as check
import make_motion_clips as make
import motion_crops as crops
import numpy as np
import pytest
from motion_actions import CLASSES, perform
from motion_bodies import JOINT, make_body
from motion_detector import detect
from motion_drawing import PARTS, PLAIN_GREY, FigurePainter, SceneryPainter, render
from repository import ROOT

from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet

TINY = make.Options(clips=36, seed=3, min_frames=24, max_frames=28, width=160, height=96)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion") / "tiny set"
    assert make.make_motion_clips(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def annotations(tiny: Path) -> list[dict[str, Any]]:
    content = pickle.loads((tiny / "motion.pkl").read_bytes())
    return list(content["annotations"])


# Content of the folder


def test_two_workers_give_the_same_bytes_as_one(tiny: Path, tmp_path: Path) -> None:
    make.make_motion_clips(tmp_path / "two", TINY, workers=2)
    one, two = folder_bytes(tiny), folder_bytes(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_another_seed_gives_other_clips() -> None:
    other = make.build_scene(make.clip_specs(36)[0], make.Options(clips=36, seed=4, min_frames=24, max_frames=28))
    first = make.build_scene(make.clip_specs(36)[0], make.Options(clips=36, seed=3, min_frames=24, max_frames=28))
    assert first.pixels_MTJ2.shape != other.pixels_MTJ2.shape or not np.allclose(first.pixels_MTJ2, other.pixels_MTJ2)


def test_annotations_have_the_published_fields(annotations: list[dict[str, Any]]) -> None:
    assert len(annotations) == TINY.clips
    for entry in annotations:
        persons, frames = entry["keypoint"].shape[:2]
        assert entry["img_shape"] == entry["original_shape"] == (96, 160)
        assert entry["keypoint"].shape == (persons, entry["total_frames"], 17, 2)
        assert entry["keypoint_score"].shape == (persons, frames, 17)
        assert entry["keypoint"].dtype == entry["keypoint_score"].dtype == np.float16
        assert persons in (1, 2)
        assert 24 <= frames <= 28
        assert entry["label"] == int(entry["frame_dir"][-3:]) - 1


def test_joints_are_inside_the_picture_or_exactly_zero_with_score_zero(annotations: list[dict[str, Any]]) -> None:
    missing = 0
    for entry in annotations:
        keypoint, score = entry["keypoint"].astype(np.float64), entry["keypoint_score"]
        absent = (keypoint == 0).all(axis=-1)
        inside = ((keypoint > 0) & (keypoint < (160, 96))).all(axis=-1)
        assert (absent | inside).all()
        assert (score[absent] == 0).all()
        assert (score[inside] > 0).all()
        assert (score <= 1).all()
        missing += int(absent.sum())
    share = missing / sum(entry["keypoint_score"].size for entry in annotations)
    assert 0 < share < 0.1


def test_videos_are_h264_at_30_fps_with_the_annotated_number_of_frames(
    tiny: Path, annotations: list[dict[str, Any]]
) -> None:
    assert len(list((tiny / "videos").iterdir())) == TINY.clips
    for entry in annotations[:4]:
        with av.open(str(tiny / "videos" / f"{entry['frame_dir']}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 30)
            assert (stream.width, stream.height, stream.pix_fmt) == (160, 96, "yuv420p")
            assert sum(1 for _ in container.decode(stream)) == entry["total_frames"]


def test_classes_file_lists_the_names_in_label_order(tiny: Path) -> None:
    assert (tiny / "classes.txt").read_text().splitlines() == list(CLASSES)
    assert len(set(CLASSES)) == len(CLASSES) >= 10


# Splits and balance


def performer(name: str) -> int:
    return int(name[9:12])


def test_splits_are_by_subject_and_cover_all_clips(tiny: Path) -> None:
    content = pickle.loads((tiny / "motion.pkl").read_bytes())
    split = content["split"]
    assert set(split) == {"xsub_train", "xsub_val", "xsub_test"}
    assert sorted(name for names in split.values() for name in names) == sorted(p.stem for p in (tiny / "videos").iterdir())
    for part, names in split.items():
        assert names and {performer(name) for name in names} <= set(make.SUBJECTS[part.removeprefix("xsub_")])
    everyone = [subject for subjects in make.SUBJECTS.values() for subject in subjects]
    assert len(everyone) == len(set(everyone)) == 40


def test_second_persons_are_of_the_same_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in a picture, in front or beside, is in clips of one part only: bodies are drawn from the subject's number."""
    drawn: dict[str, set[int]] = {part: set() for part in make.SUBJECTS}
    numbers: list[int] = []

    def noted(rng: np.random.Generator) -> Any:
        numbers.append(getattr(rng.bit_generator.seed_seq, "entropy")[2])  # noqa: B009
        return make_body(rng)

    monkeypatch.setattr(make, "make_body", noted)
    for spec in make.clip_specs(240):
        numbers.clear()
        scene = make.build_scene(spec, make.Options(clips=360))
        assert numbers[0] == spec.subject and len(numbers) == 2
        drawn[spec.part] |= set(numbers[:len(scene.looks)])
    assert all(found <= set(make.SUBJECTS[part]) for part, found in drawn.items())
    assert all(len(found) > 3 for found in drawn.values())


def test_the_products_rule_validates_on_the_sets_own_split(tiny: Path, tmp_path: Path) -> None:
    """Packed, the set says its version; fine-tuning takes its validation split, whose people it neither trains nor tests on."""
    pack(read_pyskl(tiny / "motion.pkl", tiny / "videos"), tmp_path / "shards", PackOptions(workers=1, size=64))
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.manifest.dataset == f"motion-{make.VERSION}"
    data = demo_finetune().data
    assert shards.own_validation(data.train_split, data.test_split) == "xsub_val"
    assert (data.train_split, data.test_split) == (demo_pretrain().data.train_split, "xsub_test")


@pytest.mark.parametrize("clips", [36, 120, 333, 600])
def test_clips_are_spread_evenly_and_names_are_unique(clips: int) -> None:
    specs = make.clip_specs(clips)
    assert len({spec.name for spec in specs}) == clips
    table = np.zeros((len(CLASSES), 41, 4, 5), dtype=int)
    for spec in specs:
        table[spec.label, spec.subject, spec.camera, spec.setup] += 1
    by_class = table.sum(axis=(1, 2, 3))
    assert np.ptp(by_class) <= 1
    for part, subjects in make.SUBJECTS.items():
        of_part = table[:, list(subjects)]
        assert np.ptp(of_part.sum(axis=(2, 3))) <= 1, "clips of a class and subject"
        by_class = of_part.sum(axis=(1, 2, 3))
        assert np.ptp(by_class) <= 1 and by_class.min() >= 1
        assert abs(by_class.sum() / clips - {"train": 0.6, "val": 0.1, "test": 0.3}[part]) < 0.3 * 36 / clips
    by_camera = table.sum(axis=(1, 3))[:, 1:]
    assert np.ptp(by_camera, axis=1).max() <= 3


def test_a_larger_set_begins_with_the_clips_of_a_smaller_one() -> None:
    assert make.clip_specs(3000)[:600] == make.clip_specs(600)


# Figures


def test_true_joints_lie_on_the_drawn_figures() -> None:
    options = make.Options(clips=36, min_frames=24, max_frames=24, width=480, height=270, plain=True)
    hits = total = 0
    for spec in make.clip_specs(36):
        scene = make.build_scene(spec, options)
        for time, frame in enumerate(render(scene, plain=True)):
            if time % 4:
                continue
            place = np.floor(scene.coco()[:, time].reshape(-1, 2)).astype(int)
            inside = ((place >= 0) & (place < (scene.width, scene.height))).all(axis=1)
            x, y = place[inside].T
            hits += int((frame[y, x] != PLAIN_GREY).any(axis=1).sum())
            total += int(inside.sum())
    assert total > 3000
    assert hits / total > 0.99  # a nose stands out of the head in profile


def test_scenery_reaches_as_far_as_a_large_picture_sways() -> None:
    """A camera of 2160 lines sways by up to 26 pixels."""
    scene = make.build_scene(make.clip_specs(36)[7], make.Options(width=3840, height=2160, min_frames=24, max_frames=30))
    sway_T = np.abs(scene.camera.sway_T2).max(axis=1)
    assert sway_T.max() > 24.5
    assert SceneryPainter(scene).draw(int(sway_T.argmax())).shape == (2160, 3840, 3)


@pytest.mark.parametrize("index", [0, 10, 23])
def test_hard_clips_differ_in_looks_alone(index: int) -> None:
    """The same performance before another, busier scene, from a camera that sways more."""
    spec, lengths = make.clip_specs(36)[index], {"min_frames": 24, "max_frames": 26}
    easy, hard = (make.build_scene(spec, make.Options(clips=36, hard=hard, **lengths)) for hard in (False, True))
    still_E, still_H = (scene.pixels_MTJ2 - scene.camera.sway_T2[:, None] for scene in (easy, hard))
    np.testing.assert_allclose(still_E, still_H, atol=1e-9)
    assert np.ptp(hard.camera.sway_T2, axis=0).max() > 2 * np.ptp(easy.camera.sway_T2, axis=0).max()
    assert all(one.skin == other.skin and one.hair == other.hair for one, other in zip(easy.looks, hard.looks, strict=True))
    assert any(one.shirt != other.shirt for one, other in zip(easy.looks, hard.looks, strict=True))
    first, other = SceneryPainter(easy), SceneryPainter(hard)
    assert len(first.movers) <= 4 < len(other.movers)
    assert not first.front_movers and other.front_movers

    def flicker(painter: SceneryPainter) -> float:
        return float(np.abs(np.diff(np.log(painter.light.gain_T))).mean())

    assert flicker(other) > 0.05 > 0.03 > flicker(first)


def test_in_hard_clips_things_pass_in_front_of_the_performers() -> None:
    scene = make.build_scene(make.clip_specs(36)[4], make.Options(clips=36, hard=True, min_frames=24, max_frames=24))
    painter = SceneryPainter(scene)
    white = [replace(mover, fill=(255,) * 3, stripe=(255,) * 3) for mover in painter.front_movers]
    with_things = list(render(scene, plain=False))
    without = list(render(replace(scene, difficulty=replace(scene.difficulty, front_movers=(0, 0))), plain=False))
    for time, (one, other) in enumerate(zip(with_things, without, strict=True)):
        marked = np.zeros(one.shape, np.uint8)
        for mover in white:
            mover.draw(marked, time)
        assert ((one != other).any(axis=2) <= (marked > 0).all(axis=2)).all()
    assert (np.stack(with_things) != np.stack(without)).any()


def test_a_set_of_hard_clips_says_so_and_one_made_before_there_were_any_is_kept(tiny: Path, tmp_path: Path) -> None:
    options = replace(TINY, hard=True)
    make.make_motion_clips(tmp_path / "hard", options)
    assert pickle.loads((tmp_path / "hard" / "motion.pkl").read_bytes())["name"] == f"motion-{make.VERSION}-hard"
    with pytest.raises(UserError, match="made with hard True instead of False"):
        make.make_motion_clips(tmp_path / "hard", TINY)
    older = tmp_path / "older"
    shutil.copytree(tiny, older)
    state = json.loads((older / "motion.json").read_text())
    del state["options"]["hard"]
    (older / "motion.json").write_text(json.dumps(state))
    assert make.make_motion_clips(older, TINY) is None
    with pytest.raises(UserError, match="made with hard False instead of True"):
        make.make_motion_clips(older, options)


def test_detected_joints_stay_near_the_true_ones() -> None:
    scene = make.build_scene(make.clip_specs(36)[2], make.Options(clips=36))
    keypoint, score = detect(scene, np.random.default_rng(0))
    true = scene.coco()
    if len(true) == 2 and np.abs(keypoint[0] - true[0]).mean() > np.abs(keypoint[0] - true[1]).mean():
        true = true[::-1]
    error = np.linalg.norm(keypoint - true, axis=-1)[score > 0.7]
    assert 0.3 < np.median(error) < 3.0
    change = np.diff(keypoint - true, axis=1)[(score[:, 1:] > 0.7) & (score[:, :-1] > 0.7)]
    assert change.std() < 1.3 * (keypoint - true)[score > 0.7].std()  # partly correlated: independent gives 1.41


def test_figures_fill_the_picture_and_arms_stay_visible_in_small_crops() -> None:
    options = make.Options(clips=60)
    forearm = [part.colour_of for part in PARTS].index("forearm")
    heights, arms = [], []
    for spec in make.clip_specs(60):
        scene = make.build_scene(spec, options)
        heights.append(float(scene.spans()[0]) / scene.height)
        joints = scene.coco().reshape(-1, 2)
        crop = 1.2 * float(np.ptp(joints, axis=0).max())
        arms.append(float(np.median([row[forearm] for row in FigurePainter(scene, 0).thickness])) * 96 / crop)
    assert 0.48 < np.median(heights) < 0.7
    assert np.median(arms) > 3.0


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_bones_keep_their_length_and_feet_stay_on_or_above_the_floor(label: int) -> None:
    rng = np.random.default_rng(label)
    cast = perform(label, rng, 50, (make_body(rng), make_body(rng)), 0.3)
    for joints_TJ3 in cast.joints_MTJ3:
        for first, second in (("l_shoulder", "l_elbow"), ("r_elbow", "r_wrist"),
                              ("l_hip", "l_knee"), ("r_knee", "r_ankle"), ("neck", "pelvis")):
            length_T = np.linalg.norm(joints_TJ3[:, JOINT[first]] - joints_TJ3[:, JOINT[second]], axis=1)
            assert np.ptp(length_T) < 1e-6 * length_T.mean() + 1e-9
        assert joints_TJ3[:, JOINT["l_ankle"], 2].min() > 0.0
        assert np.abs(np.diff(joints_TJ3, axis=0)).max() < 0.45  # no joint jumps: 13 m/s at most


def track(action: str, joint: str, seed: int) -> np.ndarray:
    """(T, 3) of one joint of the first performer."""
    rng = np.random.default_rng(seed)
    cast = perform(CLASSES.index(action), rng, 60, (make_body(rng), make_body(rng)), 0.0)
    return np.asarray(cast.joints_MTJ3[0, :, JOINT[joint]])


def reversals(values_T: np.ndarray) -> int:
    """How often a series turns round, small ripples apart."""
    step = np.diff(values_T)
    signs = np.sign(step[np.abs(step) > 0.25 * np.abs(step).max()])
    return int((np.diff(signs) != 0).sum())


@pytest.mark.parametrize("seed", range(3))
def test_actions_are_what_their_names_say(seed: int) -> None:
    up, down = track("raise both arms", "l_wrist", seed)[:, 2], track("lower both arms", "l_wrist", seed)[:, 2]
    assert up[-1] - up[0] > 0.5
    assert down[0] - down[-1] > 0.5
    assert track("sit down", "pelvis", seed)[0, 2] - track("sit down", "pelvis", seed)[-1, 2] > 0.3
    assert track("stand up", "pelvis", seed)[-1, 2] - track("stand up", "pelvis", seed)[0, 2] > 0.3
    assert np.ptp(track("jump", "l_ankle", seed)[:, 2]) > 0.15
    walked = track("walk", "pelvis", seed)
    assert np.linalg.norm(walked[-1, :2] - walked[0, :2]) > 0.6
    assert max(np.ptp(track("kick", f"{side}_ankle", seed)[:, 2]) for side in ("l", "r")) > 0.35
    waves = max(reversals(track("wave", f"{side}_wrist", seed)[:, axis]) for side in ("l", "r") for axis in (0, 1))
    assert waves >= 3
    apart = np.linalg.norm(track("clap", "l_wrist", seed) - track("clap", "r_wrist", seed), axis=1)
    assert reversals(apart) >= 3


def test_the_object_changes_hands_in_hand_over() -> None:
    rng = np.random.default_rng(1)
    cast = perform(CLASSES.index("hand over"), rng, 60, (make_body(rng), make_body(rng)), 0.0)
    assert cast.object_T3 is not None
    hands = cast.joints_MTJ3[:, :, JOINT["r_hand"]]
    np.testing.assert_allclose(cast.object_T3[0], hands[0, 0], atol=1e-9)
    np.testing.assert_allclose(cast.object_T3[-1], hands[1, -1], atol=1e-9)


def test_objects_and_second_persons_do_not_tell_the_class() -> None:
    casts = [make.build_scene(spec, make.Options(clips=360)) for spec in make.clip_specs(240)]
    alone = [scene for spec, scene in zip(make.clip_specs(240), casts, strict=True) if spec.label < 10]
    assert 0.4 < np.mean([len(scene.looks) == 2 for scene in alone]) < 0.7
    assert 0.25 < np.mean([scene.object_T2 is not None for scene in alone]) < 0.55


# Running it again


def test_a_complete_folder_is_kept_and_a_half_written_one_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    make.make_motion_clips(folder, TINY)
    before = folder_bytes(folder)
    assert make.make_motion_clips(folder, TINY) is None
    lost = sorted((folder / "videos").iterdir())[5]
    lost.unlink()
    lost.with_suffix(".part").write_bytes(b"torn")
    (folder / "motion.pkl").unlink()
    frames = make.make_motion_clips(folder, TINY)
    assert frames is not None and 24 <= frames <= 28  # one clip drawn, the others kept
    assert folder_bytes(folder) == before
    (folder / "motion.pkl").unlink()
    assert make.make_motion_clips(folder, TINY) == 0  # videos kept, pickle made again
    assert folder_bytes(folder) == before


def test_command_says_that_a_complete_folder_is_kept(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tiny), "--clips", "36", "--seed", "3", "--frames", "24-28", "--width", "160", "--height", "96"]
    assert make.main(arguments) == 0
    assert "complete with these options, kept as it is" in capsys.readouterr().out


def test_script_runs_by_its_path_and_exits_with_2_on_bad_options(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "motion" / "make_motion_clips.py"), str(tmp_path / "x"), "--clips", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --clips is 5: expected a whole number from 36 to")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"clips": 23}, "--clips is 23: expected a whole number from 36 to"),
    ({"seed": -1}, "--seed is -1: expected a whole number from 0 to"),
    ({"min_frames": 10}, "--frames is 10: expected a whole number from 24 to"),
    ({"min_frames": 71}, "--frames 71-70: expected LOW-HIGH"),
    ({"width": 481}, "--width is 481: expected a multiple of 2 from 96 to"),
    ({"height": 20}, "--height is 20: expected a multiple of 2 from 96 to"),
    ({"crf": 60}, "--crf is 60: expected a whole number from 0 to 51"),
])
def test_bad_options_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make.Options(**change)


@pytest.mark.parametrize("text", ["", "a-b", "40-", "-40", "40-x"])
def test_bad_frame_ranges_are_named(text: str) -> None:
    with pytest.raises(UserError, match="expected LOW-HIGH, for example 40-70"):
        make.frame_range(text)


def test_frame_range_is_one_number_or_two() -> None:
    assert (make.frame_range("40-70"), make.frame_range("48")) == ((40, 70), (48, 48))


def killed(*_: Any, **__: Any) -> None:
    """In place of `make_clip`, in a process of its own."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("fault", "said"), [
    (killed, "a worker process died (killed, or out of memory)"), (full, "{folder}: [Errno 28] No space left on device"),
])
def test_a_fault_of_the_machine_is_one_line(fault: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(make, "make_clip", fault)
    assert make.main([str(tmp_path / "new"), "--workers", "2"]) == 1
    said = f"error: {said.format(folder=tmp_path / 'new')}; what is written so far is kept, run again to finish"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_folders_that_hold_something_else_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a data set made with seed 3 instead of 4; delete the folder"):
        make.make_motion_clips(tiny, make.Options(**{**TINY.__dict__, "seed": 4}))
    with pytest.raises(UserError, match="--workers 0: expected 1 or more"):
        make.make_motion_clips(tmp_path / "new", TINY, workers=0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and has no motion\.json"):
        make.make_motion_clips(tmp_path / "notes", TINY)
    (tmp_path / "notes" / "motion.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the description of a motion data set"):
        make.make_motion_clips(tmp_path / "notes", TINY)
    with pytest.raises(UserError, match="is a file, expected a folder"):
        make.make_motion_clips(tmp_path / "notes" / "text.txt", TINY)


# The check of one frame against the clip


def joint_trial(data: np.ndarray, *, one_frame: bool) -> check.Trial:
    inputs = data.shape[-1]
    return check.Trial("joints", data, one_frame, 8, False, check.show_joints, lambda: check.JointNet(96, inputs))


def test_check_tells_order_from_pose() -> None:
    """Two classes with the same frames in opposite order: the clip tells them apart, one frame cannot."""
    rng = np.random.default_rng(0)
    label_N = np.arange(240) % 2
    data = np.full((240, 12, 2 * 17 * 3), 1.0, np.float32)
    ramp = np.linspace(-1, 1, 12, dtype=np.float32)
    for i, label in enumerate(label_N):
        data[i, :, 1::3] = (ramp if label else -ramp)[:, None] + rng.normal(0, 0.1, (12, 34))
    empty = np.zeros((240, 0), np.uint8)
    clips = crops.Clips(empty, empty, empty, data, data, label_N, np.arange(240) < 160)
    whole = check.run_trial(joint_trial(data, one_frame=False), clips, 2, 0)
    single = check.run_trial(joint_trial(data, one_frame=True), clips, 2, 0)
    assert whole["accuracy"] > 0.95
    assert single["accuracy"] < 0.65
    assert single["evaluated"] == 80 * check.FRAMES_PER_EPOCH


def test_few_clips_are_trained_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than a step has otherwise: a network that was never trained would stand in the record as what the clips tell."""
    seen: list[tuple[int, int]] = []
    loss = "torch.nn.functional.cross_entropy"
    monkeypatch.setattr(loss, lambda logits, *_, **__: seen.append(logits.shape) or logits.sum())
    data, label_N = np.zeros((15, 5, 2 * 17 * 3), np.float32), np.arange(15) % 2
    empty = np.zeros((15, 0), np.uint8)
    clips = crops.Clips(empty, empty, empty, data, data, label_N, np.arange(15) < 10)
    for one_frame in (False, True):
        check.run_trial(joint_trial(data, one_frame=one_frame), clips, 2, 0)
    assert seen == 8 * [(10, 2)] + 8 * [(10 * check.FRAMES_PER_EPOCH, 2)]


def test_background_patch_avoids_the_persons() -> None:
    joints = np.array([[[[470.0, 260.0], [300.0, 40.0], [0.0, 0.0]]]], np.float32)
    for seed in range(10):
        left, top = crops.free_patch(joints, 480, 270, np.random.default_rng(seed))
        assert (left, top) in [(0, 0), (0, 90), (0, 180), (390, 0), (390, 90)]


def test_check_writes_its_figures(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "results" / "check.json"
    arguments = [str(tiny), "--frames", "4", "--epochs", "1", "--threads", "1", "--json", str(target)]
    assert check.main(arguments) == 0
    result = json.loads(target.read_text())
    assert result["data"]["options"]["seed"] == 3
    assert (result["training_clips"], result["evaluation_clips"]) == (12, 12)
    assert [trial["name"] for trial in result["trials"]][-1] == "whole clip, joints"
    assert all(0 <= trial["accuracy"] <= 1 and len(trial["recall"]) == len(CLASSES) for trial in result["trials"])
    assert "whole clip, pixels" in capsys.readouterr().out


def test_check_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check.main([str(tmp_path), "--frames", str(check.FRAMES_PER_EPOCH - 1)])  # as many are drawn of each clip
    assert "--frames" in capsys.readouterr().err
    assert check.main([str(tmp_path / "nothing")]) == 2
    assert "motion.pkl, classes.txt, videos not found; make the data set first" in capsys.readouterr().err
