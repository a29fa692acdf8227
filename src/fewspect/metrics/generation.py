"""How close generated pictures are to real ones, in any feature space: Frechet distance, precision, recall.

Features are rows (N, D). Which extractor made them decides what a number means: only the Frechet distance on
Inception features of the published weights may be called FID.
"""

import torch
from torch import Tensor

NEIGHBOURS = 3


def distances(one: Tensor, two: Tensor) -> Tensor:
    """Euclidean distances (N, M) between rows (N, D) and (M, D), float64."""
    a, b = one.double(), two.double()
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return squares.clamp(min=0).sqrt()


def radii(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Distance (N,) of each row to its ``neighbours``-th nearest one in the same set."""
    away = distances(features, features).fill_diagonal_(0)
    return away.kthvalue(neighbours + 1, 1).values  # the nearest is the row itself


def precision_recall(real: Tensor, made: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    Args:
        real: (N, D).
        made: (M, D).
        neighbours: Size of the neighbourhoods.

    Returns:
        Share of ``made`` inside a neighbourhood of a real row, share of ``real`` inside one of a made row.
    """
    away = distances(real, made)
    precision = (away <= radii(real, neighbours)[:, None]).any(0)
    recall = (away <= radii(made, neighbours)).any(1)
    return precision.double().mean(), recall.double().mean()


def frechet(real: Tensor, made: Tensor) -> Tensor:
    """Frechet distance of the Gaussian fits of two sets (sample covariance; Heusel et al. 2017).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); the trace of the root is that of (R S2 R)^(1/2), R^2 = S1.
    """
    a, b = real.double(), made.double()
    one, two = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + one.trace() + two.trace() - 2 * common
