"""Every kernel, in the configurations that its launcher chooses, compiled ahead of time for GPUs that aren't there.

The launchers are run on CPU tensors with the start itself replaced by a recorder, so that what is compiled is what
would be launched. ptxas must find registers for everything (no spill) and shared memory must fit the GPU.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_compiler import compile_for, record
from torch import Tensor

from svdata2vec.kernels import (
    add_layer_norm,
    attention,
    batch_norm_prelu,
    bias_gelu,
    fuse_tokens,
    gather_frames,
    layer_targets,
    masked_mse,
    restore_tokens,
)
from svdata2vec.kernels.dispatch import INTERPRETED

# Compute capability -> shared memory that one block may have, in bytes (CUDA C++ programming guide, "Technical
# specifications per compute capability"): A100, H100/H200, B200.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

# Bytes of stack per thread that float32 attention may use, by tokens. Its products take three tensor core passes, each
# with operands of their own; training runs in bfloat16, where nothing may spill.
FLOAT32_STACK = {13: 64, 40: 64, 128: 1024}

B, T, KEPT, D, L = 128, 40, 13, 256, 8
architectures = pytest.mark.parametrize("capability", sorted(SHARED_LIMIT))
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])


@pytest.fixture(autouse=True)
def fresh_compilation(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile for real, whatever an earlier run has left in Triton's cache."""
    assert not INTERPRETED, "start this file without TRITON_INTERPRET: interpreted kernels can't be compiled"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


def check(call: Callable[[], object], capability: int, num_kernels: int, stack_bytes: int = 0, wide: bool = True) -> None:
    """Compile all launches of `call` and hold their resources against the limits."""
    launches = record(call)
    assert len(launches) == num_kernels
    for recorded in launches:
        usage = compile_for(recorded, capability)
        assert usage.spilled_bytes <= stack_bytes, f"{recorded.name} spills on sm_{capability}: {usage}"
        assert usage.wide or not wide, f"{recorded.name} reads and writes in small pieces: was a stride not constant?"
        assert usage.shared_bytes <= SHARED_LIMIT[capability], f"{recorded.name} on sm_{capability}: {usage}"


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@architectures
@dtypes
@pytest.mark.parametrize("channels", [15, 16])
def test_gather_frames(capability: int, dtype: torch.dtype, channels: int) -> None:
    video, keep = empty(2, T, 224, 224, 3, dtype=torch.uint8), empty(2, KEPT, dtype=torch.int64)
    ones = [1.0, 1.0, 1.0]
    call = partial(gather_frames.launch_gather_frames, video, keep, ones, ones, 5, channels, dtype)
    check(call, capability, 1, wide=channels == 16)


@architectures
@dtypes
def test_fuse_and_restore(capability: int, dtype: torch.dtype) -> None:
    kept, full, temporal = empty(B, KEPT, D, dtype=dtype), empty(B, T, D, dtype=dtype), empty(T, D, dtype=torch.float32)
    keep, hidden = empty(B, KEPT, dtype=torch.int64), empty(B, KEPT, dtype=torch.bool)

    def launch_all() -> None:
        fuse_tokens.launch_fuse_tokens(kept, full, keep, hidden, temporal)
        fuse_tokens.launch_fuse_tokens_backward(kept, keep, hidden, T, dtype, torch.float32)
        restore_tokens.launch_restore_tokens(kept, temporal[0], keep, temporal)
        restore_tokens.launch_restore_tokens_backward(full, keep, torch.float32, torch.float32)

    check(launch_all, capability, 4)


@architectures
@dtypes
def test_targets_and_loss(capability: int, dtype: torch.dtype) -> None:
    layers, prediction = empty(L, B, T, D, dtype=dtype), empty(B, T, D, dtype=dtype)
    target, scored = empty(B, T, D, dtype=torch.float32), empty(B, T, dtype=torch.bool)
    grad, count = empty(dtype=torch.float32), empty(dtype=torch.int64)

    def launch_all() -> None:
        layer_targets.launch_layer_targets(layers, 1e-5)
        masked_mse.launch_masked_mse(prediction, target, scored)
        masked_mse.launch_masked_mse_backward(grad, count, prediction, target, scored)

    check(launch_all, capability, 4)


