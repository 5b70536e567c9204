"""Activation checkpointing: a part of a network keeps only its input and is computed again for the gradient."""

import contextlib
from collections.abc import Iterator

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def run_part(part: nn.Module, x: Tensor, *, checkpoint: bool) -> Tensor:
    """`part(x)`; with `checkpoint` its activations are computed again for the gradient instead of kept.

    Output, gradients and buffers are those without `checkpoint`: the second pass leaves BatchNorm's statistics alone.
    """
    if not (checkpoint and torch.is_grad_enabled()):
        return part(x)
    return torch.utils.checkpoint.checkpoint(
        part, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _unchanged_statistics(part))
    )


@contextlib.contextmanager
def _unchanged_statistics(part: nn.Module) -> Iterator[None]:
    """Put the buffers of every BatchNorm back at the end. (Both passes must run the same ops, so no norm may act otherwise.)"""
    live = [buffer for norm in part.modules() if isinstance(norm, _BatchNorm) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in live]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(live, before, strict=True):
                buffer.copy_(value)
