"""Thresholds from good images only (specification reconstruction_ae, 4.5).

A pixel is marked, and an image is called defective, when its value is *strictly greater* than the threshold.
Nothing here takes a label or a mask: a defect cannot move a threshold. Estimators that need labelled defects
(the "F1-optimal" threshold) are left out on purpose.

Pixel estimators take the final maps of good images, a sequence of (H, W) arrays of any sizes; the image
estimators take their scores. n is the number of good images.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn.morphology import largest

ROUNDING = 1e-9
"""Slack against 20 * (1 - 0.05) being not quite 19."""

FEWEST_EXCESSES = 4
"""A tail of fewer maxima is no tail."""

NO_IMAGE = "There is no good image to set a threshold on.", "Keep some good images for validation."

Maps = Sequence[np.ndarray]


@dataclass(frozen=True, slots=True)
class Conformal:
    """An image threshold and what it promises.

    Attributes:
        threshold: An image is defective when its score is above this.
        alpha: Probability at most that a good image, exchangeable with those seen, is called defective.
        count: Number of good images it was set on.
    """

    threshold: float
    alpha: float
    count: int


# -- image thresholds


def image_threshold(name: str, scores: Sequence[float], **options: Any) -> Conformal:  # noqa: ANN401
    """Estimate an image threshold by name: ``conformal`` or ``max``.

    Args:
        name: Estimator.
        scores: Scores of n good images.
        options: What the estimator takes (``alpha``).

    Raises:
        UserError: Unknown name or option, no images, or scores that are no numbers.
    """
    return _call("image threshold", IMAGE_ESTIMATORS, name, scores, options)


def conformal(scores: Sequence[float], alpha: float) -> Conformal:
    """Split-conformal quantile: the ceil((n + 1)(1 - alpha))-th smallest score.

    For good images exchangeable with these, P(score > t) <= alpha whatever the distribution (Vovk et al.,
    *Algorithmic Learning in a Random World*, 2005; Lei et al., JASA 2018, lemma 2). With fewer than
    ``needed(alpha)`` images that cannot be promised; the maximum is taken, which promises 1 / (n + 1).

    Args:
        scores: Scores of n good images, in any order.
        alpha: False-alarm rate that is asked for, in (0, 1).

    Raises:
        UserError: No images, or scores that are no numbers.
    """
    if not 0 < alpha < 1:
        raise UserError(f"A false-alarm rate of {alpha} was asked for.", "It lies between 0 and 1, as 0.05.")
    ordered = _checked(scores)
    count = len(ordered)
    rank = math.ceil((count + 1) * (1 - alpha) - ROUNDING)
    if rank > count:
        return Conformal(float(ordered[-1]), 1 / (count + 1), count)
    rank = max(rank, 1)
    return Conformal(float(ordered[rank - 1]), min(alpha, (count + 1 - rank) / (count + 1)), count)


def needed(alpha: float) -> int:
    """Smallest number of good images that can promise a false-alarm rate of ``alpha``: 19 for 0.05."""
    return math.ceil(1 / alpha - ROUNDING) - 1


def image_maximum(scores: Sequence[float], alpha: float = 0.0) -> Conformal:
    """The largest score of a good image; promises 1 / (n + 1) whatever was asked for (``alpha``)."""
    del alpha
    ordered = _checked(scores)
    return Conformal(float(ordered[-1]), 1 / (len(ordered) + 1), len(ordered))


def _checked(scores: Sequence[float]) -> np.ndarray:
    """Scores in ascending order, float64."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not len(ordered):
        raise UserError(*NO_IMAGE)
    if np.isnan(ordered[-1]):  # NaN is sorted to the end
        raise UserError(
            f"{int(np.isnan(ordered).sum())} of {len(ordered)} good images have a score that is no number.",
            "Look at the training loss; the network may have diverged.",
        )
    return ordered


# -- scores in [0, 1]


def cdf_knots(scores: Sequence[float], count: int = 1024) -> Tensor:
    """Ascending scores (M,) float64 of good images; of more than ``count`` the quantiles of an even grid."""
    ordered = _checked(scores)
    if len(ordered) > count:
        ordered = np.quantile(ordered, np.linspace(0, 1, count))
    return torch.from_numpy(ordered)


def calibrated(score: Tensor, knots: Tensor) -> Tensor:
    """Share of good images with a lower score: (...) float64 in [0, 1], monotone in ``score``.

    Args:
        score: (...) float.
        knots: (M,) from ``cdf_knots``.
    """
    return torch.searchsorted(knots, score.to(knots.dtype)).to(knots.dtype) / len(knots)


# -- pixel thresholds


def pixel_threshold(*, name: str, maps: Maps, **options: Any) -> float:  # noqa: ANN401
    """Estimate a pixel threshold by name: a key of ``PIXEL_ESTIMATORS``.

    Args:
        name: Estimator.
        maps: Final maps of good images.
        options: What the estimator takes.

    Raises:
        UserError: Unknown name or option, or no maps.
    """
    if not len(maps):
        raise UserError(*NO_IMAGE)
    return float(_call("pixel threshold", PIXEL_ESTIMATORS, name, maps, options))


def parameters(name: str) -> list[str]:
    """Names of what a pixel estimator takes beside maps."""
    return list(inspect.signature(PIXEL_ESTIMATORS[name]).parameters)[1:] if name in PIXEL_ESTIMATORS else []


def maximum(maps: Maps) -> float:
    """The largest pixel of all maps."""
    return max(float(m.max()) for m in maps)


def quantile(maps: Maps, p: float) -> float:
    """p-quantile of all pixels, linear between order statistics."""
    return float(np.quantile(np.concatenate([m.ravel() for m in maps]), p, overwrite_input=True))