def launch_norm(B: int, N: int, D: int, dtype: torch.dtype) -> None:
    """Residual sum and LayerNorm, both passes, with float32 parameters."""
    tokens, vector, rows = empty(B, N, D, dtype=dtype), empty(D, dtype=torch.float32), empty(B * N, dtype=torch.float32)
    add_layer_norm.launch_add_layer_norm(tokens, tokens, vector, vector, 1e-5, dtype)
    add_layer_norm.launch_add_layer_norm_backward(tokens, tokens, tokens, rows, rows, vector)
    add_layer_norm.launch_add_layer_norm(tokens, None, vector, vector, 1e-5, dtype)
    add_layer_norm.launch_add_layer_norm_backward(None, tokens, tokens, rows, rows, vector)


def launch_epilogue(B: int, N: int, H: int, dtype: torch.dtype) -> None:
    """Bias and GELU, both passes."""
    hidden, vector = empty(B, N, H, dtype=dtype), empty(H, dtype=torch.float32)
    bias_gelu.launch_bias_gelu(hidden, vector)
    bias_gelu.launch_bias_gelu_backward(hidden, hidden, vector)


def launch_batch_norm(shape: tuple[int, ...], dtype: torch.dtype, shortcut: bool, training: bool = True) -> None:
    """BatchNorm with PReLU, both passes: five kernels in training, three in evaluation."""
    maps = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    added = maps if shortcut else None
    vectors = [empty(shape[1], dtype=torch.float32) for _ in range(5)]
    given = (None, None) if training else vectors[3:]
    batch_norm_prelu.launch_batch_norm_prelu(maps, added, *vectors[:3], *given, 1e-5)
    batch_norm_prelu.launch_batch_norm_prelu_backward(maps, maps, added, *vectors, 1e-5, training)


@architectures
@dtypes
def test_fused_steps(capability: int, dtype: torch.dtype) -> None:
    shortcuts = (False, True) if dtype == torch.bfloat16 else (True,)  # which takes more registers

    def launch_all() -> None:
        launch_norm(B, T, D, dtype)
        launch_epilogue(B, T, 4 * D, dtype)
        for shortcut in shortcuts:
            launch_batch_norm((2, 64, 28, 28), dtype, shortcut)

    check(launch_all, capability, 6 + 5 * len(shortcuts))


def test_batch_norm_of_many_channels_and_in_evaluation() -> None:
    check(lambda: launch_batch_norm((2, 512, 7, 7), torch.bfloat16, shortcut=True), 90, 5)
    check(lambda: launch_batch_norm((2, 64, 28, 28), torch.bfloat16, shortcut=True, training=False), 90, 3)


@pytest.mark.parametrize("width", [2048, add_layer_norm.MAX_WIDTH])
def test_add_layer_norm_of_wide_tokens(width: int) -> None:
    """More channels than a tile has values: whole rows in eight warps."""
    check(lambda: launch_norm(2, 3, width, torch.bfloat16), 90, 4)


def attention_passes(num_tokens: int, num_heads: int, dtype: torch.dtype, lengths: Tensor | None) -> Callable[[], None]:
    qkv, grad = empty(B, num_tokens, 3 * D, dtype=dtype), empty(B, num_tokens, D, dtype=dtype)

    def launch_both() -> None:
        attention.launch_attention(qkv, num_heads, 0.2, lengths)
        attention.launch_attention_backward(grad, qkv, num_heads, 0.2, lengths)

    return launch_both


