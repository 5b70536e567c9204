"""`register_op`: a reference and a launcher become one PyTorch operator, `torch.ops.svdata2vec.<name>`.

What PyTorch asks of an operator beyond the computation is derived here, for every op in the same way: the schema from the
launcher's annotations, the CPU's implementation and the shapes for `torch.compile` from the reference, the gradient
from another op.

A call reaches the operator where PyTorch records or transforms calls. Elsewhere it goes straight to the implementation,
with the same gradient through a `torch.autograd.Function`: the way through an operator in Python costs the host more than
most kernels take (kernels/README.md, "What runs").
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
class Gradient:
    """How an op is differentiated, in the form of PyTorch's `register_autograd`."""

    backward: Callable[..., Any]  # (ctx, *gradients of results) -> a gradient or None for every input
    setup_context: Callable[..., None]  # (ctx, inputs, output): saves what `backward` needs


@dataclass(frozen=True)
class Op:
    """An operator (`registered`, which opcheck and `torch.compile` know), and what stands behind it."""

    name: str
    registered: CustomOpDef
    reference: Callable[..., Any]
    implementation: Callable[..., Any]
    function: type[torch.autograd.Function]  # the implementation with its gradient
    too_large: Callable[..., str]  # why the launcher takes no such arguments; empty where it does

    def __call__(self, *arguments: Any) -> Any:
        """The operator, whatever it runs on this device."""
        if torch.compiler.is_compiling():
            return self.registered(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if _recorded(tensors):
            return self.registered(*arguments)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return self.function.apply(*arguments)
        return self.implementation(*arguments)

    def run(self, impl: Impl, *arguments: Any) -> Any:
        """The operator or the plain reference, as `impl`, device and size of the arguments demand (see dispatch.py)."""
        taken = use_op(self.name, impl, arguments[0], lambda: self.too_large(*arguments))
        return (self if taken else self.reference)(*arguments)


def _recorded(tensors: Sequence[Tensor]) -> bool:
    """True where PyTorch records or transforms calls: tracing, fake tensors and other modes and subclasses, batches of
    gradients, torch.func."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or any(type(x) not in (Tensor, torch.nn.Parameter) or torch._C._functorch.is_legacy_batchedtensor(x) for x in tensors)
    )


def register_op(
    name: str,
    reference: Callable[..., Any],
    launcher: Callable[..., Any],
    *,
    backward: Op | None = None,
    differentiable: Sequence[str] = (),
    save: Save = lambda inputs, results: inputs,
    gradient: Gradient | None = None,
    too_large: Callable[..., str] = lambda *arguments: "",
) -> Op:
    """Define the operator `svdata2vec::<name>`: `launcher` on a GPU, `reference` on the CPU and on fake tensors.

    Args:
        reference: plain PyTorch. It takes the launcher's arguments and returns what the launcher returns, with the same
            shapes, dtypes and strides, in tensors that share no memory with the arguments or with each other; and it reads
            no value of a tensor, so that it also runs on fake ones.
        launcher: starts the Triton kernels. Its annotations are the operator's schema. In a process that interprets
            kernels it serves the CPU too.
        backward: the op that takes the gradient of the first result and what `save` keeps, and returns the gradients of
            the arguments named in `differentiable`, in that order.
        save: from inputs and results to the arguments of `backward` behind the gradient (default: the inputs).
        gradient: in place of these three, where a gradient is more than one call. An op with neither, such as every
            `<name>_backward`, refuses to be differentiated.
        too_large: from the launcher's arguments to why it does not take them, by their shapes; empty where it does.

    Raises:
        ValueError: an annotation that PyTorch has no schema for, or a name in `differentiable` that is no argument.
    """

    def plain(*arguments: Any) -> Any:
        """In the precision of the arguments, as the kernels compute, whatever autocast region the call is in."""
        kind = _device_type(arguments)
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return reference(*arguments)

    def implementation(*arguments: Any) -> Any:
        return (launcher if dispatch.INTERPRETED or _device_type(arguments) == "cuda" else plain)(*arguments)

    if backward is not None:
        names = list(signature(launcher).parameters)
        gradient = _one_call(backward, len(names), [names.index(argument) for argument in differentiable], save)
    gradient = gradient or _refusal(name.removesuffix("_backward"))
    schema = torch.library.infer_schema(launcher, mutates_args=())
    registered = torch.library.custom_op(
        f"svdata2vec::{name}", implementation, mutates_args=(), device_types=("cpu", "cuda"), schema=schema
    )
    registered.register_fake(plain)
    registered.register_autograd(gradient.backward, setup_context=gradient.setup_context)
    return Op(name, registered, reference, implementation, _function(name, implementation, gradient), too_large)


def _device_type(arguments: tuple[Any, ...]) -> str:
    return next(x for x in arguments if isinstance(x, Tensor)).device.type


def _function(name: str, implementation: Callable[..., Any], gradient: Gradient) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *arguments: Any) -> Any:
        output = implementation(*arguments)
        gradient.setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(gradient.backward)}
    return type(f"svdata2vec_{name}", (torch.autograd.Function,), methods)


def _one_call(backward: Op, num_inputs: int, places: list[int], save: Save) -> Gradient:
    """The gradient from a backward op whose results belong to the inputs at `places`."""

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

    return Gradient(run_backward, setup_context)


def _refusal(name: str) -> Gradient:
    """A second differentiation fails with an explanation instead of a wrong or missing gradient."""

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(f"{name} has no second derivative; call it with impl='torch' to differentiate twice")

    return Gradient(refuse, lambda ctx, inputs, output: None)