def pixel_fpr(maps: Maps, alpha: float) -> float:
    """Share ``alpha`` of the good pixels lies above."""
    return quantile(maps, 1 - alpha)


def ksigma(maps: Maps, k: float = 3.0) -> float:
    """Mean + k population standard deviations of all pixels."""
    number = sum(m.size for m in maps)
    mean = sum(float(m.sum(dtype=np.float64)) for m in maps) / number
    square = sum(float(((m - mean) ** 2).sum(dtype=np.float64)) for m in maps)
    return mean + k * math.sqrt(square / number)


def image_max(maps: Maps, p: float = 1.0) -> float:
    """p-quantile of the largest pixel of each map, linear between order statistics."""
    return float(np.quantile([float(m.max()) for m in maps], p))


def max_area(maps: Maps, area: int) -> float:
    """Smallest t so that no region of {map > t} of any good map has ``area`` pixels or more.

    Regions only shrink while t grows, so that every map can be bisected over its own distinct values, and
    only where it is worse than the maps before it (Bergmann et al., CVPR 2019, section 4.3).

    Args:
        maps: Good maps.
        area: In pixels, at least 1.
    """
    if area < 1:
        raise UserError(f"max_area was asked for regions below {area} pixels.", "The area is at least 1.")
    threshold = min(m.min() for m in maps)
    for one in maps:
        if _fits(one, threshold, area):
            continue
        values = np.unique(one[one > threshold])
        low, high = 0, len(values) - 1  # nothing lies above the last value: it always fits
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _fits(one, values[middle], area) else (middle + 1, high)
        threshold = values[low]
    return float(threshold)


def _fits(one: np.ndarray, threshold: float, area: int) -> bool:
    mask = one > threshold
    return int(mask.sum()) < area or largest(mask) < area


def mask_area(maps: Maps, area: int = 400, share: float = 0.99) -> float:
    """Smallest t for which a share of the good images has fewer than ``area`` pixels above t altogether.

    What the threshold search of the DeeCamp system was meant to be (4.2), without the 256 inferences per
    image: {map > t} has fewer than A pixels exactly when t is at least the A-th largest pixel.

    Args:
        maps: Good maps.
        area: A, in pixels, at least 1.
        share: Of the images, rounded up to whole ones.
    """
    if area < 1:
        raise UserError(f"legacy_area was asked for fewer than {area} pixels.", "The area is at least 1.")
    each = sorted(float(np.partition(m.ravel(), -area)[-area] if m.size >= area else m.min()) for m in maps)
    return each[max(1, math.ceil(share * len(each) - ROUNDING)) - 1]


def gpd(maps: Maps, q: float = 0.5, alpha: float = 0.05) -> float:
    """Threshold that the largest pixel of a good image exceeds with probability ``alpha``, from a tail model.

    A generalised Pareto distribution is fitted to the excesses of the per-image maxima over their q-quantile
    by probability-weighted moments (Hosking and Wallis, Technometrics 1987, section 3). It extrapolates
    beyond the largest value seen, which no empirical quantile can; it promises nothing.

    Args:
        maps: Good maps.
        q: Where the tail begins.
        alpha: Exceedance probability, below 1 - q.

    Raises:
        UserError: The tail has too few images, or ``alpha`` lies outside of it.
    """
    if not 0 < alpha < 1 - q:
        raise UserError(
            f"gpd cannot extrapolate to {alpha} from a tail of {1 - q:.3g}.",
            f"Set method.threshold.alpha below {1 - q:.3g}, or method.threshold.pixel=image_max.",
        )
    peaks = np.array([float(m.max()) for m in maps])
    start = float(np.quantile(peaks, q))
    excess = np.sort(peaks[peaks > start] - start)
    if len(excess) < FEWEST_EXCESSES:
        raise UserError(
            f"gpd has {len(excess)} good images in the tail, too few to fit it.",
            "Give more good images, or set method.threshold.pixel=image_max.",
        )
    position = (np.arange(1, len(excess) + 1) - 0.35) / len(excess)
    first, second = float(excess.mean()), float(((1 - position) * excess).mean())
    shape = 2 - first / (first - 2 * second)  # xi; the authors' k = -xi
    scale = 2 * first * second / (first - 2 * second)
    ratio = (1 - q) / alpha
    return start + (scale * math.log(ratio) if abs(shape) < ROUNDING else scale * (ratio**shape - 1) / shape)


def fixed(maps: Maps, value: float) -> float:
    """A number that the user chose."""
    del maps
    return value


PIXEL_ESTIMATORS: dict[str, Callable[..., float]] = {
    "max": maximum,
    "quantile": quantile,
    "pixel_fpr": pixel_fpr,
    "ksigma": ksigma,
    "image_max": image_max,
    "max_area": max_area,
    "legacy_area": mask_area,
    "gpd": gpd,
    "fixed": fixed,
}
IMAGE_ESTIMATORS: dict[str, Callable[..., Conformal]] = {"conformal": conformal, "max": image_maximum}


def _call(
    what: str,
    known: Mapping[str, Callable[..., Any]],
    name: str,
    good: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:  # noqa: ANN401
    if name not in known:
        raise UserError(f"There is no {what} '{name}'.", f"Use one of: {', '.join(sorted(known))}.")
    takes = list(inspect.signature(known[name]).parameters.values())[1:]
    wrong = set(options) - {p.name for p in takes}
    missing = {p.name for p in takes if p.default is p.empty} - set(options)
    if wrong or missing:
        raise UserError(
            f"The {what} '{name}' does not go with the options {sorted(options)}.",
            f"It takes: {', '.join(p.name for p in takes) or 'none'}.",
        )
    return known[name](good, **options)
