"""Class centres of many episodes at once: queries are shared out, and centres move towards their share.

Specification gccs, section 4, after PT-MAP (Hu, Gripon, Pateux 2020). Supports, real and synthetic, keep
their label; the softly assigned queries join them in the mean.

Centres are combinations of supports and queries, so the updates need inner products of nodes only: one
product with the queries' Gram matrix per update, whatever the width.

Letters: R episodes, m nodes (M supports first, then Q queries), K classes, D width.

Example:
    >>> z = torch.randn(2, 30, 8)
    >>> labels = torch.arange(10).expand(2, 10) % 5
    >>> optimise(z, labels, 5, Centres()).plan.shape
    torch.Size([2, 20, 5])
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn import graph, transport
from fewspect.nn.graph import Graph
from fewspect.nn.transport import Transport

CHUNK_MB = 64.0
"""Memory that the matrices of one chunk of episodes take, about."""


@dataclass(frozen=True, slots=True)
class Centres:
    """How the centres are found.

    Attributes:
        sharpness: lambda, factor on squared distances.
        step: alpha, share of the way to the new estimate.
        updates: Number of moves.
        transport: Fields of ``Transport``.
    """

    sharpness: float = 10.0
    step: float = 0.2
    updates: int = 20
    transport: Transport = field(default_factory=Transport)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found out about the queries.

    Attributes:
        plan: (R, Q, K) probability of the classes; rows sum to about 1 (less, where a share is unknown).
        unknown: (R, Q) share that belongs to no class, or None without a dustbin.
        centres: (R, K, D) of the nodes, before the final plan.
        contact: (R,) share of queries with an edge to a support.
    """

    plan: Tensor
    unknown: Tensor | None
    centres: Tensor
    contact: Tensor


