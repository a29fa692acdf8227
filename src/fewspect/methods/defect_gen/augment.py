"""Training pictures and their masks, turned and shifted together; draws come from torch's own generator."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.windows import squash_labels
from fewspect.types import Episode

SHIFT = 1 / 16
"""Largest shift in units of the side; what enters is the mirrored border."""


def clear(episodes: Sequence[Episode], side: int) -> list[Episode]:
    """Leave out defects without a pixel in a mask of ``side`` pixels: they would be learned as good."""
    return [e for e in episodes if int(e.query_label[0]) <= 0 or squash_labels(e.query_mask[0], side).any()]


def turned(x: Tensor, turn: Literal["none", "mirror", "any"]) -> Tensor:
    """Change every sample by itself.

    Args:
        x: (B, C, H, W), H = W for ``any``.
        turn: ``none``; ``mirror``: left and right, top and bottom, a small shift; ``any``: quarter turns,
            too.
    """
    if turn == "none":
        return x
    return torch.stack([_one(sample, quarters=turn == "any") for sample in x])


def cropped(x: Tensor, side: int) -> Tensor:
    """Squares of ``side`` pixels out of (B, C, H, W), anywhere in each."""
    if side >= min(x.shape[-2:]):
        return x
    squares = []
    for sample in x:
        top, left = (_number(0, n - side) for n in sample.shape[-2:])
        squares.append(sample[:, top : top + side, left : left + side])
    return torch.stack(squares)


def _one(sample: Tensor, *, quarters: bool) -> Tensor:
    axes = [axis for axis in (1, 2) if _number(0, 1)]
    sample = sample.flip(axes) if axes else sample
    if quarters:
        sample = sample.rot90(_number(0, 3), (1, 2))
    most = int(SHIFT * min(sample.shape[-2:]))
    down, right = _number(-most, most), _number(-most, most)
    padded = F.pad(sample[None], (most, most, most, most), mode="reflect")[0] if most else sample
    height, width = sample.shape[-2:]
    return padded[:, most + down : most + down + height, most + right : most + right + width]


def _number(low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, ()))
