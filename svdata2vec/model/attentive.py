"""The attentive probe's head: a learned query attends to the frozen tokens of a clip (V-JEPA, https://arxiv.org/abs/2404.08471).

B clips, T tokens of a clip, D width
"""

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import ModelConfig
from svdata2vec.model.block_ops import block_ops
from svdata2vec.model.transformer import Block, Mlp, initialise_transformer


class QueryBlock(nn.Module):
    """q + attention(q, norm(x)), then q + mlp(norm(q)), for one learned query q."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.width), std=0.02))
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio), block_ops(config.fused_blocks, config.impl))

    def forward(self, x_BTD: Tensor) -> Tensor:
        query_B1D, x_BTD = self.query.expand(len(x_BTD), -1, -1), self.norm1(x_BTD)
        query_B1D = query_B1D + self.attention(query_B1D, x_BTD, x_BTD, need_weights=False)[0]
        return (query_B1D + self.mlp(self.norm2(query_B1D))).squeeze(1)


class AttentiveHead(nn.Module):
    """Tokens (B, T, D) -> logits (B, classes): `blocks - 1` blocks among the tokens, one with the query, one Linear."""

    def __init__(self, config: ModelConfig, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(config) for _ in range(blocks - 1)))
        self.pool = QueryBlock(config)
        self.fc = nn.Linear(config.width, num_classes)
        self.apply(initialise_transformer)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(tokens_BTD)))
