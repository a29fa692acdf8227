"""Linear classification heads, solved in closed form or by Newton's method in the span of the supports.

Ridge regression and shrinkage discriminant on centred views, and the linear probe on standardised keys
(specification mvrec, 5 and 7.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewspect.nn.adapter import TAU
from fewspect.nn.heads import CentredPrototypes
from fewspect.nn.prototype import unit
from fewspect.nn.shots import Fitted, Head, Merge, Shots, choose, inner


@dataclass(frozen=True, slots=True)
class Ridge(Head):
    """Kernel ridge regression on one-hot labels, on centred views.

    Attributes:
        penalty: lambda, added to the kernel's diagonal (features have length 1).
        aligned: One regression per view; otherwise one on all views of all supports together.
        tau: Temperature of the probabilities.
    """

    penalty: float = 0.1
    aligned: bool = True
    tau: float = TAU
    merge: ClassVar[Merge] = "mean_logit"

    def fit(self, shots: Shots) -> CentredPrototypes:
        """Solve; the regression weights answer as prototypes do."""
        view = unit(shots.feature)
        mean = torch.einsum("es,esvd->evd", shots.mean.mean(-1), view)  # (E, V, D)
        rows = unit(view - mean[:, None]).transpose(1, 2)  # (E, V, S, D)
        target = (shots.hot - 1 / shots.classes) * (shots.count > 0)[..., None]  # (E, S, K)
        alive = (shots.count > 0).float()[:, None, :, None]  # padding: a row of zeros has no weight
        rows, target = rows * alive, target[:, None].expand(-1, rows.shape[1], -1, -1)
        if not self.aligned:
            rows, target = rows.flatten(1, 2)[:, None], target.flatten(1, 2)[:, None]
        kernel = rows @ rows.mT
        kernel = kernel + self.penalty * torch.eye(kernel.shape[-1], device=kernel.device)
        weight = rows.mT @ torch.cholesky_solve(target.contiguous(), torch.linalg.cholesky(kernel))
        weight = weight.mT.transpose(1, 2)  # (E, K, V or 1, D)
        return CentredPrototypes(weight.expand(-1, -1, mean.shape[1], -1), mean, self.tau)


@dataclass(frozen=True, slots=True)
class Discriminant(Head):
    """Linear discriminant with a shrunk covariance, inside the space that the support spans.

    Views at length 1, centred by their mean. The covariance is that of the views around their class's same
    view
    (``within="class"``) or around their own item (``within="item"``), shrunk to a multiple of the identity.

    Attributes:
        shrinkage: Share of the identity, 0 to 1.
        within: See above.
        tau: Temperature of the probabilities.
    """

    shrinkage: float = 0.5
    within: Literal["class", "item"] = "item"
    tau: float = 1.0
    merge: ClassVar[Merge] = "mean_logit"

    def fit(self, shots: Shots) -> "Directions":
        """Span, covariance, solve."""
        view = unit(shots.feature)  # (E, S, V, D)
        mean = torch.einsum("es,esvd->evd", shots.mean.mean(-1), view)  # (E, V, D)
        rows = (view - mean[:, None]) * (shots.count > 0).float()[..., None, None]
        means = torch.einsum("esk,esvd->ekvd", shots.mean, rows)  # (E, K, V, D)
        basis = torch.linalg.svd(rows.mean(2), full_matrices=False).Vh.mT  # (E, D, r), r = min(S, D)
        own = rows.mean(2, keepdim=True) if self.within == "item" else _of_class(means, shots)
        spread = ((rows - own) * (shots.count > 0).float()[..., None, None]).flatten(1, 2) @ basis
        degrees = shots.count.clamp(max=1).sum(1) * view.shape[2]
        covariance = spread.mT @ spread / degrees[:, None, None]
        size = covariance.shape[-1]
        level = covariance.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-12)[:, None, None]
        eye = torch.eye(size, device=covariance.device)
        shrunk = (1 - self.shrinkage) * covariance + (self.shrinkage * level + 1e-6) * eye
        centres = means.mean(2) @ basis  # (E, K, r)
        solved = _solved(shrunk, centres.mT).mT  # (E, K, r)
        offset = -0.5 * (solved * centres).sum(-1)
        return Directions(solved @ basis.mT, offset, mean, self.tau)


def _of_class(means: Tensor, shots: Shots) -> Tensor:
    """(E, S, V, D) mean of the class of every item."""
    place = shots.label[..., None, None].expand(-1, -1, *means.shape[2:])
    return means.gather(1, place)


@dataclass(frozen=True, slots=True)
class Directions(Fitted):
    """Linear scores of centred views: directions (E, K, D), offsets (E, K), means (E, V, D)."""

    weight: Tensor
    offset: Tensor
    centre: Tensor
    tau: float

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K)."""
        centre = choose(views, self.centre, 1)
        shift = torch.einsum("evd,ekd->evk", centre, self.weight)[:, None]
        return (inner(unit(query), self.weight) - shift + self.offset[:, None, None]) / self.tau


