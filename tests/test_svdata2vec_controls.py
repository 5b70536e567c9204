"""Controls of pretraining: other targets and other pairs, each doing what it claims, in runs that resume as usual."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MODEL, pretrain_config, student_config
from torch import Tensor

from svdata2vec.cli.main import main
from svdata2vec.config.schema import EmaConfig, MaskConfig, PretrainConfig, TargetConfig
from svdata2vec.model.controls import joint_targets
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.data import build_loader, open_data
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.training.pretrain import Pretraining, forward, make_teacher, pretrain

CLIPS, FRAMES, SIZE, JOINTS = 3, 6, 32, 17
KEYS = [f"clip{i}" for i in range(CLIPS)]
CPU = Runtime(torch.device("cpu"), 0, 1, bf16=False)
RGB = TargetConfig(2, teacher="encoder", teacher_input="rgb", scored="video")
FROZEN = EmaConfig(1.0, 1.0)


def clips() -> tuple[Tensor, Tensor]:
    """Random pictures and joints, of which one in five is missing."""
    video = torch.randint(0, 256, (CLIPS, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8)
    joints = SIZE * torch.rand(CLIPS, MODEL.persons, FRAMES, JOINTS, 2)
    joints[torch.rand(joints.shape[:-1]) < 0.2] = 0
    return video, joints


def masks_of(config: PretrainConfig) -> Masks:
    mask = config.mask
    return draw_masks(KEYS, FRAMES, mask, 0, 0)


# ---- targets ----------------------------------------------------------------------------------------------------------


def test_data2vec_on_rgb_is_scored_where_the_video_is_hidden() -> None:
    """Its targets are those of the video encoder's average; skeletons that nobody shows change nothing."""
    config = student_config(target=RGB, mask=MaskConfig(0.5, 1.0))
    student, (video, joints), masks = SVData2Vec(config, JOINTS), clips(), masks_of(config)
    teacher = make_teacher(student.encoder, config.target)
    kept = torch.zeros(CLIPS, FRAMES, dtype=torch.bool).scatter(1, masks.keep_NK, value=True)
    assert torch.equal(masks.frames_without_video, ~kept) and masks.keep_NK.shape[1] == 3
    prediction = student(video, joints, masks).prediction_NTD
    with torch.no_grad():
        embedded = teacher.embeddings["video_encoder"](video) + student.encoder.temporal_embed
        target = teacher(embedded, config.target)
    expected = (prediction - target).square().mean(-1)[~kept].mean()
    loss = forward(student, teacher, video, joints, masks, config).loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(forward(student, teacher, video, joints + 5, masks, config).loss, loss)
    assert not torch.isclose(forward(student, teacher, video.flip(2), joints, masks, config).loss, loss)


@pytest.mark.parametrize("reads", ["skeleton", "rgb", "both"])
def test_the_whole_encoder_is_averaged(reads: Any) -> None:
    """Weights and statistics of BatchNorm by the decay, one of 1 leaves all as it was drawn; no other than the student's."""
    config = student_config(target=replace(RGB, teacher_input=reads))
    student = SVData2Vec(config, JOINTS)
    teacher = make_teacher(student.encoder, config.target)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with torch.no_grad():
        for value in (*student.parameters(), *(buffer for buffer in student.buffers() if buffer.is_floating_point())):
            value.add_(torch.rand_like(value))
    teacher.update(student.encoder, 1.0)
    after = teacher.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    teacher.update(student.encoder, 0.75)
    theirs = student.encoder.state_dict()
    assert any("running_mean" in name for name in before) == (reads != "skeleton")
    for name, tensor in teacher.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * theirs[name.removeprefix("embeddings.")])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert not teacher.train().training and not any(module.training for module in teacher.modules())
    video, joints = clips()
    read = {"video_encoder": video, "skeleton_embed": joints}
    tokens = torch.stack([embed(read[name]) for name, embed in teacher.embeddings.items()]).mean(0) + teacher.temporal_embed
    torch.testing.assert_close(teacher.tokens(torch.zeros(0), video, joints), tokens)


