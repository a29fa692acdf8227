"""One answer from the answers for several views of a query (specification mvrec, 2.5 and 4.4)."""

import math

import torch
from torch import Tensor

from fewspect.nn.shots import Merge

FLOOR = 1e-9
"""Smallest probability whose logarithm is taken, and what is added to it (published)."""

FLAT = 1e-6
"""Views whose weights together stay below this say nothing: they count equally (the original: 0 / 0)."""


def merge(logits: Tensor, rule: Merge) -> Tensor:
    """Probabilities (..., K) from logits (..., V, K).

    ``entropy``: mean of the views' probabilities, weighted by 1 - entropy / log K; ``mean_prob``: plain mean;
    ``mean_logit``: of the mean logits. ``mean_feature`` averages before the head: a single view is left here.
    """
    if rule == "mean_logit":
        return logits.mean(-2).softmax(-1)
    prob = logits.softmax(-1)
    return entropy_mean(prob) if rule == "entropy" else prob.mean(-2)


def certainty(prob: Tensor) -> Tensor:
    """1 - normalised entropy of probabilities (..., K), in [0, 1]; 1 for a single class."""
    if prob.shape[-1] == 1:
        return torch.ones_like(prob[..., 0])
    clamped = prob.clamp(FLOOR, 1.0)
    entropy = -(clamped * (clamped + FLOOR).log()).sum(-1) / math.log(prob.shape[-1])
    return 1 - entropy


def entropy_mean(prob: Tensor) -> Tensor:
    """Mean (..., K) of probabilities (..., V, K), every view weighted by its certainty."""
    weight = certainty(prob).clamp(min=0)
    total = weight.sum(-1, keepdim=True)
    equal = torch.full_like(weight, 1 / weight.shape[-1])
    weight = torch.where(total > FLAT, weight / total.clamp(min=FLAT), equal)
    return (weight[..., None] * prob).sum(-2)
