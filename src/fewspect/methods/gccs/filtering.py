"""Which synthetic supports of an episode are kept: those that its own real supports agree with.

Specification gccs, section 3.4. The synthetic samples play the queries of an episode whose supports are the
real ones; a sample stays when it is given to its own class. Only the episode's own supports are looked at,
no sample outside of it.

Letters: R episodes, K classes, S synthetic samples, T shots, D width.
"""

from typing import Literal

import torch
from torch import Tensor

from fewspect.nn.centres import Centres, recognise
from fewspect.nn.graph import Graph

Filter = Literal["none", "episode", "ranked", "trimmed"]

TRIMS = ((50, 50), (80, 80), (20, 20), (10, 10))
"""The original's rules (more than, minus) for the number of samples, one after the other."""


def plan(synthetic: Tensor, real: Tensor, graph: Graph, centres: Centres) -> Tensor:
    """Share of every synthetic sample in every class.

    Args:
        synthetic: (R, K, S, D).
        real: (R, K, T, D).
        graph: See ``nn.graph``.
        centres: See ``nn.centres``.

    Returns:
        (R, K, S, K), own class first, class that it is given to last.
    """
    classes, number = synthetic.shape[1:3]
    x = torch.cat([slots(real), slots(synthetic)], 1)
    labels = order(classes, real.shape[2], x.device).expand(len(x), -1)
    found = recognise(x, labels, classes, graph, centres).plan  # (R, S * K, K)
    return found.unflatten(1, (number, classes)).transpose(1, 2)


def keep(shares: Tensor, rule: Filter, number: int) -> Tensor:
    """Which samples stay, (R, K, S) bool, at least one per class.

    Args:
        shares: (R, K, S, K) of ``plan``.
        rule: ``episode``: those whose own class has the largest share, the ``number`` best of them by
            margin; ``ranked``: the ``number`` best by margin, agreed upon or not; ``trimmed``: the first
            agreed ones, as many in every class as in the poorest one, cut down by the original's rules
            (``trim``). ``none`` needs no shares: the caller takes the first ones.
        number: So many at most.
    """
    own = shares.diagonal(dim1=1, dim2=3).transpose(1, 2)  # (R, K, S)
    others = shares.masked_fill(torch.eye(shares.shape[1], device=shares.device).bool()[:, None], -torch.inf)
    margin = own - others.amax(-1)
    if rule == "trimmed":
        agreed = margin > 0
        count = torch.tensor([trim(int(c)) for c in agreed.sum(-1).amin(-1)], device=shares.device)
        return (agreed & (agreed.cumsum(-1) <= count[:, None, None])) | (
            (count == 0)[:, None, None] & (torch.arange(shares.shape[2], device=shares.device) == 0)
        )
    place = torch.argsort(margin, dim=-1, descending=True, stable=True).argsort(-1)
    kept = place < number
    return kept if rule == "ranked" else (kept & (margin > 0)) | (place == 0)


def trim(count: int) -> int:
    """Number of samples that the original leaves of so many that agree: 100 to 20, 15 to 5, 11 to 1."""
    for above, less in TRIMS:
        count -= less if count > above else 0
    return count


def slots(x: Tensor) -> Tensor:
    """(R, K, n, D) to nodes (R, n * K, D): node = slot * K + class."""
    return x.transpose(1, 2).flatten(1, 2)


def order(classes: int, number: int, device: torch.device | str = "cpu") -> Tensor:
    """Classes (n * K,) of nodes in this order."""
    return torch.arange(classes, device=device).repeat(number)
