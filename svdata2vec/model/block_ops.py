"""What stands between two matrix products or convolutions of a block: module by module, or fused into one op each.

Both ways take the same modules, so that parameters, their names and state dicts don't depend on the choice. The fused ops
are off by default: they pay where the GPU is the limit, not where the host is (kernels/README.md, at the end).

B clips, N tokens, D width, H hidden width; F maps (frames), C channels, H W picture
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.functional import add_layer_norm, batch_norm_prelu, bias_gelu


class BlockOps:
    """As modules of PyTorch, one after the other."""

    def add_norm(self, norm: nn.LayerNorm, x_BND: Tensor, branch_BND: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual sum, and its LayerNorm (of x alone without a branch)."""
        x_BND = x_BND if branch_BND is None else x_BND + branch_BND
        return x_BND, norm(x_BND)

    def linear_gelu(self, linear: nn.Linear, x_BND: Tensor) -> Tensor:
        """(B, N, H): GELU of a linear map."""
        return F.gelu(linear(x_BND))

    def norm_prelu(
        self, norm: nn.BatchNorm2d, prelu: nn.PReLU, x_FCHW: Tensor, shortcut_FCHW: Tensor | None = None
    ) -> Tensor:
        """PReLU(BatchNorm(x) + shortcut)."""
        x_FCHW = norm(x_FCHW)
        return prelu(x_FCHW if shortcut_FCHW is None else x_FCHW + shortcut_FCHW)


@dataclass(frozen=True)
class FusedBlockOps(BlockOps):
    """The same, each as one op of `svdata2vec.kernels`."""

    impl: Impl

    def add_norm(self, norm: nn.LayerNorm, x_BND: Tensor, branch_BND: Tensor | None) -> tuple[Tensor, Tensor]:
        # The norm's only reader is a matrix product: write what that reads, instead of float32 under autocast.
        device = x_BND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return add_layer_norm(x_BND, branch_BND, norm.weight, norm.bias, norm.eps, dtype=dtype, impl=self.impl)

    def linear_gelu(self, linear: nn.Linear, x_BND: Tensor) -> Tensor:
        return bias_gelu(F.linear(x_BND, linear.weight), linear.bias, impl=self.impl)

    def norm_prelu(
        self, norm: nn.BatchNorm2d, prelu: nn.PReLU, x_FCHW: Tensor, shortcut_FCHW: Tensor | None = None
    ) -> Tensor:
        """One op for a plain BatchNorm. A synchronised one needs the other processes' batches: module by module."""
        if type(norm) is not nn.BatchNorm2d or norm.momentum is None:
            return super().norm_prelu(norm, prelu, x_FCHW, shortcut_FCHW)
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        if norm.training:
            norm.num_batches_tracked.add_(1)
        if shortcut_FCHW is not None:
            shortcut_FCHW = shortcut_FCHW.contiguous(memory_format=torch.channels_last)
        return batch_norm_prelu(
            x_FCHW.contiguous(memory_format=torch.channels_last),  # as it is, except behind the Conv3d of all frames
            norm.weight,
            norm.bias,
            prelu.weight,
            norm.running_mean,
            norm.running_var,
            shortcut_FCHW=shortcut_FCHW,
            training=norm.training,
            momentum=norm.momentum,
            eps=norm.eps,
            impl=self.impl,
        )


def block_ops(fused: bool, impl: Impl) -> BlockOps:
    """What a configuration asks for (`model.fused_blocks`, `model.impl`)."""
    return FusedBlockOps(impl) if fused else BlockOps()
