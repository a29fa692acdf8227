"""Self-attention on feature maps: pre-norm block, fused attention, convolutional feed-forward.

Tokens are (M, N, D) in and out, N = h * w row-major. The feed-forward is SegFormer's (arXiv 2105.15203, eq.
3) with the depthwise convolution directly after the expansion.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
SCALE_EPS = 1e-9
"""Scores are divided by sqrt(d) + 1e-9 (specification sofs, 2.7)."""


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases, positions or mask.

    Args:
        dim: Width D, a multiple of ``heads``.
        heads: Attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (M, N, D)."""
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))  # (M, heads, N, d)
        scale = 1.0 / (math.sqrt(q.shape[-1]) + SCALE_EPS)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (M, N, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (M, heads, N, d)


class MixFFN(nn.Module):
    """Expand, depthwise 3x3 convolution, GELU, reduce.

    Args:
        dim: Width D.
        ratio: Expansion.
        dropout: Rate after the activation and at the end.
    """

    def __init__(self, dim: int, ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = dim * ratio
        self.expand = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mix channels and neighbours of tokens (M, N, D) on their grid (h, w)."""
        maps = self.expand(x).transpose(1, 2).unflatten(-1, grid)  # (M, hidden, h, w)
        hidden = F.gelu(self.depthwise(maps)).flatten(2).transpose(1, 2)  # (M, N, hidden)
        return self.drop(self.reduce(self.drop(hidden)))


class Block(nn.Module):
    """``x + drop(attention(norm(x)))``, then ``x + feed_forward(norm(x))``.

    Args:
        dim: Width D.
        heads: Attention heads.
        ratio: Expansion of the feed-forward.
        dropout: Rate after attention and inside the feed-forward.
    """

    def __init__(self, dim: int, heads: int, ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn = MixFFN(dim, ratio, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Transform tokens (M, N, D) on their grid (h, w)."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.ffn(self.norm2(x), grid)
