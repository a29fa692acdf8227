"""Task base of the unsupervised detectors: from a raw residual map to a calibrated decision.

A concrete detector learns from good images and gives ``predict(images (Q, 3, h, w), state) ->
Prediction.prob``: a raw map, higher = more anomalous, at any resolution, and the reconstruction if it makes
one. This base looks at whole images or at overlapping tiles, brings the map to the image's size, smooths it,
and decides by thresholds that were set on good images only.

The thresholds are set by the validation epochs (``calibration``), whose images are good by construction of
the data and checked here once more: a defect can't move a threshold. They are part of every checkpoint.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect import draws
from fewspect.errors import UserError
from fewspect.methods.base import Method, of_all_processes
from fewspect.methods.calibration import Calibration, Calibrations, Observed, Rules
from fewspect.methods.graphs import DetectorGraph, Graph
from fewspect.nn import maps as map_ops
from fewspect.nn import tiles, windows
from fewspect.nn.morphology import clean
from fewspect.types import Episode, Prediction, State, Support


@dataclass(frozen=True, slots=True)
class View:
    """How an image is shown to the network.

    Attributes:
        side: Side of the network input in pixels.
        zoom: Tiles only: the image is brought to this side first; None = its own size.
        stride: Distance of neighbouring tiles in pixels; None = the image in one piece, whatever its shape.
        weight: How overlapping tiles are averaged: ``uniform`` (Bergmann et al. 2019), ``hann``,
            ``gaussian``.
        tiles_per_batch: Tiles answered at once; bounds the memory.
    """

    side: int = 256
    zoom: int | None = None
    stride: int | None = None
    weight: Literal["uniform", "hann", "gaussian"] = "uniform"
    tiles_per_batch: int = 16

    def __post_init__(self) -> None:
        for name in ("side", "zoom", "stride", "tiles_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(
                    f"method.evaluate.{name}={value} is no number of pixels or tiles.", "Give 1 or more."
                )
        if self.stride is not None and self.stride > self.side:
            raise UserError(
                f"method.evaluate.stride={self.stride} leaves gaps between tiles of {self.side} pixels.",
                f"Give at most {self.side}; half of it is common.",
            )


@dataclass(frozen=True, slots=True)
class Maps:
    """What happens to a raw map before it is compared with a threshold.

    Attributes:
        resolution: ``original``: everything below happens at the image's own size; ``model``: at the map's.
            Answers come at the image's size in both cases.
        smooth: Sigma of a Gaussian in pixels of that resolution; 0 = none.
        border: Width of a frame in pixels whose values are multiplied by ``border_gain``.
        border_gain: See ``border``.
        pixel_norm: Standardise every pixel by good images (aligned objects): ``auto`` does so where the mean
            map varies more than single maps do.
        score: Image score of a map: ``max``, ``top1pct``, ``top<number>`` or ``mean``.
    """

    resolution: Literal["original", "model"] = "original"
    smooth: float = 0.0
    border: int = 0
    border_gain: float = 0.2
    pixel_norm: Literal["auto", "on", "off"] = "off"
    score: str = "top1pct"

    def __post_init__(self) -> None:
        map_ops.require_score(self.score)
        for name in ("smooth", "border"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"method.maps.{name}={value} is negative.", "Give pixels; 0 = none.")


@dataclass(frozen=True, slots=True)
class Clean:
    """What is left of a thresholded mask.

    Attributes:
        open_radius: Radius in pixels of the disk of a binary opening; 0 = none.
        low: Share of the pixel threshold, in (0, 1], that marked regions grow down to (hysteresis); null =
            they stay as they are. For maps whose values are not negative.
        min_area: Connected regions (8 neighbours) with fewer pixels are removed.
        fill_holes: Fill what a region encloses.
    """

    open_radius: int = 0
    low: float | None = None
    min_area: int = 0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        if self.low is not None and not 0 < self.low <= 1:
            raise UserError(
                f"method.clean.low={self.low} is no share of the pixel threshold.",
                "Choose a value in (0, 1], or null.",
            )


@dataclass(frozen=True, slots=True)
class Fitted:
    """State of a detector that has learned: which of its products is asked for.

    Attributes:
        product: The inspected object.
        owner: Identity of the image that is asked about, ``owner_of``; a memory leaves it out of the answer.
    """

    product: str
    owner: int | None = None


class Detector(Method):
    """Base of methods that learn what good parts look like.

    Args:
        evaluate: Fields of ``View``.
        maps: Fields of ``Maps``.
        threshold: Fields of ``calibration.Rules``.
        clean: Fields of ``Clean``.
        options: See ``Method``.
    """

    task = "detect"
    protocols = ("plain",)
    schema: ClassVar[dict[str, Any]] = {"evaluate": View, "maps": Maps, "threshold": Rules, "clean": Clean}

    def __init__(
        self,
        *,
        evaluate: Mapping[str, Any] | None = None,
        maps: Mapping[str, Any] | None = None,
        threshold: Mapping[str, Any] | None = None,
        clean: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**options)
        self.view, self.maps = View(**(evaluate or {})), Maps(**(maps or {}))
        self.rules, self.cleaning = Rules(**(threshold or {})), Clean(**(clean or {}))
        self.calibrations = Calibrations()
        self._observed: list[Observed] = []

    # -- what a detector may override

    def adapt(self, support: Support) -> State:
        """Name the fitted state of the product; few-shot detectors build one from good support images."""
        return Fitted(support.product)

    # -- answers

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """Answer episodes of evaluation, one by one, each at its image's own size."""
        with torch.inference_mode():
            return [self.detect(e.query_image[0], self.adapt(e.support), e.product) for e in batch]

    def detect(self, image: Tensor, state: State, product: str = "") -> Prediction:
        """Answer one image at its own size.

        Args:
            image: (3, H, W) uint8.
            state: What ``adapt`` returned.
            product: The inspected object, whose thresholds decide; one that is not known is treated as the
                only known one.

        Returns:
            ``prob`` (1, H, W) raw map, ``score`` (1,), ``image`` (1, 3, h, w) if the method reconstructs;
            with thresholds also ``mask``, ``decision``, ``scale`` and ``extra["calibrated"]`` (1,): the share
            of good images with a lower score.

        Raises:
            UserError: Several products are known and this one is not among them.
        """
        raw, image_again = self.raw_map(image, state)
        known = self.calibrations.known
        if not known:
            final, score = self.finish_map(raw, image.shape[-2:], None)
            return Prediction(prob=self._full(final, image), score=score[None], image=image_again)
        calibration = self.calibrations.about(choose(product, known))
        final, score = self.finish_map(raw, image.shape[-2:], calibration)
        mask = self._marked(final, calibration.pixel)
        if mask.shape != image.shape[-2:]:
            mask = F.interpolate(mask[None, None], image.shape[-2:], mode="nearest")[0, 0]
        return Prediction(
            prob=self._full(final, image),
            mask=mask[None],
            score=score[None],
            decision=(score > calibration.image)[None].to(torch.uint8),
            scale=calibration.scale,
            image=image_again,
            extra={"calibrated": calibration.rank(score)[None]},
        )

    def _marked(self, final: Tensor, threshold: float) -> Tensor:
        """Cleaned mask (h, w) uint8 of what exceeds the pixel threshold."""
        options = asdict(self.cleaning)
        low, values = options.pop("low"), final.cpu().numpy()
        weak = None if low is None else values > low * threshold
        return torch.from_numpy(clean(values > threshold, weak, **options)).to(final.device, torch.uint8)

    def exported(self, episode: Episode) -> Graph:
        """See ``Method.exported``.

        Raises:
            UserError: There are no thresholds yet, several products and none of them is meant, or an option
                has no graph.
        """
        known = self.calibrations.known
        if not known:
            raise UserError(
                f"{type(self).__name__} has no thresholds yet, so there is nothing to decide with.",
                "Train it first: mode=train sets them on good images.",
            )
        calibration = self.calibrations.about(choose(episode.product, known))
        return DetectorGraph(self, self.settled(self.adapt(episode.support)), calibration)

    def settled(self, state: State) -> State:
        """A state for a graph: one that only names a product is replaced by what was learned of it."""
        return state

    def raw_map(self, image: Tensor, state: State) -> tuple[Tensor, Tensor | None]:
        """Raw map (h, w) of an image (3, H, W) uint8, and the reconstruction (1, 3, h, w) if there is one."""
        if self.view.stride is None:
            answer = self.predict(windows.squash(image, self.view.side)[None], state)
            assert answer.prob is not None, f"{type(self).__name__}.predict gave no map"
            return answer.prob[0].float(), answer.image
        view = image.float() / 255 if self.view.zoom is None else windows.squash(image, self.view.zoom)
        return self._tiled(view, state)

    def finish_map(
        self, raw: Tensor, size: tuple[int, int] | torch.Size, calibration: Calibration | None
    ) -> tuple[Tensor, Tensor]:
        """Bring a raw map (h, w) to the decision's resolution: final map and raw image score ()."""
        if calibration is not None and calibration.norm is not None:
            raw = calibration.norm(raw)
        values = raw[None]  # (1, h, w)
        if self.maps.resolution == "original" and raw.shape != torch.Size(size):
            values = F.interpolate(values[None], tuple(size), mode="bilinear", align_corners=False)[0]
        if self.maps.border:
            values = map_ops.border_guard(values, self.maps.border, self.maps.border_gain)
        if self.maps.smooth:
            values = map_ops.smooth(values, self.maps.smooth)
        return values[0], map_ops.image_score(values, self.maps.score)[0]

    def _tiled(self, view: Tensor, state: State) -> tuple[Tensor, Tensor | None]:
        """Answer tiles of a view (3, H, W) and average them, maps and reconstructions alike."""
        side, stride = self.view.side, self.view.stride
        assert stride is not None
        height, width = view.shape[-2:]
        view = tiles.pad(view, side)
        boxes = tiles.boxes(view.shape[-2], view.shape[-1], side, stride)
        weight = tiles.weight(self.view.weight, side).to(view.device)
        heat, *colours = (windows.Merger(view.shape[-2], view.shape[-1], view.device) for _ in range(4))
        rebuilt = False
        for start in range(0, len(boxes), self.view.tiles_per_batch):
            chunk = boxes[start : start + self.view.tiles_per_batch]
            answer = self.predict(torch.stack([view[:, t:b, le:r] for t, b, le, r in chunk]), state)
            assert answer.prob is not None, f"{type(self).__name__}.predict gave no map"
            values = F.interpolate(answer.prob[:, None].float(), (side, side), mode="bilinear")[:, 0]
            for k, box in enumerate(chunk):
                heat.add(box, values[k], weight)
                if answer.image is not None:
                    rebuilt = True
                    for merger, channel in zip(colours, answer.image[k], strict=True):
                        merger.add(box, channel, weight)
        again = torch.stack([m.result() for m in colours])[None, :, :height, :width] if rebuilt else None
        return heat.result()[:height, :width], again

    def _full(self, final: Tensor, image: Tensor) -> Tensor:
        """(1, H, W) map at the image's size."""
        if final.shape == image.shape[-2:]:
            return final[None]
        return F.interpolate(final[None, None], image.shape[-2:], mode="bilinear", align_corners=False)[0]

    # -- thresholds, from good images only

    def on_validation_epoch_start(self) -> None:
        """Forget the maps of the last validation."""
        self._observed = []

    def validation_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Any]:
        """Answer good images and keep their raw maps for the thresholds.

        An image that the method has learned from is left out of its own answer (``Fitted.owner``).

        Raises:
            UserError: An image is not labelled good.
        """
        del batch_idx
        predictions = []
        with torch.inference_mode():
            for episode in batch:
                if int(episode.query_label[0]) != 0 or bool((episode.query_mask == 1).any()):
                    raise UserError(
                        f"{episode.paths[0]} is not a good image, thresholds are set on good images only.",
                        "Mend the validation split (mode=check shows it).",
                    )
                owner = owner_of(episode.paths[0])
                state = self.adapt(episode.support)
                state = replace(state, owner=owner) if isinstance(state, Fitted) else state
                image = episode.query_image[0]
                raw, again = self.raw_map(image, state)
                size = (image.shape[-2], image.shape[-1])
                self._observed.append(Observed(episode.product, raw.cpu(), size, owner))
                final, score = self.finish_map(raw, image.shape[-2:], None)
                predictions.append(Prediction(prob=self._full(final, image), score=score[None], image=again))
        return {"episodes": batch, "predictions": predictions}

    def on_validation_epoch_end(self) -> None:
        """Set the thresholds; ``val/loss`` is the mean of the raw maps of good images."""
        observed = sorted(of_all_processes(self._observed), key=lambda o: o.owner)
        self._observed = []
        if not observed:
            return
        self.calibrations.fit(observed, self.rules, self.maps.pixel_norm, self.finish_map)
        self.log("val/loss", torch.stack([o.raw.mean() for o in observed]).mean())


def owner_of(path: str) -> int:
    """Identity of an image file as a 63-bit integer."""
    return draws.key(0, f"owner/{path}")


def choose(product: str, known: Collection[str]) -> str:
    """The product whose state is used: itself, or the only one there is.

    Raises:
        UserError: Several are known, this one is not.
    """
    if product in known:
        return product
    if len(known) == 1:
        return next(iter(known))
    names = ", ".join(sorted(known))
    raise UserError(f"Nothing was learned about the product '{product}'.", f"Known are: {names}.")
