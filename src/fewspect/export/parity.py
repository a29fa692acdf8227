"""Whether an exported model answers as the run it was made from: figures, and a refusal where it does not."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.types import Prediction

TOLERANCE = 1e-4
"""Largest difference of a score and of a probability, relative to values above 1."""

MAP_TOLERANCE = 1e-3
"""Largest difference of a map: a single pixel of an SSIM map divides by nearly nothing where all is flat."""

TIE = 1e-6
"""A score this near to its threshold decides nothing: float32 has no more digits."""

PIXELS = 1e-3
"""Largest share of mask pixels that may differ: those whose value lies at the threshold."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared, and how far both answers lie apart.

    Attributes:
        samples: Number of images (or instances).
        sizes: Number of different image sizes.
        score: Largest difference of an image score or a probability.
        map: Largest difference of a map value.
        decisions: Number of decisions.
        different: Decisions that differ.
        ties: Decisions left out: the score is its threshold.
        mask_pixels: Number of mask pixels.
        mask_different: Those that differ.
    """

    samples: int = 0
    sizes: int = 0
    score: float = 0.0
    map: float = 0.0
    decisions: int = 0
    different: int = 0
    ties: int = 0
    mask_pixels: int = 0
    mask_different: int = 0

    def plain(self) -> dict[str, float]:
        """For ``export.json``."""
        return asdict(self)

    def require(self) -> None:
        """Refuse a model that answers differently.

        Raises:
            UserError: A score, a map or a decision is another one.
        """
        share = self.mask_different / max(1, self.mask_pixels)
        near = self.score <= TOLERANCE and self.map <= MAP_TOLERANCE
        if near and not self.different and share <= PIXELS:
            return
        raise UserError(
            f"The exported model answers differently: score by {self.score:.2g}, map by {self.map:.2g}, "
            f"{self.different} of {self.decisions} decisions, {share:.2%} of mask pixels.",
            "Nothing was written. Try the other format, and report method, versions and these numbers.",
        )


def compare(
    pairs: Iterable[tuple[Prediction, Prediction, tuple[int, ...]]], threshold: float | None
) -> Parity:
    """Compare answers.

    Args:
        pairs: What the run answers, what the exported model answers, the image's size.
        threshold: Of the image score, if there is one.
    """
    total, sizes = Parity(), set[tuple[int, ...]]()
    for expected, found, size in pairs:
        sizes.add(size)
        one = _classes(expected, found) if expected.logits is not None else _maps(expected, found, threshold)
        total = _added(total, one)
    return Parity(**(asdict(total) | {"sizes": len(sizes)}))


def _classes(expected: Prediction, found: Prediction) -> Parity:
    assert expected.logits is not None and found.logits is not None
    gap = _gap(expected.logits.softmax(-1), found.logits.softmax(-1))
    label = expected.extra.get("label", expected.logits.argmax(-1) + 1)
    best = expected.logits.softmax(-1).topk(min(2, expected.logits.shape[-1]), -1).values
    tie = (best[..., 0] - best[..., -1] <= TIE) & (best.shape[-1] > 1)
    wrong = (label != found.extra["label"]) & ~tie
    return Parity(
        samples=len(label), score=gap, decisions=len(label), different=int(wrong.sum()), ties=int(tie.sum())
    )


def _maps(expected: Prediction, found: Prediction, threshold: float | None) -> Parity:
    assert expected.prob is not None and expected.score is not None and expected.mask is not None
    assert found.prob is not None and found.score is not None and found.mask is not None
    decided = expected.decision is not None
    tie = threshold is not None and abs(float(expected.score) - threshold) <= TIE * max(1, abs(threshold))
    wrong = decided and not tie and not torch.equal(expected.decision, found.decision)  # type: ignore[arg-type]
    return Parity(
        samples=1,
        score=_gap(expected.score, found.score),
        map=_gap(expected.prob, found.prob),
        decisions=int(decided),
        different=int(wrong),
        ties=int(tie),
        mask_pixels=expected.mask.numel(),
        mask_different=int((expected.mask != found.mask).sum()),
    )


def _gap(one: Tensor, two: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1; infinite for NaN or shape."""
    if one.shape != two.shape or not bool(torch.isfinite(one).all() and torch.isfinite(two).all()):
        return float("inf")
    scale = max(1.0, float(one.abs().max()))
    return float((one.double() - two.double()).abs().max()) / scale


def _added(one: Parity, two: Parity) -> Parity:
    a, b = asdict(one), asdict(two)
    return Parity(**{k: max(a[k], b[k]) if k in ("score", "map") else a[k] + b[k] for k in a})
