"""Every kernel, in the configurations that its launcher chooses, compiled ahead of time for GPUs that aren't there.

The ops are run forward and backward on CPU tensors with the start of their kernels replaced by a recorder, so that what is
compiled is what would be launched. ptxas must find registers for everything (no spill) and shared memory must fit the GPU.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from kernel_compare import LAYOUTS, called_ops, evaluate
from kernel_compiler import Launch, amd_usage, compile_for, record, recorded_launches
from kernel_inputs import CALLS, Call, Draw, Sizes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from svdata2vec.kernels import add_layer_norm, gather_blocks, gather_frames
from svdata2vec.kernels.dispatch import INTERPRETED

# Compute capability -> shared memory that one block may have, in bytes (CUDA C++ programming guide, "Technical
# specifications per compute capability"): A100, H100/H200, B200.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

# Bytes of stack per thread that float32 attention may use, by tokens. Its products take three tensor core passes, each
# with operands of their own; training runs in bfloat16, where nothing may spill.
FLOAT32_STACK = {13: 64, 40: 64, 128: 1024}

MODEL = Sizes(B=128)
architectures = pytest.mark.parametrize("capability", sorted(SHARED_LIMIT))
# Training's dtype on all of them, float32 on one.
DTYPES = [*((torch.bfloat16, capability) for capability in sorted(SHARED_LIMIT)), (torch.float32, 90)]
dtypes = pytest.mark.parametrize(("dtype", "capability"), DTYPES)


@pytest.fixture(autouse=True)
def fresh_compilation(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile for real, whatever an earlier run has left in Triton's cache."""
    assert not INTERPRETED, "start this file without TRITON_INTERPRET: interpreted kernels can't be compiled"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


def launches_of(call: Call, layout: str = "contiguous") -> list[Launch]:
    """What a forward and backward pass starts."""
    return record(lambda: evaluate(call, "triton", LAYOUTS[layout]))


def check(launches: list[Launch], capability: int, num_kernels: int, stack_bytes: int = 0, wide: bool = True) -> None:
    """Compile the launches and hold their resources against the limits."""
    assert len(launches) == num_kernels
    for recorded in launches:
        usage = compile_for(recorded, capability)
        assert usage.spilled_bytes <= stack_bytes, f"{recorded.name} spills on sm_{capability}: {usage}"
        assert usage.wide or not wide, f"{recorded.name} reads and writes in small pieces: was a stride not constant?"
        assert usage.shared_bytes <= SHARED_LIMIT[capability], f"{recorded.name} on sm_{capability}: {usage}"


def check_calls(
    names: Sequence[str], capability: int, num_kernels: int, sizes: Sizes = MODEL, dtype: torch.dtype = torch.bfloat16,
    stack_bytes: int = 0, wide: bool = True,
) -> None:
    """The same for calls of the table."""
    launches = [launch for name in names for launch in launches_of(CALLS[name](sizes, Draw(dtype)))]
    check(launches, capability, num_kernels, stack_bytes, wide)


@dtypes
@pytest.mark.parametrize("channels", [15, 16])
def test_gather_frames(capability: int, dtype: torch.dtype, channels: int) -> None:
    names, sizes = ["gather_frames", "gather_frames folded"], Sizes(side=224, channels=channels)
    check_calls(names, capability, 2, sizes, dtype, wide=channels == 16)


GATHER_BLOCKS = [name for name in CALLS if name.startswith("gather_blocks")]


# Other widths of blocks than the usual ones on one GPU.
GATHERED = [(name, *kind) for name in GATHER_BLOCKS for kind in DTYPES if kind[1] == 90 or not name.endswith(" bits")]


@pytest.mark.parametrize(("name", "dtype", "capability"), GATHERED)
def test_gather_blocks(name: str, dtype: torch.dtype, capability: int) -> None:
    """No spill, and three programs of 128 threads per SM at least, which wait for memory in turn."""
    launches = launches_of(CALLS[name](Sizes(side=224), Draw(dtype)))
    check(launches, capability, 1)
    assert compile_for(launches[0], capability).registers <= 168


@pytest.mark.parametrize("name", GATHER_BLOCKS)
def test_gather_blocks_for_an_amd_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """CDNA 3 (MI300), whose warps have 64 threads: compiled, a pixel per thread, nothing spilled."""
    monkeypatch.setattr(gather_blocks, "PIXELS_PER_PROGRAM", 256)
    (recorded,) = launches_of(CALLS[name](Sizes(side=224), Draw(torch.bfloat16)))
    usage = amd_usage(recorded)
    assert usage.spilled_bytes == 0 and usage.registers <= 128  # of 512, for four waves per SIMD
    assert usage.shared_bytes <= 64 * 1024


@dtypes
def test_fuse_and_restore(capability: int, dtype: torch.dtype) -> None:
    check_calls(["fuse_tokens", "restore_tokens"], capability, 4, dtype=dtype)


@dtypes
def test_targets_and_loss(capability: int, dtype: torch.dtype) -> None:
    check_calls(["layer_targets", "masked_mse"], capability, 4, dtype=dtype)


