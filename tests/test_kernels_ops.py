"""The ops as PyTorch sees them: registration, `torch.compile`, refused second derivatives, refused input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import kernel_cases as cases
import pytest
import torch
from kernel_compare import LAYOUTS, called_ops, evaluate, recorded_ops
from kernel_inputs import CALLS, Draw, Sizes
from kernel_step import step_inputs, step_loss
from torch import Tensor
from torch.profiler import profile

from svdata2vec.config.schema import LARGEST_SIZE
from svdata2vec.kernels import batch_norm_prelu_pool, dispatch, launch
from svdata2vec.kernels import functional as K
from svdata2vec.kernels.add_layer_norm import launch_add_layer_norm
from svdata2vec.kernels.attention import launch_attention
from svdata2vec.kernels.dispatch import INTERPRETED, Impl
from svdata2vec.kernels.gather_blocks import launch_gather_blocks
from svdata2vec.kernels.gather_frames import launch_gather_frames
from svdata2vec.kernels.layer_targets import launch_layer_targets

B, T, KEPT, D = 2, 5, 3, 4
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SMALL = Sizes(B, T, KEPT, D, L=3, H=2, hidden=6, side=6, maps=(B, D, 3, 2))
WITHOUT_GRADIENT = ("gather_frames", "gather_blocks", "layer_targets")
WITHOUT_COMPILATION = ("test_schema", "test_autograd_registration", "test_faketensor")
OPCHECK = (*WITHOUT_COMPILATION, "test_aot_dispatch_dynamic")
differentiable = pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(WITHOUT_GRADIENT)])


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def keep() -> Tensor:
    return torch.tensor([[0, 1, 4], [1, 2, 3]])


def hidden() -> Tensor:
    return torch.tensor([[True, False, True], [False, False, True]])


def scored() -> Tensor:
    return torch.arange(B * T).view(B, T) % 3 != 0


def video() -> Tensor:
    return torch.randint(0, 256, (B, T, 4, 6, 3), dtype=torch.uint8)


def maps(dtype: torch.dtype = torch.float32) -> Tensor:
    return cases.channels_last(torch.randn(B, D, 3, 2, dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    """Of an op and its backward op: schema, autograd registration, fake tensors (shape, stride, dtype) and compilation with
    dynamic shapes, which widths of blocks and evaluation do not touch."""
    call = CALLS[name](SMALL, Draw())
    ops = called_ops(call)
    assert [op.name() for op, _ in ops] == [f"svdata2vec::{call.op}{end}" for end in ("", "_backward")[: len(ops)]]
    assert len(ops) == 1 + (not name.startswith(WITHOUT_GRADIENT))
    tests = WITHOUT_COMPILATION if name.endswith((" bits", " in evaluation")) else OPCHECK
    for op, arguments in ops:
        outcome = torch.library.opcheck(op, tuple(arguments), test_utils=tests)
        assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck_of_bfloat16_in_transposed_memory(name: str) -> None:
    """What the compiler does with shapes does not depend on either."""
    for op, arguments in called_ops(CALLS[name](SMALL, Draw(torch.bfloat16)), LAYOUTS["transposed"]):
        outcome = torch.library.opcheck(op, tuple(arguments), test_utils=WITHOUT_COMPILATION)
        assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CALLS)
def test_the_direct_call_has_the_values_and_gradients_of_the_operator(name: str) -> None:
    """Recorded calls go through the operator, all others don't (see register.py)."""
    call = CALLS[name](SMALL, Draw(torch.bfloat16))
    with profile() as profiled:
        direct = evaluate(call, "auto")
    assert not [event.key for event in profiled.key_averages() if event.key.startswith("svdata2vec::")]
    with recorded_ops() as recorded:
        through_operator = evaluate(call, "auto")
    assert recorded
    torch.testing.assert_close(direct, through_operator, rtol=0, atol=0)


