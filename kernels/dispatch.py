"""Choice of the implementation that serves a call, logged once per op.

An op (see register.py) runs its Triton kernels on a GPU and its reference on the CPU; in a process started with
TRITON_INTERPRET=1 it runs the Triton kernels on the CPU too, in Triton's interpreter (slow: for tests).
A caller chooses with `impl`:

    "auto"    the op, as it runs on this device; the plain reference for tensors that are too large for its Triton kernels
    "triton"  the op, or an error if it would not run Triton
    "torch"   the plain PyTorch reference on any device, transparent to `torch.compile`, and twice differentiable
"""

import logging
from collections.abc import Callable
from typing import Literal

import triton
from torch import Tensor

Impl = Literal["auto", "triton", "torch"]

# Triton reads the variable when a kernel is defined, so the answer can't change after import.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# The interpreter of Triton 3.6 and 3.7 multiplies the bit patterns of bfloat16 matrices: `tl.dot` can't be used there.
BF16_PRODUCTS = not INTERPRETED

_log = logging.getLogger(__name__)
_announced: set[tuple[str, str]] = set()


def use_op(op: str, impl: Impl, tensor: Tensor, too_large: Callable[[], str] = lambda: "") -> bool:
    """True if this call goes to the registered op, False if it goes to the plain reference.

    `too_large`: why the arguments are too large for the Triton kernels; empty if they are not.

    Raises:
        ValueError: `impl` is unknown, or is "triton" and Triton can't run.
    """
    if impl not in ("auto", "triton", "torch"):
        raise ValueError(f"{op}: impl is {impl!r}; expected 'auto', 'triton' or 'torch'")
    kind = tensor.device.type
    triton_runs = kind == "cuda" or (kind == "cpu" and INTERPRETED)
    if impl == "triton" and not triton_runs:
        raise ValueError(
            f"{op}: impl='triton' needs tensors on a GPU but got {kind}; use impl='auto', or start the process with "
            "TRITON_INTERPRET=1 to interpret the kernels on the CPU"
        )
    if impl == "auto" and triton_runs and (why := too_large()):
        announce(op, f"PyTorch reference on {kind} ({why})")
        return False
    runs_op = impl != "torch" and kind in ("cpu", "cuda")
    announce(op, f"Triton on {kind}" if runs_op and triton_runs else f"PyTorch reference on {kind}")
    return runs_op


def announce(op: str, what: str) -> None:
    """Log which implementation serves the op, the first time only (at trace time if the call is compiled)."""
    if (op, what) not in _announced:
        _announced.add((op, what))
        _log.info("%s: %s", op, what)


# Done by `torch.compiler.assume_constant_result` too, but that imports the compiler: a second that few processes need.
announce._dynamo_marked_constant = True  # type: ignore[attr-defined]