@dtypes
def test_fused_block_ops(capability: int, dtype: torch.dtype) -> None:
    maps = ["batch_norm_prelu", "batch_norm_prelu without a shortcut"] if dtype == torch.bfloat16 else ["batch_norm_prelu"]
    tokens = ["add_layer_norm", "add_layer_norm without a branch", "bias_gelu"]
    maps.append("batch_norm_prelu_pool")
    check_calls([*tokens, *maps], capability, 6 + 5 * len(maps), replace(MODEL, maps=(2, 64, 28, 28)), dtype)


def test_batch_norm_of_many_channels_and_in_evaluation() -> None:
    check_calls(["batch_norm_prelu"], 90, 5, Sizes(maps=(2, 512, 7, 7)))
    evaluations = ["batch_norm_prelu in evaluation", "batch_norm_prelu_pool in evaluation"]
    check_calls(evaluations, 90, 6, Sizes(maps=(2, 64, 28, 28)))


@pytest.mark.parametrize("width", [2048, add_layer_norm.MAX_WIDTH])
def test_add_layer_norm_of_wide_tokens(width: int) -> None:
    """More channels than a tile has values: whole rows in eight warps."""
    check_calls(["add_layer_norm", "add_layer_norm without a branch"], 90, 4, Sizes(B=2, T=3, D=width))


# All sizes on one GPU, on the others a row and a column with the largest.
ATTENTION = [
    (capability, num_tokens, head_dim) for capability in sorted(SHARED_LIMIT) for num_tokens in (13, 40, 128)
    for head_dim in (16, 32, 64) if capability == 90 or num_tokens == 128 or head_dim == 64
]


@pytest.mark.parametrize(("capability", "num_tokens", "head_dim"), ATTENTION)
def test_attention_in_bfloat16(capability: int, num_tokens: int, head_dim: int) -> None:
    check_calls(["attention"], capability, 2, replace(MODEL, T=num_tokens, H=MODEL.D // head_dim))


@pytest.mark.parametrize(("capability", "num_tokens"), [(80, 128), (90, 13), (90, 40), (90, 128), (100, 128)])
def test_attention_in_float32(capability: int, num_tokens: int) -> None:
    stack = FLOAT32_STACK[num_tokens]
    check_calls(["attention"], capability, 2, replace(MODEL, T=num_tokens), torch.float32, stack)


@architectures
def test_attention_in_float16_of_ragged_clips(capability: int) -> None:
    check_calls(["attention of ragged clips"], capability, 2, dtype=torch.float16)


ONES = Sizes(1, 1, 1, 1, L=1, H=1, hidden=1, side=1, window=1, channels=3, maps=(2, 1, 1, 1))
ODD = Sizes(2, 3, 1, 5, L=1, H=1, hidden=5, side=1, window=1, channels=3, maps=(2, 5, 3, 1))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("sizes", "layout"), [(ONES, "contiguous"), (ODD, "strided")], ids=["ones", "strided"])
def test_sizes_of_one_and_strides_of_two(name: str, sizes: Sizes, layout: str) -> None:
    """Triton makes a constant of every size and stride that is 1: other code paths than with ordinary sizes."""

    call = CALLS[name](sizes, Draw(torch.bfloat16, parameter_dtype=torch.bfloat16))
    launches = launches_of(call, layout)
    assert len(launches) == len(launches_of(CALLS[name](Sizes(), Draw(torch.bfloat16))))
    # The merge of statistics puts 8 bytes on the stack where a map has a single channel.
    check(launches, 90, len(launches), stack_bytes=8 if call.op.startswith("batch_norm") else 0, wide=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [ONES, ODD], ids=["ones", "odd"])
@pytest.mark.parametrize("name", CALLS)
def test_launchers_return_what_references_promise(name: str, sizes: Sizes, layout: str) -> None:
    """Shapes, dtypes and strides: a compiled graph takes them from the reference, and meets them on a GPU."""
    for op, arguments in called_ops(CALLS[name](sizes, Draw(torch.bfloat16)), LAYOUTS[layout]):
        with recorded_launches():
            launched = op(*arguments)
        with FakeTensorMode() as mode:
            fakes = op(*(mode.from_tensor(value) if isinstance(value, Tensor) else value for value in arguments))
        results = [(value,) if isinstance(value, Tensor) else value for value in (launched, fakes)]
        for real, fake in zip(*results, strict=True):
            assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride()), op


def test_many_kept_frames_of_narrow_tokens() -> None:
    """What Triton holds at once is bounded (2**20), also where a tile of few channels has many frames: slow, but it runs."""
    launches = [one for name in ("fuse_tokens", "restore_tokens") for one in launches_of(
        CALLS[name](Sizes(B=1, T=10_000, K=8_000, D=8), Draw(torch.bfloat16))
    )]
    tiles = [one.constants["BLOCK_T"] * one.constants["BLOCK_K"] for one in launches if "BLOCK_K" in one.constants]
    assert tiles == 3 * [2**14]


def test_strides_beyond_32_bits() -> None:
    """Two clips 2**31 + 64 bytes apart: the stride has to arrive in 64 bits."""
    frame, apart = 4 * 5 * 3, 2**31 + 64
    video = torch.empty(apart + 3 * frame, dtype=torch.uint8).as_strided((2, 3, 4, 5, 3), (apart, frame, 15, 3, 1))
    keep, ones = torch.empty(2, 2, dtype=torch.int64), [1.0, 1.0, 1.0]
    check(record(lambda: gather_frames.launch_gather_frames(video, keep, ones, ones, 5, 16, False, torch.float32)), 90, 1)
