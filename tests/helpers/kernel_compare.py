"""An op's Triton side against its reference: value and every gradient, both compared with a truth in float64."""

from collections.abc import Callable

import kernel_cases as cases
import pytest
import torch
from kernel_device import DEVICE
from tolerances import assert_as_close_as
from torch import Tensor

from svdata2vec.kernels.dispatch import Impl

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
layouts = pytest.mark.parametrize("layout", ["contiguous", "strided"])

# Given the float inputs and `impl`, one op's result.
Run = Callable[..., Tensor]


def assert_op(run: Run, inputs: list[Tensor], layout: str = "contiguous") -> None:
    """Value and every gradient of `run(*inputs, impl=...)`, Triton against the reference, in the inputs' dtypes."""

    def evaluate(impl: Impl, tensors: list[Tensor], weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        value = run(*leaves, impl=impl)
        if not value.requires_grad:
            return value, []
        # A strided gradient comes back just as well: what follows an op in a model may be a slice or an expansion.
        weight = weight.to(value)
        weight = cases.strided(weight) if layout == "strided" and weight.ndim else weight
        return value, list(torch.autograd.grad(value, leaves, weight))

    given_inputs = [tensor.to(DEVICE) for tensor in inputs]
    if layout == "strided":
        given_inputs = [cases.strided(tensor) for tensor in given_inputs]
    sample = run(*given_inputs, impl="torch")
    # Rounded to the result's dtype for the truth as well, so that its rounding doesn't count as a kernel's error.
    weight = torch.randn(sample.shape).to(DEVICE, sample.dtype)
    got, got_grads = evaluate("triton", given_inputs, weight)
    reference, reference_grads = evaluate("torch", given_inputs, weight)
    truth, truth_grads = evaluate("torch", [tensor.double() for tensor in given_inputs], weight)
    assert_as_close_as(got, reference, truth, "value")
    assert len(got_grads) == len(reference_grads) == len(truth_grads)
    for number, triple in enumerate(zip(got_grads, reference_grads, truth_grads, strict=True)):
        assert_as_close_as(*triple, f"gradient of input {number}")
