"""One description of a picture and its mask from what a frozen network returns.

Networks with a class token: that token, then the ``patches`` patch tokens most similar to it (specification
mvrec, 2.4), or without such tokens the mean of the patches under the mask. Networks without: per layer the
mean and the deviation of the cells under the mask and the mean of all cells, side by side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.prototype import unit

LEAST = 1e-4
"""Share of the cells below which a mask is taken as empty: then every cell counts."""


def top_patches(cls: Tensor, tokens: Tensor, number: int) -> Tensor:
    """Class token and the patch tokens with the largest cosine to it, in descending order.

    Args:
        cls: (B, D).
        tokens: (B, N, D).
        number: How many patch tokens.

    Returns:
        (B, 1 + number, D).
    """
    place = similar(cls, tokens, number)
    chosen = tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.cat([cls[:, None], chosen], 1)


def similar(cls: Tensor, tokens: Tensor, number: int) -> Tensor:
    """(B, number) places of the tokens with the largest cosine to the class token."""
    return (unit(tokens) @ unit(cls)[..., None])[..., 0].topk(number, 1).indices


def weights(alpha: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weight (B, N) of every cell: share of the mask (B, 1, H, W) in it, sum 1, equal without."""
    share = F.adaptive_avg_pool2d(alpha, grid).flatten(1)
    share = torch.where(share.mean(1, keepdim=True) < LEAST, torch.ones_like(share), share)
    return share / share.sum(1, keepdim=True)


def moments(layers: Sequence[Tensor], alpha: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 3 L D): of every layer (B, N, D) mean and deviation under the mask, and the mean of all cells.

    Each of the three is brought to a common scale per layer (length 1), so that none drowns the others.
    """
    weight = weights(alpha, grid)[..., None]  # (B, N, 1)
    parts = []
    for tokens in (layer.float() for layer in layers):
        inside = (tokens * weight).sum(1)
        spread = ((tokens - inside[:, None]).square() * weight).sum(1).sqrt()
        parts += [unit(inside), unit(spread), unit(tokens.mean(1))]
    return torch.cat(parts, -1)
