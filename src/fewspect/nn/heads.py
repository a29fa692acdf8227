"""Classification heads that compare (spec mvrec, 5 and 7.4): prototypes, neighbours, text, and ``Centred``.

``Centred`` is the per-view centred, aligned prototype. Linear heads are in ``nn.linear_heads``, caches in
``nn.adapter``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewspect.nn.adapter import TAU
from fewspect.nn.prototype import unit
from fewspect.nn.shots import Fitted, Head, Merge, Shots, choose, cosines, inner

EUCLIDEAN_SCALE = KNN_SCALE = 0.11
"""The original multiplies where it should divide; the largest class stays the same."""

TEXT_SCALE = 100.0
"""exp(logit scale) of CLIP and AlphaCLIP."""


@dataclass(frozen=True, slots=True)
class Prototypes(Head):
    """Mean of a class's keys.

    Attributes:
        metric: ``cosine``: cosine / 0.11; ``euclidean``: -0.11 * distance.
    """

    metric: Literal["cosine", "euclidean"] = "cosine"

    def fit(self, shots: Shots) -> "NearPrototypes":
        """Average."""
        return NearPrototypes(torch.einsum("esk,esd->ekd", shots.mean, shots.keys), self.metric)


@dataclass(frozen=True, slots=True)
class NearPrototypes(Fitted):
    """Class means (E, K, D)."""

    means: Tensor
    metric: str

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K)."""
        del views
        if self.metric == "cosine":
            return cosines(query, self.means) / TAU
        squares = query.square().sum(-1, keepdim=True) + self.means.square().sum(-1)[:, None, None]
        return -EUCLIDEAN_SCALE * (squares - 2 * inner(query, self.means)).clamp(min=0).sqrt()


@dataclass(frozen=True, slots=True)
class Neighbours(Head):
    """The nearest keys by cosine; a class gets the sum of the similarities of its own among them.

    Attributes:
        k: How many; None = shots.
        scale: Factor of the logits.
    """

    k: int | None = None
    scale: float = KNN_SCALE

    def fit(self, shots: Shots) -> "NearKeys":
        """Keep the keys."""
        k = self.k or max(1, round(float(shots.each.amax())))
        return NearKeys(shots.keys, shots.hot, min(k, shots.keys.shape[1]), self.scale)


@dataclass(frozen=True, slots=True)
class NearKeys(Fitted):
    """Keys (E, S, D), their labels (E, S, K), how many count."""

    keys: Tensor
    hot: Tensor
    k: int
    scale: float

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K)."""
        del views
        absent = self.hot.sum(-1) == 0  # (E, S) padding
        cosine = cosines(query, self.keys).masked_fill(absent[:, None, None], -math.inf)
        best = cosine.topk(self.k, -1)
        votes = best.values.masked_fill(best.values == -math.inf, 0.0)
        near = torch.zeros_like(cosine).scatter(-1, best.indices, votes)
        return self.scale * torch.einsum("eqvs,esk->eqvk", near, self.hot)


@dataclass(frozen=True, slots=True)
class Centred(Head):
    """Prototypes of views at length 1 from which the mean of the support's same view was taken (7.4).

    CLIP features of one object have a common part that dominates every cosine (.87 to .99). It is the mean of
    the support; what is left is compared with the same view's prototype.

        u = n(n(f_v) - mu_v),  P_cv = mean of u over class c,  score_c = mean over v of cos(n(n(q_v) - mu_v),
        P_cv)

    Attributes:
        tau: Temperature of the probabilities.
        aligned: Compare view v with view v; otherwise with the mean over the views.
        centre: ``view``: one mean per view; ``all``: one for all; ``none``: no centring.
        balanced: The mean counts classes equally, not items.
    """

    tau: float = TAU
    aligned: bool = True
    centre: Literal["view", "all", "none"] = "view"
    balanced: bool = True
    merge: ClassVar[Merge] = "mean_logit"

    def fit(self, shots: Shots) -> "CentredPrototypes":
        """Centre and average."""
        view = unit(shots.feature)  # (E, S, V, D)
        mean = torch.zeros_like(view[:, :1])
        if self.centre != "none":
            weight = shots.mean.mean(-1) if self.balanced else shots.count / shots.count.sum(1, keepdim=True)
            mean = torch.einsum("es,esvd->evd", weight, view)[:, None]  # (E, 1, V, D)
        if self.centre == "all":
            mean = mean.mean(2, keepdim=True).expand_as(mean)
        means = torch.einsum("esk,esvd->ekvd", shots.mean, unit(view - mean))
        if not self.aligned:
            means = means.mean(2, keepdim=True).expand_as(means)
        return CentredPrototypes(unit(means), mean[:, 0], self.tau)


@dataclass(frozen=True, slots=True)
class CentredPrototypes(Fitted):
    """Prototypes (E, K, V, D) at length 1, or weights of a regression, and means (E, V, D)."""

    means: Tensor
    centre: Tensor
    tau: float

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K).

        <n(q) - mu, P> / |n(q) - mu| is taken apart into products with n(q), so that queries that all episodes
        share are multiplied once.
        """
        means, centre = choose(views, self.means, 2), choose(views, self.centre, 1)
        query = unit(query)
        product = _aligned(query, means) - torch.einsum("evd,ekvd->evk", centre, means)[:, None]
        along = _aligned(query, centre[:, None])[..., 0]  # (E, Q, V)
        square = query.square().sum(-1) - 2 * along + centre.square().sum(-1)[:, None]
        return product / square.clamp(min=1e-12).sqrt()[..., None] / self.tau


def _aligned(query: Tensor, means: Tensor) -> Tensor:
    """(E, Q, V, K) products of view v of queries (E or 1, Q, V, D) with view v of means (E, K, V, D)."""
    if len(query) == 1:
        episodes, classes = means.shape[:2]
        flat = means.permute(2, 3, 0, 1).flatten(2)  # (V, D, E K)
        product = torch.bmm(query[0].transpose(0, 1), flat)  # (V, Q, E K)
        return product.unflatten(2, (episodes, classes)).permute(2, 1, 0, 3)
    return torch.einsum("eqvd,ekvd->eqvk", query, means)


@dataclass(frozen=True, slots=True)
class Text(Head):
    """Zero-shot: the class whose description lies nearest.

    Attributes:
        scale: Factor of the cosine.
    """

    scale: float = TEXT_SCALE

    def fit(self, shots: Shots) -> "Described":
        """Keep the descriptions.

        Raises:
            ValueError: There are none.
        """
        if shots.text is None:
            raise ValueError("no text features")
        return Described(shots.text, self.scale)


@dataclass(frozen=True, slots=True)
class Described(Fitted):
    """Features of class descriptions (E, K, D)."""

    text: Tensor
    scale: float

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K)."""
        del views
        return self.scale * cosines(query, self.text)


def mixed(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Probabilities of two heads, mixed: (1 - w) p + w q."""
    return (1 - weight) * first + weight * second
