"""What is left of a thresholded map: opening, hysteresis, area filter, holes (specification 4.4, 5 to 8).

Regions are connected under 8-neighbourhood. Masks are boolean NumPy arrays (H, W).
"""

import numpy as np
from scipy import ndimage

EIGHT = np.ones((3, 3), dtype=bool)
"""Neighbourhood of a pixel in a region; holes are connected under the other one, as they must be."""


def disk(radius: int) -> np.ndarray:
    """Structuring element (2 r + 1, 2 r + 1) bool: x^2 + y^2 <= r^2."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def clean(
    mask: np.ndarray,
    weak: np.ndarray | None = None,
    *,
    open_radius: int = 0,
    min_area: int = 0,
    fill_holes: bool = False,
) -> np.ndarray:
    """Opening, hysteresis, area filter, holes, in this order; each can be left out.

    Args:
        mask: (H, W) bool.
        weak: (H, W) bool, what regions may grow into, see ``grown``; None = they stay as they are.
        open_radius: Radius of the opening's disk in pixels; 0 = none. Outside the image everything counts as
            foreground while eroding, so that a region at the border is not worn off there.
        min_area: Regions with fewer pixels go; with as many they stay.
        fill_holes: Fill what a region encloses.

    Returns:
        (H, W) bool.
    """
    if not mask.any():
        return mask
    if open_radius > 0:
        element = disk(open_radius)
        eroded = ndimage.binary_erosion(mask, element, border_value=1)
        mask = ndimage.binary_dilation(eroded, element)
    if weak is not None:
        mask = grown(mask, weak)
    if min_area > 1:
        mask = keep_large(mask, min_area)
    return ndimage.binary_fill_holes(mask) if fill_holes else mask  # type: ignore[return-value]


def grown(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """Hysteresis: the regions of ``weak`` with at least one pixel of ``strong`` (Canny 1986).

    Args:
        strong: (H, W) bool, what certainly belongs.
        weak: (H, W) bool, contains ``strong``.

    Returns:
        (H, W) bool.
    """
    label, count = regions(weak)
    keep = np.zeros(count + 1, dtype=bool)
    keep[np.unique(label[strong])] = True
    keep[0] = False
    return keep[label]


def keep_large(mask: np.ndarray, min_area: int) -> np.ndarray:
    """Remove the regions of (H, W) bool that have fewer than ``min_area`` pixels."""
    label, _ = regions(mask)
    keep = np.bincount(label.ravel()) >= min_area
    keep[0] = False
    return keep[label]


def largest(mask: np.ndarray) -> int:
    """Pixels of the largest region of (H, W) bool, 0 without any."""
    label, count = regions(mask)
    return int(np.bincount(label[label > 0]).max()) if count else 0


def regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the regions of (H, W) bool from 1 on, and count them."""
    label = np.zeros(mask.shape, dtype=np.int32)
    return label, int(ndimage.label(mask, structure=EIGHT, output=label))  # type: ignore[arg-type]
