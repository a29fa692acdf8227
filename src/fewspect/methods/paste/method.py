"""Paste: real defects, moved, turned and blended onto good images, or shapes of noise filled with texture.

Ideas: CutPaste (Li et al. 2021), Poisson blending (Perez et al. 2003), Perlin shapes (DRAEM, Zavrtanik et
al. 2021). Nothing is trained: the images are looked at once, a sample takes a few milliseconds.

Example:
    >>> paste = Paste(seed=0)
    >>> paste.setup_data(data.info)  # doctest: +SKIP
    >>> paste.observe([episode for episode in data.dataset("train")])  # doctest: +SKIP
    >>> paste.generate([0, 1])[0].mask.unique()  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar

import numpy as np
import torch

from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.methods.generator import Generator
from fewspect.methods.paste.blend import Change, Turn, alpha_blend, grown, moved, poisson, soft_edge
from fewspect.methods.paste.noise import perlin
from fewspect.types import Episode, Generated

KINDS = ("poisson", "cut", "perlin")

ANOMALY = "anomaly"
"""Class of the Perlin shapes, which show no defect that has a name."""

MARGIN = 6
"""Pixels of good surface that are kept around a defect."""

RING = 2
"""Pixels by which a defect is grown before it is blended in: the seam lies on good surface."""

SMALLEST = 0.01
"""Factor on a defect's size below which nothing is left of it."""

TRIES = 8
"""Draws of a change before a defect that vanishes by it is taken as it is."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One real defect with its surroundings.

    Attributes:
        pixels: (h, w, 3) uint8.
        mask: (h, w) bool.
        label: Class, 1, 2, ...
        centre: Row and column of the patch's centre in its image.
        source: Name of its image.
        group: The same with product and folder, so that no other image has it.
    """

    pixels: np.ndarray
    mask: np.ndarray
    label: int
    centre: tuple[float, float]
    source: str
    group: str = ""


