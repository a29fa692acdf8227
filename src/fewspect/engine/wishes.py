"""What ``mode=generate`` is told to draw: masks, good pictures, regions, classes; read once, by number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewspect.data.images import read_image
from fewspect.data.listing import MASK_ENDINGS, scan
from fewspect.data.masks import decode_mask, read_index
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.methods.generator import Generator, Wish
from fewspect.nn.windows import squash, squash_labels
from fewspect.types import Episode, Generated

SIZE = (0.25, 0.5)
"""Sides of a drawn region as shares of the picture's side."""

GROWN = 3
"""Pixels around a given mask that may change, too, where no region is given."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The wish of every sample: files are taken in turn.

    Attributes:
        base: What all samples share.
        masks: (labels (side, side), name), or empty.
        normals: (picture (3, side, side), name) to put defects onto, or empty.
        regions: (bool (side, side), name), or empty.
        real: (picture, labels, name) to vary, or empty.
        side: Side of the pictures in pixels.
        seed: Of the drawn regions.
    """

    base: Wish
    masks: Sequence[tuple[Tensor, str]] = ()
    normals: Sequence[tuple[Tensor, str]] = ()
    regions: Sequence[tuple[Tensor, str]] = ()
    real: Sequence[tuple[Tensor, Tensor, str]] = ()
    side: int = 0
    seed: int = 0

    def __getitem__(self, number: int) -> Wish:
        """The wish of one sample."""
        given: dict[str, Any] = {}
        names, group = [], ""
        if self.real:
            image, labels, group = self.real[number % len(self.real)]
            given |= {"image": image, "labels": labels}
            names.append(group)
        if self.masks:
            given["mask"], name = self.masks[number % len(self.masks)]
            names.append(name)
        if self.normals:
            given["image"], group = self.normals[number % len(self.normals)]
            given["region"] = self._region(number, given.get("mask"))
            names.append(group)
        base = {"classes": self.base.classes, "product": self.base.product, "start": self.base.start}
        return Wish(**base, **given, source=" ".join(names), group=group)

    def _region(self, number: int, mask: Tensor | None) -> Tensor:
        if self.regions:
            return self.regions[number % len(self.regions)][0]
        if mask is not None:
            near = torch.nn.functional.max_pool2d((mask > 0).float()[None], 2 * GROWN + 1, 1, GROWN)
            return near[0] > 0
        r = rng(self.seed, "generate/region", number)
        spans = []
        for _ in range(2):
            length = max(1, round(self.side * float(r.uniform(*SIZE))))
            start = int(r.integers(self.side - length + 1))
            spans.append((np.arange(self.side) >= start) & (np.arange(self.side) < start + length))
        return torch.from_numpy(np.logical_and.outer(*spans))


def drawer(
    method: Generator, options: Mapping[str, Any], training: Sequence[Episode], seed: int
) -> Callable[[Sequence[int]], list[Generated]]:
    """Return what draws the samples of given numbers.

    Args:
        method: The generator, which knows its data.
        options: The group ``generate`` of the config.
        training: Its training pictures, for variations.
        seed: Of the run.

    Raises:
        UserError: A file, class or combination that does not fit.
    """
    if not any(options[k] for k in ("mask", "normal", "region", "classes", "product")) and (
        options["start"] is None
    ):
        return method.generate
    wishes = _read(method, options, training, seed)
    return lambda numbers: method.control(numbers, [wishes[n] for n in numbers])


def _read(method: Generator, options: Mapping[str, Any], training: Sequence[Episode], seed: int) -> Wishes:
    side, start = method.info.side, options["start"]
    _refuse(method, options)
    masks = _labels(options["mask"], side, method.classes) if options["mask"] else []
    normals = _pictures(options["normal"], side) if options["normal"] else []
    regions = _regions(options["region"], side) if options["region"] else []
    real = []
    if start is not None and not normals:
        real = [_example(episode, side) for episode in training if bool(episode.query_mask.any())]
    asked = options["classes"] or ()
    base = Wish(
        classes=(asked,) if isinstance(asked, str) else tuple(asked),
        product=options["product"] or "",
        start=1.0 if start is None else float(start),
    )
    return Wishes(base, masks, normals, regions, real, side, seed)


def _refuse(method: Generator, options: Mapping[str, Any]) -> None:
    asked = options["classes"] or ()
    unknown = sorted(set((asked,) if isinstance(asked, str) else asked) - set(method.classes))
    if unknown:
        raise UserError(
            f"generate.classes: {', '.join(unknown)} is no class of this run.",
            f"Choose of {', '.join(method.classes)}.",
        )
    if options["product"] and options["product"] not in method.info.products:
        raise UserError(
            f"generate.product={options['product']} is no product of this run.",
            f"Choose of {', '.join(method.info.products)}.",
        )
    if options["region"] and not options["normal"]:
        raise UserError(
            f"generate.region={options['region']} says where a good picture may change; there is none.",
            "Add generate.normal=<folder of good pictures>.",
        )


def _files(place: str, key: str) -> list[Path]:
    path = Path(place)
    found = (
        [path] if path.is_file() else list(scan(path, endings=MASK_ENDINGS).images) if path.is_dir() else []
    )
    if not found:
        raise UserError(
            f"generate.{key}={place}: no image there.", "Name a file, or a folder that holds some."
        )
    return found


def _pictures(place: str, side: int) -> list[tuple[Tensor, str]]:
    return [(squash(read_image(path), side), path.name) for path in _files(place, "normal")]


def _regions(place: str, side: int) -> list[tuple[Tensor, str]]:
    found = []
    for path in _files(place, "region"):
        mask = torch.from_numpy(decode_mask(path)[0].astype(np.uint8))
        found.append((squash_labels(mask, side) > 0, path.name))
        if not found[-1][0].any():
            raise UserError(
                f"{path}: the region is empty at {side} pixels.", "Draw a larger one; white may change."
            )
    return found


def _labels(place: str, side: int, classes: Sequence[str]) -> list[tuple[Tensor, str]]:
    found = []
    for path in _files(place, "mask"):
        labels = read_index(path).astype(np.int64)
        highest = int(labels.max(initial=0))
        if highest > len(classes):
            told = ", ".join(f"{k} {name}" for k, name in enumerate(classes, 1))
            raise UserError(
                f"{path}: label {highest}; this generator knows 0 background, {told}.",
                "Draw masks with these values (a black and white mask: 1 instead of 255).",
            )
        found.append((squash_labels(torch.from_numpy(labels).to(torch.uint8), side), path.name))
    return found


def _example(episode: Episode, side: int) -> tuple[Tensor, Tensor, str]:
    image, mask = episode.query_image[0], squash_labels(episode.query_mask[0], side)
    picture = image if image.is_floating_point() else squash(image, side)
    path = Path(episode.paths[0]) if episode.paths else Path(str(episode.index))
    return picture, mask, "/".join(path.parts[-2:])