@architectures
@pytest.mark.parametrize("num_tokens", [13, 40, 128])
@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_attention_in_bfloat16(capability: int, num_tokens: int, head_dim: int) -> None:
    check(attention_passes(num_tokens, D // head_dim, torch.bfloat16, None), capability, 2)


@architectures
@pytest.mark.parametrize("num_tokens", [13, 40, 128])
def test_attention_in_float32(capability: int, num_tokens: int) -> None:
    check(attention_passes(num_tokens, 8, torch.float32, None), capability, 2, FLOAT32_STACK[num_tokens])


@architectures
def test_attention_in_float16_of_ragged_clips(capability: int) -> None:
    check(attention_passes(40, 8, torch.float16, empty(B, dtype=torch.int64)), capability, 2)


def launch_everything(B: int, T: int, K: int, D: int, strided: bool) -> None:
    """Every launcher once at sizes of its own; `strided` gives every float input a last stride of 2."""

    def floats(*shape: int) -> Tensor:
        tensor = empty(*shape[:-1], shape[-1] * (2 if strided else 1), dtype=torch.bfloat16)
        return tensor[..., ::2] if strided else tensor

    keep, hidden = empty(B, K, dtype=torch.int64), empty(B, K, dtype=torch.bool)
    scored, target = empty(B, T, dtype=torch.bool), floats(B, T, D)
    video, ones = empty(B, T, 1, 1, 3, dtype=torch.uint8), [1.0, 1.0, 1.0]
    grad, count = empty(dtype=torch.float32), empty(dtype=torch.int64)
    gather_frames.launch_gather_frames(video, keep, ones, ones, 1, 3, torch.float32)
    fuse_tokens.launch_fuse_tokens(floats(B, K, D), floats(B, T, D), keep, hidden, floats(T, D))
    fuse_tokens.launch_fuse_tokens_backward(floats(B, K, D), keep, hidden, T, torch.bfloat16, torch.bfloat16)
    restore_tokens.launch_restore_tokens(floats(B, K, D), floats(D), keep, floats(T, D))
    restore_tokens.launch_restore_tokens_backward(floats(B, T, D), keep, torch.bfloat16, torch.bfloat16)
    layer_targets.launch_layer_targets(floats(1, B, T, D), 1e-5)
    masked_mse.launch_masked_mse(floats(B, T, D), target, scored)
    masked_mse.launch_masked_mse_backward(grad, count, floats(B, T, D), target, scored)
    attention.launch_attention(floats(B, T, 3 * D), 1, 0.2, empty(B, dtype=torch.int64))
    attention.launch_attention_backward(floats(B, T, D), floats(B, T, 3 * D), 1, 0.2, None)
    vector, rows = floats(D), empty(B * T, dtype=torch.float32)
    add_layer_norm.launch_add_layer_norm(floats(B, T, D), floats(B, T, D), vector, vector, 1e-5, torch.bfloat16)
    add_layer_norm.launch_add_layer_norm_backward(None, floats(B, T, D), target.contiguous(), rows, rows, vector)
    bias_gelu.launch_bias_gelu(floats(B, T, D), vector)
    bias_gelu.launch_bias_gelu_backward(floats(B, T, D), floats(B, T, D), vector)
    launch_batch_norm((B, D, T, K), torch.bfloat16, shortcut=strided)


@pytest.mark.parametrize(("sizes", "strided"), [((1, 1, 1, 1), False), ((2, 3, 1, 5), True)], ids=["ones", "strided"])
def test_sizes_of_one_and_strides_of_two(sizes: tuple[int, int, int, int], strided: bool) -> None:
    """Triton makes a constant of every size and stride that is 1: other code paths than with ordinary sizes."""
    check(lambda: launch_everything(*sizes, strided), 90, 20, wide=False)


def test_strides_beyond_32_bits() -> None:
    """Two clips 2**31 + 64 bytes apart: the stride has to arrive in 64 bits."""
    frame = 4 * 5 * 3
    video = empty(2**31 + 64 + 3 * frame, dtype=torch.uint8).as_strided((2, 3, 4, 5, 3), (2**31 + 64, frame, 15, 3, 1))
    keep, ones = empty(2, 2, dtype=torch.int64), [1.0, 1.0, 1.0]
    check(lambda: gather_frames.launch_gather_frames(video, keep, ones, ones, 5, 16, torch.float32), 90, 1)
