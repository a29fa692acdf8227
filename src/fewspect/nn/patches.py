"""From the layers of a backbone to one descriptor per patch, and more views of a few good images."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.prototype import unit

Join = Literal["concat", "mean"]


def joined(
    tokens: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    join: Join = "concat",
    pool: int = 1,
    equal: bool = True,
) -> Tensor:
    """Join the layers of a backbone.

    Args:
        tokens: One (B, N, D) per layer, N = h * w.
        grid: (h, w).
        join: ``concat`` along the width (PatchCore, arXiv 2106.08265) or the ``mean`` (SubspaceAD, arXiv
            2602.23013).
        pool: Mean over this many cells in both directions, odd; 1 = none, 3 as in PatchCore (section 3.1).
        equal: Every layer's tokens are brought to length 1 first, so that no layer counts more.

    Returns:
        (B, N, L * D) or (B, N, D), float32.
    """
    layers = [_pooled(t.float(), grid, pool) for t in tokens]
    layers = [unit(t) for t in layers] if equal else layers
    if len(layers) == 1:
        return layers[0]  # without a copy
    return torch.cat(layers, -1) if join == "concat" else torch.stack(layers).mean(0)


def _pooled(tokens: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    if pool == 1:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(-1, grid)  # (B, D, h, w)
    mean = F.avg_pool2d(maps, pool, stride=1, padding=pool // 2, count_include_pad=False)
    return mean.flatten(2).transpose(1, 2)


def resized(cells: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Values of cells (Q, N) as pixels (Q, side, side), bilinear."""
    return F.interpolate(cells.unflatten(-1, grid)[:, None], (side, side), mode="bilinear")[:, 0]


def turned(images: Tensor, number: int) -> Tensor:
    """Turn images by multiples of 360 / number degrees; corners are filled by reflection.

    Args:
        images: (B, 3, H, W).
        number: Angles, the first of which is 0.

    Returns:
        (number * B, 3, H, W); the first B are the images as they are.
    """
    views = [images]
    for step in range(1, number):
        angle = 2 * math.pi * step / number
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
        theta = turn.to(images).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        views.append(F.grid_sample(images, grid, padding_mode="reflection", align_corners=False))
    return torch.cat(views)
