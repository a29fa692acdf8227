"""Losses of label masks: cross entropy and soft Dice, pixels of ``IGNORE`` left out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.types import IGNORE

SMOOTH = 1.0
"""Pixels added above and below: a class of a few pixels has a gentle slope."""


def cross_entropy(logits: Tensor, target: Tensor, weight: Sequence[float] | None = None) -> Tensor:
    """Mean over known pixels; 0 where nothing is known.

    Args:
        logits: (B, K + 1, H, W).
        target: (B, H, W) labels in 0..K or ``IGNORE``.
        weight: Factors of background and defect pixels; None = 1.
    """
    each = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="none")
    factor = (target != IGNORE).float()
    if weight is not None:
        factor = factor * torch.where(target == 0, weight[0], weight[1])
    return (each * factor).sum() / factor.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, mean over the defect classes that the batch shows (Milletari et al. 2016).

    Args:
        logits: (B, K + 1, H, W).
        target: (B, H, W) labels in 0..K or ``IGNORE``.

    Returns:
        (); 0 for a batch without any defect.
    """
    known = target != IGNORE
    prob = logits.softmax(1) * known[:, None]
    truth = F.one_hot(target.long().where(known, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
    both = (prob * truth).sum((0, 2, 3))[1:]  # (K,)
    sizes = (prob.sum((0, 2, 3)) + truth.sum((0, 2, 3)))[1:]
    shown = truth.sum((0, 2, 3))[1:] > 0
    each = (1 - (2 * both + SMOOTH) / (sizes + SMOOTH)) * shown
    return each.sum() / shown.sum().clamp(min=1)
