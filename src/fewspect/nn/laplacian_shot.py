"""LaplacianShot (Ziko et al., arXiv 2006.15486): distances to class means, smoothed over near queries.

Written from the paper's equations (section 2.2): assignments minimise sum_q y_q a_q - lambda / 2 sum w_qp y_q
y_p, by the bound updates y_q ~ exp(-a_q + lambda sum_p w_qp y_p). A baseline of GCCS, on the same episodes.

Letters: R episodes, M supports, Q queries, K classes, D width.

Example:
    >>> z = torch.nn.functional.normalize(torch.randn(2, 30, 8), dim=-1)
    >>> laplacian_shot(z, torch.arange(5).expand(2, 5), 5).shape
    torch.Size([2, 25, 5])
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.graph import Graph, kept

NEIGHBOURS = 3
SMOOTHING = 1.0
UPDATES = 20
"""k, lambda and the largest number of updates of the paper."""


def laplacian_shot(
    z: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weight: Tensor | None = None,
    neighbours: int = NEIGHBOURS,
    smoothing: float = SMOOTHING,
    updates: int = UPDATES,
) -> Tensor:
    """Soft assignment (R, Q, K) of the queries.

    Args:
        z: (R, m, D) centred features of length 1, the supports first.
        labels: (R, M) classes of the supports.
        classes: K.
        weight: (R, M) of the supports in the class means; None = 1.
        neighbours: k of the graph of queries; an edge stays when either end counts the other.
        smoothing: lambda.
        updates: Number of bound updates.
    """
    supports = labels.shape[1]
    query, centres = z[:, supports:], means(z[:, :supports], labels, classes, weight)
    score = -squared(query, centres)
    return smoothed(score, query, neighbours=neighbours, smoothing=smoothing, updates=updates)


def smoothed(
    score: Tensor,
    query: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    smoothing: float = SMOOTHING,
    updates: int = UPDATES,
) -> Tensor:
    """Probabilities (R, Q, K) of queries (R, Q, D) of length 1 with logits (R, Q, K), neighbours agreeing.

    The arguments are those of ``laplacian_shot``.
    """
    similar = query @ query.mT  # (R, Q, Q)
    similar.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    edges = kept(similar, 0, Graph(k=min(neighbours, max(1, query.shape[1] - 1)), cross_k=0)).to(query)
    edges.diagonal(dim1=-2, dim2=-1).zero_()
    plan = score.softmax(-1)
    for _ in range(updates):
        plan = (score + smoothing * edges @ plan).softmax(-1)
    return plan


def means(support: Tensor, labels: Tensor, classes: int, weight: Tensor | None = None) -> Tensor:
    """Weighted means (R, K, D) of supports (R, M, D)."""
    hot = F.one_hot(labels, classes).to(support)
    hot = hot if weight is None else hot * weight.to(support)[..., None]
    return hot.mT @ support / hot.sum(1)[..., None]


def squared(query: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (R, Q, K)."""
    lengths = query.square().sum(-1, keepdim=True) + centres.square().sum(-1)[:, None]
    return (lengths - 2 * query @ centres.mT).clamp(min=0)
