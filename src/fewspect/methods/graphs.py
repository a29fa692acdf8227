"""What an exported model computes: an image of any size in, the same answer as the method's out.

A graph holds the method with its weights, what it has adapted to, and its thresholds; everything around the
network is computed from the image's size inside the graph (``nn.traced``). ``Method.exported`` makes one.

Shapes: image (3, H, W) uint8; maps and masks (H, W).
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.nn import tiles, traced, windows
from fewspect.types import State

if TYPE_CHECKING:
    from fewspect.methods.calibration import Calibration
    from fewspect.methods.classifier import Classifier
    from fewspect.methods.detector import Detector
    from fewspect.methods.segmenter import Segmenter


@dataclass(frozen=True, slots=True)
class About:
    """What a reader of a graph has to know.

    Attributes:
        inputs: Names of the arguments, in order.
        outputs: Names of the results, in order. ``map`` (H, W) and ``score`` () are never clamped, ``mask``
            (H, W) and ``decision`` () are uint8, ``probability`` (Q, K) sums to 1.
        least: Smallest side of an image in pixels.
        classes: Names of the columns of ``probability``, or of what ``mask`` marks.
        facts: Plain values: thresholds, sides, what is left to do with the mask.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    least: int = 1
    classes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


class Graph(nn.Module):
    """Base: a module and what its inputs and outputs mean.

    Args:
        about: See ``About``.
    """

    def __init__(self, about: About) -> None:
        super().__init__()
        self.about = about


