"""``draw``: one picture of the toy factory with its exact mask, a pure function of its arguments."""

import numpy as np

from fewspect.data.toy.defects import CATALOGUE, apply
from fewspect.data.toy.noise import Field, axes, smooth, white
from fewspect.data.toy.textures import PRODUCTS as _SURFACES
from fewspect.draws import rng
from fewspect.errors import UserError

PRODUCTS: tuple[str, ...] = tuple(_SURFACES)
"""Names of the products."""

DEFECTS: dict[str, str] = {name: defect.text for name, defect in CATALOGUE.items()}
"""Defect class -> what it looks like, in words."""


def draw(seed: int, product: str, defect: str | None, index: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Make one picture.

    Args:
        seed: Seed of the factory.
        product: One of ``PRODUCTS``.
        defect: One of ``DEFECTS``; None = a good part.
        index: Number of the picture within (product, defect).
        side: Height and width in pixels.

    Returns:
        The image uint8 (side, side, 3) and the mask uint8 (side, side) in {0, 1}, all zero for a good part.

    Raises:
        UserError: If product or defect do not exist.
    """
    _known("product", product, PRODUCTS)
    if defect is not None:
        _known("defect", defect, tuple(DEFECTS))
    r = rng(seed, f"toy/{product}/{defect or 'good'}", index)
    layout = rng(seed, f"toy/{product}/layout")
    surface = _SURFACES[product](r, side, layout)
    surface = surface._replace(image=_clutter(r, surface.image))
    mask = np.zeros((side, side), np.uint8)
    image = surface.image
    if defect is not None:
        image, mask = apply(r, surface, CATALOGUE[defect])
    return _expose(r, image), mask


def _known(kind: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise UserError(f"The toy factory has no {kind} {name!r}.", f"Choose from: {', '.join(names)}.")


def _clutter(r: np.random.Generator, image: Field) -> Field:
    """Add what every part may have and no one calls a defect: dust and faint handling marks."""
    y, x = axes(image.shape[0])
    for _ in range(r.integers(2, 7)):
        turn = r.uniform(0, np.pi)
        dy, dx = y - r.random(), x - r.random()
        along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
        long, wide = r.uniform(0.008, 0.06), r.uniform(0.006, 0.012)
        away = (along / long) ** 2 + (across / wide) ** 2
        mark = r.choice([-1, 1]) * r.uniform(0.06, 0.12) * np.exp(-away)
        image = image + mark.astype(np.float32)[..., None]
    return image


def _expose(r: np.random.Generator, image: Field) -> np.ndarray:
    """Light and camera: uneven illumination, exposure, white balance, sensor noise; then 8 bits."""
    side = image.shape[0]
    y, x = axes(side)
    turn = r.uniform(0, 2 * np.pi)
    slope = np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5)
    light = (1 + r.uniform(0, 0.16) * slope + 0.02 * smooth(r, side, 2)).astype(np.float32)
    balance = r.uniform(0.975, 1.025, 3) * r.uniform(0.88, 1.12)
    image = image * (light[..., None] * balance.astype(np.float32)) + 0.012 * white(r, side)[..., None]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
