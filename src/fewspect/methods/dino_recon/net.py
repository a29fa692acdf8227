"""Network that rebuilds frozen features from a noisy bottleneck: Dinomaly (arXiv 2405.14325, section 3).

The features of several layers are averaged in groups; their common mean goes through a bottleneck with
dropout and a small decoder of transformer blocks with linear attention, which can't copy single tokens well.
The outputs of the blocks, averaged in groups in reverse order, are compared with the groups of the encoder.

Shapes: tokens (B, N, D); G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.backbones.base import Backbone
from fewspect.errors import UserError

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the encoder says and what the decoder makes of it.

    Attributes:
        target: G tensors (B, N, D), constant.
        rebuilt: G tensors (B, N, D).
        grid: Rows and columns of the tokens.
    """

    target: tuple[Tensor, ...]
    rebuilt: tuple[Tensor, ...]
    grid: tuple[int, int]


class ReconNet(nn.Module):
    """Frozen backbone, bottleneck, decoder.

    Args:
        backbone: Feature extractor; all its ``layers`` are targets.
        groups: Layers are averaged in so many groups of neighbours, and so are the decoder's blocks.
        depth: Blocks of the decoder.
        heads: Attention heads; None = heads of width 64, at least one.
        dropout: Rate before and inside the bottleneck: the noise that keeps defects from being rebuilt.
        ratio: Expansion of bottleneck and feed-forward.

    Raises:
        UserError: More groups than layers or blocks, or a width that the heads do not divide.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        groups: int = 2,
        depth: int = 4,
        heads: int | None = None,
        dropout: float = 0.2,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        dim = backbone.dim
        heads = heads or max(1, dim // 64)
        if not 1 <= groups <= min(len(backbone.layers), depth):
            raise UserError(
                f"method.net.groups={groups} with {len(backbone.layers)} layers and {depth} blocks.",
                "There are at most as many groups as layers of the backbone and blocks of the decoder.",
            )
        if dim % heads:
            raise UserError(f"method.net.heads={heads} does not divide the width {dim}.", "Choose a divisor.")
        self.backbone, self.groups = backbone, groups
        self.bottleneck = Bottleneck(dim, ratio, dropout)
        self.decoder = nn.ModuleList(Block(dim, heads, ratio) for _ in range(depth))

    def forward(self, images: Tensor) -> Pairs:
        """Encode and rebuild images (B, 3, H, W) in [0, 1]."""
        features = self.backbone(images)
        target = _grouped([t.detach() for t in features.tokens], self.groups)
        x = self.bottleneck(torch.stack(target).mean(0))
        outputs = []
        for block in self.decoder:
            x = block(x)
            outputs.append(x)
        rebuilt = _grouped(outputs[::-1], self.groups)  # the last block answers for the first layers
        return Pairs(target, rebuilt, features.grid)


class Bottleneck(nn.Module):
    """Feed-forward network without residual: dropout, expand, GELU, dropout, reduce, dropout.

    Args:
        dim: Width D.
        ratio: Expansion.
        dropout: Rate.
    """

    def __init__(self, dim: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Change tokens (B, N, D)."""
        return self.drop(self.reduce(self.drop(F.gelu(self.expand(self.drop(x))))))


class LinearAttention(nn.Module):
    """Attention without softmax: ``f(q) (f(k)^T v) / (f(q) sum f(k))`` with f = ELU + 1 (arXiv 2006.16236).

    Its cost grows with N, and it looks at everything a little instead of at one token sharply.

    Args:
        dim: Width D, a multiple of ``heads``.
        heads: Attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, N, D)."""
        q, k, v = self.mix(x).unflatten(-1, (3, self.heads, -1)).movedim(1, 3).unbind(1)  # (B, heads, N, d)
        with torch.autocast(x.device.type, enabled=False):  # sums over all tokens
            q, k, v = F.elu(q.float()) + 1, F.elu(k.float()) + 1, v.float()
            mixed = q @ (k.transpose(-1, -2) @ v)
            mixed = mixed / (q @ k.sum(-2)[..., None])  # q and k are positive
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block with linear attention.

    Args:
        dim: Width D.
        heads: Attention heads.
        ratio: Expansion of the feed-forward.
    """

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=LAYER_NORM_EPS) for _ in range(2))
        self.attention = LinearAttention(dim, heads)
        self.expand, self.reduce = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (B, N, D)."""
        x = x + self.attention(self.norm1(x))
        return x + self.reduce(F.gelu(self.expand(self.norm2(x))))


def _grouped(layers: Sequence[Tensor], groups: int) -> tuple[Tensor, ...]:
    """Means (B, N, D) of ``groups`` runs of neighbouring layers, as even as possible."""
    edges = [len(layers) * k // groups for k in range(groups + 1)]
    return tuple(torch.stack(list(layers[a:b])).mean(0) for a, b in pairwise(edges))
