"""`register_op` makes one PyTorch operator, `torch.ops.svdata2vec.<name>`, of a reference and a launcher.

Everything that PyTorch needs of an operator beyond the computation is derived here, in the same way for every op: the schema
from the launcher's annotations, the CPU implementation and the shapes for `torch.compile` from the reference, the gradient
from another op.

A call goes through the operator if PyTorch records or transforms calls. Otherwise it goes straight to the implementation,
with the same gradient through a `torch.autograd.Function`: calling an operator that is defined in Python costs the host more
than most kernels take (kernels/README.md, "What runs").
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

# (inputs, results) of an op, results always as a tuple -> the arguments of its backward op after the gradient.
Save = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]


@dataclass(frozen=True)
class Gradient:
    """How an op is differentiated, in the form of PyTorch's `register_autograd`."""

    backward: Callable[..., Any]  # (ctx, *gradients of results) -> a gradient or None for every input
    setup_context: Callable[..., None]  # (ctx, inputs, output): saves what `backward` needs


@dataclass(frozen=True)
class Op:
    """An operator (`registered`, which opcheck and `torch.compile` know), and the functions that implement it."""

    name: str
    registered: CustomOpDef
    reference: Callable[..., Any]
    implementation: Callable[..., Any]
    function: type[torch.autograd.Function]  # the implementation with its gradient
    too_large: Callable[..., str]  # why the arguments are too large for the launcher; empty if they are not

    def __call__(self, *arguments: Any) -> Any:
        """The operator, as it runs on this device."""
        if torch.compiler.is_compiling():
            return self.registered(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if _recorded(tensors):
            return self.registered(*arguments)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return self.function.apply(*arguments)
        return self.implementation(*arguments)

    def run(self, impl: Impl, *arguments: Any) -> Any:
        """The operator or the plain reference, depending on `impl`, device and size of the arguments (see dispatch.py)."""
        taken = use_op(self.name, impl, arguments[0], lambda: self.too_large(*arguments))
        return (self if taken else self.reference)(*arguments)


def _recorded(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch records or transforms calls: tracing, fake tensors and other modes and subclasses, batches of
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
            shapes, dtypes and strides, in tensors that share no memory with the arguments or with each other. It must not
            read values of tensors, so that it also runs on fake ones.
        launcher: starts the Triton kernels. Its annotations are the operator's schema. In a process that interprets
            kernels it serves the CPU too.
        backward: the op that takes the gradient of the first result and the values that `save` returns, and returns the
            gradients of the arguments named in `differentiable`, in that order.
        save: maps inputs and results to the arguments of `backward` after the gradient (default: the inputs).
        gradient: replaces these three if a gradient takes more than one call. An op with neither, such as every
            `<name>_backward`, refuses to be differentiated.
        too_large: maps the launcher's arguments to the reason why their shapes are too large for it; empty if they are not.

    Raises:
        ValueError: an annotation that PyTorch has no schema for, or a name in `differentiable` that is no argument.
    """

    def plain(*arguments: Any) -> Any:
        """The reference in the precision of the arguments, as the kernels compute, regardless of autocast."""
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
    """A gradient that is one call of a backward op, whose results belong to the inputs at `places`."""

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
    """A gradient that fails with an explanation, for ops that cannot be differentiated (again)."""

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(f"{name} has no second derivative; call it with impl='torch' to differentiate twice")

    return Gradient(refuse, lambda ctx, inputs, output: None)
