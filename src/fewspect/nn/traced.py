"""The geometry of ``windows``, ``tiles`` and ``maps`` as matrices: for graphs that take images of any size.

``windows`` cuts and resizes by sizes that it knows. A graph (torch.export, ONNX) knows them only when it
runs; here they are numbers in tensors, and every resizing is a product with a matrix made of them. Resizing
of 8-bit pixels is that of torch's antialiased filters bit for bit: weights in fixed point with 16 bits,
columns first, each pass rounded to 8 bits.

Letters: n pixels of an axis before, m pixels after. Matrices are (m, n).
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.maps import TRUNCATE
from fewspect.nn.ssim import gaussian

Matrix = tuple[Tensor, Tensor]
"""Integer weights (m, n) float64, and the integer that stands for a weight of 1."""

Kernel = Literal["triangle", "cubic"]

BITS, MOST_BITS = 15, 22
"""The largest weight needs so many bits with its sign; weights are multiplied by at most 2^22."""


def triangle(x: Tensor) -> Tensor:
    """Bilinear filter, from -1 to 1."""
    return (1 - x.abs()).clamp(min=0)


def cubic(x: Tensor) -> Tensor:
    """Bicubic filter with a = -0.5, from -2 to 2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


KERNELS: dict[Kernel, tuple[Callable[[Tensor], Tensor], float]] = {
    "triangle": (triangle, 1.0),
    "cubic": (cubic, 2.0),
}


def steps(number: int, like: Tensor) -> Tensor:
    """0, 1, ..., number - 1 as float64."""
    return torch.arange(number, dtype=torch.float64, device=like.device)


def length(line: Tensor) -> Tensor:
    """Number of entries of (n,) as a float64 scalar that a graph keeps open."""
    return torch.ones_like(line, dtype=torch.float64).sum()


def shrunk(
    before: int,
    after: int,
    taken: Tensor,
    shown: Tensor,
    kernel: Kernel = "triangle",
) -> Matrix:
    """Antialiased resizing of the first ``taken`` of n pixels to the first ``shown`` of m pixels.

    Args:
        before: n.
        after: m.
        taken: () float64, at most n.
        shown: () float64, at most m; the rows after it are 0.
        kernel: ``triangle`` or ``cubic``.
    """
    scale = taken / shown
    stretch = scale.clamp(min=1.0)
    function, wide = KERNELS[kernel]
    reach = wide * stretch
    row, column = steps(after, taken)[:, None], steps(before, taken)[None]
    centre = scale * (row + 0.5)  # (m, 1)
    first = (centre - reach + 0.5).trunc().clamp(min=0.0)
    last = torch.minimum((centre + reach + 0.5).trunc(), taken)
    weight = function((column - centre + 0.5) * (1.0 / stretch))
    inside = (column >= first) & (column < last) & (row < shown)
    weight = torch.where(inside, weight, torch.zeros_like(weight))
    total = weight.sum(1, keepdim=True)
    weight = weight / torch.where(total == 0, torch.ones_like(total), total)
    unit = _unit(weight.flatten().amax(0))
    fixed = weight * unit
    return torch.where(fixed < 0, (fixed - 0.5).ceil(), (fixed + 0.5).floor()), unit


def _unit(largest: Tensor) -> Tensor:
    """The largest power of two, up to 2^22, with which the largest weight stays below 2^15."""
    powers = torch.tensor([2.0**k for k in range(1, MOST_BITS + 1)], dtype=torch.float64).to(largest.device)
    fitting = (0.5 + largest * powers).floor() < 2.0**BITS
    return torch.where(fitting, powers, torch.ones_like(powers)).amax(0)


def resized(pixels: Tensor, rows: Matrix, columns: Matrix) -> Tensor:
    """8-bit pixels (..., n, n') as float64, resized along both axes to (..., m, m')."""
    return _rounded(_rounded(pixels @ columns[0].mT, columns[1]).mT @ rows[0].mT, rows[1]).mT


def _rounded(total: Tensor, unit: Tensor) -> Tensor:
    return ((total + unit / 2) / unit).floor().clamp(0.0, 255.0)


def stretched(before: int, after: int, taken: Tensor, shown: Tensor, *, align: bool = False) -> Tensor:
    """Bilinear interpolation (m, n) float32 of the first ``taken`` of n values to ``shown`` of m values.

    Args:
        before: n.
        after: m.
        taken: () float64, at most n.
        shown: () float64, at most m; what comes after it means nothing.
        align: The outermost values fall together (``align_corners``).
    """
    row = steps(after, taken)[:, None]
    centres = (row + 0.5) * (taken / shown) - 0.5
    place = row * (taken - 1) / (shown - 1).clamp(min=1.0) if align else centres
    place = torch.minimum(place.clamp(min=0.0), taken - 1)
    return triangle(steps(before, taken)[None] - place).float()


def nearest(before: int, after: int, taken: Tensor, shown: Tensor) -> Tensor:
    """Places (m,) int64 of torch's ``nearest`` among n values."""
    place = (steps(after, taken).float() * (taken / shown).float()).floor()
    return place.long().clamp(0, before - 1)


def starts(stride: int, size: Tensor, total: Tensor) -> Tensor:
    """Where windows begin along an axis (windows,) float64, see ``windows.positions``; at least one.

    Args:
        stride: Distance of neighbouring windows in pixels.
        size: () float64, pixels of a window, at most ``total``.
        total: () float64, pixels of the axis.
    """
    more = ((total - size) / stride).ceil()  # windows after the first
    number = cast(int, (more + 1).long().item())  # not int(...): a graph keeps it open
    torch._check(number >= 1)
    return torch.minimum(steps(number, total) * stride, total - size)


def spread(begin: Tensor, size: int, taken: Tensor, total: int) -> Tensor:
    """Which pixel of an axis a pixel of a window is: (windows, size, total) float32, 1 or 0.

    Args:
        begin: (windows,) float64.
        size: Pixels of a window.
        taken: () float64; pixels of a window from here on are nowhere.
        total: Pixels of the axis.
    """
    at = steps(size, begin)
    place = begin[:, None] + at  # (windows, size)
    place = torch.where(at < taken, place, torch.full_like(place, -1.0))
    return (place[..., None] == steps(total, begin)).float()


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """``maps.smooth`` of one map (H, W), which must be larger than the kernel's radius along both axes."""
    if sigma <= 0:
        return values
    line = gaussian(2 * radius(sigma) + 1, sigma).float().to(values.device)
    padded = F.pad(values[None, None], (radius(sigma),) * 4, mode="reflect")
    once = F.conv2d(padded, line[None, None, :, None])
    return F.conv2d(once, line[None, None, None])[0, 0]


def radius(sigma: float) -> int:
    """Radius in pixels of the kernel of ``smoothed``; 0 for no kernel."""
    return int(TRUNCATE * sigma + 0.5) if sigma > 0 else 0


def mean_of_largest(values: Tensor, percent: float) -> Tensor:
    """Mean of the floor(percent * n / 100), at least 1, largest of (n,)."""
    ordered = values.sort(descending=True).values
    total = length(values)
    count = (percent * total / 100).floor().clamp(min=1.0)
    weight = (steps(values.shape[0], total) < count).to(values.dtype)
    return (ordered * weight).sum() / count.to(values.dtype)
