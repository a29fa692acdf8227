"""TIM-ADM (Boudiaf et al., arXiv 2008.11297): class weights that make queries informative of their labels.

Written from the paper's Proposition 1: between auxiliary assignments q and weights w in turn; mutual
information
of queries and labels, and cross-entropy of the supports. A baseline of GCCS, on the same episodes.

Letters: R episodes, M supports, Q queries, K classes, D width.

Example:
    >>> z = torch.nn.functional.normalize(torch.randn(2, 30, 8), dim=-1)
    >>> tim(z, torch.arange(5).expand(2, 5), 5).shape
    torch.Size([2, 25, 5])
"""

import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.laplacian_shot import means, squared

TEMPERATURE = 15.0
SUPERVISED = 0.1
CONDITIONAL = 0.1
UPDATES = 150
"""tau, lambda, alpha and the number of updates of the paper."""

TINY = 1e-12


def tim(
    z: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weight: Tensor | None = None,
    updates: int = UPDATES,
) -> Tensor:
    """Probabilities (R, Q, K) of the queries.

    Args:
        z: (R, m, D) centred features of length 1, the supports first.
        labels: (R, M) classes of the supports.
        classes: K.
        weight: (R, M) of the supports; None = 1.
        updates: Number of turns.
    """
    supports = labels.shape[1]
    support, query = z[:, :supports], z[:, supports:]
    hot = F.one_hot(labels, classes).to(z)
    part = hot.new_ones(hot.shape[:2]) if weight is None else weight.to(z)
    w = means(support, labels, classes, weight)  # (R, K, D)
    beta = SUPERVISED / (1 + CONDITIONAL)
    share = part.sum(1)[:, None, None] / query.shape[1]
    for _ in range(updates):
        known, asked = prob(support, w) * part[..., None], prob(query, w)
        sharp = asked ** (1 + CONDITIONAL)
        q = sharp / sharp.sum(1, keepdim=True).clamp(min=TINY).sqrt()
        q = q / q.sum(-1, keepdim=True).clamp(min=TINY)
        labelled = hot * part[..., None]
        top = beta * _pull(labelled, known, support, w) + share * _pull(q, asked, query, w)
        bottom = beta * labelled.sum(1)[..., None] + share * q.sum(1)[..., None]
        w = top / bottom.clamp(min=TINY)
    return prob(query, w)


def prob(z: Tensor, w: Tensor) -> Tensor:
    """(R, n, K): softmax of -tau / 2 |z - w|^2."""
    return (-TEMPERATURE / 2 * squared(z, w)).softmax(-1)


def _pull(wanted: Tensor, given: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_i wanted_ik z_i + given_ik (w_k - z_i), (R, K, D)."""
    return (wanted - given).mT @ z + given.sum(1)[..., None] * w
