"""Repair of two faults of Triton's interpreter, so that bfloat16 can be tested on the CPU as a GPU computes it.

Triton 3.6 and 3.7 keep bfloat16 as 16-bit integers in the interpreter. Its `tl.dot` multiplies those integers, and its
cast from float32 cuts bits off where GPUs round to nearest even. Both are replaced here by what the hardware does; the
tests alone use this.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from svdata2vec.kernels import dispatch


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns -> float32 values."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 values -> bfloat16 bit patterns, rounded to nearest even, NaN kept."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def repair() -> None:
    """Replace the interpreter's product and cast; call once, in a process that interprets."""
    product, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(to_float32(x.data), tl.float32) for x in (a, b))
        return product(self, a, b, *rest)

    def cast_impl(self: Any, source: Any, target_type: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target_type.scalar == tl.bfloat16:
            return TensorHandle(to_bf16(source.data), tl.bfloat16)
        return cast(self, source, target_type)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(InterpreterBuilder, name, cast_impl)
    dispatch.BF16_PRODUCTS = True