def test_joints_are_regressed_where_they_are() -> None:
    """The mean squared error of the coordinates that are there, in the frames that are scored, ordered person, axis, joint."""
    config = student_config(target=TargetConfig(2, kind="joints"), mask=MaskConfig(0.5, 0.5, repeats=2))
    student, (video, joints), masks = SVData2Vec(config, JOINTS), clips(), masks_of(config)
    teacher = make_teacher(student.encoder, config.target)
    prediction = student(video, joints, masks).prediction_NTD
    assert prediction.shape == (2 * CLIPS, FRAMES, MODEL.persons * 2 * JOINTS)
    errors = []
    for number in range(2 * CLIPS):
        for person, frame, joint in torch.cartesian_prod(*map(torch.arange, joints.shape[1:4])).tolist():
            found = joints[number // 2, person, frame, joint]
            if masks.scored_NT[number, frame] and found.any():
                place = [person * 2 * JOINTS + axis * JOINTS + joint for axis in (0, 1)]
                errors.append((prediction[number, frame, place] - (found - SIZE / 2) / (SIZE / 4)).square().detach())
    output = forward(student, teacher, video, joints, masks, config)
    torch.testing.assert_close(output.loss.detach(), torch.stack(errors).mean())
    output.loss.backward()
    assert student.decoder.pred.weight.grad is not None and student.decoder.pred.weight.grad.abs().max() > 0
    nobody = forward(student, teacher, video, torch.zeros_like(joints), masks, config)
    assert nobody.loss.item() == 0
    target_BTO, present_BTO = joint_targets(joints, config)
    assert present_BTO.sum() == 2 * joints.any(-1).sum()
    torch.testing.assert_close(output.target_std, target_BTO.std(0, correction=0)[present_BTO.any(0)].mean())
    assert nobody.target_std == 0


def test_standardised_joints_tell_what_moves_in_a_clip() -> None:
    """Coordinates from their means over time, then how far they go, each in units of its root mean square over the clip."""
    config = student_config(
        target=TargetConfig(2, kind="standardised_joints"), mask=MaskConfig(0.5, 0.5), model=replace(MODEL, joint_motion=2.0)
    )
    video, joints = clips()
    target_BTO, present_BTO = joint_targets(joints, config)
    values = MODEL.persons * 2 * JOINTS
    assert target_BTO.shape == present_BTO.shape == (CLIPS, FRAMES, 2 * values)
    student, masks = SVData2Vec(config, JOINTS), masks_of(config)
    output = forward(student, make_teacher(student.encoder, config.target), video, joints, masks, config)
    prediction = student(video, joints, masks).prediction_NTD
    counted = masks.scored_NT[..., None] & present_BTO
    torch.testing.assert_close(output.loss, (prediction - target_BTO).square()[counted].mean())
    for clip in range(CLIPS):
        raw_TO, there_TO = torch.zeros(FRAMES, 2 * values), torch.zeros(FRAMES, 2 * values, dtype=torch.bool)
        for person, joint, axis in torch.cartesian_prod(*map(torch.arange, (MODEL.persons, JOINTS, 2))).tolist():
            place, track_T = person * 2 * JOINTS + axis * JOINTS + joint, joints[clip, person, :, joint, axis]
            for t in range(FRAMES):
                before, after = max(t - 1, 0), min(t + 1, FRAMES - 1)
                if track_T[t] != 0:
                    raw_TO[t, place], there_TO[t, place] = track_T[t] - track_T[track_T != 0].mean(), True
                if track_T[before] != 0 and track_T[after] != 0:
                    raw_TO[t, values + place], there_TO[t, values + place] = track_T[after] - track_T[before], True
        assert torch.equal(present_BTO[clip], there_TO)
        for half in (slice(0, values), slice(values, None)):
            spread = raw_TO[:, half][there_TO[:, half]].square().mean().sqrt()
            torch.testing.assert_close(target_BTO[clip, :, half], raw_TO[:, half] / spread, rtol=1e-4, atol=1e-4)
    moved, _ = joint_targets(torch.where(joints.any(-1, keepdim=True), joints * 1.5 + 3, 0.0), config)
    torch.testing.assert_close(moved, target_BTO, rtol=1e-3, atol=1e-3)
    positions, _ = joint_targets(joints, replace(config, model=MODEL))
    torch.testing.assert_close(positions, target_BTO[..., :values])
    still, _ = joint_targets(joints[:, :, :1].expand_as(joints), config)
    assert still.abs().max() < 1e-3
    first = joints[:, :, :1].expand_as(joints)
    quivers, _ = joint_targets(torch.where(first != 0, first + 0.01 * torch.rand_like(first), 0.0), config)
    assert 0.03 < quivers.abs().max() < 0.01 / (SIZE / 200)  # in 1/200 of the crop's side


# ---- runs -------------------------------------------------------------------------------------------------------------


def test_shuffled_skeletons_are_those_of_other_clips(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    with build_loader(open_data(config.data), config, CPU, train=True) as loader:
        plain = Pretraining(config, CPU, loader)
        shuffled = Pretraining(replace(config, target=replace(config.target, shuffle_skeletons=True)), CPU, loader)
        batch = next(iter(loader))
        assert isinstance(batch, ClipBatch) and batch.joints_BMTVC is not None
        (video, joints, *masks), (own_video, own, *own_masks) = shuffled.inputs(batch, 0), plain.inputs(batch, 0)
    assert torch.equal(video, own_video) and all(map(torch.equal, masks, own_masks))
    for number in range(len(batch)):
        assert torch.equal(joints[number], batch.joints_BMTVC[number - 1]) and torch.equal(own, batch.joints_BMTVC)
        assert not torch.equal(joints[number], own[number])
    with pytest.raises(UserError, match=r"run\.batch_size is 1 with target\.shuffle_skeletons"):
        replace(shuffled.config, run=replace(config.run, batch_size=1))


@pytest.mark.parametrize(("shuffled", "sizes"), [(False, [4, 4, 1]), (True, [4, 5])])
def test_no_clip_is_left_alone_with_its_own_skeletons(
    shuffled: bool, sizes: list[int], tiny_shard_folder: Path, tmp_path: Path
) -> None:
    """Of nine clips that other batches have left of an epoch, batches of four leave one over."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    config = replace(config, target=replace(config.target, shuffle_skeletons=shuffled))
    with build_loader(open_data(config.data), config, CPU, train=True) as loader:
        loader.load_state_dict(loader.state_dict() | {"position": 3})
        assert [len(batch) for batch in loader] == sizes


CONTROLS: dict[str, dict[str, Any]] = {
    "shuffled": {"target": TargetConfig(2, shuffle_skeletons=True)},
    "frozen": {"target": TargetConfig(2, teacher="encoder"), "ema": FROZEN},
    "joints": {"target": TargetConfig(2, kind="joints")},
    "rgb": {"target": RGB, "mask": MaskConfig(0.5, 1.0)},
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_resumes_bit_for_bit(control: str, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """From a checkpoint in the middle to the tensors of the run that was not interrupted; its encoder is taken further."""
    ends = []
    for name in ("whole", "continued"):
        config = replace(pretrain_config(tiny_shard_folder, tmp_path / name, keep_checkpoints=9), **CONTROLS[control])
        if name == "continued":
            shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / name / "checkpoints")
            for path in sorted((tmp_path / name / "checkpoints").iterdir())[1:]:
                path.unlink()
        pretrain(config)
        state = Checkpoints(config.run.out, 9).load_newest()
        assert state is not None and state["stepper"]["step"] == 6
        ends.append({**state["student"], **{f"teacher.{key}": value for key, value in state["teacher"].items()}})
    assert ends[0].keys() == ends[1].keys()
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []
    if control == "frozen":
        torch.manual_seed(0)
        drawn = make_teacher(SVData2Vec(config, JOINTS).encoder, config.target).state_dict()
        assert all(torch.equal(ends[0][f"teacher.{name}"], value) for name, value in drawn.items())
        assert not torch.equal(ends[0]["encoder.skeleton_embed.proj.weight"], drawn["embeddings.skeleton_embed.proj.weight"])


def test_several_processes_share_the_statistics_of_a_video_teacher(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = replace(pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1), **CONTROLS["rgb"])
    with (
        build_loader(open_data(config.data), config, CPU, train=True) as loader,
        pytest.raises(UserError, match=r"is encoder with --target.teacher-input rgb: 2 processes need --run\.sync-batchnorm"),
    ):
        Pretraining(config, replace(CPU, world_size=2), loader)


def test_controls_are_options_of_the_command(tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["pretrain", "demo", "--data.shards", str(tiny_shard_folder), "--data.train-split", "all", "--run.device", "cpu"]
    small = ["--data.num-frames", "6", "--data.size", "32", "--run.epochs", "1", "--run.batch-size", "12"]
    control = ["--target.kind", "joints", "--target.shuffle-skeletons", "--target.scored", "video"]
    assert main([*words, *small, *control, "--run.out", str(tmp_path / "run")]) == 0
    assert main([*words, *small, "--target.teacher-input", "rgb", "--run.out", str(tmp_path / "other")]) == 2
    assert "set --encode all_frames" in capsys.readouterr().err