def optimise(
    z: Tensor,
    labels: Tensor,
    classes: int,
    options: Centres,
    *,
    weight: Tensor | None = None,
    share: Tensor | None = None,
    evidence: Tensor | None = None,
    trace: dict[str, Tensor] | None = None,
) -> Answer:
    """Move the centres and share the queries out.

    Args:
        z: (R, m, D) nodes, the supports first.
        labels: (R, M) classes of the supports in 0..K - 1; every class occurs.
        classes: K.
        options: See ``Centres``.
        weight: (R, M) how many real supports each support counts for, 0 = as if it were not there; None = 1.
        share: (R, K) expected share of each class among the queries; None = equal.
        evidence: (R, Q, K) log-probabilities from elsewhere (texts), added to the scores.
        trace: Filled with centres at the start and after one move, first distances and plan when given.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        hot = F.one_hot(labels, classes).to(z)  # (R, M, K)
        hot = hot if weight is None else hot * weight.to(z)[..., None]
        moving = _Moving(z[:, labels.shape[1] :], hot.mT @ z[:, : labels.shape[1]], hot.sum(1))
        if trace is not None:
            trace |= {"centres0": moving.centres(), "distance0": moving.distance().mT}

        def plan(passes: int, start: Tensor | None) -> tuple[Tensor, Tensor | None]:
            scores = -options.sharpness * moving.distance().mT  # (R, Q, K)
            scores = scores if evidence is None else scores + evidence.to(z)
            return transport.assign(scores, options.transport, share=share, passes=passes, start=start)

        scaling = None
        for update in range(options.updates):
            found, end = plan(options.transport.passes, scaling)
            scaling = end if options.transport.warm else None
            moving.move(found[..., :classes].mT, options.step)
            if trace is not None and update == 0:
                trace |= {"plan0": found[..., :classes], "centres1": moving.centres()}
        found, _ = plan(options.transport.final_passes, scaling)
        unknown = found[..., classes] if found.shape[-1] > classes else None
        return Answer(found[..., :classes], unknown, moving.centres(), z.new_ones(len(z)))


class _Moving:
    """Centres mu_c = b_c * (sum of supports of c) + sum_i w_ci (query i), by their inner products.

    Args:
        query: (R, Q, D).
        seen: (R, K, D) weighted sums of the supports.
        amount: (R, K) weights of the supports.
    """

    def __init__(self, query: Tensor, seen: Tensor, amount: Tensor) -> None:
        self.query, self.seen, self.amount = query, seen, amount[..., None]  # (R, K, 1)
        self.gram = query @ query.mT  # (R, Q, Q)
        self.length = query.square().sum(-1)[:, None]  # (R, 1, Q)
        self.seen_query = seen @ query.mT  # (R, K, Q)
        self.seen_seen = seen.square().sum(-1, keepdim=True)  # (R, K, 1)
        self.b, self.w = 1 / self.amount, torch.zeros_like(self.seen_query)
        self.mu_query = self.seen_query * self.b  # (R, K, Q)
        self.mu_seen = self.seen_seen * self.b  # (R, K, 1)
        self.mu_mu = self.mu_seen * self.b  # (R, K, 1)

    def distance(self) -> Tensor:
        """Squared distances (R, K, Q) of the queries, at least 0."""
        return (self.length + self.mu_mu - 2 * self.mu_query).clamp_(min=0)

    def centres(self) -> Tensor:
        """The centres (R, K, D) themselves."""
        return self.b * self.seen + self.w @ self.query

    def move(self, plan: Tensor, step: float) -> None:
        """Go a ``step`` towards the means of supports and of queries as a ``plan`` (R, K, Q) assigns them."""
        total = self.amount + plan.sum(-1, keepdim=True)
        new_query = (self.seen_query + plan @ self.gram) / total
        new_seen = (self.seen_seen + (plan * self.seen_query).sum(-1, keepdim=True)) / total
        new_new = (new_seen + (plan * new_query).sum(-1, keepdim=True)) / total
        mu_new = (self.mu_seen + (plan * self.mu_query).sum(-1, keepdim=True)) / total
        stay = 1 - step
        self.mu_mu = stay**2 * self.mu_mu + 2 * step * stay * mu_new + step**2 * new_new
        self.mu_query = torch.lerp(self.mu_query, new_query, step)
        self.mu_seen = torch.lerp(self.mu_seen, new_seen, step)
        self.b, self.w = torch.lerp(self.b, 1 / total, step), torch.lerp(self.w, plan / total, step)


def recognise(
    x: Tensor,
    labels: Tensor,
    classes: int,
    graph_options: Graph,
    options: Centres,
    *,
    weight: Tensor | None = None,
    share: Tensor | None = None,
    evidence: Tensor | None = None,
    chunk_mb: float = CHUNK_MB,
) -> Answer:
    """Graph and centres of any number of episodes in bounded memory.

    Args:
        x: (R, m, D) features, the supports first.
        labels: (R, M), see ``optimise``; the other arguments, too.
        classes: K.
        graph_options: See ``Graph``.
        options: See ``Centres``.
        weight: (R, M) or None.
        share: (R, K) or None.
        evidence: (R, Q, K) or None.
        chunk_mb: About so many MB are in use at once, beside inputs and outputs.

    Raises:
        UserError: See ``check``.
    """
    check(x, labels, classes, weight)
    number = per_chunk(x.shape[1], x.shape[2], chunk_mb)
    parts = []
    for start in range(0, len(x), number):
        part = slice(start, start + number)
        there = None if weight is None else _present(weight[part], x.shape[1])
        z, contact = graph.nodes(x[part], labels.shape[1], graph_options, present=there)
        given = [None if v is None else v[part] for v in (weight, share, evidence)]
        found = optimise(
            z, labels[part], classes, options, weight=given[0], share=given[1], evidence=given[2]
        )
        parts.append(replace(found, contact=contact))
    if len(parts) == 1:
        return parts[0]
    unknown = [p.unknown for p in parts if p.unknown is not None]
    return Answer(
        torch.cat([p.plan for p in parts]),
        torch.cat(unknown) if unknown else None,
        torch.cat([p.centres for p in parts]),
        torch.cat([p.contact for p in parts]),
    )


def _present(weight: Tensor, nodes: int) -> Tensor | None:
    """(R, m) which nodes take part; None when all do."""
    absent = weight <= 0
    if not bool(absent.any()):
        return None
    return ~F.pad(absent, (0, nodes - absent.shape[1]))


def per_chunk(nodes: int, width: int, chunk_mb: float) -> int:
    """Episodes that fit into ``chunk_mb``: some seven matrices over pairs of nodes, two of features."""
    each = 4.0 * nodes * (7 * nodes + 2 * width)
    return max(1, int(chunk_mb * 1e6 / each))


def finite(x: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: A feature is not finite.
    """
    if not bool(x.isfinite().all()):
        raise UserError("A feature is not a finite number.", "Look at the images and texts it was made from.")


def check(x: Tensor, labels: Tensor, classes: int, weight: Tensor | None = None) -> None:
    """Refuse episodes that cannot be answered.

    Raises:
        UserError: A feature is not finite, no query, or a class without any support.
    """
    finite(x)
    if x.shape[1] <= labels.shape[1]:
        raise UserError("An episode has no query.", "Raise data.ways.query.")
    hot = F.one_hot(labels, classes).bool()  # (R, M, K)
    present = (hot if weight is None else hot & (weight > 0)[..., None]).any(1)
    if len(x) and not bool(present.all()):
        raise UserError(
            "A class of an episode has neither an image nor a synthetic sample.",
            "Set data.shot, or method.synthetic so that texts stand in.",
        )