class Paste(Generator):
    """Makes defects from real ones.

    Args:
        kinds: Relative frequency of ``poisson`` (seamless), ``cut`` (soft edge, level adapted) and ``perlin``
            (texture of another image in a shape of noise; its class is ``anomaly``).
        defects: Least and largest number of defects per image.
        scale: Factor on a defect's size, drawn from this interval.
        turn: ``any`` angle and mirrored; ``mirror``: upright, mirrored either way, for surfaces with a
            direction; ``none``.
        jitter: None = anywhere; else at most so many pixels from where the defect was, for aligned objects.
        strength: Opacity of a defect, drawn from this interval.
        options: See ``Method``.

    Raises:
        UserError: An unknown kind, none with a positive frequency, or an interval that is none.
    """

    fit_kind = "none"
    needs: ClassVar[str] = "detect"  # shapes of noise need good images alone; what lacks a mask is named

    def __init__(
        self,
        *,
        kinds: Mapping[str, float] | None = None,
        defects: tuple[int, int] = (1, 2),
        scale: tuple[float, float] = (0.7, 1.3),
        turn: Turn = "mirror",
        jitter: int | None = None,
        strength: tuple[float, float] = (0.8, 1.0),
        **options: Any,  # noqa: ANN401 - those of Method
    ) -> None:
        super().__init__(**options)
        weights = dict(kinds or {"poisson": 1.0, "cut": 1.0})
        if unknown := sorted(set(weights) - set(KINDS)):
            hint = f"Choose of {', '.join(KINDS)}."
            raise UserError(f"method.kinds: {', '.join(unknown)} does not exist.", hint)
        self.kinds = [(k, w) for k, w in weights.items() if w > 0]
        if not self.kinds:
            raise UserError("method.kinds: every frequency is 0.", "Give one of them a positive number.")
        if negative := sorted(k for k, w in weights.items() if w < 0):
            raise UserError(f"method.kinds: {', '.join(negative)} is negative.", "0 means never.")
        self.defects, self.scale, self.strength = defects, scale, strength
        self.turn: Turn = turn
        self.jitter = jitter
        self._refuse()
        self._good: dict[str, list[tuple[np.ndarray, str, str]]] = {}
        self._patches: dict[str, list[Patch]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The data's classes, and ``anomaly`` where shapes of noise are drawn."""
        more = any(kind == "perlin" for kind, _ in self.kinds) and ANOMALY not in self.info.classes
        return (*self.info.classes, ANOMALY) if more else self.info.classes

    def _refuse(self) -> None:
        """Refuse intervals that nothing can be drawn from.

        Raises:
            UserError: One of them is upside down or out of range.
        """
        ranges = {
            "defects": (self.defects, 0, np.inf, "[1, 2]"),
            "scale": (self.scale, SMALLEST, np.inf, "[0.7, 1.3]"),
            "strength": (self.strength, 0, 1, "[0.8, 1.0]"),
        }
        for name, (interval, least, most, example) in ranges.items():
            if len(interval) != 2 or not least <= interval[0] <= interval[1] <= most:
                raise UserError(
                    f"method.{name}={list(interval)} is no interval within {least} to {most}.",
                    f"Give two numbers, the smaller one first, e.g. {example}.",
                )
        if self.jitter is not None and self.jitter < 0:
            raise UserError(f"method.jitter={self.jitter} is negative.", "Give pixels, or null for anywhere.")

    def observe(self, batch: list[Episode]) -> None:
        """Keep good images, and cut the defects out of the others.

        An image whose defect is too small for a pixel of its squashed mask is neither.
        """
        for episode in batch:
            pixels = (episode.query_image[0] * 255).round().to(torch.uint8)  # (3, side, side)
            pixels = pixels.movedim(0, -1).contiguous().numpy()
            mask = episode.query_mask[0].numpy()
            path = PurePath(episode.paths[0])
            name, group = path.name, "/".join([episode.product, *path.parts[-2:]])
            if mask.any():
                patches = [_cut(pixels, mask == k, int(k), name, group) for k in np.unique(mask[mask > 0])]
                self._patches.setdefault(episode.product, []).extend(patches)
            elif int(episode.query_label[0]) == 0:
                self._good.setdefault(episode.product, []).append((pixels, name, group))

    def generate(self, numbers: Sequence[int]) -> list[Generated]:
        """Draw samples; one each.

        Raises:
            UserError: No product has what the chosen kinds need.
        """
        products = self._products()
        return [self._one(products, number) for number in numbers]

    def _products(self) -> list[str]:
        shapes_only = [kind for kind, _ in self.kinds] == ["perlin"]
        found = sorted(p for p in self._good if shapes_only or p in self._patches)
        if not found:
            lacking = "good image" if not self._good else "defect with a mask beside good images"
            raise UserError(
                f"Paste needs good images and defects of one product; there is no {lacking}.",
                "mode=check shows the data set; good images alone do for shapes of noise: "
                "method.kinds.poisson=0 method.kinds.cut=0 method.kinds.perlin=1.",
            )
        return found

    def _one(self, products: list[str], number: int) -> Generated:
        r = rng(self.seed, "paste", number)
        product = products[int(r.integers(len(products)))]
        goods = self._good[product]
        canvas, ground, group = goods[int(r.integers(len(goods)))]
        under = canvas
        canvas, mask = canvas.astype(np.float32), np.zeros(canvas.shape[:2], np.uint8)
        sources = []
        for _ in range(int(r.integers(self.defects[0], self.defects[1], endpoint=True))):
            weights = np.array([w for _, w in self.kinds])
            kind = self.kinds[int(r.choice(len(self.kinds), p=weights / weights.sum()))][0]
            if kind == "perlin":
                sources.append(self._shape(canvas, mask, r))
            else:
                patch = self._defect(canvas, mask, product, kind, r)
                group = patch.group if not sources else group
                sources.append(f"{kind}:{patch.source}")
        image = torch.from_numpy((canvas.clip(0, 255) + 0.5).astype(np.uint8)).movedim(-1, 0).contiguous()
        origin = {"good": ground, "defects": " ".join(sources)}
        before = torch.from_numpy(under).movedim(-1, 0)
        return Generated(image, torch.from_numpy(mask), product, origin, group, before)

    def _defect(
        self, canvas: np.ndarray, mask: np.ndarray, product: str, kind: str, r: np.random.Generator
    ) -> Patch:
        """Put a real defect onto ``canvas`` and its label into ``mask``, in place; say which it was."""
        patches = self._patches[product]
        patch = patches[int(r.integers(len(patches)))]
        pixels, shape = patch.pixels.astype(np.float32), patch.mask
        for _ in range(TRIES):
            change = Change.draw(r, self.scale, self.turn, canvas.shape[0])
            found = moved(pixels, patch.mask, change)
            if found[1].any():
                pixels, shape = found
                break
        top, left = self._place(shape.shape, mask.shape, patch.centre, r)
        rows, columns = slice(top, top + shape.shape[0]), slice(left, left + shape.shape[1])
        wide = grown(shape, RING)
        under = canvas[rows, columns]
        seamless = kind == "poisson"
        blended = poisson(under, pixels, wide) if seamless else alpha_blend(under, pixels, wide, RING)
        canvas[rows, columns] += np.float32(r.uniform(*self.strength)) * (blended - under)
        mask[rows, columns][shape] = patch.label
        return patch

    def _shape(self, canvas: np.ndarray, mask: np.ndarray, r: np.random.Generator) -> str:
        """Fill a shape of noise with the turned, brighter or darker texture of another image, in place."""
        everything = [pair for p in sorted(self._good) for pair in self._good[p]]
        texture, name, _ = everything[int(r.integers(len(everything)))]
        side = canvas.shape[0]
        shape = perlin(r, side)
        height, width = shape.shape
        top, left = self._place(shape.shape, mask.shape, (side / 2, side / 2), r)
        up, across = int(r.integers(side - height + 1)), int(r.integers(side - width + 1))
        turned = np.rot90(texture, int(r.integers(4)))[up : up + height, across : across + width]
        shift = r.choice([-1, 1]) * r.uniform(25, 70)  # grey levels: otherwise the same product is invisible
        under = canvas[top : top + height, left : left + width]
        opacity = np.float32(r.uniform(*self.strength)) * soft_edge(shape, 1)
        under += opacity * (turned + np.float32(shift) - under)
        mask[top : top + height, left : left + width][shape] = self.classes.index(ANOMALY) + 1
        return f"perlin:{name}"

    def _place(
        self, size: Sequence[int], canvas: Sequence[int], centre: Sequence[float], r: np.random.Generator
    ) -> tuple[int, int]:
        """Row and column of the upper left corner."""
        place = []
        for length, room, middle in zip(size, canvas, centre, strict=True):
            if self.jitter is None:
                place.append(int(r.integers(room - length + 1)))
            else:
                wanted = middle - length / 2 + r.integers(-self.jitter, self.jitter, endpoint=True)
                place.append(int(np.clip(round(wanted), 0, room - length)))
        return place[0], place[1]


def _cut(pixels: np.ndarray, mask: np.ndarray, label: int, source: str, group: str) -> Patch:
    """The bounding box of a mask with a margin; beyond the image its border is continued.

    So a seam has pixels on its other side, unless the defect is as large as the image.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    centre = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2)
    spans = []
    for found, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        size = min(int(found[-1] - found[0]) + 1 + 2 * MARGIN, length)
        start = (int(found[0] + found[-1]) + 1 - size) // 2
        spans.append(np.arange(start, start + size))
    known = [(span >= 0) & (span < n) for span, n in zip(spans, mask.shape, strict=True)]
    box = np.ix_(*(span.clip(0, n - 1) for span, n in zip(spans, mask.shape, strict=True)))
    return Patch(pixels[box], mask[box] & np.logical_and.outer(*known), label, centre, source, group)
