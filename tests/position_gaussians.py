"""One Gaussian per position of aligned images, and the Mahalanobis distance to it: PaDiM (arXiv 2011.08785).

Letters: n images, P positions, D width. Everything is float64: a covariance of few images in many dimensions
is singular but for what is added to its diagonal.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FLOOR = 0.01
"""Added to the diagonal of every covariance (section 3.2)."""


@dataclass(frozen=True, slots=True)
class PositionGaussians:
    """What good features look like at every position.

    Attributes:
        mean: (P, D) float64.
        factor: (P, D, D) float64, lower triangular: covariance = factor factor^T.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, rows: Tensor, floor: float = FLOOR) -> Self:
        """Fit to features (n, P, D) of n >= 2 images; covariance over n - 1, ``floor`` on its diagonal."""
        rows = rows.double()
        mean = rows.mean(0)
        centred = (rows - mean).transpose(0, 1)  # (P, n, D)
        covariance = centred.transpose(1, 2) @ centred / (len(rows) - 1)  # (P, D, D)
        covariance.diagonal(dim1=-2, dim2=-1).add_(floor)
        return cls(mean, torch.linalg.cholesky(covariance))

    def distance(self, rows: Tensor) -> Tensor:
        """Mahalanobis distances (B, P) of features (B, P, D), float64."""
        centred = (rows.double() - self.mean).movedim(0, -1)  # (P, D, B)
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).norm(dim=1).T
