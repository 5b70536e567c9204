"""How the networks are laid out in memory and compiled; what they compute stays."""

import torch
from torch import nn

from svdata2vec.model.transformer import Block
from svdata2vec.model.video_encoder import BasicBlock


def use_channels_last(model: nn.Module) -> None:
    """Lay out the weights of all 2-D convolutions channels-last: as the gathered windows are, and as tensor cores want."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.clone(memory_format=torch.channels_last)  # strides of 1x1 too


def compile_parts(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the repeated parts in place (`torch.compile`); names of parameters stay."""
    for module in model.modules():
        if isinstance(module, Block | BasicBlock):
            module.compile(backend=backend)
