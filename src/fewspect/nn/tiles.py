"""Overlapping tiles of an image for a network with a fixed input (specification reconstruction_ae, 1.6).

Tiles start at 0, s, 2 s, ... along each axis; the last one is aligned to the image's end, rows outer, columns
inner. Their answers are averaged by ``windows.Merger``, optionally with a weight that trusts the centre of a
tile more than its border.

Example:
    >>> positions(300, 128, 60)
    [0, 60, 120, 172]
"""

import math

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn.windows import Box, positions

GAUSSIAN_SIGMA = 0.25
"""Sigma of the Gaussian weight as a share of the tile's side."""


def boxes(height: int, width: int, patch: int, stride: int) -> list[Box]:
    """Cover an image, at least ``patch`` pixels high and wide, with squares of side ``patch``.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        patch: Side of a tile in pixels.
        stride: Distance of neighbouring tiles in pixels, at least 1.
    """
    tops, lefts = (positions(length, patch, stride) for length in (height, width))
    return [(top, top + patch, left, left + patch) for top in tops for left in lefts]


def pad(view: Tensor, side: int) -> Tensor:
    """Mirror an image (C, H, W) at its bottom and right until it is at least ``side`` high and wide.

    The edge pixel is not repeated; a small image is mirrored several times. Cut off by ``[:, :H, :W]``.
    """
    rows, columns = (_mirrored(length, side, view.device) for length in view.shape[-2:])
    return view[:, rows][:, :, columns]


def _mirrored(length: int, side: int, device: torch.device) -> Tensor:
    """Positions 0, 1, ..., n - 1, n - 2, ..., 1, 0, 1, ... of at least ``side`` pixels; n = ``length``."""
    turn = 2 * length - 2
    step = torch.arange(max(length, side), device=device) % max(1, turn)
    return torch.minimum(step, turn - step)


def weight(name: str, side: int) -> Tensor:
    """Trust in the pixels of a tile: (side, side) float32, positive.

    Args:
        name: ``uniform`` = 1 everywhere; ``hann`` = sin^2 along both axes, falling to nearly 0 at the border;
            ``gaussian`` with a sigma of a quarter of the side.
        side: In pixels.

    Raises:
        UserError: Unknown name.
    """
    middle = torch.arange(side, dtype=torch.float64) + 0.5
    if name == "uniform":
        line = torch.ones(side, dtype=torch.float64)
    elif name == "hann":
        line = torch.sin(math.pi * middle / side) ** 2
    elif name == "gaussian":
        line = torch.exp(-(((middle - side / 2) / (GAUSSIAN_SIGMA * side)) ** 2) / 2)
    else:
        raise UserError(f"There is no tile weight '{name}'.", "Use uniform, hann or gaussian.")
    return (line[:, None] * line).float()
