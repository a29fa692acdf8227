"""Soft assignment of queries to classes: batched Sinkhorn scaling, and what to do without class sizes.

Specification gccs, sections 4 and 8.4; PT-MAP (Hu, Gripon, Pateux 2020) for the balanced plan. A plan is
P = diag(u) exp(scores) diag(v) with row sums 1 and the column sums wanted; only u and v are iterated, so that
v can be carried over from a similar problem (warm start). Rows are scaled first and columns last: columns are
exact, rows about 1.

Letters: R episodes, Q queries, K classes.

Example:
    >>> plan, _ = assign(torch.randn(2, 30, 5), Transport())
    >>> plan.sum(1)[0]
    tensor([6., 6., 6., 6., 6.])
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewspect.errors import UserError

Allocation = Literal["balanced", "softmax", "kl", "dustbin"]


@dataclass(frozen=True, slots=True)
class Transport:
    """How queries are shared out.

    Attributes:
        allocation: ``balanced``: every class gets its share of the queries (their true number per class, if
            the test set is balanced; a guess otherwise); ``softmax``: every query on its own; ``kl``: shares
            are a wish, see ``tau``; ``dustbin``: balanced, with a share for unknown classes.
        passes: Scalings of rows and columns per update of the centres.
        final_passes: Scalings for the final plan.
        tolerance: Stop earlier when no row sum has moved by more than this since the last pass.
        stop: ``episode``: each episode stops by itself; ``batch``: all when the slowest does (original).
        warm: Begin with the column scaling of the last update.
        tau: ``kl``: price of missing the shares, relative to the scores; 0 = softmax, infinite = balanced.
        rho: ``dustbin``: share of the queries that belongs to no class, in (0, 1).
    """

    allocation: Allocation = "balanced"
    passes: int = 10
    final_passes: int = 50
    tolerance: float | None = None
    stop: Literal["episode", "batch"] = "episode"
    warm: bool = True
    tau: float = 1.0
    rho: float = 0.25

    def __post_init__(self) -> None:
        if min(self.passes, self.final_passes) < 1:
            raise UserError("A transport needs at least one pass.", "Raise method.transport.passes.")
        if not 0 < self.rho < 1 or self.tau < 0:
            raise UserError(
                f"transport.rho={self.rho}, tau={self.tau}: rho is a share in (0, 1), tau at least 0.",
                "Mend method.transport.",
            )


def assign(
    scores: Tensor,
    options: Transport,
    *,
    share: Tensor | None = None,
    passes: int | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Share queries out among classes.

    Args:
        scores: (R, Q, K) logarithm of the kernel, e.g. -lambda * squared distance.
        options: See ``Transport``.
        share: (R, K) expected share of each class, rows sum to 1; None = equal.
        passes: Instead of ``options.passes``.
        start: Column scaling (R, K) or (R, K + 1) to begin with.

    Returns:
        Plan (R, Q, K), with a further column for ``dustbin``; and the column scaling at the end.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if options.allocation == "softmax":
            logits = scores if share is None else scores + share.clamp(min=1e-12).log()[:, None]
            return logits.softmax(-1), None
        queries, classes = scores.shape[1:]
        mass = scores.new_full((len(scores), classes), 1 / classes) if share is None else share.to(scores)
        if options.allocation == "dustbin":
            # any constant will do: a factor on a column is absorbed by v, only its mass matters
            constant = scores.mean((1, 2), keepdim=True).expand(-1, queries, 1)
            scores = torch.cat([scores, constant], -1)
            mass = torch.cat([mass * (1 - options.rho), torch.full_like(mass[:, :1], options.rho)], -1)
        kernel = (scores - scores.amax(-1, keepdim=True)).exp()  # the row's factor is absorbed by u
        exponent = options.tau / (options.tau + 1) if options.allocation == "kl" else 1.0
        return sinkhorn(
            kernel,
            mass * queries,
            passes=passes or options.passes,
            tolerance=options.tolerance,
            stop=options.stop,
            start=start,
            exponent=exponent,
        )


def sinkhorn(
    kernel: Tensor,
    mass: Tensor,
    *,
    passes: int,
    tolerance: float | None = None,
    stop: Literal["episode", "batch"] = "episode",
    start: Tensor | None = None,
    exponent: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Scale rows to 1 and columns to ``mass``, in turn, columns last.

    Args:
        kernel: (R, Q, K), not negative.
        mass: (R, K) column sums.
        passes: At most so many; exactly so many without a tolerance.
        tolerance: Stop when no row sum has moved by more than this since the last pass.
        stop: Whether an episode stops by itself, or all together.
        start: (R, K) column scaling to begin with; None = 1.
        exponent: Below 1, columns are pulled towards their mass only (KL relaxation).

    Returns:
        Plan (R, Q, K), column scaling (R, K).
    """
    tiny = torch.finfo(kernel.dtype).tiny
    v = torch.ones_like(mass) if start is None else start.clone()
    # one row per class, episodes of a chunk side by side: sums run over long contiguous rows
    by_class = kernel.permute(2, 1, 0).contiguous()  # (K, Q, R)
    v, wanted = v.T.contiguous()[:, None], mass.T.contiguous()[:, None]  # (K, 1, R)
    u = 1 / by_class.sum((0, 1), keepdim=True).expand(1, by_class.shape[1], -1).clamp(min=tiny)
    last, active = torch.zeros_like(u), torch.ones_like(u[:, :1], dtype=torch.bool)  # (1, Q, R), (1, 1, R)
    for _ in range(passes):
        reached = (by_class * v).sum(0, keepdim=True).clamp_(min=tiny)  # (1, Q, R)
        if tolerance is not None:
            rows = u * reached
            moved = (rows - last).abs().amax(1, keepdim=True) > tolerance
            active = active & (moved if stop == "episode" else moved.any())
            last = rows
            if not active.any():
                break
        scale = 1 / reached
        target = wanted / (by_class * scale).sum(1, keepdim=True).clamp_(min=tiny)  # (K, 1, R)
        target = target if exponent == 1.0 else target**exponent
        u, v = (scale, target) if tolerance is None else (u.where(~active, scale), v.where(~active, target))
    return (by_class * u * v).permute(2, 1, 0), v[:, 0].T
