"""The products of the toy factory: what a good part looks like.

A product is a function ``(r, side, layout) -> Surface``; ``r`` draws this picture, ``layout`` draws what all
pictures of the product share (the circuit board's layout). Every product has harmless clutter (knots, slubs,
crystals, pads), which looks abnormal to plain feature matching and which only training can show to be normal.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fewspect.data.toy.noise import Field, axes, fractal, mix, smooth, step, white


class Surface(NamedTuple):
    """A good part.

    Attributes:
        image: (side, side, 3) float32 in about [0, 1].
        region: (side, side) bool, where defects can be.
    """

    image: Field
    region: np.ndarray


def _paint(shade: Field, colour: tuple[float, float, float]) -> Field:
    """Multiply a shade (side, side) around 1 into a colour."""
    return shade[..., None] * np.asarray(colour, np.float32)


def _whole(image: Field) -> Surface:
    """Return a surface that fills the image."""
    return Surface(image, np.ones(image.shape[:2], bool))


def fabric(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """Woven cloth: warp and weft take turns on top; some threads are thicker (slubs)."""
    y, x = axes(side)
    wave = 0.006 * smooth(r, side, 4)
    u, v = (x + wave) * 20 + r.random(), (y - wave) * 20 + r.random()
    over = (np.floor(u) + np.floor(v)) % 2 < 1
    warp = 0.55 + 0.45 * np.sin(np.pi * (u % 1)) + 0.06 * smooth(r, side, 3, 20)
    weft = 0.50 + 0.45 * np.sin(np.pi * (v % 1)) + 0.06 * smooth(r, side, 20, 3)
    slub = np.clip(smooth(r, side, 22, 5) - 1.8, 0, 0.8) * 0.22
    shade = np.where(over, warp, weft + slub) + 0.04 * fractal(r, side, 3) + 0.03 * white(r, side)
    return _whole(_paint(shade, (0.52, 0.58, 0.72)))


def metal(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """Brushed metal: long horizontal grain, a broad highlight and faint brush lines."""
    y, _ = axes(side)
    grain = 0.05 * smooth(r, side, 64, 2) + 0.04 * smooth(r, side, 110, 5) + 0.02 * white(r, side)
    lines = np.clip(smooth(r, side, 90, 3) - 1.6, 0, 1.2) * r.choice([-0.12, 0.12])
    glow = 0.16 * np.exp(-(((y - r.uniform(0.1, 0.9)) / r.uniform(0.15, 0.4)) ** 2))
    return _whole(_paint(0.52 + grain + lines + glow + 0.03 * smooth(r, side, 2), (0.97, 1.0, 1.04)))


def leather(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """Grained leather: ridged noise, pores and shallow creases."""
    ridge = np.abs(smooth(r, side, 26)) + 0.5 * np.abs(smooth(r, side, 40))
    crease = np.exp(-np.abs(smooth(r, side, 4) + 0.3 * smooth(r, side, 11)) * 14) * 0.13
    pores = step(smooth(r, side, 34) - 2.1, 0.6) * 0.25
    shade = 0.72 + 0.20 * np.tanh(ridge) - crease - pores + 0.06 * smooth(r, side, 3) + 0.02 * white(r, side)
    return _whole(_paint(shade, (0.58, 0.36, 0.24)))


def tile(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """Glazed tiles: a grid of joints, another shade per tile, dark speckles in the glaze."""
    y, x = axes(side)
    number = 4
    u, v = (x + r.random() * 0.25) * number, (y + r.random() * 0.25) * number
    edge = np.minimum(np.minimum(u % 1, 1 - u % 1), np.minimum(v % 1, 1 - v % 1)) / number
    shades = r.normal(0, 0.035, (number + 2, number + 2)).astype(np.float32)
    tint = shades[np.floor(v).astype(int), np.floor(u).astype(int)]
    speckle = step(smooth(r, side, 44) - 1.9, 0.5) * 0.22 + step(smooth(r, side, 20) - 2.3, 0.4) * 0.18
    glaze = 0.74 + tint + 0.02 * white(r, side) + 0.04 * smooth(r, side, 5) - speckle
    joint = 0.42 + 0.06 * white(r, side)
    shade = glaze + step(0.011 - edge, 0.012) * (joint - glaze)
    return _whole(_paint(shade, (1.0, 0.96, 0.88)))


def wood(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """Planed wood: warped rings, fibres along the rows, zero to two knots."""
    y, x = axes(side)
    level = y * r.uniform(7, 11) + 0.55 * smooth(r, side, 3, 2) + 0.15 * smooth(r, side, 6, 3)
    knots = np.zeros((side, side), np.float32)
    for _ in range(r.integers(0, 3)):
        radius = r.uniform(0.03, 0.06)
        away = np.hypot((x - r.random()) / 1.7, y - r.random()) / radius
        level = level + 1.6 * np.exp(-((away / 2) ** 2))
        knots += step(1 - away, 0.6) * 0.22
    rings = np.abs((level % 1) - 0.35) / 0.65
    fibre = 0.04 * smooth(r, side, 100, 4) + 0.05 * smooth(r, side, 50, 3) + 0.02 * white(r, side)
    shade = 0.70 + 0.18 * rings + fibre - knots
    return _whole(_paint(shade, (0.86, 0.64, 0.42)))


def washer(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """A turned washer on a dark belt: circular grain, a conical highlight; only the ring can be defective."""
    y, x = axes(side)
    dy, dx = y - r.uniform(0.46, 0.54), x - r.uniform(0.46, 0.54)
    radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    outer, inner = r.uniform(0.41, 0.44), r.uniform(0.13, 0.16)
    grooves = smooth(r, side, 1, 110)[0]  # one random profile along the radius
    turned = 0.05 * grooves[np.minimum(radius * side * 1.3, side - 1).astype(int)]
    light = 0.15 * np.cos(2 * (angle - r.uniform(0, np.pi))) + 0.07 * np.cos(5 * angle + r.uniform(0, 6))
    bevel = 0.16 * np.exp(-(((radius - outer + 0.022) / 0.010) ** 2))
    bevel = bevel - 0.14 * np.exp(-(((radius - inner - 0.02) / 0.012) ** 2))
    part = 0.60 + turned + light + bevel + 0.02 * white(r, side)
    belt = 0.20 + 0.05 * smooth(r, side, 40) + 0.03 * white(r, side)
    alpha = step(outer - radius, 1.5 / side) * step(radius - inner, 1.5 / side)
    image = mix(_paint(belt, (0.9, 1.0, 1.1)), _paint(part, (1.0, 0.95, 0.82)), alpha)
    return Surface(image, (radius < outer - 0.02) & (radius > inner + 0.02))


def board(r: np.random.Generator, side: int, layout: np.random.Generator) -> Surface:
    """Circuit board: traces, pads and chips in one layout for all boards, shifted a little each time."""
    y, x = axes(side)
    v, u = y + r.uniform(-0.03, 0.03), x + r.uniform(-0.03, 0.03)
    image = _paint(0.42 + 0.04 * smooth(r, side, 3) + 0.02 * white(r, side), (0.30, 0.85, 0.50))
    for row, column, kind in layout.uniform(0, 1, (16, 3)):
        long, thin = 0.15 + 0.4 * kind, 0.013
        size = (thin, long) if kind * 1000 % 2 < 1 else (long, thin)
        _stamp(image, (0.28, 0.56, 0.34), (v - row, u - column), size)
    for row, column in layout.uniform(0.03, 0.97, (14, 2)):
        _stamp(image, (0.80, 0.70, 0.38), (v - row, u - column), (0.044, 0.044), round_=True)
        _stamp(image, (0.12, 0.14, 0.12), (v - row, u - column), (0.018, 0.018), round_=True)
    for row, column in layout.uniform(0.15, 0.85, (3, 2)):
        for pin in range(-2, 3):
            _stamp(image, (0.62, 0.62, 0.60), (v - row - 0.03 * pin, u - column), (0.015, 0.14))
        _stamp(image, (0.16, 0.16, 0.18), (v - row, u - column), (0.18, 0.11))
        for letter in range(-1, 3):
            _stamp(image, (0.60, 0.60, 0.60), (v - row, u - column - 0.018 * letter), (0.02, 0.01))
    return _whole(image + 0.015 * white(r, side)[..., None])


def _stamp(
    image: Field,
    colour: tuple[float, float, float],
    offset: tuple[Field, Field],
    size: tuple[float, float],
    *,
    round_: bool = False,
) -> None:
    """Paint a rectangle or disc in place; ``offset`` = row and column coordinates minus its centre."""
    blur = 1.5 / image.shape[0]
    rows, columns = (np.flatnonzero(np.abs(o) < s / 2 + blur) for o, s in zip(offset, size, strict=True))
    if len(rows) == 0 or len(columns) == 0:
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    dy, dx = offset[0][window[0]], offset[1][:, window[1]]
    if round_:
        alpha = step(size[0] / 2 - np.hypot(dy, dx), blur)
    else:
        alpha = step(size[0] / 2 - np.abs(dy), blur) * step(size[1] / 2 - np.abs(dx), blur)
    image[window] = mix(image[window], colour, alpha)


def granite(r: np.random.Generator, side: int, _layout: np.random.Generator) -> Surface:
    """Polished stone: sharp-edged crystals of four shades."""
    grain = smooth(r, side, 22) + 0.6 * smooth(r, side, 45)
    image = _paint(0.60 + 0.05 * smooth(r, side, 6) + 0.03 * white(r, side), (0.98, 0.93, 0.92))
    image = mix(image, (0.80, 0.76, 0.74), step(grain - 0.7, 0.25))
    image = mix(image, (0.46, 0.43, 0.44), step(-grain - 0.9, 0.25))
    dark = smooth(r, side, 34) + 0.3 * smooth(r, side, 60)
    return _whole(mix(image, (0.28, 0.26, 0.28), step(dark - 1.8, 0.25)))


PRODUCTS: dict[str, Callable[[np.random.Generator, int, np.random.Generator], Surface]] = {
    "fabric": fabric,
    "metal": metal,
    "leather": leather,
    "tile": tile,
    "wood": wood,
    "washer": washer,
    "board": board,
    "granite": granite,
}