class DetectorGraph(Graph):
    """``Detector.detect`` as a graph; ``clean`` is left to the reader of the mask.

    Args:
        method: A detector.
        state: What it has adapted to.
        calibration: Thresholds of the product.
    """

    def __init__(self, method: "Detector", state: State, calibration: "Calibration") -> None:
        view, maps = method.view, method.maps
        open_tiles = view.stride is not None and view.zoom is None
        least = max(view.side if open_tiles else 1, traced.radius(maps.smooth) + 1)
        cleaning = {k: getattr(method.cleaning, k) for k in ("open_radius", "low", "min_area", "fill_holes")}
        facts = {
            "threshold": {"image": calibration.image, "pixel": calibration.pixel},
            "alpha": calibration.alpha,
            "good_images": calibration.count,
            "scale": list(calibration.scale),
            "clean": cleaning,
            "side": view.side,
        }
        super().__init__(About(("image",), ("map", "mask", "score", "decision"), least, facts=facts))
        self.method, self.state, self.view, self.maps = method, state, view, maps
        self.pixel, self.image = calibration.pixel, calibration.image
        self.norm = calibration.norm
        if maps.resolution == "model" and any(cleaning.values()):
            raise UserError(
                "A mask that is cleaned at the map's resolution cannot be exported.",
                "Set method.maps.resolution=original, or no method.clean.",
            )
        if maps.resolution == "model" and open_tiles:
            raise UserError(
                "Tiles of images that are not resized have no resolution of their own.",
                "Set method.maps.resolution=original or method.evaluate.zoom.",
            )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Answer one image (3, H, W)."""
        raw = self._normed(self._raw(image))
        h, w = image.shape[-2:]
        size = _lengths(image)
        full = (h, w), size
        native = (raw.shape[-2], raw.shape[-1]), _lengths(raw)
        final, at = (raw, native) if self.maps.resolution == "model" else (_brought(raw, *full), full)
        final = traced.smoothed(self._guarded(final, at), self.maps.smooth)
        score = _image_score(final, self.maps.score)
        mask = (final > self.pixel).to(torch.uint8)
        decision = (score > self.image).to(torch.uint8)
        if self.maps.resolution == "model":
            axes = zip(native[0], full[0], native[1], size, strict=True)
            rows, columns = (traced.nearest(n, m, a, b) for n, m, a, b in axes)
            mask, final = mask[rows][:, columns], _brought(final, *full)
        return final, mask, score, decision

    def _raw(self, image: Tensor) -> Tensor:
        side = self.view.side if self.view.stride is None else self.view.zoom
        if side is None:
            return self._tiled(image.float() / 255)
        view = squashed(image, side)
        if self.view.stride is not None:
            return self._tiled(view)
        prob = self.method.predict(view[None], self.state).prob
        assert prob is not None, "the contract of a detector"
        return prob[0].float()

    def _tiled(self, view: Tensor) -> Tensor:
        """Answer overlapping tiles of (3, H, W), all at once, and average them."""
        side, stride = self.view.side, self.view.stride
        assert stride is not None
        height, width = view.shape[-2:]
        total = _lengths(view)
        whole = torch.full_like(total[0], float(side))
        begins = [traced.starts(stride, whole, a) for a in total]
        cut = _cut(view, begins, side)  # (tiles, 3, side, side)
        prob = self.method.predict(cut, self.state).prob
        assert prob is not None, "the contract of a detector"
        heat = torch.nn.functional.interpolate(prob[:, None].float(), (side, side), mode="bilinear")[:, 0]
        return _merged(heat, begins, (whole, whole), (height, width), tiles.weight(self.view.weight, side))

    def _normed(self, raw: Tensor) -> Tensor:
        if self.norm is None:
            return raw
        size = (raw.shape[-2], raw.shape[-1])
        mean, scale = (_brought(part, size, _lengths(raw)) for part in (self.norm.mean, self.norm.scale))
        return (raw - mean) / scale

    def _guarded(self, values: Tensor, at: tuple[tuple[int, int], tuple[Tensor, Tensor]]) -> Tensor:
        """``maps.border_guard``."""
        if self.maps.border <= 0:
            return values
        inner = []
        for number, total in zip(*at, strict=True):
            place = traced.steps(number, total)
            inner.append((place >= self.maps.border) & (place < total - self.maps.border))
        inside = inner[0][:, None] & inner[1][None]
        return torch.where(inside, values, values * self.maps.border_gain)


class SegmenterGraph(Graph):
    """``Segmenter.segment`` as a graph, its support encoded inside.

    Args:
        method: A segmenter.
        state: What it has adapted to.
        classes: What it marks.
        whole: Look at images in one piece instead of through windows.
    """

    def __init__(self, method: "Segmenter", state: State, classes: tuple[str, ...], *, whole: bool) -> None:
        sliding = method.sliding
        facts = {
            "threshold": {"pixel": sliding.threshold},
            "side": sliding.side,
            "window": None if whole else sliding.crop_size,
            "overlap": sliding.overlap,
        }
        super().__init__(About(("image",), ("map", "mask", "score"), classes=classes, facts=facts))
        self.method, self.state, self.whole, self.sliding = method, state, whole, sliding

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answer one image (3, H, W)."""
        prob, votes = self._one(image) if self.whole else self._many(image)
        mask = ((prob if votes is None else votes) > self.sliding.threshold).to(torch.uint8)
        return prob, mask, prob.flatten().amax(0)

    def _one(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Show the image as a whole."""
        size, side = _lengths(image), self.sliding.side
        shown = _fitted(size, side)
        view = _padded(image.double(), size, shown, side)
        back = self._back(self._asked(view[None]), size, shown, (image.shape[-2], image.shape[-1]))
        return back[0][0], None if back[1] is None else back[1][0]

    def _many(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Slide a window over the image; all windows are answered at once."""
        crop, side = self.sliding.crop_size, self.sliding.side
        stride = max(1, int(crop * (1.0 - self.sliding.overlap) + 0.5))
        height, width = image.shape[-2:]
        total = _lengths(image)
        size = (total[0].clamp(max=float(crop)), total[1].clamp(max=float(crop)))
        begins = [traced.starts(stride, s, t) for s, t in zip(size, total, strict=True)]
        shown = _fitted(size, side)
        view = _padded(_cut(image.double(), begins, crop), size, shown, side)  # (windows, 3, side, side)
        heat, votes = self._back(self._asked(view), size, shown, (crop, crop))
        merged = [_merged(part, begins, size, (height, width)) for part in (heat, votes) if part is not None]
        return merged[0], merged[1] if len(merged) > 1 else None

    def _asked(self, views: Tensor) -> Tensor:
        prob = self.method.predict(views, self.state).prob
        assert prob is not None, "the contract of a segmenter"
        return prob.float()  # (windows, side, side)

    def _back(
        self, prob: Tensor, size: tuple[Tensor, Tensor], shown: tuple[Tensor, Tensor], to: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Probabilities and, with ``merge=vote``, decisions at the windows' own size."""
        side, hard = self.sliding.side, self.sliding.upsample == "hard"
        rows, columns = (
            traced.stretched(side, m, a, b, align=hard) for m, a, b in zip(to, shown, size, strict=True)
        )
        heat = rows @ prob @ columns.mT
        if self.sliding.merge != "vote":
            return heat, None
        votes = rows @ (prob > self.sliding.threshold).float() @ columns.mT
        return heat, (votes > windows.HARD_THRESHOLD).float() if hard else votes


class FeatureGraph(Graph):
    """A classifier's answer to features (Q, V, D), its supports inside.

    Args:
        method: A classifier.
        state: What it has adapted to.
        classes: Names in label order.
    """

    def __init__(self, method: "Classifier", state: State, classes: tuple[str, ...]) -> None:
        super().__init__(About(("feature",), ("probability", "label", "score"), classes=classes))
        self.method, self.state = method, state

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (Q, K), labels (Q,) from 1 on (-1 = none of the classes), scores (Q,)."""
        answer = self.method.predict(feature, self.state)
        assert answer.logits is not None and answer.score is not None, "the contract of a classifier"
        label = answer.extra["label"] if "label" in answer.extra else answer.logits.argmax(-1) + 1
        return answer.logits.softmax(-1), label, answer.score


class InstanceGraph(Graph):
    """A classifier's answer to an instance: described by a backbone, then told apart.

    Args:
        describer: From image, or image, mask and box, to features (1, V, D).
        classifier: What answers them.
        inputs: Names of what the describer takes.
        facts: Plain values for the reader.
    """

    def __init__(
        self, describer: nn.Module, classifier: FeatureGraph, inputs: tuple[str, ...], facts: dict[str, Any]
    ) -> None:
        about = classifier.about
        super().__init__(About(inputs, about.outputs, least=2, classes=about.classes, facts=facts))
        self.describer, self.classifier = describer, classifier

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``FeatureGraph``; Q = 1."""
        return self.classifier(self.describer(*inputs))


def squashed(image: Tensor, side: int) -> Tensor:
    """``windows.squash``: (3, H, W) uint8 to (3, side, side) float32 in [0, 1]."""
    target = torch.full_like(_lengths(image)[0], float(side))
    rows, columns = (
        traced.shrunk(n, side, a, target) for n, a in zip(image.shape[-2:], _lengths(image), strict=True)
    )
    return traced.resized(image.double(), rows, columns).float() / 255


def _lengths(image: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of (..., H, W) as numbers inside the graph."""
    flat = image.flatten(0, -3) if image.ndim > 2 else image[None]
    return traced.length(flat[0, :, 0]), traced.length(flat[0, 0])


def _brought(values: Tensor, size: tuple[int, int], target: tuple[Tensor, Tensor]) -> Tensor:
    """A map (h, w) at another size, bilinear."""
    rows, columns = (
        traced.stretched(n, m, a, b)
        for n, m, a, b in zip(values.shape[-2:], size, _lengths(values), target, strict=True)
    )
    return rows @ values @ columns.mT


def _image_score(values: Tensor, rule: str) -> Tensor:
    """``maps.image_score`` of one map."""
    flat = values.flatten()
    if rule == "max":
        return flat.amax(0)
    if rule == "mean":
        return flat.mean()
    found = re.fullmatch(r"top(?:(\d*\.?\d+)pct|([1-9]\d*))", rule)
    assert found is not None, "the score was computed before"
    if found[2]:
        raise UserError(
            f"An exported model has no image score '{rule}': the number of pixels is not known.",
            "Use method.maps.score=top1pct, max or mean.",
        )
    return traced.mean_of_largest(flat, float(found[1]))


def _fitted(size: tuple[Tensor, Tensor], side: int) -> tuple[Tensor, Tensor]:
    """``windows.fit_size`` of height and width."""
    scale = side / torch.maximum(*size)
    rows, columns = ((n * scale + 0.5).floor().clamp(min=1.0) for n in size)
    return rows, columns


def _padded(pixels: Tensor, size: tuple[Tensor, Tensor], shown: tuple[Tensor, Tensor], side: int) -> Tensor:
    """``windows.resize_pad`` of (..., 3, h, w) float64, of which ``size`` counts."""
    rows, columns = (
        traced.shrunk(n, side, a, b) for n, a, b in zip(pixels.shape[-2:], size, shown, strict=True)
    )
    view = traced.resized(pixels, rows, columns).float() / 255
    inside = (traced.steps(side, shown[0]) < shown[0])[:, None] & (traced.steps(side, shown[1]) < shown[1])
    colour = torch.tensor(windows.PAD_COLOUR)[:, None, None].to(view.device)
    return torch.where(inside, view, colour)


def _cut(view: Tensor, begins: list[Tensor], size: int) -> Tensor:
    """Windows (rows * columns, C, size, size) of (C, H, W); beyond the image its last pixel is repeated."""
    places = [
        (b[:, None] + traced.steps(size, b)).long().clamp(0, n - 1)
        for b, n in zip(begins, view.shape[-2:], strict=True)
    ]
    cut = view[:, places[0]][..., places[1]]  # (C, rows, size, columns, size)
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _merged(
    values: Tensor,
    begins: list[Tensor],
    size: tuple[Tensor, Tensor],
    total: tuple[int, int],
    weight: Tensor | None = None,
) -> Tensor:
    """``windows.Merger``: the weighted mean (H, W) of windows (rows * columns, h, w)."""
    height, width = values.shape[-2:]
    weight = torch.ones(height, width) if weight is None else weight
    down, right = (
        traced.spread(b, n, s, t).flatten(0, 1)
        for b, n, s, t in zip(begins, (height, width), size, total, strict=True)
    )  # (rows * h, H), (columns * w, W)
    rows, columns = begins[0].shape[0], begins[1].shape[0]
    both = [
        down.mT @ part.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2).flatten(0, 1) @ right
        for part in (values * weight, torch.ones_like(values) * weight)
    ]
    return both[0] / torch.where(both[1] > 0, both[1], torch.ones_like(both[1]))
