"""Answers that look at all queries together: LaplacianShot and PT-MAP. To be reported apart from the others.

Both need to know the whole set of queries before the first answer, and PT-MAP assumes that every class has
the same share of it. Letters as in ``nn.shots``.
"""

import torch
from torch import Tensor

from fewspect.nn.prototype import unit
from fewspect.nn.shots import Shots


def centred(shots: Shots, query: Tensor) -> tuple[Tensor, Tensor]:
    """Supports (E, S, V D) and queries (E, Q, V D) at length 1: views minus the support's mean view.

    The product of two of them is the mean over the views of the cosine of aligned, centred views.
    """
    view, asked = unit(shots.feature), unit(query)
    mean = torch.einsum("es,esvd->evd", shots.mean.mean(-1), view)[:, None]
    scale = view.shape[2] ** -0.5
    return (unit(view - mean) * scale).flatten(2), (unit(asked - mean) * scale).flatten(2)


def laplacian(
    score: Tensor, query: Tensor, *, neighbours: int = 3, weight: float = 1.0, steps: int = 20
) -> Tensor:
    """LaplacianShot (arXiv 2006.15486, equation 8): neighbours among the queries should agree.

    Args:
        score: (E, Q, K) logits of an inductive head.
        query: (E, Q, D') at length 1.
        neighbours: Nearest queries that count.
        weight: lambda, of the agreement.
        steps: Bound updates.

    Returns:
        Probabilities (E, Q, K).
    """
    number = query.shape[1]
    likeness = query @ query.mT - 2 * torch.eye(number, device=query.device)  # never oneself
    near = likeness.topk(min(neighbours, number - 1), -1).indices
    graph = torch.zeros_like(likeness).scatter(-1, near, 1.0)
    graph = (graph + graph.mT) / 2
    prob = score.softmax(-1)
    for _ in range(steps):
        prob = (score + weight * graph @ prob).softmax(-1)
    return prob


def pt_map(
    support: Tensor,
    hot: Tensor,
    query: Tensor,
    *,
    sharpness: float = 10.0,
    rate: float = 0.2,
    steps: int = 20,
    balance: int = 30,
) -> Tensor:
    """PT-MAP (arXiv 2006.03806): class centres and a balanced assignment of the queries, in turn.

    Args:
        support: (E, S, D') at length 1.
        hot: (E, S, K) one-hot labels.
        query: (E, Q, D') at length 1.
        sharpness: Factor of the squared distances.
        rate: How far the centres move in every step.
        steps: Of centres and assignment.
        balance: Sinkhorn iterations; rows end at 1, columns at Q / K.

    Returns:
        Probabilities (E, Q, K).
    """
    each = hot.sum(1)[..., None].clamp(min=1e-9)  # (E, K, 1)
    centre = torch.einsum("esk,esd->ekd", hot, support) / each
    prob = torch.zeros(*query.shape[:2], hot.shape[-1], device=query.device)
    for step in range(steps + 1):
        square = query.square().sum(-1)[..., None] + centre.square().sum(-1)[:, None] - 2 * query @ centre.mT
        prob = _balanced(-sharpness * square, balance)
        if step == steps:
            break
        total = each + prob.sum(1)[..., None]
        mean = (torch.einsum("esk,esd->ekd", hot, support) + prob.mT @ query) / total
        centre = centre + rate * (mean - centre)
    return prob


def _balanced(logits: Tensor, steps: int) -> Tensor:
    """Rows that add up to 1 and columns that add up to Q / K (E, Q, K), in the log domain."""
    share = torch.tensor(logits.shape[1] / logits.shape[2], device=logits.device).log()
    for _ in range(steps):
        logits = logits - logits.logsumexp(1, keepdim=True) + share
        logits = logits - logits.logsumexp(2, keepdim=True)
    return logits.exp()
