"""BatchNorm whose statistics come from the batches of all processes."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        whole = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all processes, on any backend (PyTorch's own needs a GPU)."""

    @classmethod
    def of(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> "SyncBatchNorm":
        """The synchronised twin of a BatchNorm; the two share parameters and buffers."""
        twin = cls(norm.num_features, norm.eps, norm.momentum).train(norm.training)
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(twin, name, tensor)
        return twin

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (N, C, ...) input will do."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        channels, dims = x.shape[1], [0, *range(2, x.ndim)]
        mean, var, total = merged_statistics(of_all_processes(own_statistics(x)), channels)
        self._update_running(mean.detach(), var.detach(), total)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        view = (1, channels, *(1 for _ in dims[1:]))
        return (x * scale.view(view) + shift.view(view)).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (total / (total - 1).clamp_min(1)), self.momentum)


def own_statistics(x: Tensor) -> Tensor:
    """(2C + 1,) of a batch (N, C, ...): each channel's mean, its sum of squared distances from it, and how many there are."""
    dims = [0, *range(2, x.ndim)]
    count = x.numel() // x.shape[1]
    var, mean = torch.var_mean(x, dims, correction=0)
    return torch.cat([mean, var * count, mean.new_tensor([count])])


def merged_statistics(parts: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count of all batches together, from their statistics (W, 2C + 1).

    Distances from a mean are added up, never large sums subtracted (Chan, Golub and LeVeque, 1979): at a mean of 1000 and a
    standard deviation of 1 the difference E[x^2] - E[x]^2 in float32 would be a third off.
    """
    means_WC, spreads_WC, counts_W1 = parts.split([channels, channels, 1], dim=1)
    counts_W1 = counts_W1.detach()
    total = counts_W1.sum()
    mean_C = (counts_W1 / total * means_WC).sum(0)
    apart_WC = means_WC - mean_C.detach()  # by the mean itself the sum of their squares has no derivative
    spread_C = (spreads_WC + counts_W1 * apart_WC.square()).sum(0)
    return mean_C, spread_C / total, total


def of_all_processes(own: Tensor) -> Tensor:
    """(W, ...): the statistics of each process, by rank; gradients flow back to the process that they belong to."""
    padded = own.new_zeros(dist.get_world_size(), *own.shape)
    place = torch.arange(len(padded), device=own.device) == dist.get_rank()
    return cast("Tensor", _SumOverProcesses.apply(torch.where(place.view(-1, 1), own, padded)))


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm inside the model by a synchronised one with the same parameters, buffers and names.

    On a GPU PyTorch's own, which exchanges one message per pass with kernels made for it; elsewhere `SyncBatchNorm`.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, SyncBatchNorm.of(child))
    return model
