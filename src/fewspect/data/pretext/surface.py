"""Random surfaces: plain, woven, striped, tiled, ringed, speckled or veined, over anisotropic noise."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Field = np.ndarray
"""float32 (side, side) or (side, side, 3)."""

FAMILIES = 7
PLAIN, WOVEN, STRIPED, TILED, RINGED, SPECKLED, VEINED = range(FAMILIES)


@dataclass(frozen=True, slots=True)
class Surface:
    """Parameters of a material; lengths in pixels, grey values in [0, 1]."""

    family: int
    base: np.ndarray
    amplitude: float
    scale: float
    aspect: float
    angle: float
    period: float
    contrast: float
    grain: float
    sharpness: float
    tint: np.ndarray
    light: float

    @classmethod
    def draw(cls, r: np.random.Generator) -> "Surface":
        """Draw a material."""
        return cls(
            family=int(r.integers(FAMILIES)),
            base=r.uniform(0.15, 0.85, 3) * 0.3 + r.uniform(0.15, 0.85) * 0.7,
            amplitude=r.uniform(0.02, 0.14),
            scale=r.uniform(2, 24),
            aspect=float(np.exp(r.uniform(0, 2.5))) if r.random() < 0.4 else 1.0,
            angle=r.uniform(0, np.pi),
            period=r.uniform(4, 20),
            contrast=r.uniform(0.02, 0.2),
            grain=r.uniform(0, 0.04),
            sharpness=r.uniform(0.5, 6),
            tint=r.uniform(-0.3, 0.3, 3),
            light=r.uniform(0, 0.12),
        )


def noise(
    r: np.random.Generator,
    side: int,
    scale: float,
    *,
    aspect: float = 1.0,
    angle: float = 0.0,
    octaves: int = 3,
) -> Field:
    """Value noise (side, side) of unit deviation; ``aspect`` stretches it along ``angle``."""
    out = np.zeros((side, side), np.float32)
    amplitude = 1.0
    y, x = grid(side) - side / 2
    cos, sin = np.cos(angle), np.sin(angle)
    for octave in range(octaves):
        cell = max(1.0, scale / 2**octave)
        rows = max(4, int(np.ceil(side * 1.5 / cell)) + 3)
        columns = max(4, int(np.ceil(side * 1.5 / (cell * aspect))) + 3)
        lattice = r.standard_normal((rows, columns)).astype(np.float32)
        u = (y * cos - x * sin) / cell + rows / 2
        v = (y * sin + x * cos) / (cell * aspect) + columns / 2
        out += amplitude * ndimage.map_coordinates(lattice, [u, v], order=1, mode="wrap")
        amplitude *= 0.55
    return out / (out.std() + 1e-6)


def grid(side: int) -> Field:
    """Rows and columns (2, side, side) in pixels."""
    return np.mgrid[:side, :side].astype(np.float32)


def render(surface: Surface, r: np.random.Generator, side: int) -> Field:
    """One picture (side, side, 3) in [0, 1] of a material: phase, light and noise are new each time."""
    y, x = grid(side)
    angle = surface.angle + r.normal(0, 0.03)
    phase = r.uniform(0, 6.28, 2)
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / surface.period
    v = (-x * np.sin(angle) + y * np.cos(angle)) * 2 * np.pi / surface.period
    field = noise(r, side, surface.scale, aspect=surface.aspect, angle=surface.angle)
    height = surface.amplitude * field
    if surface.family == TILED:  # lines once per period, not twice
        u, v = u / 2, v / 2
    height += _relief(surface, r, side, u=u + phase[0], v=v + phase[1], field=field)
    gy, gx = r.normal(0, 1, 2)
    height = height + surface.light * ((y * gy + x * gx) / side - 0.5 * (gy + gx)) * 0.5
    image = surface.base[None, None] + height[..., None] * (1 + surface.tint)
    image += r.standard_normal((side, side, 1)) * surface.grain
    return np.clip(image, 0, 1).astype(np.float32)


def _relief(  # noqa: PLR0911 - one per family
    surface: Surface, r: np.random.Generator, side: int, *, u: Field, v: Field, field: Field
) -> Field | float:
    contrast, sharp = surface.contrast, surface.sharpness
    if surface.family == WOVEN:
        return contrast * np.tanh(sharp * np.sin(u) * np.sin(v))
    if surface.family == STRIPED:
        return contrast * np.tanh(sharp * np.sin(u + 0.6 * field))
    if surface.family == TILED:
        return -contrast * np.exp(-sharp * (np.minimum(np.abs(np.sin(u)), np.abs(np.sin(v))) * 2) ** 2 * 4)
    if surface.family == RINGED:
        y, x = grid(side)
        cy, cx = side / 2 + r.normal(0, 4, 2)
        away = np.hypot(y - cy, x - cx)
        radius = side * (0.25 + 0.02 * surface.period / 2)
        return contrast * 1.5 * np.tanh((radius - away) / 2) + contrast * np.tanh((away - radius * 0.4) / 2)
    if surface.family == SPECKLED:
        return contrast * np.maximum(0, noise(r, side, surface.period, octaves=1) - 0.8)
    if surface.family == VEINED:
        return contrast * np.abs(noise(r, side, surface.period * 2, octaves=2)) - contrast
    return 0.0
