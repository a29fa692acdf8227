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


def density_coverage(real: Tensor, made: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Density and coverage (Naeem et al. 2020): as precision and recall, not ruled by single odd images.

    Args:
        real: (N, D).
        made: (M, D).
        neighbours: Size of the neighbourhoods.

    Returns:
        Mean number of neighbourhoods of real rows around a made row / ``neighbours`` (may exceed 1), share of
        real rows with a made one in their neighbourhood.
    """
    inside = distances(real, made) <= radii(real, neighbours)[:, None]  # (N, M)
    return inside.double().sum(0).mean() / neighbours, inside.any(1).double().mean()


def kernel_distance(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Squared maximum mean discrepancy with the kernel (x y / D + 1)^3, unbiased (Binkowski et al. 2018).

    Args:
        real: (N, D), N > 2.
        made: (M, D), M > 2.

    Returns:
        The distance (may be below 0 by chance), and the half width of its 95 % interval by the two-sample
        jackknife (Arvesen 1969): every row is left out once.
    """
    a, b = real.double(), made.double()
    within = [_kernel(x, x).fill_diagonal_(0) for x in (a, b)]
    between = _kernel(a, b)
    n, m = between.shape
    own = [w.sum() / (k * (k - 1)) for w, k in zip(within, (n, m), strict=True)]
    value = own[0] + own[1] - 2 * between.mean()
    variance = torch.zeros((), dtype=torch.float64)
    for w, other, mixed, k in ((within[0], own[1], between, n), (within[1], own[0], between.T, m)):
        rest = (w.sum() - 2 * w.sum(1)) / ((k - 1) * (k - 2))  # (k,)
        cross = (mixed.sum() - mixed.sum(1)) / ((k - 1) * mixed.shape[1])
        left_out = rest + other - 2 * cross
        variance = variance + (k - 1) / k * ((left_out - left_out.mean()) ** 2).sum()
    return value, 1.96 * variance.sqrt()


def spread_in_clusters(rows: Tensor, owner: Tensor) -> Tensor:
    """Mean squared distance of samples that have the same nearest training image, mean over these images.

    The form of IC-LPIPS (Ojha et al. 2021): low = the samples around a training image are all alike. NaN
    where no image is nearest to two samples.

    Args:
        rows: (M, D) what is compared, e.g. ``perceptual``.
        owner: (M,) which training image is nearest.
    """
    means = []
    for index in owner.unique():
        own = rows[owner == index]
        if len(own) > 1:
            means.append((distances(own, own) ** 2).sum() / (len(own) * (len(own) - 1)))
    return torch.stack(means).mean() if means else torch.tensor(float("nan"), dtype=torch.float64)


def perceptual(maps: list[Tensor]) -> Tensor:
    """Feature maps, one (N, D, h, w) per layer, as rows whose squared distance is LPIPS without weights.

    Every cell has length 1; squared differences are averaged over cells and summed over layers (Zhang et al.
    2018, equation 1, all weights 1).
    """
    rows = [
        torch.nn.functional.normalize(m, dim=1).flatten(1) / (m.shape[2] * m.shape[3]) ** 0.5 for m in maps
    ]
    return torch.cat(rows, 1)


def _kernel(one: Tensor, two: Tensor) -> Tensor:
    return (one @ two.T / one.shape[1] + 1) ** 3
