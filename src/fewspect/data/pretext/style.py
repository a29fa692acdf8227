"""Random defect styles: what makes two pictures show one defect class. Seven shapes times seven looks."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fewspect.data.pretext.surface import Field, Surface, grid, noise, render

SHAPES = 7
ELLIPSE, SCRATCH, CRACK, BLOB, SPECKS, BAR, RING = range(SHAPES)
LOOKS = 7
TINTED, CORED, FLAT, FOREIGN, BLURRED, RELIEF, STAINED = range(LOOKS)


@dataclass(frozen=True, slots=True)
class Style:
    """Parameters of a defect class; ``size`` is a share of the side, other lengths are pixels."""

    shape: int
    look: int
    size: float
    thickness: float
    bend: float
    delta: float
    tint: np.ndarray
    softness: float
    foreign: Surface
    most: int
    elongation: float
    core: float

    @classmethod
    def draw(cls, r: np.random.Generator) -> "Style":
        """Draw a class."""
        return cls(
            shape=int(r.integers(SHAPES)),
            look=int(r.integers(LOOKS)),
            size=float(np.exp(r.uniform(np.log(0.012), np.log(0.25)))),
            thickness=r.uniform(0.8, 3.5),
            bend=r.uniform(0, 1.5),
            delta=r.choice([-1, 1]) * r.uniform(0.1, 0.45),
            tint=r.uniform(-0.6, 0.6, 3),
            softness=float(np.exp(r.uniform(np.log(0.4), np.log(3.0)))),
            foreign=Surface.draw(r),
            most=int(r.choice([1, 1, 1, 2, 4])),
            elongation=r.uniform(1, 4),
            core=r.uniform(-0.8, 0.8),
        )


def paint(image: Field, style: Style, r: np.random.Generator) -> tuple[Field, np.ndarray]:
    """Put one to ``style.most`` defects of a class onto a picture.

    Returns:
        The picture (side, side, 3) in [0, 1] and the mask (side, side) uint8 in {0, 1}.
    """
    side = len(image)
    alpha = np.zeros((side, side), np.float32)
    for _ in range(int(r.integers(1, style.most + 1))):
        alpha = np.maximum(alpha, _edge(_distance(style, r, side), style.softness))
    contrast = style.delta * np.exp(r.normal(0, 0.2))
    image = _look(image, style, r, alpha, contrast)
    return np.clip(image, 0, 1), (alpha > 0.5).astype(np.uint8)


def _edge(distance: Field, softness: float) -> Field:
    return np.clip(0.5 + distance / (2 * softness), 0, 1)


def _distance(style: Style, r: np.random.Generator, side: int) -> Field:  # noqa: PLR0911 - one per shape
    """Signed distance in pixels, positive inside, of one defect at a random place."""
    y, x = grid(side)
    cy, cx = r.uniform(0.08, 0.92, 2) * side
    length = max(2.0, style.size * side * np.exp(r.normal(0, 0.25)))
    angle = r.uniform(0, np.pi)
    dy, dx = y - cy, x - cx
    u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
    thick = style.thickness * np.exp(r.normal(0, 0.15))
    stretch = np.sqrt(style.elongation)
    if style.shape == ELLIPSE:
        return length - np.hypot(u / stretch, v * stretch)
    if style.shape == SCRATCH:
        half = length * 2.5
        wave = style.bend * 8 * np.sin(u / half * 2 + r.uniform(0, 6)) * 0.5
        return np.minimum(thick - np.abs(v - wave), half - np.abs(u))
    if style.shape == CRACK:
        ragged = noise(r, side, 14) * (1 + 3 * style.bend)
        return np.minimum(thick * 0.7 - np.abs(v + ragged), length * 2.5 - np.abs(u))
    if style.shape == BLOB:
        ragged = noise(r, side, max(3, length * 0.7))
        return (length * 1.2 - np.hypot(u, v)) * 0.7 + ragged * length * 0.45
    if style.shape == SPECKS:
        return _specks(r, y, x, centre=(cy, cx), spread=length, radius=thick)
    if style.shape == BAR:
        return np.minimum(length * stretch * 0.8 - np.abs(u), length / stretch * 0.8 - np.abs(v))
    return thick - np.abs(np.hypot(u, v) - length)


def _specks(
    r: np.random.Generator, y: Field, x: Field, *, centre: tuple[float, float], spread: float, radius: float
) -> Field:
    distance = np.full(y.shape, -9.0, np.float32)
    for _ in range(int(r.integers(5, 16))):
        py = centre[0] + r.normal(0, spread * 0.9 + 2)
        px = centre[1] + r.normal(0, spread * 0.9 + 2)
        distance = np.maximum(distance, r.uniform(0.6, 1.3) * radius - np.hypot(y - py, x - px))
    return distance


def _look(image: Field, style: Style, r: np.random.Generator, alpha: Field, contrast: float) -> Field:
    cover = alpha[..., None]  # (side, side, 1)
    if style.look in (TINTED, CORED, FLAT):
        inner = _edge(ndimage.gaussian_filter(alpha, 2) - 0.5, 0.3)[..., None]
        core = inner * style.core * contrast * cover if style.look == CORED else 0
        return image + cover * contrast * (1 + style.tint) + core
    if style.look == FOREIGN:
        return image * (1 - cover) + render(style.foreign, r, len(image)) * cover
    if style.look == BLURRED:
        blurred = np.stack([ndimage.gaussian_filter(image[..., c], 3) for c in range(3)], -1)
        return image * (1 - cover) + (blurred + contrast * 0.35) * cover
    if style.look == RELIEF:
        rows, columns = np.gradient(ndimage.gaussian_filter(alpha, 1.5))
        slope = np.asarray(columns) - np.asarray(rows)
        return image + slope[..., None] * contrast * 4
    strength = cover * abs(contrast) * 1.8
    return image * (1 - strength) + strength * np.clip(0.5 + style.tint, 0, 1)
