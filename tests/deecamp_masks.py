"""Segmentation of the DeeCamp reconstruction system as it was (specification reconstruction_ae, 4.1 and 4.2).

From an image and its reconstruction, both 8-bit BGR, to a mask of dissimilar pixels. Everything is 8-bit and
truncated in between, and similarity is the measure (low = defect): kept for comparison with old numbers, not
for use. The detectors keep float residuals (high = defect), see ``maps``.

Example:
    >>> q = quantised(similarity(grey(image), grey(again)), image.shape[:2])  # doctest: +SKIP
    >>> is_good(mask(q, 64), 800)  # doctest: +SKIP
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from fewspect.nn import ssim
from fewspect.nn.thresholds import mask_area

GREY_15_BIT = (3735, 19235, 9798)
"""Weights of B, G, R in fixed point; older builds of the image library have 14 bits (one grey level off)."""

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

GREY_ONCE = (0.114, 0.587, 0.299)
GREY_TWICE = (0.114**2, 0.587**2, 0.299**2)
"""The float path converts the reconstruction to grey two times, so that its weights are squares."""


def grey(image: np.ndarray) -> np.ndarray:
    """Grey image (H, W) uint8 of (H, W, 3) uint8 in the order B, G, R."""
    return (image.astype(np.int64) @ np.array(GREY_15_BIT) + (1 << 14) >> 15).astype(np.uint8)


def similarity(
    first: np.ndarray,
    second: np.ndarray,
    window: Literal["gaussian", "uniform"] = "gaussian",
    *,
    size: int = 11,
    sigma: float = 1.5,
) -> np.ndarray:
    """SSIM with sample covariance of two grey images (H, W) uint8: (H, W) float64, clipped to [0, 1].

    The border repeats the edge pixel.

    Args:
        first: One image.
        second: The other.
        window: The reference tests with ``gaussian`` but sets its threshold on ``uniform`` maps, so that the
            threshold does not carry over.
        size: Side of the window in pixels.
        sigma: Of the Gaussian in pixels.
    """
    x, y = first.astype(np.float64), second.astype(np.float64)

    def blurred(image: np.ndarray) -> np.ndarray:
        if window == "uniform":
            return ndimage.uniform_filter(image, size)
        return ndimage.gaussian_filter(image, sigma, radius=size // 2)

    mean_x, mean_y = blurred(x), blurred(y)
    sample = size**2 / (size**2 - 1)
    var_x, var_y, both = (
        sample * (blurred(a * b) - m * n)
        for a, b, m, n in ((x, x, mean_x, mean_x), (y, y, mean_y, mean_y), (x, y, mean_x, mean_y))
    )
    above = (2 * mean_x * mean_y + C1) * (2 * both + C2)
    return np.clip(above / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)), 0, 1)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, without antialiasing: (H, W) float64 -> ``size``."""
    tensor = torch.from_numpy(values)[None, None]
    return F.interpolate(tensor, size, mode="bilinear", align_corners=False)[0, 0].numpy()


def quantised(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Similarity (h, w) at ``size`` in 256 levels, truncated: uint8."""
    return (255 * resized(values, size)).astype(np.uint8)


def mask(levels: np.ndarray, threshold: int) -> np.ndarray:
    """Dissimilar pixels q < T of (H, W) uint8: bool."""
    return levels < threshold


def is_good(found: np.ndarray, area: int) -> bool:
    """Whether an image with this mask counts as good: fewer than ``area`` mask pixels, wherever they are."""
    return int(found.sum()) < area


def threshold(levels: Sequence[np.ndarray], area: int = 400, share: float = 0.99) -> int:
    """Largest T for which at least ``share`` of good images (H, W) uint8 are judged good.

    What the search of the reference was meant to find; as written it counts on over all thresholds, stops at
    the first and returns 0 for any images.
    """
    return round(-mask_area([-q.astype(np.float64) for q in levels], area, share))


def float_mask(
    original: np.ndarray,
    reconstruction: np.ndarray,
    threshold: int = 128,
    *,
    window: int = 11,
    weights: Sequence[Sequence[float]] = (GREY_ONCE, GREY_TWICE),
) -> np.ndarray:
    """The reference's second way, on float images and with a zero-padded window: (H, W) bool, SSIM < T / 255.

    Args:
        original: (H, W, 3) uint8, B, G, R.
        reconstruction: The same.
        threshold: T in grey levels.
        window: Side of the window in pixels, sigma 1.5.
        weights: Of B, G, R for the two images.
    """
    x, y = (
        torch.from_numpy((image / 255.0) @ np.asarray(line)).float()[None, None]
        for image, line in zip((original, reconstruction), weights, strict=True)
    )
    found = ssim.ssim(x, y, window=window, padding="zeros")[0, 0]
    return (found < threshold / 255).numpy()
