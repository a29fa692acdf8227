"""The feature bank: what a frozen network says about every instance, computed once and kept in feature files.

The name of a file is the hash of everything its content depends on: backbone and its weights, view options,
instances with their regions and groups, how pixels are read, image files with size and time. A file of
another hash is simply not there.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewspect.backbones.base import Backbone, Features
from fewspect.data import features
from fewspect.data.facts import pixel_options
from fewspect.data.features import FeatureSet
from fewspect.data.index import load_image
from fewspect.data.instances import Instance, Picture, load
from fewspect.data.mask_source import MaskSource
from fewspect.data.views import cut_exactly
from fewspect.errors import UserError
from fewspect.nn import pooling, views
from fewspect.nn.loading import digest

log = logging.getLogger(__name__)

VERSION = 2
"""Raise when the features change; part of every hash."""

WHOLE = 5
"""Views of a whole image: itself and its four quarters."""

THUMB = 96
"""Side in pixels of the small picture that is kept of every instance."""

SHARES = (0.25, 0.375, 0.5)
"""What the published windows (256, 384, 512 pixels) are of the benchmark's usual image of 1024 pixels."""

FACTORS = (1.5, 2.5, 4.0)
"""Windows relative to the instance, in multiples of its longer side."""

CONTEXT = 2.0
"""It shows the instance with this much around it, in multiples of its longer side."""

