"""Which cells of a picture show the object and which its background, found on good pictures alone.

AnomalyDINO (arXiv 2405.14529) leaves the background out where the first principal component of the patches
tells it from the object, for a list of categories made by hand. Here the good pictures decide: a component
that does not fall into two parts, or one whose parts lie in the middle and around it alike, is not used.

Shapes: tokens (B, N, D) on a grid (h, w), N = h * w.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIDDLE = 0.6
"""Side of the middle part as a share of the grid's, as in AnomalyDINO."""

COVERED = 0.1
"""Share of the middle that an object covers at least: a screw is thin."""

OUTSIDE = 2 / 3
"""Share of the frame around it that an object covers at most, relative to its share of the middle."""

SPLIT = 0.75
"""Share of the component's variance that two parts explain at least: 0.64 of a normal distribution, 0.75 of
a uniform one."""


@dataclass(frozen=True, slots=True)
class Foreground:
    """A half space of features.

    Attributes:
        axis: (D,) of length 1; the object lies in its direction.
        offset: (): value of the component from which on a cell belongs to the object.
    """

    axis: Tensor
    offset: Tensor

    def cells(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask (B, N) bool of the object's cells, grown by one cell, small gaps closed."""
        inside = (tokens.float() @ self.axis > self.offset).to(torch.float32)
        mask = _grown(_closed(_grown(inside.unflatten(-1, grid)[:, None])))
        return mask[:, 0].flatten(1) > 0


def find(tokens: Tensor, grid: tuple[int, int]) -> Foreground | None:
    """Tell object from background on good pictures; None where they do not differ so.

    Args:
        tokens: (B, N, D) of good pictures of one product.
        grid: (h, w).
    """
    rows = tokens.flatten(0, 1).double()
    mean = rows.mean(0)
    axis = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors[:, -1]  # (D,)
    values = rows @ axis
    offset, explained = halved(values)
    middle = _middle(grid).to(values.device).flatten()  # (N,)
    inside = (values > offset).view(tokens.shape[:2]).double()
    covered, outside = inside[:, middle].mean(), inside[:, ~middle].mean()
    if covered < outside:
        axis, offset, covered, outside = -axis, -offset, 1 - covered, 1 - outside
    useful = explained >= SPLIT and covered >= COVERED and outside <= OUTSIDE * covered
    return Foreground(axis.to(tokens), offset.to(tokens)) if bool(useful) else None


def halved(values: Tensor) -> tuple[Tensor, Tensor]:
    """Otsu's threshold of values (M,), M >= 2, and the share of their variance that it explains, both ()."""
    ordered = values.double().sort().values
    number = len(ordered)
    below = torch.arange(1, number, device=values.device, dtype=torch.float64)
    total = ordered.sum()
    low = ordered.cumsum(0)[:-1]
    between = below * (number - below) * (low / below - (total - low) / (number - below)).square()
    best = between.argmax()
    spread = ordered.var(correction=0) * number**2
    explained = torch.where(spread > 0, between[best] / spread, 0.0)
    return (ordered[best] + ordered[best + 1]) / 2, explained


def _middle(grid: tuple[int, int]) -> Tensor:
    """Mask (h, w) of the middle part."""
    mask = torch.zeros(grid, dtype=torch.bool)
    top, left = (round(n * (1 - MIDDLE) / 2) for n in grid)
    mask[top : grid[0] - top, left : grid[1] - left] = True
    return mask


def _grown(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask, 3, stride=1, padding=1)


def _closed(mask: Tensor) -> Tensor:
    return -_grown(-_grown(mask))
