"""`register_op`: a reference and a launcher become one PyTorch operator, `torch.ops.svdata2vec.<name>`.

What PyTorch asks of an operator beyond the computation is derived here, for every op in the same way: the schema from the
launcher's annotations, the CPU's implementation and the shapes for `torch.compile` from the reference, the gradient
from another op.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import CustomOpDef

from svdata2vec.kernels import dispatch
from svdata2vec.kernels.dispatch import Impl, use_op

# From an op's inputs and its results (always a tuple): what its backward op takes behind the gradient.
Save = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]


@dataclass(frozen=True)
class Op:
    """An operator (`registered`, which opcheck and `torch.compile` know) and the reference that it stands for."""

    name: str
    registered: CustomOpDef
    reference: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """The operator, whatever it runs on this device."""
        return self.registered(*arguments)

    def run(self, impl: Impl, *arguments: Any) -> Any:
        """The operator or the plain reference, as `impl` and the device of the first argument demand (see dispatch.py)."""
        return (self.registered if use_op(self.name, impl, arguments[0]) else self.reference)(*arguments)


def register_op(
    name: str,
    reference: Callable[..., Any],
    launcher: Callable[..., Any],
    *,
    backward: Op | None = None,
    differentiable: Sequence[str] = (),
    save: Save = lambda inputs, results: inputs,
) -> Op:
    """Define the operator `svdata2vec::<name>`: `launcher` on a GPU, `reference` on the CPU and on fake tensors.

    Args:
        reference: plain PyTorch. It takes the launcher's arguments and returns what the launcher returns, with the same
            shapes, dtypes and strides, in tensors that share no memory with the arguments or with each other; and it reads
            no value of a tensor, so that it also runs on fake ones.
        launcher: starts the Triton kernels. Its annotations are the operator's schema. In a process that interprets
            kernels it serves the CPU too.
        backward: the op that takes the gradient of the first result and what `save` keeps, and returns the gradients of
            the arguments named in `differentiable`, in that order. It gets no gradient itself: a second differentiation
            is refused. An op whose gradient is more than one call leaves this out and uses PyTorch's `register_autograd`.
        save: from inputs and results to the arguments of `backward` behind the gradient (default: the inputs).

    Raises:
        ValueError: an annotation that PyTorch has no schema for, or a name in `differentiable` that is no argument.
    """

    def plain(*arguments: Any) -> Any:
        """In the precision of the arguments, as the kernels compute, whatever region the call stands in."""
        kind = next(x for x in arguments if isinstance(x, Tensor)).device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return reference(*arguments)

    def on_cpu(*arguments: Any) -> Any:
        return (launcher if dispatch.INTERPRETED else plain)(*arguments)

    schema = torch.library.infer_schema(launcher, mutates_args=())
    registered = torch.library.custom_op(
        f"svdata2vec::{name}", on_cpu, mutates_args=(), device_types="cpu", schema=schema
    )
    registered.register_kernel("cuda")(launcher)
    registered.register_fake(plain)
    if backward is not None:
        names = list(signature(launcher).parameters)
        _register_gradient(registered, backward, len(names), [names.index(argument) for argument in differentiable], save)
        refuse_double_backward(backward, name)
    return Op(name, registered, reference)


def _register_gradient(registered: CustomOpDef, backward: Op, num_inputs: int, places: list[int], save: Save) -> None:
    """Autograd from a backward op whose results belong to the inputs at `places`."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = save(inputs, output if isinstance(output, tuple) else (output,))
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in saved))
        ctx.other = [None if isinstance(value, Tensor) else value for value in saved]

    def run_backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = [value if tensor is None else tensor for tensor, value in zip(ctx.saved_tensors, ctx.other, strict=True)]
        results = backward(grad, *saved)
        gradients: list[Tensor | None] = [None] * num_inputs
        for place, result in zip(places, (results,) if isinstance(results, Tensor) else results, strict=True):
            gradients[place] = result
        return tuple(gradients)

    registered.register_autograd(run_backward, setup_context=setup_context)


def refuse_double_backward(backward: Op, name: str) -> None:
    """Make a second differentiation of op `name` fail with an explanation instead of a wrong or missing gradient."""

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(f"{name} has no second derivative; call it with impl='torch' to differentiate twice")

    backward.registered.register_autograd(refuse)
