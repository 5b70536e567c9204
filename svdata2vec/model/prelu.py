"""PReLU per channel with a backward pass of whole passes over a map: on a CPU, with the values of `torch.nn.functional.prelu`.

PyTorch's own backward pass writes a whole map for the slopes' gradient, and takes 1.3 to 4 times as long (once, 2 cores,
float32 and bfloat16, 2026-11-30, no record).

F maps, C channels, H W picture
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PReLU(nn.PReLU):
    """x where x > 0, else slope * x, for maps (F, C, H, W)."""

    def forward(self, x_FCHW: Tensor) -> Tensor:
        if x_FCHW.is_cuda:
            return F.prelu(x_FCHW, self.weight)
        out_FCHW: Tensor = _BackwardByPasses.apply(x_FCHW, self.weight)
        return out_FCHW


class _BackwardByPasses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_FCHW: Tensor, slope_C: Tensor) -> Tensor:
        ctx.save_for_backward(x_FCHW, slope_C)
        return F.prelu(x_FCHW, slope_C.to(x_FCHW.dtype))

    @staticmethod
    def backward(ctx: Any, grad_FCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_FCHW, slope_C = ctx.saved_tensors
        above_FCHW = torch.ops.aten.threshold_backward(grad_FCHW, x_FCHW, 0)  # the gradient where x > 0, else 0
        below_FCHW = grad_FCHW - above_FCHW
        grad_C = (below_FCHW * x_FCHW).sum((0, 2, 3), dtype=torch.promote_types(x_FCHW.dtype, torch.float32))
        slope_CHW = slope_C.to(x_FCHW.dtype)[:, None, None]
        return torch.addcmul(above_FCHW, below_FCHW, slope_CHW), grad_C.to(slope_C.dtype)
