"""Paints of the toy defects: how the surface looks under a given cover."""

from typing import NamedTuple

import numpy as np

from fewspect.data.toy.noise import Field, mix, white
from fewspect.data.toy.shapes import Spot


class Paint(NamedTuple):
    """What a paint function may use.

    Attributes:
        image: (side, side, 3) the good surface.
        alpha: (side, side) anti-aliased cover of the defect in [0, 1].
        depth: (side, side) 0 at the edge, growing to about 1 inside; 0 outside.
        mean: (3,) mean colour of the surface under the defect.
        spot: Where it lies.
    """

    image: Field
    alpha: Field
    depth: Field
    mean: Field
    spot: Spot


def _strength(p: Paint, low: float, high: float, dark: float = 0.5) -> float:
    """A signed contrast; darker with probability ``dark``, turned round where the surface leaves no room."""
    value = p.spot.r.uniform(low, high) * (-1 if p.spot.r.random() < dark else 1)
    level = float(p.mean.mean())
    return -value if not 0.08 < level + value < 0.95 else value


def _colour(p: Paint, low: float = 0.25) -> Field:
    """A foreign colour that differs from the surface by at least ``low`` in one channel."""
    grey, hue = p.spot.r.uniform(0.1, 0.9, (8, 1)), p.spot.r.uniform(0.05, 0.95, (8, 3))
    colours = (0.45 * grey + 0.55 * hue).astype(np.float32)  # never neon
    far = np.abs(colours - p.mean).max(1)
    good = np.flatnonzero(far >= low + 0.1)
    return colours[good[0] if len(good) else int(far.argmax())]


def _shade(p: Paint, amount: Field | float) -> Field:
    """Add a grey amount inside the defect."""
    return p.image + (p.alpha * amount)[..., None]


def cut(p: Paint) -> Field:
    """A bright or dark line, strongest in the middle."""
    return _shade(p, _strength(p, 0.22, 0.45) * (0.75 + 0.35 * p.depth))


def dark_cut(p: Paint) -> Field:
    """A dark line."""
    return mix(p.image, p.mean * p.spot.r.uniform(0.15, 0.5), p.alpha * (0.7 + 0.3 * p.depth))


def fibre(p: Paint) -> Field:
    """A line of a foreign colour."""
    return mix(p.image, _colour(p, 0.35) * (0.85 + 0.3 * p.depth[..., None]), p.alpha * 0.92)


def relief(p: Paint) -> Field:
    """Light from one side: bright flank, dark flank; strongest inside."""
    slope = np.clip(p.spot.across / (0.3 * p.spot.radius + 0.004), -1, 1)
    strength = p.spot.r.choice([-1, 1]) * p.spot.r.uniform(0.28, 0.45)
    return _shade(p, strength * slope * (0.7 + 0.3 * p.depth))


def bowl(p: Paint) -> Field:
    """A dent: shadow on one side, light on the other, calm in the middle; fades towards its edge."""
    turn = p.spot.r.uniform(0, 2 * np.pi)
    slope = (p.spot.along * np.cos(turn) + p.spot.across * np.sin(turn)) / max(p.spot.radius, 0.015)
    return _shade(p, p.spot.r.uniform(0.30, 0.5) * slope * np.minimum(1, 0.35 + 2 * p.depth))


def dot(p: Paint) -> Field:
    """A bright or dark figure."""
    return _shade(p, _strength(p, 0.28, 0.5))


def lump(p: Paint) -> Field:
    """Opaque foreign matter with a soft highlight."""
    gloss = 0.15 * np.clip(p.spot.along / max(p.spot.radius, 0.015), -1, 1)[..., None]
    return mix(p.image, _colour(p) + gloss, p.alpha * 0.95)


def soak(p: Paint) -> Field:
    """A stain: the texture stays visible, the tone changes, the rim is stronger."""
    amount = _strength(p, 0.16, 0.32, dark=0.75)
    tint = np.array([1.0, 1.0, 1.0]) + p.spot.r.uniform(-0.45, 0.45, 3)
    rim = 0.75 + 0.7 * np.exp(-((p.depth / 0.12) ** 2))
    return p.image + (p.alpha * rim * amount)[..., None] * tint.astype(np.float32)


def streak(p: Paint) -> Field:
    """A half-transparent layer of another tone."""
    return mix(p.image, p.mean + _strength(p, 0.2, 0.38), p.alpha * 0.75)


def pit(p: Paint) -> Field:
    """A dark figure."""
    return mix(p.image, p.mean * p.spot.r.uniform(0.2, 0.45), p.alpha)


def bore(p: Paint) -> Field:
    """A hole: nearly black, its lower wall catches some light."""
    wall = 0.16 * np.clip(p.spot.across / max(p.spot.radius, 0.015), 0, 1) * (1 - p.depth)
    return mix(p.image, np.float32(0.05) + wall[..., None], p.alpha)


def bare(p: Paint) -> Field:
    """A missing layer: what lies below is smooth and of another tone."""
    below = p.mean * p.spot.r.uniform(0.8, 1.2, 3) + _strength(p, 0.16, 0.32)
    grain = 0.02 * white(p.spot.r, p.spot.side)[..., None]
    return mix(p.image, (below + grain).astype(np.float32), p.alpha)


def facet(p: Paint) -> Field:
    """A chip: two or three flat fracture faces of different brightness."""
    s, turn = p.spot, p.spot.r.uniform(-0.6, 0.6)
    face = np.where(s.along + turn * s.across > 0, 1.0, 0.45)
    face = face * np.where(s.across - turn * s.along > 0, 1.0, 0.7)
    return mix(p.image, p.mean + _strength(p, 0.22, 0.4), p.alpha * face)


def scorch(p: Paint) -> Field:
    """A burn: black core, brown edge."""
    edge = p.image * np.array([0.68, 0.5, 0.38], np.float32)
    core = np.clip(p.depth * 1.6, 0, 1)[..., None]
    return mix(p.image, edge * (1 - core) + 0.08 * core, p.alpha)
