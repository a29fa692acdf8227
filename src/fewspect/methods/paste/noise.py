"""Shapes of Perlin noise (Perlin 1985), as DRAEM uses them for defects nobody has seen."""

import numpy as np
from scipy import ndimage

CELLS = (2, 3, 4, 6)
"""Cells of the noise along a side; drawn per direction, so that shapes are long at times."""

SHARE = (0.1, 0.5)
"""Quantile of the noise above which a pixel belongs to the shape, drawn from 1 - this."""


def gradient_noise(r: np.random.Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Noise (side, side) from random directions on a grid of ``cells``, about -1..1."""
    angle = r.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    slopes = np.stack([np.sin(angle), np.cos(angle)], -1)  # (rows + 1, columns + 1, 2)
    rows, columns = ((np.arange(side) + 0.5) / side * n for n in cells)
    whole = (rows.astype(int), columns.astype(int))
    y, x = rows - whole[0], columns - whole[1]
    corners = []
    for down in (0, 1):
        row = []
        for right in (0, 1):
            slope = slopes[whole[0] + down][:, whole[1] + right]  # (side, side, 2)
            row.append(slope[..., 0] * (y - down)[:, None] + slope[..., 1] * (x - right)[None])
        corners.append(row)
    fy, fx = _fade(y)[:, None], _fade(x)[None]
    top, bottom = (row[0] + fx * (row[1] - row[0]) for row in corners)
    return (top + fy * (bottom - top)) * np.sqrt(2)


def _fade(t: np.ndarray) -> np.ndarray:
    """Smooth way from 0 to 1 (Perlin 2002)."""
    return t**3 * (t * (6 * t - 15) + 10)


def perlin(r: np.random.Generator, side: int) -> np.ndarray:
    """The largest connected shape of a noise, (h, w) bool, cut to its bounding box; at most half a side."""
    size = int(r.integers(max(6, side // 8), max(8, side // 2)))
    noise = gradient_noise(r, size, (int(r.choice(CELLS)), int(r.choice(CELLS))))
    shape = noise >= np.quantile(noise, 1 - r.uniform(*SHARE))
    parts = np.asarray(ndimage.label(shape)[0])  # type: ignore[index] - SciPy says int for some arguments
    largest = parts == int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    rows, columns = (np.flatnonzero(largest.any(axis)) for axis in (1, 0))
    return largest[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
