"""From a residual map to a comparable one: smoothing, border, standardisation per pixel, image score.

Specification reconstruction_ae, 4.4 and 4.5. Maps are float, higher = more anomalous, never clamped. Letters:
B maps, H x W pixels, N = H * W.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn.ssim import gaussian

TRUNCATE = 4.0
"""A Gaussian kernel ends at this many sigmas."""

SHARED_BLUR = 2.0
"""Sigma in pixels that the statistics per pixel are blurred with."""

SHARED_FLOOR = 0.1
"""tau of 4.5: share of the mean variance that is added to the variance of every pixel."""

AUTO_FACTOR = 1.0
"""Maps count as aligned when what they share varies more, by this factor, than what is peculiar to each."""

FEWEST_MAPS = 3
"""A map is judged by the statistics of the others, and one map has no variance."""

AUTO_MAPS = 5
"""Fewer good maps do not tell what is shared from chance."""

VARIANCE_FLOOR = 1e-12
"""Keeps maps that never vary finite."""


TOP = re.compile(r"top(?:(\d*\.?\d+)pct|([1-9]\d*))")
"""Image scores that average the largest pixels: a percentage or a number of them."""


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter, rows and columns one after the other.

    The border is mirrored without repeating the edge pixel (torch's ``reflect``); along an axis that is not
    longer than the kernel's radius the edge pixel is repeated instead.

    Args:
        maps: (B, H, W) float.
        sigma: In pixels; 0 = unchanged.

    Returns:
        (B, H, W).
    """
    if sigma <= 0:
        return maps
    kernel = gaussian(2 * int(TRUNCATE * sigma + 0.5) + 1, sigma).tolist()
    return _filter(_filter(maps, kernel, -2), kernel, -1)


def _filter(maps: Tensor, kernel: Sequence[float], axis: int) -> Tensor:
    """Filter one axis of (B, H, W); shifted sums are faster on the CPU than a convolution of one channel."""
    radius, length = len(kernel) // 2, maps.shape[axis]
    sides = (0, 0, radius, radius) if axis == -2 else (radius, radius)
    padded = F.pad(maps, sides, mode="reflect" if length > radius else "replicate")
    result = torch.zeros_like(maps)
    for k, weight in enumerate(kernel):
        result.add_(padded.narrow(axis, k, length), alpha=weight)
    return result


def border_guard(maps: Tensor, border: int, gain: float) -> Tensor:
    """Multiply a frame of ``border`` pixels of (B, H, W) maps by ``gain``."""
    if border <= 0:
        return maps
    factor = torch.full_like(maps[0], gain)  # (H, W)
    factor[border : maps.shape[-2] - border, border : maps.shape[-1] - border] = 1
    return maps * factor


def require_score(rule: str) -> None:
    """Refuse a rule that ``image_score`` does not know.

    Raises:
        UserError: Unknown rule.
    """
    if rule not in ("max", "mean") and not TOP.fullmatch(rule):
        raise UserError(f"There is no image score '{rule}'.", "Use max, mean, top1pct or top100.")


def image_score(maps: Tensor, rule: str) -> Tensor:
    """Score of every map (4.4).

    Args:
        maps: (B, H, W) float.
        rule: ``max``; ``mean``; ``top<k>pct``: mean of the floor(k / 100 * N), at least 1, largest pixels;
            ``top<k>``: mean of the k largest pixels (all of them where there are fewer).

    Returns:
        (B,).

    Raises:
        UserError: Unknown rule.
    """
    flat = maps.flatten(1)  # (B, N)
    if rule == "max":
        return flat.amax(1)
    if rule == "mean":
        return flat.mean(1)
    require_score(rule)
    found = TOP.fullmatch(rule)
    assert found is not None
    pixels = flat.shape[1]
    count = int(found[2]) if found[2] else max(1, math.floor(float(found[1]) * pixels / 100))
    return flat.topk(min(count, pixels), sorted=False).values.mean(1)


@dataclass(frozen=True, slots=True)
class PixelStats:
    """Standardisation of every pixel by good images: z = (r - mean) / sqrt(variance + tau * mean variance).

    Calling it standardises a raw map (h, w); statistics of another size are resized to it.

    Attributes:
        mean: (h, w) mean of the good maps, blurred.
        scale: (h, w) the root above, variance blurred.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, maps: Sequence[Tensor], mode: str) -> "PixelStats | None":
        """Statistics of good maps.

        Args:
            maps: Raw maps (h, w).
            mode: ``on``; or ``auto``: only where at least ``AUTO_MAPS`` maps are ``aligned``.

        Returns:
            None where ``auto`` decides against it.

        Raises:
            UserError: ``on``, but there are fewer than ``FEWEST_MAPS`` or they differ in size.
        """
        if len(maps) < FEWEST_MAPS or len({m.shape for m in maps}) > 1:
            if mode == "auto":
                return None
            raise UserError(
                "Standardising every pixel needs at least three good images whose maps have one size.",
                "Give more good images, tile after a zoom, or set method.maps.pixel_norm=off.",
            )
        mean, variance = _moments(maps)
        if mode == "auto" and (len(maps) < AUTO_MAPS or not aligned(mean, variance)):
            return None
        return cls._blurred(mean, variance)

    @classmethod
    def without_each(cls, maps: Sequence[Tensor]) -> "Iterator[PixelStats]":
        """Statistics of all maps but one, for each of them in turn.

        Statistics that have seen a map call it more normal than they will call the next one; without it they
        judge it as they would a new one. Its share is taken out of the sums of all, exactly.

        Args:
            maps: Raw maps (h, w) that ``fit`` has taken.
        """
        number = len(maps)
        mean, variance = _moments(maps)
        total = variance * (number - 1)
        for one in maps:
            away = one - mean
            left = total - away**2 * (number / (number - 1))
            yield cls._blurred(mean - away / (number - 1), left.clamp(min=0) / (number - 2))

    @classmethod
    def _blurred(cls, mean: Tensor, variance: Tensor) -> "PixelStats":
        """Statistics of moments (h, w) float64."""
        mean, variance = (smooth(part[None].float(), SHARED_BLUR)[0] for part in (mean, variance))
        scale = (variance + SHARED_FLOOR * variance.mean()).clamp(min=VARIANCE_FLOOR).sqrt()
        return cls(mean, scale)

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a raw map (h, w)."""
        mean, scale = (_fit_to(part.to(raw.device), raw.shape[-2:]) for part in (self.mean, self.scale))
        return (raw - mean) / scale

    def state(self) -> dict[str, Tensor]:
        """Plain tensors."""
        return {"mean": self.mean, "scale": self.scale}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "PixelStats":
        """Undo ``state``."""
        return cls(state["mean"], state["scale"])


def aligned(mean: Tensor, variance: Tensor) -> bool:
    """Whether maps share a spatial structure, as those of a part in a fixed position do.

    Args:
        mean: (h, w) mean of the maps; what it varies over its pixels is shared.
        variance: (h, w) unbiased variance over the maps: what is peculiar to each.
    """
    return float(mean.var(correction=0)) > AUTO_FACTOR * float(variance.mean())


def _moments(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over maps (h, w), float64, two passes."""
    mean = torch.zeros_like(maps[0], dtype=torch.float64)
    for one in maps:
        mean += one
    mean /= len(maps)
    total = torch.zeros_like(mean)
    for one in maps:
        total += (one - mean) ** 2
    return mean, total / (len(maps) - 1)


def _fit_to(part: Tensor, size: torch.Size) -> Tensor:
    if part.shape == size:
        return part
    return F.interpolate(part[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]
