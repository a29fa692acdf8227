"""Do generated masks fit: their sizes, and whether what is marked is what differs."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def ks_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Largest difference of two empirical distribution functions, 0 (alike) to 1; NaN for an empty one."""
    if not len(one) or not len(two):
        return float("nan")
    every = np.concatenate([one, two])
    shares = [np.searchsorted(np.sort(v), every, "right") / len(v) for v in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


def contrast(maps: Tensor, mask: Tensor) -> float:
    """How much more the marked cells differ from the surface than its own cells do; 1 = not at all.

    Every cell's feature is compared with the mean over the cells outside of the mask: mean length of the
    difference inside / outside. NaN where one of the two has no cell.

    Args:
        maps: (D, h, w) features.
        mask: (H, W) labels; a cell is inside when it touches a marked pixel.
    """
    inside = F.adaptive_max_pool2d((mask > 0)[None].float(), maps.shape[-2:])[0] > 0  # (h, w)
    if not bool(inside.any()) or bool(inside.all()):
        return float("nan")
    surface = maps[:, ~inside].mean(1)
    away = (maps - surface[:, None, None]).norm(dim=0)
    return float(away[inside].mean() / away[~inside].mean().clamp(min=1e-12))


def box_around(mask: Tensor, margin: float = 0.25, least: int = 16) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a square-like box around the marked pixels of (H, W), inside the image.

    Args:
        mask: (H, W).
        margin: Share of the longer side that is added on each side.
        least: Smallest side in pixels.
    """
    spans = []
    found = torch.nonzero(mask > 0)
    low, high = found.amin(0), found.amax(0) + 1
    side = max(least, int((high - low).amax() * (1 + 2 * margin)))
    for start, stop, length in zip(low.tolist(), high.tolist(), mask.shape, strict=True):
        first = min(max(0, (start + stop - side) // 2), max(0, length - side))
        spans += [first, min(length, first + side)]
    return spans[0], spans[1], spans[2], spans[3]
