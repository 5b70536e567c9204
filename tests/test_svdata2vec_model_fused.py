"""`model.fused_blocks`: the same network with fewer passes over memory; parameters, results and statistics stay the same."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MODEL, student_config
from torch import Tensor, nn

from svdata2vec.config.schema import DataConfig, FinetuneConfig, HeadConfig, MaskConfig, TargetConfig
from svdata2vec.evaluation.export import load_rgb_classifier
from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.functional import layer_targets
from svdata2vec.model import block_ops
from svdata2vec.model.block_ops import BlockOps, FusedBlockOps
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.execution import compile_parts
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm, merged_statistics, own_statistics
from svdata2vec.model.teacher import Teacher
from svdata2vec.model.transformer import Block
from svdata2vec.model.video_encoder import BasicBlock
from svdata2vec.runs.card import model_card
from svdata2vec.runs.published import publish
from svdata2vec.training.pretrain import forward

T, SIZE = 6, 32
FUSED = dataclasses.replace(MODEL, fused_blocks=True)


def step(
    fused: bool, impl: Impl = "auto", *, all_frames: bool = False, training: bool = True, compiled: bool = False,
    checkpointed: bool = False, synchronised: bool = False,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and buffers of one step of the same student on the same clips."""
    torch.manual_seed(0)
    changes = {"fused_blocks": fused, "impl": impl, "checkpoint_activations": checkpointed}
    config = student_config(dataclasses.replace(MODEL, **changes), encode="all_frames" if all_frames else "kept_frames")
    model = SVData2Vec(config, 17).train(training)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms, biases and slopes that differ from channel to channel
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    teacher = Teacher(model.encoder.blocks)
    if synchronised:
        convert_sync_batchnorm(model, torch.device("cpu"))
    if compiled:  # a few, as each takes seconds
        for part in (model.encoder.video_encoder.stages[1], model.encoder.blocks[:1]):
            compile_parts(part, backend="aot_eager")
    video = torch.randint(0, 256, (3, T, SIZE, SIZE, 3), dtype=torch.uint8)
    masks = draw_masks(["a", "b", "c"], T, MaskConfig(0.5, 0.5), seed=1, epoch=0)
    loss = forward(model, teacher, video, SIZE * torch.rand(3, 2, T, 17, 2), masks, config).loss
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), grads, dict(model.named_buffers())


