"""Answers of a classification head that look at all queries together, to be reported apart from the others.

LaplacianShot (arXiv 2006.15486) smooths the head's own scores; PT-MAP (arXiv 2006.03806) moves class centres
and shares the queries out in equal parts. Both need the whole set of queries before the first answer. Letters
as in ``nn.shots``.
"""

from typing import Literal

import torch
from torch import Tensor

from fewspect.nn.centres import Centres, optimise
from fewspect.nn.laplacian_shot import smoothed
from fewspect.nn.prototype import unit
from fewspect.nn.shots import Shots

Way = Literal["laplacian", "pt_map"]


def together(way: Way, shots: Shots, score: Tensor, query: Tensor) -> Tensor:
    """Probabilities (E, Q, K).

    Args:
        way: Which of the two.
        shots: Supports.
        score: (E, Q, K) logits of the head (``laplacian``).
        query: (E, Q, V, D) in the views of the supports.
    """
    support, asked = centred(shots, query)
    if way == "laplacian":
        return smoothed(score, asked)
    nodes = torch.cat([support, asked], 1)
    return optimise(nodes, shots.label, shots.classes, Centres(), weight=shots.count).plan


def centred(shots: Shots, query: Tensor) -> tuple[Tensor, Tensor]:
    """Supports (E, S, V D) and queries (E, Q, V D) at length 1: views minus the support's mean view.

    The product of two of them is the mean over the views of the cosine of aligned, centred views.
    """
    view, asked = unit(shots.feature), unit(query)
    mean = torch.einsum("es,esvd->evd", shots.mean.mean(-1), view)[:, None]
    scale = view.shape[2] ** -0.5
    return (unit(view - mean) * scale).flatten(2), (unit(asked - mean) * scale).flatten(2)