@dataclass(frozen=True, slots=True)
class LinearProbe(Head):
    """Multinomial logistic regression on standardised keys, by Newton's method in their span.

    Attributes:
        strength: C, the inverse weight of the L2 penalty (the constant feature is penalised, too).
        steps: Newton steps at most.
    """

    strength: float = 1.0
    steps: int = 30

    def fit(self, shots: Shots) -> "Probe":
        """Standardise and solve."""
        keys, weight = shots.keys, shots.count[..., None]
        total = weight.sum(1, keepdim=True)
        mean = (keys * weight).sum(1, keepdim=True) / total
        deviation = (((keys - mean) ** 2 * weight).sum(1, keepdim=True) / total).sqrt()
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        rows = (keys - mean) / deviation
        dual = _newton(rows @ rows.mT + 1, shots.hot, shots.count, self.strength, self.steps)  # (E, S, K)
        return Probe(rows.mT @ dual, dual.sum(1), mean[:, 0], deviation[:, 0])


def _newton(kernel: Tensor, hot: Tensor, count: Tensor, strength: float, steps: int) -> Tensor:
    """Dual weights a (E, S, K) with logits = kernel a that minimise |W|^2 / 2 + C sum of cross-entropies.

    In the span of the supports W = X^T a, and a Newton step d solves (I + C R K) d = -(a + C (P - Y)) with R
    the Hessian of the cross-entropy in the logits; a step that does not lower the loss is halved.
    """
    episodes, number, classes = hot.shape
    eye = torch.eye(number * classes, device=kernel.device)
    eye_k = torch.eye(classes, device=kernel.device)
    dual = torch.zeros_like(hot)
    loss = _probe_loss(kernel, dual, hot, count, strength)
    for _ in range(steps):
        prob = (kernel @ dual).softmax(-1)
        gradient = dual + strength * (prob * count[..., None] - hot)
        curve = (prob[..., None] * (eye_k - prob[..., None, :])) * count[..., None, None]  # (E, S, K, K)
        system = torch.einsum("eskj,est->esktj", curve, kernel).reshape(episodes, *(number * classes,) * 2)
        step = _solved(eye + strength * system, -gradient.flatten(1)).view_as(dual)
        size = torch.ones(episodes, 1, 1, device=kernel.device)
        for _ in range(8):
            fresh = _probe_loss(kernel, dual + size * step, hot, count, strength)
            size = torch.where((fresh <= loss)[:, None, None], size, size / 2)
        fresh = _probe_loss(kernel, dual + size * step, hot, count, strength)
        better = fresh < loss
        dual = torch.where(better[:, None, None], dual + size * step, dual)
        if not bool((loss - fresh > 1e-7 * loss).any()):
            break
        loss = torch.where(better, fresh, loss)
    return dual


def _solved(systems: Tensor, right: Tensor) -> Tensor:
    """Solutions of systems (E, N, N), one by one on a processor.

    LU of a batch never ends there with two threads (torch 2.15 and its MKL, 20 systems of 245 unknowns).
    """
    if systems.device.type != "cpu":
        return torch.linalg.solve(systems, right)
    return torch.stack([torch.linalg.solve(a, b) for a, b in zip(systems, right, strict=True)])


def _probe_loss(kernel: Tensor, dual: Tensor, hot: Tensor, count: Tensor, strength: float) -> Tensor:
    logits = kernel @ dual
    entropy = (count * logits.logsumexp(-1) - (logits * hot).sum(-1)).sum(1)
    return strength * entropy + 0.5 * (dual * logits).sum((1, 2))


@dataclass(frozen=True, slots=True)
class Probe(Fitted):
    """Weights (E, D, K), offsets (E, K) on standardised features: mean and deviation (E, D)."""

    weight: Tensor
    offset: Tensor
    mean: Tensor
    deviation: Tensor

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K)."""
        del views
        weight = (self.weight / self.deviation[..., None]).mT  # (E, K, D)
        shift = self.offset - torch.einsum("ed,ekd->ek", self.mean, weight)
        return inner(query, weight) + shift[:, None, None]
