"""Several masks per clip: pure draws, and exactly the mean of single masks, for one encoding and one teacher pass."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MODEL, pretrain_config, student_config
from torch import Tensor

from svdata2vec.bench.config import BenchConfig
from svdata2vec.bench.record import SCHEMA, as_table
from svdata2vec.bench.run import measure
from svdata2vec.config.checked_json import faults
from svdata2vec.config.schema import MaskConfig, PretrainConfig
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.step_cost import mask_layers, step_flops, step_layers
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
from svdata2vec.runs.runtime import running
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.pretrain import Pretraining, forward, pretrain

T, SIZE, CLIPS, REPEATS = 8, 32, 3, 4
KEYS = [f"clip{number}" for number in range(CLIPS)]


def drawn(repeats: int = REPEATS, encoded_frames: int = 6, keys: list[str] = KEYS, **changes: int) -> Masks:
    place = {"seed": 1, "epoch": 0, **changes}
    return draw_masks(keys, T, MaskConfig(0.5, 0.5, repeats=repeats, encoded_frames=encoded_frames), **place)


def single(masks: Masks, repeat: int, *, alone: bool = False) -> Masks:
    """The masks of one repeat; `alone`: with no other frames encoded than they keep."""
    parts = (masks.keep_NK, masks.skeleton_hidden_NK, masks.scored_NT)
    keep, hidden, scored = (x[repeat :: masks.repeats].contiguous() for x in parts)
    return Masks(keep, hidden, scored, keep if alone else masks.encoded_BE)


# ---- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded_frames", [0, 4, 6, 8])
def test_a_mask_does_not_depend_on_how_many_there_are(encoded_frames: int) -> None:
    many, one, paper = drawn(9, encoded_frames), drawn(1, encoded_frames), draw_masks(KEYS, T, MaskConfig(0.5, 0.5), 1, 0)
    assert many.repeats == 9 and many.keep_NK.shape == (27, 4) and many.encoded_BE.shape == (3, encoded_frames or 4)
    for repeats in (2, 5):
        for repeat in range(repeats):
            torch.testing.assert_close(vars(single(drawn(repeats, encoded_frames), repeat)), vars(single(many, repeat)))
    torch.testing.assert_close(vars(single(many, 0)), vars(one))
    torch.testing.assert_close(vars(single(one, 0, alone=True)), vars(paper))  # the first mask is the paper's


def test_masks_of_a_clip_depend_on_seed_epoch_key_and_repeat_alone() -> None:
    among, alone = drawn(), drawn(keys=["clip1"])
    torch.testing.assert_close(among.keep_NK[REPEATS : 2 * REPEATS], alone.keep_NK)
    torch.testing.assert_close(among.scored_NT[REPEATS : 2 * REPEATS], alone.scored_NT)
    for other in (drawn(seed=2), drawn(epoch=1)):
        assert not torch.equal(other.keep_NK, among.keep_NK)


def test_further_masks_are_frozen_for_old_checkpoints() -> None:
    """A run that was saved must go on with the same masks with every later version."""
    masks = draw_masks(["key"], 8, MaskConfig(0.5, 0.5, repeats=3, encoded_frames=6), seed=1, epoch=2)
    assert masks.encoded_BE.tolist() == [[0, 1, 2, 3, 4, 6]]
    assert masks.keep_NK.tolist() == [[0, 3, 4, 6], [1, 3, 4, 6], [0, 1, 3, 6]]
    shown = [[0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]]
    assert (~masks.skeleton_hidden_NK).int().tolist() == shown


@pytest.mark.parametrize("encoded_frames", [0, 6])
def test_masks_choose_among_the_encoded_frames(encoded_frames: int) -> None:
    masks = draw_masks([f"k{i}" for i in range(1000)], T, MaskConfig(0.5, 0.5, repeats=3, encoded_frames=encoded_frames), 0, 0)
    encoded_NE = masks.of_clips(masks.encoded_BE)
    assert (masks.keep_NK[..., None] == encoded_NE[:, None]).any(2).all()
    assert (masks.keep_NK.diff(dim=1) > 0).all() and (~masks.skeleton_hidden_NK).sum(1).eq(2).all()
    assert torch.equal(masks.scored_NT.sum(1), torch.full((3000,), T - 2))
    for repeat in range(3):  # every frame equally often, and other skeletons in every mask
        mask = single(masks, repeat)
        assert (torch.bincount(mask.keep_NK.flatten(), minlength=T) / 1000 - 0.5).abs().max() < 0.06
        assert (mask.scored_NT.float().mean(0) - 0.75).abs().max() < 0.06
        assert repeat == 0 or 0.5 < (mask.scored_NT != masks.scored_NT[::3]).any(1).float().mean() < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, r"mask.repeats is 0"),
        ({"encoded_frames": 12}, r"mask.encoded_frames is 12: expected 0, or 13 \(which mask.video_ratio 0.66 keeps\) to"),
        ({"encoded_frames": 41}, r"mask.encoded_frames is 41: expected 0, .* to data.num_frames 40"),
    ],
)
def test_settings_are_checked(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig(mask=MaskConfig(**changes))


def test_wrong_masks_are_refused() -> None:
    masks = drawn()
    for wrong in (masks.encoded_BE[:, :3], torch.cat(2 * [masks.encoded_BE[:, :4]])[:5], masks.encoded_BE.int()):
        with pytest.raises(ValueError, match="as many masks for every clip, and all frames that they keep"):
            Masks(masks.keep_NK, masks.skeleton_hidden_NK, masks.scored_NT, wrong)


# ---- the step -------------------------------------------------------------------------------------------------------

Results = dict[str, Tensor]


def results(masks: list[Masks], *, training: bool = True, checkpointed: bool = False, **changes: Any) -> Results:
    """The mean loss over some masks, every gradient of it, spreads, and BatchNorm's statistics after one pass; in float64."""
    torch.manual_seed(0)
    fused = changes.pop("fused", False)
    model = dataclasses.replace(MODEL, fused_blocks=fused, checkpoint_activations=checkpointed)
    config = student_config(model, **changes)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_frames=T))
    student = SVData2Vec(config, 17).double().train(training)
    teacher = Teacher(student.encoder.blocks).double()
    video = torch.randint(0, 256, (CLIPS, T, SIZE, SIZE, 3), dtype=torch.uint8)
    joints = SIZE * torch.rand(CLIPS, 2, T, 17, 2).double()
    outputs = [forward(student, teacher, video, joints, mask, config) for mask in masks]
    loss = torch.stack([output.loss.double() for output in outputs]).mean()
    loss.backward()
    prediction_std = torch.stack([output.prediction_std for output in outputs]).mean()
    found = {"loss": loss.detach(), "target_std": outputs[0].target_std, "prediction_std": prediction_std}
    found |= {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    return found | (dict(student.named_buffers()) if len(masks) == 1 else {})


def assert_equal_but_for_rounding(got: Results, want: Results) -> None:
    """float32 where the loss is computed."""
    for name, expected in want.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            got[name], expected, rtol=1e-5, atol=2e-6 * scale + 1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("encode", ["kept_frames", "all_frames"])
@pytest.mark.parametrize("encoded_frames", [0, 6])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_masks_at_once_are_the_mean_of_single_masks(encode: str, encoded_frames: int, fused: bool) -> None:
    """Loss and every gradient, training: BatchNorm sees the encoded frames once, whatever is kept of them."""
    masks = drawn(encoded_frames=encoded_frames)
    got = results([masks], encode=encode, fused=fused)
    want = results([single(masks, repeat) for repeat in range(REPEATS)], encode=encode, fused=fused)
    assert len(want) > 80
    assert_equal_but_for_rounding(got, want)
    one = results([single(masks, 0)], encode=encode, fused=fused)
    statistics = {name: value for name, value in one.items() if "running" in name}
    assert len(statistics) == 40 and all(torch.equal(got[name], value) for name, value in statistics.items())


@pytest.mark.parametrize("encode", ["kept_frames", "all_frames"])
def test_frames_that_no_mask_keeps_change_nothing(encode: str) -> None:
    """In evaluation mode: each single mask as the paper has it, with its own frames encoded alone."""
    masks = drawn()
    want = results([single(masks, repeat, alone=True) for repeat in range(REPEATS)], encode=encode, training=False)
    got = results([masks], encode=encode, training=False)
    assert_equal_but_for_rounding({name: got[name] for name in want}, want)


def test_checkpointed_parts_give_the_very_step() -> None:
    plain, checkpointed = results([drawn()]), results([drawn()], checkpointed=True)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)


