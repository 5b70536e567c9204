"""BatchNorm whose statistics come from the batches of all processes."""

from typing import Any

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
        channels = x.shape[1]
        dims = [0, *range(2, x.ndim)]
        count = torch.full((1,), x.numel() / channels, device=x.device)
        sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), (x * x).sum(dims), count]))
        total = sums[-1].detach()
        mean = sums[:channels] / total
        var = (sums[channels:-1] / total - mean * mean).clamp_min(0)
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
