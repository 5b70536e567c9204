"""The networks: sizes of the paper, masked and unmasked forward pass, gradients of the parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from kernel_inputs import Draw, Sizes, gather_blocks
from tiny import MODEL, student_config
from torch import Tensor, nn
from torch.nn import functional as F

from svdata2vec.config.schema import (
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    MaskConfig,
    ModelConfig,
    PretrainConfig,
    TargetConfig,
    mask_counts,
)
from svdata2vec.evaluation.metrics import measure
from svdata2vec.kernels.gather_frames import fold
from svdata2vec.model import video_encoder
from svdata2vec.model.classifier import Classifier, Head
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.prelu import PReLU
from svdata2vec.model.student import Encoder, SkeletonEmbedding, SVData2Vec, motion_of
from svdata2vec.model.teacher import Teacher
from svdata2vec.model.transformer import DropPath
from svdata2vec.model.video_encoder import VideoEncoder
from svdata2vec.pipeline.video import BlockClips, frames_of
from svdata2vec.shards.blocks import BlockFormat
from svdata2vec.shards.errors import UserError
from svdata2vec.training.pretrain import forward, spread

T, SIZE = 6, 32


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Masks]:
    video = torch.randint(0, 256, (batch, T, SIZE, SIZE, 3), dtype=torch.uint8)
    masks = draw_masks([f"clip{i}" for i in range(batch)], T, MaskConfig(0.5, 0.5), seed=1, epoch=0)
    return video, SIZE * torch.rand(batch, 2, T, 17, 2), masks


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_default_sizes_are_the_papers() -> None:
    model = SVData2Vec(PretrainConfig(), num_joints=17)
    assert millions(model) == pytest.approx(20.21, abs=0.005)
    assert millions(model.encoder.video_encoder) == pytest.approx(11.35, abs=0.005)
    assert mask_counts(40, 0.66, 0.75) == (13, 3)


def test_kept_frames_give_the_tokens_of_all_frames_in_evaluation_mode() -> None:
    encoder = VideoEncoder(ModelConfig(width=32, stem_width=16)).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    video, _, masks = inputs()
    every_BTD = encoder(video)
    kept_BKD = encoder(video, masks.keep_NK)
    expected_BKD = every_BTD.gather(1, masks.keep_NK[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(kept_BKD, expected_BKD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_all_frames_are_encoded_alike_on_every_device(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the Conv3d on a CPU, through gathered windows elsewhere: values, gradients and running statistics, in float32."""
    assert [video_encoder.gathers_all_frames(torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
    sides = []
    for gathered in (False, True):
        monkeypatch.setattr(video_encoder, "gathers_all_frames", lambda _, gathered=gathered: gathered)
        torch.manual_seed(0)
        encoder = VideoEncoder(ModelConfig(width=32, stem_width=16)).train(training)
        with monkeypatch.context() as context:
            context.setattr(encoder.stem, "forward_all" if gathered else "forward_windows", None)  # the other one is not used
            tokens_BTD = encoder(inputs()[0])
        (tokens_BTD * torch.randn(tokens_BTD.shape)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        sides.append((tokens_BTD.detach(), gradients, dict(encoder.named_buffers())))
    torch.testing.assert_close(sides[1][0], sides[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sides[1][2], sides[0][2], rtol=1e-4, atol=1e-5)
    for name, gradient in sides[0][1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(sides[1][1][name], gradient, rtol=1e-3, atol=1e-3 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_filling_channels_change_nothing() -> None:
    stem = VideoEncoder(ModelConfig(width=32, stem_width=16)).eval().stem
    windows_FCHW = torch.randn(2, 15, SIZE, SIZE)
    filled_FCHW = torch.cat([windows_FCHW, torch.zeros(2, 1, SIZE, SIZE)], dim=1)
    torch.testing.assert_close(stem.forward_windows(filled_FCHW), stem.forward_windows(windows_FCHW))


@pytest.mark.parametrize("channels", [15, 16])
def test_folded_windows_give_the_same_maps_and_gradients(channels: int) -> None:
    """Seven taps at every second pixel, and four at every folded one: the same sums, in another order."""
    stem = VideoEncoder(ModelConfig(width=32, stem_width=16)).stem.double()
    windows_FCHW = F.pad(torch.randn(2, 15, SIZE, SIZE + 32, dtype=torch.float64), (0, 0, 0, 0, 0, channels - 15))
    folded_FCHW = fold(windows_FCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    sides = []
    for maps_FCHW in (stem.forward_windows(windows_FCHW), stem.forward_windows(folded_FCHW, folded=True)):
        weight = torch.linspace(-1, 1, maps_FCHW.numel(), dtype=torch.float64).view(maps_FCHW.shape)
        sides.append((maps_FCHW, *torch.autograd.grad((maps_FCHW * weight).sum(), [*stem.parameters()])))
    torch.testing.assert_close(*sides)


@pytest.mark.parametrize("blocks", [False, True])
def test_a_gpu_folds_windows_and_sees_the_same(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [video_encoder.folds_windows(torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
    fixed = gather_blocks(Sizes(2, T, side=SIZE), Draw()).fixed
    clips = BlockClips(fixed["blocks_BTE"], fixed["frame_BT"], fixed["map_B4"], BlockFormat(*fixed["form"]), SIZE)
    video = clips if blocks else frames_of(clips)
    encoder = VideoEncoder(ModelConfig(width=32, stem_width=16)).eval()
    keep = torch.tensor([[0, T // 2], [1, T - 1]])
    plain = encoder(video, keep)
    monkeypatch.setattr(video_encoder, "folds_windows", lambda _: True)
    torch.testing.assert_close(encoder(video, keep), plain, rtol=1e-4, atol=1e-4)


def test_both_ways_of_encoding_give_the_same_gradients() -> None:
    video, joints, masks = inputs()
    gradients = []
    torch.manual_seed(0)
    model = SVData2Vec(student_config(), 17).eval()
    weight_BTD = torch.randn(3, T, MODEL.width)
    for model.all_frames in (False, True):
        model.zero_grad()
        (model(video, joints, masks).prediction_NTD * weight_BTD).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_loss_reaches_every_parameter_of_the_student_and_none_of_the_teacher() -> None:
    config = student_config()
    model = SVData2Vec(config, 17)
    teacher = Teacher(model.encoder.blocks)
    output = forward(model, teacher, *inputs(), config)
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert output.loss.item() > 0 and output.target_std.item() > 0


def test_loss_reads_scored_positions_only() -> None:
    config = student_config()
    model = SVData2Vec(config, 17).eval()
    teacher = Teacher(model.encoder.blocks)
    video, joints, masks = inputs()
    with torch.no_grad():
        output = model(video, joints, masks)
        target_BTD = teacher(output.teacher_tokens_BTD, config.target)
        squared_BTD = (output.prediction_NTD - target_BTD) ** 2
        expected = squared_BTD[masks.scored_NT].mean()
        torch.testing.assert_close(forward(model, teacher, video, joints, masks, config).loss, expected)


def test_hidden_skeletons_do_not_influence_the_prediction() -> None:
    model = SVData2Vec(student_config(), 17).eval()
    video, joints, masks = inputs(1)
    hidden = masks.scored_NT[0].nonzero().flatten()
    with torch.no_grad():
        before = model(video, joints, masks).prediction_NTD
        joints[:, :, hidden] += 5.0
        after = model(video, joints, masks).prediction_NTD
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_skeleton_embedding_orders_features_by_person_coordinate_joint() -> None:
    embed = SkeletonEmbedding(persons=2, joints=3, coordinates=2, width=4)
    joints_BMTVC = torch.randn(5, 2, T, 3, 2)
    convolution = torch.nn.Conv2d(4, 4, (1, 3))
    convolution.weight.data = embed.proj.weight.data.view(4, 4, 1, 3)
    convolution.bias.data = embed.proj.bias.data  # type: ignore[union-attr]
    planes_BCTV = joints_BMTVC.permute(0, 1, 4, 2, 3).flatten(1, 2)
    expected_BTD = convolution(planes_BCTV)[..., 0].transpose(1, 2)
    torch.testing.assert_close(embed(joints_BMTVC), expected_BTD)


def test_motion_is_from_the_frame_before_to_the_frame_after() -> None:
    joints_BMTVC = torch.tensor([1.0, 2.0, 4.0, 0.0, 7.0, 8.0]).view(1, 1, 6, 1, 1)
    assert motion_of(joints_BMTVC).flatten().tolist() == [1.0, 3.0, 0.0, 3.0, 0.0, 1.0], "0 where it is missing in either"
    one = joints_BMTVC[:, :, :1]
    assert motion_of(one).tolist() == [[[[[0.0]]]]], "a clip of one frame has none"
    edge = torch.tensor([[0.0, 5.0], [2.0, 5.0], [3.0, 7.0]])[None, None, :, None]
    assert motion_of(edge).squeeze().tolist() == [[2.0, 0.0], [3.0, 2.0], [1.0, 2.0]], "at the crop's edge, and there"


def test_skeleton_tokens_tell_motion_if_asked_to() -> None:
    """Two clips with the same pose in the frame looked at; those tokens differ by the map of their motion alone."""
    plain, moving = (SkeletonEmbedding(persons=2, joints=3, coordinates=2, width=4, motion=gain) for gain in (0.0, 2.0))
    moving.load_state_dict(plain.state_dict(), strict=False)
    assert not hasattr(plain, "motion_proj") and moving.motion_proj.bias is None
    joints_BMTVC = torch.rand(5, 2, 3, 3, 2) + 1
    other_BMTVC = joints_BMTVC.clone()
    other_BMTVC[:, :, 2] += 0.5
    assert torch.equal(plain(joints_BMTVC)[:, 1], plain(other_BMTVC)[:, 1])
    moved_BD = moving(other_BMTVC)[:, 1] - moving(joints_BMTVC)[:, 1]
    expected_D = moving.motion_proj(torch.full((1, 12), 2.0 * 0.5))[0]
    torch.testing.assert_close(moved_BD, expected_D.expand(5, -1))
    still_BMTVC = joints_BMTVC[:, :, :1].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(moving(still_BMTVC), plain(still_BMTVC))


def test_coordinates_keep_their_fractions_of_a_pixel_under_autocast() -> None:
    """bfloat16 has eight bits, so a joint at 200.4 of 224 pixels would be at 200."""
    embed = SkeletonEmbedding(persons=1, joints=17, coordinates=2, width=8, motion=2.0)
    joints_BMTVC = 224 * torch.rand(2, 1, 5, 17, 2)
    with torch.autocast("cpu", torch.bfloat16):
        tokens_BTD = embed(joints_BMTVC)
    torch.testing.assert_close(tokens_BTD, embed(joints_BMTVC), rtol=0, atol=0)


def test_wrong_number_of_joints_is_refused() -> None:
    embed = SkeletonEmbedding(persons=2, joints=17, coordinates=2, width=4)
    with pytest.raises(ValueError, match=r"\(2, 15, 2\), the model expects \(2, 17, 2\)"):
        embed(torch.zeros(1, 2, T, 15, 2))


@pytest.mark.parametrize("modality", ["rgb", "skeleton", "both"])
def test_encoder_holds_only_what_its_modality_needs(modality: str) -> None:
    encoder = Encoder(MODEL, T, 17, modality=modality)
    video, joints, _ = inputs()
    features = encoder(video if modality != "skeleton" else None, joints if modality != "rgb" else None)
    assert features.shape == (3, T, MODEL.width)
    assert hasattr(encoder, "video_encoder") == (modality != "skeleton")
    assert hasattr(encoder, "skeleton_embed") == (modality != "rgb")


def test_encoder_without_input_is_refused() -> None:
    with pytest.raises(ValueError, match="given neither"):
        Encoder(MODEL, T, 17)(None, None)


def test_teacher_starts_as_the_student_and_stays_in_evaluation_mode() -> None:
    model = SVData2Vec(student_config(), 17)
    teacher = Teacher(model.encoder.blocks).train()
    assert not teacher.training and not any(module.training for module in teacher.modules())
    for mine, theirs in zip(teacher.parameters(), model.encoder.blocks.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_drop_path_keeps_the_mean_and_drops_whole_clips() -> None:
    drop = DropPath(0.25).train()
    x_BND = torch.ones(4000, 2, 3)
    y_BND = drop(x_BND)
    values = y_BND.unique()
    assert torch.allclose(values, torch.tensor([0.0, 1 / 0.75]))
    assert (y_BND == y_BND[:, :1, :1]).all()
    assert y_BND.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop.eval()(x_BND) is x_BND


@pytest.mark.parametrize(("depth", "rates"), [(1, [0.0]), (3, [0.0, 0.25, 0.5])])
def test_stochastic_depth_is_linear_in_depth(depth: int, rates: list[float]) -> None:
    head = HeadConfig(hidden=16, dropout=0.1, drop_path=0.5)
    made = Classifier(FinetuneConfig(model=replace(MODEL, depth=depth), head=head, modality="skeleton"), 17, 5)
    assert [block.drop_path.rate for block in made.encoder.blocks] == rates and made.head.dropout.p == 0.1


def test_dropout_of_a_head_falls_on_each_frame_by_itself() -> None:
    head, means = Head(500, hidden=4, num_classes=2, dropout=0.3), []
    head.fc1.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0]))
    head(torch.ones(3, 4, 500))
    torch.testing.assert_close(means[0].unique(), torch.arange(5) / 4 / 0.7)


@pytest.mark.parametrize("teacher_input", ["rgb", "both"])
def test_a_video_target_needs_all_frames(teacher_input: Literal["rgb", "both"]) -> None:
    with pytest.raises(UserError, match=f"{teacher_input} reads the video tokens of all frames; set --encode all_frames"):
        PretrainConfig(target=TargetConfig(teacher_input=teacher_input))
    target = TargetConfig(top_layers=2, teacher_input=teacher_input)
    model = SVData2Vec(student_config(encode="all_frames", target=target), 17).eval()
    video, joints, masks = inputs()
    tokens = model.encoder.video_encoder(video)
    if teacher_input == "both":
        tokens = (tokens + model.encoder.skeleton_embed(joints)) / 2
    expected = tokens + model.encoder.temporal_embed
    torch.testing.assert_close(model(video, joints, masks).teacher_tokens_BTD, expected.detach())


def test_spread_is_zero_when_all_clips_look_the_same() -> None:
    same = torch.randn(1, T, 4).expand(5, -1, -1)
    assert spread(same).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(500, T, 4)).item() == pytest.approx(1, abs=0.05)


def test_bfloat16_autocast_stays_near_float32() -> None:
    config = student_config()
    model = SVData2Vec(config, 17).eval()
    teacher = Teacher(model.encoder.blocks)
    video, joints, masks = inputs()
    exact = forward(model, teacher, video, joints, masks, config).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = forward(model, teacher, video, joints, masks, config).loss.item()
    assert rounded == pytest.approx(exact, rel=0.03)


def test_metrics_against_a_count_by_hand() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    metrics = measure(scores, np.array([0, 1, 1, 0, 1]))  # the last is a tie, which counts as class 0
    assert (metrics.count, metrics.top1, metrics.top5) == (5, 0.4, 1.0)
    assert metrics.per_class == [0.5, 1 / 3, None] and metrics.mean_class == pytest.approx(5 / 12)
    assert metrics.confusion == [[1, 1, 0], [2, 1, 0], [0, 0, 0]]
    falling = measure(np.tile(np.arange(7.0, 0, -1), (7, 1)), np.arange(7))
    assert (falling.top1, falling.top5) == (1 / 7, 5 / 7)


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_prelu_equals_pytorchs(dtype: torch.dtype, memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    x_FCHW = torch.randn(3, 5, 4, 7, dtype=dtype)
    x_FCHW[0, :, 0, :4] = torch.tensor([0.0, -0.0, 1e30, -1e30])
    grad_FCHW = torch.randn_like(x_FCHW).to(memory_format=memory)
    results = []
    for module in (PReLU(5), nn.PReLU(5)):
        module.to(torch.promote_types(dtype, torch.float32))
        module.weight.data = torch.tensor([0.25, -1.5, 0.0, 1.0, 3.0]).to(module.weight.dtype)
        given_FCHW = x_FCHW.to(memory_format=memory, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out_FCHW = module(given_FCHW)
        out_FCHW.backward(grad_FCHW)
        results.append((out_FCHW, given_FCHW.grad, module.weight.grad))
    (out, grad, slope), (wanted_out, wanted_grad, wanted_slope) = results
    torch.testing.assert_close(out, wanted_out, rtol=0, atol=0)
    torch.testing.assert_close(grad, wanted_grad, rtol=0, atol=0)
    assert out.stride() == wanted_out.stride()
    torch.testing.assert_close(slope, wanted_slope, rtol=0.02 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_a_stem_that_begins_with_change_sees_no_still_picture() -> None:
    frame_CHW = torch.randn(3, 16, 16)
    still = frame_CHW[None, :, None].expand(1, 3, 9, 16, 16)
    largest = []
    for config in (ModelConfig(width=32, stem_width=16), ModelConfig(width=32, stem_width=16, stem_init="change")):
        out_BCTHW = VideoEncoder(config).stem.conv(still)
        largest.append(out_BCTHW[:, :, 2:-2].abs().max().item())  # windows inside the clip
    assert largest[1] < 1e-5 < 0.1 < largest[0]


def test_stem_weights_come_from_one_place() -> None:
    with pytest.raises(UserError, match=r"model\.stem_init is change, but model\.init brings weights"):
        ModelConfig(init=Path("resnet18.safetensors"), stem_init="change")


def test_class_scores_are_not_rounded_to_bfloat16() -> None:
    """Close scores would be equal, and count for the class with the lower number."""
    config = FinetuneConfig(data=DataConfig(num_frames=T, size=32), model=student_config().model)
    classifier = Classifier(config, 0, 120).eval()
    video = torch.randint(0, 256, (2, T, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = classifier(video, None)
        features = classifier.encoder(video, None)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, classifier.head(features.float()), rtol=1e-5, atol=1e-6)
    assert not torch.equal(logits, logits.bfloat16().float())
