"""Mixed normal Dice and cross-entropy on probabilities at the feature grid (specification sofs, section 3).

A query without any foreground cell (a normal one) has no Dice overlap; its term punishes every predicted
probability instead, the more abruptly the larger ``eta``.
"""

from typing import Literal

import torch
from torch import Tensor

from fewspect.nn.prototype import intensity

DICE_SMOOTH = 1e-5
LOG_EPS = 1e-6
TARGET_THRESHOLD = 0.1
"""A cell is foreground above this share of foreground pixels."""


def cell_target(
    mask: Tensor,
    grid: tuple[int, int],
    threshold: float = TARGET_THRESHOLD,
    mode: Literal["area", "bilinear"] = "area",
) -> Tensor:
    """Target (..., h, w) in {0, 1} of query masks (..., H, W); values other than 1 are background."""
    return (intensity(mask, grid, mode) > threshold).float()


def mixed_dice(prob: Tensor, target: Tensor, eta: float) -> Tensor:
    """Dice loss per sample, or ``1 - 1 / (eta Q + 1)`` where the target is empty.

    Args:
        prob: (M, h, w) in [0, 1].
        target: (M, h, w) in {0, 1}.
        eta: Steepness of the normal term; 1 or 1e5 in the published runs.

    Returns:
        (M,) in [0, 1].
    """
    truth, predicted, overlap = (t.flatten(1).sum(1) for t in (target, prob, target * prob))
    dice = 1 - (2 * overlap + DICE_SMOOTH) / (truth + predicted + DICE_SMOOTH)
    normal = 1 - 1 / (eta * predicted + 1)
    return torch.where(truth > 0, dice, normal)


def cross_entropy(prob: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of probabilities, logarithms of value + 1e-6."""
    return -(target * (prob + LOG_EPS).log() + (1 - target) * (1 - prob + LOG_EPS).log()).mean()


def losses(logits: Tensor, target: Tensor, eta: float = 1.0) -> dict[str, Tensor]:
    """Return ``dice`` (mean over samples) and ``ce`` of logits (..., h, w); published weights: 1 and 0.01."""
    prob = logits.float().sigmoid().flatten(0, -3)  # (M, h, w)
    truth = target.float().flatten(0, -3)
    return {"dice": mixed_dice(prob, truth, eta).mean(), "ce": cross_entropy(prob, truth)}