NAMED = ("kind", "sizes", "relative", "reflect", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """How an instance is looked at.

    Attributes:
        kind: View set, see ``nn.views``; images that are instances as a whole are always seen in
            ``whole_views``.
        sizes: Window sides in pixels, or factors with ``relative``; None = ``SHARES`` of the image's longer
            side (with ``relative``: ``FACTORS``).
        relative: Sizes are multiples of the instance's longer side (at least ``least`` pixels).
        least: Smallest longer side that ``relative`` and ``mso_bbox`` assume, in pixels.
        reflect: Mirror the image at its borders instead of black.
        exact: The original's pixels: Pillow, two resizings.
        batch: Views that the network sees at once.
    """

    kind: views.ViewSet = "mso"
    sizes: Sequence[float] | None = None
    relative: bool = False
    least: int = 32
    reflect: bool = False
    exact: bool = False
    batch: int = 54


class FeatureBank:
    """Features of instances by one backbone.

    Args:
        backbone: Frozen; seen at its own side.
        options: How instances are looked at.
        folder: Where feature files are kept; None = nowhere.
        masks: Masks from elsewhere, for instances without one.
        drawn: Some instance has a mask: then whole images have as many views as the view set; otherwise
            ``WHOLE``.
    """

    def __init__(
        self,
        backbone: Backbone,
        options: ViewOptions,
        folder: Path | None = None,
        masks: MaskSource | None = None,
        *,
        drawn: bool = True,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone, self.options, self.folder, self.masks = backbone, options, folder, masks
        sizes = views.BOX_SCALES if options.kind == "mso_bbox" else options.sizes or SHARES
        self.whole = views.count(options.kind, sizes) if drawn else WHOLE

    def get(self, instances: Sequence[Instance], classes: Sequence[str], product: str) -> FeatureSet:
        """Features of instances, from the file if it is there.

        Args:
            instances: In the order of the result.
            classes: Class list; a class that is not in it counts as unknown.
            product: The inspected object.

        Raises:
            UserError: There is no instance, or an image cannot be read.
        """
        if not instances:
            raise UserError(
                f"{product or 'The data set'}: no instance to describe.",
                "Run mode=check to see what is there.",
            )
        path = None
        if self.folder is not None:
            path = self.folder / f"{self.backbone.name}-{self._hash(instances, classes)}.safetensors"
        made = features.kept(path, lambda: self.compute(instances, classes, product))
        return replace(made, product=product)

    @torch.inference_mode()
    def compute(self, instances: Sequence[Instance], classes: Sequence[str], product: str) -> FeatureSet:
        """Look at every instance; see ``get``."""
        start, rows, thumbs = time.perf_counter(), [], []
        self.backbone.to(self.device)
        waiting: list[tuple[Tensor, Tensor]] = []
        last: tuple[Path, Tensor] | None = None
        for instance in instances:
            if last is None or last[0] != instance.sample.image:
                last = instance.sample.image, load_image(instance.sample)
            picture = load(instance, last[1], self.masks and self.masks.of(instance, last[1]))
            waiting.append(self.look(picture))
            thumbs.append(thumb(picture))
            if sum(len(images) for images, _ in waiting) >= self.options.batch:
                rows += self._described(waiting)
                waiting = []
        rows += self._described(waiting)
        spent = time.perf_counter() - start
        log.info("%s: %d instances seen in %.1f s", product or "features", len(rows), spent)
        place = {name: k for k, name in enumerate(classes)}
        return FeatureSet(
            torch.stack(rows).half(),  # (N, V, T, D)
            torch.tensor([place.get(i.cls, -1) for i in instances]),
            tuple(classes),
            thumb=torch.stack(thumbs),
            ids=tuple(i.name for i in instances),
            groups=tuple(i.group for i in instances),
            paths=tuple(str(i.sample.image) for i in instances),
            product=product,
            config=self.config,
        )

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Picture]) -> Tensor:
        """Features (N, V, T, D) float16 of pictures that are at hand."""
        self.backbone.to(self.device)
        rows: list[Tensor] = []
        for picture in pictures:
            rows += self._described([self.look(picture)])
        return torch.stack(rows).half()

    @property
    def config(self) -> dict[str, Any]:
        """What the features depend on beside the instances; plain values."""
        options = asdict(self.options)
        named = {k: options[k] for k in (*NAMED, "least")}
        masks = "" if self.masks is None else self.masks.digest
        name = {"backbone": self.backbone.name, "weights": digest(self.backbone)[:16]}
        more = {"whole": self.whole, "masks": masks, "version": VERSION}
        return {**name, "side": self.backbone.side, **named, **more}

    def look(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Views (V, 3, side, side) and masks (V, 1, side, side) of one instance, in [0, 1]."""
        o, side = self.options, self.backbone.side
        boxes = self.boxes(picture)
        if not o.exact:
            return views.cut(picture.image, picture.mask, boxes, side, reflect=o.reflect)
        image = Image.fromarray(np.ascontiguousarray(picture.image.permute(1, 2, 0).numpy()))
        return cut_exactly(image, Image.fromarray(picture.mask.numpy()), boxes, side)

    def boxes(self, picture: Picture) -> list[views.Box]:
        """Windows of one instance."""
        o, box = self.options, picture.box
        if o.relative or o.kind == "mso_bbox":
            box = _at_least(box, o.least)
        if not picture.drawn:
            return whole_views(picture.image.shape[-2], picture.image.shape[-1], self.whole)
        return views.windows(box, o.kind, self._sizes(picture), relative=o.relative)

    def _sizes(self, picture: Picture) -> Sequence[float]:
        """Window sides in pixels, or factors."""
        o = self.options
        if o.kind == "mso_bbox":
            return views.BOX_SCALES
        if o.sizes is not None:
            return o.sizes
        longer = max(picture.image.shape[-2:])
        return FACTORS if o.relative else [share * longer for share in SHARES]

    def _described(self, waiting: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """(V, T, D) of every instance that waits."""
        if not waiting:
            return []
        counts = [len(images) for images, _ in waiting]
        images, masks = (torch.cat(part) for part in zip(*waiting, strict=True))
        done = [
            describe(self.backbone, i.to(self.device), m.to(self.device)).cpu()
            for i, m in zip(images.split(self.options.batch), masks.split(self.options.batch), strict=True)
        ]
        return list(torch.cat(done).split(counts))

    def _hash(self, instances: Sequence[Instance], classes: Sequence[str]) -> str:
        sha = hashlib.sha256(repr((self.config, tuple(classes))).encode())
        for i in instances:
            stat = i.sample.image.stat()
            files = [(str(r.path), r.path.stat().st_mtime_ns) for r in i.regions if r.path is not None]
            told = (i.name, i.cls, i.regions, i.component, i.group, *pixel_options(i.sample))
            sha.update(repr((*told, stat.st_size, stat.st_mtime_ns, files)).encode())
        return sha.hexdigest()[:20]


def describe(backbone: Backbone, image: Tensor, alpha: Tensor) -> Tensor:
    """Tokens (B, T, D) that describe pictures (B, 3, H, W) and their masks (B, 1, H, W), in [0, 1]."""
    found: Features = backbone(image, alpha)
    if found.cls is None:
        return pooling.moments(found.tokens, alpha, found.grid)[:, None]
    cls, tokens = found.cls[-1].float(), found.tokens[-1].float()
    number = int(getattr(backbone, "patches", 0))
    if number:
        return pooling.top_patches(cls, tokens, number)
    inside = (tokens * pooling.weights(alpha, found.grid)[..., None]).sum(1)
    return torch.stack([cls, inside], 1)


def whole_views(height: int, width: int, number: int) -> list[views.Box]:
    """Windows on an image that is an instance as a whole: all of it, then its quarters.

    They are repeated until there are ``number``, so that whole images and drawn instances can be compared.
    """
    boxes = [(0, 0, width, height)]
    h, w = max(height // 2, 1), max(width // 2, 1)
    boxes += [(x, y, x + w, y + h) for y in (0, height - h) for x in (0, width - w)]
    return (boxes * (number // len(boxes) + 1))[:number]


def thumb(picture: Picture) -> Tensor:
    """Small picture (4, THUMB, THUMB) uint8: colour and mask of the instance and what is around it."""
    x1, y1, x2, y2 = picture.box
    side = round(max(CONTEXT * max(x2 - x1, y2 - y1), THUMB))
    box = views.windows(picture.box, "none", [side])[0] if picture.drawn else None
    if box is None:
        box = views.windows(picture.box, "whole")[0]
    both = views.window(torch.cat([picture.image, picture.mask[None]]), box)
    return F.interpolate(both[None], (THUMB, THUMB), mode="bilinear", antialias=True, align_corners=False)[0]


def _at_least(box: tuple[float, float, float, float], least: int) -> tuple[float, float, float, float]:
    """A box grown around its centre until no side is shorter."""
    x1, y1, x2, y2 = box
    dx, dy = max(least - (x2 - x1), 0) / 2, max(least - (y2 - y1), 0) / 2
    return x1 - dx, y1 - dy, x2 + dx, y2 + dy
