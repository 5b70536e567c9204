"""Calls of ops run forward and backward, in contiguous and in strided memory; Triton compared with the reference."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import kernel_cases as cases
import pytest
import torch
from kernel_device import DEVICE
from kernel_inputs import Call, random_weight, values_and_gradients
from tolerances import assert_as_close_as
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svdata2vec.kernels.dispatch import Impl

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
layouts = pytest.mark.parametrize("layout", ["contiguous", "strided"])

# Given the float inputs and `impl`, one op's result or results.
Run = Callable[..., Tensor | tuple[Tensor, ...]]


def evaluate(call: Call, impl: Impl, strided: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients of a call; strided, it gets no contiguous activation, parameter, target or gradient."""
    call = strided_call(call) if strided else call
    weigh = strided_weight if strided else None
    return values_and_gradients(partial(call, impl=impl), call.inputs.values(), weigh)


def strided_call(call: Call) -> Call:
    """Floating tensors behind strides, except maps, which must be channels-last."""

    def layout(name: str, value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point() and not name.endswith("_FCHW")
        return cases.strided(value) if floats else value

    inputs, fixed = ({name: layout(name, value) for name, value in part.items()} for part in (call.inputs, call.fixed))
    return replace(call, inputs=inputs, fixed=fixed)


def strided_weight(value: Tensor) -> Tensor:
    """What follows an op in a model may be a slice or an expansion: its gradient is strided."""
    return cases.strided(random_weight(value)) if value.ndim else random_weight(value)


def called_ops(call: Call, strided: bool = False) -> list[tuple[Any, list[Any]]]:
    """The operators that a forward and backward pass calls, with their arguments."""
    calls: list[tuple[Any, list[Any]]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "svdata2vec":
                copies = [x.detach() if isinstance(x, Tensor) else x for x in args]
                for copy, given in zip(copies, args, strict=True):
                    if isinstance(copy, Tensor) and not func.name().endswith("_backward"):
                        copy.requires_grad_(given.requires_grad)
                calls.append((func, copies))
            return func(*args, **(kwargs or {}))

    with Recorder():
        evaluate(call, "auto", strided)
    return calls


def assert_call(call: Call, layout: str = "contiguous") -> None:
    """Values and every gradient of a call, Triton against the reference, in the call's dtypes."""
    call = strided_call(call) if layout == "strided" else call
    _compare(call, list(call.inputs.values()), strided_weight if layout == "strided" else None)


def assert_op(run: Run, inputs: Sequence[Tensor], layout: str = "contiguous") -> None:
    """The same of any function `run(*inputs, impl=...)`."""
    given = [cases.strided(tensor.to(DEVICE)) if layout == "strided" else tensor.to(DEVICE) for tensor in inputs]
    _compare(run, given, strided_weight if layout == "strided" else None)


def _compare(run: Run, inputs: Sequence[Tensor], weigh: Callable[[Tensor], Tensor] | None) -> None:
    def evaluated(impl: Impl, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        def results(*leaves: Tensor) -> tuple[Tensor, ...]:
            value = run(*leaves, impl=impl)
            return (value,) if isinstance(value, Tensor) else value

        return values_and_gradients(results, tensors, weigh)

    exact = [tensor.double() for tensor in inputs]
    outcomes = [evaluated("triton", inputs), evaluated("torch", inputs), evaluated("torch", exact)]
    for kind, sets in zip(("value", "gradient"), zip(*outcomes, strict=True), strict=True):
        for number, (got, plain, truth) in enumerate(zip(*sets, strict=True)):
            assert_as_close_as(got, plain, truth, f"{kind} {number}")
