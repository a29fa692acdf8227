"""Random fields of the toy factory: cubic B-splines through white noise, in units of the image side.

Every field is float32 (side, side). A coordinate of 0 is the first row or column, 1 the end of the image, so
that the same numbers draw the same picture at any resolution (white noise excepted).
"""

from functools import cache

import numpy as np

Field = np.ndarray
"""float32 (side, side), or (side, side, 3) for an image."""

SPLINE_STD = 0.48
"""Standard deviation of a cubic B-spline through unit white noise in two dimensions."""


@cache
def axes(side: int) -> tuple[Field, Field]:
    """Row and column coordinates of the pixel centres in [0, 1]: float32 (side, 1) and (1, side)."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side
    return line[:, None], line[None, :]


@cache
def _spline(side: int, cells: int) -> tuple[np.ndarray, Field]:
    """Cubic B-spline from ``cells + 3`` knots : first knot (side,), weights (4, side, 1)."""
    at = (np.arange(side) + 0.5) / side * cells
    knot = np.floor(at).astype(int)
    t = at - knot
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return knot, (np.stack(weights) / 6).astype(np.float32)[..., None]


def smooth(r: np.random.Generator, side: int, rows: int, columns: int | None = None) -> Field:
    """Smooth noise of unit variance with ``rows`` x ``columns`` cells (unequal: stretched grain).

    Four gathers per axis instead of a matrix product: as fast, and no BLAS threads that fight over the cores.
    """
    columns = rows if columns is None else columns
    knots = r.standard_normal((rows + 3, columns + 3), dtype=np.float32)
    across = np.ascontiguousarray(_stretch(knots, side, rows).T)  # (columns + 3, side)
    return np.ascontiguousarray(_stretch(across, side, columns).T) / np.float32(SPLINE_STD)


def _stretch(knots: Field, side: int, cells: int) -> Field:
    """Interpolate (cells + 3, n) along its first axis to (side, n)."""
    knot, weights = _spline(side, cells)
    field = weights[0] * knots[knot]
    for tap in range(1, 4):
        field = field + weights[tap] * knots[knot + tap]
    return field


def fractal(r: np.random.Generator, side: int, cells: int, octaves: int = 3) -> Field:
    """Sum of smooth noises whose cells halve and whose strength halves, about unit variance."""
    total = smooth(r, side, cells)
    for octave in range(1, octaves):
        total = total + smooth(r, side, cells << octave) * 0.5**octave
    return total * np.float32(0.87)  # 1 / sqrt(1 + 1/4 + 1/16)


def white(r: np.random.Generator, side: int) -> Field:
    """Independent unit noise per pixel."""
    return r.standard_normal((side, side), dtype=np.float32)


def step(field: Field, width: float) -> Field:
    """Smooth 0 -> 1 transition of a field around zero, ``width`` units wide."""
    t = np.clip(field / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def mix(image: Field, colour: Field | tuple[float, ...], alpha: Field) -> Field:
    """Blend ``colour`` ((3,) or an image) over ``image`` with ``alpha`` (side, side) in [0, 1]."""
    return image + alpha[..., None] * (np.asarray(colour, np.float32) - image)
