"""The defects of the toy factory: a shape (a field whose low values are inside), an area and a paint.

The shape functions return a *field*, about the distance from the defect in units of the image side. The asked
area is met exactly by taking the k lowest values of the field, and the picture is changed only where the mask
is one, apart from one pixel of anti-aliasing around it. Sizes, directions, signs and strengths vary within a
class; the kind of shape and the kind of paint do not.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fewspect.data.toy import paints, shapes
from fewspect.data.toy.noise import Field, axes
from fewspect.data.toy.paints import Paint
from fewspect.data.toy.shapes import Spot
from fewspect.data.toy.textures import Surface


class Defect(NamedTuple):
    """A defect class.

    Attributes:
        text: Description for text-guided methods and reports.
        smallest: Smallest area as a fraction of the image.
        largest: Largest area.
        shape: Spot -> field.
        paint: Paint -> image.
    """

    text: str
    smallest: float
    largest: float
    shape: Callable[[Spot], Field]
    paint: Callable[[Paint], Field]


CATALOGUE: dict[str, Defect] = {
    "scratch": Defect(
        "a thin straight or slightly curved scratch", 0.0015, 0.012, shapes.scratch, paints.cut
    ),
    "spot": Defect("one to three small round spots", 0.0003, 0.006, shapes.spots, paints.dot),
    "blob": Defect("an opaque lump of foreign material", 0.002, 0.04, shapes.blob, paints.lump),
    "crack": Defect("a dark branching crack with sharp turns", 0.002, 0.014, shapes.crack, paints.dark_cut),
    "stain": Defect("a large irregular stain with a stronger rim", 0.01, 0.09, shapes.stain, paints.soak),
    "missing": Defect(
        "a rectangular area where the surface layer is missing", 0.003, 0.05, shapes.patch, paints.bare
    ),
    "wrinkle": Defect("a fold with a bright and a dark flank", 0.004, 0.03, shapes.wrinkle, paints.relief),
    "pits": Defect("a cluster of tiny dark pits", 0.0012, 0.008, shapes.pits, paints.pit),
    "hole": Defect("a round black hole", 0.0008, 0.015, shapes.disc, paints.bore),
    "dent": Defect("a shallow round dent, lit from one side", 0.005, 0.05, shapes.disc, paints.bowl),
    "thread": Defect("a loose curly thread of another colour", 0.002, 0.014, shapes.thread, paints.fibre),
    "smear": Defect("a streaky elongated smear", 0.006, 0.06, shapes.smear, paints.streak),
    "chip": Defect("an angular chip with flat fracture faces", 0.0015, 0.025, shapes.polygon, paints.facet),
    "scuff": Defect("several short parallel scratches", 0.002, 0.014, shapes.scuff, paints.cut),
    "bubble": Defect("a ring left by a burst bubble", 0.0015, 0.012, shapes.ring, paints.dot),
    "burn": Defect(
        "a burn mark, black inside and brown at the edge", 0.003, 0.05, shapes.blob, paints.scorch
    ),
}


def apply(r: np.random.Generator, surface: Surface, defect: Defect) -> tuple[Field, np.ndarray]:
    """Put one defect on a surface.

    Returns:
        The changed image (side, side, 3) and the mask (side, side) uint8 in {0, 1}, never empty.
    """
    side = surface.region.shape[0]
    area = float(np.exp(r.uniform(np.log(defect.smallest), np.log(defect.largest))))
    spot = _place(r, surface, area)
    field = np.where(surface.region, defect.shape(spot), np.float32(9))
    pixels = min(max(round(area * side**2), 4), int(surface.region.sum()) - 1)
    level = np.partition(field.ravel(), pixels - 1)[pixels - 1]
    mask = field <= level
    alpha = np.clip((level - field) * side + 1.0, 0, 1) * surface.region  # fades over 1 pixel outside
    depth = np.clip(level - field, 0, None)
    depth = depth / max(float(depth.max()), 1e-6)
    mean = surface.image[mask].mean(0)
    return defect.paint(Paint(surface.image, alpha, depth, mean, spot)), mask.astype(np.uint8)


def _place(r: np.random.Generator, surface: Surface, area: float) -> Spot:
    """Choose centre and direction; the centre keeps away from the image edge."""
    side = surface.region.shape[0]
    radius = float(np.sqrt(area / np.pi))
    border = int(side * min(0.12 + radius, 0.3))
    inside = np.flatnonzero(surface.region[border : side - border, border : side - border])
    row, column = divmod(int(r.choice(inside)), side - 2 * border)
    y, x = axes(side)
    dy, dx = y - (row + border) / side, x - (column + border) / side
    turn = r.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return Spot(r, side, cos * dx + sin * dy, cos * dy - sin * dx, radius)
