"""Has a generator copied its training images? Nearest training image of each sample, in any space.

A ratio relates the distance of a sample to its nearest training image to what is usual among the training
images themselves (median of their leave-one-out nearest distances): below ``FLAG`` a sample is closer to one
of them than they are to each other and is flagged (specification defect_gen, 11.6).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.metrics.generation import distances

FLAG = 0.5
SIDE = 64
"""Pixels to which images are brought for a comparison of pixels."""


def thumbnails(images: Sequence[Tensor], side: int = SIDE) -> Tensor:
    """Images (3, H, W) uint8 as rows (N, 3 * side * side) in [0, 1], areas averaged."""
    small = [
        F.interpolate(i[None].float() / 255, (side, side), mode="bilinear", antialias=True) for i in images
    ]
    return torch.cat(small).flatten(1)


def usual(known: Tensor) -> float:
    """Median distance of rows (N, D) to their nearest other row; NaN for fewer than two."""
    if len(known) < 2:
        return float("nan")
    away = distances(known, known).fill_diagonal_(float("inf"))
    return float(away.amin(1).median())


def nearest(made: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (M,) to the nearest of rows (N, D), and which one it is (M,), for rows (M, D)."""
    found = distances(made, known).min(1)
    return found.values, found.indices


def entropy(owner: Tensor, number: int) -> float:
    """Entropy in bits of who is whose nearest, (M,) indices below ``number``; log2(number) = all alike."""
    share = torch.bincount(owner, minlength=number).double() / max(1, len(owner))
    return float(-(share[share > 0] * share[share > 0].log2()).sum())