def test_frames_are_encoded_once_and_the_teacher_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = student_config()
    student = SVData2Vec(config, 17)
    teacher = Teacher(student.encoder.blocks)
    frames: list[int] = []
    rows: list[int] = []
    student.encoder.video_encoder.stages[0].register_forward_hook(lambda _, inputs, output: frames.append(len(output)))
    teacher.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    masks = draw_masks(KEYS, 6, MaskConfig(0.5, 0.5, repeats=REPEATS, encoded_frames=5), 1, 0)
    video = torch.randint(0, 256, (CLIPS, 6, SIZE, SIZE, 3), dtype=torch.uint8)
    output = student(video, torch.rand(CLIPS, 2, 6, 17, 2), masks)
    assert output.prediction_NTD.shape == (CLIPS * REPEATS, 6, MODEL.width)
    forward(student, teacher, video, torch.rand(CLIPS, 2, 6, 17, 2), masks, config)
    assert frames == [CLIPS * 5] * 2 and rows == [CLIPS]


# ---- runs and the benchmark -----------------------------------------------------------------------------------------


def masked(config: PretrainConfig) -> PretrainConfig:
    return dataclasses.replace(config, mask=MaskConfig(0.5, 0.5, repeats=3, encoded_frames=4))


def test_a_run_resumes_bit_for_bit(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Pretraining.step

    def killed(run: Pretraining, batches: list) -> None:
        if run.stepper.step == 3:
            raise KeyboardInterrupt
        step(run, batches)

    losses = {}
    for name in ("whole", "killed"):
        config = masked(pretrain_config(tiny_shard_folder, tmp_path / name))
        if name == "killed":
            monkeypatch.setattr(Pretraining, "step", killed)
            with pytest.raises(KeyboardInterrupt):
                pretrain(config)
            monkeypatch.setattr(Pretraining, "step", step)
        losses[name] = pretrain(config)["loss"]
    assert losses["killed"] == losses["whole"]
    one = pretrain_config(tiny_shard_folder, tmp_path / "one")
    assert pretrain(dataclasses.replace(one, mask=MaskConfig(0.5, 0.5)))["loss"] != losses["whole"]


def test_the_benchmark_counts_and_measures_masks(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = BenchConfig.of(masked(pretrain_config(tiny_shard_folder, tmp_path / "run")))
    config = dataclasses.replace(config, rounds=1, seconds=0.05)
    with running(config.run) as runtime:
        record = measure(config, runtime, ShardSet.open(tiny_shard_folder))
    assert faults(record, SCHEMA) == [] and record["setting"]["masks"]["repeats"] == 3
    one = dataclasses.replace(config, mask=dataclasses.replace(config.mask, repeats=1))
    flops = [step_flops(step_layers(each, 17)) for each in (one, config)]
    assert flops[1] - flops[0] == 2 * step_flops(mask_layers(config)) > 0
    rates = {name: record["stages"][name]["clips_per_s"] for name in ("model", "model, one mask")}
    assert record["masks"]["counted_share"] == pytest.approx(step_flops(mask_layers(config)) / flops[0])
    assert record["masks"]["measured_share"] == pytest.approx((rates["model, one mask"] / rates["model"] - 1) / 2)
    assert "masks per clip: 3; one more takes" in as_table(record)


def test_one_more_mask_of_the_paper_costs_little() -> None:
    layers = step_layers(PretrainConfig(), 17)
    assert step_flops(mask_layers(PretrainConfig())) / step_flops(layers) == pytest.approx(0.006, abs=0.001)
