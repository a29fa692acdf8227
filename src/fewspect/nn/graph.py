"""Similarity graph over the nodes of an episode: a node is described by its row of a propagation matrix.

Specification gccs, section 3.1; Transfer-SGC (arXiv 2001.09849) and GTnet (2022). Two repairs of section 3.5
keep synthetic supports and real queries in touch: neighbours on both sides (``cross_k``) and cosines of
features that are centred per side (``pre_center``).

Letters: R episodes, m nodes (supports first), D width. The numbers are at least float32, whatever autocast
region is around.

Example:
    >>> z, contact = nodes(torch.randn(2, 30, 8), 10, Graph(k=4, kappa=2))
    >>> z.shape
    torch.Size([2, 30, 30])
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.errors import UserError

Centring = Literal["split", "joint", "support", "none"]

SMALL = 1e-6
"""Added before a power transform (PT-MAP, GTnet)."""


@dataclass(frozen=True, slots=True)
class Graph:
    """How nodes are described.

    Attributes:
        node: ``softmax`` of the rows of the propagation matrix (GTnet), the ``rows`` themselves,
            ``propagate``: features propagated by it (Transfer-SGC), ``none``: features as they are (PT-MAP).
        k: Neighbours that are kept per node; 0 keeps all.
        kappa: Power of the propagation matrix, at least 1.
        self_weight: Weight of a node for itself, before the power.
        cross_k: Neighbours that are kept on the other side (supports / queries), ``k`` counting within a side
            then; 0: ``k`` counts over both.
        pre_center: ``split`` takes the mean of each side off before cosines and drops negative ones.
        centring: What is taken off the nodes: mean of the own side (``split``), of all (``joint``), of the
            supports (``support``), nothing.
        power: Exponent of a power transform of the features, or None. Exact for features without sign;
            signed ones keep their sign.
    """

    node: Literal["softmax", "rows", "propagate", "none"] = "softmax"
    k: int = 4
    kappa: int = 2
    self_weight: float = 0.75
    cross_k: int = 4
    pre_center: Literal["none", "split"] = "none"
    centring: Centring = "split"
    power: float | None = None

    def __post_init__(self) -> None:
        if self.kappa < 1 or self.k < 0 or self.cross_k < 0:
            raise UserError(
                f"A graph with k={self.k}, cross_k={self.cross_k}, kappa={self.kappa} does not exist.",
                "kappa is at least 1, k and cross_k at least 0 (0 = off).",
            )


def nodes(
    x: Tensor,
    supports: int,
    options: Graph,
    *,
    present: Tensor | None = None,
    trace: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Describe the nodes of episodes.

    Args:
        x: (R, m, D) features, the supports first.
        supports: Number M of supports, 1..m - 1.
        options: See ``Graph``.
        present: (R, m) bool; the others are as good as deleted (their own rows mean nothing), so that
            episodes with different numbers of supports share a tensor.
        trace: Filled with cosines, degrees and matrices when given.

    Returns:
        Nodes (R, m, m), or (R, m, D) for ``propagate`` and ``none``, of length 1 (0 where nothing is left);
        and the contact (R,): share of queries with an edge to a support, 1 without a graph.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        x = powered(x, options.power)
        if options.node == "none":
            return centred(unit(x), supports, options.centring, present), x.new_ones(len(x))
        cosine = cosines(x, supports, options, present)
        edges = cosine * kept(cosine, supports, options, present)
        contact = (edges[:, supports:, :supports] != 0).any(2).to(x.dtype).mean(1)
        normalised, scale = symmetric(edges)
        spread = propagation(normalised, options.self_weight, options.kappa)
        described = _described(spread, x, options, present)
        if trace is not None:
            trace |= {"cosine": cosine, "inv_sqrt_degree": scale}
            trace |= {"normalised": normalised, "propagation": spread}
        return centred(unit(described), supports, options.centring, present), contact


def _described(spread: Tensor, x: Tensor, options: Graph, present: Tensor | None) -> Tensor:
    if options.node == "rows":
        return spread
    if options.node == "propagate":
        return spread @ unit(x)
    if present is not None:
        spread = spread.masked_fill(~present[:, None], -torch.inf)
    return spread.softmax(-1)


def powered(x: Tensor, power: float | None) -> Tensor:
    """(x + 1e-6)^power, sign(x) (|x| + 1e-6)^power where a feature is negative; None = as it is.

    A plain power of a negative number would be NaN (asked of PT-MAP, never answered).
    """
    if power is None:
        return x
    return torch.where(x < 0, -1.0, 1.0).to(x) * (x.abs() + SMALL) ** power


def cosines(x: Tensor, supports: int, options: Graph, present: Tensor | None = None) -> Tensor:
    """Cosines (R, m, m) with a zero diagonal."""
    if options.pre_center == "split":
        x = torch.cat([x[:, side] - mean(x, side, present) for side in sides(supports)], 1)
    x = unit(x)
    cosine = x @ x.mT
    cosine.diagonal(dim1=-2, dim2=-1).zero_()
    return cosine.clamp_(min=0) if options.pre_center == "split" else cosine


def kept(cosine: Tensor, supports: int, options: Graph, present: Tensor | None = None) -> Tensor:
    """Mask (R, m, m): an edge stays when either end counts the other among its nearest."""
    mask = torch.zeros_like(cosine, dtype=torch.bool)
    ranked = cosine if present is None else cosine.masked_fill(~present[:, None], -torch.inf)
    both = sides(supports) if options.cross_k else (slice(None),)
    for one in both:
        for other in both:
            block = ranked[:, one, other]
            wanted = options.k if one == other else options.cross_k
            nearest = block.topk(min(wanted or block.shape[-1], block.shape[-1]), -1).indices
            mask[:, one, other] = torch.zeros_like(block, dtype=torch.bool).scatter_(-1, nearest, value=True)
    mask |= mask.mT.clone()
    return mask if present is None else mask & present[:, None] & present[:, :, None]


def sides(supports: int) -> tuple[slice, slice]:
    """Supports and queries."""
    return slice(None, supports), slice(supports, None)


def symmetric(edges: Tensor) -> tuple[Tensor, Tensor]:
    """d^-1/2 A d^-1/2 (R, m, m) and d^-1/2 (R, m).

    A node whose edges add up to nothing, or to less, which signed features can bring about, has no edge at
    all: the original divides by the root of a negative number there.
    """
    degree = edges.sum(-2)  # (R, m)
    scale = torch.where(degree > 0, degree.clamp(min=torch.finfo(edges.dtype).tiny) ** -0.5, 0.0)
    return edges * scale[:, :, None] * scale[:, None, :], scale


def propagation(normalised: Tensor, self_weight: float, kappa: int) -> Tensor:
    """(w I + N)^kappa by squaring: four products for kappa = 9."""
    base = normalised.clone()
    base.diagonal(dim1=-2, dim2=-1).add_(self_weight)
    power: Tensor | None = None
    while True:
        if kappa % 2:
            power = base if power is None else power @ base
        kappa //= 2
        if not kappa:
            assert power is not None  # kappa was at least 1
            return power
        base = base @ base


def centred(z: Tensor, supports: int, centring: Centring, present: Tensor | None = None) -> Tensor:
    """Take means off nodes (R, m, D) and bring them to length 1; what has none stays zero."""
    if centring == "none":
        return z
    support, query = sides(supports)
    if centring == "split":
        return unit(torch.cat([z[:, side] - mean(z, side, present) for side in (support, query)], 1))
    return unit(z - mean(z, slice(None) if centring == "joint" else support, present))


def mean(x: Tensor, side: slice, present: Tensor | None = None) -> Tensor:
    """Mean (R, 1, D) of the nodes of a side that are present."""
    if present is None:
        return x[:, side].mean(1, keepdim=True)
    share = present[:, side, None].to(x)
    return (x[:, side] * share).sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp(min=1)


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) at length 1, in their own precision; what is zero stays zero."""
    return F.normalize(x, dim=-1)
