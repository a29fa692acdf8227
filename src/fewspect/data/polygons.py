"""Polygon to mask, equal to OpenCV's ``fillPoly`` with 8-connected borders, in NumPy.

Published few-shot protocols were measured on masks made by that function: vertices truncated to integers, the
border drawn as lines (Bresenham), the inside filled row by row with the even-odd rule on 16-bit fixed-point
edges. Areas of small defects depend on these details (LPBF pores: 3 % more pixels than with an area-exact
fill), so they are kept.

All edges of a polygon are handled in one vectorised pass inside the bounding box: thousands of pores per
second.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 16
"""Edges are followed in fixed point with this many fractional bits."""

MAX_COORDINATE = 1 << 30
"""Coordinates are clipped here first, so that no 64-bit product can overflow."""

Ints = NDArray[np.int64]


def fill(points: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """Fill one polygon, border included.

    Args:
        points: Flat ``(x, y, x, y, ...)`` in pixels; truncated towards zero; an unpaired last number is
            ignored.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        (height, width) bool; all false for fewer than one point or a polygon outside the image.
    """
    mask = np.zeros((height, width), dtype=bool)
    paint(mask, points)
    return mask


def paint(mask: NDArray[np.bool_], points: Sequence[float]) -> None:
    """Set the pixels of one polygon in ``mask`` (H, W) bool, in place; the union with what is there."""
    flat = np.asarray(points, dtype=np.float64)
    flat = flat[: len(flat) // 2 * 2]
    if not len(flat) or not mask.size or not np.isfinite(flat).all():
        return
    end = (
        np.trunc(np.clip(flat, -MAX_COORDINATE, MAX_COORDINATE)).astype(np.int64).reshape(-1, 2)
    )  # (V, 2) x, y
    start = np.roll(end, 1, axis=0)
    height, width = mask.shape
    clipped_start, clipped_end, visible = _clip(start, end, height, width)
    _draw_lines(mask, clipped_start[visible], clipped_end[visible])
    _fill_rows(mask, *_edges((start, end), (clipped_start, clipped_end), height, width))


def _clip(start: Ints, end: Ints, height: int, width: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Cohen-Sutherland: cut segments at the image, first rows then columns, intersections truncated.

    Returns:
        New starts and ends (V, 2), and which segments touch the image (V,). Segments wholly beyond one
        side keep their ends.
    """
    a, b = start.copy(), end.copy()
    limit = np.array([width - 1, height - 1])
    for axis in (1, 0):
        beyond = np.asarray(((a < 0) & (b < 0) | (a > limit) & (b > limit)).any(axis=1))
        for point, other in ((a, b), (b, a)):
            _cut(point, other, axis, int(limit[axis]), ~beyond)
    inside = np.asarray((a >= 0).all(1) & (a <= limit).all(1) & (b >= 0).all(1) & (b <= limit).all(1))
    return a, b, inside


def _cut(point: Ints, other: Ints, axis: int, limit: int, active: NDArray[np.bool_]) -> None:
    """Move ``point`` along the segment to ``other`` onto the border of ``axis``, where it lies outside."""
    out = active & ((point[:, axis] < 0) | (point[:, axis] > limit)) & (point[:, axis] != other[:, axis])
    p, o = point[out], other[out]
    target = np.where(p[:, axis] < 0, 0, limit)
    ratio = (target - p[:, axis]).astype(np.float64) * (o[:, 1 - axis] - p[:, 1 - axis])
    p[:, 1 - axis] += np.trunc(ratio / (o[:, axis] - p[:, axis])).astype(np.int64)
    p[:, axis] = target
    point[out] = p


def _draw_lines(mask: NDArray[np.bool_], start: Ints, end: Ints) -> None:
    """Bresenham lines from left to right; a tie stays on the row or column of the start."""
    swap = end[:, 0] < start[:, 0]
    a, b = np.where(swap[:, None], end, start), np.where(swap[:, None], start, end)
    delta = b - a  # (V, 2), dx >= 0
    size = np.abs(delta)
    steep = size[:, 1] > size[:, 0]
    major, minor = size.max(axis=1), size.min(axis=1)
    line, step = _ranges(major + 1)
    long, short = np.maximum(major, 1)[line], minor[line]
    side = (2 * short * step + long - 1) // (2 * long)  # ceil(step * minor / major - 1/2)
    sign_y = np.where(delta[line, 1] < 0, -1, 1)
    x = a[line, 0] + np.where(steep[line], side, step)
    y = a[line, 1] + sign_y * np.where(steep[line], step, side)
    mask[y, x] = True


def _edges(
    segments: tuple[Ints, Ints], clipped: tuple[Ints, Ints], height: int, width: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Non-horizontal edges as (first row, end row, x in fixed point at the first row, x change per row).

    An edge that leaves the image takes its slope from the clipped segment.
    """
    (start, end), (clipped_start, clipped_end) = segments, clipped
    limit = np.array([width - 1, height - 1])
    outside = np.asarray(((start < 0) | (start > limit) | (end < 0) | (end > limit)).any(axis=1))
    rows = outside & (clipped_start[:, 1] != clipped_end[:, 1])
    p, q = np.where(outside[:, None], clipped_start, start), np.where(outside[:, None], clipped_end, end)
    p[:, 1], q[:, 1] = np.where(rows, p[:, 1], start[:, 1]), np.where(rows, q[:, 1], end[:, 1])
    px, qx = p[:, 0] << FRACTION_BITS, q[:, 0] << FRACTION_BITS
    keep = start[:, 1] != end[:, 1]
    rise, run = (q[:, 1] - p[:, 1])[keep], (qx - px)[keep]
    slope = np.sign(run) * np.sign(rise) * (np.abs(run) // np.abs(rise))  # truncates towards zero
    s, e, px, py = start[keep], end[keep], px[keep], p[keep, 1]
    first, last = np.minimum(s[:, 1], e[:, 1]), np.maximum(s[:, 1], e[:, 1])
    return first, last, px + (first - py) * slope, slope


def _fill_rows(mask: NDArray[np.bool_], first: Ints, last: Ints, x: Ints, slope: Ints) -> None:
    """Even-odd fill: on every row the sorted crossings are taken in pairs, both ends included."""
    height, width = mask.shape
    begin, stop = np.maximum(first, 0), np.minimum(last, height)
    edge, step = _ranges(np.maximum(stop - begin, 0))
    if not len(edge):
        return
    row = begin[edge] + step
    column = x[edge] + (row - first[edge]) * slope[edge]
    order = np.lexsort((column, row))
    left, right = order[0::2], order[1::2]  # closed polygon: every row has an even number of crossings
    x1, x2 = -(-column[left] >> FRACTION_BITS), column[right] >> FRACTION_BITS  # whole pixels between
    shown = (x1 < width) & (x2 >= 0) & (x1 <= x2)
    y, x1, x2 = row[left][shown], np.maximum(x1[shown], 0), np.minimum(x2[shown], width - 1)
    if not len(y):
        return
    top, low = int(y.min()), int(x1.min())
    change = np.zeros((int(y.max()) - top + 1, int(x2.max()) - low + 2), dtype=np.int32)
    np.add.at(change, (y - top, x1 - low), 1)
    np.add.at(change, (y - top, x2 + 1 - low), -1)
    box = mask[top : top + change.shape[0], low : low + change.shape[1] - 1]
    box |= np.cumsum(change, axis=1)[:, :-1] > 0


def _ranges(lengths: Ints) -> tuple[Ints, Ints]:
    """Concatenated ``arange(n)`` for every n: owner index and position, both (sum of lengths,)."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
