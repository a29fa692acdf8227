"""Thresholds of a detector per product, from the maps of good images; saved with every checkpoint."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from typing import Literal

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.products import Products
from fewspect.nn import thresholds
from fewspect.nn.maps import PixelStats

log = logging.getLogger(__name__)

PIXELS = 2**26
"""Good pixels kept at once while a pixel threshold is found (256 MB); of more images an even choice."""

NORM = "norm_"
"""Beginning of the names of tensors that belong to ``PixelStats``."""

Finish = Callable[[Tensor, tuple[int, int], "Calibration | None"], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Rules:
    """How thresholds follow from good images; names as in ``nn.thresholds``.

    Attributes:
        alpha: Share of good images that may be called defective (``gpd``: that have a marked pixel;
            ``pixel_fpr``: share of good pixels that may be marked).
        image: Estimator of the image threshold; ``conformal`` holds ``alpha`` for any distribution of scores.
        pixel: Estimator of the pixel threshold. It reads those of the following that it knows.
        p: ``quantile``, ``image_max``: which quantile of the pixels, or of the images' largest pixels.
        area: ``max_area``: a region of a good image stays below this many pixels; ``legacy_area``: all of
            them together.
        k: ``ksigma``: number of standard deviations above the mean.
        value: ``fixed``: the threshold itself.
        factor: Both thresholds are multiplied by this.
    """

    alpha: float = 0.05
    image: Literal["conformal", "max"] = "conformal"
    pixel: Literal[
        "max", "quantile", "pixel_fpr", "ksigma", "image_max", "max_area", "legacy_area", "gpd", "fixed"
    ] = "image_max"
    p: float = 0.95
    area: int = 25
    k: float = 3.0
    value: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would only fail after the first epoch.

        Raises:
            UserError: A number outside of its range.
        """
        asked = {
            "alpha": (0 < self.alpha < 1, "a share in (0, 1), e.g. 0.05"),
            "p": (0 <= self.p <= 1, "a share in [0, 1], e.g. 0.95"),
            "area": (self.area >= 1, "a number of pixels, at least 1"),
            "factor": (self.factor > 0, "a positive number; 1 changes nothing"),
        }
        for name, (right, what) in asked.items():
            if not right:
                raise UserError(
                    f"method.threshold.{name}={getattr(self, name)} is out of range.", f"Give {what}."
                )

    def of_pixel(self) -> dict[str, float]:
        """What the chosen pixel estimator takes of these."""
        known = (name for name in thresholds.parameters(self.pixel) if hasattr(self, name))
        return {name: getattr(self, name) for name in known}


@dataclass(frozen=True, slots=True)
class Observed:
    """One good image: its raw map (h, w) float32, its size, and who it is."""

    product: str
    raw: Tensor
    size: tuple[int, int]
    owner: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned from the good images of one product.

    Attributes:
        pixel: A pixel is marked when its final value is above this.
        image: An image is defective when its score is above this.
        alpha: False-alarm rate that is guaranteed for images (1 / (count + 1) at best).
        count: Number of good images.
        knots: (M,) quantiles of their scores.
        scale: Values that pictures show as black and as brightest.
        norm: Per-pixel standardisation, None = none.
    """

    pixel: float
    image: float
    alpha: float
    count: int
    knots: Tensor
    scale: tuple[float, float]
    norm: PixelStats | None = None

    def rank(self, score: Tensor) -> Tensor:
        """Share of good images with a lower score, in [0, 1]."""
        return thresholds.calibrated(score, self.knots.to(score.device))


class Calibrations(Products):
    """Product -> ``Calibration``; buffers, so that checkpoints hold the thresholds."""

    @property
    def table(self) -> dict[str, Calibration]:
        """What is known of every product."""
        return {product: self.about(product) for product in self.known}

    def about(self, product: str) -> Calibration:
        """What is known of one product."""
        return _read(self.of(product))

    def fit(self, observed: Sequence[Observed], rules: Rules, norm: str, finish: Finish) -> None:
        """Set the thresholds of every product that was observed.

        Args:
            observed: Good images, in an order that does not depend on the number of processes.
            rules: How.
            norm: ``auto``, ``on`` or ``off``: per-pixel standardisation.
            finish: From a raw map to the final one and its score.
        """
        by_product = sorted(observed, key=lambda o: o.product)
        for product, group in groupby(by_product, key=lambda o: o.product):
            self.keep(product, **_written(_calibrate(list(group), rules, norm, finish)))
        self._warn([o.product for o in observed], rules.alpha)

    def _warn(self, products: Sequence[str], alpha: float) -> None:
        """Name the products that have too few good images for what is asked."""
        table = self.table
        short = [p for p in sorted(set(products)) if table[p].alpha > alpha]
        if short:
            least = min((table[p] for p in short), key=lambda c: c.count)
            log.warning(
                "%s: %s%d good images cannot promise a false-alarm rate of %g, only %.3g. "
                "Give %d good images, or ask for less with method.threshold.alpha.",
                ", ".join(filter(None, short)) or "the product",
                "down to " if any(table[p].count != least.count for p in short) else "",
                least.count, alpha, least.alpha, thresholds.needed(alpha),
            )  # fmt: skip


def _written(c: Calibration) -> dict[str, Tensor]:
    """A calibration as tensors."""
    numbers = [c.pixel, c.image, c.alpha, c.count, *c.scale]
    state = {} if c.norm is None else c.norm.state()
    return {
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "knots": c.knots,
        **{f"{NORM}{k}": torch.as_tensor(v) for k, v in state.items()},
    }


def _read(tensors: Mapping[str, Tensor]) -> Calibration:
    """Undo ``_written``."""
    pixel, image, alpha, count, low, high = tensors["numbers"].tolist()
    state = {k.removeprefix(NORM): v for k, v in tensors.items() if k.startswith(NORM)}
    norm = PixelStats.of(state) if state else None
    return Calibration(pixel, image, alpha, int(count), tensors["knots"], (low, high), norm)


def _calibrate(good: list[Observed], rules: Rules, norm: str, finish: Finish) -> Calibration:
    """Thresholds of one product; standardised maps are judged by the statistics of the others."""
    maps = [o.raw for o in good]
    stats = PixelStats.fit(maps, norm) if norm != "off" else None
    others = repeat(None) if stats is None else PixelStats.without_each(maps)
    start = Calibration(0.0, 0.0, 0.0, 0, torch.zeros(0), (0.0, 1.0))
    largest = max(o.size[0] * o.size[1] for o in good)
    kept = set(_evenly(len(good), PIXELS // largest))
    finals, scores = [], []
    for k, (one, norms) in enumerate(zip(good, others, strict=False)):  # ``repeat`` never ends
        final, score = finish(one.raw, one.size, replace(start, norm=norms))
        scores.append(float(score))
        if k in kept:
            finals.append(final.cpu().numpy())
    image = thresholds.image_threshold(rules.image, scores, alpha=rules.alpha)
    pixel = thresholds.pixel_threshold(name=rules.pixel, maps=finals, **rules.of_pixel()) * rules.factor
    low = float(min(f.min() for f in finals))
    return Calibration(
        pixel=pixel,
        image=image.threshold * rules.factor,
        alpha=image.alpha,
        count=len(good),
        knots=thresholds.cdf_knots(scores),
        scale=(low, low + 2 * (pixel - low) if pixel > low else low + 1.0),
        norm=stats,
    )


def _evenly(number: int, most: int) -> list[int]:
    """At most ``most`` of ``number`` positions, evenly spread, at least one."""
    count = max(1, min(number, most))
    return [k * number // count for k in range(count)]
