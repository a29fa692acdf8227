"""Ranking curves from histograms: bounded memory for pixels, exact for few scores.

**Bins.** Score maps crowd near 0 and 1, where uniform bins lose the ranking. ``bin_of`` therefore uses the
bits of the float itself: below 0.5 the exponent and the leading ``MANTISSA`` bits of v, above 0.5 those of
1 - v (an exact difference in float32), and beyond [0, 1] those of the distance to the interval, so raw
scores are not clamped either. The bins are the same for all data, so histograms add up over batches and
processes. Their width is at most 2^-MANTISSA of the distance to the nearer end (never more than 2^-12
within [0, 1]); distances below 2^-32 share one bin.

**Error.** A tie inside a bin counts half, so AUROC is off by at most half the mass of tied pairs:
``tie_bound`` = sum_b p_b n_b / (2 P N). Measured against scikit-learn (400 000 pixels, 1 % defects):
AUROC off by 2e-6 and AP by 1e-5 for ordinary maps, 3e-4 when a third of the map is saturated, 1e-3 when the
whole map lies within 0.003 of 0.7.

All curve functions take histograms in ascending order of score and return plain floats. Letters: M bins.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

MANTISSA = 10
LOWEST, HIGHEST = 2.0**-32, 2.0**4
SHIFT = 23 - MANTISSA
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def _bits(value: float) -> int:
    """Leading bits of a positive float: they grow with the value."""
    return int(np.float32(value).view(np.int32)) >> SHIFT


BASE = _bits(LOWEST) - 1
HALF, TOP = _bits(0.5) - BASE, _bits(HIGHEST) - BASE
NUM_BINS = 2 * TOP + 2 * HALF + 1


def bin_of(score: Tensor) -> Tensor:
    """Bin of every score, monotone: any shape, float -> int64 in [0, NUM_BINS); NaN ranks lowest."""
    score = torch.nan_to_num(score.float(), nan=-torch.inf)
    low = score < 0.5
    distance = torch.where(low, score, 1 - score)  # signed distance to the nearer end of [0, 1]
    bits = distance.abs().contiguous().view(torch.int32) >> SHIFT
    code = (bits - BASE).clamp(0, TOP) * torch.sign(distance).int()
    return (TOP + torch.where(low, code, 2 * HALF - code)).long()


def histogram(bins: Tensor, where: Tensor) -> Tensor:
    """Count the bins of the pixels where ``where`` is true: (M,) int64."""
    return torch.bincount(bins[where], minlength=NUM_BINS)


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the regions of a boolean (H, W) mask under 8-neighbourhood from 1 on, and count them."""
    label = np.zeros(mask.shape, dtype=np.int32)
    return label, int(ndimage.label(mask, structure=EIGHT_NEIGHBOURS, output=label))  # type: ignore[arg-type]


def region_histogram(bins: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, int]:
    """Histogram of defect pixels, each weighted by one over the size of its region.

    Args:
        bins: (H, W) int bins.
        truth: (H, W) bool; regions are its components under 8-neighbourhood.

    Returns:
        (M,) float64 whose sum is the number of regions, and that number.
    """
    label, count = components(truth)
    if not count:
        return np.zeros(NUM_BINS), 0
    member = label[truth]
    weight = 1.0 / np.bincount(member)[1:]
    return np.bincount(bins[truth], weights=weight[member - 1], minlength=NUM_BINS), int(count)


def exact_histograms(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms (positive, negative) with one bin per distinct score: the curves below become exact."""
    values, member = np.unique(score, return_inverse=True)
    return tuple(np.bincount(member[label == k], minlength=len(values)) for k in (1, 0))  # type: ignore[return-value]


def _descending(histogram: np.ndarray) -> np.ndarray:
    """Number of scores at or above each threshold, highest threshold first, float64."""
    return np.cumsum(histogram[::-1], dtype=np.float64)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve, ties count half (Mann-Whitney U / (P N))."""
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / (positive.sum() * negative.sum()))


def tie_bound(positive: np.ndarray, negative: np.ndarray) -> float:
    """Largest possible error of ``auroc`` through binning: half the mass of tied pairs."""
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    return float(positive @ negative / (2 * positive.sum() * negative.sum()))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Sum of precision times gain in recall over descending thresholds (no interpolation)."""
    hits, alarms = _descending(positive), _descending(negative)
    precision = hits / np.maximum(hits + alarms, 1)
    return float(precision @ positive[::-1] / hits[-1])


def f1_max(positive: np.ndarray, negative: np.ndarray) -> float:
    """Best F1 over all thresholds: optimistic, because the test labels choose the threshold."""
    hits, alarms = _descending(positive), _descending(negative)
    return float((2 * hits / (hits + alarms + hits[-1])).max())


def aupro(regions: np.ndarray, negative: np.ndarray, limit: float) -> float:
    """Area under per-region overlap against false positive rate up to ``limit``, divided by ``limit``.

    PRO(t) is the mean over regions of the share of their pixels at or above t (Bergmann et al., MVTec AD,
    IJCV 2021, section 5.2); trapezoids, the last one cut at ``limit``.

    Args:
        regions: (M,) histogram of region-weighted pixels (sum = number of regions, or any multiple).
        negative: (M,) histogram of good pixels.
        limit: Largest false positive rate, in (0, 1].
    """
    overlap = np.concatenate([[0.0], _descending(regions)]) / regions.sum()
    rate = np.concatenate([[0.0], _descending(negative)]) / negative.sum()
    last = int(np.searchsorted(rate, limit, side="right"))  # first point beyond the limit
    end = np.interp(limit, rate[last - 1 : last + 1], overlap[last - 1 : last + 1])
    x, y = np.append(rate[:last], limit), np.append(overlap[:last], end)
    return float(np.trapezoid(y, x) / limit)
