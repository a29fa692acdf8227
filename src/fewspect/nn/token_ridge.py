"""Ridge regression from patch features to foreground shares, with everything chosen on held-out tokens.

The leave-one-out answers of a linear smoother follow from its hat matrix without fitting again (Golub, Heath
and Wahba, Technometrics 1979, equation 1.4): ``y_i - (y_i - f_i) / (1 - h_ii)``. They choose the penalty, the
cut and the slope. Letters: n tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the regression, as multiples of the mean variance of a feature."""

STEPS = 50
"""Newton steps for the slope; a scalar convex problem needs fewer than ten."""

LARGEST_SLOPE = 200.0
EPS = 1e-9


@dataclass(frozen=True, slots=True)
class RidgeMap:
    """A fitted regression and how its answer becomes a probability.

    Attributes:
        weight: (D,).
        offset: ().
        cut: (): answer at which the probability is 0.5.
        slope: (): of the logistic function.
        penalty: Multiple that was chosen.
        held_out: (n,) answers for the tokens it was fitted to, each without itself.
    """

    weight: Tensor
    offset: Tensor
    cut: Tensor
    slope: Tensor
    penalty: float
    held_out: Tensor

    def logits(self, tokens: Tensor) -> Tensor:
        """Foreground logits (...) of tokens (..., D)."""
        return self.slope * (tokens.float() @ self.weight + self.offset - self.cut)


def fit(tokens: Tensor, share: Tensor, weight: Tensor, penalties: Sequence[float] = PENALTIES) -> RidgeMap:
    """Fit, balanced: foreground and background have the same say, however small the defect.

    Args:
        tokens: (n, D).
        share: (n,) foreground share of every token's cell, in [0, 1]; not all 0 and not all 1.
        weight: (n,) how often a token counts.
        penalties: Candidates; the one with the smallest held-out squared error is taken.
    """
    x, y, w = tokens.double(), share.double(), weight.double()
    front, back = (w * y).sum(), (w * (1 - y)).sum()
    balanced = w * (y / front.clamp(min=EPS) + (1 - y) / back.clamp(min=EPS)) / 2  # sums to 1
    mean, level = balanced @ x, balanced @ y
    centred, target = x - mean, y - level
    scatter = centred.T @ (balanced[:, None] * centred)  # (D, D)
    values, axes = torch.linalg.eigh(scatter)
    values = values.clamp(min=0)
    turned = centred @ axes  # (n, D)
    moment = turned.T @ (balanced * target)  # (D,)
    unit = values.mean().clamp(min=EPS)
    best: tuple[Tensor, float, Tensor, Tensor] | None = None
    for penalty in penalties:
        inverse = 1 / (values + penalty * unit)
        answer = turned @ (inverse * moment)
        leverage = (balanced * (1 + (turned.square() @ inverse))).clamp(max=1 - 1e-6)
        held_out = target - (target - answer) / (1 - leverage)
        error = (balanced * (held_out - target).square()).sum()
        if best is None or error < best[0]:
            best = (error, penalty, axes @ (inverse * moment), held_out + level)
    assert best is not None, "no penalty was given"
    _, penalty, direction, held_out = best
    cut = best_cut(held_out, y, w)
    slope = _slope(held_out - cut, y, w)
    parts = (direction, level - mean @ direction, cut, slope)
    vector, offset, cut, slope = (p.float() for p in parts)
    return RidgeMap(vector, offset, cut, slope, penalty, held_out.float())


def best_cut(answer: Tensor, share: Tensor, weight: Tensor) -> Tensor:
    """Cut c for which {answer > c} has the largest intersection over union with the shares.

    Args:
        answer: (n,).
        share: (n,) in [0, 1].
        weight: (n,).

    Returns:
        (): half way between the answers on both sides of the cut.
    """
    order = answer.argsort(descending=True)
    sorted_answer = answer[order]
    hit = (weight * share)[order].cumsum(0)
    miss = (weight * (1 - share))[order].cumsum(0)
    overlap = hit / (hit[-1] + miss)
    overlap[:-1][sorted_answer[:-1] == sorted_answer[1:]] = -1  # a cut does not part equal answers
    last = int(overlap.argmax())
    below = sorted_answer[min(last + 1, len(sorted_answer) - 1)]
    return (sorted_answer[last] + below) / 2


def _slope(margin: Tensor, share: Tensor, weight: Tensor) -> Tensor:
    """Maximum-likelihood slope a of sigmoid(a * margin) for soft labels (Platt 1999), by Newton's method."""
    slope = margin.new_tensor(1.0)
    for _ in range(STEPS):
        p = torch.sigmoid(slope * margin)
        gradient = (weight * (p - share) * margin).sum()
        curvature = (weight * p * (1 - p) * margin.square()).sum() + EPS
        slope = (slope - gradient / curvature).clamp(0.1, LARGEST_SLOPE)
    return slope
