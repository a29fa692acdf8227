"""Moving a patch and blending it in; numpy on (h, w, 3) float32 pixels and (h, w) bool masks."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu

Turn = Literal["any", "mirror", "none"]


@dataclass(frozen=True, slots=True)
class Change:
    """How a patch is moved.

    Attributes:
        angle: Turn in radians.
        scale: Factor on the size.
        mirror: Mirrored.
        largest: Longest side of the result in pixels.
    """

    angle: float
    scale: float
    mirror: bool
    largest: int

    @classmethod
    def draw(cls, r: np.random.Generator, scale: tuple[float, float], turn: Turn, largest: int) -> Self:
        """Draw one; mirrored and turned by a half keeps the direction of a surface."""
        angle = {"any": float(r.uniform(0, 2 * np.pi)), "mirror": np.pi * int(r.integers(2)), "none": 0.0}
        mirror = turn != "none" and bool(r.integers(2))
        return cls(angle[turn], float(r.uniform(*scale)), mirror, largest)


def moved(pixels: np.ndarray, mask: np.ndarray, change: Change) -> tuple[np.ndarray, np.ndarray]:
    """Turn, mirror and scale a patch; the result is cut to what its mask needs.

    Outside the patch its border is continued, so that no strange colour gets in.
    """
    if change.mirror:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    cos, sin = np.cos(change.angle), np.sin(change.angle)
    size = np.array(mask.shape)
    turned = change.scale * np.array([[abs(cos), abs(sin)], [abs(sin), abs(cos)]]) @ size
    out = np.minimum(np.ceil(turned).astype(int), change.largest)
    back = np.array([[cos, -sin], [sin, cos]]) / change.scale  # where an output pixel comes from
    offset = (size - 1) / 2 - back @ ((out - 1) / 2)
    options = {"offset": offset, "output_shape": tuple(out), "order": 1}
    shape = ndimage.affine_transform(mask.astype(np.float32), back, mode="constant", **options) > 0.5
    channels = np.moveaxis(pixels, -1, 0)
    return np.stack(
        [ndimage.affine_transform(c, back, mode="nearest", **options) for c in channels], -1
    ), shape


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask with everything within ``radius`` pixels (city blocks)."""
    return ndimage.binary_dilation(mask, iterations=radius) if radius else mask


def alpha_blend(under: np.ndarray, pixels: np.ndarray, mask: np.ndarray, soft: int) -> np.ndarray:
    """Lay pixels over others with a soft edge; their surroundings get the brightness of what is below.

    Args:
        under: (h, w, 3) what is covered.
        pixels: (h, w, 3).
        mask: (h, w).
        soft: Width of the edge in pixels, outside of nothing: the mask ends where the edge does.
    """
    around = grown(mask, 2) & ~mask
    shift = (under[around] - pixels[around]).mean(0) if around.any() else np.zeros(3, np.float32)
    return under + soft_edge(mask, soft) * (pixels + shift - under)


def soft_edge(mask: np.ndarray, width: int) -> np.ndarray:
    """Opacity (h, w, 1) float32 that grows from the edge of a mask to 1 over ``width`` pixels inside it."""
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))
    assert isinstance(inside, np.ndarray)
    return np.clip(inside[1:-1, 1:-1] / (width + 1), 0, 1).astype(np.float32)[..., None]


def poisson(under: np.ndarray, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blend seamlessly (Perez et al. 2003, eq. 7): gradients of ``pixels``, values of ``under`` around.

    The result is ``pixels`` plus a harmonic function that equals ``under - pixels`` on the pixels around the
    mask. At the border of the image there is nothing to be equal to (free boundary).

    Args:
        under: (h, w, 3) what is covered.
        pixels: (h, w, 3).
        mask: (h, w).

    Returns:
        (h, w, 3); unchanged outside the mask.
    """
    height, width = mask.shape
    number = np.full((height + 2, width + 2), -1)
    inner = number[1:-1, 1:-1]
    count = int(mask.sum())
    inner[mask] = np.arange(count)
    difference = np.zeros((height + 2, width + 2, 3), np.float32)
    difference[1:-1, 1:-1] = under - pixels
    exists = np.zeros((height + 2, width + 2), bool)
    exists[1:-1, 1:-1] = True
    rows, columns = np.nonzero(mask)
    degree = np.zeros(count)
    known = np.zeros((count, 3))
    pairs = []
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        place = (rows + 1 + down, columns + 1 + right)
        there, at = exists[place], number[place]
        degree += there
        border = there & (at < 0)
        known[border] += difference[place][border]
        both = np.flatnonzero(at >= 0)
        pairs.append((both, at[both]))
    first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
    if not (degree > 0).any() or len(first) == int(degree.sum()):  # nothing around it: keep the gradients
        return under + mask[..., None] * (pixels - under)
    matrix = sparse.diags(degree) - sparse.coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    harmonic = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    blended = under.copy()
    blended[mask] = pixels[mask] + harmonic
    return blended
