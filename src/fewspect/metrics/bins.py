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
LOWEST, HIGHEST = 2.0**-32, 2.0**20
CHUNK = 1 << 16
"""Scores that are binned at once: their intermediate results stay in the processor's cache."""

SHIFT = 23 - MANTISSA
SLACK = 1e-9
"""0.95 * 20 may lie above 19."""

NEIGHBOURS = {8: np.ones((3, 3), dtype=bool), 4: ndimage.generate_binary_structure(2, 1)}


def _bits(value: float) -> int:
    """Leading bits of a positive float: they grow with the value."""
    return int(np.float32(value).view(np.int32)) >> SHIFT


BASE = _bits(LOWEST) - 1
HALF, TOP = _bits(0.5) - BASE, _bits(HIGHEST) - BASE
NUM_BINS = 2 * TOP + 2 * HALF + 1


def bin_of(score: Tensor) -> Tensor:
    """Bin of every score, monotone: any shape, float -> int64 in [0, NUM_BINS); NaN ranks lowest."""
    score = score.float()
    distance = torch.minimum(score, 1 - score)  # signed distance to the nearer end of [0, 1]
    ordinary = not distance.numel() or bool(distance.min() >= 0)  # all within [0, 1], no NaN
    size = distance if ordinary else distance.abs()
    code = (size.contiguous().view(torch.int32) >> SHIFT).sub_(BASE).clamp_(0, TOP)
    if not ordinary:
        code.mul_(distance.sign().int())
    high = (0.5 - score).contiguous().view(torch.int32) >> 31  # -1 above 0.5, else 0
    place = code.sub_(HALF).bitwise_xor_(high).sub_(high).add_(TOP + HALF)  # mirrored where high
    return (place if ordinary else place.masked_fill_(score.isnan(), 0)).long()


def count(into: Tensor, score: Tensor, amount: int | Tensor = 1) -> None:
    """Add scores to a histogram.

    Args:
        into: (M,) int64, changed.
        score: Any shape, float.
        amount: What each score adds; -1 takes it out again; or a tensor like ``score``.
    """
    flat = score.reshape(-1)
    each = torch.as_tensor(amount, device=into.device).expand(score.shape).reshape(-1)
    for part, add in zip(flat.split(CHUNK), each.split(CHUNK), strict=True):
        into.scatter_add_(0, bin_of(part).to(into.device), add)


def extent(mask: Tensor) -> tuple[slice, slice]:
    """Smallest box of (H, W) that holds all pixels other than 0; an empty one where there is none."""
    rows, columns = (torch.nonzero(mask.amax(axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return slice(0), slice(0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def components(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, int]:
    """Label the regions of a boolean (H, W) mask from 1 on, and count them; 8 or 4 neighbours connect."""
    label = np.zeros(mask.shape, dtype=np.int32)
    return label, int(ndimage.label(mask, structure=NEIGHBOURS[connectivity], output=label))  # type: ignore[arg-type]


def region_weights(truth: np.ndarray, connectivity: int = 8) -> np.ndarray:
    """One over the size of its region for every true pixel of (H, W) bool, in the order of ``x[truth]``."""
    label, _ = components(truth, connectivity)
    member = label[truth]
    return 1.0 / np.bincount(member)[member]


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


def f1_curve(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """F1 of the decision "score at or above this bin" for every bin in ascending order: (M,)."""
    hits, alarms = _descending(positive), _descending(negative)
    return (2 * hits / (hits + alarms + hits[-1]))[::-1]


def f1_max(positive: np.ndarray, negative: np.ndarray) -> float:
    """Best F1 over all thresholds: optimistic, because the test labels choose the threshold."""
    return float(f1_curve(positive, negative).max())


def iou_max(positive: np.ndarray, negative: np.ndarray) -> float:
    """Best intersection over union over all thresholds, as optimistic: IoU = F1 / (2 - F1)."""
    f1 = f1_max(positive, negative)
    return f1 / (2 - f1)


def tnr_at_tpr(positive: np.ndarray, negative: np.ndarray, rate: float) -> float:
    """Share of good ones passed at the highest threshold that finds at least ``rate`` of the defects."""
    hits, alarms = _descending(positive), _descending(negative)
    first = int(np.argmax(hits >= rate * hits[-1] - SLACK))
    return float(1 - alarms[first] / alarms[-1])


def tpr_at_fpr(positive: np.ndarray, negative: np.ndarray, rate: float) -> float:
    """Share of defects found at the lowest threshold that stops at most ``rate`` of the good ones."""
    hits, alarms = _descending(positive), _descending(negative)
    allowed = int(np.searchsorted(alarms, rate * alarms[-1] + SLACK, side="right"))  # thresholds
    return float(hits[allowed - 1] / hits[-1]) if allowed else 0.0


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
