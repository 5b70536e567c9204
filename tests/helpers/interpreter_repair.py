"""Repair of Triton's interpreter for the tests: bfloat16 as a GPU computes it, and less time.

Triton 3.6 and 3.7 keep bfloat16 as 16-bit integers in the interpreter. Its `tl.dot` multiplies those integers, and its
cast from float32 cuts bits off where GPUs round to nearest even. Both are replaced here by what the hardware does. It also
searches all of `triton.language` for functions to replace whenever a kernel calls another function; here it does so once.
"""

import inspect
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
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


@cache
def builtin_names(namespace: Any) -> list[str]:
    """Names of Triton's own functions in a module or class, as they were at the first call."""
    return [name for name, member in inspect.getmembers(namespace) if tl.core.is_builtin(member)]


def patch_builtins(namespace: Any, *rest: Any) -> None:
    """The interpreter's `_patch_builtin` without its search: replaces those functions that are not replaced yet."""
    for name in builtin_names(namespace):
        member = getattr(namespace, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(namespace, name, member, *rest)


def repair() -> None:
    """Replace the interpreter's product, cast and search, in a process that interprets."""
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
    interpreter._patch_builtin = patch_builtins
    dispatch.BF16_PRODUCTS = True
