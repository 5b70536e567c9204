"""Cases of `bench_kernels.py`: each op at the model's shapes, and every way to compute it that is worth comparing.

B clips, T frames, K kept frames, N tokens, H heads, E head dimension, D width, L layers; C channels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import block_bytes
import torch
from kernel_inputs import CALLS, Call, Draw, Sizes, draw_keep
from kernel_passes import BLOCK_OPS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from svdata2vec.config.schema import ModelConfig, TargetConfig
from svdata2vec.kernels import functional as K
from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.gather_frames import window_shape
from svdata2vec.model.block_ops import BlockOps, block_ops
from svdata2vec.model.execution import compile_parts, use_channels_last
from svdata2vec.model.student import Decoder, Encoder
from svdata2vec.model.teacher import Teacher
from svdata2vec.model.video_encoder import VideoEncoder

MODEL = Sizes()
T, KEPT, D, H, L = MODEL.T, MODEL.K, MODEL.D, MODEL.H, MODEL.L

GMAC_PER_FRAME = 29.8 / KEPT  # of the video encoder at 224 x 224, forward

Function = Callable[..., Any]  # one tensor, or several


@dataclass(frozen=True)
class Candidate:
    """One way to compute an op; `parameters` are leaves beside the case's inputs (the weights of a network)."""

    run: Function
    parameters: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        inputs: float tensors that the candidates take in this order; those that require a gradient get one.
        truth: the plain PyTorch implementation, called with float32 inputs.
        candidates: name -> function of `inputs`; each is verified against the truth, then timed.
        forward_bytes, backward_bytes: what must be read and written at least, each value once.
        forward_flops, backward_flops: of the matrix products.
        smooth: False where the gradient jumps (PReLU at zero): single values may then fall on either side, and the error is
            the root mean square instead of the largest.
    """

    op: str
    shape: str
    inputs: tuple[Tensor, ...]
    truth: Candidate
    candidates: dict[str, Candidate]
    forward_bytes: int = 0
    backward_bytes: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    smooth: bool = True


@dataclass(frozen=True)
class Scale:
    """How large the cases are."""

    batches: tuple[int, ...]
    side: int
    sweep: tuple[tuple[int, int], ...]  # (N, E) of the attention sweep, beside the model's own
    dtype: torch.dtype
    device: torch.device
    stem_width: int = 64

    def autocast(self, exact: bool = False) -> torch.autocast:
        """Autocast as in training; none for a float32 truth."""
        low = self.dtype != torch.float32 and not exact
        return torch.autocast(self.device.type, self.dtype if low else None, enabled=low)


def all_cases(scale: Scale, ops: Sequence[str] = ()) -> Iterator[Case]:
    """Every op (or those named) at the model's shapes, then the sweep; made one by one, as memory allows."""
    makers: dict[str, list[Callable[..., Case]]] = {  # called with the scale and a batch size
        "gather_frames": [
            partial(gather_case, channels=count, folded=folded) for count, folded in ((16, True), (16, False), (15, False))
        ],
        "gather_blocks": [partial(gather_blocks_case, folded=folded) for folded in (True, False)],
        "fuse_tokens": [fuse_case],
        "restore_tokens": [restore_case],
        "attention": [partial(attention_case, tokens=n, heads=H, head_dim=D // H) for n in (KEPT, T)],
        "layer_targets": [targets_case],
        "masked_mse": [loss_case],
        "add_layer_norm": [
            partial(norm_case, tokens=n, branch=branch) for n, branch in ((KEPT, True), (T, True), (T, False))
        ],
        "bias_gelu": [partial(epilogue_case, tokens=n) for n in (KEPT, T)],
        "batch_norm_prelu": [
            partial(batch_norm_case, widening=wide, shortcut=shortcut) for wide, shortcut in ((1, False), (1, True), (8, True))
        ],
        "batch_norm_prelu_pool": [batch_norm_pool_case],
        "transformer": [transformer_case],
        "video encoder": [video_encoder_case],
    }
    if unknown := set(ops) - set(makers):
        raise SystemExit(f"unknown ops {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    for batch in scale.batches:
        for op, cases in makers.items():
            if not ops or op in ops:
                yield from (make(scale, batch) for make in cases)
    if not ops or "attention" in ops:
        yield from (attention_case(scale, scale.batches[-1], n, D // e, e) for n, e in scale.sweep)


def op_case(scale: Scale, call: Call, shape: str, **counts: Any) -> Case:
    """A call of the table by the op, the reference and the compiled reference; `counts` are bytes and operations."""

    def run(impl: Impl, **changes: Any) -> Function:
        return partial(replace(call, fixed={**call.fixed, **changes}), impl=impl)

    name, impl = own_op(scale.device)
    exact = {"dtype": torch.float32} if "dtype" in call.fixed else {}
    return Case(
        op=call.op,
        shape=shape,
        inputs=tuple(tensor.requires_grad_(call.op != "layer_targets") for tensor in call.inputs.values()),
        truth=Candidate(run("torch", **exact)),
        candidates={
            name: Candidate(run(impl)),
            "eager": Candidate(run("torch")),
            "torch.compile": Candidate(compiled(run("torch"))),
        },
        **counts,
    )


def own_op(device: torch.device) -> tuple[str, Impl]:
    """Name of our op in the results: on a CPU it runs its reference, with the op's own backward pass."""
    return ("triton", "triton") if device.type == "cuda" else ("op on the CPU", "auto")


def compiled(run: Function) -> Function:
    """The whole function in one graph, for this shape alone."""
    return torch.compile(run, fullgraph=True, dynamic=False)


def model_call(scale: Scale, op: str, **sizes: Any) -> Call:
    """A call of the table at the model's sizes, except those given."""
    return CALLS[op](replace(MODEL, **sizes), Draw(scale.dtype, scale.device))


def floats(scale: Scale, *shape: int, grad: bool = True, dtype: torch.dtype | None = None) -> Tensor:
    """Normally distributed values on the device."""
    return torch.randn(shape, device=scale.device, dtype=dtype or scale.dtype).requires_grad_(grad)


def gather_case(scale: Scale, batch: int, channels: int, folded: bool) -> Case:
    side = scale.side
    call = model_call(scale, f"gather_frames{' folded' if folded else ''}", B=batch, side=side, channels=channels)
    near = (call.fixed["keep_BK"][:, :, None] + torch.arange(-2, 3, device=scale.device)).flatten(1)
    frames_read = sum(len({t for t in row if 0 <= t < T}) for row in near.tolist())
    written = math.prod(window_shape(batch * KEPT, side, side, channels, folded)) * scale.dtype.itemsize
    shape = f"B={batch} {side}x{side} channels={channels}{' folded' if folded else ''}"
    return op_case(scale, call, shape, forward_bytes=frames_read * side * side * 3 + written)


def gather_blocks_case(scale: Scale, batch: int, folded: bool) -> Case:
    """Bytes of the stored frames that are touched, each once, and what is written."""
    side = scale.side
    call = model_call(scale, f"gather_blocks{' folded' if folded else ''}", B=batch, side=side)
    frames = block_bytes.frames_read(call.fixed["keep_BK"].cpu().numpy(), T)
    form, maps = call.fixed["form"], call.fixed["map_B4"].tolist()
    read = sum(count * int(block_bytes.touched(form, side, row).sum()) for count, row in zip(frames, maps, strict=True))
    written = math.prod(window_shape(batch * KEPT, side, side, call.fixed["channels"], folded)) * scale.dtype.itemsize
    shape = f"B={batch} {form[0]} to {side}{' folded' if folded else ''}"
    return op_case(scale, call, shape, forward_bytes=read + written)


def fuse_case(scale: Scale, batch: int) -> Case:
    call = model_call(scale, "fuse_tokens", B=batch)
    row = D * scale.dtype.itemsize
    visible = int((~call.fixed["skeleton_hidden_BK"]).sum())
    return op_case(
        scale, call, f"B={batch} K={KEPT} T={T} D={D}",
        forward_bytes=(2 * batch * KEPT + visible) * row + T * D * 4,
        backward_bytes=(2 * batch * KEPT + batch * T) * row + T * D * 4,
    )


def restore_case(scale: Scale, batch: int) -> Case:
    call = model_call(scale, "restore_tokens", B=batch)
    moved = batch * (KEPT + T) * D * scale.dtype.itemsize + (T + 1) * D * 4
    return op_case(scale, call, f"B={batch} K={KEPT} T={T} D={D}", forward_bytes=moved, backward_bytes=moved)


def attention_case(scale: Scale, batch: int, tokens: int, heads: int, head_dim: int) -> Case:
    call = model_call(scale, "attention", B=batch, T=tokens, D=heads * head_dim, H=heads)
    values = batch * tokens * heads * head_dim * scale.dtype.itemsize
    product = 2 * batch * heads * tokens * tokens * head_dim
    case = op_case(
        scale, call, f"B={batch} N={tokens} H={heads} E={head_dim}",
        forward_bytes=4 * values, backward_bytes=7 * values, forward_flops=2 * product, backward_flops=5 * product,
    )
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    if scale.device.type == "cuda":
        backends |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    others = {f"SDPA {name}": Candidate(sdpa(backend, heads)) for name, backend in backends.items()}
    return replace(case, candidates={**case.candidates, **others})


def sdpa(backend: SDPBackend, heads: int) -> Function:
    """PyTorch's attention from the same packed projection to the same result, permutes included."""

    def run(qkv_BNC: Tensor) -> Tensor:
        B, N, packed = qkv_BNC.shape
        q, k, v = qkv_BNC.view(B, N, 3, heads, packed // 3 // heads).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(backend):
            out_BHNE = nn.functional.scaled_dot_product_attention(q, k, v)
        return out_BHNE.transpose(1, 2).flatten(2)

    return run


def targets_case(scale: Scale, batch: int) -> Case:
    call = model_call(scale, "layer_targets", B=batch)
    moved = batch * T * D * (L * scale.dtype.itemsize + 4)
    return op_case(scale, call, f"L={L} B={batch} T={T} D={D}", forward_bytes=moved)


def loss_case(scale: Scale, batch: int) -> Case:
    call = model_call(scale, "masked_mse", B=batch)
    read = int(call.fixed["scored_BT"].sum()) * D * (scale.dtype.itemsize + 4)
    written = batch * T * D * scale.dtype.itemsize
    return op_case(scale, call, f"B={batch} T={T} D={D}", forward_bytes=read, backward_bytes=read + written)


def within(scale: Scale, function: Function, parameters: Iterable[Tensor], exact: bool = False) -> Candidate:
    """A function under autocast, as in training; without it for a float32 truth."""

    def call(*inputs: Tensor) -> Any:
        with scale.autocast(exact):
            return function(*inputs)

    return Candidate(call, tuple(parameters))


def block_case(
    scale: Scale, op: str, shape: str, inputs: tuple[Tensor, ...], modules: Sequence[nn.Module],
    run: Callable[[BlockOps], Function],
) -> Case:
    """Everything between two matrix products: as one op, module by module, and compiled.

    `op` names its row in kernel_passes.py: the bytes are its fused passes times the first input (the others are like it).
    """
    name, impl = own_op(scale.device)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    plain = run(BlockOps())
    one, passes = inputs[0].numel() * scale.dtype.itemsize, BLOCK_OPS[op].fused
    return Case(
        op.partition(" with")[0], shape, inputs, within(scale, plain, parameters, exact=True),
        {
            name: within(scale, run(block_ops(True, impl)), parameters),
            "eager": within(scale, plain, parameters),
            "torch.compile": within(scale, compiled(plain), parameters),
        },
        int(one * passes.forward), int(one * passes.backward),
    )


def norm_case(scale: Scale, batch: int, tokens: int, *, branch: bool = True) -> Case:
    """Residual sum and LayerNorm in a block; without a branch the norm before the attention."""
    norm = nn.LayerNorm(D, device=scale.device)
    without = "" if branch else " without branch"
    inputs = tuple(floats(scale, batch, tokens, D) for _ in range(2 if branch else 1))
    # The norm is cast for its consumer, the attention's or MLP's product; that cast is part of the work.
    return block_case(
        scale, f"add_layer_norm{without}", f"B={batch} N={tokens} D={D}{without}", inputs, [norm],
        lambda steps: lambda x, added=None: read_by_product(steps.add_norm(norm, x, added), scale)[0 if branch else 1 :],
    )


def read_by_product(results: tuple[Tensor, Tensor], scale: Scale) -> tuple[Tensor, Tensor]:
    """The cast that a matrix product under autocast applies to its argument."""
    total_BND, normed_BND = results
    return total_BND, normed_BND.to(scale.dtype) if torch.is_autocast_enabled(scale.device.type) else normed_BND


def epilogue_case(scale: Scale, batch: int, tokens: int) -> Case:
    """The first product of an MLP with its bias and GELU, since the bias is part of the product module by module."""
    linear = nn.Linear(D, 4 * D, device=scale.device)
    product = 2 * batch * tokens * D * 4 * D
    case = block_case(
        scale, "bias_gelu", f"B={batch} N={tokens} D={D} H={4 * D} with its product", (floats(scale, batch, tokens, D),),
        [linear], lambda steps: lambda x: steps.linear_gelu(linear, x),
    )
    # The op's own bytes are only part of what is timed here, hence no rate of bytes.
    return replace(case, forward_bytes=0, backward_bytes=0, forward_flops=product, backward_flops=2 * product)


def batch_norm_case(scale: Scale, batch: int, widening: int, *, shortcut: bool) -> Case:
    """BatchNorm, shortcut and PReLU of a stage of the trunk (`widening` 1, 2, 4 or 8) in training."""
    channels, side = scale.stem_width * widening, scale.side // 4 // widening
    norm, prelu = nn.BatchNorm2d(channels, device=scale.device), nn.PReLU(channels, device=scale.device)
    shape = (batch * KEPT, channels, side, side)
    maps = tuple(
        floats(scale, *shape, grad=False).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2 if shortcut else 1)
    )
    case = block_case(
        scale, f"batch_norm_prelu{' with shortcut' if shortcut else ''}",
        f"F={shape[0]} C={channels} {side}x{side}{' shortcut' if shortcut else ''}", maps, [norm, prelu],
        lambda steps: lambda *x: steps.norm_prelu(norm, prelu, *x),
    )
    return replace(case, smooth=False)


def batch_norm_pool_case(scale: Scale, batch: int) -> Case:
    """The end of the stem in training: BatchNorm, PReLU and the maximum."""
    channels, side = scale.stem_width, scale.side // 2
    norm, prelu = nn.BatchNorm2d(channels, device=scale.device), nn.PReLU(channels, device=scale.device)
    shape = (batch * KEPT, channels, side, side)
    x_FCHW = floats(scale, *shape, grad=False).contiguous(memory_format=torch.channels_last).requires_grad_()
    case = block_case(
        scale, "batch_norm_prelu_pool", f"F={shape[0]} C={channels} {side}x{side}", (x_FCHW,), [norm, prelu],
        lambda steps: lambda x: steps.norm_prelu_pool(norm, prelu, nn.MaxPool2d(3, 2, 1), x),
    )
    return replace(case, smooth=False)


class TransformerPart(nn.Module):
    """Student, teacher, decoder and loss on given tokens: everything but the video encoder."""

    def __init__(self, impl: Impl, fused: bool = False) -> None:
        super().__init__()
        config = ModelConfig(impl=impl, fused_blocks=fused)
        self.impl = impl
        self.encoder = Encoder(config, T, 17, modality="skeleton")
        del self.encoder.skeleton_embed  # tokens are given
        self.decoder = Decoder(config, T)
        self.teacher = Teacher(self.encoder.blocks)

    def forward(self, video_BKD: Tensor, skeleton_BTD: Tensor, keep_BK: Tensor, hidden_BK: Tensor) -> Tensor:
        time_TD = self.encoder.temporal_embed[0]
        tokens_BKD = K.fuse_tokens(video_BKD, skeleton_BTD, keep_BK, hidden_BK, time_TD, impl=self.impl)
        prediction_BTD = self.decoder(self.encoder.encode(tokens_BKD), keep_BK)
        target_BTD = self.teacher((skeleton_BTD + time_TD).detach(), TargetConfig(), self.impl)
        scored_BT = torch.ones(target_BTD.shape[:2], dtype=torch.bool, device=target_BTD.device)
        return K.masked_mse(prediction_BTD.float(), target_BTD, scored_BT, impl=self.impl)


def transformer_case(scale: Scale, batch: int) -> Case:
    """The whole transformer part, forward and backward, weights included, under autocast as in training."""
    keep = draw_keep(batch, T, KEPT, scale.device)
    hidden = torch.rand(batch, KEPT, device=scale.device) < 0.75
    torch_part = TransformerPart("torch").to(scale.device)
    name, impl = own_op(scale.device)
    own_part, fused_part = (TransformerPart(impl, fused).to(scale.device) for fused in (False, True))
    for part in (own_part, fused_part):
        part.load_state_dict(torch_part.state_dict())

    def candidate(part: TransformerPart, compile_it: bool = False, exact: bool = False) -> Candidate:
        forward = compiled(part) if compile_it else part
        trained = (parameter for parameter in part.parameters() if parameter.requires_grad)
        return within(scale, lambda video, skeleton: forward(video, skeleton, keep, hidden), trained, exact)

    def per_block(tokens: int) -> int:
        """Operations of one block on one sequence: projections, MLP, attention."""
        return tokens * (2 * 12 * D * D + 4 * tokens * D)

    student, watch, decode = L * per_block(KEPT), L * per_block(T), 3 * per_block(T)
    return Case(
        op="transformer",
        shape=f"B={batch} student + teacher + decoder + loss",
        inputs=(floats(scale, batch, KEPT, D, dtype=torch.float32), floats(scale, batch, T, D, dtype=torch.float32)),
        truth=candidate(torch_part, exact=True),
        candidates={
            name: candidate(own_part),
            f"{name} + torch.compile": candidate(own_part, compile_it=True),
            f"{name}, fused blocks": candidate(fused_part),
            f"{name}, fused blocks + torch.compile": candidate(fused_part, compile_it=True),
            "eager": candidate(torch_part),
            "torch.compile": candidate(torch_part, compile_it=True),
        },
        forward_flops=batch * (student + watch + decode),
        backward_flops=2 * batch * (student + decode),
    )


def video_encoder_case(scale: Scale, batch: int) -> Case:
    """The video encoder on kept frames in training, forward and backward, laid out and compiled as a run does it."""
    keep = draw_keep(batch, T, KEPT, scale.device)
    video = torch.randint(0, 256, (batch, T, scale.side, scale.side, 3), dtype=torch.uint8, device=scale.device)
    name, impl = own_op(scale.device)
    config = ModelConfig(width=D, stem_width=scale.stem_width, impl=impl)
    state = VideoEncoder(config).state_dict()

    def candidate(fused: bool, compile_it: bool = False, exact: bool = False) -> Candidate:
        part = VideoEncoder(replace(config, fused_blocks=fused)).to(scale.device)
        part.load_state_dict(state)
        use_channels_last(part)
        if compile_it:
            compile_parts(part)
        return within(scale, lambda: part(video, keep), part.parameters(), exact)

    operations = int(2e9 * GMAC_PER_FRAME * batch * KEPT * (scale.side / 224) ** 2 * (scale.stem_width / 64) ** 2)
    return Case(
        op="video encoder",
        shape=f"B={batch} K={KEPT} {scale.side}x{scale.side} stem={scale.stem_width}",
        inputs=(),
        truth=candidate(fused=False, exact=True),
        candidates={
            f"{name}, fused blocks": candidate(fused=True),
            f"{name}, fused blocks + torch.compile": candidate(fused=True, compile_it=True),
            "eager": candidate(fused=False),
            "torch.compile": candidate(fused=False, compile_it=True),
        },
        forward_flops=operations,
        backward_flops=2 * operations,
        smooth=False,
    )
