"""Shapes of the toy defects: fields that are low inside, about distances in units of the image side."""

from typing import NamedTuple

import numpy as np

from fewspect.data.toy.noise import Field, fractal, smooth


class Spot(NamedTuple):
    """Where a defect lies.

    Attributes:
        r: Generator of this picture.
        side: Pixels.
        along: (side, side) coordinate in the defect's direction, 0 at its centre, in image sides.
        across: (side, side) the same, at right angles.
        radius: Radius of a disc of the asked area, in image sides.
    """

    r: np.random.Generator
    side: int
    along: Field
    across: Field
    radius: float

    @property
    def away(self) -> Field:
        """Distance from the centre."""
        return np.hypot(self.along, self.across)


def _line(s: Spot, length: float, bend: Field | float) -> Field:
    """Distance from a curve of the given length whose sideways course is ``bend``."""
    return np.hypot(s.across - bend, np.maximum(np.abs(s.along) - length / 2, 0))


def scratch(s: Spot) -> Field:
    """A thin, slightly curved line that grows wider to one end."""
    length = s.r.uniform(6, 10) * s.radius + 0.06
    return _line(s, length, s.r.uniform(-0.5, 0.5) * s.along**2) * np.clip(1 + s.along / length, 0.5, 1.5)


def _zigzag(s: Spot, strength: float) -> Field:
    """A course with sharp turns, a function of the position along the line only."""
    knots = np.cumsum(s.r.normal(0, strength, 24))
    knots = (knots - np.interp(0.5, np.linspace(0, 1, 24), knots)).astype(np.float32)
    return np.interp(s.along + 0.5, np.linspace(0, 1, 24), knots).astype(np.float32)


def crack(s: Spot) -> Field:
    """A zigzag line with one or two branches."""
    length = s.r.uniform(6, 9) * s.radius + 0.08
    field = _line(s, length, _zigzag(s, 0.02))
    for turn in s.r.choice([-1, 1]) * np.array([0.7, -0.9])[: s.r.integers(1, 3)]:
        cos, sin = np.cos(turn), np.sin(turn)
        along, across = cos * s.along + sin * s.across, cos * s.across - sin * s.along
        branch = s._replace(along=along - length * 0.17, across=across)
        field = np.minimum(field, _line(branch, length * 0.34, _zigzag(branch, 0.015)))
    return field


def thread(s: Spot) -> Field:
    """A long curly line."""
    length = s.r.uniform(7, 11) * s.radius + 0.1
    bend = s.r.uniform(0.02, 0.06) * np.sin(s.along * s.r.uniform(8, 18) + s.r.uniform(0, 6))
    return _line(s, length, bend + s.r.uniform(-1, 1) * s.along**2)


def wrinkle(s: Spot) -> Field:
    """A short thick line that tapers to both ends."""
    length = s.r.uniform(3.0, 4.5) * s.radius + 0.05
    return _line(s, length, s.r.uniform(-1, 1) * s.along**2) * (1 + (2 * s.along / length) ** 2)


def scuff(s: Spot) -> Field:
    """Three to six parallel short scratches."""
    number, gap = s.r.integers(3, 7), 0.75 * s.radius + 0.02
    fields = []
    for i in range(number):
        along, across = s.along - s.r.normal(0, 0.6) * gap, s.across - gap * (i - (number - 1) / 2)
        fields.append(_line(s._replace(along=along, across=across), 3 * gap, 0.15 * s.along))
    return np.minimum.reduce(fields)


def disc(s: Spot) -> Field:
    """A slightly stretched disc."""
    stretch = s.r.uniform(1.0, 1.35)
    return np.hypot(s.along / stretch, s.across * stretch)


def blob(s: Spot) -> Field:
    """A lump with a wavy outline."""
    return s.away + (0.32 * s.radius + 0.004) * smooth(s.r, s.side, _cells(s.radius, 1.1))


def _cells(radius: float, per_radius: float) -> int:
    """Noise cells per image so that one cell is about ``radius / per_radius`` wide."""
    return int(np.clip(per_radius / max(radius, 0.01), 3, 40))


def stain(s: Spot) -> Field:
    """A large figure with a ragged outline."""
    rough = fractal(s.r, s.side, _cells(s.radius, 0.8))
    return np.hypot(s.along * 0.8, s.across * 1.2) + 0.38 * s.radius * rough


def smear(s: Spot) -> Field:
    """A long figure with streaky ends."""
    streaks = np.interp(s.across, np.linspace(-0.5, 0.5, 90), s.r.standard_normal(90)).astype(np.float32)
    return np.hypot(s.along * 0.45 + 0.35 * s.radius * streaks, s.across * 1.9)


def pits(s: Spot) -> Field:
    """A cluster of small dots of different sizes."""
    number = int(s.r.integers(6, 15))
    spread = s.r.normal(0, 2.0 * s.radius + 0.015, (number, 2))
    sizes = s.r.uniform(0.7, 1.5, number)
    fields = [np.hypot(s.along - a, s.across - b) / k for (a, b), k in zip(spread, sizes, strict=True)]
    return np.minimum.reduce(fields)


def spots(s: Spot) -> Field:
    """One to three round dots of one kind."""
    number = s.r.integers(1, 4)
    spread = s.r.normal(0, 2.5 * s.radius + 0.03, (number, 2)) * (np.arange(number) > 0)[:, None]
    return np.minimum.reduce([np.hypot(s.along - a, s.across - b) for a, b in spread])


def polygon(s: Spot) -> Field:
    """Convex figure with five to seven edges: the intersection of half planes."""
    angles = np.linspace(0, 2 * np.pi, s.r.integers(5, 8), endpoint=False) + s.r.normal(0, 0.25)
    reach = s.r.uniform(0.75, 1.3, len(angles))
    fields = [(s.along * np.cos(a) + s.across * np.sin(a)) / k for a, k in zip(angles, reach, strict=True)]
    return np.maximum.reduce(fields)


def patch(s: Spot) -> Field:
    """A rectangle with slightly ragged edges."""
    stretch = s.r.uniform(1.1, 1.6)
    ragged = 0.05 * s.radius * smooth(s.r, s.side, 30)
    return np.maximum(np.abs(s.along) / stretch, np.abs(s.across) * stretch) + ragged


def ring(s: Spot) -> Field:
    """An open circle; the asked area is that of the band."""
    return np.abs(disc(s) - 1.5 * s.radius - 0.008)