def test_a_batch_of_gradients_is_differentiated_one_by_one() -> None:
    qkv, grads = leaf(B, T, 3 * D), torch.randn(2, B, T, D)
    out = K.attention(qkv, 2)
    got = torch.autograd.grad(out, qkv, grads, is_grads_batched=True, retain_graph=True)[0]
    want = [torch.autograd.grad(out, qkv, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fuse_tokens", "add_layer_norm", "batch_norm_prelu"])
def test_opcheck_of_terms_in_two_dtypes(name: str) -> None:
    call = CALLS[name](SMALL, Draw(torch.bfloat16))
    first = next(iter(call.inputs))
    call.inputs[first] = call.inputs[first].float()
    if name == "add_layer_norm":
        call.fixed["dtype"] = torch.bfloat16
    for op, arguments in called_ops(call):
        outcome = torch.library.opcheck(op, tuple(arguments), test_utils=WITHOUT_COMPILATION)
        assert set(outcome.values()) == {"SUCCESS"}


def test_every_public_function_is_in_the_table() -> None:
    assert {CALLS[name](SMALL, Draw()).op for name in CALLS} == set(K.__all__)


@pytest.mark.parametrize(
    ("impl", "backend"), [pytest.param("auto", "inductor", marks=pytest.mark.inductor), ("torch", "aot_eager")]
)
def test_a_step_compiles_without_a_graph_break(impl: Any, backend: str) -> None:
    inputs = step_inputs("cpu")
    leaves = list(inputs["leaves"].values())
    want = step_loss(inputs, impl)
    got = torch.compile(step_loss, fullgraph=True, backend=backend)(inputs, impl)
    torch.testing.assert_close(got, want)
    got_grads, want_grads = torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves)
    torch.testing.assert_close(got_grads, want_grads, rtol=1e-4, atol=1e-5)


def test_the_op_and_the_plain_reference_agree_in_a_step() -> None:
    inputs = step_inputs("cpu")
    losses = [step_loss(inputs, impl) for impl in ("auto", "torch")]
    torch.testing.assert_close(*losses)
    grads = [torch.autograd.grad(loss, list(inputs["leaves"].values())) for loss in losses]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def normalise(x: Tensor, **changes: Any) -> Tensor:
    """`batch_norm_prelu` of a map with whatever a test wants different."""
    parameters = dict(zip(("weight_C", "bias_C", "slope_C"), (leaf(D), leaf(D), leaf(D)), strict=True))
    running = {"running_mean_C": torch.zeros(D), "running_variance_C": torch.ones(D)}
    return K.batch_norm_prelu(**{"x_FCHW": x, **parameters, **running, "training": True, **changes})


@differentiable
def test_a_second_derivative_is_refused_by_the_op_and_given_by_the_reference(name: str) -> None:
    call = CALLS[name](SMALL, Draw())

    def square_of_gradient(impl: Any) -> tuple[Tensor, Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in call.inputs.values()]
        value = torch.stack([value.square().sum() for value in call(*leaves, impl=impl)]).sum()
        (grad,) = torch.autograd.grad(value, leaves[0], create_graph=True)
        return leaves[0], grad.square().sum()

    with pytest.raises(RuntimeError, match=f"{call.op} has no second derivative; call it with impl='torch'"):
        square_of_gradient("auto")[1].backward()
    x, squared = square_of_gradient("torch")
    (second,) = torch.autograd.grad(squared, x)
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_autocast_does_not_reach_into_the_ops(impl: Any) -> None:
    """A result has the precision of its input, and its gradient too, whatever region the call stands in."""
    qkv, tokens = leaf(B, T, 3 * D), leaf(B, KEPT, D)

    def run(enabled: bool) -> list[Tensor]:
        skeleton, time = torch.ones(B, T, D, requires_grad=True), torch.ones(T, D, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = K.attention(qkv, 2, impl=impl)
            student = K.fuse_tokens(tokens, skeleton, keep(), hidden(), time, impl=impl)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled and impl == "auto"):  # else PyTorch's gradients obey it
            loss = out.square().sum() + student.square().sum()
            return [out, student, *torch.autograd.grad(loss, [qkv, tokens, skeleton, time])]

    torch.testing.assert_close(run(enabled=True), run(enabled=False), rtol=1e-6, atol=1e-6)


def fuse(**changes: Any) -> Tensor:
    tensors: dict[str, Any] = {
        "video_BKD": leaf(B, KEPT, D),
        "skeleton_BTD": leaf(B, T, D),
        "keep_BK": keep(),
        "skeleton_hidden_BK": hidden(),
        "temporal_TD": leaf(T, D),
    }
    return K.fuse_tokens(**{**tensors, **changes})


def blocks(**changes: Any) -> Tensor:
    return K.gather_blocks(**{**CALLS["gather_blocks"](SMALL, Draw()).fixed, **changes})


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "impl": (
        lambda: K.attention(leaf(1, 2, 6), 1, impl="cuda"),  # type: ignore[arg-type]
        r"attention: impl is 'cuda'; expected 'auto', 'triton'",
    ),
    "triton on the CPU": (
        lambda: K.attention(leaf(1, 2, 6), 1, impl="triton"),
        r"needs tensors on a GPU but got cpu; use impl='auto', or start the process with TRITON_INTERPRET=1",
    ),
    "video shape": (
        lambda: K.gather_frames(video()[..., :2], keep()),
        r"video_BTHWC has shape \(2, 5, 4, 6, 2\); expected \(B, T, H, W, C=3\)",
    ),
    "video dtype": (
        lambda: K.gather_frames(video().float(), keep()),
        r"video_BTHWC has dtype torch.float32; expected torch.uint8",
    ),
    "video layout": (
        lambda: K.gather_frames(video().transpose(2, 3), keep()),
        r"video_BTHWC has strides .* each frame must be contiguous \(H, W, C\)",
    ),
    "window": (lambda: K.gather_frames(video(), keep(), window=4), r"window is 4; expected an odd number of frames"),
    "channels": (lambda: K.gather_frames(video(), keep(), channels=14), r"channels is 14; .* 5 frames fills 15"),
    "std": (lambda: K.gather_frames(video(), keep(), std=(1.0, 0.0, 1.0)), r"one value per colour, std above 0"),
    "result dtype": (lambda: K.gather_frames(video(), keep(), dtype=torch.uint8), r"dtype is torch.uint8; expected a float"),
    "form": (lambda: blocks(form=(48, 3, 2)), r"form is \(48, 3, 2\); expected a side that is a multiple of 32"),
    "index bits": (lambda: blocks(form=(32, 4, 2)), r"form is \(32, 4, 2\); .* twice 2 or 3 bits"),
    "bytes of a frame": (
        lambda: blocks(form=(64, 3, 2)),
        r"blocks_BTE has shape \(2, 5, 704\) .* a frame of form \(64, 3, 2\) is 2816 neighbouring bytes",
    ),
    "blocks at an odd address": (
        lambda: blocks(blocks_BTE=torch.zeros(B * T * 704 + 1, dtype=torch.uint8)[1:].view(B, T, 704)),
        r"blocks_BTE has shape .* and offset 1 in its storage; .* at an even address",
    ),
    "stored frames": (
        lambda: blocks(blocks_BTE=torch.zeros(B, T, 704)), r"blocks_BTE has dtype torch.float32; expected torch.uint8"
    ),
    "frames of other clips": (
        lambda: blocks(frame_BT=torch.zeros(1, T, dtype=torch.int64)), r"frame_BT has shape \(1, 5\); expected \(B=2, T=5\)"
    ),
    "a frame that is not stored": (
        lambda: blocks(frame_BT=torch.full((B, T), 5)), r"frame_BT holds 5 to 5; a clip has stored frames 0 to 4"
    ),
    "maps": (lambda: blocks(map_B4=torch.zeros(B, 4)), r"map_B4 has dtype torch.float32; expected torch.int64"),
    "blocks' dtype": (lambda: blocks(dtype=torch.int8), r"dtype is torch.int8; expected a floating point dtype or uint8"),
    "keep dtype": (lambda: fuse(keep_BK=keep().int()), r"keep_BK has dtype torch.int32; expected torch.int64"),
    "keep shape": (lambda: fuse(keep_BK=keep()[:, :2]), r"keep_BK has shape \(2, 2\); expected \(B=2, K=3\)"),
    "keep range": (lambda: fuse(keep_BK=keep() + 1), r"keep_BK holds frames 1 to 5; the clip has frames 0 to 4"),
    "keep order": (lambda: fuse(keep_BK=keep().flip(1)), r"keep_BK must be strictly increasing along each row"),
    "hidden dtype": (lambda: fuse(skeleton_hidden_BK=hidden().int()), r"skeleton_hidden_BK has dtype torch.int32"),
    "temporal": (lambda: fuse(temporal_TD=leaf(T + 1, D)), r"temporal_TD has shape \(6, 4\); expected \(T=5, D=4\)"),
    "device": (
        lambda: fuse(temporal_TD=torch.empty(T, D, device="meta")),
        r"temporal_TD is on meta but video_BKD is on cpu; move one of them",
    ),
    "mask token": (
        lambda: K.restore_tokens(leaf(B, KEPT, D), leaf(1, D), keep(), leaf(T, D)),
        r"mask_token_D has shape \(1, 4\); expected \(D=4\)",
    ),
    "heads": (lambda: K.attention(leaf(1, 2, 9), 2), r"9 wide, which isn't 3 \* D with D a multiple of num_heads=2"),
    "lengths": (
        lambda: K.attention(leaf(1, 2, 6), 1, torch.tensor([2.0])),
        r"lengths_B has dtype torch.float32; expected torch.int32 or torch.int64",
    ),
    "no layer": (lambda: K.layer_targets(torch.empty(0, 1, 2, 3)), r"layers_LBTD holds no layer"),
    "normalisation": (
        lambda: K.layer_targets(torch.randn(1, 1, 2, 3), normalise_layer="group"),  # type: ignore[arg-type]
        r"normalise_layer is 'group'; expected one of instance, layer, batch, none",
    ),
    "normalisation of the average": (
        lambda: K.layer_targets(torch.randn(1, 1, 2, 3), normalise_average="batch"),  # type: ignore[arg-type]
        r"normalise_average is 'batch'; expected one of instance, layer, none",
    ),
    "normalisation without a kernel": (
        lambda: K.layer_targets(torch.randn(1, 1, 2, 3), normalise_layer="batch", impl="triton"),
        r"no fused kernel for normalise_layer='batch' with normalise_average='none'; use impl='auto' or 'torch'",
    ),
    "target": (
        lambda: K.masked_mse(leaf(B, T, D), leaf(B, T), scored()),
        r"target_BTD has shape \(2, 5\); expected \(B=2, T=5, D=4\)",
    ),
    "scored": (lambda: K.masked_mse(leaf(B, T, D), leaf(B, T, D), scored().float()), r"scored_BT has dtype torch.float32"),
    "branch": (
        lambda: K.add_layer_norm(leaf(B, T, D), leaf(B, T, D + 1), leaf(D), leaf(D)),
        r"branch_BND has shape \(2, 5, 5\); expected \(B=2, N=5, D=4\)",
    ),
    "norm's weight": (
        lambda: K.add_layer_norm(leaf(B, T, D), leaf(B, T, D), leaf(D).long(), leaf(D)),
        r"weight_D has dtype torch.int64; expected torch.float16 or",
    ),
    "norm's device": (
        lambda: K.add_layer_norm(leaf(B, T, D), leaf(B, T, D), leaf(D), torch.empty(D, device="meta")),
        r"bias_D is on meta but x_BND is on cpu; move one of them",
    ),
    "no channel": (lambda: K.add_layer_norm(leaf(1, 1, 0), leaf(1, 1, 0), leaf(0), leaf(0)), r"x_BND has no channel"),
    "norm's dtype": (
        lambda: K.add_layer_norm(leaf(B, T, D), leaf(B, T, D), leaf(D), leaf(D), dtype=torch.int32),
        r"dtype is torch.int32; expected a floating point dtype",
    ),
    "MLP's bias": (lambda: K.bias_gelu(leaf(B, T, D), leaf(D + 1)), r"bias_H has shape \(5,\); expected \(H=4\)"),
    "MLP's product": (lambda: K.bias_gelu(leaf(B, D), leaf(D)), r"x_BNH has shape \(2, 4\); expected \(B, N, H\)"),
    "shortcut's shape": (
        lambda: normalise(maps(), shortcut_FCHW=maps()[:1]),
        r"shortcut_FCHW has shape \(1, 4, 3, 2\); expected \(F=2, C=4, H=3, W=2\)",
    ),
    "map's layout": (
        lambda: normalise(torch.randn(B, D, 3, 2)),
        r"x_FCHW has strides \(24, 6, 2, 1\); expected channels-last memory; call .contiguous\(memory_format",
    ),
    "shortcut's layout": (
        lambda: normalise(maps(), shortcut_FCHW=torch.randn(B, D, 3, 2)),
        r"shortcut_FCHW has strides .*; expected channels-last memory",
    ),
    "slope": (lambda: normalise(maps(), slope_C=leaf(1)), r"slope_C has shape \(1,\); expected \(C=4\)"),
    "statistics": (
        lambda: normalise(maps(), running_mean_C=torch.zeros(D, dtype=torch.int64)),
        r"running_mean_C has dtype torch.int64",
    ),
    "one value per channel": (
        lambda: normalise(maps()[:1, :, :1, :1]),
        r"x_FCHW has shape \(1, 4, 1, 1\); training needs at least two values per channel",
    ),
    # What only the Triton side demands is checked by the launchers, before anything is started.
    "too many tokens": (lambda: launch_attention(leaf(1, 129, 48), 1, 1.0, None), r"129 tokens and heads of 16; .* 128 tokens"),
    "too wide heads": (lambda: launch_attention(leaf(1, 5, 390), 1, 1.0, None), r"heads of 130; .* heads of up to 64"),
    "too wide": (
        lambda: launch_add_layer_norm(leaf(1, 1, 8193), leaf(1, 1, 8193), leaf(8193), leaf(8193), 1e-5, torch.float32),
        r"add_layer_norm: 8193 channels; the Triton kernel takes up to 8192; use impl='torch'",
    ),
    "too many frames": (lambda: launch_layer_targets(torch.randn(1, 1, 1025, 1), 1e-5), r"1025 frames; .* up to 1024"),
    "float64": (
        lambda: launch.launch(None, (1,), torch.zeros(1, dtype=torch.float64), num_warps=1),
        r"compute in float32; pass impl='torch' for float64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused(name: str) -> None:
    if name == "triton on the CPU" and INTERPRETED:
        return  # where it isn't wrong
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


TOO_LARGE: dict[str, Callable[[Impl], Tensor]] = {
    "129 tokens and heads of 16": lambda impl: K.attention(leaf(1, 129, 48), 1, impl=impl),
    "5 tokens and heads of 65": lambda impl: K.attention(leaf(1, 5, 390), 2, impl=impl),
    "1025 frames": lambda impl: K.layer_targets(leaf(1, 1, 1025, 1), impl=impl),
    "8193 channels": lambda impl: K.add_layer_norm(leaf(1, 1, 8193), None, leaf(8193), leaf(8193), impl=impl)[1],
    "24 values a frame": lambda impl: K.batch_norm_prelu_pool(
        maps(), leaf(D), leaf(D), leaf(D), torch.zeros(D), torch.ones(D), training=True, impl=impl
    ),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_inputs_too_large_for_a_kernel_run_the_reference_and_are_logged(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Triton would run: no setting that a CPU takes ends a run on a GPU. Who asks for Triton is told."""
    monkeypatch.setattr(batch_norm_prelu_pool, "MOST_VALUES", 23)
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    results = {}
    for impl in ("auto", "torch"):
        torch.manual_seed(0)
        with caplog.at_level("INFO", "svdata2vec.kernels"):
            results[impl] = TOO_LARGE[what](impl)
    assert torch.equal(results["auto"], results["torch"])
    assert any(f"PyTorch reference on cpu ({what}; the Triton kernel " in message for message in caplog.messages)
    with pytest.raises(ValueError, match=f"{what}; the Triton kernel .*; use impl='torch'"):
        TOO_LARGE[what]("triton")


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("size", [LARGEST_SIZE, 4096])
def test_the_largest_pictures_fit_a_grid(size: int, folded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that runs may have; what a GPU would refuse is refused here."""
    monkeypatch.setattr(launch, "start", lambda *_: None)
    video, numbers = torch.empty(1, 1, size, size, 3, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.int64)
    blocks, form = torch.zeros(1, 1, 1024, dtype=torch.uint8), (32, 3, 2)

    def gather() -> None:
        launch_gather_frames(video, numbers, MEAN, STD, 1, 16, folded, torch.uint8)
        launch_gather_blocks(blocks, numbers, numbers, numbers, form, size, MEAN, STD, 1, 3, folded, torch.uint8)

    if size == LARGEST_SIZE:
        gather()
        return
    programs = (65729, 131457) if folded else (65536, 131072)
    with pytest.raises(ValueError, match=rf"gather_frames_kernel: a grid of \(1, {programs[0]}\) programs, a GPU takes 65535"):
        gather()
    video = video[:, :, :32, :32]
    with pytest.raises(ValueError, match=rf"gather_blocks_kernel: a grid of \(1, {programs[1]}\) programs"):
        gather()


@differentiable
def test_a_truth_of_float64_passes_the_op_without_loss(name: str) -> None:
    """The CPU side of the ops keeps float64, so that gradcheck can be used on a whole model."""
    call = CALLS[name](Sizes(2, 3, 2, 4, H=2, hidden=3, maps=(2, 3, 2, 1)), Draw(torch.float64, parameter_dtype=torch.float64))
    leaves = [tensor.requires_grad_() for tensor in call.inputs.values()]
    assert torch.autograd.gradcheck(partial(call, impl="auto"), leaves)
