"""How the networks are laid out in memory and executed; what they compute stays the same."""

import torch
from torch import nn

from svdata2vec.model.teacher import Teacher
from svdata2vec.model.transformer import Block
from svdata2vec.model.video_encoder import BasicBlock

VARIANTS = 256  # of a compiled part: depths of stochastic depth, training or evaluation, sizes of batches


def use_channels_last(model: nn.Module) -> None:
    """Lay out the weights of all 2-D convolutions channels-last: as the gathered windows are, and as tensor cores prefer."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.clone(memory_format=torch.channels_last)  # strides of 1x1 too


def compile_parts(network: nn.Module, backend: str = "inductor") -> None:
    """Compile the repeated parts of a network in place, a teacher as a whole (`torch.compile`); names of parameters stay.

    Random numbers stay those of eager mode. A part that needs more than `VARIANTS` variants raises an error, where PyTorch
    would silently leave it uncompiled.
    """
    import torch._dynamo  # takes a second, and only this needs it

    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    options = {"fallback_random": True} if backend == "inductor" else None
    for module in network.modules():
        if isinstance(module, Block | BasicBlock | Teacher):
            module.compile(backend=backend, options=options)
