"""A few labelled items in several views, for many samplings at once: what a classification head is fitted on.

Letters: E episodes (samplings, shots, objects), S supports, Q queries, V views, D width, K classes.
Everything is float32. Episodes with fewer supports are filled up with items of count 0.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.prototype import unit

Merge = Literal["entropy", "mean_prob", "mean_logit", "mean_feature"]
"""How the answers for the views of a query become one, see ``nn.merging``."""


@dataclass(frozen=True, slots=True)
class Shots:
    """Supports of E episodes.

    Attributes:
        feature: (E, S, V, D) float32, not normalised.
        label: (E, S) int64 from 0.
        count: (E, S) float32 multiplicity; 0 = padding.
        classes: K.
        text: (E, K, D) features of class descriptions, or None.
    """

    feature: Tensor
    label: Tensor
    count: Tensor
    classes: int
    text: Tensor | None = None

    @property
    def hot(self) -> Tensor:
        """(E, S, K): count in the column of the label, else 0."""
        return F.one_hot(self.label, self.classes).float() * self.count[..., None]

    @property
    def keys(self) -> Tensor:
        """(E, S, D): mean of the views of every item, as they are (specification mvrec, 2.5)."""
        return self.feature.mean(2)

    @property
    def each(self) -> Tensor:
        """(E, 1, K): number of supports of every class, at least a hair."""
        return self.hot.sum(1, keepdim=True).clamp(min=1e-9)

    @property
    def mean(self) -> Tensor:
        """(E, S, K): weights whose product with supports is the mean of each class."""
        return self.hot / self.each

    def without(self, item: int) -> "Shots":
        """The same, item number ``item`` of every episode left out (its count is 0)."""
        count = self.count.clone()
        count[:, item] = 0
        return replace(self, count=count)


class Fitted:
    """A head that has seen its supports; a frozen dataclass of tensors."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K) of queries.

        Args:
            query: (E, Q, V, D), or (1, Q, V, D) when all episodes ask about the same.
            views: Which of the support's views these are; None = all, in order.
        """


class Head:
    """A rule that turns supports into ``Fitted``; a frozen dataclass of options.

    Attributes:
        merge: How its answers for several views are merged unless something else is asked for.
    """

    __slots__ = ()
    merge: ClassVar[Merge] = "entropy"

    @abstractmethod
    def fit(self, shots: Shots) -> Fitted:
        """See the supports."""


def cosines(query: Tensor, keys: Tensor) -> Tensor:
    """(E, Q, V, S) cosine of every view with keys (E, S, D)."""
    return inner(unit(query), unit(keys))


def inner(query: Tensor, keys: Tensor) -> Tensor:
    """(E, Q, V, S) products of queries (E or 1, Q, V, D) with keys (E, S, D): one matrix product."""
    if len(query) == 1:  # the same queries for all
        return torch.einsum("qvd,esd->eqvs", query[0], keys)
    return torch.einsum("eqvd,esd->eqvs", query, keys)


def choose(views: Sequence[int] | None, tensor: Tensor, axis: int) -> Tensor:
    """The views that are asked about, along an axis."""
    return tensor if views is None else tensor.index_select(axis, torch.tensor(views, device=tensor.device))