def assert_same_step(got: tuple[Tensor, dict[str, Tensor], dict[str, Tensor]], want: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[2], want[2], rtol=1e-5, atol=1e-6)
    assert got[1].keys() == want[1].keys() and len(got[1]) > 80  # type: ignore[attr-defined]
    for name, grad in got[1].items():
        expected = want[1][name]
        scale = expected.abs().max().item()
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_block_is_checkpointed(checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run again for the gradient: the decoder's, too, which takes most memory where clips have several masks."""
    runs: dict[nn.Module, int] = {}
    work = Block.forward

    def counted(block: Block, x: Tensor) -> Any:
        runs[block] = runs.get(block, 0) + 1
        return work(block, x)

    monkeypatch.setattr(Block, "forward", counted)
    step(False, checkpointed=checkpointed)
    assert set(runs.values()) == {1 + checkpointed}, "the teacher's blocks are not called"
    assert len(runs) == MODEL.depth + MODEL.decoder_depth


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("all_frames", [False, True], ids=["kept frames", "all frames"])
@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_loss_gradients_and_running_statistics_stay(training: bool, all_frames: bool, impl: Impl) -> None:
    plain = step(False, impl, all_frames=all_frames, training=training)
    assert_same_step(step(True, impl, all_frames=all_frames, training=training), plain)
    counted = plain[2]["encoder.video_encoder.stem.bn.num_batches_tracked"].item()
    assert counted == int(training)


@pytest.mark.slow
def test_compiled_blocks_stay_the_same() -> None:
    assert_same_step(step(True, compiled=True), step(False))


@pytest.mark.parametrize("all_frames", [False, True], ids=["kept frames", "all frames"])
@pytest.mark.parametrize("way", ["plain", "fused", "compiled", "synchronised"])
def test_checkpointed_parts_give_the_very_step(way: str, all_frames: bool, tmp_path: Path) -> None:
    """Loss, gradients and BatchNorm's statistics, bit for bit: what is computed again moves the statistics only once. Compiled,
    it is the eager step as well."""
    ways = {"all_frames": all_frames, "compiled": way == "compiled", "synchronised": way == "synchronised"}
    plain = step(False, all_frames=all_frames) if way == "compiled" else None
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        got, want = (step(way == "fused", **ways, checkpointed=checkpointed) for checkpointed in (True, False))
    finally:
        torch.distributed.destroy_process_group()
    assert {int(count) for name, count in got[2].items() if name.endswith("num_batches_tracked")} == {1}
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    if plain is not None:
        assert_same_step(want, plain)


def test_each_step_is_one_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the end of the stem, two in each of eight blocks of the trunk, one per MLP, two norms per block."""
    counts: dict[str, int] = {}
    for name in ("add_layer_norm", "bias_gelu", "batch_norm_prelu", "batch_norm_prelu_pool"):
        real = getattr(block_ops, name)

        def counted(*arguments: object, real: object = real, name: str = name, **options: object) -> object:
            counts[name] = counts.get(name, 0) + 1
            return real(*arguments, **options)  # type: ignore[operator]

        monkeypatch.setattr(block_ops, name, counted)
    step(False)
    assert counts == {}
    step(True)
    blocks = 2 * MODEL.depth + MODEL.decoder_depth  # student, teacher, decoder
    assert counts == {
        "add_layer_norm": 2 * blocks, "bias_gelu": blocks, "batch_norm_prelu": 16, "batch_norm_prelu_pool": 1
    }


def test_parameters_and_buffers_keep_their_names() -> None:
    plain, fused = SVData2Vec(student_config(), 17), SVData2Vec(student_config(FUSED), 17)
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.load_state_dict(plain.state_dict())
    assert len(list(fused.modules())) == len(list(plain.modules()))


def test_bfloat16_autocast_stays_near_float32() -> None:
    exact = step(False, training=False)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = step(True, training=False)[0].item()
    assert rounded == pytest.approx(exact, rel=0.03)


def test_a_synchronised_batch_norm_takes_the_plain_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its statistics are those of all processes, which one kernel on one GPU can't know."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = BasicBlock(16, 32, 2, BlockOps())
        fused = copy.deepcopy(plain)
        fused.ops = FusedBlockOps("auto")
        x_FCHW = torch.randn(4, 16, 6, 6)
        want = plain(x_FCHW)
        torch.testing.assert_close(fused(x_FCHW), want, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(block_ops, "batch_norm_prelu", None)
        with pytest.raises(TypeError):
            fused(x_FCHW)
        synchronised = convert_sync_batchnorm(copy.deepcopy(fused), torch.device("cpu"))
        torch.testing.assert_close(synchronised(x_FCHW), want, rtol=1e-4, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_statistics_of_several_batches_are_merged_without_loss(far: float) -> None:
    """Against float64 over all of them at once, the gradient included; batches of different sizes and means."""
    parts = [torch.randn(count, 3, 5, 5) + far + shift for count, shift in ((2, 0.0), (3, 0.5), (1, -2.0))]
    parts = [part.requires_grad_() for part in parts]
    mean, var, total = merged_statistics(torch.stack([own_statistics(part) for part in parts]), 3)
    whole = torch.cat([part.detach().double() for part in parts]).requires_grad_()
    want_var, want_mean = torch.var_mean(whole, (0, 2, 3), correction=0)
    assert total == 6 * 25
    torch.testing.assert_close(mean.double(), want_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), want_var, rtol=1e-4, atol=0)
    weight = torch.randn(3)
    (weight * (mean + var)).sum().backward()
    (weight * (want_mean + want_var)).sum().backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts]).double(), whole.grad, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(("device", "kind"), [("cpu", SyncBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_synchronised_batch_norms_share_parameters_buffers_and_names(device: str, kind: type[nn.Module]) -> None:
    """PyTorch's own on a GPU. (It can be made, though not run, without one.)"""
    model = nn.Sequential(BasicBlock(16, 32, 2, FusedBlockOps("auto")), nn.Flatten(), nn.BatchNorm1d(32)).eval()
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = convert_sync_batchnorm(model, torch.device(device))
    after = {**dict(found.named_parameters()), **dict(found.named_buffers())}
    assert list(after) == list(before) and all(after[name] is tensor for name, tensor in before.items())
    norms = [module for module in found.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == 4 * [kind] and not any(norm.training for norm in norms)


def test_a_cumulative_average_of_statistics_takes_the_plain_way() -> None:
    norm, prelu = nn.BatchNorm2d(3, momentum=None), nn.PReLU(3)
    twin = copy.deepcopy(norm)
    for _ in range(2):
        x_FCHW = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(FusedBlockOps("auto").norm_prelu(norm, prelu, x_FCHW), prelu(twin(x_FCHW)))
    torch.testing.assert_close(dict(norm.named_buffers()), dict(twin.named_buffers()))


def test_an_exported_classifier_holds_no_fused_step(tmp_path: Path) -> None:
    config = FinetuneConfig(data=DataConfig(num_frames=T, size=SIZE), model=FUSED, head=HeadConfig(hidden=16), modality="rgb")
    model = Classifier(config, 17, 2).eval()
    assert any(isinstance(getattr(module, "ops", None), FusedBlockOps) for module in model.modules())
    publish(tmp_path, model.state_dict(), model_card("finetune", config, num_joints=17, classes=["sit", "stand"]))
    classifier, _, _ = load_rgb_classifier(tmp_path)
    assert not any(isinstance(getattr(module, "ops", None), FusedBlockOps) for module in classifier.modules())
    video = torch.randint(0, 256, (2, T, SIZE, SIZE, 3), dtype=torch.uint8)
    torch.testing.assert_close(classifier(video), model(video, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("feed_forward", [False, True], ids=["blocks", "MLPs"])
@pytest.mark.parametrize("top_layers", [1, 2, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_targets_are_those_of_stacked_layers(fused: bool, top_layers: int, feed_forward: bool, autocast: bool) -> None:
    """The teacher's blocks write into one tensor; not a bit differs from gathering copies of their results."""
    config = dataclasses.replace(MODEL, depth=3, fused_blocks=fused)
    teacher = Teacher(SVData2Vec(student_config(config), 17).encoder.blocks)
    given_BTD = torch.randn(3, T, MODEL.width)
    target = TargetConfig(top_layers=top_layers, feed_forward=feed_forward)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = teacher(given_BTD, target)
        tokens_BTD, layers = given_BTD, []
        for block in teacher.blocks:
            tokens_BTD, mlp_BTD = block.forward_with_mlp(tokens_BTD)  # type: ignore[operator]
            layers.append(mlp_BTD if feed_forward else tokens_BTD)
        want = layer_targets(torch.stack(layers[-top_layers:]))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_compiled_teacher_gives_the_same_targets() -> None:
    """In one graph, as the benchmark of the whole transformer compiles it: writing into one tensor breaks none."""
    teacher = Teacher(SVData2Vec(student_config(FUSED), 17).encoder.blocks)
    tokens_BTD, target = torch.randn(3, T, MODEL.width), TargetConfig(top_layers=2)
    compiled = torch.compile(teacher, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens_BTD, target, "torch"), teacher(tokens_BTD, target), rtol=1e-5, atol=1e-5)
