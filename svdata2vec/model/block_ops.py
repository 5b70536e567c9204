"""What comes between two matrix products or convolutions of a block: module by module, or fused into one op each.

Both ways take the same modules, so that parameters, their names and state dicts don't depend on the choice. The fused ops
are off by default: they pay where the GPU is the limit, not where the host is (kernels/README.md, at the end).

B clips, N tokens, D width, H hidden width; F maps (frames), C channels, H W picture
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdata2vec.kernels.dispatch import Impl
from svdata2vec.kernels.functional import add_layer_norm, batch_norm_prelu, batch_norm_prelu_pool, bias_gelu


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

    def norm_prelu_pool(self, norm: nn.BatchNorm2d, prelu: nn.PReLU, pool: nn.MaxPool2d, x_FCHW: Tensor) -> Tensor:
        """The largest of 3x3 neighbours of PReLU(BatchNorm(x)), every second pixel."""
        return pool(self.norm_prelu(norm, prelu, x_FCHW))


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
        if not _fusible(norm):
            return super().norm_prelu(norm, prelu, x_FCHW, shortcut_FCHW)
        shortcut_FCHW = None if shortcut_FCHW is None else _channels_last(shortcut_FCHW)
        return batch_norm_prelu(_channels_last(x_FCHW), *_vectors(norm, prelu), shortcut_FCHW=shortcut_FCHW, **self._how(norm))

    def norm_prelu_pool(self, norm: nn.BatchNorm2d, prelu: nn.PReLU, pool: nn.MaxPool2d, x_FCHW: Tensor) -> Tensor:
        """Likewise; the map behind the PReLU is never written."""
        if not _fusible(norm) or (pool.kernel_size, pool.stride, pool.padding) != (3, 2, 1):
            return super().norm_prelu_pool(norm, prelu, pool, x_FCHW)
        return batch_norm_prelu_pool(_channels_last(x_FCHW), *_vectors(norm, prelu), **self._how(norm))

    def _how(self, norm: nn.BatchNorm2d) -> dict[str, Any]:
        """The options of a normalisation, which counts as one of the module's."""
        assert norm.num_batches_tracked is not None
        if norm.training:
            norm.num_batches_tracked.add_(1)
        return {"training": norm.training, "momentum": norm.momentum, "eps": norm.eps, "impl": self.impl}


def _fusible(norm: nn.BatchNorm2d) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.momentum is not None


def _vectors(norm: nn.BatchNorm2d, prelu: nn.PReLU) -> tuple[Tensor, ...]:
    """Weight, bias and slope, running mean and variance."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.weight, norm.bias, prelu.weight, norm.running_mean, norm.running_var


def _channels_last(x_FCHW: Tensor) -> Tensor:
    """As it is, except behind the Conv3d of all frames."""
    return x_FCHW.contiguous(memory_format=torch.channels_last)


def block_ops(fused: bool, impl: Impl) -> BlockOps:
    """What a configuration asks for (`model.fused_blocks`, `model.impl`)."""
    return FusedBlockOps(impl) if fused else BlockOps()
