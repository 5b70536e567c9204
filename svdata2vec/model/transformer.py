"""Pre-norm transformer blocks over short token sequences; attention runs in `svdata2vec.kernels`.

B clips, N tokens, D width
"""

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import ModelConfig
from svdata2vec.kernels.functional import attention
from svdata2vec.model.block_ops import BlockOps, block_ops


class Attention(nn.Module):
    """Multi-head self-attention; one packed qkv projection (rows q, k, v, each split into heads)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.impl = config.heads, config.impl
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.proj(attention(self.qkv(x_BND), self.num_heads, impl=self.impl))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int, ops: BlockOps) -> None:
        super().__init__()
        self.ops = ops
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(self.ops.linear_gelu(self.fc1, x_BND))


class DropPath(nn.Module):
    """Drop a residual branch for whole clips with probability `rate` while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BND: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BND
        keep = torch.rand(x_BND.shape[0], 1, 1, device=x_BND.device) >= self.rate
        return x_BND * keep.to(x_BND.dtype) / (1 - self.rate)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each branch dropped with probability `drop_path` while training."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.ops = block_ops(config.fused_blocks, config.impl)
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio), self.ops)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.forward_with_mlp(x_BND)[0]

    def forward_with_mlp(self, x_BND: Tensor, out_BND: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The block's output and, beside it, its MLP branch (a target option of the paper's code).

        Without a gradient the output can be written straight into `out_BND`.
        """
        x_BND, normed_BND = self.ops.add_norm(self.norm1, x_BND, None)
        x_BND, normed_BND = self.ops.add_norm(self.norm2, x_BND, self.drop_path(self.attn(normed_BND)))
        mlp_BND = self.mlp(normed_BND)
        return torch.add(x_BND, self.drop_path(mlp_BND), out=out_BND), mlp_BND


def initialise_transformer(module: nn.Module) -> None:
    """Linear: Xavier-uniform weight, zero bias; LayerNorm: one and zero. For `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
