"""The principal subspace of good features, and how far a feature lies outside of it.

Sums of first and second moments are kept in float64, so that adding images in another order, or adding up the
sums of several parts, changes nothing beyond rounding. A part can be left out of the whole by not adding it:
that is how an image is judged by statistics that it had no part in. The residual is the feature
reconstruction error of FRE (Ndiour et al., arXiv 2204.02624).

Letters: N tokens, D width, k principal directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fewspect.errors import UserError


class Moments:
    """Number, sum and sum of outer products of all rows that were added; ``D * (D + 1) * 8`` bytes.

    Args:
        dim: Width D.
        device: Where to add up.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows (N, D)."""
        rows = rows.double()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.outer.addmm_(rows.T, rows)

    @classmethod
    def sum(cls, parts: Sequence[Self]) -> Self:
        """The moments of everything that any part has seen."""
        whole = cls(len(parts[0].total), parts[0].total.device)
        for part in parts:
            whole.count += part.count
            whole.total += part.total
            whole.outer += part.outer
        return whole

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) with n in the denominator, float64.

        Raises:
            UserError: Fewer than two rows were added.
        """
        if self.count < 2:
            raise UserError("There is too little to learn from.", "Give more good images.")
        mean = self.total / self.count
        return mean, self.outer / self.count - torch.outer(mean, mean)


@dataclass(frozen=True, slots=True)
class Subspace:
    """A mean and the directions in which good features vary, or do not vary.

    Attributes:
        mean: (D,) float32.
        basis: (D, k) float32, orthonormal columns.
        outside: The columns span the complement (whichever of both has fewer columns is kept).
    """

    mean: Tensor
    basis: Tensor
    outside: bool

    @classmethod
    def of(cls, moments: Moments, variance: float, rank: int | None = None) -> Self:
        """Keep as many principal directions as it takes for a share of the variance.

        Args:
            moments: Of good features.
            variance: Share in (0, 1); the first number of directions that reaches it is kept.
            rank: This many directions instead, 1..D - 1.
        """
        mean, covariance = moments.mean_and_covariance()
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        if rank is None:
            held = values.clamp(min=0).flip(0).cumsum(0)
            rank = int((held < variance * held[-1]).sum()) + 1
        rank = min(rank, len(values) - 1)  # something must be outside
        outside = 2 * rank > len(values)
        basis = vectors[:, :-rank] if outside else vectors[:, -rank:]
        return cls(mean.float(), basis.float().contiguous(), outside)

    @property
    def rank(self) -> int:
        """Number of principal directions."""
        dim, columns = self.basis.shape
        return dim - columns if self.outside else columns

    def residual(self, tokens: Tensor) -> Tensor:
        """Squared distance to the subspace, float32.

        Args:
            tokens: (..., D).

        Returns:
            (...) at least 0.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            centred = tokens.float() - self.mean
            projected = _squared(centred @ self.basis)
            return projected if self.outside else (_squared(centred) - projected).clamp_(min=0)


def _squared(rows: Tensor) -> Tensor:
    """Squared length; by the norm, which needs no copy."""
    return torch.linalg.vector_norm(rows, dim=-1).square_()
