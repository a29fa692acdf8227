"""Confidence interval of mIoU over a fixed list of episodes.

Cluster bootstrap (Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8): the
query images of every class are drawn again with replacement, all repeats of one image (other supports)
stay together, the classes are fixed. Letters: K classes, n query images of a class.
"""

from collections.abc import Mapping

import numpy as np

from fewspect.draws import rng

BOOTSTRAPS = 1000
CHUNK = 100


def iou(intersections: np.ndarray, unions: np.ndarray) -> np.ndarray:
    """Element-wise I / U, NaN where the union is empty."""
    known = np.asarray(unions) > 0
    return np.divide(intersections, unions, out=np.full(np.shape(unions), np.nan), where=known)


def clusters(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sum foreground I and U over the repeats of each query image.

    Args:
        rows: Columns ``query`` (identity of the image), ``index`` (episode), ``i1``, ``u1``, each (N,).

    Returns:
        (n, 2) float64, in the order of each image's first episode (so that no path enters the result).
    """
    order = np.argsort(rows["index"], kind="stable")
    _, first, member = np.unique(rows["query"][order], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[member]
    sums = [np.bincount(rank, weights=rows[k][order], minlength=len(first)) for k in ("i1", "u1")]
    return np.stack(sums, 1)


def half_width(classes: Mapping[int, np.ndarray], seed: int = 0, samples: int = BOOTSTRAPS) -> float:
    """Half width of the 95 % percentile interval of mIoU; NaN when no class has two query images.

    Every class has its own stream of ``draws.rng``: neither the order of the episodes nor the number of
    processes changes the value.

    Args:
        classes: Class hash -> (n, 2) intersections and unions of its query images (``clusters``).
        seed: Seed of the streams.
        samples: Number of resamples.
    """
    if not any(len(table) > 1 for table in classes.values()):
        return float("nan")
    values = np.stack(
        [_resample(key, table, seed, samples) for key, table in classes.items()]
    )  # (K, samples)
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(0)
    means = np.divide(total, known.sum(0), out=np.full(samples, np.nan), where=known.any(0))
    if np.isnan(means).all():
        return float("nan")
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(high - low) / 2


def _resample(key: int, table: np.ndarray, seed: int, samples: int) -> np.ndarray:
    """IoU of ``samples`` resamples of one class: (samples,), in chunks to bound the memory."""
    generator = rng(seed, "miou_ci95", key)
    share = np.full(len(table), 1 / len(table))
    sizes = [min(CHUNK, samples - start) for start in range(0, samples, CHUNK)]
    sums = np.concatenate([generator.multinomial(len(table), share, size=size) @ table for size in sizes])
    return iou(sums[:, 0], sums[:, 1])
