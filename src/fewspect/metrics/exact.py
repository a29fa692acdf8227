"""Pixel metrics with one bin per distinct score: every pixel is kept and sorted.

``detection.PixelRanking`` is compared with it by tests and benchmarks. The curves are the same functions, so
that a difference is due to the binning alone; they are compared with other libraries in the tests.
"""

from collections.abc import Sequence

import numpy as np

from fewspect.metrics.bins import region_weights
from fewspect.metrics.detection import pixel_values
from fewspect.types import IGNORE


def exact_pixel_values(scores: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, float]:
    """Pixel metrics of one product from (H, W) float maps and (H, W) masks in {0, 1, 255}."""
    _, *histograms = pixel_histograms(scores, masks)
    return pixel_values(*histograms)


def pixel_histograms(
    scores: Sequence[np.ndarray], masks: Sequence[np.ndarray], connectivity: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores in ascending order (M,), and the histograms (M,) that ``pixel_values`` takes.

    Args:
        scores: (H, W) float maps.
        masks: (H, W) in {0, 1, 255}.
        connectivity: Neighbours of a pixel in a region, 8 or 4.
    """
    known = [m != IGNORE for m in masks]
    score = np.concatenate([s[k] for s, k in zip(scores, known, strict=True)])
    truth = np.concatenate([m[k] for m, k in zip(masks, known, strict=True)]) == 1
    weight = np.concatenate([region_weights(m == 1, connectivity) for m in masks])
    values, member = np.unique(score, return_inverse=True)
    positive = np.bincount(member[truth], minlength=len(values))
    regions = np.bincount(member[truth], weights=weight, minlength=len(values))
    return values, positive, np.bincount(member, minlength=len(values)) - positive, regions
