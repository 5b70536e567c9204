"""Calls of ops run forward and backward, in contiguous and in strided memory; Triton compared with the reference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout | None] = {"contiguous": None, "strided": cases.strided, "transposed": cases.transposed}
layouts = pytest.mark.parametrize("layout", ["contiguous", "strided"])

# Given the float inputs and `impl`, one op's result or results.
Run = Callable[..., Tensor | tuple[Tensor, ...]]


def evaluate(call: Call, impl: Impl, layout: Layout | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients of a call; with a layout, of activations, parameters, target and gradient in such memory."""
    call = laid_out(call, layout) if layout else call
    return values_and_gradients(partial(call, impl=impl), call.inputs.values(), weight_in(layout))


def laid_out(call: Call, layout: Layout) -> Call:
    """Floating tensors in such memory, except maps, which must be channels-last."""

    def moved(name: str, value: Any) -> Any:
        free = isinstance(value, Tensor) and value.is_floating_point() and not name.endswith("_FCHW")
        return layout(value) if free else value

    inputs, fixed = ({name: moved(name, value) for name, value in part.items()} for part in (call.inputs, call.fixed))
    return replace(call, inputs=inputs, fixed=fixed)


def weight_in(layout: Layout | None) -> Layout:
    """The gradient of a result: what follows an op in a model may be a slice or an expansion."""
    return lambda value: layout(random_weight(value)) if layout and value.ndim else random_weight(value)


@contextmanager
def recorded_ops() -> Iterator[list[tuple[Any, list[Any]]]]:
    """Collect the project's operators that are called, with their arguments."""
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
        yield calls


def called_ops(call: Call, layout: Layout | None = None) -> list[tuple[Any, list[Any]]]:
    """The operators that a forward and backward pass calls, with their arguments."""
    with recorded_ops() as calls:
        evaluate(call, "auto", layout)
    return calls


def assert_call(call: Call, layout: str = "contiguous") -> None:
    """Values and every gradient of a call, Triton against the reference, in the call's dtypes."""
    memory = LAYOUTS[layout]
    call = laid_out(call, memory) if memory else call
    _compare(call, list(call.inputs.values()), memory)


def assert_op(run: Run, inputs: Sequence[Tensor]) -> None:
    """The same of any function `run(*inputs, impl=...)`, with contiguous inputs."""
    _compare(run, [tensor.to(DEVICE) for tensor in inputs], None)


def _compare(run: Run, inputs: Sequence[Tensor], layout: Layout | None) -> None:
    def evaluated(impl: Impl, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        def results(*leaves: Tensor) -> tuple[Tensor, ...]:
            value = run(*leaves, impl=impl)
            return (value,) if isinstance(value, Tensor) else value

        return values_and_gradients(results, tensors, weight_in(layout))

    exact = [tensor.double() for tensor in inputs]
    outcomes = [evaluated("triton", inputs), evaluated("torch", inputs), evaluated("torch", exact)]
    for kind, sets in zip(("value", "gradient"), zip(*outcomes, strict=True), strict=True):
        for number, (got, plain, truth) in enumerate(zip(*sets, strict=True)):
            assert_as_close_as(got, plain, truth, f"{kind} {number}")
